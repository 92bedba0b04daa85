"""One request, one answer; :mod:`natskit.bus.request_many` has the request with many answers."""

from __future__ import annotations

from collections.abc import Mapping

import nats.errors

from natskit.bus.connection import Connection
from natskit.bus.payload import Pieces, headers_size, json_and_data, with_data
from natskit.errors import AbsentError, AnswerLostError, ConnectionLostError
from natskit.rpc import RpcError


def check_size(connection: Connection, body: bytes | Pieces, headers: Mapping[str, str] | None = None) -> None:
    """Raises :class:`RpcError` if a request is larger than the server accepts, before any of it is sent."""
    size = len(body) + (headers_size(headers) if headers else 0)
    if size > connection.max_payload:
        raise RpcError(
            "limit",
            f"the request has {size:,} bytes, and nats-server takes at most {connection.max_payload:,} in one "
            "message (nats_max_payload): send it in parts",
            limit=connection.max_payload,
        )


async def request(connection: Connection, subject: str, body: bytes, wait: float) -> bytes:
    """Send one request and return its answer, which has to arrive within ``wait`` seconds.

    Raises :class:`AbsentError` if nobody listens, :class:`ConnectionLostError` if no answer arrives in time,
    :class:`AnswerLostError` if the connection breaks first, :class:`RpcError` if the request is too large.
    """
    return (await request_with_data(connection, subject, body, b"", wait))[0]


async def request_with_data(
    connection: Connection, subject: str, body: bytes, data: bytes | Pieces, wait: float
) -> tuple[bytes, memoryview]:
    """A :func:`request` with data after its JSON. Returns the JSON of the answer, and the data after that."""
    payload, headers = with_data(body, data)
    check_size(connection, payload, headers)
    try:
        answer = await connection.ask(subject, payload, wait, headers)
    except nats.errors.NoRespondersError:
        raise AbsentError(f"nobody answers {subject}: it is not running, or not yet") from None
    except nats.errors.TimeoutError:
        raise ConnectionLostError(f"no answer on {subject} within {wait:g} s") from None
    except nats.errors.ConnectionReconnectingError:
        raise AnswerLostError(
            f"the connection was lost before {subject} answered; the request may have been carried out"
        ) from None
    except nats.errors.Error as error:
        raise ConnectionLostError(f"{subject}: {error}") from error
    return json_and_data(answer)
