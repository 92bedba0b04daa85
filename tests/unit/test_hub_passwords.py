"""Passwords: the same work for every sign-in, and a limit on the waiting work."""

from __future__ import annotations

import asyncio
import threading
import unicodedata

import argon2
import pytest

from natskit.hub.auth.passwords import QUEUE_SECONDS, WAITING_EACH, Passwords, cost_of, one_time_password
from natskit.hub.config import PasswordSettings
from natskit.rpc import RpcError

FAST = PasswordSettings(time_cost=1, memory_kib=1024)
GOOD = "correct horse battery"
WHO = "somebody"


async def verify(passwords: Passwords, stored: str | None, password: str, who: str = WHO) -> bool:
    return (await passwords.verify(stored, password, who)).right


async def test_only_the_right_password() -> None:
    passwords = Passwords(FAST)
    stored = await passwords.hash(GOOD, WHO)
    assert stored.startswith("$argon2id$")
    assert GOOD not in stored
    assert await verify(passwords, stored, GOOD)
    for wrong in ("", GOOD + "x", "x" * 5000, "\ud800" * 10):
        assert not await verify(passwords, stored, wrong)
    assert not await verify(passwords, None, GOOD)
    assert not await verify(passwords, "no hash", GOOD)
    passwords.close()


@pytest.mark.parametrize("password", ["", "short", "x" * 1025])
async def test_length(password: str) -> None:
    passwords = Passwords(FAST)
    with pytest.raises(RpcError, match="characters"):
        await passwords.hash(password, WHO)
    passwords.close()


@pytest.mark.parametrize("typed", ["wrong password", "another pässword"])
async def test_an_unknown_account_is_as_much_work_as_a_wrong_password(
    monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    """Also while some hashes have an older cost, and for a disabled account."""
    passwords = Passwords(FAST)
    stored = await passwords.hash(GOOD, WHO)
    old, older = (argon2.PasswordHasher(3, memory, 1).hash(GOOD) for memory in (512, 256))
    work: list[tuple[int, int, int]] = []
    real = argon2.PasswordHasher.verify

    def watched(self: argon2.PasswordHasher, against: str, password: bytes) -> bool:
        found = argon2.extract_parameters(against)
        work.append((found.memory_cost, found.time_cost, len(password)))
        return real(self, against, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", watched)

    async def work_of(against: str | None, password: str = typed, *, in_vain: bool = False) -> list[tuple[int, ...]]:
        work.clear()
        await passwords.verify(against, password, WHO, in_vain=in_vain)
        return sorted(work)

    assert await work_of(stored) == await work_of(None) == await work_of("") == await work_of("no hash")
    passwords.expect([cost_of(h) for h in (stored, old, older, "", "no hash")])
    every = await work_of(None)
    assert {memory for memory, _, _ in every} == {1024, 512, 256}
    for against in (stored, old, older, "", "no hash"):
        assert await work_of(against) == every
    assert len(await work_of(old, GOOD, in_vain=True)) == 3
    passwords.expect([cost_of(stored)])  # nobody has an old one any more
    assert {memory for memory, _, _ in await work_of(None)} == {1024}
    assert {memory for memory, _, _ in await work_of(old)} == {1024, 512}, "of a hub with other settings"
    assert await work_of(None) == await work_of(old)
    passwords.close()


async def test_an_old_hash_is_renewed_by_the_right_password(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords(FAST)
    old = argon2.PasswordHasher(3, 512, 1).hash(unicodedata.normalize("NFD", "pässwörter sind lang"))
    right, renewed = await passwords.verify(old, "pässwörter sind lang", WHO)
    assert right
    assert renewed is not None
    assert cost_of(renewed) == "$argon2id$v=19$m=1024,t=1,p=1"
    assert await passwords.verify(renewed, "pässwörter sind lang", WHO) == (True, None)
    assert await passwords.verify(old, "wrong password", WHO) == (False, None)
    assert await passwords.verify(old, "pässwörter sind lang", WHO, in_vain=True) == (True, None)

    def fail(*_: object) -> str:
        raise MemoryError

    monkeypatch.setattr(argon2.PasswordHasher, "hash", fail)
    assert await passwords.verify(old, "pässwörter sind lang", WHO) == (True, None)
    passwords.close()


class Held:
    """Holds all hashing up until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        real = argon2.PasswordHasher.verify

        def held(hasher: argon2.PasswordHasher, against: str, password: bytes) -> bool:
            self.go_on.wait(10)
            return real(hasher, against, password)

        monkeypatch.setattr(argon2.PasswordHasher, "verify", held)


async def test_many_tries_of_one_person_delay_another_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords, held = Passwords(FAST), Held(monkeypatch)
    done = list[str]()

    async def one(who: str) -> None:
        try:
            await passwords.verify(None, "x", who)
            done.append(who)
        except RpcError as error:
            done.append(f"{who}: {error.kind}, {error.data['retry_after']}")

    eager = [asyncio.create_task(one("eager")) for _ in range(WAITING_EACH + 5)]
    await asyncio.sleep(0)
    other = asyncio.create_task(one("other"))
    await asyncio.sleep(0)
    eager[2].cancel()  # one that waits and goes away takes no place
    held.go_on.set()
    await asyncio.gather(*eager, other, return_exceptions=True)
    assert done[:4] == ["eager: unavailable, 1"] * 4
    assert done[4:6] == ["eager", "eager"]
    assert done[6] == "other", "beside the one that had its place, the eager one goes first once"
    assert done[7:] == ["eager"] * (WAITING_EACH - 2)
    assert not (await passwords.verify(None, "x", "eager")).right
    passwords.close()


async def test_the_event_loop_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords, held = Passwords(FAST), Held(monkeypatch)
    asked = asyncio.create_task(passwords.verify(None, "x", WHO))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not asked.done()
    passwords.close()  # a hub that stops lets those finish that have begun
    held.go_on.set()
    assert not (await asked).right


async def test_a_crowd_is_told_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose turn comes in time wait for it, in order. The others each get a separate time to try again."""
    passwords, held = Passwords(FAST), Held(monkeypatch)
    passwords._seconds = 0.1
    fit = int(QUEUE_SECONDS / 0.1) + 1
    done, waits, kinds = list[int](), list[int](), set[str]()

    async def one(number: int) -> None:
        try:
            await passwords.verify(None, "x", f"student {number}")
        except RpcError as error:
            kinds.add(error.kind)
            waits.append(error.data["retry_after"])
            if len(waits) == fit:
                held.go_on.set()
        else:
            done.append(number)

    await asyncio.gather(*(one(number) for number in range(2 * fit)))
    assert done == list(range(fit))
    assert kinds == {"unavailable"}
    assert waits == sorted(waits)
    assert QUEUE_SECONDS < waits[0] < waits[-1] <= 2 * QUEUE_SECONDS + 1
    assert not (await passwords.verify(None, "x", WHO)).right
    passwords.close()


def test_one_time_passwords_differ_and_are_long() -> None:
    made = {one_time_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(word) >= 20 for word in made)


async def test_a_password_is_right_on_every_keyboard(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = "pässwörter sind lang"
    decomposed = unicodedata.normalize("NFD", composed)
    passwords = Passwords(FAST)
    hasher = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    for stored in (
        await passwords.hash(composed, WHO),
        await passwords.hash(decomposed, WHO),
        hasher.hash(composed),  # as hubs used to do
        hasher.hash(decomposed),
    ):
        for typed in (composed, decomposed):
            assert await verify(passwords, stored, typed)
        assert not await verify(passwords, stored, "passwörter sind lang")
    spaced = await passwords.hash("spaces\u00a0of all\u2003kinds", WHO)
    assert await verify(passwords, spaced, "spaces of all kinds")
    with pytest.raises(RpcError, match="characters"):
        await passwords.hash(unicodedata.normalize("NFD", "é" * 9), WHO)  # nine, however they are typed
    work: list[int] = []
    real = argon2.PasswordHasher.verify

    def counted(self: argon2.PasswordHasher, against: str, password: bytes) -> bool:
        work.append(len(password))
        return real(self, against, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counted)
    for against in (spaced, None):
        assert not await verify(passwords, against, composed)
    assert len(work) == 4, "as much for an account that is not there"
    passwords.close()
