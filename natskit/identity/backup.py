"""A whole identity in one file, and back: a tar, encrypted with a passphrase (age, c2sp.org/age).

Without natskit: ``age --decrypt FILE | tar -x``. An encrypted identity is backed up as it is, sealed, by its own
passphrase; another passphrase later does not change that of an earlier backup.
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
from natskit.identity import Identity, passphrase, vault
from natskit.identity.files import locked, make_private, sync_directory, write_private

LARGEST = 64 * 1024**2
"""Bytes of a backup that is restored; an identity has some kilobytes for each host."""


def backup(directory: Path, file: Path) -> None:
    """Write the identity in ``directory`` to ``file``, which must not be there yet. Raises :class:`IdentityError`."""
    if file.exists():
        raise IdentityError(f"{file} is there already: name another file")
    if not file.absolute().parent.is_dir():
        raise IdentityError(f"{file.absolute().parent} is no folder")
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
    """Put the identity in a backup to ``directory``, which must be missing or empty: whole, or not at all.

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
        raise IdentityError(f"{directory} is not empty: name a folder that is missing or empty")


@contextmanager
def arising(directory: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A folder to fill, which becomes ``directory`` at once when it is filled and ``check`` accepts it."""
    refuse_filled(directory)
    directory = directory.absolute()
    make_private(directory.parent)
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    if unfinished.exists():  # whoever made it was killed
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
        raise IdentityError(f"{file} holds {len(packed)} bytes, and no identity has more than {LARGEST}")
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
    """Whole, private, and never over a file that is there already."""
    fd, temporary = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(fd, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(fd)
        os.link(temporary, file)
    except FileExistsError:
        raise IdentityError(f"{file} is there already: name another file") from None
    except OSError as error:
        raise IdentityError(f"{file} cannot be written: {error.strerror}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_directory(file.absolute().parent)
