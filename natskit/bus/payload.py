"""The bytes of messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nats.aio.msg import Msg

JSON_HEADER = "Natskit-Json"
"""Says that a message is JSON of this many bytes, and bytes of a file after it. These are never put into JSON: base64
would make them a third longer, and cost more time than all else together."""


def to_json(value: Any) -> bytes:
    """Encode a JSON message that is not JSON-RPC."""
    return json.dumps(value, separators=(",", ":")).encode()


def headers_size(headers: Mapping[str, Any]) -> int:
    """The bytes that headers add to a message (ADR-4)."""
    lines = (len(key.strip().encode()) + len(value.strip().encode()) + 4 for key, value in headers.items())
    return len("NATS/1.0\r\n") + sum(lines) + len("\r\n")


class Pieces:
    """The bytes of a message, or of the data in one, in several pieces, which nothing joins before they are sent."""

    def __init__(self, *pieces: bytes | memoryview) -> None:
        self._pieces = pieces
        self._size = sum(map(len, pieces))

    def __len__(self) -> int:
        """How many bytes they have together."""
        return self._size

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """The pieces."""
        return iter(self._pieces)


def with_data(body: bytes, data: bytes | Pieces) -> tuple[bytes | Pieces, dict[str, str] | None]:
    """The payload and the headers of a JSON message with data after it."""
    if not data:
        return body, None
    more = data if isinstance(data, Pieces) else (data,)
    return Pieces(body, *more), {JSON_HEADER: str(len(body))}


def json_and_data(message: Msg) -> tuple[bytes, memoryview]:
    """A message's JSON, and the data after it."""
    said = (message.headers or {}).get(JSON_HEADER, "")
    whole = memoryview(message.data)
    if not said.isascii() or not said.isdecimal() or len(said) > 9:
        return message.data, whole[:0]
    return bytes(whole[: int(said)]), whole[int(said) :]
