"""One request, many answers: the pattern "Request Many" of the NATS clients (ADR-47).

The package natsext does this for nats-py, but measures by the wall clock, ends quietly when the connection is lost,
and does not hand out the message that ends the answers, which carries their status in JetStream's batches (ADR-31).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import nats.errors
from nats.aio.msg import Msg

from natskit.bus.connection import Connection

NO_RESPONDERS = "503"


async def request_many(
    connection: Connection,
    subject: str,
    body: bytes,
    *,
    seconds: float,
    stall: float | None = None,
    max_messages: int | None = None,
    is_last: Callable[[Msg], bool] | None = None,
) -> list[Msg]:
    """Send one request and return the answers in the order they arrived; an empty list if there are none.

    Waiting ends ``seconds`` after the request, or earlier: after ``max_messages`` answers, with the answer for which
    ``is_last`` is true (it is the last of the list), or when no other answer follows for ``stall`` seconds. The stall
    counts from the first answer on. ``is_last`` is called once with each answer.

    Raises :class:`nats.errors.NoRespondersError` at once if nobody listens, and :class:`nats.errors.Error` if the
    request cannot be sent. An answer that is lost with the connection is missing from the list.
    """
    answers: list[Msg] = []
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = connection.inbox_for(subject)
    subscription = await connection.subscribe(inbox, cb=arrived.put)
    try:
        await connection.publish(subject, body, reply=inbox)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    async with asyncio.timeout(stall if answers else None):
                        message = await arrived.get()
                    if (message.headers or {}).get("Status") == NO_RESPONDERS:
                        raise nats.errors.NoRespondersError
                    answers.append(message)
                    if len(answers) == max_messages or (is_last is not None and is_last(message)):
                        break
    finally:
        with contextlib.suppress(nats.errors.Error):  # the connection may be closed
            await subscription.unsubscribe()
    return answers
