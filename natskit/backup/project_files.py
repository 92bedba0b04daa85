"""A restic repository (restic.net) with the files of one runner's projects, as the control machine reads it.

Snapshots are made and restored on the runner's host (:mod:`natskit.backup.runner_files`). Here they are checked,
listed, read and forgotten. Data is deduplicated and encrypted. Each runner has a repository and a password of
its own: a host that somebody has taken over cannot read the files of another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from natskit.backup import unpacking
from natskit.backup.manifest import FilesEntry
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target
from natskit.errors import BackupError
from natskit.process.lifecycle import end_with_parent
from natskit.runner.agent_unit import instance_of

LINE_BYTES = 4 * 1024**2
"""Of restic's output: a line about a file has its whole path."""
_RESTIC = ("nice", "-n", "19", "restic")
_OPTIONS = ("--json", "--no-cache")


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
        files = sum(1 for node in self._nodes(entry.snapshot) if node.get("type") == "file")
        if files != entry.files:
            raise BackupError(
                f"{self._place}: snapshot {entry.snapshot[:8]} has {files} files, and the manifest says {entry.files}"
            )
        return files

    def size_of(self, entry: FilesEntry, project_id: str) -> int | None:
        """Bytes of the files of a project; ``None`` if the snapshot has no such project. Raises
        :class:`BackupError`."""
        for folder in (project_id, instance_of(project_id)):
            sizes = [_size(node) for node in self._nodes("--recursive", entry.snapshot, f"/{folder}")]
            if sizes:
                return sum(sizes)
        return None

    def extract(self, entry: FilesEntry, project_id: str, path: str, place: Path) -> list[str] | None:
        """Make ``place`` as a file or folder of a project was. ``path`` is relative to its home; empty for all of it.

        Only the owner may open ``place``. Returns what was left out (:func:`natskit.backup.unpacking.unpack`), or
        ``None`` if the snapshot has no such path. Raises :class:`BackupError`.

        The host of the runner may be in somebody else's hands, and have written anything into the repository. So restic
        writes nothing here: it only prints.
        """
        words = PurePosixPath(path)
        if words.is_absolute() or ".." in words.parts:
            raise BackupError(f"{path!r} is not a path inside the project: name it relative to the project's home")
        if os.path.lexists(place):
            raise BackupError(f"{place} exists already: choose a name that does not")
        for home in (PurePosixPath(project_id, "home"), PurePosixPath(instance_of(project_id))):
            wanted = str(home / words)
            nodes = self._nodes("--recursive", entry.snapshot, f"/{wanted}")
            with contextlib.closing(nodes):
                first = next(nodes, None)
                if first is None:
                    continue
                known = unpacking.Listed.of(first, nodes)
            if first.get("type") not in ("dir", "file"):
                raise BackupError(
                    f"{path} is a {first.get('type')} in the backup: name the folder that it is in, or the file that "
                    "it leads to"
                )
            with unpacking.arising(place) as made, self._printing("dump", entry.snapshot, f"/{wanted}") as content:
                if first.get("type") == "file":
                    unpacking.write(content, made, known)
                    return []
                return unpacking.unpack(content, made, wanted, known)
        return None

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

    def _nodes(self, *words: str) -> Generator[dict[str, Any], None, None]:
        """What `restic ls` names, while it runs: a snapshot may have any number of files."""
        with self._printing("ls", *words) as output:
            while line := output.readline(LINE_BYTES):
                if not line.endswith(b"\n"):
                    raise BackupError(f"{self._place}: restic names a file with more than {LINE_BYTES} bytes")
                node = json.loads(line) if line.startswith(b"{") else {}  # restic's own words, whatever the host wrote
                if node.get("struct_type") == "node":
                    yield node

    def _run(self, *words: str) -> str:
        done = self._restic(*words)
        if done.returncode != 0:
            raise self._failure(words[0], done.returncode, done.stderr)
        return done.stdout

    def _restic(self, *words: str) -> subprocess.CompletedProcess[str]:
        with self._command() as options:
            return subprocess.run(
                [*_RESTIC, "--repo", self._place, *_OPTIONS, *words],
                capture_output=True,
                text=True,
                errors="surrogateescape",
                check=False,
                **options,
            )

    @contextmanager
    def _printing(self, *words: str) -> Iterator[IO[bytes]]:
        """What restic prints, while it runs. It is ended with the block. Raises :class:`BackupError` if it fails."""
        with self._command() as options, tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [*_RESTIC, "--repo", self._place, *_OPTIONS, *words], stdout=subprocess.PIPE, stderr=said, **options
            )
            assert process.stdout is not None
            broken: tarfile.TarError | None = None
            try:
                try:
                    yield process.stdout
                except tarfile.TarError as error:
                    broken = error
                while process.stdout.read(LINE_BYTES):  # the padding of a tar
                    pass
                if process.wait() != 0:
                    said.seek(0)
                    raise self._failure(words[0], process.returncode, said.read(LINE_BYTES).decode(errors="replace"))
                if broken is not None:
                    raise broken
            finally:
                process.kill()
                process.stdout.close()
                process.wait()

    def _failure(self, word: str, code: int, said: str) -> BackupError:
        last = said.strip().splitlines()[-3:] or [f"exit code {code}"]
        return BackupError(f"restic {word} in {self._place} failed: {' '.join(last)[-500:]}")

    @contextmanager
    def _command(self) -> Iterator[dict[str, Any]]:
        """How restic is started. It reads the password from an anonymous file in memory."""
        password = os.memfd_create("password")
        try:
            os.write(password, self._password.encode())
            environment = {name: value for name, value in os.environ.items() if not name.startswith("RESTIC_")}
            yield {
                "env": environment | self._environment | {"RESTIC_PASSWORD_FILE": f"/dev/fd/{password}"},
                "stdin": subprocess.DEVNULL,
                "pass_fds": [password],
                "preexec_fn": end_with_parent,  # prune must not go on without the lock of the target
            }
        finally:
            os.close(password)


def _size(node: dict[str, Any]) -> int:
    return int(node.get("size", 0)) if node.get("type") == "file" else 0


def extract(
    target: Target, key: BackupKey, entries: Sequence[FilesEntry], project_id: str, path: str, place: Path
) -> list[str]:
    """Make ``place`` as a file or folder of a project was in a backup. Returns what was left out, being no file, folder
    or link. Raises :class:`BackupError` if the backup has none."""
    for entry in entries:
        if entry.snapshot:
            left_out = Repository(target, key, entry.runner).extract(entry, project_id, path, place)
            if left_out is not None:
                return left_out
    what = f"no {path} of project {project_id}" if path else f"no files of project {project_id}"
    raise BackupError(f"the backup has {what}: `natskit backup list` names the others")
