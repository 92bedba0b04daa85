"""Whoever asks little does not wait behind all that somebody else has sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nats.aio.msg import Msg

from natskit.hub import turns
from natskit.hub.turns import Beginnings, Turns


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


async def turns_of(beginnings: Beginnings, *keys: str) -> list[int]:
    """The turn of the loop in which each of several calls, all made at once, begins."""
    turn, begun = 0, []

    async def begin(key: str) -> None:
        await beginnings.wait((key, "method"))
        begun.append(turn)

    calls = [asyncio.create_task(begin(key)) for key in keys]
    while not all(call.done() for call in calls):
        await asyncio.sleep(0)
        turn += 1
    return begun


async def test_of_calls_that_may_be_long_one_begins_in_a_turn() -> None:
    begun = await turns_of(Beginnings(), "a", "a", "b", "c")
    assert len(set(begun)) == 4


async def test_quick_calls_begin_together_as_long_as_they_are_quick_together() -> None:
    beginnings = Beginnings()
    beginnings.note(("a", "method"), 0.0001, failed=False)
    assert len(set(await turns_of(beginnings, *"aaaaaaaaaa"))) == 1
    beginnings.note(("a", "method"), 0.0009, failed=False)
    begun = await turns_of(beginnings, *"aaaaaaaa")
    assert max(begun.count(turn) for turn in begun) == 2


async def test_what_fails_quickly_is_not_quick() -> None:
    beginnings = Beginnings()
    beginnings.note(("a", "method"), 0.0001, failed=True)
    assert len(set(await turns_of(beginnings, *"aaa"))) == 3
    beginnings.note(("a", "method"), 0.0001, failed=False)
    beginnings.note(("a", "method"), 0.5, failed=True)
    assert len(set(await turns_of(beginnings, *"aaa"))) == 3
