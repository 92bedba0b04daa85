"""Passwords: argon2id in a few threads. A failed sign-in costs the same whether or not the account exists.

Threads are enough: argon2-cffi releases the GIL while it hashes. Two threads and two processes were as quick, and as
easy on the event loop (measured on two busy cores). A process would need an interpreter more, some 30 MB.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import argon2
from argon2.exceptions import Argon2Error, InvalidHashError

from natskit.hub.config import PasswordSettings
from natskit.rpc import RpcError
from natskit.validation.names import NameRefusedError, checked_password, password_forms

log = logging.getLogger(__name__)

T = TypeVar("T")

SHORTEST = 10
LONGEST = 1024
"""Characters. Length is what matters (NIST SP 800-63B), but hashing a megabyte would be wasted work."""
QUEUE_SECONDS = 6.0
"""The longest that a sign-in waits in the queue. One that would wait longer is refused at once, and told when to try
again. Clients wait 10 s for an answer."""
LATEST_SECONDS = 60.0
"""The latest time that a refused sign-in is told to try again."""
WAITING_EACH = 10
"""Sign-ins that may wait for the same person at the same address."""
_COST = re.compile(r"\$argon2(?:id|i|d)\$v=\d+\$m=\d+,t=\d+,p=\d+(?=\$)")
"""The beginning of a hash, which says what it costs."""


class Verified(NamedTuple):
    """Whether a password is right, and its hash with the current cost if the stored one has another."""

    right: bool
    renewed: str | None = None


class Passwords:
    """Hashes and verifies in ``argon2_concurrency`` threads of its own, never in the event loop. Each thread needs
    ``memory_kib`` while it works."""

    def __init__(self, settings: PasswordSettings) -> None:
        self._hasher = argon2.PasswordHasher(
            time_cost=settings.time_cost, memory_cost=settings.memory_kib, parallelism=1
        )
        self._pool = ThreadPoolExecutor(settings.argon2_concurrency, thread_name_prefix="argon2")
        self._concurrency = settings.argon2_concurrency
        self._turns = _Turns(settings.argon2_concurrency)
        self._pending = 0
        self._promised = 0.0
        """When the last refused sign-in was told to try again (:func:`time.monotonic`)."""
        # Processor time: a machine on which hubs start is busy, for which a class that comes next must not be put off.
        began = time.thread_time()
        nobody = self._hasher.hash(secrets.token_urlsafe(16))
        self._seconds = time.thread_time() - began
        """What a hash takes, as measured lately."""
        self._cost = cost_of(nobody)
        self._nobodies = {self._cost: nobody}
        """A hash of nobody's password for each cost that stored hashes have."""

    def expect(self, costs: Iterable[str]) -> None:
        """Be told the costs (:func:`cost_of`) of all stored hashes, some of which may be earlier ones.

        As long as there are such, each failed sign-in takes the time of both. Otherwise its time would tell that an
        account exists, and has not been used lately.
        """
        known = self._nobodies
        self._nobodies = {cost: known.get(cost) or _nobody(cost) for cost in {self._cost, *costs} if cost}

    async def hash(self, password: str, who: str) -> str:
        """The hash to store. ``who`` shares the threads with others in turn.

        Raises :class:`RpcError` for a password that is too short or too long, or that has an invisible character, which
        its owner could not type again."""
        if len(password) <= LONGEST:
            try:
                password = checked_password(password)
            except NameRefusedError as error:
                raise RpcError("invalid_params", str(error)) from None
        if not SHORTEST <= len(password) <= LONGEST:
            raise RpcError("invalid_params", f"a password has {SHORTEST} to {LONGEST} characters")
        return await self._run(who, self._hasher.hash, _bytes(password))

    async def verify(self, stored: str | None, password: str, who: str, *, in_vain: bool = False) -> Verified:
        """Whether the password is right. Without a stored hash, does the same work and says that it is wrong.

        ``in_vain``: it is refused even if it is right, after the work of a wrong one. ``who`` shares the threads with
        others in turn. Raises :class:`RpcError` if too many wait."""
        if len(password) > LONGEST:
            password, stored = "", None
        cost = cost_of(stored or "")
        if not cost:
            stored, cost = None, self._cost
        elif cost not in self._nobodies:  # another hub has other settings
            self._nobodies[cost] = _nobody(cost)
        others = [nobody for other, nobody in self._nobodies.items() if other != cost]
        forms = [_bytes(form) for form in password_forms(password)]  # one, unless another keyboard types it differently
        return await self._run(who, self._verify, stored, forms, others, in_vain)

    def close(self) -> None:
        """Let the threads end: each finishes its hash, and takes no other."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _verify(self, stored: str | None, forms: list[bytes], others: list[str], in_vain: bool) -> Verified:
        against = stored or self._nobodies[self._cost]
        right = any(self._is_right(against, form) for form in forms) and stored is not None
        if right and not in_vain:
            return Verified(True, self._renewed(against, forms[0]))
        for nobody in others:
            for form in forms:
                self._is_right(nobody, form)
        return Verified(right)

    def _is_right(self, stored: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (Argon2Error, InvalidHashError):
            return False

    def _renewed(self, stored: str, password: bytes) -> str | None:
        if not self._hasher.check_needs_rehash(stored):
            return None
        try:
            return self._hasher.hash(password)
        except (Argon2Error, MemoryError) as error:
            log.warning("a password keeps its old hash: %s", error)
            return None

    async def _run(self, who: str, work: Callable[..., T], *arguments: object) -> T:
        each = self._seconds / self._concurrency
        if self._pending * each > QUEUE_SECONDS or self._turns.waiting(who) >= WAITING_EACH:
            seconds = self._come_back(each)
            raise RpcError(
                "unavailable",
                f"too many people are signing in at this moment; try again in {seconds} seconds",
                retry_after=seconds,
            )
        self._pending += 1
        try:
            await self._turns.take(who)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, work, *arguments)
            finally:
                self._turns.give_back()
        finally:
            self._pending -= 1

    def _come_back(self, each: float) -> int:
        """Whole seconds after which one more refused sign-in may try again: a crowd gets one time after the other."""
        now = time.monotonic()
        self._promised = min(max(self._promised, now + self._pending * each) + each, now + LATEST_SECONDS)
        return math.ceil(self._promised - now)

    def _timed(self, work: Callable[..., T], *arguments: object) -> T:
        began = time.monotonic()
        try:
            return work(*arguments)
        finally:
            self._seconds += (time.monotonic() - began - self._seconds) / 10


class _Turns:
    """A number of places. People wait for them in turn, so that many tries of one person delay another by one."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def waiting(self, who: str) -> int:
        """How many of a person wait."""
        return len(self._waiting.get(who, ()))

    async def take(self, who: str) -> None:
        """Wait for a place."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was this one's turn already
                self.give_back()
            raise

    def give_back(self) -> None:
        """Give the place to the next person."""
        while self._waiting:
            who = next(iter(self._waiting))
            turns = self._waiting.pop(who)
            turn = turns.popleft()
            if turns:
                self._waiting[who] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def cost_of(stored: str) -> str:
    """The part of a hash that says what it costs; empty for what is no hash."""
    found = _COST.match(stored)
    return found[0] if found else ""


def _nobody(cost: str) -> str:
    """A hash with this cost that no password has."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode() for size in (16, 32))
    return f"{cost}${salt}${digest}"


def _bytes(password: str) -> bytes:
    """The bytes of a password. A lone surrogate, which JSON can carry, makes it a wrong password like any other."""
    return password.encode("utf-8", "surrogatepass")


def one_time_password() -> str:
    """A one-time password: 100 bits, without characters that look alike."""
    alphabet = "abcdefghijkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(alphabet) for _ in range(5)) for _ in range(4))
