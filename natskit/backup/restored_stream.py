"""Restore one stream of a backup, and compare it with the backup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from natskit.backup import sealing, stream_snapshot
from natskit.backup.manifest import StreamEntry
from natskit.backup.sealing import BackupKey
from natskit.backup.stream_snapshot import Snapshot, UnansweredError
from natskit.bus.connection import Connection
from natskit.bus.jetstream import STREAM_NOT_FOUND, JetStreamError, api
from natskit.errors import BackupError

READ_SECONDS = 10.0
ATTEMPTS = 3
"""On a busy machine, this command may be too slow once for nats-server, which waits 5 s for each piece."""

_LIFTED = ("max_age", "subject_delete_marker_ttl")
"""Settings by which a restored stream changes at once: with ``max_age`` an old one is empty a second later, and markers
of values that have expired since are new messages."""
_ELSEWHERE = ("republish", "mirror", "sources", "placement", "max_bytes")
"""Settings that mean nothing on a server of its own, or reserve its disk."""


def lifted(config: dict[str, Any]) -> dict[str, Any]:
    """A stream's configuration without the settings that would change a restored stream."""
    return {name: value for name, value in config.items() if name not in _LIFTED}


def on_its_own(config: dict[str, Any]) -> dict[str, Any]:
    """A stream's configuration on a single server that has nothing else."""
    return {name: value for name, value in lifted(config).items() if name not in _ELSEWHERE} | {"num_replicas": 1}


async def restore(
    connection: Connection, folder: Path, entry: StreamEntry, key: BackupKey, config: dict[str, Any]
) -> None:
    """Make a stream of a backup, with this configuration, and compare it with the backup.

    There must be no stream of this name. Raises :class:`BackupError`; then nothing is left of the stream.
    """
    left = ATTEMPTS
    while left:
        left -= 1
        try:
            content = sealing.pieces(folder, entry.content, key)
            await stream_snapshot.put(connection, Snapshot(config, entry.state), content)
            await compare(connection, entry)
        except BaseException as error:
            await delete(connection, entry.name)
            if not left or not isinstance(error, UnansweredError):
                raise
        else:
            return


async def compare(connection: Connection, entry: StreamEntry) -> None:
    """Raises :class:`BackupError` unless a stream has the content that the backup describes.

    If messages have a TTL of their own, those that have expired since may be missing.
    """
    state = (await api(connection, f"STREAM.INFO.{entry.name}", {}, READ_SECONDS))["state"]
    wanted = entry.state
    exactly = ["last_seq"]
    if not entry.config.get("allow_msg_ttl"):
        exactly.append("messages")
        exactly += ["first_seq"] if wanted["messages"] else []  # without messages, it is 0 or the next one
    for field in exactly:
        if state[field] != wanted[field]:
            raise BackupError(f"stream {entry.label}: {field} is {state[field]}, and the backup says {wanted[field]}")
    if state["messages"] > wanted["messages"]:
        raise BackupError(f"stream {entry.label} has {state['messages']} messages, more than the backup says")
    if state["messages"]:
        await _read_last(connection, entry)


async def _read_last(connection: Connection, entry: StreamEntry) -> None:
    """Read the last message by its subject and by its sequence: after a bad restore only one of them finds it."""

    async def read(**question: Any) -> tuple[int, str]:
        found = (await api(connection, f"STREAM.MSG.GET.{entry.name}", question, READ_SECONDS))["message"]
        return int(found["seq"]), str(found["subject"])

    try:
        sequence, subject = await read(last_by_subj=">")
        found = await read(last_by_subj=subject), await read(seq=sequence)
    except JetStreamError as error:
        raise BackupError(f"stream {entry.label}: its last message cannot be read: {error}") from None
    if found != ((sequence, subject), (sequence, subject)):
        raise BackupError(f"stream {entry.label}: its last message is not found by its subject and its sequence")


async def delete(connection: Connection, name: str) -> None:
    """Delete a stream, or a part of one, if it exists."""
    try:
        await api(connection, f"STREAM.DELETE.{name}", {}, READ_SECONDS)
    except JetStreamError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
