"""Reading a whole bucket, message by message, as a hub may: by ``STREAM.MSG.GET``, which the stream's leader answers.

A message names no next one, so the sequences are divided among readers who each go through their part; who has come
to the end of it takes half of the longest that is left. What is written meanwhile the caller hears of otherwise.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from natskit.connection import Connection
from natskit.jetstream import MESSAGE_NOT_FOUND, JetStreamError, api
from natskit.program import cancel

READERS = 64
"""Requests on their way at the same time; nats-server lets 10,000 wait (``request_queue_limit``)."""
SHORTEST = 16
"""Sequences of a part that is not divided any more: each division costs a request that may find nothing."""

Take = Callable[[str, bytes, dict[str, str], int], None]
"""What gets each message: its subject, data, headers and sequence."""


@dataclass
class _Part:
    """The sequences that one reader has yet to ask for, both included."""

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
        # Others have taken a half of it meanwhile, perhaps: they read what is beyond.
        if message is None or message["seq"] > part.last:
            break
        part.first = message["seq"] + 1
        headers = _headers(base64.b64decode(message.get("hdrs", "")))
        take(message["subject"], base64.b64decode(message.get("data", "")), headers, message["seq"])
    part.first = part.last + 1


def _half_of_longest(parts: list[_Part]) -> _Part | None:
    """Half of what is left of the longest part, which is in ``parts`` from now on; nothing where that is too short."""
    parts[:] = [part for part in parts if part.length > 0]
    longest = max(parts, key=lambda part: part.length, default=None)
    if longest is None or longest.length < SHORTEST:
        return None
    half = _Part(longest.first + longest.length // 2, longest.last)
    longest.last = half.first - 1
    parts.append(half)
    return half


async def _message(connection: Connection, stream: str, sequence: int, subjects: str) -> dict[str, Any] | None:
    """The first message from a sequence on; nothing if there is none."""
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
