"""A restic repository (restic.net) with the files of one runner's projects, as the control machine reads it.

Snapshots are made and restored on the runner's host (:mod:`natskit.backup.runner_files`). Here they are checked,
listed, taken apart and forgotten. Data is deduplicated and encrypted. Each runner has a repository and a password of
its own: a host that somebody has taken over cannot read the files of another one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from natskit.backup.manifest import FilesEntry
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target
from natskit.errors import BackupError
from natskit.process.lifecycle import end_with_parent
from natskit.runner.agent_unit import instance_of

_PATTERN = re.compile(r"[*?\[\\]")
"""What has a meaning in restic's patterns (Go's filepath.Match)."""


class Repository:
    """The repository of one runner in a target."""

    def __init__(self, target: Target, key: BackupKey, runner: str) -> None:
        """Raises :class:`BackupError` without restic."""
        self._place, self._password = target.repository(runner), key.repository_password(runner)
        self._environment = target.environment_of(runner, self._password)
        if shutil.which("restic") is None:
            raise BackupError(
                "restic is not installed, and it backs up the files of projects: run `apt-get install restic`"
            )

    def ensure(self) -> None:
        """Make it, unless it exists, and remove locks of killed runs: the target's own lock admits only one run."""
        if self._restic("cat", "config", "--no-lock").returncode == 0:
            self._run("unlock", "--remove-all")
        else:
            self._run("init")

    def check(self) -> None:
        """Read everything in the repository and compare all hashes. Raises :class:`BackupError`."""
        self._run("check", "--read-data")

    def count(self, entry: FilesEntry) -> int:
        """The number of files in a snapshot. Raises :class:`BackupError` unless it is as the manifest says."""
        files = sum(1 for _ in self._files(entry.snapshot))
        if files != entry.files:
            raise BackupError(
                f"{self._place}: snapshot {entry.snapshot[:8]} has {files} files, and the manifest says {entry.files}"
            )
        return files

    def extract(self, entry: FilesEntry, project_id: str, path: str, place: Path) -> bool:
        """Make ``place`` as a file or folder of a project was. ``path`` is relative to its home; empty for all of it.

        Only the owner may open ``place``. Returns whether the snapshot has it. Raises :class:`BackupError`.
        """
        words = PurePosixPath(path)
        if words.is_absolute() or ".." in words.parts:
            raise BackupError(f"{path!r} is not a path inside the project: name it relative to the project's home")
        if os.path.lexists(place):
            raise BackupError(f"{place} exists already: choose a name that does not")
        made = place.with_name(f".{place.name}.restored")
        shutil.rmtree(made, ignore_errors=True)
        try:
            made.mkdir(mode=0o700)
            for home in (PurePosixPath(project_id, "home"), PurePosixPath(instance_of(project_id))):
                include = "/" + _PATTERN.sub(r"\\\g<0>", str(home / words))
                self._run("restore", entry.snapshot, "--target", str(made), "--verify", "--include", include)
                if os.path.lexists(found := made / home / words):
                    if not found.is_symlink():
                        found.chmod(0o700 if found.is_dir() else 0o600)
                    found.rename(place)
                    return True
            return False
        except OSError as error:
            raise BackupError(f"{place} cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def forget(self, *snapshots: str) -> None:
        """Forget snapshots. Their parts go with the next prune."""
        self._run("forget", *snapshots)

    def snapshots(self) -> list[str]:
        """The whole ids of all snapshots. Raises :class:`BackupError`."""
        return [str(one["id"]) for one in json.loads(self._run("snapshots"))]

    def keep_only(self, snapshots: set[str]) -> None:
        """Forget all other snapshots, and remove data that only they used. Raises :class:`BackupError`."""
        # restic 0.14 says the first eight digits of a new snapshot's id.
        unneeded = [one for one in self.snapshots() if not one.startswith(tuple(snapshots))]
        if unneeded:
            self.forget(*unneeded)
            self._run("prune")

    # ----

    def _files(self, snapshot: str) -> Iterator[str]:
        for line in self._run("ls", snapshot).splitlines():
            if line.startswith("{"):
                node = json.loads(line)
                if node.get("struct_type") == "node" and node.get("type") == "file":
                    yield str(node["path"])

    def _run(self, *words: str) -> str:
        done = self._restic(*words)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()[-3:] or [f"exit code {done.returncode}"]
            raise BackupError(f"restic {words[0]} in {self._place} failed: {' '.join(said)[-500:]}")
        return done.stdout

    def _restic(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run restic at the lowest priority. It reads the password from an anonymous file in memory."""
        command = ["nice", "-n", "19", "restic", "--repo", self._place, "--json", "--no-cache"]
        password = os.memfd_create("password")
        try:
            os.write(password, self._password.encode())
            command += ["--password-file", f"/dev/fd/{password}"]
            environment: dict[str, Any] = {n: v for n, v in os.environ.items() if not n.startswith("RESTIC_")}
            return subprocess.run(
                [*command, *words],
                env=environment | self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="surrogateescape",
                pass_fds=[password],
                preexec_fn=end_with_parent,  # prune must not go on without the lock of the target
                check=False,
            )
        finally:
            os.close(password)


def extract(
    target: Target, key: BackupKey, entries: Sequence[FilesEntry], project_id: str, path: str, place: Path
) -> None:
    """Make ``place`` as a file or folder of a project was in a backup. Raises :class:`BackupError` if it has none."""
    for entry in entries:
        if entry.snapshot and Repository(target, key, entry.runner).extract(entry, project_id, path, place):
            return
    what = f"no {path} of project {project_id}" if path else f"no files of project {project_id}"
    raise BackupError(f"the backup has {what}: `natskit backup list` names the others")
