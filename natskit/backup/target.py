"""The place that holds the backups of a platform: a folder of this machine that only its owner may read (mode 0700), or
storage that rclone reaches (:mod:`natskit.backup.remote_target`), with the same content.

===========================  ======================================================================
``NAME/``                    a complete backup; its name is the time of its start, in UTC
``NAME/manifest.json``       what is in it (:mod:`natskit.backup.manifest`)
``NAME/verification.json``   the last verification that found nothing wrong
``NAME/identity.age``        the identity, as `natskit identity backup` writes it
``NAME/inventory.age``       the inventory, its settings, and the files that they name
``NAME/streams/ACCOUNT/``    one file for each stream
``files/RUNNER/``            restic's repository with the files of a runner's projects, of all backups
``.unfinished-NAME/``        a run that has not ended, or was killed: the next run removes it
===========================  ======================================================================
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from natskit.backup.manifest import Manifest
from natskit.errors import BackupError, IdentityError
from natskit.identity.files import check_private, make_private, sync_directory

NAME = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z(-\d+)?")
_UNFINISHED = ".unfinished-"
_LOCK = ".backup.lock"  # an identity has a .lock of its own
FILES = "files"


class Target:
    """A folder with backups."""

    def __init__(self, directory: Path) -> None:
        """``directory`` must be private if it exists. Raises :class:`BackupError`."""
        self.directory = directory.absolute()
        if self.directory.exists():
            try:
                check_private(self.directory)
            except IdentityError as error:
                raise BackupError(f"a folder for backups must be private: {error}") from None

    keeps_files = True
    """Whether the files of projects are on this machine's disk."""

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return str(self.directory)

    @property
    def environment(self) -> dict[str, str]:
        """What restic and rclone need besides this process's environment."""
        return {"RCLONE_CONFIG": os.devnull}

    def environment_of(self, runner: str, password: str) -> dict[str, str]:  # noqa: ARG002 - storage needs both
        """The same for the repository of a runner, with the password of that repository."""
        return self.environment

    @property
    def repositories(self) -> list[str]:
        """The runners whose files are here."""
        try:
            return sorted(os.listdir(self.directory / FILES))
        except FileNotFoundError:
            return []

    def repository(self, runner: str) -> str:
        """restic's name of the repository with the files of a runner."""
        return str(self.directory / FILES / runner)

    def served(self, runner: str) -> str:
        """rclone's name of that repository."""
        return self.repository(runner)

    @contextmanager
    def fetched(self, name: str | None) -> Iterator[Path]:
        """The folder of a backup, by default of the newest, with all of its content. Raises :class:`BackupError`."""
        yield self.folder(name)

    def verified(self, folder: Path) -> None:
        """Called when a verification has been written into the folder of a backup."""

    def create(self) -> None:
        """Make the folder, unless it exists. Raises :class:`BackupError`."""
        try:
            make_private(self.directory)
        except OSError as error:
            raise BackupError(f"{self.directory} cannot be made: {error.strerror}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Admit one command at a time that changes the folder, and remove what a killed one left.

        Raises :class:`BackupError` at once if another one runs.
        """
        try:
            fd = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BackupError(f"{self.directory}: {error.strerror}: name the folder of the backups") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise BackupError(
                f"another backup, verification or prune uses {self.place}: wait until it has ended"
            ) from None
        try:
            for left in self.directory.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(left)
            yield
        finally:
            os.close(fd)

    def names(self) -> list[str]:
        """The complete backups, oldest first. Raises :class:`BackupError` if there is no such folder."""
        try:
            found = [entry.name for entry in self.directory.iterdir() if NAME.fullmatch(entry.name)]
        except OSError as error:
            raise BackupError(f"{self.directory}: {error.strerror}: name the folder of the backups") from None
        return sorted(found, key=_order)

    def folder(self, name: str | None) -> Path:
        """The folder of a backup, by default of the newest one. Raises :class:`BackupError`."""
        names = self.names()
        if not names:
            raise BackupError(f"there is no backup in {self.place}: make one with `natskit backup create`")
        if name is not None and name not in names:
            raise BackupError(f"there is no backup {name[:40]!r} in {self.place}: `natskit backup list` names them")
        return self.directory / (name or names[-1])

    @contextmanager
    def arising(self, started: datetime) -> Iterator[Path]:
        """The folder of a new backup. It gets its name when the block ends, and is removed after an error."""
        folder = self.directory / (_UNFINISHED + self._free_name(started))
        folder.mkdir(mode=0o700)
        try:
            yield folder
            Manifest.read(folder)
            self._complete(folder, name_of(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _complete(self, folder: Path, name: str) -> None:
        """Give a finished backup its name."""
        os.sync()  # rclone has not waited until the disk has the files of projects
        for inner, _, _ in os.walk(folder):
            sync_directory(Path(inner))
        folder.rename(self.directory / name)
        sync_directory(self.directory)

    def _free_name(self, started: datetime) -> str:
        name = f"{started:%Y-%m-%dT%H%M%SZ}"
        taken = set(self.names())
        numbers = (f"{name}-{number}" for number in range(2, len(taken) + 3))
        return name if name not in taken else next(free for free in numbers if free not in taken)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private folder that is gone when the block ends, or when the next command begins."""
        folder = self.directory / f"{_UNFINISHED}scratch"
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a backup. If that is interrupted, the rest is not listed as a backup."""
        leaving = self.directory / (_UNFINISHED + name)
        (self.directory / name).rename(leaving)
        shutil.rmtree(leaving)
        sync_directory(self.directory)


def name_of(folder: Path) -> str:
    """The name of a backup whose folder may not be finished yet."""
    return folder.name.removeprefix(_UNFINISHED)


def _order(name: str) -> tuple[str, int]:
    time, _, number = name.partition("Z-")
    return time.removesuffix("Z"), int(number or 1)
