"""``runners.{runner_id}.backup``: the methods by which the control machine backs up and restores the files of projects.

Only the control machine may publish there. It begins a job, which is one run of restic on this host
(:mod:`natskit.runner.backup_job`), carries restic's bytes to the target and back, and reads the result. A runner has
one job at a time. Restored files wait beside the projects until ``settle`` puts them in their places.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from natskit.errors import NatskitError
from natskit.project.config import Id
from natskit.rpc import Methods, RpcError
from natskit.runner.agent_unit import instance_of, project_of
from natskit.runner.backup_job import BackupJob
from natskit.runner.config import RunnerProgram
from natskit.runner.project_agent import ProjectAgent
from natskit.runner.removal import remove_tree
from natskit.runner.sandbox import HOMES

OF_THE_RUNNER = ("agent.log", "project.json", "project.creds")
"""What a runner keeps beside a project's home without systemd, and makes anew at each start."""
STAGE = ".restored"
"""The folder, beside the projects, with what is restored and not in its place yet."""
CLOCK_SECONDS = 1e-5
"""How far two times of the same moment may differ: Python has microseconds, restic nanoseconds."""
NAMED_BYTES = 128 * 1024
"""Of their names in an answer, as JSON."""
MOST_TORN = 1000
"""Files that are named."""
SPARE_BYTES = 64 * 1024**2
_PARTLY = 3
"""restic's exit code when it has made a snapshot without files that it could not read."""

Snapshot = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Number = Annotated[int, Field(ge=0)]
Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]


@dataclass
class _Found:
    """What a job has read in restic's output."""

    snapshot: str = ""
    files: int = 0
    size: int = 0
    torn: list[str] = field(default_factory=list)
    strange: set[str] = field(default_factory=set)
    """Folders of projects with files that are not of the user of the folder."""
    users: dict[str, int] = field(default_factory=dict)
    """The user of each project's folder."""


class Backups:
    """The files of all projects of this runner, for backups."""

    def __init__(self, program: RunnerProgram, project: Callable[[str], ProjectAgent]) -> None:
        self.project = project
        self._program = program
        self.with_systemd = program.manager == "systemd"
        self.top = HOMES if self.with_systemd else program.directory / "projects"
        """The folder with a folder for each project."""
        self._job: BackupJob | None = None
        self._job_id = ""
        self._found = _Found()
        self.settled: list[str] = []
        """The projects that were put in their places last: the answer to a request that is repeated."""

    @property
    def stage(self) -> Path:
        """Where restored files wait."""
        return self.top / STAGE

    def check_free(self, job_id: str) -> None:
        """Raises :class:`RpcError` while another job runs."""
        if self._job is not None and self._job.is_running and self._job_id != job_id:
            raise RpcError("conflict", "another command backs up or restores the files of this runner")

    async def begin(self, job_id: str, password: str, words: list[str], cwd: Path) -> None:
        """Start restic. Ends a job that the control machine has left. Raises :class:`RpcError`."""
        self.check_free(job_id)
        await self.end()
        self._found, self._job_id = _Found(), job_id
        self._job = BackupJob(self._program.directory / "backup", self._read)
        try:
            await self._job.start(self._program.python, password, words, cwd)
        except OSError as error:
            await self.end()
            raise RpcError("invalid_state", f"restic cannot be started for {cwd}: {error}") from None
        except BaseException:
            await self.end()
            raise

    def job(self, job_id: str) -> BackupJob:
        """Raises :class:`RpcError` unless this is the present job."""
        if self._job is None or self._job_id != job_id:
            raise RpcError("conflict", "the runner was restarted meanwhile, or another command took its turn")
        return self._job

    async def end(self) -> None:
        """End the job, if there is one."""
        job, self._job = self._job, None
        if job is not None:
            await job.end()

    def unread(self, job: BackupJob) -> list[str]:
        """What restic could not read although it is there: a running project may remove a file meanwhile."""
        items = [str(error.get("item", "")) for error in job.errors]
        return [item for item in items if not _is_gone(self.top / item)]

    @property
    def found(self) -> dict[str, Any]:
        """What the present job has read."""
        found = self._found
        return {
            "snapshot": found.snapshot,
            "files": found.files,
            "size": found.size,
            "torn": _named(found.torn),
            "strange": sorted(found.strange)[:MOST_TORN],
        }

    def _read(self, line: dict[str, Any]) -> None:
        if "snapshot_id" in line:
            self._found.snapshot = str(line["snapshot_id"])
        if line.get("struct_type") != "node":
            return
        top, _, below = str(line["path"]).lstrip("/").partition("/")
        user = self._found.users.setdefault(top, int(line.get("uid", 0)))
        if below and int(line.get("uid", 0)) != user:
            # A folder was swapped for a link while restic read: what is behind it is not the project's.
            self._found.strange.add(top)
        if line.get("type") == "file":
            self._found.files += 1
            self._found.size += int(line.get("size", 0))
            path = str(line["path"]).lstrip("/")
            if len(self._found.torn) < MOST_TORN and _has_changed(self.top / path, line):
                self._found.torn.append(path)

    def project_in(self, name: str) -> str | None:
        """The project of a folder in a snapshot; ``None`` if it is none."""
        with suppress(ValueError):
            return name if str(uuid.UUID(name)) == name else None
        return project_of(f"natskit-project@{name}.service")

    def folder_of(self, project_id: str) -> str:
        """The folder of a project in a snapshot of this runner."""
        return instance_of(project_id) if self.with_systemd else project_id

    def restored(self) -> dict[str, Path]:
        """The homes that wait, by project. Without systemd, a project's home has a folder around it."""
        try:
            names = sorted(os.listdir(self.stage))
        except FileNotFoundError:
            return {}
        found = {}
        for name in names:
            if project_id := self.project_in(name):
                inner = self.stage / name / "home"
                home = inner if project_id == name else self.stage / name
                if home.is_dir():
                    found[project_id] = home
        return found


@dataclass
class BackupCall:
    """One request: the first parameter of each method."""

    backups: Backups
    data: memoryview
    most: int
    answer_data: bytes = field(default=b"")


def _named(paths: list[str]) -> list[str]:
    """As many of the paths as an answer has room for."""
    found, room = list[str](), NAMED_BYTES
    for path in paths:
        room -= len(json.dumps(path))
        if room < 0:
            return [*found, f"and {len(paths) - len(found)} more"]
        found.append(path)
    return found


def _is_gone(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _has_changed(path: Path, line: dict[str, Any]) -> bool:
    """Whether a file differs from its copy in a snapshot. A file that is gone counts as unchanged."""
    try:
        now = path.lstat()
    except OSError:
        return False
    then = datetime.fromisoformat(line["mtime"])
    age = (datetime.fromtimestamp(now.st_mtime, UTC) - then).total_seconds()
    return now.st_size != int(line.get("size", 0)) or abs(age) > CLOCK_SECONDS


def _size_of(top: Path) -> int:
    """Holes do not count: restic stores a long run of zeros once."""
    total, folders = 0, [str(top)]
    while folders:  # os.walk of Python 3.11 calls itself, and a project may have any number of folders in folders
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    total += min(status.st_size, status.st_blocks * 512)
    return total


backup_methods: Methods[BackupCall] = Methods()


@backup_methods.method("size")
async def size(call: BackupCall) -> int:
    """Bytes of all files of all projects, as a copy without holes has them."""
    backups = call.backups
    if not backups.top.is_dir():
        raise RpcError("invalid_state", f"{backups.top} is not there: is the disk with the homes mounted?")
    return await asyncio.to_thread(_size_of, backups.top)


@backup_methods.method("take")
async def take(
    call: BackupCall,
    job_id: Id,
    password: str,
    runner_id: Id,
    name: str,
    rate: Number,
    left_out: list[Folder] | None = None,
) -> dict[str, Any]:
    """Begin a snapshot of all projects, if there are any, but those in the folders ``left_out``.

    ``rate`` is in KiB a second; 0 for no limit.
    """
    top, left_out = call.backups.top, left_out or []
    present = {one for one in await asyncio.to_thread(os.listdir, top) if call.backups.project_in(one)}
    if not present - {*left_out}:
        return {"is_empty": True}  # restic refuses to make an empty snapshot
    patterns = [f"{top}/.*", *(f"{top}/{folder}" for folder in left_out)]
    if not call.backups.with_systemd:
        patterns += [f"{top}/*/.home.*", *(f"{top}/*/{own}" for own in OF_THE_RUNNER)]
    words = ["backup", "--tag", name, "--host", runner_id, "--one-file-system", "--limit-upload", str(rate)]
    words += [word for pattern in patterns for word in ("--exclude", pattern)]
    await call.backups.begin(job_id, password, [*words, "."], top)
    return {"is_empty": False}


@backup_methods.method("compare")
async def compare(call: BackupCall, job_id: Id, password: str, snapshot: Snapshot) -> dict[str, Any]:
    """Begin to compare a snapshot with the files as they are now."""
    await call.backups.begin(job_id, password, ["ls", snapshot], call.backups.top)
    return {}


@backup_methods.method("stage")
async def stage(
    call: BackupCall, job_id: Id, password: str, snapshot: Snapshot, size: Number, project_id: Id | None
) -> dict[str, Any]:
    """Begin to restore all projects of a snapshot, or one, beside those that are there."""
    backups = call.backups
    backups.check_free(job_id)  # before what another command restores is removed
    backups.settled = []
    await remove_tree(backups.stage)
    free = shutil.disk_usage(backups.top).free - SPARE_BYTES
    if size > free:
        raise RpcError(
            "limit", f"the restored files need {size // 1024**2} MiB, and {backups.top} has {free // 1024**2} MiB free"
        )
    backups.stage.mkdir(mode=0o700)
    words = ["restore", snapshot, "--target", str(backups.stage), "--verify"]
    if project_id is not None:
        # A snapshot may be of a runner that keeps its projects in another way.
        words += [word for name in (project_id, instance_of(project_id)) for word in ("--include", f"/{name}")]
    await backups.begin(job_id, password, words, backups.top)
    return {}


@backup_methods.method("read")
async def read(call: BackupCall, job_id: Id, number: Number) -> dict[str, Any]:
    """The next bytes that restic writes, after the JSON of the answer."""
    call.answer_data, ended = await call.backups.job(job_id).read(number, call.most - 1024)
    return {"ended": ended}


@backup_methods.method("write")
async def write(call: BackupCall, job_id: Id, number: Number) -> dict[str, Any]:
    """Give restic the next bytes, which come after the JSON of the request."""
    await call.backups.job(job_id).write(number, call.data)
    return {}


@backup_methods.method("result")
async def result(call: BackupCall, job_id: Id) -> dict[str, Any]:
    """How restic ended, and what it found. Raises :class:`RpcError` if it failed."""
    backups = call.backups
    job = backups.job(job_id)
    code = await job.result()
    unread = backups.unread(job) if code == _PARTLY else []
    said = " ".join(job.said) or "; ".join(str(error.get("error")) for error in job.errors[:3])
    await backups.end()
    if code == _PARTLY and not unread:
        code = 0
    if code not in (0, _PARTLY):
        raise RpcError("invalid_state", f"restic ended with {code}: {said[-500:]}")
    return backups.found | {"unread": _named(unread)}


@backup_methods.method("end")
async def end(call: BackupCall, job_id: Id) -> dict[str, Any]:
    """End a job that is not needed any more."""
    with suppress(RpcError):
        call.backups.job(job_id)
        await call.backups.end()
    return {}


@backup_methods.method("running")
async def running(call: BackupCall, project_ids: list[Id] | None) -> list[str]:
    """Of these projects, or of all that wait to be put in their places, those that run."""
    wanted = call.backups.restored() if project_ids is None else project_ids
    return sorted(one for one in wanted if call.backups.project(one).state not in ("stopped", "failed"))


@backup_methods.method("holds")
async def holds(call: BackupCall, project_id: Id) -> bool:
    """Whether the files of a project are here."""
    return call.backups.project(project_id).home.exists()


@backup_methods.method("settle")
async def settle(call: BackupCall) -> list[str]:
    """Put each restored project in its place, and remove the files that were there. Returns their ids.

    Raises :class:`RpcError` before anything is changed if one of them runs.
    """
    backups = call.backups
    waiting = backups.restored()
    if not waiting:
        await _discard(backups)
        return backups.settled
    for project_id in waiting:
        if backups.project(project_id).state not in ("stopped", "failed"):
            raise RpcError("conflict", f"the project {project_id} runs: stop it first")
    for project_id, home in waiting.items():
        project = backups.project(project_id)
        async with project.lock:
            await project.stop()  # one that failed would be started again
            try:
                project.make_place()
                await asyncio.to_thread(_replace, project.home, home, backups.stage / f"old-{project_id}")
            except OSError as error:
                raise RpcError("invalid_state", f"{project.home} cannot be replaced: {error.strerror}") from None
    backups.settled = sorted(waiting)
    await _discard(backups)
    return backups.settled


@backup_methods.method("discard")
async def discard(call: BackupCall) -> dict[str, Any]:
    """Remove restored files that are not in their places."""
    await _discard(call.backups)
    return {}


def _replace(home: Path, new: Path, old: Path) -> None:
    """Give a project new files, or leave it as it is. Raises :class:`OSError`."""
    was_there = os.path.lexists(home)
    if was_there:
        home.rename(old)
    try:
        new.rename(home)
    except OSError:
        if was_there:
            old.rename(home)
        raise


async def _discard(backups: Backups) -> None:
    try:
        await remove_tree(backups.stage)
    except NatskitError as error:
        raise RpcError("invalid_state", str(error)) from None
