"""Backups in storage that rclone (rclone.org) reaches: another host over SSH, S3-compatible storage, and many others.

The target is written ``rclone:REMOTE:PATH``. REMOTE is a section of rclone's configuration file, which holds the
credentials and which only its owner may read. A folder of this machine holds the manifests of all backups, and the
streams of a backup while it is made, verified or restored. A backup is complete when its manifest is there, which is
written last.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from natskit.backup.manifest import MANIFEST, VERIFICATION
from natskit.backup.target import FILES, NAME, Target
from natskit.errors import BackupError, IdentityError
from natskit.identity.files import check_private
from natskit.process.lifecycle import end_with_parent

PREFIX = "rclone:"
_REMOTE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+@ -]*):([^:]*)")
_PATIENCE = ("--contimeout", "20s", "--timeout", "120s", "--low-level-retries", "5")
_ENCRYPTED = "NATSKITFILES"
"""The remote for the files of projects, in rclone's environment alone."""
_NOT_FOUND = (3, 4)
"""rclone's exit codes for a folder or a file that is not there."""


class RemoteTarget(Target):
    """A folder of a remote of rclone."""

    keeps_files = False

    def __init__(self, text: str) -> None:
        """``text`` is ``rclone:REMOTE:PATH``. Raises :class:`BackupError`."""
        found = _REMOTE.fullmatch(text.removeprefix(PREFIX))
        if found is None or not found[2].strip("/"):
            raise BackupError(
                f"{text}: write rclone:REMOTE:PATH, with a remote of rclone's configuration file and a folder in it, "
                "such as rclone:vault:natskit"
            )
        if shutil.which("rclone") is None:
            raise BackupError("rclone is not installed, and it reaches the target: run `apt-get install rclone`")
        self._config = Path(os.environ.get("RCLONE_CONFIG") or Path.home() / ".config" / "rclone" / "rclone.conf")
        self._remote, self._place = found[1], text.removeprefix(PREFIX).rstrip("/")
        if not self._config.exists():
            raise BackupError(f"there is no {self._config}: `rclone config` makes it, with the remote {self._remote}")
        try:
            check_private(self._config)
        except (IdentityError, OSError) as error:
            raise BackupError(
                f"rclone's configuration file must be private, since it has credentials: {error}"
            ) from None
        if f"{self._remote}:" not in self._run("listremotes").splitlines():
            raise BackupError(f"{self._config} has no remote {self._remote}: `rclone config` makes one")
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        super().__init__(caches / "natskit" / f"backups-{hashlib.sha256(self._place.encode()).hexdigest()[:16]}")
        self.create()

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return PREFIX + self._place

    @property
    def environment(self) -> dict[str, str]:
        """What restic and rclone need besides this process's environment."""
        return {"RCLONE_CONFIG": str(self._config)}

    @property
    def repositories(self) -> list[str]:
        """The runners whose files are there."""
        return self._folders(f"{self._place}/{FILES}")

    def environment_of(self, runner: str, password: str) -> dict[str, str]:
        """The same, with a remote that encrypts each name of the repository of a runner (rclone.org/crypt).

        So nothing that a runner's host asks for is a path of the storage, such as ``..``: rclone 1.60, which Debian
        has, does not look for that.
        """
        name = f"RCLONE_CONFIG_{_ENCRYPTED}"
        return self.environment | {
            f"{name}_TYPE": "crypt",
            f"{name}_REMOTE": f"{self._place}/{FILES}/{runner}",
            f"{name}_PASSWORD": self._run("obscure", "-", given=password).strip(),
        }

    def repository(self, runner: str) -> str:
        """restic's name of the repository with the files of a runner."""
        return PREFIX + self.served(runner)

    def served(self, runner: str) -> str:  # noqa: ARG002 - the environment says whose it is
        """rclone's name of that repository."""
        return f"{_ENCRYPTED}:"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """As in a folder. Removes what a killed command has left in the storage, too."""
        with super().locked():
            complete = set(self.names())
            for name in self._folders(self._place):
                if NAME.fullmatch(name) and name not in complete:
                    self._run("purge", f"{self._place}/{name}")
            yield

    def names(self) -> list[str]:
        """The complete backups, oldest first. Gets their manifests. Raises :class:`BackupError`."""
        wanted = [word for file in (MANIFEST, VERIFICATION) for word in ("--include", f"/[0-9]*Z*/{file}")]
        if self._run("sync", *wanted, self._place, str(self.directory), if_missing="missing") == "missing":
            return []
        return [name for name in super().names() if (self.directory / name / MANIFEST).exists()]

    @contextmanager
    def fetched(self, name: str | None) -> Iterator[Path]:
        """The folder of a backup with all of its content, which is on this machine until the block ends."""
        folder = self.folder(name)
        try:
            self._run("copy", f"{self._place}/{folder.name}", str(folder))
            yield folder
        finally:
            for entry in folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name not in (MANIFEST, VERIFICATION):
                    entry.unlink()

    def verified(self, folder: Path) -> None:
        """Put the verification beside the manifest."""
        self._run("copyto", str(folder / VERIFICATION), f"{self._place}/{folder.name}/{VERIFICATION}")

    def remove(self, name: str) -> None:
        """Remove a backup. If that is interrupted, the rest is not listed as a backup."""
        self._run("deletefile", f"{self._place}/{name}/{MANIFEST}")
        self._run("purge", f"{self._place}/{name}")
        shutil.rmtree(self.directory / name, ignore_errors=True)

    def _complete(self, folder: Path, name: str) -> None:
        there = f"{self._place}/{name}"
        try:
            self._run("copy", "--exclude", f"/{MANIFEST}", str(folder), there)
            self._run("copyto", str(folder / MANIFEST), f"{there}/{MANIFEST}")
        except BaseException:
            with suppress(BackupError):
                self._run("purge", there)
            raise

    def _folders(self, place: str) -> list[str]:
        listed = self._run("lsf", "--dirs-only", place, if_missing="")
        return sorted(line.rstrip("/") for line in listed.splitlines())

    def _run(self, *words: str, if_missing: str | None = None, given: str = "") -> str:
        done = subprocess.run(
            ["rclone", *_PATIENCE, *words],
            env=os.environ | self.environment,
            input=given,
            capture_output=True,
            text=True,
            umask=0o077,
            preexec_fn=end_with_parent,
            check=False,
        )
        if if_missing is not None and done.returncode in _NOT_FOUND:
            return if_missing
        if done.returncode == 0:
            return done.stdout
        said = " ".join(line.strip() for line in done.stderr.splitlines()[-3:])[-500:]
        raise BackupError(
            f"rclone {words[0]} in {PREFIX}{self._place} failed: {said or f'exit code {done.returncode}'}"
        )


def target_of(text: str) -> Target:
    """The target that a user names: a folder, or ``rclone:REMOTE:PATH``. Raises :class:`BackupError`."""
    return RemoteTarget(text) if text.startswith(PREFIX) else Target(Path(text))
