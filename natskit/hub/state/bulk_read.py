"""Bulk read: reads a bucket, or its newest part, message by message with ``STREAM.MSG.GET``, which the stream's leader
answers.

A hub may make no consumer, and a message does not name the next one. So the sequences are divided among readers, each
of which reads its part. A reader that has finished takes half of the longest remaining part. The caller hears of
messages written meanwhile in another way.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from natskit.bus.connection import Connection
from natskit.bus.jetstream import MESSAGE_NOT_FOUND, JetStreamError, api
from natskit.process.lifecycle import cancel

READERS = 64
"""Requests in flight at the same time. nats-server queues 10,000 (``request_queue_limit``)."""
SHORTEST = 16
"""Parts of fewer sequences are not divided: each division costs a request that may find nothing."""

Take = Callable[[str, bytes, dict[str, str], int, str], None]
"""Called for each message with its subject, data, headers, sequence, and the time at which it was stored."""


@dataclass
class _Part:
    """The sequences that one reader has yet to read, both included."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


async def read(connection: Connection, stream: str, subjects: str, first: int, last: int, take: Take) -> None:
    """Hand every message from ``first`` to ``last`` that is still stored to ``take``, in no order.

    Raises :class:`StateError` when one cannot be read.
    """
    whole = _Part(first, last)
    parts = [whole]

    async def go_through(part: _Part | None) -> None:
        while part is not None:
            await _read_part(connection, stream, subjects, part, take)
            part = _half_of_longest(parts)

    readers = [asyncio.ensure_future(go_through(whole))]
    readers += [asyncio.ensure_future(go_through(part)) for _ in range(READERS) if (part := _half_of_longest(parts))]
    try:
        await asyncio.gather(*readers)
    finally:
        await cancel(readers)


async def _read_part(connection: Connection, stream: str, subjects: str, part: _Part, take: Take) -> None:
    while part.length > 0:
        message = await _message(connection, stream, part.first, subjects)
        # Another reader may have taken half of it meanwhile.
        if message is None or message["seq"] > part.last:
            break
        part.first = message["seq"] + 1
        headers = _headers(base64.b64decode(message.get("hdrs", "")))
        data = base64.b64decode(message.get("data", ""))
        take(message["subject"], data, headers, message["seq"], message["time"])
    part.first = part.last + 1


def _half_of_longest(parts: list[_Part]) -> _Part | None:
    """Half of the longest remaining part, added to ``parts``; ``None`` if that is too short."""
    parts[:] = [part for part in parts if part.length > 0]
    longest = max(parts, key=lambda part: part.length, default=None)
    if longest is None or longest.length < SHORTEST:
        return None
    half = _Part(longest.first + longest.length // 2, longest.last)
    longest.last = half.first - 1
    parts.append(half)
    return half


async def _message(connection: Connection, stream: str, sequence: int, subjects: str) -> dict[str, Any] | None:
    """The first message at or after a sequence; ``None`` if there is none."""
    question = {"seq": sequence, "next_by_subj": subjects}
    try:
        answer = await api(connection, f"STREAM.MSG.GET.{stream}", question)
    except JetStreamError as error:
        if error.code == MESSAGE_NOT_FOUND:
            return None
        raise
    found: dict[str, Any] = answer["message"]
    return found


def _headers(block: bytes) -> dict[str, str]:
    """The headers of a message as it was stored; the first line is ``NATS/1.0``."""
    pairs = (line.partition(":") for line in block.decode(errors="replace").split("\r\n")[1:])
    return {name: value.strip() for name, _, value in pairs if name}
