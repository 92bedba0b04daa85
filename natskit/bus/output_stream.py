"""Long answers over NATS: numbered frames to one reader. Every frame arrives, or the stream ends with an error.

NATS alone delivers at most once. Here the sender (``natskit/project/sender.py``) keeps the frames that the reader has
not acknowledged yet, up to a window, and stops producing when the window is full. So a flood takes a bounded amount of
memory at every hop, and the reader can ask again for frames it missed. ``web/client/src/stream.js`` speaks the same
protocol:

1. The caller subscribes ``{base}.*`` (a new inbox, see below) and publishes a JSON-RPC request to
   ``projects.{p}.api`` with the reply subject ``{base}.0``. A refusal is an ordinary JSON-RPC response. Until something
   has arrived, the caller publishes the same request again after each reconnect: the project accepts a reply subject
   only once.
2. The project answers with frames. Header ``Natskit-Stream``: ``start``, ``stdout``, ``stderr``, ``event`` (JSON: news
   of a terminal or a job, in its place in the output), ``heartbeat`` or ``end``; header ``Natskit-Seq``: the number of
   the frame, from 0. A heartbeat carries the number of the *next* frame and has no number of its own. The body of
   ``end`` is the JSON-RPC response. Each frame's reply subject is the project's own inbox and ends in the id of the
   stream; nats-server reports there if the reader does not listen (503).
3. The caller sends JSON to ``projects.{p}.streams.{id}``: ``ack`` (all frames up to ``seq`` are consumed; at least
   every 256 KiB, and in answer to each heartbeat), ``resume`` (send again from ``seq``), ``stdin`` (base64 ``data``,
   its ``offset``), ``stdin_end``, ``cancel``. It sends ``resume`` when a number is missing, when a heartbeat is ahead,
   when its own connection is back, when ``events.project.{p}.agent`` announces that the project's is back, and after
   silence.
4. Heartbeats also say how much input the command has taken (``Natskit-Stdin``), which slows a fast writer down, and the
   offset from which input was lost (``Natskit-Stdin-Missing``).
5. A reader may fall silent: a frozen tab, a closed lid, a network that is down. nats-server disconnects it after two
   unanswered pings, and only the reader itself knows whether it will come back. Meanwhile the command runs until its
   output fills the window. After ``GONE_SECONDS`` of silence (the setting ``runner_project_reader_patience``) the
   project ends the command, and tells the reader why if it comes back later. It ends it earlier only if the reader has
   been silent for ``AWAY_SECONDS`` and another command needs its place. The project does not wait for a reader whose
   ``cancel`` says ``"leaving": true``: that one reads no more.

The base lies in the part of the caller's inbox where this project may answer (``permissions.answer_prefix``).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from natskit import rpc
from natskit.bus.connection import Connection
from natskit.bus.payload import to_json
from natskit.bus.request import check_size
from natskit.errors import ConnectionLostError, NotAllowedError
from natskit.process.lifecycle import spawn

KIND_HEADER = "Natskit-Stream"
SEQ_HEADER = "Natskit-Seq"
STDIN_HEADER = "Natskit-Stdin"
"""In heartbeats: how many bytes of the reader's input the command has taken."""
STDIN_MISSING_HEADER = "Natskit-Stdin-Missing"
"""In heartbeats: the offset from which input was lost."""

HEADER_ROOM = 1024
"""Bytes of a message that are reserved for its headers, which count for ``max_payload`` as well."""
FRAME_BYTES = 64 * 1024 - HEADER_ROOM
"""The most bytes in a frame. With its headers it fits into the smallest ``nats_max_payload``, 64 KiB, so that frames
in the window still fit after the setting is lowered."""
WINDOW_BYTES = 2 * 1024 * 1024
"""Unacknowledged output the sender keeps: enough for 200 MB/s at 10 ms round trip."""
MAX_WINDOW_BYTES = 32 * 1024 * 1024
"""The largest window a project may have, and the limit a reader sets to a project that ignores its window."""
ACK_BYTES = 256 * 1024
"""The reader acknowledges at least this often."""

STDIN_CHUNK_BYTES = 32 * 1024
STDIN_WINDOW_BYTES = 1024 * 1024
"""Bytes of input in transit that the command has not taken yet."""
STDIN_REPORT_BYTES = 128 * 1024

HEARTBEAT_SECONDS = 5.0
IDLE_SECONDS = 1.0
GONE_SECONDS = 600.0
"""How long a reader may be silent, unless a setting says otherwise, before its command is ended."""
AWAY_SECONDS = 2 * HEARTBEAT_SECONDS
"""A reader answers every heartbeat. One that has missed two gives way if there are too many commands."""

ACK_FRAMES = 256
"""The reader acknowledges small frames by number, so that the sender's list of them stays short."""
QUIET_SECONDS = 6.0
"""After this silence the reader asks: the sender has missed a heartbeat, so it has reconnected or is gone."""
SUSPENDED_SECONDS = 5.0
"""If a clock that ticks every second stood still for this long, the process was suspended."""
GRANT_SECONDS = 1.0
"""A right that was just granted takes effect with the next connection, which takes about 0.1 s."""
ASK_SECONDS = 1.0
ANSWER_SECONDS = 15.0
ABSENT_SECONDS, ABSENT_PAUSE = 2.0, 0.25
"""How long, and how often, the reader asks a project that does not listen: it may be reconnecting with a new key."""


class Reader:
    """The caller's end of one stream.

    ``open`` sends the request; ``frame`` returns the output in order and, at the end, ``None``, after which
    ``result`` is the method's result. Raises :class:`RpcError` for an error the project answers with and
    :class:`ConnectionLostError` when the stream cannot be continued.
    """

    def __init__(self, connection: Connection, earlier: Reader | None = None) -> None:
        """``earlier`` was a reader for the same program, whose stream has failed: this one continues its input."""
        self.result: Any = None
        self.ended = False
        self._connection = connection
        self._base = ""
        self._subject, self._request = "", b""
        self._refused: tuple[float, NotAllowedError] | None = None
        self._loop = asyncio.get_running_loop()
        self._heard = self._opened = self._ticked = self._loop.time()
        self._subscription: Subscription | None = None
        self._streams = self._control = ""
        self._expected = 0
        self._consumed = self._acked = -1
        self._unacked_bytes = self._kept_bytes = 0
        self._frames: deque[tuple[int, str, bytes]] = deque()
        self._arrived = asyncio.Event()
        self._failure: Exception | None = None
        self._input: _Input = earlier._input if earlier is not None else _Input()
        self._end_arrived = False
        self._asked_at: float | None = None
        self._asking_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._forget: list[Callable[[], None]] = []

    async def open(self, subject: str, body: bytes) -> None:
        """Send the request and wait until the project has started to answer.

        Raises :class:`RpcError` for a request that is larger than nats-server accepts.
        """
        check_size(self._connection, body)
        self._subject, self._request = subject, body
        self._base = self._connection.inbox_for(subject)
        self._streams = subject.removesuffix(".api") + ".streams."
        self._subscription = await self._connection.subscribe(f"{self._base}.*", cb=self._on_message)
        self._forget = [
            self._connection.on_reconnect(self.ask_again),
            self._connection.on_refused(subject, self._on_refused),
        ]
        await self._connection.publish(subject, body, reply=f"{self._base}.0")
        self._opened = self._heard = self._ticked = self._loop.time()
        self._timer = self._loop.call_later(1, self._tick)
        while not self._control and self._failure is None:
            self._arrived.clear()
            await self._arrived.wait()
        if not self._control and self._failure is not None:
            raise self._failure

    async def frame(self) -> tuple[str, bytes] | None:
        """The next piece of output as (``"stdout"`` or ``"stderr"``, bytes); ``None`` at the end."""
        while True:
            if self._frames:
                seq, kind, data = self._frames.popleft()
                self._kept_bytes -= len(data)
                await self._consume(seq, len(data), final=kind == "end")
                if kind == "end":
                    self.ended = True
                    self.result = rpc.decode_response(data)
                    return None
                if kind != "start":
                    return kind, data
            elif self.ended:
                return None
            elif self._failure is not None:
                raise self._failure
            else:
                self._arrived.clear()
                await self._arrived.wait()

    async def write(self, data: bytes) -> None:
        """Send input, and wait while the command does not take it. Input after the end of the command is dropped."""
        for start in range(0, len(data), STDIN_CHUNK_BYTES):
            await self.room()
            if self._end_arrived:
                return
            await self.send(data[start : start + STDIN_CHUNK_BYTES])

    async def room(self) -> None:
        """Wait while the command does not take the input that was sent."""
        while self._input.full() and not self._end_arrived:
            if self._failure is not None:
                raise self._failure
            self._input.taken.clear()
            await self._input.taken.wait()

    async def send(self, data: bytes) -> None:
        """Send input of at most ``STDIN_CHUNK_BYTES``. Wait for :meth:`room` first."""
        await self._send_input(self._input.add(data))

    async def send_again(self) -> None:
        """Send the input that an earlier reader may have sent in vain."""
        if self._input.start < self._input.end:
            await self._send_input(self._input.start)

    async def end_of_input(self) -> None:
        """Close the command's input."""
        self._input.over = True
        await self._send_input(self._input.end)

    async def _send_input(self, offset: int) -> None:
        """Send the input that is kept from ``offset`` on, and the end of the input if it has been reached."""
        for start, chunk in self._input.chunks(offset):
            data = base64.b64encode(chunk).decode()
            await self.control({"type": "stdin", "data": data, "offset": start})
        if self._input.over:
            await self.control({"type": "stdin_end", "offset": self._input.end})

    async def control(self, message: dict[str, Any]) -> None:
        """Send a control message (such as ``cancel``) to the project."""
        if not self._control or self.ended:
            return
        if self._connection.is_closed:
            raise ConnectionLostError("the connection was closed")
        with contextlib.suppress(nats.errors.Error):
            await self._connection.publish(self._control, to_json(message), reply=f"{self._base}.0")

    async def close(self) -> None:
        """Stop reading; a command that still runs is cancelled."""
        if self._timer is not None:
            self._timer.cancel()
        for forget in self._forget:
            forget()
        self._forget.clear()
        if not self.ended and not self._connection.is_closed:
            await self.control({"type": "cancel", "leaving": True})
        for task in self._tasks:
            task.cancel()
        if self._subscription is not None:
            with contextlib.suppress(nats.errors.Error):
                await self._subscription.unsubscribe()
            self._subscription = None

    async def _on_message(self, message: Msg) -> None:
        frame = frame_of(message)
        if frame is None:
            now = self._loop.time()
            if self._control and _nobody_listens(message):  # it may be reconnecting
                self._asking_since = self._asking_since or now
            elif _nobody_listens(message) and now - self._opened < ABSENT_SECONDS:
                self._spawn(self._request_later())
            else:
                self._fail(_refusal(message))
            return
        self._heard = self._loop.time()
        kind, seq = frame
        if not self._control:
            # Every frame names its stream, so the reader can recover from the loss of the first one.
            self._control = self._streams + message.reply.rpartition(".")[2]
            self._arrived.set()
        if kind == "heartbeat":
            await self._follow_input(message.headers or {})
            if seq > self._expected:
                await self._resume()
            else:
                self._asking_since = None
                await self._acknowledge()
        elif seq == self._expected:
            self._asking_since = self._asked_at = None
            self._expected += 1
            self._frames.append((seq, kind, message.data))
            self._kept_bytes += len(message.data)
            self._arrived.set()
            if self._kept_bytes > 2 * MAX_WINDOW_BYTES:
                self._frames.clear()
                self._fail(ConnectionLostError("the project sends more than was acknowledged: it was cut off"))
            if kind == "end":
                self._end_arrived = True
                self._input.taken.set()
        elif seq > self._expected and self._asked_at is None:
            await self._resume()

    async def _follow_input(self, headers: Mapping[str, str]) -> None:
        taken, missing = headers.get(STDIN_HEADER, ""), headers.get(STDIN_MISSING_HEADER, "")
        if taken.isdecimal():
            self._input.take(int(taken))
        if missing.isdecimal():
            await self._send_input(int(missing))

    async def _consume(self, seq: int, size: int, *, final: bool) -> None:
        self._consumed = seq
        self._unacked_bytes += size
        if final or self._unacked_bytes >= ACK_BYTES or seq - self._acked >= ACK_FRAMES:
            await self._acknowledge()

    async def _acknowledge(self) -> None:
        self._unacked_bytes = 0
        self._acked = self._consumed
        await self.control({"type": "ack", "seq": self._consumed})

    async def _resume(self) -> None:
        self._asked_at = self._loop.time()
        if self._asking_since is None:
            self._asking_since = self._asked_at
        await self.control({"type": "resume", "seq": self._expected})
        if self._input.start < self._input.end or self._input.over:
            await self._send_input(self._input.start)

    def ask_again(self) -> None:
        """Ask for missing frames, after this connection or the project's was lost and is back."""
        self._heard = self._loop.time()
        self._asking_since = self._refused = None
        self._spawn(self._resume() if self._control else self._request_again())

    async def _request_later(self) -> None:
        await asyncio.sleep(ABSENT_PAUSE)
        if not self._control:
            await self._request_again()

    async def _request_again(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._connection.publish(self._subject, self._request, reply=f"{self._base}.0")

    def _on_refused(self, error: NotAllowedError) -> None:
        if not self._control:
            self._refused = self._loop.time(), error

    def _tick(self) -> None:
        self._timer = self._loop.call_later(1, self._tick)
        now = self._loop.time()
        stood_still, self._ticked = now - self._ticked > SUSPENDED_SECONDS, now
        if self._connection.is_closed:
            self._fail(ConnectionLostError("the connection was closed while the command was running"))
        elif stood_still:  # this process was suspended, so silence says nothing about the project
            self._opened = now
            self.ask_again()
        elif not self._connection.is_connected:
            self._heard = now
            self._asking_since = None
        elif self._refused is not None and now - self._refused[0] > GRANT_SECONDS:
            self._fail(self._refused[1])
        elif not self._control:
            if now - self._opened > ANSWER_SECONDS:
                self._fail(ConnectionLostError(f"the project did not answer within {ANSWER_SECONDS:g} s"))
        elif self._asking_since is not None and now - self._asking_since > ANSWER_SECONDS:
            self._fail(ConnectionLostError("the project went away in the middle of the command's output"))
        elif (now - self._heard > QUIET_SECONDS or self._asking_since is not None) and (
            self._asked_at is None or now - self._asked_at >= ASK_SECONDS
        ):
            self._spawn(self._resume())

    def _fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
        self._arrived.set()
        self._input.taken.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        spawn(self._tasks, work)


class _Input:
    """Input that was sent and that the command has not taken yet, kept for sending it again."""

    def __init__(self) -> None:
        self.start = 0
        self.over = False
        self.taken = asyncio.Event()
        self._kept = bytearray()

    @property
    def end(self) -> int:
        return self.start + len(self._kept)

    def full(self) -> bool:
        return len(self._kept) >= STDIN_WINDOW_BYTES

    def add(self, data: bytes) -> int:
        offset = self.end
        self._kept += data
        return offset

    def take(self, upto: int) -> None:
        if self.start < upto <= self.end:
            del self._kept[: upto - self.start]
            self.start = upto
            self.taken.set()

    def chunks(self, offset: int) -> list[tuple[int, bytes]]:
        first = max(offset, self.start)
        return [
            (at, bytes(self._kept[at - self.start : at - self.start + STDIN_CHUNK_BYTES]))
            for at in range(first, self.end, STDIN_CHUNK_BYTES)
        ]


def _nobody_listens(message: Msg) -> bool:
    return (message.headers or {}).get("Status") == "503"


def _refusal(message: Msg) -> Exception:
    """Why the project does not stream: it answered with an error, or does not listen."""
    if _nobody_listens(message):
        return ConnectionLostError("the project does not answer: it is not running, or not yet")
    try:
        rpc.decode_response(message.data)
    except rpc.RpcError as error:
        return error
    return ConnectionLostError("the project answered without a stream")


def frame_of(message: Msg) -> tuple[str, int] | None:
    """The kind and number of a frame; ``None`` for a message that is not a frame."""
    headers = message.headers or {}
    kind, seq = headers.get(KIND_HEADER), headers.get(SEQ_HEADER, "")
    if kind is None or not seq.isdecimal():
        return None
    return kind, int(seq)


def control_message(data: bytes) -> dict[str, Any] | None:
    """The body of a control message; ``None`` if it is not one."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None
