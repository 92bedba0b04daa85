"""The part of a runner that backups need, on a real nats-server: it answers ``runners.{runner_id}.backup``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from nats.aio.msg import Msg

from natskit.backup.runner_files import Runner
from natskit.bus.connection import connect
from natskit.bus.credentials import CredsText
from natskit.bus.output_stream import HEADER_ROOM
from natskit.bus.payload import json_and_data, with_data
from natskit.bus.permissions import Permissions
from natskit.bus.servers import NatsServers
from natskit.client import Client
from natskit.process.lifecycle import cancel, spawn
from natskit.runner.agent_process import AgentProcess
from natskit.runner.backup_api import BackupCall, Backups, backup_methods
from natskit.runner.config import RunnerProgram
from tests.hub.site import Site

LONG = 4_102_444_800
"""A moment in 2100."""


@dataclass(frozen=True)
class Served:
    """A runner that answers, and the operator's connection to it."""

    client: Client
    runner: Runner
    backups: Backups

    @property
    def projects(self) -> Path:
        """The folder with its projects."""
        return self.backups.top

    def write(self, project_id: str, name: str, content: str) -> Path:
        """Make a file in a project's home."""
        path = self.projects / project_id / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path


@asynccontextmanager
async def served(site: Site, runner_id: str, name: str, directory: Path) -> AsyncIterator[Served]:
    """Answer as the runner does, with its projects in ``directory/projects``."""
    url = f"nats://127.0.0.1:{site.nats_port}"
    program = RunnerProgram(runner_id=runner_id, name=name, nats=NatsServers(urls=[url]), directory=directory)
    (directory / "projects").mkdir(parents=True)
    agents: dict[str, AgentProcess] = {}

    async def no_jwt(*_: str) -> str:
        raise AssertionError("no project starts here")

    def project(project_id: str) -> AgentProcess:
        return agents.setdefault(project_id, AgentProcess(program, project_id, no_jwt, lambda *_: None))

    backups = Backups(program, project)
    rights = Permissions(publish=("_INBOX.admin.>",), subscribe=(f"runners.{runner_id}.backup", "_INBOX.runner.>"))
    creds = site.identity.temporary_creds("PLATFORM", "runner", rights, now=0, seconds=LONG)
    connection = await connect(program.nats, name="runner", inbox_prefix="_INBOX.runner", creds=CredsText(creds))
    tasks: set[object] = set()

    async def answer(message: Msg) -> None:
        request, data = json_and_data(message)
        call = BackupCall(backups, data, connection.max_payload - HEADER_ROOM)
        body = await backup_methods.answer(call, request, call.most)
        assert body is not None
        payload, headers = with_data(body, call.answer_data)
        await connection.publish(message.reply, payload, headers=headers)

    async def heard(message: Msg) -> None:
        spawn(tasks, answer(message))  # type: ignore[arg-type]

    await connection.subscribe(f"runners.{runner_id}.backup", cb=heard)
    await connection.flush()
    admin = CredsText(site.identity.creds("PLATFORM", "admin"))
    client = await Client.admin([url], admin, name="backup")
    try:
        yield Served(client, Runner(runner_id, name), backups)
    finally:
        await client.close()
        await connection.close()
        await cancel(tasks)  # type: ignore[arg-type]
        await backups.end()
