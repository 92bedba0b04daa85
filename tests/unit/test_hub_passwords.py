"""Passwords: the same work for everybody, and a bound on how much of it waits."""

from __future__ import annotations

import asyncio
import threading

import argon2
import pytest

from natskit.hub.passwords import FIRST_GUESS_SECONDS, QUEUE_SECONDS, Passwords, one_time_password
from natskit.hub.program import PasswordSettings
from natskit.rpc import RpcError

FAST = PasswordSettings(time_cost=1, memory_kib=1024)
GOOD = "correct horse battery"


async def test_only_the_right_password() -> None:
    passwords = Passwords(FAST)
    stored = await passwords.hash(GOOD)
    assert stored.startswith("$argon2id$")
    assert GOOD not in stored
    assert await passwords.verify(stored, GOOD)
    for wrong in ("", GOOD + "x", "x" * 5000, "\ud800" * 10):
        assert not await passwords.verify(stored, wrong)
    assert not await passwords.verify(None, GOOD)
    assert not await passwords.verify("no hash", GOOD)
    passwords.close()


@pytest.mark.parametrize("password", ["", "short", "x" * 1025])
async def test_length(password: str) -> None:
    passwords = Passwords(FAST)
    with pytest.raises(RpcError, match="characters"):
        await passwords.hash(password)
    passwords.close()


async def test_an_unknown_account_is_as_much_work_as_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords(FAST)
    stored = await passwords.hash(GOOD)
    work: list[tuple[argon2.Parameters, int]] = []
    verify = argon2.PasswordHasher.verify

    def watched(self: argon2.PasswordHasher, against: str, password: bytes) -> bool:
        work.append((argon2.extract_parameters(against), len(password)))
        return verify(self, against, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", watched)
    for against in (stored, None):
        assert not await passwords.verify(against, "wrong password")
    known, unknown = work
    assert known == unknown
    passwords.close()


async def test_a_crowd_is_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who have their turn in time wait for it, in the order they came; the others are given one turn each."""
    passwords, all_there = Passwords(FAST), threading.Event()
    verify = argon2.PasswordHasher.verify

    def slow(self: argon2.PasswordHasher, against: str, password: bytes) -> bool:
        all_there.wait(10)
        return verify(self, against, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", slow)
    fit = int(QUEUE_SECONDS / FIRST_GUESS_SECONDS) + 1
    done, waits, kinds = list[int](), list[int](), set[str]()

    async def one(number: int) -> None:
        try:
            await passwords.verify(None, "x")
        except RpcError as error:
            kinds.add(error.kind)
            waits.append(error.data["retry_after"])
            if len(waits) == fit:
                all_there.set()
        else:
            done.append(number)

    await asyncio.gather(*(one(number) for number in range(2 * fit)))
    assert done == list(range(fit))
    assert kinds == {"unavailable"}
    assert waits == sorted(waits)
    assert QUEUE_SECONDS < waits[0] < waits[-1] <= 2 * QUEUE_SECONDS + 1
    assert not await passwords.verify(None, "x")
    passwords.close()


def test_one_time_passwords_differ_and_are_long() -> None:
    made = {one_time_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(word) >= 20 for word in made)
