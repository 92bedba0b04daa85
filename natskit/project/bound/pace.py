"""How often the changes of a file come into its document.

Each is stored for ever, with its author. A program that writes its file again every second would fill its project's
part of the documents.
"""

from __future__ import annotations

import math
import random

FREE = 60.0
"""Changes that come at once. Beyond these, one a minute does in the long run."""
DRAIN_SECONDS = 60.0
CHANGE_BYTES = 16 * 1024
"""How much text of a change counts as one more change."""
DOUBLINGS = 9.0
"""The longest pause has so many doublings: 512 s. The bucket holds twice as many, so that it is not empty after one."""
SHOWN_SECONDS = 2.0
"""Pauses from this on are told to who has the document open."""

FIRST_AGAIN, LONGEST_AGAIN = 2.0, 30.0
"""After how many seconds to try again when no keeper answers: first, and at most."""


class Pace:
    """A leaky bucket of the changes of one file. The pause doubles with each change beyond the free ones."""

    def __init__(self) -> None:
        self._level, self._last = 0.0, 0.0

    def wait(self, now: float) -> float:
        """How many seconds the next change has to wait; 0 if none."""
        beyond = self._at(now) - FREE
        if beyond < 0:
            return 0.0
        return max(0.0, self._last + math.exp2(min(beyond, DOUBLINGS)) - now)

    def took(self, now: float, size: int) -> None:
        """A change came into the document that brings ``size`` characters."""
        self._level, self._last = min(self._at(now) + 1 + size / CHANGE_BYTES, FREE + 2 * DOUBLINGS), now

    def _at(self, now: float) -> float:
        return max(0.0, self._level - (now - self._last) / DRAIN_SECONDS)


def again(failures: int, asked: float = 0.0) -> float:
    """After how many seconds to try again what failed so often in a row, at least those that the keeper ``asked`` for.

    Not all documents of all projects at the same moment: that would be a load of its own when keepers come back.
    """
    longest = min(FIRST_AGAIN * 2.0 ** min(failures - 1, 10), LONGEST_AGAIN)
    return max(asked, longest * random.SystemRandom().uniform(0.5, 1.0))
