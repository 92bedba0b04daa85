"""Restore a platform from a backup.

During the restore the NATS accounts with the streams are closed: they admit only this command, and offer nothing to
others (:meth:`Identity.closed_jwt`). So no hub reads or writes an incomplete stream: it refuses changes, and after some
seconds every client. When they open again, hubs and keepers read the whole state. If this command ends early, the
platform stays closed until the command runs again.
"""

from __future__ import annotations

import asyncio
import io
import shutil
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from natskit.backup import restored_stream, sealing, stream_snapshot
from natskit.backup.manifest import FilesEntry, Manifest, StreamEntry
from natskit.backup.platform_streams import Site
from natskit.backup.runner_files import Runner, RunnerFiles
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target
from natskit.backup.verify import trusted
from natskit.bus.jetstream import api
from natskit.bus.permissions import RESTORE_BACKUP, STREAMS
from natskit.client import Client
from natskit.errors import BackupError, NatskitError
from natskit.identity import backup as identity_backup
from natskit.identity import claims
from natskit.identity.identity import Identity
from natskit.ops.account_resolver import Servers
from natskit.validation.names import shown

CLOSING_SECONDS = 20.0
"""Until nats-server has disconnected all clients of a closed NATS account."""
PAUSE = 0.1
NOTICE_SECONDS = 2.0
"""Until all hubs have noticed that the state is closed: they ask twice a second. A hub that has not could take the
restored stream for the old one when it writes."""
UPDATE_SECONDS = 10.0
INVENTORY = "restored-inventory"

Say = Callable[[str], None]


async def restore_control(target: Target, name: str | None, platform: Path) -> Path:
    """Restore the identity into ``platform/identity``, and the inventory beside it. Returns the folder of the latter.

    Neither may exist. Raises :class:`BackupError` and :class:`IdentityError`, and then leaves neither.
    """
    inventory = platform / INVENTORY
    identity_backup.refuse_filled(inventory)
    with target.fetched(name) as folder:
        manifest = Manifest.read(folder)
        for sealed in (manifest.identity, manifest.inventory):
            sealing.check(folder, sealed)
        identity_backup.restore(folder / manifest.identity.file, platform / "identity")
        try:
            key = BackupKey.load(platform / "identity")
            manifest.authenticate(folder, key)
            content = await sealing.opened(folder, manifest.inventory, key)
            with (
                identity_backup.arising(inventory, lambda _: None) as made,
                tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive,
            ):
                archive.extractall(made, filter="data")
        except BaseException:
            shutil.rmtree(platform / "identity")
            raise
    return inventory


class Restoration:
    """The parts of a backup to restore into a running platform."""

    def __init__(self, site: Site, target: Target, name: str | None, label: str | None) -> None:
        """``label`` names one stream, ``ACCOUNT/STREAM``; by default it is all of them, and the files of projects.

        Raises :class:`BackupError` if the backup is damaged, or of another platform. Nothing has changed then.
        """
        self._site, self._target = site, target
        self._folder = target.folder(name)
        self._key = BackupKey.load(site.identity)
        self._identity = Identity.load(site.identity, write=True)
        self.manifest = trusted(self._folder, self._key)
        if self.manifest.platform != self._identity.operator_public_key:
            raise BackupError(f"{self._folder} is a backup of another platform, {self.manifest.url}")
        self.streams = [stream for stream in self.manifest.streams if label in (None, stream.label)]
        if not self.streams:
            names = ", ".join(stream.label for stream in self.manifest.streams)
            raise BackupError(f"{self._folder} has no stream {label}: it has {names}")
        if self._identity.state_in_platform:
            raise BackupError("the state is in PLATFORM, as an older version has it: deploy first, which moves it")
        self.files = (self.manifest.files or []) if label is None else []

    async def run(self, client: Client | None, say: Say) -> list[str]:
        """Close the platform, restore, compare, open it again. Returns the files that could not be restored, which
        ``say`` got. Raises :class:`NatskitError`.

        ``client`` is the operator's connection to the runners, and is needed for files alone. They are put in their
        places first, and then the platform is closed: while it is closed, no runner can be reached.
        """
        with self._target.locked(), self._target.fetched(self.manifest.name):
            for stream in self.streams:  # before anything is changed
                await asyncio.to_thread(sealing.check, self._folder, stream.content)
            missing: list[str] = []
            if client is not None:
                missing = await restore_files(client, self._target, self._key, self.files, say)
            accounts = sorted({account_of(stream) for stream in self.streams})
            async with self._site.resolvers(self._identity) as servers, self._closed(servers, accounts):
                for account in accounts:
                    mine = [stream for stream in self.streams if account_of(stream) == account]
                    await self._restore_streams(account, mine, say)
            return missing

    @asynccontextmanager
    async def _closed(self, servers: Servers, accounts: Sequence[str]) -> AsyncIterator[None]:
        identity_backup.begin_restore(self._site.identity, self._folder.name)
        closed = [self._identity.closed_jwt(account) for account in accounts]
        for account, token in zip(accounts, closed, strict=True):
            self._identity.sign_again(account, after=int(claims.decode(token)["iat"]), now=int(time.time()))
        try:
            await servers.push(closed)
            for account in accounts:
                await self._until_nobody_is_left(servers, account)
            await asyncio.sleep(NOTICE_SECONDS)
            yield
        except (NatskitError, OSError, asyncio.CancelledError) as error:
            why = str(error) or "the restore was interrupted"
            raise BackupError(
                f"{why}\nThe platform is closed, so that nobody uses what is half restored. Run `natskit backup "
                f"restore --overwrite {self._folder.name}`, or open it as it is with `natskit identity push`"
            ) from None
        await servers.push(self._identity.account_jwt(account) for account in accounts)
        identity_backup.end_restore(self._site.identity)

    async def _until_nobody_is_left(self, servers: Servers, account: str) -> None:
        deadline = time.monotonic() + CLOSING_SECONDS
        while left := await servers.connections(self._identity.account_public_key(account)):
            if time.monotonic() > deadline:
                raise BackupError(f"{len(left)} clients are still connected to NATS account {account}: see its servers")
            await asyncio.sleep(PAUSE)

    async def _restore_streams(self, account: str, entries: Sequence[StreamEntry], say: Say) -> None:
        """Restore streams in an order in which no record refers to a missing one."""
        async with self._site.as_user(account, self._identity, RESTORE_BACKUP) as connection:
            existing = {one["config"]["name"]: one["config"] for one in await stream_snapshot.streams(connection)}
            for entry in reversed(entries):
                wanted = self._config(entry, existing)
                config = restored_stream.lifted(entry.config) | {"num_replicas": wanted["num_replicas"]}
                await restored_stream.delete(connection, entry.name)
                await restored_stream.restore(connection, self._folder, entry, self._key, config)
                await api(connection, f"STREAM.UPDATE.{entry.name}", wanted, UPDATE_SECONDS)
                say(f"stream {entry.label}: {entry.messages} messages")

    def _config(self, entry: StreamEntry, existing: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The configuration of the last deploy, or of the backup, with no more copies than there are servers."""
        copies = min(int(entry.config["num_replicas"]), len(self._site.names))
        return existing.get(entry.name, entry.config | {"num_replicas": copies})


def account_of(stream: StreamEntry) -> str:
    """The NATS account that a stream of a backup belongs to. Older versions had the state in PLATFORM."""
    return "STATE" if stream.account == "PLATFORM" and stream.name in STREAMS else stream.account


async def restore_files(
    client: Client,
    target: Target,
    key: BackupKey,
    entries: Sequence[FilesEntry],
    say: Say,
    project_id: str | None = None,
) -> list[str]:
    """Restore the files of projects, or of one project, on the hosts of their runners.

    All hosts get the files beside those that they have, then each exchanges them. After an error, all exchange them
    back. Returns the files that could not be restored. Raises :class:`BackupError`.
    """
    runners = []
    for entry in entries:
        runner = RunnerFiles(client, target, key, Runner(entry.runner, entry.name))
        if (size := await runner.size_in(entry, project_id)) is not None:
            runners.append((runner, entry, size))
    if project_id is not None and not runners:
        raise BackupError(f"the backup has no files of project {project_id}: `natskit backup list` names the others")
    missing, settled = list[str](), list[str]()
    try:
        for runner, entry, size in runners:
            for path in await runner.stage(entry, size, project_id):
                say(f"runner {entry.name}: {shown(path)} could NOT be restored")
                missing.append(path)
            if found := await runner.running():
                raise BackupError(
                    f"projects run whose files would be replaced: stop them with `natskit project stop {found[0]}`"
                    + (f", and {', '.join(found[1:])}" if found[1:] else "")
                )
        for runner, entry, _ in runners:
            done = await runner.settle()
            settled += done
            say(f"runner {entry.name}: {len(done)} projects")
    except BaseException as error:
        if (kept := await _undone([runner for runner, _, _ in runners])) and isinstance(error, NatskitError):
            raise BackupError(
                f"{error}\nSome projects have the restored files already: {'; '.join(kept)}. Run the command again"
            ) from None
        raise
    finally:
        for runner, _, _ in runners:
            with suppress(NatskitError):  # the next run removes what is left
                await runner.discard()
    if project_id is not None and not settled:
        raise BackupError(
            f"project {project_id} keeps the files that it has, since {len(missing)} could not be restored: get those "
            "that can be read with `natskit backup files`"
        )
    return missing


async def _undone(runners: Sequence[RunnerFiles]) -> list[str]:
    """Exchange the files back on all hosts. Returns why some have not done so."""
    kept = []
    for runner in runners:
        try:
            await runner.undo()
        except NatskitError as error:
            kept.append(str(error))
    return kept
