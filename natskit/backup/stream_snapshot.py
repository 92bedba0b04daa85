"""A stream as one file, by nats-server's own snapshot, and back (docs.nats.io, "JetStream wire API Reference").

nats-server takes a snapshot online: it contains exactly the state that the server announces at its start, without later
writes. Its bytes are those of ``stream.tar.s2`` of `nats stream backup`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from natskit.bus.connection import Connection
from natskit.bus.jetstream import JetStreamError, SilenceError, api
from natskit.errors import BackupError

CHUNK_BYTES = 128 * 1024
"""nats-server's own default, and below its smallest useful max_payload."""
WINDOW_BYTES = 4 * 1024**2
"""How much nats-server sends ahead of acknowledgements. nats-py drops what waits beyond 64 MiB."""
START_SECONDS = 60.0
"""Until a snapshot begins: nats-server first checks the checksum of each message, and writes what is in its cache."""
SILENCE_SECONDS = 15.0
"""nats-server itself gives up after 5 s without an acknowledgement, and says so."""
END_SECONDS = 300.0
"""Until nats-server has unpacked a restored stream and read it."""
LIST_SECONDS = 10.0


class UnansweredError(BackupError):
    """nats-server did not answer, or gave up on a restore since the next piece came too slowly."""


@dataclass(frozen=True)
class Snapshot:
    """The configuration and the state of a stream at the start of its snapshot, in nats-server's words."""

    config: dict[str, Any]
    state: dict[str, Any]


async def streams(connection: Connection) -> list[dict[str, Any]]:
    """All streams of the NATS account, as nats-server describes them. Raises :class:`BackupError`."""
    found: list[dict[str, Any]] = []
    while True:
        page = await api(connection, "STREAM.LIST", {"offset": len(found)}, LIST_SECONDS)
        if missing := page.get("missing"):
            raise BackupError(f"no server answers for {', '.join(missing)}: see `natskit status`, then try again")
        found += page["streams"] or []
        if not page["streams"] or len(found) >= page["total"]:
            return found


async def take(connection: Connection, stream: str, write: Callable[[bytes], Awaitable[None]]) -> Snapshot:
    """Read a snapshot of a stream, and give each part of it to ``write``. Raises :class:`BackupError`."""
    inbox = connection.inbox_for("$JS.API.STREAM.SNAPSHOT")
    arrived: asyncio.Queue[Msg | None] = asyncio.Queue()
    subscription = await connection.subscribe(inbox, cb=arrived.put)
    forget = connection.on_reconnect(lambda: arrived.put_nowait(None))
    try:
        request = {"deliver_subject": inbox, "chunk_size": CHUNK_BYTES, "window_size": WINDOW_BYTES, "jsck": True}
        answer = await api(connection, f"STREAM.SNAPSHOT.{stream}", request, START_SECONDS)
        number = 1
        while (chunk := await _next(arrived, stream)) is not None:
            if chunk.reply:  # the last one has none
                if _number(chunk) != number:
                    raise BackupError(f"stream {stream}: chunk {number} of its snapshot is missing: try again")
                number += 1
            await write(chunk.data)
            if chunk.reply:
                await connection.publish(chunk.reply)
        return Snapshot(answer["config"], answer["state"])
    except JetStreamError as error:
        raise BackupError(f"stream {stream}: {error}") from None
    finally:
        forget()
        with contextlib.suppress(nats.errors.Error):  # the connection may be closed
            await subscription.unsubscribe()


async def _next(arrived: asyncio.Queue[Msg | None], stream: str) -> Msg | None:
    """The next chunk, or ``None`` at a good end."""
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            message = await arrived.get()
    except TimeoutError:
        raise BackupError(f"stream {stream}: its snapshot stopped for {SILENCE_SECONDS:g} s: try again") from None
    if message is None:
        raise BackupError(f"stream {stream}: the connection was lost during its snapshot: try again")
    if message.data:
        return message
    headers = message.headers or {}
    status = headers.get("Status", "204")  # older servers end with an empty message alone
    if status != "204":
        raise BackupError(f"stream {stream}: nats-server ended its snapshot: {status} {headers.get('Description', '')}")
    return None


def _number(chunk: Msg) -> int:
    """The number of a chunk: its reply subject ends in ``.{size}.{number}``."""
    return int(chunk.reply.rpartition(".")[2])


async def put(connection: Connection, snapshot: Snapshot, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
    """Make a stream from a snapshot, and return nats-server's description. There must be no stream of this name.

    After an error, nats-server may have a part of the stream, which takes writes and looks healthy: delete it
    (findings/nats-server-failed-restore-leaves-a-stream.sh). Raises :class:`BackupError`, and
    :class:`UnansweredError`.
    """
    name = snapshot.config["name"]
    try:
        request = {"config": snapshot.config, "state": snapshot.state}
        answer = await api(connection, f"STREAM.RESTORE.{name}", request, START_SECONDS)
        subject = answer["deliver_subject"]
        async for piece in pieces:
            said = await connection.request(subject, piece, timeout=SILENCE_SECONDS)
            if said.data:
                _refuse_error(name, json.loads(said.data))
        end = await connection.request(subject, b"", timeout=END_SECONDS)
        made: dict[str, Any] = json.loads(end.data)
        _refuse_error(name, made)
    except JetStreamError as error:
        raise BackupError(f"stream {name}: {error}") from None
    except (SilenceError, nats.errors.Error) as error:
        why = str(error) or type(error).__name__
        raise UnansweredError(f"stream {name}: nats-server does not answer ({why}): try again") from None
    return made


def _refuse_error(name: str, answer: dict[str, Any]) -> None:
    if error := answer.get("error"):
        raise BackupError(f"stream {name}: nats-server refuses to restore it: {error.get('description', error)}")
