"""Take a backup of a running platform, without disconnecting anybody or changing anything."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from natskit import __version__
from natskit.backup import sealing, stream_snapshot
from natskit.backup.manifest import FilesEntry, Manifest, StreamEntry
from natskit.backup.platform_streams import Site, accounts, bytes_of, in_order
from natskit.backup.project_files import Repository, size_of
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target, name_of
from natskit.bus.permissions import TAKE_BACKUP
from natskit.errors import BackupError
from natskit.identity.backup import backup as back_up_identity
from natskit.identity.identity import Identity

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
    projects: dict[str, Path] | None
    """The folder with all projects of a runner on this machine, by the runner's id; ``None``: without files."""
    but: frozenset[str] = frozenset()
    """Public keys of NATS accounts whose streams the backup leaves out."""


async def create(source: Source, target: Target, say: Say) -> Manifest:
    """Take a backup. Removes it after an error. Raises :class:`BackupError` and other natskit errors."""
    target.create()
    with target.locked(), ExitStack() as stack:
        started = datetime.now(UTC)
        key = BackupKey.ensure(source.site.identity)
        identity = Identity.load(source.site.identity)
        repository = None
        if source.projects is not None:
            repository = stack.enter_context(Repository(target.repository, key.repository_password))
        names = await accounts(source.site, identity, source.but)
        await _check_space(source, target, identity, names, repository)
        try:
            folder = stack.enter_context(target.arising(started))
            back_up_identity(source.site.identity, folder / "identity.age")
            inventory = await sealing.seal(folder, "inventory.age", _tar(source.inventory), key)
            streams = []
            for name in names:
                streams += await _take_streams(source.site, identity, name, folder, key, say)
            files = _take_files(source, repository, name_of(folder), say) if repository is not None else None
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
                files=files,
            )
            manifest.write(folder, key)
        except OSError as error:
            raise BackupError(
                f"the backup was not finished, and nothing of it is left: {error.filename or target.directory}: "
                f"{error.strerror}"
            ) from None
        return manifest


async def _check_space(
    source: Source, target: Target, identity: Identity, names: Sequence[str], repository: Repository | None
) -> None:
    """Check that the disk has room for the backup. Raises :class:`BackupError`."""
    needed = RESERVE_BYTES
    for name in names:
        async with source.site.as_user(name, identity, TAKE_BACKUP) as connection:
            needed += bytes_of(await stream_snapshot.streams(connection))
    if repository is not None and not repository.exists:  # later, restic adds what has changed
        needed += size_of(list((source.projects or {}).values()))
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


def _take_files(source: Source, repository: Repository, name: str, say: Say) -> list[FilesEntry]:
    found = []
    repository.ensure()
    for runner, projects in (source.projects or {}).items():
        entry = repository.take(name, runner, projects)
        say(f"runner {runner}: {entry.files} files, {entry.size} bytes")
        for path in entry.torn:
            say(f"runner {runner}: {path} was written each time it was read; its copy may be a mixture")
        found.append(entry)
    return found


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
