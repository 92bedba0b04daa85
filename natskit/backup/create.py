"""Take a backup of a running platform, without disconnecting anybody or changing anything."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from natskit import __version__
from natskit.backup import sealing, stream_snapshot
from natskit.backup.manifest import FilesEntry, Manifest, StreamEntry
from natskit.backup.platform_streams import Site, accounts, bytes_of, in_order
from natskit.backup.runner_files import HostAwayError, Runner, RunnerFiles
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target, name_of
from natskit.bus.permissions import TAKE_BACKUP
from natskit.client import Client
from natskit.errors import BackupError
from natskit.identity.backup import backup as back_up_identity
from natskit.identity.identity import Identity
from natskit.validation.names import shown

RESERVE_BYTES = 64 * 1024**2
"""What must be left free: the manifest, the identity and restic's index are not in the estimate."""
LARGEST_INVENTORY = 64 * 1024**2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """The platform and the parts of it that a backup contains."""

    site: Site
    url: str
    inventory: tuple[Path, ...]
    """The inventory, its settings, and the files that they name: files and folders of this machine."""
    client: Client | None
    """The operator's connection; ``None``: without the files of projects."""
    runners: tuple[Runner, ...] = ()
    """Those whose projects' files the backup contains."""
    absent: tuple[str, ...] = ()
    """The names of runners that it leaves out on request."""
    rate: int = 0
    """The most that each runner sends, in KiB a second; 0 for no limit."""
    but: frozenset[str] = frozenset()
    """Public keys of NATS accounts whose streams the backup leaves out."""


async def create(source: Source, target: Target, say: Say) -> Manifest:
    """Take a backup. Removes it after an error. Raises :class:`BackupError` and other natskit errors.

    It goes on without a runner that does not answer. :attr:`Manifest.lacks` says so.
    """
    target.create()
    with target.locked():
        started = datetime.now(UTC)
        key = BackupKey.ensure(source.site.identity)
        identity = Identity.load(source.site.identity)
        names = await accounts(source.site, identity, source.but)
        client = source.client
        asked = [RunnerFiles(client, target, key, one, source.rate) for one in source.runners if client]
        runners, absent = await _present(asked, source.absent, say)
        await _check_space(source, target, identity, names, runners)
        try:
            async with _kept_if_complete() as taken:
                with target.arising(started) as folder:
                    back_up_identity(source.site.identity, folder / "identity.age")
                    inventory = await sealing.seal(folder, "inventory.age", _tar(source.inventory), key)
                    streams = []
                    for name in names:
                        streams += await _take_streams(source.site, identity, name, folder, key, say)
                    for runner, _ in runners:
                        with _unless_away(runner, absent, say):
                            taken.append((runner, await _take_files(runner, name_of(folder), say)))
                    manifest = Manifest(
                        name=name_of(folder),
                        natskit=__version__,
                        platform=identity.operator_public_key,
                        url=source.url,
                        started=started,
                        finished=datetime.now(UTC),
                        identity=sealing.measured(folder, "identity.age"),
                        inventory=inventory,
                        streams=streams,
                        files=[entry for _, entry in taken] if client is not None else None,
                        absent=absent,
                    )
                    manifest.write(folder, key)
        except OSError as error:
            raise BackupError(
                f"the backup was not finished, and nothing of it is left: {error.filename or target.place}: "
                f"{error.strerror}"
            ) from None
        return manifest


@asynccontextmanager
async def _kept_if_complete() -> AsyncIterator[list[tuple[RunnerFiles, FilesEntry]]]:
    """Forgets the snapshots in the list after an error. Their parts go with the next prune."""
    taken: list[tuple[RunnerFiles, FilesEntry]] = []
    try:
        yield taken
    except BaseException:
        for runner, entry in taken:
            with suppress(BackupError, OSError):  # what went wrong first is what is said
                if entry.snapshot:
                    await asyncio.to_thread(runner.repository.forget, entry.snapshot)
        raise


@contextmanager
def _unless_away(runner: RunnerFiles, absent: list[str], say: Say) -> Iterator[None]:
    """Go on without a runner that does not answer, and add its name to ``absent``."""
    try:
        yield
    except HostAwayError as error:
        say(f"{error}. Its files are NOT in the backup")
        absent.append(runner.runner.name)


async def _present(
    runners: Sequence[RunnerFiles], left_out: Sequence[str], say: Say
) -> tuple[list[tuple[RunnerFiles, int]], list[str]]:
    """The runners that answer with the bytes of their files, and the names of all that the backup will lack."""
    found, absent = list[tuple[RunnerFiles, int]](), [*left_out]
    for runner in runners:
        with _unless_away(runner, absent, say):
            found.append((runner, await runner.size()))
    return found, absent


async def _check_space(
    source: Source, target: Target, identity: Identity, names: Sequence[str], runners: Sequence[tuple[RunnerFiles, int]]
) -> None:
    """Check that the disk has room for the backup. Raises :class:`BackupError`."""
    needed = RESERVE_BYTES
    for name in names:
        async with source.site.as_user(name, identity, TAKE_BACKUP) as connection:
            needed += bytes_of(await stream_snapshot.streams(connection))
    for runner, size in runners:
        if target.keeps_files and runner.runner.runner_id not in target.repositories:  # later, restic adds what is new
            needed += size
    free = shutil.disk_usage(target.directory).free
    if needed > free:
        raise BackupError(
            f"{target.directory} has {free // 1024**2} MiB free, and the backup may need {needed // 1024**2} MiB: make "
            "room with `natskit backup prune`, or choose a larger disk"
        )


async def _take_streams(
    site: Site, identity: Identity, account: str, folder: Path, key: BackupKey, say: Say
) -> list[StreamEntry]:
    found = []
    async with site.as_user(account, identity, TAKE_BACKUP) as connection:
        for stream in in_order(await stream_snapshot.streams(connection)):
            name, taken = stream["config"]["name"], datetime.now(UTC)
            async with sealing.writing(folder, f"streams/{account}/{name}.age", key) as writer:
                snapshot = await stream_snapshot.take(connection, name, writer.write)
            entry = StreamEntry(
                account=account,
                name=name,
                taken=taken,
                created=stream["created"],
                config=snapshot.config,
                state=snapshot.state,
                content=writer.sealed(),
            )
            say(f"stream {entry.label}: {entry.messages} messages")
            found.append(entry)
    return found


async def _take_files(runner: RunnerFiles, name: str, say: Say) -> FilesEntry:
    entry = await runner.take(name)
    say(f"runner {entry.name}: {entry.files} files, {entry.size} bytes")
    for path in entry.torn:
        say(f"runner {entry.name}: {shown(path)} was written each time it was read; its copy may be a mixture")
    for path in entry.unread:
        say(f"runner {entry.name}: {shown(path)} could not be read: see its owner and mode. It is not in the backup")
    for folder in entry.left_out:
        say(f"runner {entry.name}: {folder} is NOT in the backup: it has files of another user. Look at them")
    return entry


def _tar(paths: Sequence[Path]) -> bytes:
    """A tar of files and folders, by their absolute paths without the leading slash."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for path in paths:
            archive.add(path, arcname=str(Path(os.path.abspath(path)).relative_to("/")), filter=_without_caches)
            if made.tell() > LARGEST_INVENTORY:
                raise BackupError(
                    f"{path} and what precedes it have more than {LARGEST_INVENTORY // 1024**2} MiB, too much for "
                    "settings: keep the inventory in a folder of its own"
                )
    return made.getvalue()


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name.split("/") else entry
