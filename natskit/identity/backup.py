"""Back up an identity to one file and restore it: a tar, encrypted with a passphrase (age, c2sp.org/age).

To restore without natskit: ``age --decrypt FILE | tar -x``. A backup of an encrypted identity has the identity's
passphrase at that time; a later change of the passphrase does not change earlier backups.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from natskit.errors import IdentityError
from natskit.identity import passphrase, vault
from natskit.identity.files import locked, make_private, sync_directory, write_private
from natskit.identity.identity import Identity

BACKUP_KEY = Path("backup", "backup.key")
"""The key of the platform's own backups (:mod:`natskit.backup.sealing`), in its identity."""

_UNFINISHED = "restore-unfinished"
"""Beside the identity while a restore has closed the platform: the name of the backup."""

LARGEST = 64 * 1024**2
"""Maximum size of a backup to restore, in bytes. An identity has a few kilobytes per host."""


def backup(directory: Path, file: Path) -> None:
    """Write the identity in ``directory`` to ``file``, which must not exist. Raises :class:`IdentityError`."""
    if file.exists():
        raise IdentityError(f"{file} exists already: choose another file")
    if not file.absolute().parent.is_dir():
        raise IdentityError(f"{file.absolute().parent} is not a folder")
    if (directory / vault.KEY).exists():
        text = passphrase.current(str(directory))
        vault.unlock_with(directory, text)
    else:
        Identity.load(directory)  # before anybody is asked for a passphrase
        text = passphrase.chosen("the backup")
    with locked(directory):
        Identity.load(directory)
        content = vault.seal_with(_tar(directory), text)
    _write_new(file, content)


def restore(file: Path, directory: Path) -> None:
    """Restore a backup to ``directory``, which must be missing or empty and stays unchanged on an error.

    Raises :class:`IdentityError`.
    """
    refuse_filled(directory)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise IdentityError(f"{file}: {error.strerror}") from None
    text = passphrase.current(f"the backup {file}")
    packed = vault.open_with(content, text, file)

    def check(made: Path) -> None:
        if not vault.is_unlocked(made):
            vault.unlock_with(made, text)
        Identity.load(made)

    with arising(directory, check) as made:
        _untar(packed, file, made)


def refuse_filled(directory: Path) -> None:
    """Raise :class:`IdentityError` unless ``directory`` is missing or empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise IdentityError(f"{directory} is not empty: choose a folder that is missing or empty")


@contextmanager
def arising(directory: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a temporary folder. On success, and if ``check`` accepts its content, it atomically becomes
    ``directory``."""
    refuse_filled(directory)
    directory = directory.absolute()
    make_private(directory.parent)
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    if unfinished.exists():  # left by a process that was killed
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    try:
        yield unfinished
        check(unfinished)
        for folder, _, _ in os.walk(unfinished):
            sync_directory(Path(folder))
        unfinished.rename(directory)  # replaces an empty one, and no other (rename(2))
        sync_directory(directory.parent)
    except OSError as error:
        raise IdentityError(f"{directory} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _tar(directory: Path) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.name != ".lock":
                entry = tarfile.TarInfo(str(path.relative_to(directory)))
                content = path.read_bytes()
                entry.size, entry.mode, entry.mtime = len(content), 0o600, int(path.stat().st_mtime)
                archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def _untar(packed: bytes, file: Path, directory: Path) -> None:
    if len(packed) > LARGEST:
        raise IdentityError(f"{file} has {len(packed)} bytes, and a backup has at most {LARGEST}")
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as archive:
            for entry in archive:
                name = PurePosixPath(entry.name)
                content = archive.extractfile(entry) if entry.isfile() else None
                if content is None or name.is_absolute() or ".." in name.parts:
                    raise IdentityError(f"{file} is no backup of an identity: it holds {entry.name!r}")
                write_private(directory / name, content.read())
    except tarfile.TarError:
        raise IdentityError(f"{file} is no backup of an identity: there is no tar in it") from None


def _write_new(file: Path, content: bytes) -> None:
    """Write a private file atomically. Never overwrites an existing file."""
    fd, temporary = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(fd, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(fd)
        os.link(temporary, file)
    except FileExistsError:
        raise IdentityError(f"{file} exists already: choose another file") from None
    except OSError as error:
        raise IdentityError(f"{file} cannot be written: {error.strerror}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_directory(file.absolute().parent)


def unfinished_restore(identity: Path) -> str | None:
    """The backup whose restore into the platform has not ended, so that it is closed; ``None`` if there is none."""
    try:
        return (identity.parent / _UNFINISHED).read_text()
    except FileNotFoundError:
        return None


def begin_restore(identity: Path, name: str) -> None:
    """Note that the platform is about to be closed for the restore of a backup."""
    write_private(identity.parent / _UNFINISHED, name)


def end_restore(identity: Path) -> None:
    """Note that the platform is open again."""
    (identity.parent / _UNFINISHED).unlink(missing_ok=True)
