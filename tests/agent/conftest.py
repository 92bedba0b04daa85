"""A real nats-server for each module, and project agents as separate processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from natskit.client import Client
from tests.kit.nats import NatsServer
from tests.kit.ports import free_port
from tests.kit.wait import wait_for

CONFIG = """
listen: "127.0.0.1:{port}"
server_name: test
authorization {{
  users: [
    {{ user: admin, password: admin }}
    {{ user: project, password: project, permissions: {{
        publish: ["hub.project.>", "events.project.>", "_INBOX.account.*.*.>", "_INBOX.hub.*.>", "_INBOX.admin.*.>"
                  "docs.disk.>"]
        subscribe: ["projects.>", "_INBOX.project.>", "events.project.*.doc.*", "events.project.*.documents.changed"]
    }} }}
  ]
}}
system_account: SYS
accounts: {{ SYS: {{ users: [ {{ user: sys, password: sys }} ] }} }}
"""


class Server:
    """A nats-server with an administrator, a project user with the real permissions, and a system user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, self.websocket_port = free_port(), free_port()
        self._server = NatsServer(directory, name="nats-server")
        self.extra = ""
        """More configuration; ``PORT`` in it becomes ``websocket_port``."""

    def start(self) -> None:
        config = CONFIG.format(port=self.port) + self.extra.replace("PORT", str(self.websocket_port))
        self._server.start(config).wait_until_ready()

    def stop(self) -> None:
        self._server.stop()

    def url(self, user: str) -> str:
        return f"nats://{user}:{user}@127.0.0.1:{self.port}"

    def log(self) -> str:
        return self._server.log()


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

    def kill(self) -> None:
        """Kill the agent without warning, as when its host dies."""
        self.process.kill()
        self.process.wait(10)

    def start_again(self) -> None:
        """Start another agent for the same files."""
        self.process = _start_agent(self.directory)


def start_project(server: Server, directory: Path, **settings: Any) -> Project:
    """Start an agent and wait until it answers."""
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
    return Project(project_id, directory, _start_agent(directory))


def _start_agent(directory: Path) -> subprocess.Popen[bytes]:
    path = directory / "agent.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "natskit.project", "--settings", str(directory / "project.json")],
            stdout=log,
            stderr=log,
        )
    wait_for(lambda: " answers" in path.read_text() or process.poll() is not None, "the agent answers")
    assert process.poll() is None, path.read_text()
    return process


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
