"""Create and update the platform's streams from the control machine: the state, the gate's bucket, the audit log, and
the documents.

    python -m natskit.ops.stream_provisioning [--check] [--ca FILE] --settings JSON NATS_URL[,NATS_URL…] [NATS_ACCOUNT]
    <ADMIN_CREDS

The streams are those of one NATS account, STATE or DOCS; the creds are those of its user ``admin``.
Prints a line for each stream that it created or changed. With ``--check``, prints a line for each that it would create
or change, and exits 1 if there is any. Nobody else may configure streams, and hubs must not: a stream's configuration
can copy any other stream, or make nats-server publish arbitrary messages.

Hubs follow a bucket of the state through ``republish``: nats-server publishes each stored message, delete markers
included, on ``state.{bucket}.{key}``, with its sequence in the header ``Nats-Sequence``. When a value expires by its
``Nats-TTL``, nats-server stores, and so publishes, a marker: an empty message with the header
``Nats-Marker-Reason: MaxAge`` (ADR-43). Only markers themselves expire without a message. This module sets
``republish`` from the bucket's own subjects to those of the hubs.
"""

from __future__ import annotations

import natskit.bus.nats_without_aiohttp  # noqa: F401 - must come first

# isort: split
import argparse
import asyncio
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nats.errors
from pydantic import BaseModel, ConfigDict, Field

from natskit.bus.connection import Connection, connect
from natskit.bus.credentials import CredsText
from natskit.bus.jetstream import MARKER_SECONDS, STREAM_NOT_FOUND, JetStreamError, api
from natskit.bus.permissions import (
    AUDIT_STREAM,
    BUCKETS,
    DOCUMENT_KINDS,
    DOCUMENT_SHARDS,
    DOCUMENT_STREAMS,
    PROBE_BUCKET,
    NatsAccount,
    inbox_prefix,
    state_subject,
)
from natskit.bus.servers import NatsServers
from natskit.errors import NatskitError, StateError

CONNECT_SECONDS = 5.0
PATIENCE = 30.0
"""Seconds until JetStream must accept the configuration. Servers that have just started must first elect a leader and
discover each other."""
PAUSE = 0.5
REQUEST_SECONDS = 5.0

MOST_BYTES_OF_AN_EVENT = 8192
"""Far larger than any event."""

Config = dict[str, Any]


class StreamSettings(BaseModel):
    """The inventory's settings of streams."""

    model_config = ConfigDict(extra="forbid")

    replicas: int = Field(default=1, ge=1, le=5)
    state_bytes: int = Field(default=128 * 1024**2, ge=1024)
    """Maximum size of each bucket of the state."""
    audit_seconds: int = Field(default=365 * 86400, ge=3600)
    """Older events are deleted."""
    audit_bytes: int = Field(default=512 * 1024**2, ge=1024**2)
    """Above this size, the oldest events are deleted."""
    document_bytes: int = Field(default=1024**3, ge=16 * 1024**2)
    """Maximum size of all documents with their history. Beyond it, updates are refused."""


WITH_STREAMS: tuple[NatsAccount, ...] = ("STATE", "DOCS")
"""The NATS accounts that have streams."""


def wanted(settings: StreamSettings, account: str = "STATE") -> list[Config]:
    """The configurations of a NATS account's streams for nats-server (docs.nats.io, "Streams": configuration)."""
    if account == "DOCS":
        return [_documents(number, settings) for number in range(DOCUMENT_SHARDS)]
    buckets = [_state(bucket, settings) for bucket in BUCKETS]
    return [*buckets, _probe(settings), _audit(settings)]


def _bucket(name: str, settings: StreamSettings) -> Config:
    return {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        # A write must fail on a full or read-only disk, so that the gate notices it too.
        "storage": "file",
        "max_msgs_per_subject": 1,
        "num_replicas": settings.replicas,
    }


def _state(name: str, settings: StreamSettings) -> Config:
    return _bucket(name, settings) | {
        "max_bytes": settings.state_bytes,
        "max_msg_size": 64 * 1024,
        "discard": "new",
        "deny_delete": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        # nats-server 2.11 and later.
        "subject_delete_marker_ttl": MARKER_SECONDS * 1_000_000_000,
        # Hubs and keepers read many messages with one request. Any replica answers.
        "allow_direct": True,
        "republish": {"src": f"$KV.{name}.>", "dest": f"{state_subject(name)}>"},
    }


def _probe(settings: StreamSettings) -> Config:
    # Values of removed servers must not fill the bucket: the oldest are deleted.
    small = {"max_bytes": 1 << 20, "max_msg_size": 256, "discard": "old", "allow_direct": True}
    return _bucket(PROBE_BUCKET, settings) | small


def _audit(settings: StreamSettings) -> Config:
    return {
        "name": AUDIT_STREAM,
        "description": "natskit: who did what",
        "subjects": ["audit.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "num_replicas": settings.replicas,
        "max_age": settings.audit_seconds * 1_000_000_000,
        "max_bytes": settings.audit_bytes,
        "max_msg_size": MOST_BYTES_OF_AN_EVENT,
        # A hub writes an event again if the acknowledgement was lost. Within this time the duplicate is recognized.
        "duplicate_window": 600 * 1_000_000_000,
        # nats-server does not allow these to be unset.
        "deny_delete": True,
        "deny_purge": True,
        "allow_rollup_hdrs": False,
        # Readers use direct gets: no consumer, any replica.
        "allow_direct": True,
    }


def _documents(number: int, settings: StreamSettings) -> Config:
    return {
        "name": DOCUMENT_STREAMS[number],
        "description": "natskit: documents and their history",
        "subjects": [f"{kind}.{number}.>" for kind in DOCUMENT_KINDS],
        "storage": "file",
        # Of full blocks, when nats-server begins the next one: a history takes less than half of the room.
        "compression": "s2",
        "retention": "limits",
        # What is stored stays: a full stream refuses updates.
        "discard": "new",
        "num_replicas": settings.replicas,
        "max_bytes": settings.document_bytes // DOCUMENT_SHARDS,
        # A keeper looks itself whether an update is stored already (its client and number), however long ago that was.
        "duplicate_window": 1_000_000_000,
        "deny_delete": True,
        "deny_purge": False,
        # The newest paths of a project replace the ones before.
        "allow_rollup_hdrs": True,
        # Any replica answers, and a keeper reads many messages with one request.
        "allow_direct": True,
        "republish": {
            "src": f"doc.{number}.*.*",
            "dest": "events.project.{{wildcard(1)}}.doc.{{wildcard(2)}}",
        },
    }


async def differences(connection: Connection, settings: StreamSettings, account: str = "STATE") -> list[str]:
    """The changes that :func:`apply` would make, one line for each stream. Raises :class:`StateError`."""
    found = [(config["name"], *await _compare(connection, config)) for config in wanted(settings, account)]
    return [line for name, current, changed in found for line in _changes(name, current, changed)]


async def apply(connection: Connection, settings: StreamSettings, account: str = "STATE") -> list[str]:
    """Create missing streams and update those that differ. Returns one line for each changed stream.

    Raises :class:`StateError`.
    """
    done: list[str] = []
    for config in wanted(settings, account):
        name = config["name"]
        current, changed = await _compare(connection, config)
        if current is None:
            await api(connection, f"STREAM.CREATE.{name}", config, REQUEST_SECONDS)
        elif changed:
            await api(connection, f"STREAM.UPDATE.{name}", current | config, REQUEST_SECONDS)
        done += _changes(name, current, changed)
    return done


async def _compare(connection: Connection, config: Config) -> tuple[Config | None, list[str]]:
    """The stream's configuration, ``None`` if it does not exist, and the names of the fields that differ."""
    try:
        info = await api(connection, f"STREAM.INFO.{config['name']}", {}, REQUEST_SECONDS)
    except JetStreamError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
        return None, []
    current: Config = info["config"]
    return current, differences_of(current, config)


def differences_of(current: Config, config: Config) -> list[str]:
    """The names of the fields in which a stream differs from its wanted configuration."""
    # nats-server omits fields that are 0, false or empty.
    return [key for key in config if (current.get(key) or None) != (config[key] or None)]


def _changes(name: str, current: Config | None, changed: Iterable[str]) -> list[str]:
    what = "new" if current is None else ", ".join(changed)
    return [f"{name}: {what}"] if what else []


async def _main(asked: argparse.Namespace) -> int:
    settings = StreamSettings.model_validate_json(asked.settings)
    connection = await connect(
        NatsServers(urls=asked.nats_urls, ca_file=asked.ca),
        name="natskit streams",
        inbox_prefix=inbox_prefix("admin"),
        creds=CredsText(sys.stdin.read()),
        timeout=CONNECT_SECONDS,
    )
    try:
        if asked.check:
            lines = await differences(connection, settings, asked.account)
            print("\n".join(lines))
            return int(bool(lines))
        print("\n".join(await _applied(connection, settings, asked.account)))
        return 0
    finally:
        await connection.close()


async def _applied(connection: Connection, settings: StreamSettings, account: str) -> list[str]:
    """Call :func:`apply` until it succeeds, for up to :data:`PATIENCE`. Raises :class:`StateError`."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await apply(connection, settings, account)
        except StateError as error:
            if time.monotonic() > deadline:
                raise StateError(
                    f"{error}: the streams need {settings.replicas} nats-server(s) with JetStream and space for "
                    "them (docs/how-to/jetstream.md); start them and deploy again"
                ) from None
        await asyncio.sleep(PAUSE)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m natskit.ops.stream_provisioning", allow_abbrev=False)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--settings", required=True, metavar="JSON")
    parser.add_argument("nats_urls", type=lambda text: text.split(","))
    parser.add_argument("account", nargs="?", default="STATE", choices=WITH_STREAMS)
    try:
        sys.exit(asyncio.run(_main(parser.parse_args())))
    except (NatskitError, nats.errors.Error, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
