"""A fair queue for the requests that wait, and a scheduler for the start of calls.

Each caller has a queue of its own, and the queues are served in turn: in a single queue, a caller with one request
would wait behind everything that a flooding caller has sent.
"""

from __future__ import annotations

import asyncio
from collections import deque

from nats.aio.msg import Msg

from natskit.hub.limits.admission import LARGEST_REQUEST, MOST_CALLERS

WAITING_EACH = 10_000
"""Requests of one caller that may wait: fewer than its burst, so that a flood is noticed as it arrives."""
BYTES_EACH = 32 * LARGEST_REQUEST
BYTES = 128 * LARGEST_REQUEST
"""Bytes of all callers together. Beyond that, each caller may have one request of the largest size."""

QUICK_SECONDS = 0.001
"""A call is quick if it took less the last time."""
QUICK_EACH_TURN = 0.002
"""Seconds of quick calls that may start in one turn of the event loop."""


class StartScheduler:
    """Decides when calls start: calls that may be long, one in each turn of the event loop, so that connecting clients
    are served in between; calls that were quick the last time, several together. Keys name the caller and the
    method."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()
        self._took: dict[tuple[str, str], float] = {}
        self._begun = 0.0
        """Seconds that the quick calls started in this turn will take."""

    def may_start(self, key: tuple[str, str]) -> bool:
        """Whether the call may start now: it was quick the last time, and there is time left in this turn."""
        seconds = self._took.get(key, QUICK_SECONDS)
        if seconds >= QUICK_SECONDS or self._begun + seconds > QUICK_EACH_TURN:
            return False
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._begun += seconds
        return True

    async def wait(self, key: tuple[str, str]) -> None:
        """Return when the call may start."""
        if not self.may_start(key):
            async with self._one:
                await asyncio.sleep(0)

    def note(self, key: tuple[str, str], seconds: float, *, failed: bool) -> None:
        """A call has ended. A quick failure says nothing about the next call."""
        if failed and seconds < QUICK_SECONDS:
            return
        if len(self._took) >= MOST_CALLERS:
            self._took.clear()
        self._took[key] = seconds

    def _next_turn(self) -> None:
        self._begun = 0.0


class _CallerQueue:
    def __init__(self) -> None:
        self.messages: deque[Msg] = deque()
        self.size = 0


class FairQueue(asyncio.Queue[Msg]):
    """A queue of messages that serves the subjects in turn."""

    def _init(self, maxsize: int) -> None:  # noqa: ARG002
        self._queues: dict[str, _CallerQueue] = {}
        self._count = 0
        self._size = 0

    def has_room(self, message: Msg) -> bool:
        """Whether a message may wait."""
        row = self._queues.get(message.subject)
        if row is None:
            return True
        size = row.size + len(message.data)
        most = BYTES_EACH if self._size < BYTES else LARGEST_REQUEST
        return len(row.messages) < WAITING_EACH and size <= most

    def qsize(self) -> int:
        """How many messages wait."""
        return self._count

    def empty(self) -> bool:
        """Whether no message waits."""
        return not self._count

    def _put(self, item: Msg) -> None:
        row = self._queues.get(item.subject)
        if row is None:
            row = self._queues[item.subject] = _CallerQueue()
        row.messages.append(item)
        row.size += len(item.data)
        self._size += len(item.data)
        self._count += 1

    def _get(self) -> Msg:
        subject = next(iter(self._queues))
        row = self._queues.pop(subject)
        message = row.messages.popleft()
        row.size -= len(message.data)
        if row.messages:
            self._queues[subject] = row
        self._size -= len(message.data)
        self._count -= 1
        return message
