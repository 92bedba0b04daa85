"""Requests to JetStream about its streams (docs.nats.io, "JetStream wire API Reference")."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import nats.errors

from natskit.errors import StateError

if TYPE_CHECKING:
    from natskit.connection import Connection

REQUEST_SECONDS = 3.0
STREAM_NOT_FOUND = 10059
MESSAGE_NOT_FOUND = 10037


class SilenceError(StateError):
    """Nobody has answered in time."""


class JetStreamError(StateError):
    """JetStream has refused; ``code`` is its ``err_code``."""

    def __init__(self, verb: str, error: Mapping[str, Any]) -> None:
        super().__init__(f"{verb}: {error.get('description', 'failed')}")
        self.code = error.get("err_code", 0)


async def api(
    connection: Connection, verb: str, body: Mapping[str, Any], seconds: float = REQUEST_SECONDS
) -> dict[str, Any]:
    """The answer of ``$JS.API.{verb}``.

    Raises :class:`JetStreamError` when it is refused, and :class:`SilenceError` when nobody answers in time.
    """
    try:
        answer = await connection.request(f"$JS.API.{verb}", json.dumps(body).encode(), timeout=seconds)
    except nats.errors.Error as error:
        raise SilenceError(f"{verb}: {type(error).__name__}") from error
    parsed: dict[str, Any] = json.loads(answer.data)
    if "error" in parsed:
        raise JetStreamError(verb, parsed["error"])
    return parsed
