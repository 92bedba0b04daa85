"""Read the audit log. Only the control machine may do this; a hub may not.

The stream is read with batched direct gets (nats-server ADR-31), which need no consumer and which any replica answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from natskit.bus.connection import Connection
from natskit.bus.permissions import AUDIT_STREAM
from natskit.bus.request_many import request_many
from natskit.errors import ConnectionLostError

BATCH = 500
BATCH_SECONDS = 10.0
"""How long a batch may take."""
FOLLOW_SECONDS = 0.5
"""Interval between requests for new events."""


async def events(connection: Connection, since: float, *, follow: bool = False) -> AsyncIterator[dict[str, Any]]:
    """Yield the events since a time (Unix seconds), oldest first. With ``follow``, continue with new events forever.

    Raises :class:`ConnectionLostError`.
    """
    start: dict[str, Any] = {"start_time": datetime.fromtimestamp(since, UTC).isoformat()}
    while True:
        found, whole = await _batch(connection, start | {"next_by_subj": "audit.>", "batch": BATCH})
        for sequence, event in found:
            start = {"seq": sequence + 1}
            yield event
        if whole and not follow:
            return
        if whole:
            await asyncio.sleep(FOLLOW_SECONDS)


async def _batch(connection: Connection, query: Mapping[str, Any]) -> tuple[list[tuple[int, dict[str, Any]]], bool]:
    """The next events with their sequences, and whether these are the last; the server decides where a batch ends."""
    subject, body = f"$JS.API.DIRECT.GET.{AUDIT_STREAM}", json.dumps(query).encode()
    try:
        answers = await request_many(connection, subject, body, seconds=BATCH_SECONDS, is_last=_has_status)
    except nats.errors.NoRespondersError:
        raise ConnectionLostError(
            f"the stream {AUDIT_STREAM} does not answer: deploy to create it, or wait until JetStream is back"
        ) from None
    if not answers or not _has_status(answers[-1]):
        raise ConnectionLostError(f"the stream {AUDIT_STREAM} did not answer within {BATCH_SECONDS:g} s")
    *messages, end = answers
    found = [(int((message.headers or {})["Nats-Sequence"]), _event(message.data)) for message in messages]
    headers = end.headers or {}
    match headers["Status"]:
        case "204":
            return found, int(headers.get("Nats-Num-Pending", "0")) == 0
        case "404":
            return found, True
        case status:
            raise ConnectionLostError(f"the stream {AUDIT_STREAM}: {status} {headers.get('Description', '')}")


def _has_status(message: Msg) -> bool:
    """Whether a message ends a batch, with its outcome as status; events have none."""
    return "Status" in (message.headers or {})


def _event(data: bytes) -> dict[str, Any]:
    """Decode an event. An attacker in a hub can write arbitrary data to this stream."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    return event if isinstance(event, dict) else {"kind": "unreadable", "outcome": "failed", "account": "-"}
