"""One viewer of a terminal: its stream of output, its size, and what it types."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from typing import Any, Protocol

from natskit.bus.output_stream import FRAME_BYTES, STDIN_REPORT_BYTES
from natskit.bus.payload import to_json
from natskit.bus.permissions import account_of_inbox, owner_of_inbox
from natskit.project.sender import Kind, Sender
from natskit.project.terminals.emulator_client import EmulatorGoneError
from natskit.project.terminals.program import Outcome, Program
from natskit.rpc import RpcError

WINDOW_BYTES = 512 * 1024
"""Unacknowledged output: less than of a command, because what is on the way delays the echo of a key."""
WAITING_BYTES = 512 * 1024
"""Output that waits for a slow viewer. Beyond it, the viewer gets the newest screen instead."""
REDRAW_SECONDS = 0.25
"""Between two screens for a slow viewer."""
AWAY_SECONDS = 45.0
"""How long a viewer may be silent before its size no longer counts."""
INPUT_BYTES = 8 * 1024 * 1024
"""Input that the program has not read. Clients send 1 MiB, and wait."""
NAME_CHARACTERS = 16


DETACHED: Outcome = {"exit_code": None, "signal": None, "signal_number": None, "detached": True}


class Viewed(Protocol):
    """The terminal, as its viewers see it."""

    program: Program
    outcome: Outcome | None
    typist_account: str | None

    def describe(self) -> dict[str, Any]:
        """Its name, size, title and viewers."""

    async def draw(self, scrollback: int | None) -> bytes:
        """What draws the screen."""

    def join(self, viewer: Viewer) -> None:
        """Add a viewer."""

    def leave(self, viewer: Viewer) -> None:
        """Remove a viewer."""

    def typed(self, viewer: Viewer) -> None:
        """Take what a viewer has typed."""


class Viewer:
    """A viewer, from :meth:`run` to the end of its stream."""

    def __init__(
        self,
        terminal: Viewed,
        key: str,
        *,
        columns: int,
        rows: int,
        visible: bool,
        read_only: bool,
        scrollback: int | None,
        input_received: int,
    ) -> None:
        self.key = key
        """Known only to whom it belongs to: who names it goes on where this viewer was."""
        self.name = hashlib.sha256(key.encode()).hexdigest()[:NAME_CHARACTERS]
        """How it is told from the others."""
        self.columns, self.rows = columns, rows
        self.visible, self.read_only = visible, read_only
        self.stdin_received = input_received
        """Bytes of its input that have arrived, also in earlier streams of the same viewer."""
        self._terminal = terminal
        self._scrollback = scrollback
        self._sender: Sender | None = None
        self._waiting: deque[tuple[Kind, bytes]] = deque()
        self._waiting_bytes = 0
        self._needs_screen = True
        self._drawn_at = float("-inf")
        self._wake = asyncio.Event()
        self._left: RpcError | None = None
        self._detached = False
        self._input = bytearray()
        self._reported = input_received
        self._beats: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def run(self, sender: Sender) -> Outcome:
        """Send the screen and then the output, until the program ends or the viewer leaves."""
        self._sender = sender
        sender.input_taken = lambda: self.input_taken
        watch = self._loop.create_task(self._wake_when_gone(sender))
        self._terminal.join(self)
        try:
            while True:
                await sender.room()
                if self._left is not None:
                    raise self._left
                if self._detached or sender.gone.is_set():
                    return DETACHED
                if self._needs_screen:
                    await self._send_screen(sender)
                elif self._waiting:
                    await sender.send(*self._next())
                elif self._terminal.outcome is not None:
                    return self._terminal.outcome
                else:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            watch.cancel()
            self._terminal.leave(self)

    @property
    def input_taken(self) -> int:
        """Bytes of its input that the program's terminal has taken."""
        return self.stdin_received - len(self._input)

    @property
    def counts(self) -> bool:
        """Whether the terminal has to fit into its window."""
        return self.visible and not self.is_away

    @property
    def is_away(self) -> bool:
        """Whether it has been silent for long."""
        return self._sender is None or self._sender.silence > AWAY_SECONDS

    @property
    def may_type(self) -> bool:
        """Whether what it types gets to the program."""
        return not self.read_only and self._terminal.typist_account in (None, self.account)

    @property
    def account(self) -> str | None:
        """In whose inbox it reads, as :attr:`natskit.project.agent.Caller.account` says it."""
        return owner_of_inbox(self._sender.reader) if self._sender is not None else None

    @property
    def account_id(self) -> str | None:
        """The account in whose inbox it reads; ``None`` for the operator."""
        return account_of_inbox(self._sender.reader) if self._sender is not None else None

    def describe(self) -> dict[str, Any]:
        """What the other viewers are told of it."""
        return {
            "viewer": self.name,
            "account_id": self.account_id,
            "columns": self.columns,
            "rows": self.rows,
            "visible": self.visible,
            "read_only": not self.may_type,
            "away": self.is_away,
        }

    def put(self, data: bytes) -> None:
        """Queue output. If too much waits, it is dropped, and the viewer gets the newest screen when it can take it."""
        if self._needs_screen:
            return
        if self._waiting_bytes + len(data) > WAITING_BYTES:
            self.redraw()
            return
        for start in range(0, len(data), FRAME_BYTES):
            self._queue("stdout", data[start : start + FRAME_BYTES])

    def tell(self, event: dict[str, Any]) -> None:
        """Queue news of the terminal, in its place in the output."""
        if self._needs_screen:
            return
        data = to_json(event)
        if self._waiting_bytes + len(data) > WAITING_BYTES:
            self.redraw()  # the screen says all of it
            return
        self._queue("event", data)

    def redraw(self) -> None:
        """Drop what waits, and send the newest screen instead."""
        self._needs_screen = True
        self._waiting.clear()
        self._waiting_bytes = 0
        self._wake.set()

    def wake(self) -> None:
        """Look at the terminal's outcome."""
        self._wake.set()

    def feed(self, data: bytes) -> None:
        """Take what it types. A viewer that only watches, or for whom somebody else types, types nothing."""
        self.stdin_received += len(data)
        if not self.may_type:
            return
        self._input += data
        if len(self._input) > INPUT_BYTES:
            self._give_up(RpcError("limit", "the program reads no input, and too much of it waits"))
        self._terminal.typed(self)

    def end_of_input(self) -> None:
        """A terminal's input has no end: Ctrl+D is a key."""

    def cancel(self) -> None:
        """Detach it. The program goes on."""
        self._detached = True
        if self._sender is not None:
            self._wake.set()

    def kill(self) -> None:
        """Nothing: the terminal ends its program."""

    def take_over(self, earlier: Viewer) -> None:
        """Go on where the same viewer was with a stream that it reads no more."""
        self._input, earlier._input = earlier._input, bytearray()
        earlier.cancel()
        if earlier._sender is not None:
            earlier._sender.leave_unread()

    def write_input(self) -> bool:
        """Give the program what it takes of the input; returns whether some is left."""
        while self._input:
            taken = self._terminal.program.write(bytes(self._input[:FRAME_BYTES]))
            del self._input[:taken]
            if not taken:
                break
        if self.input_taken - self._reported >= STDIN_REPORT_BYTES and self._sender is not None:
            self._reported = self.input_taken
            beat = self._loop.create_task(self._sender.heartbeat())
            self._beats.add(beat)
            beat.add_done_callback(self._beats.discard)
        return bool(self._input)

    def _queue(self, kind: Kind, data: bytes) -> None:
        self._waiting.append((kind, data))
        self._waiting_bytes += len(data)
        self._wake.set()

    def _next(self) -> tuple[Kind, bytes]:
        kind, data = self._waiting.popleft()
        parts, size = [data], len(data)
        while kind == "stdout" and self._waiting:
            following, more = self._waiting[0]
            if following != kind or size + len(more) > FRAME_BYTES:
                break
            self._waiting.popleft()
            parts.append(more)
            size += len(more)
        self._waiting_bytes -= size
        return kind, b"".join(parts)

    async def _send_screen(self, sender: Sender) -> None:
        pause = self._drawn_at + REDRAW_SECONDS - self._loop.time()
        if pause > 0:
            await asyncio.sleep(pause)
        self._drawn_at = self._loop.time()
        self._needs_screen = False
        event = {"type": "screen", "viewer": self.name, **self._terminal.describe()}
        try:
            drawn = await self._terminal.draw(self._scrollback)
        except EmulatorGoneError:
            self._needs_screen = True
            return
        await sender.send("event", to_json(event))
        for start in range(0, len(drawn), FRAME_BYTES):
            await sender.room()
            await sender.send("stdout", drawn[start : start + FRAME_BYTES])

    async def _wake_when_gone(self, sender: Sender) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await sender.gone.wait()
            self._wake.set()

    def _give_up(self, error: RpcError) -> None:
        self._left = error
        self._wake.set()
