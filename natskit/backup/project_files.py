"""The files of projects, by restic (restic.net): incremental, deduplicated and encrypted.

restic reads files while projects write them. If a file changes during that, restic succeeds, and stores a mixture of
both states. So :func:`take` compares size and time of each file afterwards, reads files that differ again, and reports
those that changed each time. A new run reads only changed files, and reuses the unchanged data of earlier runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Self

from natskit.backup.manifest import FilesEntry
from natskit.errors import BackupError
from natskit.ops.orphans import process_ids, words_of

ATTEMPTS = 3
"""How often changing files are read."""
OF_THE_RUNNER = ("agent.log", "project.json", "project.creds")
"""What a runner keeps beside a project's home, and makes anew at each start."""
CLOCK_SECONDS = 1e-5
"""How far two times of the same moment may differ: Python has microseconds, restic nanoseconds."""
_PATTERN = re.compile(r"[*?\[\\]")
"""What has a meaning in restic's patterns (Go's filepath.Match)."""
_PARTLY = 3
"""restic's exit code when it has made a snapshot without files that it could not read."""


@dataclass(frozen=True)
class _Node:
    """A file in a snapshot."""

    path: str
    size: int
    modified: datetime


class Repository:
    """A restic repository in a folder of this machine."""

    def __init__(self, folder: Path, password: str) -> None:
        """Raises :class:`BackupError` without restic."""
        self._folder, self._password = folder, password
        self._taken: list[str] = []
        if shutil.which("restic") is None:
            raise BackupError(
                "restic is not installed, and it backs up the files of projects: run `apt-get install restic`"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After an error, forget the snapshots of the backup that was not finished. Their parts go with the next
        prune."""
        if kind is not None and self._taken:
            with suppress(BackupError, OSError):  # what went wrong first is what is said
                self._run("forget", *self._taken)

    @property
    def exists(self) -> bool:
        """Whether it exists."""
        return (self._folder / "config").exists()

    def ensure(self) -> None:
        """Make it, unless it exists, and remove locks of killed runs: the target's own lock admits only one run."""
        if not self.exists:
            shutil.rmtree(self._folder, ignore_errors=True)  # the start of one
            self._run("init")
        else:
            self._run("unlock", "--remove-all")

    def take(self, name: str, runner: str, projects: Path) -> FilesEntry:
        """Back up a folder with projects, some of which may run. Raises :class:`BackupError`."""
        taken = datetime.now(UTC)
        for attempt in range(ATTEMPTS):
            snapshot = self._snapshot(name, runner, projects)
            nodes = list(self._nodes(snapshot))
            torn = [node.path for node in nodes if _has_changed(node, projects)]
            if not torn or attempt == ATTEMPTS - 1:
                self._taken.append(snapshot)
                break
            self._run("forget", snapshot)
        size = sum(node.size for node in nodes)
        return FilesEntry(runner=runner, taken=taken, snapshot=snapshot, files=len(nodes), size=size, torn=torn)

    def _snapshot(self, name: str, runner: str, projects: Path) -> str:
        """Make a snapshot. Its paths are relative to ``projects``, so that it fits into any other folder."""
        left: list[str] = []
        for _ in range(ATTEMPTS):
            without = [word for own in OF_THE_RUNNER for word in ("--exclude", f"{projects}/*/{own}")]
            words = ["backup", "--tag", name, "--host", runner, "--one-file-system", *without, "."]
            done = self._restic(*words, folder=projects)
            if done.returncode not in (0, _PARTLY):
                raise self._failure("backup", done)
            snapshot = next(line["snapshot_id"] for line in _lines(done.stdout) if "snapshot_id" in line)
            if done.returncode == 0:
                return str(snapshot)
            # A running project may remove a file between its listing and its reading: only what is there is missing.
            unread = [str(line.get("item", "")) for line in _lines(done.stderr) if line.get("message_type") == "error"]
            left = [item for item in unread if os.path.lexists(projects / item)]
            if unread and not left:
                return str(snapshot)
            self._run("forget", snapshot)
        named = ", ".join(left[:3]) or "all files"
        raise BackupError(f"restic cannot read {named} in {projects}: see their owner and mode")

    def _nodes(self, snapshot: str) -> Iterator[_Node]:
        for line in _lines(self._run("ls", snapshot)):
            if line.get("struct_type") == "node" and line.get("type") == "file":
                modified = datetime.fromisoformat(line["mtime"])
                yield _Node(line["path"].lstrip("/"), int(line.get("size", 0)), modified)

    def check(self) -> None:
        """Read everything in the repository and compare all hashes. Raises :class:`BackupError`."""
        self._run("check", "--read-data")

    def count(self, entry: FilesEntry) -> int:
        """The number of files in a snapshot. Raises :class:`BackupError` unless it is as the manifest says."""
        files = sum(1 for _ in self._nodes(entry.snapshot))
        if files != entry.files:
            raise BackupError(
                f"{self._folder}: snapshot {entry.snapshot[:8]} has {files} files, and the manifest says {entry.files}"
            )
        return files

    def restore(self, entry: FilesEntry, projects: Path) -> None:
        """Restore the projects of a snapshot into a folder, where each replaces the project of its name.

        Raises :class:`BackupError`.
        """
        made = projects.with_name(f".{projects.name}.restored")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        try:
            self._run("restore", entry.snapshot, "--target", str(made), "--verify")
            for project in sorted(made.iterdir()):
                there = projects / project.name
                if there.exists():
                    shutil.rmtree(there)
                project.rename(there)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def extract(self, entries: Sequence[FilesEntry], project_id: str, path: str, place: Path) -> None:
        """Make ``place`` as a file or folder of a project was. ``path`` is relative to its home; empty for all of it.

        Only the owner may open ``place``. Raises :class:`BackupError` if it exists, or if no snapshot has the file.
        """
        words = PurePosixPath(path)
        if words.is_absolute() or ".." in words.parts:
            raise BackupError(f"{path!r} is not a path inside the project: name it relative to the project's home")
        if os.path.lexists(place):
            raise BackupError(f"{place} exists already: choose a name that does not")
        wanted = PurePosixPath(project_id, "home") / words
        made = place.with_name(f".{place.name}.restored")
        shutil.rmtree(made, ignore_errors=True)
        try:
            made.mkdir(mode=0o700)
            for entry in entries:
                include = "/" + _PATTERN.sub(r"\\\g<0>", str(wanted))
                self._run("restore", entry.snapshot, "--target", str(made), "--verify", "--include", include)
                if os.path.lexists(made / wanted):
                    if not (made / wanted).is_symlink():
                        (made / wanted).chmod(0o700 if (made / wanted).is_dir() else 0o600)
                    (made / wanted).rename(place)
                    return
        except OSError as error:
            raise BackupError(f"{place} cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(made, ignore_errors=True)
        what = f"no {path} of project {project_id}" if path else f"no files of project {project_id}"
        raise BackupError(f"the backup has {what}: `natskit backup list` names the others")

    def keep_only(self, snapshots: set[str]) -> None:
        """Forget all other snapshots, and remove data that only they used. Raises :class:`BackupError`."""
        known = [str(one["id"]) for one in json.loads(self._run("snapshots"))]
        # restic 0.14 says the first eight digits of a new snapshot's id.
        unneeded = [snapshot for snapshot in known if not snapshot.startswith(tuple(snapshots))]
        if unneeded:
            self._run("forget", *unneeded)
            self._run("prune")

    def _run(self, *words: str) -> str:
        done = self._restic(*words)
        if done.returncode != 0:
            raise self._failure(words[0], done)
        return done.stdout

    def _restic(self, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run restic at the lowest priority. It reads the password from an anonymous file in memory."""
        command = ["nice", "-n", "19", "restic", "--repo", str(self._folder), "--json", "--no-cache"]
        password = os.memfd_create("password")
        try:
            os.write(password, self._password.encode())
            command += ["--password-file", f"/dev/fd/{password}"]
            return subprocess.run(
                [*command, *words],
                cwd=folder,
                env={name: value for name, value in os.environ.items() if not name.startswith("RESTIC_")},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="surrogateescape",
                pass_fds=[password],
                check=False,
            )
        finally:
            os.close(password)

    def _failure(self, what: str, done: subprocess.CompletedProcess[str]) -> BackupError:
        said = done.stderr.strip().splitlines()[-3:] or [f"exit code {done.returncode}"]
        return BackupError(f"restic {what} in {self._folder} failed: {' '.join(said)[-500:]}")


def _has_changed(node: _Node, projects: Path) -> bool:
    """Whether a file differs from its copy in a snapshot. A file that is gone counts as unchanged."""
    try:
        now = (projects / node.path).lstat()
    except OSError:
        return False
    modified = datetime.fromtimestamp(now.st_mtime, UTC)
    return now.st_size != node.size or abs((modified - node.modified).total_seconds()) > CLOCK_SECONDS


def _lines(output: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of restic's output, one a line."""
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def running(projects: Path) -> set[str]:
    """The projects in a folder whose agents run. Agents are found by their command lines, which name that folder."""
    words = (Path(word) for pid in process_ids() for word in words_of(pid) if word.startswith(f"{projects}/"))
    return {path.relative_to(projects).parts[0] for path in words}


def size_of(folders: Sequence[Path]) -> int:
    """Bytes of all files in some folders, as a copy without holes has them."""
    total = 0
    for top in folders:
        for folder, _, names in os.walk(top):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except OSError:
                    continue
    return total
