"""How many bytes each account may store in documents, so that one cannot fill the streams of all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from natskit.rpc import RpcError

HOUR = 3600.0
MOST_ACCOUNTS = 10_000


class Rate:
    """What each account has stored through this keeper, as the time in which it may."""

    def __init__(self, hourly: int, clock: Callable[[], float] = time.monotonic) -> None:
        """``hourly`` bytes are what an account may store at once, and an hour in the long run."""
        self._hourly = hourly
        self._clock = clock
        self._paid: dict[str, float] = {}
        """When each account may store as much as one that has stored nothing."""

    def check(self, account: str) -> None:
        """Raises :class:`RpcError` if the account has to wait."""
        wait = self._paid.get(account, 0.0) - self._clock() - HOUR
        if wait >= 0:
            seconds = math.ceil(wait) + 1
            raise RpcError(
                "unavailable",
                f"you have stored {self._hourly} bytes in documents within an hour, which is the most "
                f"(keeper_account_bytes): go on in {seconds} s, or ask the operator to raise it",
                retry_after=seconds,
                limit=self._hourly,
            )

    def charge(self, account: str, size: int) -> None:
        """The account has stored something."""
        now = self._clock()
        if len(self._paid) >= MOST_ACCOUNTS:
            self._paid = {each: until for each, until in self._paid.items() if until > now}
        self._paid[account] = max(now, self._paid.get(account, 0.0)) + size * HOUR / self._hourly
