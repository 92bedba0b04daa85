"""No caller can use more than its share of a hub, whatever its requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.hub.limits import admission
from natskit.hub.limits.admission import BURST_SECONDS, BYTE_SECONDS, CALL_SECONDS, Admission

SHARE = 0.25


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def spent(size: int) -> float:
    return CALL_SECONDS + size * BYTE_SECONDS


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 1 << 20)), max_size=200))
def test_one_uses_its_share_and_no_more(asked: list[tuple[float, int]]) -> None:
    clock, used = Clock(), 0.0
    some = Admission(SHARE, clock)
    for pause, size in asked:
        clock.now += pause
        if some.enter("a", size) is None:
            used += spent(size)
            some.leave("a")
        assert some.enter("b", 0) is None, "another one is not concerned"
        some.leave("b")
    most = BURST_SECONDS + SHARE * (clock.now - Clock.now) + spent(1 << 20)  # the last one may be large
    assert used <= most + 1e-6


def test_a_refused_caller_learns_when_to_retry_and_is_accepted_then() -> None:
    clock = Clock()
    some = Admission(SHARE, clock)
    some.charge("a", 3.2)
    refusal = some.enter("a", 0)
    assert refusal is not None
    assert (refusal.kind, refusal.data) == ("unavailable", {"retry_after": 9})
    assert "retry in 9 s" in refusal.message
    clock.now += 9
    assert some.enter("a", 0) is None


def test_nobody_is_refused_for_long_after_the_last_request() -> None:
    clock = Clock()
    some = Admission(SHARE, clock)
    for _ in range(10_000):  # over HTTP, nobody is cut
        some.enter("a", 1 << 20)
    assert some.is_flooding("a")
    clock.now += admission.LONGEST_SECONDS
    assert some.enter("a", 0) is None


def test_one_has_not_more_than_its_number_on_the_way() -> None:
    some = Admission(SHARE, Clock())
    for _ in range(admission.IN_FLIGHT_EACH):
        assert some.enter("a", 0) is None
    refusal = some.enter("a", 0)
    assert refusal is not None
    assert "too many requests of yours" in refusal.message
    assert some.enter("b", 0) is None
    some.leave("a")
    assert some.enter("a", 0) is None


def test_all_together_have_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "IN_FLIGHT", 3)
    some = Admission(SHARE, Clock())
    assert [some.enter(key, 0) for key in "abc"] == [None] * 3
    refusal = some.enter("d", 0)
    assert refusal is not None
    assert "too many requests are in flight" in refusal.message


def test_who_has_paid_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MOST_CALLERS", 10)
    clock = Clock()
    some = Admission(SHARE, clock)
    some.charge("owes", 3.2)
    for number in range(100):
        clock.now += 0.01
        some.charge(str(number), CALL_SECONDS)
    assert len(some._paid) <= 10
    assert some.enter("owes", 0) is not None


def test_who_floods_again_is_held_off_for_longer_and_forgiven_in_the_end() -> None:
    clock = Clock()
    some = Admission(SHARE, clock)
    held = []
    for _ in range(7):
        held.append(some.block_seconds("a"))
        clock.now += held[-1] + 1
    assert held == [10, 20, 40, 80, 160, 160, 160]
    assert some.block_seconds("b") == 10
    clock.now += 1000
    assert some.block_seconds("a") == 10
