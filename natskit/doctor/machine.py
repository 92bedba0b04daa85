"""This machine: its disks, the open files of its processes, and the remains of earlier processes and projects."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from natskit.doctor.finding import Finding
from natskit.ops.orphans import command_of, find_orphans, find_workers

FULL_SOON, FULL = 0.9, 0.97
"""Of the bytes, and of the files that a file system can have."""
OPEN_SOON = 0.8
_SHOWN = 100


def disks(folders: Iterable[Path]) -> Iterator[Finding]:
    """The file systems of these folders that are nearly full, or cannot be written to, each once."""
    seen = set()
    for folder in folders:
        device = folder.stat().st_dev
        if device not in seen:
            yield from _full(folder)
            yield from _without_files(folder)
            yield from _read_only(folder)
        seen.add(device)


def _full(folder: Path) -> Iterator[Finding]:
    usage = shutil.disk_usage(folder)
    part = usage.used / (usage.used + usage.free)  # without what only root may use, as df(1) does
    if part >= FULL_SOON:
        yield Finding(
            "broken" if part >= FULL else "soon",
            f"the disk of {folder} is {part:.0%} full",
            f"{usage.free // 1024**2} of {usage.total // 1024**2} MiB are free",
            f"du -xh --max-depth=2 {shlex.quote(str(folder))} | sort -h | tail",
        )


def _without_files(folder: Path) -> Iterator[Finding]:
    """A file system that makes inodes on demand reports none."""
    there = os.statvfs(folder)
    part = 1 - there.f_ffree / there.f_files if there.f_files else 0.0
    if part >= FULL_SOON:
        yield Finding(
            "broken" if part >= FULL else "soon",
            f"the disk of {folder} can have hardly any more files",
            f"{there.f_ffree} of {there.f_files} inodes are free, however large the files are",
            f"du -x --inodes --max-depth=2 {shlex.quote(str(folder))} | sort -n | tail",
        )


def _read_only(folder: Path) -> Iterator[Finding]:
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        yield Finding(
            "broken",
            f"the disk of {folder} is read-only",
            "the kernel mounts a file system so after an error of the disk",
            "read dmesg, stop this machine, and check the disk",
        )


def open_files(processes: dict[str, int]) -> Iterator[Finding]:
    """Processes, by program, that are close to their limit of open files."""
    for program, pid in processes.items():
        try:
            number = len(os.listdir(f"/proc/{pid}/fd"))
            limit = _limit(Path(f"/proc/{pid}/limits").read_text())
        except OSError:  # it has ended
            continue
        if limit and number >= OPEN_SOON * limit:
            yield Finding(
                "soon",
                f"{program} has nearly as many files and connections open as it may",
                f"process {pid} has {number} of at most {limit}",
                "raise the limit of this user (nofile in limits.conf(5)), sign in again, scripts/down and make up",
            )


def _limit(limits: str) -> int:
    """The soft limit of open files in /proc/PID/limits (proc(5)); 0 for none."""
    line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    soft = line.split()[3]
    return int(soft) if soft.isdecimal() else 0


def orphans(root: Path, deploy: str) -> Iterator[Finding]:
    """Programs that have outlived their supervisord."""
    programs = root / "supervisor" / "programs"
    for pid in sorted({*find_orphans(programs), *find_workers(programs)}):
        yield Finding(
            "broken",
            f"process {pid} has outlived its supervisord",
            f"nothing restarts it, and it holds its port: {command_of(pid)[:_SHOWN]}",
            deploy,
        )


def left_projects(projects: Path, known: set[str]) -> Iterator[Finding]:
    """Folders of projects that no hub knows any more."""
    for folder in sorted(projects.iterdir()):
        if folder.is_dir() and folder.name not in known:
            yield Finding(
                "untidy",
                f"the files of a project that does not exist are left: {folder.name}",
                f"{folder} is there, and no hub knows the project",
                f"look at them, then rm -r {shlex.quote(str(folder))}",
            )
