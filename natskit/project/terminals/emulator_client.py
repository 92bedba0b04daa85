"""The agent's end of the emulator: starts the process, sends it what programs print, and asks for screens."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from natskit.project.terminals.messages import HEADER, Kind, message

log = logging.getLogger(__name__)

BACKLOG_BYTES = 4 * 1024 * 1024
"""What the emulator has not read yet, above which terminals wait. It reads a hundred megabytes a second."""
STUCK_SECONDS = 30.0
"""An emulator that needs longer for a screen, or that does not read for as long, is ended and started anew."""
PAUSE_SECONDS, LONGEST_PAUSE = 0.5, 30.0
"""Between the unexpected end of an emulator and its next start; twice as long each time, while none lives longer."""


class EmulatorGoneError(Exception):
    """The emulator ended before it answered."""


@dataclass(eq=False)
class Port:
    """One terminal at the emulator."""

    number: int
    columns: int
    rows: int
    scrollback: int
    answer: Callable[[bytes], None]
    titled: Callable[[str], None]
    lost: Callable[[], None]
    """Called when the emulator was started anew, with an empty screen, after it had ended unexpectedly."""
    asked: deque[asyncio.Future[bytes]] = field(default_factory=deque)


class EmulatorClient:
    """The emulator's process. It runs while there are terminals."""

    def __init__(self) -> None:
        self._ports: dict[int, Port] = {}
        self._next = 0
        self._link: _Link | None = None
        self._starting = asyncio.Lock()
        self._restart: asyncio.Task[None] | None = None
        self._pause = PAUSE_SECONDS
        self._started = 0.0

    @property
    def pid(self) -> int | None:
        """The emulator's process; ``None`` if it does not run."""
        return self._link.process.pid if self._link is not None else None

    @property
    def is_behind(self) -> bool:
        """Whether it has to read so much that terminals should read no more for now."""
        return self._link is not None and self._link.full

    async def open(
        self,
        columns: int,
        rows: int,
        scrollback: int,
        *,
        answer: Callable[[bytes], None],
        titled: Callable[[str], None],
        lost: Callable[[], None],
    ) -> Port:
        """Add a terminal. Starts the emulator for the first."""
        async with self._starting:
            if self._link is None:
                await self._start()
        self._next += 1
        port = Port(self._next, columns, rows, scrollback, answer, titled, lost)
        self._ports[port.number] = port
        self._announce(port)
        return port

    def feed(self, port: Port, data: bytes) -> None:
        """Pass the program's output on."""
        self._send(Kind.FEED, port, data)

    def resize(self, port: Port, columns: int, rows: int) -> None:
        """Change the terminal's size."""
        port.columns, port.rows = columns, rows
        self._send(Kind.RESIZE, port, json.dumps({"columns": columns, "rows": rows}).encode())

    async def draw(self, port: Port, scrollback: int | None) -> bytes:
        """What draws the screen after everything that was fed until now. Raises :class:`EmulatorGoneError`."""
        if self._link is None:
            raise EmulatorGoneError
        drawn: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        port.asked.append(drawn)
        self._send(Kind.DRAW, port, json.dumps({"scrollback": scrollback}).encode())
        stuck = asyncio.get_running_loop().call_later(STUCK_SECONDS, self._link.kill)
        try:
            return await drawn
        finally:
            stuck.cancel()

    def close(self, port: Port) -> None:
        """Forget a terminal. Ends the emulator after the last."""
        if self._ports.pop(port.number, None) is None:
            return
        self._send(Kind.CLOSE, port, b"")
        _give_up(port)
        if not self._ports:
            self.stop()

    def stop(self) -> None:
        """End the emulator."""
        self._ports.clear()
        if self._link is not None:
            link, self._link = self._link, None
            link.end()

    async def _start(self) -> None:
        process, ours = _launch()
        link = _Link(process, self._received, self._ended)
        await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
        self._link, self._started = link, asyncio.get_running_loop().time()
        for port in list(self._ports.values()):  # there are some after an unexpected end
            self._announce(port)
            port.lost()

    def _announce(self, port: Port) -> None:
        size = {"columns": port.columns, "rows": port.rows, "scrollback": port.scrollback}
        self._send(Kind.OPEN, port, json.dumps(size).encode())

    def _send(self, kind: Kind, port: Port, body: bytes) -> None:
        if self._link is not None:
            self._link.send(message(kind, port.number, body))

    def _received(self, kind: int, number: int, body: bytes) -> None:
        port = self._ports.get(number)
        if port is None:
            return
        match kind:
            case Kind.ANSWER:
                port.answer(body)
            case Kind.TITLE:
                port.titled(body.decode())
            case Kind.DRAWN:
                drawn = port.asked.popleft()
                if not drawn.done():  # the viewer has gone meanwhile
                    drawn.set_result(body)

    def _ended(self, link: _Link) -> None:
        if link is not self._link:
            return
        self._link = None
        link.end()
        log.error("the emulator ended unexpectedly; the programs on terminals go on")
        for port in self._ports.values():
            _give_up(port)
        lived = asyncio.get_running_loop().time() - self._started
        self._pause = PAUSE_SECONDS if lived > LONGEST_PAUSE else min(self._pause * 2, LONGEST_PAUSE)
        self._restart = asyncio.get_running_loop().create_task(self._start_again())

    async def _start_again(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            async with self._starting:
                if self._link is not None or not self._ports:
                    return
                try:
                    await self._start()
                except OSError as error:  # no process, descriptor or memory left
                    log.error("the emulator cannot be started: %s", error.strerror)
                else:
                    return
            self._pause = min(self._pause * 2, LONGEST_PAUSE)


class _Link(asyncio.Protocol):
    """The socket to one emulator."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        received: Callable[[int, int, bytes], None],
        ended: Callable[[_Link], None],
    ) -> None:
        self.process = process
        self.full = False
        self._received, self._ended = received, ended
        self._data = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def kill(self) -> None:
        log.error("the emulator does not answer")
        self.process.kill()

    def end(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self.process.kill()  # it has nothing to lose
        self.process.wait()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=BACKLOG_BYTES)

    def pause_writing(self) -> None:
        self.full = True
        self._stuck = asyncio.get_running_loop().call_later(STUCK_SECONDS, self.kill)

    def resume_writing(self) -> None:
        self.full = False
        if self._stuck is not None:
            self._stuck.cancel()

    def data_received(self, data: bytes) -> None:
        self._data += data
        start = 0
        while len(self._data) - start >= HEADER.size:
            kind, number, length = HEADER.unpack_from(self._data, start)
            end = start + HEADER.size + length
            if end > len(self._data):
                break
            self._received(kind, number, bytes(self._data[start + HEADER.size : end]))
            start = end
        del self._data[:start]

    def connection_lost(self, _error: Exception | None) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        self._transport, self.full = None, False
        self._ended(self)


def _launch() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, its = socket.socketpair()
    with its:
        # -P and -s: it must not import files of the project.
        command = [sys.executable, "-P", "-s", "-m", "natskit.project.terminals.emulator", str(its.fileno())]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()], cwd="/"), ours


def _give_up(port: Port) -> None:
    for drawn in port.asked:
        if not drawn.done():
            drawn.set_exception(EmulatorGoneError())
    port.asked.clear()
