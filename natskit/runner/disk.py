"""Disk usage: the runner stops a project that uses too much of the disk before other projects are affected.

Quotas of the file system would be exact, but few hosts have them. So the runner measures the files, and watches the
free space between two measurements.

A file system can run out of inodes as well as of bytes, so a file counts as its share of both: at least
:data:`FILE_BYTES`, however small it is.

The runner stops a project over ``max_disk_bytes`` and does not start it again by itself. Its user has to start it to
delete files, so such a start is allowed: for :data:`GRACE_SECONDS`, and as long as the files do not grow by more than a
sixteenth of the limit over their size when the project was first stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from natskit.rpc import RpcError
from natskit.runner.config import RunnerProgram
from natskit.runner.project_agent import ProjectAgent

log = logging.getLogger(__name__)

GRACE_SECONDS = 600.0
LOOK_SECONDS = 1.0
BUSY_SECONDS = 3.0
"""Between two measurements while a project writes a lot: a fast disk takes gigabytes each second."""
AHEAD = 3
"""For how many more checks the reserve has to last at the present rate: a walk and a stop take time too."""
MEASURE_SECONDS = 120.0
"""The most time for a walk through one project's files. A project with more files than that is not measured."""
FILE_BYTES = 16 * 1024
"""Bytes per inode of ext4 (mke2fs.conf(5), ``inode_ratio``)."""
NOTICEABLE_BYTES = 16 * 1024 * 1024
"""Bytes that a project may write while the disk is nearly full: enough for its settings and logs. If all projects
together write less in one second, there is no hurry."""


@dataclass
class _Usage:
    size: int
    measured_at: float
    before: int
    """The size at the previous measurement, or at the last one with enough free space."""
    ceiling: int | None = None
    """The most bytes a project over its limit may have while its user cleans up."""


class Disk:
    """Watches how much the running projects write."""

    def __init__(
        self,
        program: RunnerProgram,
        running: Callable[[], Collection[ProjectAgent]],
        hold: Callable[[ProjectAgent, str], Awaitable[None]],
        place: Path,
    ) -> None:
        self._limit = program.project.max_disk_bytes
        self._reserve = program.disk_reserve_bytes if program.manager == "systemd" else 0
        self._interval = program.disk_check_seconds
        self._running, self._hold, self._place = running, hold, place
        self._usage: dict[str, _Usage] = {}
        self._free = self._measure_free()

    async def watch(self) -> None:
        """Watch until cancelled."""
        if self._limit is None and not self._reserve:
            return
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("disk")
            await asyncio.sleep(LOOK_SECONDS)

    def size(self, project_id: str) -> int | None:
        """Bytes of a project at its last measurement; ``None`` before the first one."""
        usage = self._usage.get(project_id)
        return usage.size if usage else None

    def forget(self, project_id: str) -> None:
        """Forget a deleted project."""
        self._usage.pop(project_id, None)

    def check_room(self, place: Path, size: int, files: int, arrived: int) -> None:
        """Raises :class:`RpcError` if the files of a project that moves into this folder do not fit.

        ``size`` and ``files`` are of the whole project, and ``arrived`` bytes of it are here already.
        """
        counts = max(size, files * FILE_BYTES)
        if self._limit is not None and counts > self._limit:
            raise RpcError(
                "limit",
                f"the project's files count as {human(counts)}, and projects of this runner may have "
                f"{human(self._limit)}: delete files, or raise runner_project_disk of that host",
            )
        status = os.statvfs(place)
        free = status.f_bavail * status.f_frsize - self._reserve
        if size - arrived > free:
            raise RpcError(
                "limit",
                f"{human(size - arrived)} are needed, and the disk of this runner has {human(max(0, free))} left "
                "beyond its reserve: make room there, and repeat the command",
            )
        if status.f_files and files > status.f_favail:
            raise RpcError("limit", f"{files:,} files do not fit: the file system has {status.f_favail:,} inodes left")

    async def _look(self) -> None:
        before, free = self._free, self._measure_free()
        self._free, written = free, max(0, before - free)
        low = free - AHEAD * written < self._reserve
        pause = min(self._interval, BUSY_SECONDS) if written > NOTICEABLE_BYTES else self._interval
        for project in list(self._running()):
            usage = self._usage.get(project.project_id)
            if low or usage is None or time.monotonic() - usage.measured_at > pause:
                await self._measure(project, low=low)
        if low:
            await self._stop_writer(free)

    async def _measure(self, project: ProjectAgent, *, low: bool) -> None:
        taken = await measure(project.folders())
        if taken is None:
            return
        size, files = max(taken.size, taken.files * FILE_BYTES), taken.files
        now, usage = time.monotonic(), self._usage.get(project.project_id)
        if usage is None:
            usage = self._usage[project.project_id] = _Usage(size, now, size)
        elif not low:
            usage.before = usage.size
        usage.size, usage.measured_at = size, now
        if self._limit is None or size <= self._limit:
            usage.ceiling = None
            return
        if usage.ceiling is None:
            usage.ceiling = max(size, self._limit) + self._limit // 16
        elif now - project.asked_at < GRACE_SECONDS and size <= usage.ceiling:
            return
        await self._hold(
            project,
            f"its {'files use' if size == taken.size else f'{files:,} files count as'} {human(size)} of "
            f"{human(self._limit)}: start it to delete some, "
            f"it is stopped again after {GRACE_SECONDS / 60:g} minutes",
        )

    async def _stop_writer(self, free: int) -> None:
        grown = [(usage.size - usage.before, p) for p in self._running() if (usage := self._usage.get(p.project_id))]
        most, project = max(grown, key=lambda one: one[0], default=(0, None))
        if project is None or most < NOTICEABLE_BYTES:
            return  # other programs filled the disk: stopping projects would not help
        del self._usage[project.project_id]
        await self._hold(
            project, f"it has written {human(most)} while its host has only {human(free)} of disk left: delete files"
        )

    def _measure_free(self) -> int:
        status = os.statvfs(self._place)
        free = status.f_bavail * status.f_frsize
        # A file system that makes inodes on demand reports none.
        return min(free, status.f_favail * FILE_BYTES) if status.f_files else free


class Taken(NamedTuple):
    """The usage of folders on a disk: bytes, and files including folders."""

    size: int
    files: int


async def measure(folders: Collection[Path]) -> Taken | None:
    """The usage of folders on the disk, zero if they are missing; ``None`` if it cannot be measured."""
    size = await _du(folders, "--block-size=1")
    # A second walk, for which the kernel still has everything from the first one.
    files = None if size is None else await _du(folders, "--inodes")
    return None if size is None or files is None else Taken(size, files)


async def _du(folders: Collection[Path], *options: str) -> int | None:
    process = await asyncio.create_subprocess_exec(
        # A separate process, since a walk in a thread delays the event loop. du follows no links, and counts a file
        # with several names once.
        *("nice", "-n", "19", "du", "--summarize", "--total", "--one-file-system", *options, "--"),
        *map(str, folders),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), MEASURE_SECONDS)
    except TimeoutError:
        log.warning("%s: measuring its files took more than %g s", next(iter(folders)), MEASURE_SECONDS)
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if b"ermission denied" in err:  # other errors are files that vanished meanwhile
        log.error("a project's files cannot be measured: %s", err.decode(errors="replace").splitlines()[0])
        return None
    words = out.split()
    return int(words[-2]) if len(words) >= 2 else None


def human(size: int) -> str:
    """A size as people write it: three digits and a unit."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:.3g} TiB"
