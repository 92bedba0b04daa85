"""The stream protocol over a bus that loses messages: both ends together, and the sender's bookkeeping alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.aio.msg import Msg

import natskit.bus.output_stream
import natskit.project.sender
from natskit.bus.output_stream import FRAME_BYTES, MAX_WINDOW_BYTES, Reader, control_message, frame_of
from natskit.errors import ConnectionLostError
from natskit.project.sender import Sender
from natskit.rpc import encode_result

MIB = 1024 * 1024
Callback = Callable[[Msg], Awaitable[None]]


class Bus:
    """The parts of a connection that the two ends use. ``lose`` decides for each message whether it gets lost."""

    is_connected = True
    is_closed = False

    max_payload = 1024 * 1024

    def __init__(self, lose: Callable[[int], bool] = lambda _number: False) -> None:
        self.subscriptions: dict[str, Callback] = {}
        self.log: list[Msg] = []
        self._lose = lose

    def inbox_for(self, _subject: str) -> str:
        return "inbox"

    def on_reconnect(self, _callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def on_refused(self, _subject: str, _callback: Callable[..., None]) -> Callable[[], None]:
        return lambda: None

    async def subscribe(self, subject: str, cb: Callback) -> Any:
        self.subscriptions[subject.removesuffix(".*")] = cb
        bus = self

        class Subscription:
            async def unsubscribe(self) -> None:
                bus.subscriptions.pop(subject.removesuffix(".*"), None)

        return Subscription()

    async def publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        message = Msg(_client=None, subject=subject, reply=reply, data=data, headers=headers)  # type: ignore[arg-type]
        self.log.append(message)
        callback = self.subscriptions.get(subject.rpartition(".")[0]) or self.subscriptions.get(subject)
        if callback is not None and not self._lose(len(self.log)):
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(callback(message)))


@pytest.fixture(autouse=True)
def _fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IDLE_SECONDS", "HEARTBEAT_SECONDS"):
        monkeypatch.setattr(natskit.project.sender, name, 0.005)


async def transfer(frames: list[bytes], lose: Callable[[int], bool], window: int) -> tuple[list[bytes], Any, Bus]:
    """Send frames from a project to a caller over a lossy bus."""
    bus = Bus()
    sender: Sender | None = None

    async def on_request(message: Msg) -> None:
        nonlocal sender
        sender = Sender(bus, message.reply, "projects.p.streams.s", "own.s", window)  # type: ignore[arg-type]
        bus._lose = lose  # the request itself is repeated only after a reconnect
        await sender.start()
        for data in frames:
            await sender.room()
            await sender.send("stdout", data)
        await sender.end(encode_result(1, "done"))
        sender.close()

    async def on_control(message: Msg) -> None:
        assert sender is not None
        body = control_message(message.data)
        assert body is not None
        await sender.on_control(body, message.reply)

    bus.subscriptions["projects.p.api"] = on_request
    bus.subscriptions["projects.p.streams"] = on_control
    reader = Reader(bus)  # type: ignore[arg-type]
    await asyncio.wait_for(reader.open("projects.p.api", b"{}"), 10)
    got = []
    while (frame := await asyncio.wait_for(reader.frame(), 10)) is not None:
        got.append(frame[1])
    await reader.close()
    if sender is not None:
        sender.close()
    return got, reader.result, bus


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, FRAME_BYTES), max_size=30),
    lost=st.sets(st.integers(1, 60), max_size=25),
)
def test_everything_arrives_in_order(sizes: list[int], lost: set[int]) -> None:
    frames = [bytes([index % 256]) * size for index, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IDLE_SECONDS", "HEARTBEAT_SECONDS"):
            patch.setattr(natskit.project.sender, name, 0.002)
        got, result, _ = asyncio.run(transfer(frames, lambda number: number in lost, 4 * FRAME_BYTES))
    assert got == frames
    assert result == "done"


async def test_the_window_bounds_what_is_kept() -> None:
    bus = Bus()
    sender = Sender(bus, "inbox.0", "control", "own", 4 * FRAME_BYTES)  # type: ignore[arg-type]
    sent = 0
    while sender._room.is_set():
        await sender.send("stdout", b"x" * FRAME_BYTES)
        sent += 1
    assert sent == 4
    await sender.on_control({"type": "ack", "seq": 0}, "inbox.1")
    assert sender._room.is_set()
    await sender.send("stdout", b"x")
    assert bus.log[-1].subject == "inbox.1", "the newest reply subject is the one answered to"
    sender.close()


@pytest.mark.parametrize(
    "body", [{"type": "ack"}, {"type": "ack", "seq": "0"}, {"type": "ack", "seq": -5}, {"type": "resume", "seq": 99}]
)
async def test_odd_control_messages_are_harmless(body: dict[str, Any]) -> None:
    sender = Sender(Bus(), "inbox.0", "control", "own")  # type: ignore[arg-type]
    await sender.start()
    await sender.on_control(body, "")
    assert len(sender._unacked) == 1
    sender.close()


async def test_a_project_that_respects_no_window_is_cut_off() -> None:
    bus = Bus()

    async def flood(message: Msg) -> None:
        for seq in range(2 * MAX_WINDOW_BYTES // MIB + 1):
            headers = {"Natskit-Stream": "stdout", "Natskit-Seq": str(seq)}
            await bus.publish(message.reply, bytes(MIB), reply="own.s", headers=headers)

    bus.subscriptions["projects.p.api"] = flood
    reader = Reader(bus)  # type: ignore[arg-type]
    await reader.open("projects.p.api", b"{}")
    for _ in range(100):
        await asyncio.sleep(0)
    with pytest.raises(ConnectionLostError, match="more than was acknowledged"):
        await reader.frame()
    await reader.close()


def test_what_is_no_frame() -> None:
    for headers in (None, {}, {"Natskit-Stream": "stdout"}, {"Natskit-Stream": "stdout", "Natskit-Seq": "-1"}):
        assert frame_of(Msg(_client=None, subject="s", headers=headers)) is None  # type: ignore[arg-type]
    for data in (b"", b"[]", b"{}", b'{"type": 1}', b"\xff"):
        assert control_message(data) is None
