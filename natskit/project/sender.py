"""The project's end of a stream: what was sent is kept until the reader has it; what nobody reads is ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import nats.errors

from natskit.connection import Connection, to_json
from natskit.stream import (
    FRAME_BYTES,
    GONE_SECONDS,
    HEARTBEAT_SECONDS,
    IDLE_SECONDS,
    KIND_HEADER,
    SEQ_HEADER,
    SILENCE_SECONDS,
    STDIN_HEADER,
    STDIN_MISSING_HEADER,
    WINDOW_BYTES,
)

Kind = Literal["start", "stdout", "stderr", "end"]


class Sender:
    """The project's end of one stream. All methods run on the event loop; :attr:`gone` tells that nobody reads."""

    def __init__(
        self, connection: Connection, reader: str, control: str, own_inbox: str, window: int = WINDOW_BYTES
    ) -> None:
        self.gone = asyncio.Event()
        self.input_taken: Callable[[], int] = lambda: 0
        self._connection = connection
        self._reader = reader
        self._given_up = False
        self._control = control
        self._own_inbox = own_inbox
        self._window = max(window, 2 * FRAME_BYTES)
        self._unacked: deque[tuple[int, Kind, bytes]] = deque()
        self._unacked_bytes = 0
        self._next = 0
        self._room = asyncio.Event()
        self._acked_all = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._heard = self._beaten = self._loop.time()
        self._away_since: float | None = None
        self._timer = self._loop.call_later(IDLE_SECONDS, self._tick)
        self._beats: set[asyncio.Task[None]] = set()
        self._room.set()

    async def start(self) -> None:
        """Tell the reader where to acknowledge."""
        await self.send("start", to_json({"control": self._control, "window": self._window}))

    async def room(self) -> None:
        """Wait until the reader has acknowledged enough for one more frame."""
        await self._room.wait()

    async def send(self, kind: Kind, data: bytes) -> None:
        """Send one frame and keep it until it is acknowledged. Call :meth:`room` first where data can flood."""
        frame = (self._next, kind, data)
        self._next += 1
        self._unacked.append(frame)
        self._unacked_bytes += len(data)
        self._acked_all.clear()
        if self._unacked_bytes + FRAME_BYTES > self._window:
            self._room.clear()
        await self._publish(*frame)

    async def end(self, response: bytes) -> None:
        """Send the last frame and stay until the reader has everything, or is gone."""
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
        """The inbox that the stream goes to."""
        return self._reader

    def give_up(self) -> None:
        """Whoever reads may not any more: nothing is sent from now on, and :attr:`gone` is set."""
        self._given_up = True
        self.gone.set()

    def close(self) -> None:
        """Stop the clock."""
        self._timer.cancel()

    async def on_control(self, message: dict[str, Any], reply: str) -> None:
        """Take an ``ack`` or a ``resume`` from the reader."""
        self._heard = self._loop.time()
        self._away_since = None
        if reply:
            self._reader = reply
        seq = message.get("seq")
        if not isinstance(seq, int):
            return
        if message.get("type") == "ack":
            self._acknowledge(seq)
        elif message.get("type") == "resume":
            await self._resend(seq)

    def on_nobody_listens(self) -> None:
        """nats-server found no subscription for a frame: the reader is reconnecting, or gone."""
        if self._away_since is None:
            self._away_since = self._loop.time()

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
        if self._given_up or not self._connection.is_connected:
            return  # the reader asks again once it is heard
        with contextlib.suppress(nats.errors.Error):
            await self._connection.publish(
                self._reader,
                data,
                reply=self._own_inbox,
                headers={KIND_HEADER: kind, SEQ_HEADER: str(seq), **(more or {})},
            )

    async def heartbeat(self, *, missing_from: int | None = None) -> None:
        """Say that the stream lives, how far it is, and how much of the reader's input was taken."""
        headers = {STDIN_HEADER: str(self.input_taken())}
        if missing_from is not None:
            headers[STDIN_MISSING_HEADER] = str(missing_from)
        await self._publish(self._next, "heartbeat", b"", headers)

    def _tick(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_later(IDLE_SECONDS, self._tick)
        if not self._connection.is_connected:
            self._heard = now  # it is the project that is away, not the reader
            self._away_since = None
            return
        away = self._away_since is not None and now - self._away_since > GONE_SECONDS
        if away or now - self._heard > SILENCE_SECONDS:
            self.gone.set()
            self._room.set()
            self._timer.cancel()
            return
        # Counted from what was heard, not from what was sent: a trickle of small frames must be acknowledged too,
        # since acknowledgements are what renews the right to send.
        due = IDLE_SECONDS if self._unacked else HEARTBEAT_SECONDS
        if now - max(self._heard, self._beaten) >= due * 0.99:
            self._beaten = now
            beat = self._loop.create_task(self.heartbeat())
            self._beats.add(beat)
            beat.add_done_callback(self._beats.discard)
