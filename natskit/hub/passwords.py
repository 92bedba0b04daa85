"""Passwords: argon2id, in a few threads, and the same work whether or not there is such an account."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import argon2
from argon2.exceptions import Argon2Error, InvalidHashError

from natskit.hub.program import PasswordSettings
from natskit.rpc import RpcError

T = TypeVar("T")

SHORTEST = 10
LONGEST = 1024
"""Characters. Length is what counts (NIST SP 800-63B), but a megabyte would be work for nothing."""
QUEUE_SECONDS = 6.0
"""A sign-in waits this long for its turn, first come, first served; whoever would wait longer is turned away at once,
and told when to come back. Clients wait 10 s for an answer."""
LATEST_SECONDS = 60.0
"""Nobody is told to come back later than this."""
FIRST_GUESS_SECONDS = 0.1
"""What a password is taken to cost until some were looked at."""


class Passwords:
    """Hashes and verifies in a pool of its own: one thread takes 64 MiB and 0.1 s, and never the event loop."""

    def __init__(self, settings: PasswordSettings) -> None:
        self._hasher = argon2.PasswordHasher(
            time_cost=settings.time_cost, memory_cost=settings.memory_kib, parallelism=1
        )
        self._pool = ThreadPoolExecutor(settings.argon2_concurrency, thread_name_prefix="argon2")
        self._concurrency = settings.argon2_concurrency
        self._cost = FIRST_GUESS_SECONDS
        self._pending = 0
        self._promised = 0.0
        """When the last one of those who were turned away was told to come back, by :func:`time.monotonic`."""
        self._nobody = self._hasher.hash(secrets.token_urlsafe(16))

    async def hash(self, password: str) -> str:
        """The hash to store. Raises :class:`RpcError` for a password that is too short or too long."""
        if not SHORTEST <= len(password) <= LONGEST:
            raise RpcError("invalid_params", f"a password has {SHORTEST} to {LONGEST} characters")
        return await self._run(self._hasher.hash, _bytes(password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether the password is right; without a stored hash the same work is done, and the answer is no."""
        if len(password) > LONGEST:
            password, stored = "", None
        right = await self._run(self._verify, stored or self._nobody, _bytes(password))
        return right and stored is not None

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _verify(self, stored: str, password: bytes) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (Argon2Error, InvalidHashError):
            return False

    async def _run(self, work: Callable[..., T], *arguments: str | bytes) -> T:
        each = self._cost / self._concurrency
        if self._pending * each > QUEUE_SECONDS:
            seconds = self._come_back(each)
            raise RpcError(
                "unavailable",
                f"too many people are signing in at this moment; try again in {seconds} seconds",
                retry_after=seconds,
            )
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, work, *arguments)
        finally:
            self._pending -= 1

    def _come_back(self, each: float) -> int:
        """Whole seconds until the turn of one more who is turned away: a crowd is given one turn after the other."""
        now = time.monotonic()
        self._promised = min(max(self._promised, now + self._pending * each) + each, now + LATEST_SECONDS)
        return math.ceil(self._promised - now)

    def _timed(self, work: Callable[..., T], *arguments: str | bytes) -> T:
        began = time.monotonic()
        try:
            return work(*arguments)
        finally:
            self._cost += (time.monotonic() - began - self._cost) / 10


def _bytes(password: str) -> bytes:
    """JSON can carry half a character (a lone surrogate), which is a wrong password like any other."""
    return password.encode("utf-8", "surrogatepass")


def one_time_password() -> str:
    """A password to be given to a person once: 100 bits, without characters that are mistaken for each other."""
    alphabet = "abcdefghijkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(alphabet) for _ in range(5)) for _ in range(4))
