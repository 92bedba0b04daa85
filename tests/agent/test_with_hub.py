"""Runner, agents and clients with real hubs: the callout authorises every connection, and authorisations expire."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from natskit.bus.connection import Connection, connect
from natskit.bus.permissions import inbox_prefix
from natskit.bus.servers import NatsServers
from natskit.cli.trial import ATTEMPTS, try_all
from natskit.client import Client
from natskit.errors import ConnectionLostError, NatskitError
from natskit.hub.auth.tokens import Tokens
from natskit.identity import nkey
from natskit.identity.claims import format_creds
from natskit.identity.files import write_private
from natskit.rpc import RpcError
from natskit.runner.orphans import processes_of
from tests.hub.site import NO_TLS, Site, call
from tests.kit.wait import eventually

TTL = 10


class Platform:
    """A server, two hubs whose authorisations expire soon, and a runner."""

    def __init__(self, root: Path, ttl: int = TTL) -> None:
        self.site = Site(root)
        self.ttl = ttl
        self.runner: subprocess.Popen[bytes] | None = None
        spare = str(uuid.uuid4())
        self.spare_creds, key = self.site.identity.runner_creds(spare, now=int(time.time()))
        self.spare = spare, key

    async def start(self) -> None:
        self.site.start_server()
        for name in ("hub-1", "hub-2"):
            self.start_hub(name)
        for name in ("hub-1", "hub-2"):
            await self.site.healthy(name)
        self.start_runner()

    def start_hub(self, name: str) -> None:
        self.site.start_hub(name, authorization_ttl_seconds=self.ttl, runners=self.runners())

    def runners(self) -> dict[str, dict[str, str]]:
        """The runner that runs, and one that could run."""
        return {
            self.site.runner_id: {"name": "local", "public_key": self.site.runner_key},
            self.spare[0]: {"name": "spare", "public_key": self.spare[1]},
        }

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

    def directory(self, project_id: str) -> Path:
        """The runner's folder of a project."""
        return self.site.root / "runner" / "projects" / project_id

    async def connect(self, project_id: str, creds: str, patience: float = 2) -> Connection:
        """Connect with a copy of a project's or a runner's creds."""
        path = self.site.root / f"copied-{uuid.uuid4()}.creds"
        path.write_text(creds)
        servers = NatsServers(urls=[self.nats_url])
        return await connect(
            servers, name="copy", inbox_prefix=inbox_prefix("project", project_id), creds=path, timeout=patience
        )

    async def connections(self) -> list[dict[str, Any]]:
        """The connections of the NATS account PLATFORM, from the server."""
        async with httpx.AsyncClient(verify=NO_TLS) as client:
            answer = await client.get(f"http://127.0.0.1:{self.site.monitor_port}/connz?auth=true")
        return [c for c in answer.json()["connections"] if c.get("authorized_user")]

    async def admin(self) -> Client:
        creds = self.site.root / "admin.creds"
        creds.write_text(self.site.identity.creds("PLATFORM", "admin"))
        return await Client.admin(self.nats_url, creds)


@asynccontextmanager
async def running(prefix: str, **settings: Any) -> AsyncIterator[Platform]:
    """A running platform of hubs and a runner."""
    with tempfile.TemporaryDirectory(prefix=prefix) as root:
        platform = Platform(Path(root), **settings)
        try:
            await platform.start()
            yield platform
        finally:
            platform.stop_runner()
            for name in list(platform.site.hubs):
                platform.site.kill_hub(name)
                print(f"---- {name}\n{platform.site.log(name)}")
            platform.site.stop_server()
            print((platform.site.root / "runner" / "runner.log").read_text()[-4000:])


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[Platform]:
    async with running("natskit-hub-") as platform:
        yield platform


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

    await eventually(started, "the runner is alive")
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
    """The command and its output continue. Hubs refuse the old key, on open and on new connections."""
    project_id = project["project_id"]
    creds = platform.directory(project_id) / "project.creds"
    old = creds.read_text()
    pid = processes_of(project_id)
    async with admin.exec(project_id, command="for i in $(seq 20); do echo $i; sleep 0.1; done") as run:
        lines = aiter(run)
        await anext(lines)
        assert (await admin.call_hub("rotate_project_keys", project_id=project_id, wait=30))["rotated"]
        assert creds.read_text() != old
        with pytest.raises(ConnectionLostError):
            await platform.connect(project_id, old)
        assert (await admin.call_project(project_id, "ping"))["pong"]
        rest = b"".join([data async for _, data in lines])
    assert rest.splitlines()[-1] == b"20"
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

    await eventually(answers, "the project answers again", 30)


async def test_a_trial_left_on_a_runner_that_was_killed_is_deleted_with_the_next(
    admin: Client, platform: Platform
) -> None:
    left = set[str]()
    platform.stop_runner()
    said = await try_all(admin, left)
    assert [line.split(":")[0] for line in said] == ["runner local", "runner spare"]
    before = set(left)
    assert len(before) == 2 * ATTEMPTS
    platform.start_runner()

    async def works() -> bool:
        return [line.split(":")[0] for line in await try_all(admin, left)] == ["runner spare"]

    await eventually(works, "the runner that is back works", 60)
    deleted = before - left
    assert len(deleted) == ATTEMPTS
    for project_id in deleted:
        with pytest.raises(RpcError, match="no such project"):
            await admin.call_hub("project_delete", project_id=project_id)


async def test_a_revoked_runner_is_cut_off_with_its_projects(
    admin: Client, project: dict[str, Any], platform: Platform
) -> None:
    project_id = project["project_id"]
    creds = (platform.directory(project_id) / "project.creds").read_text()

    async def cut() -> bool:
        names = [c["authorized_user"] for c in await platform.connections()]
        return not any(platform.site.runner_id in name or project_id in name for name in names)

    await admin.call_hub("runner_revoke", name="local")
    await eventually(cut, "the runner and its project are cut", 5)
    rows = {row["name"]: row for row in await admin.call_hub("runner_list")}
    assert (rows["local"]["revoked"], rows["local"]["alive"]) == (True, False)
    assert (rows["spare"]["revoked"], rows["spare"]["projects"]) == (False, 0)
    for who, with_creds in ((platform.site.runner_id, platform.site.runner_creds), (project_id, creds)):
        with pytest.raises(ConnectionLostError):
            await platform.connect(who, with_creds, patience=0.5)
    with pytest.raises(RpcError, match="not alive"):
        await admin.call_hub("start_project", project_id=project_id)
    stopped = await admin.call_hub("stop_project", project_id=project_id)
    assert stopped["state"] == "stopped", "nobody can end it there, but it is out"
    await admin.call_hub("runner_allow", name=platform.site.runner_id)

    async def back() -> bool:
        return any(platform.site.runner_id in c["authorized_user"] for c in await platform.connections())

    await eventually(back, "the runner is back, by itself")
    with pytest.raises(ConnectionLostError):
        await platform.connect(project_id, creds, patience=0.5)
    started = await admin.call_hub("start_project", project_id=project_id, wait=40)
    assert started["state"] == "running", "although the runner had the old agent all the time"
    assert (await admin.call_project(project_id, "ping"))["pong"]


async def test_a_moved_project_is_another_runners(admin: Client, project: dict[str, Any], platform: Platform) -> None:
    project_id = project["project_id"]
    creds = (platform.directory(project_id) / "project.creds").read_text()
    with pytest.raises(RpcError, match="stop it first"):
        await admin.call_hub("project_assign", project_id=project_id, runner="spare")
    await admin.call_hub("stop_project", project_id=project_id, wait=30)
    with pytest.raises(RpcError, match="known are: local, spare"):
        await admin.call_hub("project_assign", project_id=project_id, runner="nowhere")
    await admin.call_hub("project_assign", project_id=project_id, runner="spare")
    assert (platform.directory(project_id) / "home" / "a").exists(), "its files stay"
    with pytest.raises(ConnectionLostError):
        await platform.connect(project_id, creds, patience=0.5)
    with pytest.raises(RpcError, match="not alive"):
        await admin.call_hub("start_project", project_id=project_id)
    assert not (await admin.call_hub("rotate_project_keys", project_id=project_id))["rotated"]
    await admin.call_hub("project_assign", project_id=project_id, runner="local")
    assert (await admin.call_hub("start_project", project_id=project_id, wait=40))["state"] == "running"


async def test_a_replaced_runner_and_the_agents_of_the_one_before(
    admin: Client, project: dict[str, Any], platform: Platform
) -> None:
    """A new machine has another key. The old runner and its projects lose all rights."""
    project_id, site = project["project_id"], platform.site
    old = (platform.directory(project_id) / "project.creds").read_text()
    agent = processes_of(project_id)
    seed = nkey.create_seed("user")
    tokens = Tokens(site.identity.hub_keys(), 900)
    jwt = tokens._ticket(nkey.public_key(seed), site.runner_id, ("kind:runner",), int(time.time()))
    runner_creds, site.runner_key = site.runner_creds, nkey.public_key(seed)
    for name in ("hub-1", "hub-2"):
        site.kill_hub(name)
    for name in ("hub-1", "hub-2"):
        platform.start_hub(name)
    for name in ("hub-1", "hub-2"):
        await site.healthy(name)

    async def cut() -> bool:
        names = [c["authorized_user"] for c in await platform.connections()]
        return not any(site.runner_id in name or project_id in name for name in names)

    await eventually(cut, "the runner and its project are cut", 10)
    for who, creds in ((site.runner_id, runner_creds), (project_id, old)):
        with pytest.raises(ConnectionLostError):
            await platform.connect(who, creds, patience=0.5)
    write_private(site.root / "runner" / "runner.creds", format_creds(jwt, seed))

    async def answers() -> bool:
        try:
            return bool(await admin.call_project(project_id, "ping", wait=1))
        except NatskitError:
            return False

    await eventually(answers, "the agent has a new key, from the runner with the new key", 20)
    assert processes_of(project_id) == agent, "and is the same process"
    with pytest.raises(ConnectionLostError):
        await platform.connect(project_id, old, patience=0.5)


async def test_stop_and_delete(admin: Client, project: dict[str, Any], platform: Platform) -> None:
    project_id = project["project_id"]
    directory = platform.directory(project_id)
    stopped = await admin.call_hub("stop_project", project_id=project_id, wait=30)
    assert stopped["state"] == "stopped"
    assert processes_of(project_id) == []
    assert directory.exists()
    await admin.call_hub("project_delete", project_id=project_id, wait=30)
    await eventually(lambda: not directory.exists(), "its directory is gone")
    await asyncio.sleep(0)


@pytest.mark.usefixtures("project")
async def test_trials_do_not_count_where_projects_are_placed(admin: Client, platform: Platform) -> None:
    """Trials that are left on a machine that was switched off would keep all new projects away from it for minutes."""
    spare = platform.spare[0]
    path = platform.site.root / "spare.creds"
    path.write_text(platform.spare_creds)
    connection = await connect(
        NatsServers(urls=[platform.nats_url]), name="spare", inbox_prefix=inbox_prefix("runner", spare), creds=path
    )
    await call(connection, f"hub.runner.{spare}", "register", version="1")
    await connection.close()

    async def projects() -> dict[str, int]:
        return {row["runner_id"]: row["projects"] for row in await admin.call_hub("runner_list")}

    before = await projects()
    fewest = min(before, key=lambda runner_id: (before[runner_id], runner_id))
    for _ in range(1 + max(before.values())):
        await admin.call_hub("runner_try", runner=fewest)
    await admin.call_hub("project_create", email="a@example.org", title="One more")
    assert await projects() == before | {fewest: before[fewest] + 1}
