"""Pages of thinned history: many updates of a document, merged, in one message of its stream.

A page is one line of JSON, ``{"after", "until", "rows"}``, a ``\\n``, and the bytes of the updates, one after the
other. It has what was stored after the sequence ``after`` and up to ``until``. A row is ``[sequence, previous, author,
client, number, time, bytes, owners]``: the sequence, the author and so on are those of the last update in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from natskit import json_text
from natskit.bus.document_record import Update

ROW_BYTES = 200
"""The most that a row takes besides its update and its owners."""
OWNER_BYTES = 64
"""The most that an owner takes: a client id, and the id of an account."""


def size_of(update: Update) -> int:
    """The most bytes that an update takes in a page."""
    return ROW_BYTES + len(update.update) + OWNER_BYTES * len(update.owners or {})


def write(after: int, updates: list[Update]) -> bytes:
    """The page of some updates, of which there is at least one."""
    rows = [
        [each.sequence, each.previous, each.author, each.client, each.number, each.time, len(each.update), each.owners]
        for each in updates
    ]
    head = {"after": after, "until": updates[-1].sequence, "rows": rows}
    return json_text.write(head) + b"\n" + b"".join(each.update for each in updates)


def bounds(page: bytes) -> tuple[int, int]:
    """What a page has: after which sequence, and until which."""
    head: Any = json_text.read(page.partition(b"\n")[0])
    return int(head["after"]), int(head["until"])


def read(page: bytes) -> Iterable[Update]:
    """The updates in a page, oldest first."""
    line, _, body = page.partition(b"\n")
    head: Any = json_text.read(line)
    start = 0
    for sequence, previous, author, client, number, time, size, owners in head["rows"]:
        yield Update(author, client, number, previous, time, bytes(body[start : start + size]), sequence, owners)
        start += size
