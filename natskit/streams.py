"""The streams of a platform, made and changed from the control machine: the state, the gate's bucket, the audit.

    python -m natskit.streams [--check] [--ca FILE] --settings JSON NATS_URL[,NATS_URL…] <PLATFORM_ADMIN_CREDS

Prints a line for each stream that was made or changed; with ``--check`` for each that would be, and exits 1 if there is
any. Nobody else may do this, hubs least of all: whoever configures a stream makes it a copy of any other, or has
nats-server publish what they like.

Hubs follow a bucket of the state by what nats-server publishes once more (``republish``), on ``state.{bucket}.{key}``:
each message that is stored, a delete marker too, with its sequence as the header ``Nats-Sequence``. What expires by its
``Nats-TTL`` goes without a word. It is fixed here, from the bucket's own subjects to those of the hubs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nats.errors
from pydantic import BaseModel, ConfigDict, Field

from natskit.connection import Connection, CredsText, NatsServers, connect
from natskit.errors import NatskitError, StateError
from natskit.jetstream import STREAM_NOT_FOUND, JetStreamError, api
from natskit.permissions import AUDIT_STREAM, BUCKETS, PROBE_BUCKET, inbox_prefix, state_subject

CONNECT_SECONDS = 5.0
PATIENCE = 30.0
"""Seconds until JetStream has to take what it is asked: servers that were just started look for a leader first, and
know of each other only then."""
PAUSE = 0.5
REQUEST_SECONDS = 5.0

MOST_BYTES_OF_AN_EVENT = 8192
"""No event of ours comes near."""

Config = dict[str, Any]


class StreamSettings(BaseModel):
    """What the inventory says about streams."""

    model_config = ConfigDict(extra="forbid")

    replicas: int = Field(default=1, ge=1, le=5)
    state_bytes: int = Field(default=128 * 1024**2, ge=1024)
    """Of each bucket of the state."""
    audit_seconds: int = Field(default=365 * 86400, ge=3600)
    """What is older goes."""
    audit_bytes: int = Field(default=512 * 1024**2, ge=1024**2)
    """Beyond, the oldest goes."""


def wanted(settings: StreamSettings) -> list[Config]:
    """The streams as nats-server is to be told of them (docs.nats.io, "Streams": configuration)."""
    buckets = [_state(bucket, settings) for bucket in BUCKETS]
    return [*buckets, _probe(settings), _audit(settings)]


def _bucket(name: str, settings: StreamSettings) -> Config:
    return {
        "name": f"KV_{name}",
        "subjects": [f"$KV.{name}.>"],
        # A full or read-only disk has to be noticed, by the gate as well.
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
        "allow_direct": False,
        "republish": {"src": f"$KV.{name}.>", "dest": f"{state_subject(name)}>"},
    }


def _probe(settings: StreamSettings) -> Config:
    # Values of servers that are gone must not stand in the way: the oldest makes room.
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
        # An event whose acknowledgement was lost is written again; within this time it is recognised.
        "duplicate_window": 600 * 1_000_000_000,
        # Once set, nats-server does not take these back.
        "deny_delete": True,
        "deny_purge": True,
        "allow_rollup_hdrs": False,
        # How it is read: without a consumer, from any replica.
        "allow_direct": True,
    }


async def differences(connection: Connection, settings: StreamSettings) -> list[str]:
    """What :func:`apply` would do, a line for each stream. Raises :class:`StateError`."""
    found = [(config["name"], *await _compare(connection, config)) for config in wanted(settings)]
    return [line for name, current, changed in found for line in _said(name, current, changed)]


async def apply(connection: Connection, settings: StreamSettings) -> list[str]:
    """Make the streams that are missing, and change those that differ; what was done, a line for each stream.

    Raises :class:`StateError`.
    """
    done: list[str] = []
    for config in wanted(settings):
        name = config["name"]
        current, changed = await _compare(connection, config)
        if current is None:
            await api(connection, f"STREAM.CREATE.{name}", config, REQUEST_SECONDS)
        elif changed:
            await api(connection, f"STREAM.UPDATE.{name}", current | config, REQUEST_SECONDS)
        done += _said(name, current, changed)
    return done


async def _compare(connection: Connection, config: Config) -> tuple[Config | None, list[str]]:
    """The stream's configuration, ``None`` where there is no stream, and what of it differs."""
    try:
        info = await api(connection, f"STREAM.INFO.{config['name']}", {}, REQUEST_SECONDS)
    except JetStreamError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
        return None, []
    current: Config = info["config"]
    # nats-server leaves out what is 0, false or nothing.
    return current, [key for key in config if (current.get(key) or None) != (config[key] or None)]


def _said(name: str, current: Config | None, changed: Iterable[str]) -> list[str]:
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
            lines = await differences(connection, settings)
            print("\n".join(lines))
            return int(bool(lines))
        print("\n".join(await _applied(connection, settings)))
        return 0
    finally:
        await connection.close()


async def _applied(connection: Connection, settings: StreamSettings) -> list[str]:
    """Applied, again and again for :data:`PATIENCE`; what is done already stays so. Raises :class:`StateError`."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await apply(connection, settings)
        except StateError as error:
            if time.monotonic() > deadline:
                raise StateError(
                    f"{error}: the streams need {settings.replicas} nats-server(s) with JetStream that are up, with "
                    "room for them (docs/jetstream.md); bring them up and deploy again"
                ) from None
        await asyncio.sleep(PAUSE)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m natskit.streams", allow_abbrev=False)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--settings", required=True, metavar="JSON")
    parser.add_argument("nats_urls", type=lambda text: text.split(","))
    try:
        sys.exit(asyncio.run(_main(parser.parse_args())))
    except (NatskitError, nats.errors.Error, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
