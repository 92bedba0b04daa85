"""Bulk read: reads a bucket, or its newest part, in large batches (``DIRECT.GET``, ADR-31).

Any replica of the stream answers, and one may be behind its leader: it has the same messages up to a point, and nothing
after it. So where a batch ends early, the leader says whether there is more. The caller hears of messages written
meanwhile in another way.

A replica that was away for longer than markers stay may still have a key that was deleted, while nothing in the stream
says so any more. So after a whole bucket was read, the leader says which keys there are (:func:`not_there`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable

import nats.errors

from natskit.bus.connection import Connection
from natskit.bus.jetstream import MESSAGE_NOT_FOUND, JetStreamError, ask
from natskit.bus.permissions import state_service
from natskit.errors import StateError

BATCH, MOST_BYTES, LEAST_BYTES = 10_000, 4 * 1024**2, 128 * 1024
"""The most messages and bytes of one batch. nats-server disconnects a client that lets more than ``nats_max_pending``
wait, and a hub reads all buckets at once: after a read that failed, the caller asks for smaller batches."""
SILENT_SECONDS = 3.0
LIST_SECONDS = 10.0
"""How long the leader may take to list up to 100,000 keys."""
BEHIND_SECONDS, PAUSE = 5.0, 0.05
"""How long a replica may stay behind the leader, and how often to ask again."""

Take = Callable[[str, bytes, bool, int, str], None]
"""Called for each message with its subject, its data, whether it marks a deleted or expired key, its sequence, and the
time at which it was stored."""

_MARKERS = (b"\r\nKV-Operation:", b"\r\nNats-Marker-Reason:")
_ADDED = (
    b"Nats-Subject: ",
    b"Nats-Sequence: ",
    b"Nats-Time-Stamp: ",
    b"Nats-Num-Pending: ",
    b"Nats-Last-Sequence: ",
)
"""The last headers of each message of a batch: nats-server puts them after those that were stored."""
_SUBJECT, _SEQUENCE, _TIME, _, _BEFORE = map(len, _ADDED)


async def read(
    connection: Connection, bucket: str, subjects: str, first: int, last: int, take: Take, batch_bytes: int
) -> None:
    """Hand every message from ``first`` to ``last`` that is still stored to ``take``, in the order of the stream.

    A batch has at most ``batch_bytes``, or one message. Raises :class:`StateError` when one cannot be read.
    """
    loop = asyncio.get_running_loop()
    deadline: float | None = None
    while first <= last:
        batch = _Batch(first, last, take)
        question = {"seq": first, "batch": BATCH, "max_bytes": batch_bytes, "next_by_subj": subjects}
        body = json.dumps(question).encode()
        try:
            await connection.ask_many(state_service("read", bucket), body, batch.add, SILENT_SECONDS)
        except nats.errors.Error as error:
            raise StateError(f"the state ({bucket}) could not be read ({type(error).__name__})") from error
        first, found = batch.last + 1, batch.last >= first
        if batch.has_more or first > last:
            continue
        if not await _is_there(connection, bucket, subjects, first, last):
            return
        if deadline is None or found:
            deadline = loop.time() + BEHIND_SECONDS
        elif loop.time() > deadline:
            raise StateError(f"the state ({bucket}) could not be read: a copy of it lags behind its leader")
        await asyncio.sleep(PAUSE)


class _Batch:
    """The answers to one request."""

    def __init__(self, first: int, until: int, take: Take) -> None:
        self._until = until
        self.last = first - 1
        """The sequence of the last message."""
        self.has_more = False
        self._take = take
        self._before = 0

    def add(self, headers: bytes, data: bytes) -> bool:
        """Whether this answer was the last. Raises :class:`StateError` for one that is none of a batch."""
        if headers.startswith(b"NATS/1.0 "):
            return self._end(headers)
        stored, *lines = headers.rsplit(b"\r\n", len(_ADDED) + 3)
        added = lines[1:-2]  # the first names the stream, and two empty ones end the headers
        if len(added) != len(_ADDED) or not all(map(bytes.startswith, added, _ADDED)):
            raise StateError("nats-server does not say which message it sent")
        subject, sequence, stored_at, _, before = added
        if int(before[_BEFORE:]) != self._before:
            raise StateError(f"a message after {before[_BEFORE:].decode()} was lost on its way")
        self.last = self._before = int(sequence[_SEQUENCE:])
        if self.last <= self._until:
            is_marker = len(stored) > 8 and any(marker in stored for marker in _MARKERS)
            self._take(subject[_SUBJECT:].decode(), data, is_marker, self.last, stored_at[_TIME:].decode())
        return False

    def _end(self, headers: bytes) -> bool:
        status, _, rest = headers[9:].partition(b"\r\n")
        lines = dict(line.split(b": ", 1) for line in rest.split(b"\r\n") if b": " in line)
        match status[:3]:
            case b"404":  # there is none from the first one on
                return True
            case b"204":
                if int(lines[b"Nats-Last-Sequence"]) != self._before:
                    raise StateError("the last messages of a batch were lost on their way")
                self.has_more = int(lines[b"Nats-Num-Pending"]) > 0
                return True
        raise StateError(f"nats-server refuses to read the state: {status.decode(errors='replace')}")


async def _is_there(connection: Connection, bucket: str, subjects: str, first: int, last: int) -> bool:
    """Whether the leader has a message from ``first`` to ``last``. Raises :class:`StateError`."""
    try:
        answer = await ask(connection, "find", bucket, {"seq": first, "next_by_subj": subjects})
    except JetStreamError as error:
        if error.code != MESSAGE_NOT_FOUND:
            raise
        return False
    return int(answer["message"]["seq"]) <= last


async def not_there(connection: Connection, bucket: str, subjects: str, found: Iterable[str]) -> set[str]:
    """The subjects of ``found`` of which the leader has no message. Raises :class:`StateError`."""
    left, listed, pages = set(found), 0, 0
    while left:
        info = await ask(connection, "info", bucket, {"subjects_filter": subjects, "offset": listed}, LIST_SECONDS)
        page = info["state"].get("subjects") or {}
        left -= page.keys()
        listed, pages = listed + len(page), pages + 1
        if not page or listed >= info["total"]:
            break
    # What was deleted meanwhile moves others from a page to the one before.
    return left if pages == 1 else {subject for subject in left if not await _has(connection, bucket, subject)}


async def _has(connection: Connection, bucket: str, subject: str) -> bool:
    try:
        await ask(connection, "find", bucket, {"last_by_subj": subject})
    except JetStreamError as error:
        if error.code != MESSAGE_NOT_FOUND:
            raise
        return False
    return True
