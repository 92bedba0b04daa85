"""What documents are measured beside: Hocuspocus and pycrdt-websocket, each with its SQLite store, and its own clients.

Both are installed from locks with hashes into a folder that is removed at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.crowd import people, write
from bench.rights import PASSWORD
from bench.stage import Stage
from bench.wire import children, processor_time, proportional_memory
from natskit.hub.state.records import Membership
from tests.kit.ports import free_port
from tests.kit.wait import wait_for

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
LOCK = ROOT / "requirements" / "pycrdt-websocket.lock"
OURS, HOCUSPOCUS, PYCRDT = "natskit", "Hocuspocus", "pycrdt-websocket"
KINDS = {OURS: "natskit", HOCUSPOCUS: "hocuspocus", PYCRDT: "pycrdt"}
"""The services by the names that the table gives them, and what `clients.mjs` calls them."""
KEPT = os.environ.get("NATSKIT_BENCH_PEERS")
"""A folder in which the peers stay installed for more runs: npm compiles SQLite for a minute or more if it can download
no compiled one."""
ANSWER_SECONDS = 20
"""How long a server may take until it listens."""


@dataclass
class Service:
    """A service of documents: a process with its clients, and the processes that serve them."""

    name: str
    clients: subprocess.Popen[str]
    servers: Sequence[int]

    def ask(self, do: str, **params: Any) -> dict[str, Any]:
        """Let the clients do something (`peers/clients.mjs`), and return what they answer."""
        assert self.clients.stdin is not None
        assert self.clients.stdout is not None
        self.clients.stdin.write(json.dumps({"do": do, **params}) + "\n")
        self.clients.stdin.flush()
        line = self.clients.stdout.readline()
        assert line, f"the clients of {self.name} ended"
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, f"{self.name}, {do}: {answer['error']}"
        return answer

    def processor_time(self) -> float:
        """Seconds that its servers have used."""
        return sum(map(processor_time, self.servers))

    def memory(self) -> int:
        """Bytes that its servers have (PSS)."""
        return sum(map(proportional_memory, self.servers))


def install(folder: Path) -> None:
    """Install the peers into a folder, unless it has them."""
    folder.mkdir(exist_ok=True)
    for name in ("hocuspocus.mjs", "clients.mjs", "pycrdt_server.py"):
        shutil.copy(PEERS / name, folder)
    wanted = LOCK.read_text() + (PEERS / "package-lock.json").read_text()
    done = folder / "installed"
    if done.exists() and done.read_text() == wanted:
        return
    for name in (".npmrc", "package.json", "package-lock.json"):
        shutil.copy(PEERS / name, folder)
    script = '. scripts/node && cd "$1" && mirrored npm ci --silent --no-audit --no-fund'
    _run(["bash", "-euc", script, "bash", str(folder)])
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder / "env")])
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--require-hashes", "-r", str(LOCK)]
    mirrored = [sys.executable, "-P", str(ROOT / "roles" / "mirrors.py")]
    _run([*mirrored, *uv, "--python", str(folder / "env" / "bin" / "python")])
    done.write_text(wanted)


@contextmanager
def services(stage: Stage, members: int) -> Iterator[list[Service]]:
    """Ours, as so many accounts, and both peers; each with clients in a process of their own."""
    folder = Path(KEPT or tempfile.mkdtemp(prefix="natskit-peers-", dir="/var/tmp"))
    started: list[subprocess.Popen[Any]] = []
    try:
        install(folder)
        databases = folder / "databases"
        shutil.rmtree(databases, ignore_errors=True)
        databases.mkdir()
        yield [
            _ours(stage, folder, members, started),
            _peer(HOCUSPOCUS, folder, [_node(), "hocuspocus.mjs"], started),
            _peer(PYCRDT, folder, [str(folder / "env" / "bin" / "python"), "pycrdt_server.py"], started),
        ]
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
        if not KEPT:
            shutil.rmtree(folder)


def servers(stage: Stage) -> dict[str, list[int]]:
    """The processes of the platform that a document's updates pass, by what they are."""
    pids = {p["name"]: int(p["pid"]) for p in stage.site.natskit_json("status")["processes"]}
    keepers = [pid for name, pid in pids.items() if name.startswith("keeper-")]
    return {"proxy": [pids["proxy"], *children(pids["proxy"])], "nats": [pids["nats"]], "keepers": keepers}


def accounts(stage: Stage, projects: Sequence[str]) -> list[tuple[str, str]]:
    """New accounts, one for each of these projects, which it may use: its e-mail and its ``Cookie`` header."""
    emails = asyncio.run(people(stage, len(projects)))
    sessions = [stage.site.sign_in(email, PASSWORD) for email in emails]
    member = Membership(role="owner", since=time.time())
    asyncio.run(
        write(stage, "memberships", {f"{s.account_id}.{p}": member for s, p in zip(sessions, projects, strict=True)})
    )
    return [(email, session.cookie) for email, session in zip(emails, sessions, strict=True)]


def _ours(stage: Stage, folder: Path, members: int, started: list[subprocess.Popen[Any]]) -> Service:
    project = stage.world.names["p"]
    config = {
        "site": stage.site.url,
        "source": str(ROOT / "web" / "client" / "src"),
        "project": project,
        "cookies": [cookie for _, cookie in accounts(stage, [project] * members)],
    }
    clients = _clients(OURS, folder, config, started, NODE_EXTRA_CA_CERTS=stage.site.ca_file)
    return Service(OURS, clients, [pid for pids in servers(stage).values() for pid in pids])


def _peer(name: str, folder: Path, command: list[str], started: list[subprocess.Popen[Any]]) -> Service:
    port = free_port()
    server = subprocess.Popen(
        [*command, str(port), str(folder / "databases" / KINDS[name])], cwd=folder, stdout=subprocess.DEVNULL
    )
    started.append(server)
    wait_for(lambda: _listens(port), f"{name} listens", ANSWER_SECONDS)
    clients = _clients(name, folder, {"url": f"ws://127.0.0.1:{port}"}, started)
    return Service(name, clients, [server.pid])


def _clients(
    name: str, folder: Path, config: dict[str, Any], started: list[subprocess.Popen[Any]], **more: str
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [_node(), "--expose-gc", "clients.mjs", KINDS[name], json.dumps(config)],
        cwd=folder,
        env=os.environ | more,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    return process


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def _node() -> str:
    """Node.js, as scripts/node finds it."""
    script = ". scripts/node >&2 && command -v node"
    return subprocess.check_output(["bash", "-euc", script], cwd=ROOT, text=True).strip()


def _listens(port: int) -> bool:
    asked = ["curl", "--silent", "--output", "/dev/null", f"http://127.0.0.1:{port}/"]
    return subprocess.run(asked, check=False).returncode in (0, 52)  # 52: it takes only WebSockets
