"""A caller with few requests does not wait behind another caller's many requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nats.aio.msg import Msg

from natskit.hub.limits import fair_queue
from natskit.hub.limits.fair_queue import QUICK_SECONDS, FairQueue, StartScheduler


def message(subject: str, data: bytes = b"") -> Msg:
    client: Any = None
    return Msg(client, subject, "", data)


async def test_each_caller_has_its_turn() -> None:
    waiting = FairQueue()
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
    monkeypatch.setattr(fair_queue, "WAITING_EACH", 2)
    waiting = FairQueue()
    for _ in range(2):
        assert waiting.has_room(message("a"))
        waiting.put_nowait(message("a"))
    assert not waiting.has_room(message("a"))
    assert waiting.has_room(message("b"))
    waiting.get_nowait()
    assert waiting.has_room(message("a"))


async def test_only_so_many_bytes_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "LARGEST_REQUEST", 10)
    monkeypatch.setattr(fair_queue, "BYTES_EACH", 40)
    monkeypatch.setattr(fair_queue, "BYTES", 60)
    waiting = FairQueue()
    for caller, number in (("a", 4), ("b", 2)):
        for _ in range(number):
            assert waiting.has_room(message(caller, b"x" * 10))
            waiting.put_nowait(message(caller, b"x" * 10))
    assert not waiting.has_room(message("a", b"x"))
    assert not waiting.has_room(message("b", b"x")), "together they have enough"
    waiting.put_nowait(message("c", b"x" * 10))
    assert not waiting.has_room(message("c", b"x")), "one request each"


async def turns_of(beginnings: StartScheduler, *keys: str) -> list[int]:
    """The turn of the event loop in which each of several calls begins, all made at once."""
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
    begun = await turns_of(StartScheduler(), "a", "a", "b", "c")
    assert len(set(begun)) == 4


async def test_quick_calls_begin_together_as_long_as_they_are_quick_together() -> None:
    beginnings = StartScheduler()
    beginnings.note(("a", "method"), 0.0001, failed=False)
    assert len(set(await turns_of(beginnings, *"aaaaaaaaaa"))) == 1
    beginnings.note(("a", "method"), 0.0009, failed=False)
    begun = await turns_of(beginnings, *"aaaaaaaa")
    assert max(begun.count(turn) for turn in begun) == 2


async def test_what_fails_quickly_is_not_quick() -> None:
    beginnings = StartScheduler()
    beginnings.note(("a", "method"), 0.0001, failed=True)
    assert len(set(await turns_of(beginnings, *"aaa"))) == 3
    beginnings.note(("a", "method"), 0.0001, failed=False)
    beginnings.note(("a", "method"), 0.5, failed=True)
    assert len(set(await turns_of(beginnings, *"aaa"))) == 3


async def test_a_call_that_was_long_the_last_time_does_not_start_at_once() -> None:
    starts = StartScheduler()
    asked = ("account.a", "list_projects")
    assert not starts.may_start(asked), "nobody knows how long it takes"
    starts.note(asked, QUICK_SECONDS / 2, failed=False)
    assert [starts.may_start(asked) for _ in range(5)] == [True] * 4 + [False], "two milliseconds in a turn"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert starts.may_start(asked)
    starts.note(asked, QUICK_SECONDS, failed=False)
    assert not starts.may_start(asked)
