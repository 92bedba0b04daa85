"""The project's end of a stream: keep frames until the reader acknowledges them, and end a stream without a reader."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import nats.errors

from natskit.bus.connection import Connection
from natskit.bus.output_stream import (
    AWAY_SECONDS,
    FRAME_BYTES,
    GONE_SECONDS,
    HEARTBEAT_SECONDS,
    IDLE_SECONDS,
    KIND_HEADER,
    SEQ_HEADER,
    STDIN_HEADER,
    STDIN_MISSING_HEADER,
    WINDOW_BYTES,
)
from natskit.bus.payload import to_json
from natskit.process.lifecycle import spawn

Kind = Literal["start", "stdout", "stderr", "event", "end"]


class Sender:
    """The project's end of one stream. All methods run on the event loop; :attr:`gone` is set if the reader is gone."""

    def __init__(
        self,
        connection: Connection,
        reader: str,
        control: str,
        own_inbox: str,
        window: int = WINDOW_BYTES,
        patience: float | None = None,
    ) -> None:
        self.gone = asyncio.Event()
        self.why_gone = ""
        """The message for a reader that comes back later."""
        self.silence = 0.0
        """Seconds in which both ends were connected and the reader sent nothing."""
        self.input_taken: Callable[[], int] = lambda: 0
        self._connection = connection
        self._reader = reader
        self._patience = GONE_SECONDS if patience is None else patience
        self._unread = self._ended = False
        self._control = control
        self._own_inbox = own_inbox
        self._window = max(window, 2 * FRAME_BYTES)
        self._unacked: deque[tuple[int, Kind, bytes]] = deque()
        self._unacked_bytes = 0
        self._next = 0
        self._room = asyncio.Event()
        self._acked_all = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._heard = self._beaten = self._ticked = self._loop.time()
        self._timer = self._loop.call_later(IDLE_SECONDS, self._tick)
        self._beats: set[asyncio.Task[None]] = set()
        self._room.set()

    async def start(self) -> None:
        """Send the first frame, which names the subject for acknowledgements."""
        await self.send("start", to_json({"control": self._control, "window": self._window}))

    async def room(self) -> None:
        """Wait until the reader has acknowledged enough for one more frame."""
        await self._room.wait()

    async def send(self, kind: Kind, data: bytes) -> None:
        """Send one frame and keep it until the reader acknowledges it. Call :meth:`room` first if data can flood."""
        if self._unread:
            return
        frame = (self._next, kind, data)
        self._next += 1
        self._unacked.append(frame)
        self._unacked_bytes += len(data)
        self._acked_all.clear()
        if self._unacked_bytes + FRAME_BYTES > self._window:
            self._room.clear()
        await self._publish(*frame)

    async def end(self, response: bytes) -> None:
        """Send the last frame and wait until the reader has every frame, or is gone."""
        self._ended = True
        if self._unread:
            return
        await self.send("end", response)
        gone = asyncio.ensure_future(self.gone.wait())
        done = asyncio.ensure_future(self._acked_all.wait())
        try:
            await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            done.cancel()

    @property
    def reader(self) -> str:
        """The reader's inbox."""
        return self._reader

    @property
    def is_away(self) -> bool:
        """Whether the reader has missed two heartbeats. It may come back, as a frozen tab does."""
        return self.silence > AWAY_SECONDS and not self.gone.is_set()

    def leave_unread(self) -> None:
        """Discard all further frames: the reader has left."""
        self._unread = True
        self._unacked.clear()
        self._unacked_bytes = 0
        self._room.set()
        self._acked_all.set()

    def give_up(self, why: str) -> None:
        """Send nothing more, and set :attr:`gone`, which ends the command.

        ``why`` is the reason as the reader gets it, such as "you may not use this project any more".
        """
        what = "the command has ended, and its output is gone" if self._ended else "the command was ended"
        self.why_gone = f"{what}: {why}"
        self.leave_unread()
        self.gone.set()
        self._timer.cancel()

    def close(self) -> None:
        """Stop the clock."""
        self._timer.cancel()

    async def on_control(self, message: dict[str, Any], reply: str) -> None:
        """Handle an ``ack`` or a ``resume`` of the reader."""
        self._heard = self._loop.time()
        self.silence = 0.0
        if reply:
            self._reader = reply
        seq = message.get("seq")
        if not isinstance(seq, int):
            return
        if message.get("type") == "ack":
            self._acknowledge(seq)
        elif message.get("type") == "resume":
            await self._resend(seq)

    def _acknowledge(self, seq: int) -> None:
        while self._unacked and self._unacked[0][0] <= seq:
            self._unacked_bytes -= len(self._unacked.popleft()[2])
        if self._unacked_bytes + FRAME_BYTES <= self._window:
            self._room.set()
        if not self._unacked:
            self._acked_all.set()

    async def _resend(self, seq: int) -> None:
        again = [frame for frame in self._unacked if frame[0] >= seq]
        for frame in again:
            await self._publish(*frame)
        if not again:
            await self.heartbeat()

    async def _publish(self, seq: int, kind: str, data: bytes, more: dict[str, str] | None = None) -> None:
        if self._unread or not self._connection.is_connected:
            return  # the reader asks again when the connection is back
        with contextlib.suppress(nats.errors.Error):
            await self._connection.publish(
                self._reader,
                data,
                reply=self._own_inbox,
                headers={KIND_HEADER: kind, SEQ_HEADER: str(seq), **(more or {})},
            )

    async def heartbeat(self, *, missing_from: int | None = None) -> None:
        """Tell the reader that the stream is alive, its next frame, and how much input the command has taken."""
        headers = {STDIN_HEADER: str(self.input_taken())}
        if missing_from is not None:
            headers[STDIN_MISSING_HEADER] = str(missing_from)
        await self._publish(self._next, "heartbeat", b"", headers)

    def _tick(self) -> None:
        now = self._loop.time()
        # Counted by ticks: while this process was suspended or disconnected, it could not hear the reader.
        passed, self._ticked = min(now - self._ticked, 2 * IDLE_SECONDS), now
        self._timer = self._loop.call_later(IDLE_SECONDS, self._tick)
        if not self._connection.is_connected:
            self._heard = now
            self.silence = 0.0
            return
        self.silence += passed
        if self.silence > self._patience:
            self.give_up(f"nobody read its output for {self._patience:g} s")
            return
        # Counted since the reader's last message, not since the last frame: the reader must acknowledge a trickle of
        # small frames too, since acknowledgements show that it is still there.
        due = IDLE_SECONDS if self._unacked else HEARTBEAT_SECONDS
        if now - max(self._heard, self._beaten) >= due * 0.99:
            self._beaten = now
            spawn(self._beats, self.heartbeat())
