"""Move the streams of the state from one NATS account to another while the platform runs: from PLATFORM, where older
versions have them, to STATE, and back.

    python -m natskit.backup.state_move --settings JSON [--ca FILE] [--audit-last] NATS_URL[,NATS_URL…] TARGET_KEY
    <'{"source": CREDS, "target": CREDS}'

Each stream is frozen first: it listens to other subjects, and republishes nothing. So nothing is acknowledged any more
that a snapshot would not have, and hubs notice within 1.5 s that their view is not current. Then it is copied
by nats-server's own snapshot, which keeps its sequences, and compared. If anything fails, the copies are deleted, and
the frozen streams serve as before. When all is done, they are sealed as the way back, and say where the state is now:
so an older version that is deployed without a move back cannot change them, and an identity of before cannot move them
again.

The audit log comes first, since hubs of the older version keep its events until somebody takes them. So a change waits
as long as the buckets take, and until a hub of the other version has started. On the way back it comes last: a hub that
runs has nowhere to write the event of a change then, and is replaced. With the resolver ``memory`` as well: older hubs
then get their way to STATE too late.
"""

from __future__ import annotations

import natskit.bus.nats_without_aiohttp  # noqa: F401 - must come first

# isort: split
import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import IO, Any

import nats.errors

from natskit.backup import restored_stream, stream_snapshot
from natskit.backup.stream_snapshot import CHUNK_BYTES, Snapshot
from natskit.bus.connection import Connection, connect
from natskit.bus.credentials import CredsText
from natskit.bus.jetstream import api
from natskit.bus.permissions import (
    AUDIT_STREAM,
    BACKUP_INBOX,
    BUCKETS,
    PROBE_BUCKET,
    RESTORE_BACKUP,
    TAKE_BACKUP,
    Permissions,
)
from natskit.bus.servers import NatsServers
from natskit.errors import BackupError, NatskitError
from natskit.hub.state.bucket import RECENT_SECONDS
from natskit.ops.stream_provisioning import StreamSettings, wanted

MOVE_STATE = Permissions(
    publish=tuple(dict.fromkeys((*TAKE_BACKUP.publish, *RESTORE_BACKUP.publish))), subscribe=TAKE_BACKUP.subscribe
)
"""The rights of the user who does it, in both NATS accounts. The control machine signs it for this alone."""
CREDS_SECONDS = 3600
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 10.0
IN_MEMORY = 64 * 1024**2
"""A larger snapshot is in a file that has no name."""

SERVE_SECONDS, PAUSE = 60.0, 0.5
"""How long a move that failed tries to let a stream serve again: nats-server may be restarting."""

_FROZEN = "moved"
"""The first word of a frozen stream's subjects."""
_MOVED_TO = "natskit_moved_to"
"""In the metadata of a sealed stream: the public key of the NATS account that has its copy."""
_LIFTED = ("republish", "subject_delete_marker_ttl")
"""A marker of an expired value would be a message that the copy has not. So a value that expires while its stream is
frozen leaves none, and after a move that failed, hubs that run keep it until they read everything again. Only sessions
expire, and hubs refuse one whose time is over (:mod:`natskit.hub.state.view`)."""

Config = dict[str, Any]


async def move(
    source: Connection, target: Connection, settings: StreamSettings, target_key: str, *, audit_last: bool = False
) -> list[str]:
    """Move the state's streams. Returns a line for each. Does nothing if the source has none, or if they were moved.

    ``target_key`` is the public key of the target's NATS account. Raises :class:`NatskitError`; then the source serves
    as before, or the error names the streams that nobody can change.
    """
    configs = {config["name"]: config for config in wanted(settings)}
    found = {one["config"]["name"]: one["config"] for one in await stream_snapshot.streams(source)}
    names = [name for name in (AUDIT_STREAM, *(f"KV_{bucket}" for bucket in BUCKETS)) if name in found]
    if await _was_moved([found[name] for name in names], target, target_key):
        await _seal(source, names, target_key)
        return [f"{name}: was moved before" for name in names]
    await _all_there(source, names)
    frozen = [name for name in names if _is_frozen(found[name])]  # by a run that was killed
    done: list[str] = []
    try:
        groups = [[n for n in names if n == AUDIT_STREAM], [n for n in names if n != AUDIT_STREAM]]
        for group in reversed(groups) if audit_last else groups:
            for name in group:
                frozen.append(name)
                await _update(source, _frozen(found[name], configs[name]))
            for name in group:
                await restored_stream.delete(target, name)
                done.append(await _copy(source, target, name, configs[name]))
    except BaseException as error:
        deadline = time.monotonic() + SERVE_SECONDS
        again = {name: found[name] | _served(configs[name]) for name in frozen}
        if left := [name for name, config in again.items() if not await _serves(source, target, config, deadline)]:
            why = str(error) or type(error).__name__
            raise BackupError(f"{why}; nobody can change {', '.join(left)} now: deploy again") from error
        raise
    await _seal(source, names, target_key)
    if probe := found.get(f"KV_{PROBE_BUCKET}"):  # the gate makes another in the target
        await _update(source, probe | {"max_bytes": -1})
    return done


async def _was_moved(configs: Sequence[Config], target: Connection, target_key: str) -> bool:
    """Whether a move to this target was done before. Raises :class:`BackupError` if it was to another one."""
    marks = {(config.get("metadata") or {}).get(_MOVED_TO) for config in configs} - {None}
    if others := sorted(map(str, marks - {target_key})):
        raise BackupError(
            f"the state was moved to NATS account {others[0]}, which this identity does not have: restore the identity "
            "from a backup that was taken after that"
        )
    if not marks:
        return False
    there = {one["config"]["name"]: one["config"] for one in await stream_snapshot.streams(target)}
    for name in (config["name"] for config in configs):
        if name not in there or _is_frozen(there[name]):
            raise BackupError(f"stream {name} was moved to NATS account {target_key}, which does not have it any more")
    return True


async def _all_there(source: Connection, names: Sequence[str]) -> None:
    """Raises :class:`BackupError` if a nats-server that has a copy is away: it may be chosen to lead the stream in the
    other NATS account, and nats-server would then wait for it while nobody can change anything."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        infos = [await api(source, f"STREAM.INFO.{name}", {}, ANSWER_SECONDS) for name in names]
        replicas = [one for info in infos for one in (info.get("cluster") or {}).get("replicas") or []]
        away = sorted({one["name"] for one in replicas if one.get("offline") or not one["current"]})
        if not away:
            return
        if time.monotonic() > deadline:
            raise BackupError(f"nats-server {', '.join(away)} is away or lags behind: mend that, and deploy again")
        await asyncio.sleep(PAUSE)


async def _serves(source: Connection, target: Connection, config: Config, deadline: float) -> bool:
    """Let a frozen stream serve again, and delete its copy first, which may have the room that it needs."""
    while True:
        with contextlib.suppress(NatskitError, nats.errors.Error):
            await restored_stream.delete(target, config["name"])
        with contextlib.suppress(NatskitError, nats.errors.Error):
            await _update(source, config)
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(PAUSE)


async def _seal(source: Connection, names: Sequence[str], target_key: str) -> None:
    """Seal the frozen streams: what they hold cannot be changed any more, and nobody can undo that."""
    for name in names:
        config = (await api(source, f"STREAM.INFO.{name}", {}, ANSWER_SECONDS))["config"]
        metadata = (config.get("metadata") or {}) | {_MOVED_TO: target_key}
        await _update(source, config | {"sealed": True, "metadata": metadata})


async def delete_frozen(connection: Connection) -> list[str]:
    """Delete the streams that a move has left behind, and the gate's bucket. Returns their names.

    Raises :class:`NatskitError`, and deletes nothing, if there are others: without JetStream, nats-server could not
    serve them, and would not be healthy.
    """
    found = {one["config"]["name"]: one["config"] for one in await stream_snapshot.streams(connection)}
    names = [name for name, config in found.items() if name == f"KV_{PROBE_BUCKET}" or _is_left(config)]
    if others := sorted(found.keys() - set(names)):
        raise BackupError(
            f"PLATFORM has streams that are not natskit's, and loses JetStream: delete {', '.join(others)}"
        )
    for name in names:
        await restored_stream.delete(connection, name)
    return names


def _is_left(config: Config) -> bool:
    """Whether a move has left this stream behind, even if an older version has been deployed since."""
    return _is_frozen(config) or _MOVED_TO in (config.get("metadata") or {})


def _is_frozen(config: Config) -> bool:
    return all(subject.startswith(f"{_FROZEN}.") for subject in config["subjects"])


def _frozen(config: Config, served: Config) -> Config:
    subjects = [f"{_FROZEN}.{subject.removeprefix('$')}" for subject in served["subjects"]]
    # nats-server reserves room for all that a stream may hold, and the copy needs that.
    lifted = {name: value for name, value in config.items() if name not in _LIFTED}
    return lifted | {"subjects": subjects, "max_bytes": -1}


def _served(served: Config) -> Config:
    return {name: served[name] for name in ("subjects", "max_bytes", *_LIFTED) if name in served}


async def _update(connection: Connection, config: Config) -> None:
    await api(connection, f"STREAM.UPDATE.{config['name']}", config, ANSWER_SECONDS)


async def _copy(source: Connection, target: Connection, name: str, config: Config) -> str:
    """Copy a frozen stream, with another configuration. Raises :class:`NatskitError` if they differ."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as file:

        async def write(piece: bytes) -> None:
            file.write(piece)

        snapshot = await stream_snapshot.take(source, name, write)
        file.seek(0)
        lifted = restored_stream.lifted(config)
        await stream_snapshot.put(target, Snapshot(lifted, snapshot.state), _pieces(file))
    await _update(target, config)
    left, made = [(await api(c, f"STREAM.INFO.{name}", {}, ANSWER_SECONDS))["state"] for c in (source, target)]
    if not left["last_seq"] == snapshot.state["last_seq"] <= made["last_seq"]:
        raise BackupError(f"stream {name} was at {left['last_seq']}, and its copy is at {made['last_seq']}: try again")
    return f"{name}: {made['messages']} messages, up to {made['last_seq']}"


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece


async def _main(asked: argparse.Namespace) -> Sequence[str]:
    given = json.loads(sys.stdin.read())
    settings = StreamSettings.model_validate_json(asked.settings)
    servers = NatsServers(urls=asked.nats_urls, ca_file=asked.ca)
    async with contextlib.AsyncExitStack() as stack:

        async def end(name: str) -> Connection:
            connection = await connect(
                servers,
                name="natskit state",
                inbox_prefix=BACKUP_INBOX,
                creds=CredsText(given[name]),
                timeout=CONNECT_SECONDS,
            )
            stack.push_async_callback(connection.close)
            return connection

        ends = await end("source"), await end("target")
        lines = await move(*ends, settings, asked.target_key, audit_last=asked.audit_last)
        # A hub that has just lost the state goes on with what it knows for so long, and does not hear of what hubs of
        # the other version change: those must not start earlier.
        await asyncio.sleep(RECENT_SECONDS)
        return lines


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m natskit.backup.state_move", allow_abbrev=False)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--audit-last", action="store_true")
    parser.add_argument("--settings", required=True, metavar="JSON")
    parser.add_argument("nats_urls", type=lambda text: text.split(","))
    parser.add_argument("target_key")
    try:
        for line in asyncio.run(_main(parser.parse_args())):
            print(line)
    except (NatskitError, nats.errors.Error, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
