"""The runner as a process, on a real nats-server. The test plays the hub."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from natskit import rpc
from natskit.bus.request import request
from natskit.client import Client
from natskit.errors import ConnectionLostError
from natskit.rpc import Methods, RpcError
from natskit.runner.orphans import processes_of
from tests.kit.wait import eventually
from tests.mounts import mounted

from .conftest import Server

STARTED_IN = {
    "PATH": f"{sys.prefix}/bin:.venv/bin:{os.environ['PATH']}",
    "VIRTUAL_ENV": sys.prefix,
    "http_proxy": "http://127.0.0.1:3128",
    "https_proxy": "http://127.0.0.1:3129",
    "NO_PROXY": "localhost",
    "SSL_CERT_FILE": "/etc/ssl/own.pem",
    "LC_TIME": "C.UTF-8",
    "TZ": "Asia/Kathmandu",
    "PIP_INDEX_URL": "https://user:password@mirror.example.org/simple",
    "A_SECRET": "do not pass on",
}
"""What the shell of ``make up`` may have in its environment."""


class Hub:
    """Answers ``hub.runner.{id}`` and records the requests."""

    def __init__(self) -> None:
        self.wanted: list[str] = []
        self.states: list[tuple[str, str]] = []
        self.details: dict[str, list[str]] = {}
        self.heartbeats: list[list[str]] = []
        self.asked: set[str] = set()
        self.answering = asyncio.Event()
        self.answering.set()
        self.registered = 0
        self.methods: Methods[Hub] = Methods()
        self.methods.method("register")(register)
        self.methods.method("heartbeat")(heartbeat)
        self.methods.method("project_state")(project_state)
        self.methods.method("project_credentials")(project_credentials)

    def state(self, project_id: str) -> str | None:
        return next((state for one, state in reversed(self.states) if one == project_id), None)


async def register(hub: Hub, version: str) -> dict[str, list[str]]:
    assert version
    hub.registered += 1
    return {"projects": hub.wanted}


async def heartbeat(hub: Hub, running: list[str]) -> dict[str, list[str]]:
    hub.heartbeats.append(running)
    return {"need_keys": []}


async def project_state(hub: Hub, project_id: str, state: str, detail: str) -> None:
    assert detail or state != "failed"
    hub.states.append((project_id, state))
    hub.details.setdefault(project_id, []).append(detail)


async def project_credentials(hub: Hub, project_id: str, public_key: str) -> dict[str, str]:
    assert public_key.startswith("U")
    hub.asked.add(project_id)
    await hub.answering.wait()
    return {"jwt": "test"}  # the project user of the test server needs none


class Host:
    """The runner's process, and the orders of a hub to it."""

    def __init__(self, server: Server, directory: Path, client: Client) -> None:
        self.runner_id = str(uuid.uuid4())
        self.directory = directory / "runner"
        self.client = client
        self.hub = Hub()
        self.answers: set[asyncio.Task[None]] = set()
        self.process: subprocess.Popen[bytes] | None = None
        self.settings = directory / "runner.json"
        self.settings.write_text(
            json.dumps(
                {
                    "runner_id": self.runner_id,
                    "name": "test",
                    "nats": {"urls": [server.url("admin")]},
                    "project_nats": {"urls": [server.url("project")]},
                    "directory": str(self.directory),
                    "python": sys.executable,
                    "project": {
                        "memory_bytes": 512 * 1024 * 1024,
                        "max_file_bytes": 1024 * 1024,
                        "environment": {
                            "https_proxy": "http://by-setting:3128",
                            "GREETING": 'two words, "quoted" = 100%',
                        },
                    },
                }
            )
        )

    async def answer(self, message: Msg) -> None:
        task = asyncio.ensure_future(self._answer(message))
        self.answers.add(task)
        task.add_done_callback(self.answers.discard)

    async def _answer(self, message: Msg) -> None:
        body = await self.hub.methods.answer(self.hub, message.data)
        if body is not None:
            await message.respond(body)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "natskit.runner", "--settings", str(self.settings)],
            env=os.environ | STARTED_IN,
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(15)
            self.process = None

    async def call(self, method: str, **params: Any) -> Any:
        subject = f"runners.{self.runner_id}.api"
        body = rpc.encode_request(method, params)
        return rpc.decode_response(await request(self.client.connection, subject, body, 20))


@pytest.fixture(scope="module")
async def host(server: Server, directory: Path, client: Client) -> AsyncIterator[Host]:
    host = Host(server, directory, client)
    await client.connection.subscribe(f"hub.runner.{host.runner_id}", cb=host.answer)
    host.start()
    await eventually(lambda: host.hub.registered, "the runner registers")
    yield host
    host.stop()


async def agent_pid(client: Client, project_id: str) -> int:
    async with client.exec(project_id, command="echo $PPID") as run:
        return int((await run.output())[0])


async def test_commands_have_the_machines_own_programs_and_its_way_out(host: Host, client: Client) -> None:
    """A platform that was started from a virtual environment does not pass that on to projects."""
    project_id = str(uuid.uuid4())
    await host.call("start_project", project_id=project_id)
    script = (
        "command -v python3 pip nats-server nginx; python3 -c 'import sys; print(sys.prefix == sys.base_prefix)'; env"
    )
    async with client.exec(project_id, command=script) as run:
        lines = (await run.output())[0].decode().splitlines()
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert [line for line in lines if line.startswith(sys.prefix)] == []
    assert "True" in lines
    assert sys.prefix not in variables["PATH"]
    assert {"VIRTUAL_ENV", "PYTHONPATH", "A_SECRET", "PIP_INDEX_URL"} & set(variables) == set()
    wanted = {"http_proxy": "http://127.0.0.1:3128", "NO_PROXY": "localhost", "SSL_CERT_FILE": "/etc/ssl/own.pem"}
    assert {name: variables[name] for name in wanted} == wanted
    assert (variables["https_proxy"], variables["GREETING"]) == ("http://by-setting:3128", 'two words, "quoted" = 100%')
    assert (variables["LC_TIME"], variables["TZ"]) == ("C.UTF-8", "Asia/Kathmandu")
    async with client.exec(project_id, command="echo $GREETING $http_proxy", env={"GREETING": "mine"}) as run:
        assert (await run.output())[0] == b"mine http://127.0.0.1:3128\n"
    await host.call("stop_project", project_id=project_id)


async def test_start_run_stop(host: Host, client: Client) -> None:
    project_id = str(uuid.uuid4())
    assert await host.call("start_project", project_id=project_id) == {"state": "running"}
    await eventually(lambda: host.hub.state(project_id) == "running", "the hub hears of it")
    assert await host.call("start_project", project_id=project_id) == {"state": "running"}
    async with client.exec(project_id, command="pwd; env; ulimit -c; ulimit -f; sleep 1000 >&- 2>&- & :") as run:
        out = (await run.output())[0].decode()
    assert f"{host.directory}/projects/{project_id}/home" in out
    assert "A_SECRET" not in out
    assert out.splitlines()[-2:] == ["0", "2048"]  # in 512 byte blocks
    await eventually(lambda: [project_id] in host.hub.heartbeats, "a heartbeat names it")
    assert len(processes_of(project_id)) == 2
    assert await host.call("stop_project", project_id=project_id) == {"state": "stopped"}
    assert processes_of(project_id) == [], "the background process ends with the project"
    await eventually(lambda: host.hub.state(project_id) == "stopped", "the hub hears of it")


async def test_files_of_a_project_are_private(host: Host) -> None:
    project_id = str(uuid.uuid4())
    await host.call("start_project", project_id=project_id)
    directory = host.directory / "projects" / project_id
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [directory, *directory.iterdir()]}
    assert modes == {
        project_id: 0o700,
        "home": 0o700,
        "project.creds": 0o600,
        "project.json": 0o600,
        "agent.log": 0o600,
    }
    await host.call("stop_project", project_id=project_id)


async def test_the_home_is_not_on_the_import_path(host: Host) -> None:
    project_id = str(uuid.uuid4())
    home = host.directory / "projects" / project_id / "home"
    home.mkdir(parents=True)
    (home / "nats.py").write_text("raise SystemExit('imported from the home')")
    assert await host.call("start_project", project_id=project_id) == {"state": "running"}
    await host.call("stop_project", project_id=project_id)


# Python has no name for the second. 32 and 33 are glibc's own: they end no process that uses them (signal(7)).
@pytest.mark.parametrize(("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGRTMIN + 1, "SIGRTMIN+1")])
async def test_a_crashed_agent_comes_back(host: Host, client: Client, number: int, name: str) -> None:
    project_id = str(uuid.uuid4())
    await host.call("start_project", project_id=project_id)
    pid = await agent_pid(client, project_id)
    before = len(host.hub.states)
    os.kill(pid, number)
    heard = {"failed", "starting", "running"}
    await eventually(lambda: {s for p, s in host.hub.states[before:] if p == project_id} >= {"running"}, "it is back")
    assert {state for one, state in host.hub.states[before:] if one == project_id} <= heard
    assert f"the agent ended ({name})" in host.hub.details[project_id]
    assert await agent_pid(client, project_id) != pid
    await host.call("stop_project", project_id=project_id)


async def test_a_stop_does_not_wait_for_a_start(host: Host) -> None:
    project_id = str(uuid.uuid4())
    host.hub.answering.clear()  # the start waits for the agent's credentials
    try:
        start = asyncio.ensure_future(host.call("start_project", project_id=project_id))
        await eventually(lambda: project_id in host.hub.asked, "the runner asks for credentials")
        assert await asyncio.wait_for(host.call("stop_project", project_id=project_id), 3) == {"state": "stopped"}
        with pytest.raises(RpcError, match="stopped while it was starting"):
            await asyncio.wait_for(start, 3)
    finally:
        host.hub.answering.set()
    assert await host.call("start_project", project_id=project_id) == {"state": "running"}
    await host.call("stop_project", project_id=project_id)


async def test_delete(host: Host, client: Client) -> None:
    project_id = str(uuid.uuid4())
    await host.call("start_project", project_id=project_id)
    async with client.exec(project_id, command="mkdir -p a/b && touch a/b/c && chmod 0 a/b && ln -s /etc link") as run:
        await run.output()
    await host.call("delete_project", project_id=project_id)
    assert not (host.directory / "projects" / project_id).exists()
    assert os.path.exists("/etc/passwd")  # noqa: ASYNC240
    assert project_id not in [one["project_id"] for one in await host.call("list_projects")]


async def test_delete_folders_in_folders(host: Host, client: Client) -> None:
    """More levels than Python 3.11 can recurse, with a path that is longer than any system call accepts."""
    project_id = str(uuid.uuid4())
    await host.call("start_project", project_id=project_id)
    deeper = "import os; [(os.mkdir('folder'), os.chdir('folder')) for _ in range(1500)]; open('file', 'w')"
    async with client.exec(project_id, ["python3", "-c", deeper]) as run:
        await run.output()
    assert run.exit_code == 0
    await host.call("delete_project", project_id=project_id)
    assert not (host.directory / "projects" / project_id).exists()


async def test_delete_what_cannot_be_deleted_at_once(host: Host) -> None:
    """An administrator's change blocks the removal. The answer names the path, and a repeated removal completes it."""
    project_id = str(uuid.uuid4())
    home = host.directory / "projects" / project_id / "home"
    await host.call("start_project", project_id=project_id)
    (home / "before").touch()
    (home / "mounted").mkdir()
    with mounted(home / "mounted"):
        with pytest.raises(RpcError, match="mounted"):
            await host.call("delete_project", project_id=project_id)
        assert not (home / "before").exists()
    await host.call("delete_project", project_id=project_id)
    assert not home.parent.exists()


async def test_ids_are_checked(host: Host) -> None:
    with pytest.raises(RpcError) as caught:
        await host.call("delete_project", project_id="../../home")
    assert caught.value.kind == "invalid_params"


async def test_a_second_runner_is_refused(host: Host) -> None:
    second = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "natskit.runner", "--settings", str(host.settings), stderr=subprocess.PIPE
    )
    _, err = await asyncio.wait_for(second.communicate(), 10)
    assert second.returncode == 2
    assert b"in use by another runner" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_projects_end_and_come_back_with_the_runner(host: Host, client: Client, number: signal.Signals) -> None:
    project_id = str(uuid.uuid4())
    await host.call("start_project", project_id=project_id)
    pid = await agent_pid(client, project_id)
    host.stop(number)
    await eventually(lambda: processes_of(project_id) == [], "the agent ends with its runner")
    host.hub.wanted = [project_id]
    registered, before = host.hub.registered, len(host.hub.states)
    host.start()
    await eventually(lambda: host.hub.registered > registered, "the runner registers again")
    await eventually(lambda: (project_id, "running") in host.hub.states[before:], "the project runs again")
    assert await agent_pid(client, project_id) != pid
    host.hub.wanted = []
    await host.call("stop_project", project_id=project_id)


async def test_survives_a_server_restart(host: Host, client: Client, server: Server) -> None:
    project_id = str(uuid.uuid4())
    await host.call("start_project", project_id=project_id)
    pid = await agent_pid(client, project_id)
    host.hub.wanted = [project_id]
    registered = host.hub.registered
    server.stop()
    server.start()
    await eventually(lambda: host.hub.registered > registered, "the runner registers again")

    async def answers() -> bool:
        try:
            await client.call_project(project_id, "ping", wait=1)
        except ConnectionLostError:
            return False
        return True

    await eventually(answers, "the agent is back")
    assert await agent_pid(client, project_id) == pid, "the agent itself went on"
    host.hub.wanted = []
    await host.call("stop_project", project_id=project_id)
