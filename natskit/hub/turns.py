"""The requests that wait for a hub, each caller's in a row of its own, which take turns, and when calls begin.

In one row for all, whoever asks little would wait behind all that somebody has sent who floods the hub.
"""

from __future__ import annotations

import asyncio
from collections import deque

from nats.aio.msg import Msg

from natskit.hub.admission import LARGEST_REQUEST, MOST_CALLERS

WAITING_EACH = 10_000
"""Requests of one caller that may wait: fewer than one may ask at once, so that a flood is seen as it arrives."""
BYTES_EACH = 32 * LARGEST_REQUEST
BYTES = 128 * LARGEST_REQUEST
"""Of all callers together; beyond, each may have one request that is as long as it may be."""

QUICK_SECONDS = 0.001
"""A call that took less, the last time, is quick."""
QUICK_EACH_TURN = 0.002
"""Seconds of quick calls that may begin in one turn of the event loop."""


class Beginnings:
    """When calls begin: those that may be long one in each turn of the event loop, so that whoever connects gets in
    between; those that were quick the last time, a few together. Keys name who calls what."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()
        self._took: dict[tuple[str, str], float] = {}
        self._begun = 0.0
        """Seconds that the quick calls of this turn will take."""

    async def wait(self, key: tuple[str, str]) -> None:
        """Return when the call may begin."""
        seconds = self._took.get(key, QUICK_SECONDS)
        if seconds < QUICK_SECONDS and self._begun + seconds <= QUICK_EACH_TURN:
            if not self._begun:
                asyncio.get_running_loop().call_soon(self._next_turn)
            self._begun += seconds
            return
        async with self._one:
            await asyncio.sleep(0)

    def note(self, key: tuple[str, str], seconds: float, *, failed: bool) -> None:
        """A call has ended. What fails quickly says nothing about the next one."""
        if failed and seconds < QUICK_SECONDS:
            return
        if len(self._took) >= MOST_CALLERS:
            self._took.clear()
        self._took[key] = seconds

    def _next_turn(self) -> None:
        self._begun = 0.0


class _Row:
    def __init__(self) -> None:
        self.messages: deque[Msg] = deque()
        self.size = 0


class Turns(asyncio.Queue[Msg]):
    """A queue of messages; of the subjects that have any, each has its turn."""

    def _init(self, maxsize: int) -> None:  # noqa: ARG002
        self._rows: dict[str, _Row] = {}
        self._count = 0
        self._size = 0

    def has_room(self, message: Msg) -> bool:
        """Whether a message may wait."""
        row = self._rows.get(message.subject)
        if row is None:
            return True
        size = row.size + len(message.data)
        most = BYTES_EACH if self._size < BYTES else LARGEST_REQUEST
        return len(row.messages) < WAITING_EACH and size <= most

    def qsize(self) -> int:
        """How many wait."""
        return self._count

    def empty(self) -> bool:
        """Whether none waits."""
        return not self._count

    def _put(self, item: Msg) -> None:
        row = self._rows.get(item.subject)
        if row is None:
            row = self._rows[item.subject] = _Row()
        row.messages.append(item)
        row.size += len(item.data)
        self._size += len(item.data)
        self._count += 1

    def _get(self) -> Msg:
        subject = next(iter(self._rows))
        row = self._rows.pop(subject)
        message = row.messages.popleft()
        row.size -= len(message.data)
        if row.messages:
            self._rows[subject] = row
        self._size -= len(message.data)
        self._count -= 1
        return message
