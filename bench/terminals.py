"""Terminals: keys, floods, coming back and memory, beside terminado on a plain WebSocket and a bare terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

from bench.stage import Row, Stage, percentiles
from bench.wire import children, proportional_memory
from natskit.client import Client
from natskit.terminal import Terminal
from tests.kit.ports import free_port
from tests.kit.wait import wait_for

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "terminado.lock"
NUMBERS = 2_000_000
FLOOD = ["sh", "-c", f"stty -echo; echo READY; read go; seq 1 {NUMBERS}; echo DO''NE; read end"]
"""Types nothing, and prints 17 MB when it gets a line."""
FLOOD_BYTES = sum(len(str(number)) + 2 for number in range(1, NUMBERS + 1))
ECHO = ["sh", "-c", "stty -icanon min 1; echo READY; exec cat >/dev/null"]
"""The kernel echoes each key."""
KEYS = 300
KEY_SECONDS = 0.005
"""Between two keys: faster than anybody types, and slow enough that each is one."""
SCROLLBACK = 10_000
IDLE = 200
ECHO_AIM, OUTPUT_AIM, BARE_AIM, ATTACH_AIM, IDLE_AIM = 3.0, 1.6, 0.6, 0.1, 40e6
SERVER = """
import json, sys
import terminado, tornado.ioloop, tornado.web
port, commands = int(sys.argv[1]), json.loads(sys.argv[2])
routes = [("/" + name, terminado.TermSocket, {"term_manager": terminado.UniqueTermManager(shell_command=argv)})
          for name, argv in commands.items()]
class Open(terminado.TermSocket):
    def check_origin(self, origin):
        return True
routes = [(path, Open, options) for path, _, options in routes]
tornado.web.Application(routes).listen(port, "127.0.0.1")
tornado.ioloop.IOLoop.current().start()
"""


@dataclass
class Samples:
    """What all rounds measured: seconds of echoes, and megabytes a second of output."""

    echoes: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "terminado": []})
    rates: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "terminado": [], "bare": []})
    arrived: list[float] = field(default_factory=list)
    """The part of the output that reached our viewer as output."""


def rows(stage: Stage) -> Iterator[Row]:
    """Echo and output beside terminado, coming back to a long scrollback, and the memory of terminals nobody views."""
    with _terminado() as port:
        samples = asyncio.run(_beside_terminado(stage, port))
    yield from _echo(samples)
    yield from _output(samples)
    yield asyncio.run(_attach(stage))
    yield asyncio.run(_idle(stage))


def _echo(samples: Samples) -> Iterator[Row]:
    (p50, p99), (t50, t99) = (percentiles(samples.echoes[name]) for name in ("ours", "terminado"))
    count = len(samples.echoes["ours"])
    method = (
        f"{count} keys, one each {KEY_SECONDS * 1000:g} ms, which the kernel echoes; ours: the Python client, signed "
        "in, through the proxy with TLS, nats-server and the rights of a member; terminado 0.18.1: plain WebSocket, no "
        "sign-in; in turn"
    )
    yield Row("15", "echo of a key in a terminal, p50, against terminado", p50 / t50, f"{p50:.2f} against {t50:.2f} ms",
              f"≤ {ECHO_AIM:g}", p50 / t50 <= ECHO_AIM, method)  # fmt: skip
    yield Row("15", "echo of a key in a terminal, p99, against terminado", p99 / t99, f"{p99:.2f} against {t99:.2f} ms",
              "≤ 1", p99 <= t99, method)  # fmt: skip


def _output(samples: Samples) -> Iterator[Row]:
    ours, theirs, bare = (statistics.median(samples.rates[name]) for name in ("ours", "terminado", "bare"))
    whole = statistics.median(samples.arrived)
    method = (
        f"{FLOOD_BYTES / 1e6:.1f} MB, from the line that starts it until its end is there; as above; "
        f"{whole:.0%} of it reached the viewer as output, and the newest screen took the place of the rest; "
        "the bare pseudo-terminal is read in this process"
    )
    for what, other, aim in (("terminado", theirs, OUTPUT_AIM), ("a bare pseudo-terminal", bare, BARE_AIM)):
        yield Row("15", f"output of `seq 1 {NUMBERS}` in a terminal, against {what}", ours / other,
                  f"{ours:.1f} of {other:.1f} MB/s", f"≥ {aim:g}", ours / other >= aim, method)  # fmt: skip


async def _beside_terminado(stage: Stage, port: int) -> Samples:
    samples = Samples()
    async with await _signed_in(stage) as client:
        for _ in range(stage.rounds):
            async with _ours(client, stage, ECHO) as mine:
                samples.echoes["ours"] += [await mine.echo() for _ in range(KEYS)]
            async with _theirs(port, "echo") as other:
                samples.echoes["terminado"] += [await other.echo() for _ in range(KEYS)]
            async with _ours(client, stage, FLOOD) as mine:
                samples.rates["ours"].append(await mine.flood())
                samples.arrived.append(min(mine.received / FLOOD_BYTES, 1.0))
            async with _theirs(port, "flood") as other:
                samples.rates["terminado"].append(await other.flood())
            samples.rates["bare"].append(_bare())
    return samples


async def _signed_in(stage: Stage) -> Client:
    site, world = stage.site, stage.world
    return await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file)


class Peer:
    """One end of a terminal: types, and reads what it shows."""

    received = 0

    async def type(self, text: str) -> None:
        """Type."""
        raise NotImplementedError

    async def read(self) -> bytes:
        """The next piece of output."""
        raise NotImplementedError

    async def until(self, text: bytes) -> None:
        """Read until a text has come."""
        last = b""
        while text not in last:
            data = await self.read()
            self.received += len(data)
            last = last[-len(text) :] + data

    async def echo(self) -> float:
        """Seconds until a key is shown."""
        await asyncio.sleep(KEY_SECONDS)
        begun = time.perf_counter()
        await self.type("a")
        await self.until(b"a")
        return time.perf_counter() - begun

    async def flood(self) -> float:
        """Megabytes of output in a second."""
        self.received = 0
        begun = time.perf_counter()
        await self.type("\n")
        await self.until(b"DONE")
        return FLOOD_BYTES / 1e6 / (time.perf_counter() - begun)


class Ours(Peer):
    """A viewer of a project's terminal."""

    def __init__(self, view: Terminal) -> None:
        self._view = view
        self._news = aiter(view)

    async def type(self, text: str) -> None:
        await self._view.write(text.encode())

    async def read(self) -> bytes:
        while True:
            kind, data = await anext(self._news)
            if kind == "output":
                return bytes(data)


class Theirs(Peer):
    """A client of terminado, which sends lists as JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def type(self, text: str) -> None:
        await self._socket.send(json.dumps(["stdin", text]))

    async def read(self) -> bytes:
        while True:
            kind, data = json.loads(await self._socket.recv())
            if kind == "stdout":
                return str(data).encode()


@asynccontextmanager
async def _ours(client: Client, stage: Stage, argv: list[str]) -> AsyncIterator[Ours]:
    project = stage.world.names["p"]
    made = await client.call_project(project, "terminal.create", argv=argv)
    try:
        async with client.terminal(project, made["terminal"]) as view:
            mine = Ours(view)
            await mine.until(b"READY")
            yield mine
    finally:
        await client.call_project(project, "terminal.close", terminal=made["terminal"])


@asynccontextmanager
async def _theirs(port: int, name: str) -> AsyncIterator[Theirs]:
    async with connect(f"ws://127.0.0.1:{port}/{name}", max_size=None, compression=None, proxy=None) as socket:
        other = Theirs(socket)
        await other.until(b"READY")
        yield other


def _bare() -> float:
    master, slave = pty.openpty()
    process = subprocess.Popen(FLOOD, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    try:
        last = b""
        while b"READY" not in last:
            last += os.read(master, 65536)
        begun = time.perf_counter()
        os.write(master, b"\n")
        while b"DONE" not in last:
            last = last[-4:] + os.read(master, 65536)
        return FLOOD_BYTES / 1e6 / (time.perf_counter() - begun)
    finally:
        process.kill()
        process.wait()
        os.close(master)


async def _attach(stage: Stage) -> Row:
    project = stage.world.names["p"]
    argv = ["sh", "-c", f"seq -f 'line %.0f of a long scrollback' {SCROLLBACK}; echo; printf LAST; read end"]
    times, size = [], 0
    async with await _signed_in(stage) as client:
        made = await client.call_project(project, "terminal.create", name="long", argv=argv)
        async with client.terminal(project, made["terminal"]) as view:
            await Ours(view).until(b"LAST")
        for _ in range(5 * stage.rounds):
            begun = time.perf_counter()
            async with client.terminal(project, made["terminal"]) as view:
                mine = Ours(view)
                await mine.until(b"LAST")
                times.append(time.perf_counter() - begun)
                size = mine.received
        await client.call_project(project, "terminal.close", terminal=made["terminal"])
    p50, p99 = percentiles(times)
    return Row(
        "15",
        f"come back to a terminal with {SCROLLBACK:,} rows of scrollback",
        None,
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms",
        f"≤ {ATTACH_AIM * 1000:g} ms",
        p50 <= ATTACH_AIM * 1000,
        f"{len(times)} times, from the request until the last of {size / 1e3:.0f} KB is there; the Python client, "
        "through the proxy",
    )


async def _idle(stage: Stage) -> Row:
    project = stage.world.names["p"]
    async with await _signed_in(stage) as client:

        async def create(name: str) -> int:
            made = await client.call_project(project, "terminal.create", name=name, argv=["/bin/sh"])
            return int(made["pid"])

        agent = _parent(await create("idle-0"))

        def memory() -> int:
            emulator = next(pid for pid in children(agent) if b"emulator" in Path(f"/proc/{pid}/cmdline").read_bytes())
            return proportional_memory(agent) + proportional_memory(emulator)

        await _quiet(client, project)
        before = memory()
        for number in range(1, IDLE + 1):
            await create(f"idle-{number}")
        await _quiet(client, project)
        grown = memory() - before
        for number in range(IDLE + 1):
            await client.call_project(project, "terminal.close", terminal=f"idle-{number}")
    return Row(
        "15",
        f"memory of {IDLE} idle terminals of one project, beyond their shells",
        None,
        f"{grown / 1e6:.1f} MB",
        f"≤ {IDLE_AIM / 1e6:g} MB",
        grown <= IDLE_AIM,
        "growth of the PSS of the project's agent and of its emulator, which a first terminal has started",
    )


async def _quiet(client: Client, project: str) -> None:
    """Wait until the agent and the emulator have done what they had to do: an answer of each."""
    await client.call_project(project, "terminal.list")
    async with client.terminal(project, "idle-0") as view:
        await Ours(view).read()


def _parent(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("PPid:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has no parent")


@contextmanager
def _terminado() -> Iterator[int]:
    """terminado in an environment of its own, which is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="natskit-terminado-"))
    mirrored = [sys.executable, "-P", str(ROOT / "roles" / "mirrors.py")]
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(folder / "bin" / "python")
    process = None
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        subprocess.run(
            [*mirrored, uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", str(LOCK)],
            check=True,
        )
        port = free_port()
        commands = json.dumps({"echo": ECHO, "flood": FLOOD})
        process = subprocess.Popen([python, "-c", SERVER, str(port), commands], stderr=subprocess.DEVNULL)
        wait_for(lambda: _answers(port), "terminado answers")
        yield port
    finally:
        if process is not None:
            process.terminate()
            process.wait()
        shutil.rmtree(folder)


def _answers(port: int) -> bool:
    asked = ["curl", "--silent", "--output", "/dev/null", f"http://127.0.0.1:{port}/"]
    return subprocess.run(asked, check=False).returncode == 0
