"""Whoever asks little does not wait behind all that somebody else has sent."""

from __future__ import annotations

from typing import Any

import pytest
from nats.aio.msg import Msg

from natskit.hub import turns
from natskit.hub.turns import Turns


def message(subject: str, data: bytes = b"") -> Msg:
    client: Any = None
    return Msg(client, subject, "", data)


async def test_each_caller_has_its_turn() -> None:
    waiting = Turns()
    for number in range(3):
        waiting.put_nowait(message("a", b"%d" % number))
    waiting.put_nowait(message("b"))
    waiting.put_nowait(message("c"))
    assert waiting.qsize() == 5
    got = [waiting.get_nowait() for _ in range(5)]
    assert [m.subject for m in got] == ["a", "b", "c", "a", "a"]
    assert [m.data for m in got if m.subject == "a"] == [b"0", b"1", b"2"], "in the order of asking"
    assert waiting.empty()


async def test_only_so_many_of_one_caller_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WAITING_EACH", 2)
    waiting = Turns()
    for _ in range(2):
        assert waiting.has_room(message("a"))
        waiting.put_nowait(message("a"))
    assert not waiting.has_room(message("a"))
    assert waiting.has_room(message("b"))
    waiting.get_nowait()
    assert waiting.has_room(message("a"))


async def test_only_so_many_bytes_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LARGEST_REQUEST", 10)
    monkeypatch.setattr(turns, "BYTES_EACH", 40)
    monkeypatch.setattr(turns, "BYTES", 60)
    waiting = Turns()
    for caller, number in (("a", 4), ("b", 2)):
        for _ in range(number):
            assert waiting.has_room(message(caller, b"x" * 10))
            waiting.put_nowait(message(caller, b"x" * 10))
    assert not waiting.has_room(message("a", b"x"))
    assert not waiting.has_room(message("b", b"x")), "together they have enough"
    waiting.put_nowait(message("c", b"x" * 10))
    assert not waiting.has_room(message("c", b"x")), "one request each"
