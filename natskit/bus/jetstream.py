"""Requests to JetStream about its streams (docs.nats.io, "JetStream wire API Reference")."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import nats.errors

from natskit.bus.permissions import StateVerb, state_service
from natskit.errors import StateError

if TYPE_CHECKING:
    from natskit.bus.connection import Connection

REQUEST_SECONDS = 3.0
STREAM_NOT_FOUND = 10059
MESSAGE_NOT_FOUND = 10037
MARKER_SECONDS = 3600
"""How long the marker of a deleted key of a KV bucket is kept. Hubs hear of it when it is stored; one that was away
for longer than half of this time reads the whole bucket again."""


class SilenceError(StateError):
    """JetStream did not answer in time."""


class NobodyError(SilenceError):
    """Nobody takes the request: the NATS account has no JetStream, or does not offer this service."""


class JetStreamError(StateError):
    """JetStream refused the request; ``code`` is its ``err_code``."""

    def __init__(self, verb: str, error: Mapping[str, Any]) -> None:
        super().__init__(f"{verb}: {error.get('description', 'failed')}")
        self.code = error.get("err_code", 0)


async def api(
    connection: Connection, verb: str, body: Mapping[str, Any], seconds: float = REQUEST_SECONDS
) -> dict[str, Any]:
    """Send a request to ``$JS.API.{verb}`` and return the answer.

    Raises :class:`JetStreamError` if JetStream refuses it, and :class:`SilenceError` if no answer arrives in time.
    """
    return await _ask(connection, f"$JS.API.{verb}", verb, body, seconds)


async def ask(
    connection: Connection, verb: StateVerb, bucket: str, body: Mapping[str, Any], seconds: float = REQUEST_SECONDS
) -> dict[str, Any]:
    """The same for a bucket of the state, whose NATS account STATE offers these services to hubs and keepers.

    Raises as :func:`api`.
    """
    subject = state_service(verb, bucket)
    return await _ask(connection, subject, subject, body, seconds)


async def _ask(
    connection: Connection, subject: str, what: str, body: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    try:
        answer = await connection.request(subject, json.dumps(body).encode(), timeout=seconds)
    except nats.errors.NoRespondersError as error:
        raise NobodyError(f"{what}: nobody answers") from error
    except nats.errors.Error as error:
        raise SilenceError(f"{what}: {type(error).__name__}") from error
    parsed: dict[str, Any] = json.loads(answer.data)
    if "error" in parsed:
        raise JetStreamError(what, parsed["error"])
    return parsed
