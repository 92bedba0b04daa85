"""Passwords: the same work for everybody, and a bound on how much of it waits."""

from __future__ import annotations

import asyncio

import argon2
import pytest

from natskit.hub.passwords import WAITING, Passwords, one_time_password
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


async def test_a_crowd_is_turned_away_at_once() -> None:
    passwords = Passwords(FAST)
    results = await asyncio.gather(
        *(passwords.verify(None, "x") for _ in range(2 * WAITING + 10)), return_exceptions=True
    )
    refused = [r for r in results if isinstance(r, RpcError)]
    assert len(refused) == WAITING + 9
    assert {r.kind for r in refused} == {"unavailable"}
    assert not await passwords.verify(None, "x")
    passwords.close()


def test_one_time_passwords_differ_and_are_long() -> None:
    made = {one_time_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(word) >= 20 for word in made)
