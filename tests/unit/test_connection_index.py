"""The index of connections: whatever it missed, two comparisons correct it."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.hub.auth.connection_index import EVENT_SECONDS, ConnectionIndex, Place

OLD = EVENT_SECONDS + 1
PLACES = st.builds(Place, st.sampled_from("AB"), st.integers(1, 6))


def event(place: Place, name: str = "browser.a.s.d") -> bytes:
    return json.dumps({"server": {"id": place.server}, "client": {"id": place.cid, "user": name}, "type": "x"}).encode()


@given(st.lists(st.tuples(st.sampled_from(["opened", "closed", "opened, lost", "closed, lost"]), PLACES)))
def test_two_comparisons_correct_whatever_was_lost(events: list[tuple[str, Place]]) -> None:
    index, there = ConnectionIndex(), dict[Place, str]()
    for number, (what, place) in enumerate(events):
        name = f"browser.{number % 3}.s.d"
        if what.startswith("opened"):
            there[place] = name
        else:
            there.pop(place, None)
        if what == "opened":
            index.opened(event(place, name))
        elif what == "closed":
            index.closed(event(place))
    for _ in range(2):
        index.compared(time.monotonic(), {place: (name, OLD) for place, name in there.items()})
    assert len(index) == len(there)
    for name in {"browser.0.s.d", "browser.1.s.d", "browser.2.s.d"}:
        assert index.find(name) == {place for place, other in there.items() if other == name}


def test_one_that_a_comparison_skips_stays() -> None:
    """Pages of the list shift when connections close."""
    index, place = ConnectionIndex(), Place("A", 1)
    index.compared(time.monotonic(), {place: ("n", OLD)})
    index.compared(time.monotonic(), {})
    assert index.find("n") == {place}
    index.compared(time.monotonic(), {place: ("n", OLD)})
    index.compared(time.monotonic(), {})
    assert index.find("n") == {place}
    index.compared(time.monotonic(), {})
    assert index.find("n") == set()


def test_it_is_complete_until_something_is_found_to_be_lost() -> None:
    index, one, two = ConnectionIndex(), Place("A", 1), Place("A", 2)
    assert not index.is_complete
    index.compared(time.monotonic(), {one: ("n", OLD)})
    assert index.is_complete, "what was open before it began to listen"
    index.compared(time.monotonic(), {one: ("n", OLD), two: ("n", 0.1)})
    assert index.is_complete, "its message may be on its way"
    index.compared(time.monotonic(), {one: ("n", OLD), two: ("n", OLD), Place("A", 3): ("n", OLD)})
    assert not index.is_complete
    index.distrust()
    assert not index.is_complete
    began = time.monotonic()
    index.distrust()
    index.compared(began, {one: ("n", OLD)})
    assert not index.is_complete, "what was missed while it was compared may lack"
    index.compared(time.monotonic(), {one: ("n", OLD)})
    assert index.is_complete


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b'{"server": {"id": "A"}, "data": {"connections": []}}',
        b'{"stream": "KV", "seq": 1}',
    ],
)
def test_what_nats_server_does_not_say_of_a_connection_is_ignored(data: bytes) -> None:
    """A hub could direct the answer to another request to this subject."""
    index, place = ConnectionIndex(), Place("A", 1)
    index.opened(event(place, "n"))
    assert index.opened(data) is None
    index.closed(data)
    assert index.find("n") == {place}
