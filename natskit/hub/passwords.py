"""Passwords: argon2id, in a few threads, and the same work whether or not there is such an account."""

from __future__ import annotations

import asyncio
import secrets
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
WAITING = 32
"""Sign-ins waiting for a thread; more are turned away at once rather than in a minute."""


class Passwords:
    """Hashes and verifies in a pool of its own: one thread takes 64 MiB and 0.1 s, and never the event loop."""

    def __init__(self, settings: PasswordSettings) -> None:
        self._hasher = argon2.PasswordHasher(
            time_cost=settings.time_cost, memory_cost=settings.memory_kib, parallelism=1
        )
        self._pool = ThreadPoolExecutor(settings.argon2_concurrency, thread_name_prefix="argon2")
        self._limit = settings.argon2_concurrency + WAITING
        self._pending = 0
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
        if self._pending >= self._limit:
            raise RpcError("unavailable", "too many people are signing in at this moment; try again in a few seconds")
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        finally:
            self._pending -= 1


def _bytes(password: str) -> bytes:
    """JSON can carry half a character (a lone surrogate), which is a wrong password like any other."""
    return password.encode("utf-8", "surrogatepass")


def one_time_password() -> str:
    """A password to be given to a person once: 100 bits, without characters that are mistaken for each other."""
    alphabet = "abcdefghijkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(alphabet) for _ in range(5)) for _ in range(4))
