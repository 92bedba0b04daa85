"""``runners.{runner_id}.backup``: the methods by which the control machine backs up and restores the files of projects.

Only the control machine may publish there. It begins a job, which is one run of restic on this host
(:mod:`natskit.runner.backup_job`), carries restic's bytes to the target and back, and reads the result. A runner has
one job at a time. Restored files wait beside the projects, in a folder of their job, until ``settle`` exchanges them
with those that are there. ``undo`` exchanges them back, and ``discard`` removes what is in that folder. The next job
removes what a killed restore has left.
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

from natskit.bus.project_move import to_path
from natskit.errors import NatskitError
from natskit.project.config import Id
from natskit.project.tree import exchange
from natskit.rpc import Methods, RpcError
from natskit.runner.agent_unit import instance_of, project_of
from natskit.runner.backup_job import MOST_LINES, BackupJob
from natskit.runner.config import RunnerProgram
from natskit.runner.moved_tree import Tree
from natskit.runner.project_agent import ProjectAgent
from natskit.runner.removal import remove_tree
from natskit.runner.sandbox import HOMES

OF_THE_RUNNER = ("agent.log", "project.json", "project.creds")
"""What a runner keeps beside a project's home without systemd, and makes anew at each start."""
STAGE = ".restored"
"""The folder, beside the projects, with a folder for each job whose restored files are not in their places yet."""
CLOCK_SECONDS = 1e-5
"""How far two times of the same moment may differ: Python has microseconds, restic nanoseconds."""
NAMED_BYTES = 128 * 1024
"""Of their names in an answer, as JSON."""
MOST_TORN = 1000
"""Files that are named."""
SPARE_BYTES = 64 * 1024**2
AT_FDCWD = -100
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
        self.exchanging = asyncio.Lock()
        self.settled: dict[str, dict[str, tuple[Path, bool]]] = {}
        """The projects that a job has put in their places, where they waited, and whether there were files before."""
        self.missing: dict[str, dict[str, list[str]]] = {}
        """What a job could not restore: the paths by the name of their project's folder."""

    @property
    def stages(self) -> Path:
        """Where restored files wait."""
        return self.top / STAGE

    def stage(self, stage_id: str) -> Path:
        """Where those of one job wait."""
        return self.stages / stage_id

    def check_staged(self, stage_id: str) -> None:
        """Raises :class:`RpcError` unless restored files of this job wait."""
        if not self.stage(stage_id).is_dir():
            raise RpcError(
                "conflict", "the restored files are not there any more: another command backs up or restores meanwhile"
            )

    async def sweep(self) -> None:
        """Remove what killed restores have left. Raises :class:`RpcError`."""
        self.settled, self.missing = {}, {}
        await _remove(self.stages)

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

    def restored(self, stage_id: str) -> dict[str, Path]:
        """The homes that wait and will be put in their places, by project. Without systemd, a project's home has a
        folder around it.

        A project that has files on this host keeps them if some of the restored ones are missing.
        """
        try:
            names = sorted(os.listdir(self.stage(stage_id)))
        except FileNotFoundError:
            return {}
        found = {}
        for name in names:
            if project_id := self.project_in(name):
                folder = self.stage(stage_id) / name
                home = folder / "home" if project_id == name else folder
                is_whole = not self.missing.get(stage_id, {}).get(name)
                if home.is_dir() and (is_whole or not os.path.lexists(self.project(project_id).home)):
                    found[project_id] = home
        return found

    def note_missing(self, job: BackupJob, job_id: str) -> list[str]:
        """What restic could not restore, if it has named all of it. Removes what there is of these files: restic leaves
        one with wrong content."""
        if "There were " not in " ".join(job.said) or len(job.errors) >= MOST_LINES:
            return []
        items = sorted({str(error.get("item", "")).lstrip("/") for error in job.errors})
        missing = self.missing.setdefault(job_id, {})
        for item in items:
            missing.setdefault(item.partition("/")[0], []).append(item)
        with Tree(self.stage(job_id)) as tree:
            for item in items:
                with suppress(RpcError, FileNotFoundError, ValueError):
                    if not tree.is_folder(path := to_path(os.fsencode(item))):
                        tree.discard([path])
        return items


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
    call.backups.check_free(job_id)
    await call.backups.sweep()
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
    await backups.sweep()
    free = shutil.disk_usage(backups.top).free - SPARE_BYTES
    if size > free:
        raise RpcError(
            "limit", f"the restored files need {size // 1024**2} MiB, and {backups.top} has {free // 1024**2} MiB free"
        )
    place = backups.stage(job_id)
    place.mkdir(mode=0o700, parents=True)
    words = ["restore", snapshot, "--target", str(place), "--verify"]
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
    missing = backups.note_missing(job, job_id) if code and backups.stage(job_id).is_dir() else []
    said = " ".join(job.said) or "; ".join(str(error.get("error")) for error in job.errors[:3])
    await backups.end()
    if job.failure:
        raise RpcError("invalid_state", f"what restic says cannot be read: {job.failure}")
    if code not in (0, _PARTLY) and not missing:
        raise RpcError("invalid_state", f"restic ended with {code}: {said[-500:]}")
    return backups.found | {"unread": _named(unread), "missing": _named(missing)}


@backup_methods.method("end")
async def end(call: BackupCall, job_id: Id) -> dict[str, Any]:
    """End a job that is not needed any more."""
    with suppress(RpcError):
        call.backups.job(job_id)
        await call.backups.end()
    return {}


@backup_methods.method("running")
async def running(call: BackupCall, stage_id: Id) -> list[str]:
    """Of the projects that wait to be put in their places, those that run."""
    backups = call.backups
    backups.check_staged(stage_id)
    return [one for one in backups.restored(stage_id) if backups.project(one).state not in ("stopped", "failed")]


@backup_methods.method("holds")
async def holds(call: BackupCall, project_id: Id) -> bool:
    """Whether the files of a project are here."""
    return call.backups.project(project_id).home.exists()


@backup_methods.method("settle")
async def settle(call: BackupCall, stage_id: Id) -> list[str]:
    """Exchange each restored project with the one that is there. Returns their ids.

    Raises :class:`RpcError` if one of them runs or cannot be replaced. All are as they were then.
    """
    backups = call.backups
    async with backups.exchanging:
        if stage_id not in backups.settled:  # a request may be repeated
            backups.check_staged(stage_id)
            waiting = backups.restored(stage_id)
            for project_id in waiting:
                if backups.project(project_id).state not in ("stopped", "failed"):
                    raise RpcError("conflict", f"the project {project_id} runs: stop it first")
            backups.settled[stage_id] = {}
            try:
                for project_id, home in waiting.items():
                    await _settle(backups, stage_id, project_id, home)
            except NatskitError:
                await _undo(backups, stage_id)
                raise
        return sorted(backups.settled[stage_id])


@backup_methods.method("undo")
async def undo(call: BackupCall, stage_id: Id) -> list[str]:
    """Exchange the projects back that :func:`settle` has put in their places. Returns them. Raises :class:`RpcError` if
    one of them runs: it keeps the restored files."""
    async with call.backups.exchanging:
        settled = sorted(call.backups.settled.get(stage_id, {}))
        await _undo(call.backups, stage_id)
        return settled


@backup_methods.method("discard")
async def discard(call: BackupCall, stage_id: Id) -> dict[str, Any]:
    """Remove the restored files of a job that are not in their places, or those that they have replaced."""
    backups = call.backups
    async with backups.exchanging:
        backups.settled.pop(stage_id, None)
        backups.missing.pop(stage_id, None)
        await _remove(backups.stage(stage_id))
        with suppress(OSError):  # not empty, or not there
            backups.stages.rmdir()
    return {}


async def _settle(backups: Backups, stage_id: str, project_id: str, home: Path) -> None:
    project = backups.project(project_id)
    async with project.lock:
        await project.stop()  # one that failed would be started again
        try:
            project.make_place()
            had_files = await asyncio.to_thread(os.path.lexists, project.home)
            await asyncio.to_thread(_exchange if had_files else os.rename, home, project.home)
        except OSError as error:
            raise RpcError("invalid_state", f"{project.home} cannot be replaced: {error.strerror}") from None
        backups.settled[stage_id][project_id] = (home, had_files)


async def _undo(backups: Backups, stage_id: str) -> None:
    settled = backups.settled.get(stage_id, {})
    for project_id, (home, had_files) in [*settled.items()]:
        project = backups.project(project_id)
        async with project.lock:
            if project.state not in ("stopped", "failed"):
                raise RpcError("conflict", f"the project {project_id} runs, and keeps the restored files")
            try:
                await asyncio.to_thread(_exchange if had_files else os.rename, project.home, home)
            except OSError as error:
                raise RpcError("invalid_state", f"{project.home} keeps the restored files: {error.strerror}") from None
        del settled[project_id]
    backups.settled.pop(stage_id, None)


def _exchange(one: Path, other: Path) -> None:
    """Give each of two folders the other's name, or leave both as they are. Raises :class:`OSError`."""
    if exchange(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other)):
        return
    beside = one.with_name(f".{one.name}.old")
    other.rename(beside)
    try:
        one.rename(other)
    except OSError:
        beside.rename(other)
        raise
    beside.rename(one)


async def _remove(path: Path) -> None:
    try:
        await remove_tree(path)
    except NatskitError as error:
        raise RpcError("invalid_state", str(error)) from None
