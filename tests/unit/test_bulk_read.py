"""The answers of a batch of messages, byte for byte as nats-server sends them."""

from __future__ import annotations

from typing import Any

import pytest

from natskit.errors import StateError
from natskit.hub.state.bulk_read import _Batch

WHEN = "2026-11-30T14:52:02.4712924Z"


def answer(key: str, sequence: int, before: int, stored: str = "") -> bytes:
    """The headers of a message: those that were stored, then nats-server's own."""
    lines = [
        "NATS/1.0",
        *([stored] if stored else []),
        "Nats-Stream: KV_accounts",
        f"Nats-Subject: $KV.accounts.{key}",
        f"Nats-Sequence: {sequence}",
        f"Nats-Time-Stamp: {WHEN}",
        "Nats-Num-Pending: 7",
        f"Nats-Last-Sequence: {before}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def end(status: str, pending: int, last: int) -> bytes:
    return f"NATS/1.0 {status}\r\nNats-Num-Pending: {pending}\r\nNats-Last-Sequence: {last}\r\n\r\n".encode()


def batch(until: int = 100) -> tuple[_Batch, list[Any]]:
    taken: list[Any] = []
    return _Batch(1, until, lambda *message: taken.append(message)), taken


def test_messages_and_markers() -> None:
    found, taken = batch()
    assert not found.add(answer("a", 3, 0), b"1")
    assert not found.add(answer("b", 5, 3, "Nats-Expected-Last-Subject-Sequence: 4"), b"2")
    assert not found.add(answer("c", 6, 5, "KV-Operation: PURGE\r\nNats-Rollup: sub"), b"")
    assert not found.add(answer("d", 9, 6, "Nats-Marker-Reason: MaxAge"), b"")
    assert found.add(end("204 EOB", 2, 9), b"")
    markers = [("$KV.accounts.c", b"", True, 6, WHEN), ("$KV.accounts.d", b"", True, 9, WHEN)]
    assert taken == [("$KV.accounts.a", b"1", False, 3, WHEN), ("$KV.accounts.b", b"2", False, 5, WHEN), *markers]
    assert (found.last, found.has_more) == (9, True)


def test_what_was_stored_cannot_look_like_what_nats_server_says() -> None:
    """A thief of a hub may write any header."""
    found, taken = batch()
    forged = "Nats-Subject: $KV.accounts.other\r\nNats-Sequence: 99\r\nNats-Last-Sequence: 98"
    found.add(answer("a", 3, 0, forged), b"1")
    assert taken == [("$KV.accounts.a", b"1", False, 3, WHEN)]


def test_what_came_later_is_left_to_those_who_follow() -> None:
    found, taken = batch(until=3)
    found.add(answer("a", 3, 0), b"1")
    found.add(answer("a", 4, 3), b"2")
    assert [message[3] for message in taken] == [3]
    assert found.last == 4


def test_a_message_that_was_lost_on_its_way() -> None:
    found, _ = batch()
    found.add(answer("a", 3, 0), b"1")
    with pytest.raises(StateError, match="a message after 5 was lost"):
        found.add(answer("b", 6, 5), b"2")
    found, _ = batch()
    found.add(answer("a", 3, 0), b"1")
    with pytest.raises(StateError, match="the last messages of a batch were lost"):
        found.add(end("204 EOB", 0, 6), b"")


def test_other_answers() -> None:
    found, taken = batch()
    assert found.add(b"NATS/1.0 404 Message Not Found\r\n\r\n", b"")
    assert (found.last, found.has_more, taken) == (0, False, [])
    with pytest.raises(StateError, match="refuses to read the state: 408 Bad Request"):
        found.add(b"NATS/1.0 408 Bad Request\r\n\r\n", b"")
    with pytest.raises(StateError, match="does not say which message"):
        found.add(b"NATS/1.0\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\nF: 6\r\n\r\n", b"")
    with pytest.raises(StateError, match="does not say which message"):
        found.add(b"NATS/1.0\r\nA: 1\r\n\r\n", b"")
    with pytest.raises(StateError, match="does not say which message"):
        found.add(b"", b"x")
