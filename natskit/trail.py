"""Reading the audit: what the control machine may, and no hub.

The stream is read by batches of direct gets (nats-server ADR-31): no consumer is made, and any replica answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from nats.aio.msg import Msg

from natskit.connection import Connection
from natskit.errors import ConnectionLostError
from natskit.permissions import AUDIT_STREAM

BATCH = 500
REQUEST_SECONDS = 5.0
FOLLOW_SECONDS = 0.5
"""How often the stream is asked for what is new."""


async def events(connection: Connection, since: float, *, follow: bool = False) -> AsyncIterator[dict[str, Any]]:
    """The events since a time (Unix seconds), oldest first; with ``follow`` those to come as well, without an end.

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
    """The next events with their sequences, and whether there are no more; the server ends a batch when it likes."""
    inbox = connection.inbox_for("")
    answers: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = await connection.subscribe(inbox, cb=answers.put)
    found: list[tuple[int, dict[str, Any]]] = []
    try:
        await connection.publish(f"$JS.API.DIRECT.GET.{AUDIT_STREAM}", json.dumps(query).encode(), reply=inbox)
        while True:
            async with asyncio.timeout(REQUEST_SECONDS):
                message = await answers.get()
            headers = message.headers or {}
            match headers.get("Status"):
                case None:
                    found.append((int(headers["Nats-Sequence"]), _event(message.data)))
                case "204":
                    return found, int(headers.get("Nats-Num-Pending", "0")) == 0
                case "404":
                    return found, True
                case "503":
                    raise ConnectionLostError(
                        f"the stream {AUDIT_STREAM} does not answer: a deploy makes it, or JetStream is away"
                    )
                case status:
                    raise ConnectionLostError(f"the stream {AUDIT_STREAM}: {status} {headers.get('Description', '')}")
    except TimeoutError:
        raise ConnectionLostError(f"the stream {AUDIT_STREAM} did not answer within {REQUEST_SECONDS:g} s") from None
    finally:
        await subscription.unsubscribe()


def _event(data: bytes) -> dict[str, Any]:
    """An event; whoever took a hub can write anything here."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    return event if isinstance(event, dict) else {"kind": "unreadable", "outcome": "failed", "account": "-"}
