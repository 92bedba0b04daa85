"""Verify a backup: check every hash, restore what it holds, and compare."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from natskit.backup import restored_stream, sealing
from natskit.backup.manifest import Manifest, Verification
from natskit.backup.project_files import Repository
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target
from natskit.backup.trial_server import trial_server
from natskit.errors import BackupError
from natskit.identity import backup as identity_backup
from natskit.identity.identity import Identity

Say = Callable[[str], None]


async def verify(target: Target, name: str | None, identity: Path, say: Say) -> Verification:
    """Verify a backup, by default the newest one, and record the result beside its manifest.

    Its streams are restored into a nats-server of their own on this machine. ``identity`` is the platform's, which has
    the key. Raises :class:`BackupError` and other natskit errors at the first difference.
    """
    with target.locked(), target.scratch() as scratch, target.fetched(name) as folder:
        began, now = time.monotonic(), datetime.now(UTC)
        key = BackupKey.load(identity)
        manifest = trusted(folder, key)
        for sealed in manifest.contents:
            await asyncio.to_thread(sealing.check, folder, sealed)
        say(f"{folder.name}: {len(manifest.contents)} files have the hashes of the manifest")
        _check_identity(folder, manifest, scratch)
        say("identity: opens with the passphrase")
        await sealing.opened(folder, manifest.inventory, key)
        await _check_streams(folder, manifest, key, scratch, say)
        files = await asyncio.to_thread(_check_files, target, manifest, key, say)
        found = Verification(
            finished=datetime.now(UTC),
            age_seconds=(now - manifest.started).total_seconds(),
            seconds=time.monotonic() - began,
            streams=len(manifest.streams),
            messages=sum(stream.messages for stream in manifest.streams),
            files=files,
        )
        found.write(folder)
        target.verified(folder)
        return found


def trusted(folder: Path, key: BackupKey) -> Manifest:
    """The manifest of a backup that this platform took. Raises :class:`BackupError`."""
    manifest = Manifest.read(folder)
    manifest.authenticate(folder, key)
    return manifest


def _check_identity(folder: Path, manifest: Manifest, scratch: Path) -> None:
    identity_backup.restore(folder / manifest.identity.file, scratch / "identity")
    found = Identity.load(scratch / "identity").operator_public_key
    if found != manifest.platform:
        raise BackupError(f"{folder / manifest.identity.file} holds operator {found}, and not {manifest.platform}")


async def _check_streams(folder: Path, manifest: Manifest, key: BackupKey, scratch: Path, say: Say) -> None:
    accounts = {stream.account for stream in manifest.streams}
    size = sum(int(stream.state["bytes"]) for stream in manifest.streams)
    place = scratch / "nats"
    place.mkdir(mode=0o700)
    async with trial_server(place, accounts, size) as connections:
        for stream in manifest.streams:
            config = restored_stream.on_its_own(stream.config)
            await restored_stream.restore(connections[stream.account], folder, stream, key, config)
            say(f"stream {stream.label}: restored, {stream.messages} messages as the manifest says")


def _check_files(target: Target, manifest: Manifest, key: BackupKey, say: Say) -> int:
    if manifest.files is None:
        say("files of projects: none, the backup was taken without them")
        return 0
    total = 0
    for entry in manifest.files:
        if not entry.snapshot:
            say(f"runner {entry.name}: had no projects")
            continue
        repository = Repository(target, key, entry.runner)
        repository.check()
        files = repository.count(entry)
        say(f"runner {entry.name}: {files} files, all hashes are right")
        total += files
    return total
