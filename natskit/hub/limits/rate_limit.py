"""Rate limits for changes that affect other people: sharing disconnects the other account, renaming notifies all
members.

Every hub counts the changes it sees in the state, whichever hub wrote them, so a caller gains nothing by asking another
hub. A hub that restarts starts counting again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from natskit.rpc import RpcError

WINDOW_SECONDS = 60.0
MOST_KEYS = 10_000


class RateLimit:
    """Allows ``most`` changes with the same key in a minute."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._seen: dict[str, deque[float]] = {}

    def note(self, key: str) -> None:
        """Count a change."""
        now = self._clock()
        if len(self._seen) >= MOST_KEYS:
            self._seen = {k: times for k, times in self._seen.items() if times[-1] > now - WINDOW_SECONDS}
        self._seen.setdefault(key, deque(maxlen=self._most)).append(now)

    def wait(self, key: str) -> float:
        """Seconds until the next change may happen; 0 if it may now."""
        times = self._seen.get(key)
        if times is None or len(times) < self._most:
            return 0.0
        return max(0.0, times[0] + WINDOW_SECONDS - self._clock())

    def check(self, key: str, what: str) -> None:
        """Raises :class:`RpcError` if the next change may not happen yet. ``what`` says what was done too often."""
        seconds = math.ceil(self.wait(key))
        if seconds > 0:
            raise RpcError(
                "limit", f"{what} too often in the last minute; try again in {seconds} s", retry_after=seconds
            )
