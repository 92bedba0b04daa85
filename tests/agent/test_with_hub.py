"""Runner, agents and clients with real hubs: every connection is authorised by the callout, and expires."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from natskit.client import Client
from natskit.connection import Connection, NatsServers, connect
from natskit.errors import ConnectionLostError
from natskit.permissions import inbox_prefix
from natskit.runner.processes import processes_of
from tests.hub.site import Site

from .conftest import until_async

TTL = 10


class Platform:
    """A server, two hubs whose answers expire soon, a runner."""

    def __init__(self, root: Path) -> None:
        self.site = Site(root)
        self.runner: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self.site.start_server()
        for name in ("hub-1", "hub-2"):
            self.site.start_hub(name, authorization_ttl_seconds=TTL)
        for name in ("hub-1", "hub-2"):
            await self.site.healthy(name)
        self.start_runner()

    def start_runner(self) -> None:
        directory = self.site.root / "runner"
        directory.mkdir(mode=0o700, exist_ok=True)
        creds, settings = directory / "runner.creds", directory / "runner.json"
        creds.write_text(self.site.runner_creds)
        settings.write_text(
            json.dumps(
                {
                    "runner_id": self.site.runner_id,
                    "name": "local",
                    "nats": {"urls": [self.nats_url]},
                    "creds": str(creds),
                    "directory": str(directory),
                }
            )
        )
        log = (directory / "runner.log").open("ab")
        self.runner = subprocess.Popen(
            [sys.executable, "-m", "natskit.runner", "--settings", str(settings)], stdout=log, stderr=log
        )
        log.close()

    def stop_runner(self) -> None:
        if self.runner is not None:
            self.runner.terminate()
            self.runner.wait(15)

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.site.nats_port}"

    async def connect(self, project_id: str, creds: str) -> Connection:
        """As whoever has a copy of a project's creds."""
        path = self.site.root / "copied.creds"
        path.write_text(creds)
        servers = NatsServers(urls=[self.nats_url])
        return await connect(
            servers, name="copy", inbox_prefix=inbox_prefix("project", project_id), creds=path, timeout=2
        )

    async def connections(self) -> list[dict[str, Any]]:
        """Those of the NATS account PLATFORM, from the server itself."""
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{self.site.monitor_port}/connz?auth=true")
        return [c for c in answer.json()["connections"] if c.get("authorized_user")]

    async def admin(self) -> Client:
        creds = self.site.root / "admin.creds"
        creds.write_text(self.site.identity.creds("PLATFORM", "admin"))
        return await Client.admin(self.nats_url, creds)


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[Platform]:
    with tempfile.TemporaryDirectory(prefix="natskit-hub-") as root:
        platform = Platform(Path(root))
        try:
            await platform.start()
            yield platform
        finally:
            platform.stop_runner()
            for name in list(platform.site.hubs):
                platform.site.kill_hub(name)
            platform.site.stop_server()


@pytest.fixture(scope="module")
async def admin(platform: Platform) -> AsyncIterator[Client]:
    async with await platform.admin() as admin:
        yield admin


@pytest.fixture(scope="module")
async def project(admin: Client) -> dict[str, Any]:
    await admin.call_hub("account_add", email="a@example.org", password="correct horse")  # noqa: S106
    created = await admin.call_hub("project_create", email="a@example.org", title="Demo")

    async def started() -> bool:
        status = await admin.call_hub("status")
        return bool(status["runners"] and status["runners"][0]["alive"])

    await until_async(started, "the runner is alive")
    return dict(await admin.call_hub("start_project", project_id=created["project_id"], wait=40))


async def test_start_exec_write_read(admin: Client, project: dict[str, Any]) -> None:
    assert project["state"] == "running"
    project_id = project["project_id"]
    async with admin.exec(project_id, command="echo hello; exit 7") as run:
        assert await run.output() == (b"hello\n", b"")
    assert run.exit_code == 7
    written = await admin.call_project(project_id, "write_text_file", path="a", text="b")
    assert await admin.call_project(project_id, "read_text_file", path="a") == {"text": "b", **written}


async def test_a_command_outlives_the_authorisation_of_its_agent(
    admin: Client, project: dict[str, Any], platform: Platform
) -> None:
    log = platform.site.root / "runner" / "projects" / project["project_id"] / "agent.log"
    command = f"for i in $(seq {TTL * 3}); do echo $i; sleep 0.5; done"
    async with admin.exec(project["project_id"], command=command) as run:
        out, _ = await run.output()
    assert out == "".join(f"{i}\n" for i in range(1, TTL * 3 + 1)).encode()
    assert run.exit_code == 0
    assert "user authentication expired" in log.read_text().lower()


async def test_a_new_key_while_a_command_runs(admin: Client, project: dict[str, Any], platform: Platform) -> None:
    """The command and its output go on; the old key is dead on the live connection, and for whoever comes with it."""
    project_id = project["project_id"]
    creds = platform.site.root / "runner" / "projects" / project_id / "project.creds"
    old = creds.read_text()
    pid = processes_of(project_id)
    async with admin.exec(project_id, command="for i in $(seq 40); do echo $i; sleep 0.1; done") as run:
        lines = aiter(run)
        await anext(lines)
        assert (await admin.call_hub("rotate_project_keys", project_id=project_id, wait=30))["rotated"]
        assert creds.read_text() != old
        with pytest.raises(ConnectionLostError):
            await platform.connect(project_id, old)
        assert (await admin.call_project(project_id, "ping"))["pong"]
        rest = b"".join([data async for _, data in lines])
    assert rest.splitlines()[-1] == b"40"
    assert run.exit_code == 0
    assert pid[0] in processes_of(project_id), "the agent is the same process"
    connected = [c["authorized_user"] for c in await platform.connections() if project_id in c["authorized_user"]]
    assert len(connected) == 1
    assert (await admin.call_hub("rotate_project_keys", project_id=project_id, wait=30))["rotated"], "and once more"


async def test_the_runner_brings_projects_back(admin: Client, project: dict[str, Any], platform: Platform) -> None:
    project_id = project["project_id"]
    platform.stop_runner()
    assert processes_of(project_id) == []
    platform.start_runner()

    async def answers() -> bool:
        try:
            return bool(await admin.call_project(project_id, "ping", wait=1))
        except Exception:
            return False

    await until_async(answers, "the project answers again", 30)


async def test_stop_and_delete(admin: Client, project: dict[str, Any], platform: Platform) -> None:
    project_id = project["project_id"]
    directory = platform.site.root / "runner" / "projects" / project_id
    stopped = await admin.call_hub("stop_project", project_id=project_id, wait=30)
    assert stopped["state"] == "stopped"
    assert processes_of(project_id) == []
    assert directory.exists()
    await admin.call_hub("project_delete", project_id=project_id, wait=30)
    await until_async(lambda: not directory.exists(), "its directory is gone")
    await asyncio.sleep(0)
