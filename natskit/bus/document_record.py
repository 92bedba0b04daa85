"""Stored updates of documents: one line of JSON, which says who made the update, and the bytes of the update.

This is also the payload of the events that nats-server publishes of them (docs/reference/documents.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from natskit import json_text

SEVERAL = "several"
"""The author of an old update that was merged of those of several."""
LEFT_OUT = "the project keeps as many documents and files the same as it may (runner_project_documents)"
"""Why a document is not kept the same as a file at its path, in words for people."""
OWN_BYTES = 512
"""The most that a record takes besides its update."""


@dataclass(frozen=True, slots=True)
class Update:
    """One stored update of a document."""

    author: str
    """The id of the account, or ``admin``."""
    client: int
    """The copy of the document that made it: a Yjs client id."""
    number: int
    """How many updates this copy had sent, with this one."""
    previous: int
    """The sequence of the update before it in the document; 0 for the first."""
    time: int
    """Milliseconds since 1970, by the keeper's clock."""
    update: bytes
    """In Yjs' encoding, version 1."""
    sequence: int = 0
    """Its place in the stream; 0 before it is stored."""
    owners: Mapping[str, str] | None = None
    """Of an update of several authors, merged because it is old: the author by Yjs client id, of what was inserted."""


def encode(update: Update) -> bytes:
    """The payload of a message that stores an update."""
    head = {
        "author": update.author,
        "client": update.client,
        "number": update.number,
        "previous": update.previous,
        "time": update.time,
    }
    return json_text.write(head) + b"\n" + update.update


def decode(payload: bytes, headers: Mapping[str, str] | None) -> Update:
    """The update in a message, whose header ``Nats-Sequence`` is its place. Raises :class:`ValueError`."""
    head, _, body = payload.partition(b"\n")
    fields: Any = json_text.read(head)
    try:
        return Update(
            author=str(fields["author"]),
            client=int(fields["client"]),
            number=int(fields["number"]),
            previous=int(fields["previous"]),
            time=int(fields["time"]),
            update=bytes(body),
            sequence=int((headers or {})["Nats-Sequence"]),
        )
    except (KeyError, TypeError):
        raise ValueError("the message is not a stored update") from None
