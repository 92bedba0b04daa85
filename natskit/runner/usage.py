"""What a host and its projects use now, for the hubs: the page Platform of the console shows it.

On hosts the cgroups of the projects' units say it. A project on this machine has none: its processes are counted, as
far as they still carry its mark (:mod:`natskit.runner.orphans`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natskit.process.cgroups import PROJECTS, Tree, project_of
from natskit.runner.orphans import marked

_CLOCK, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Used:
    """What a project uses: processor time since its start in seconds, memory in bytes, processes and threads. ``None``
    for what its host does not count."""

    cpu_seconds: float | None
    memory_bytes: float | None
    tasks: float | None


def by_cgroups(tree: Tree | None = None) -> dict[str, Used]:
    """What each project uses whose unit runs, by its id."""
    tree, found = tree or Tree(), {}
    for unit in tree.units(PROJECTS):
        if project_id := project_of(unit):
            path = PROJECTS / unit
            found[project_id] = Used(tree.cpu_seconds(path), tree.memory_bytes(path), tree.tasks(path))
    return found


def by_processes() -> dict[str, Used]:
    """The same for projects whose agents are processes of this machine."""
    return {project_id: _of_processes(pids) for project_id, pids in marked().items()}


def host(place: Path) -> dict[str, float]:
    """The host: its load average of one minute, its processors, its memory and the file system of ``place`` in
    bytes."""
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    disk = os.statvfs(place)
    return {
        "load": os.getloadavg()[0],
        "processors": float(os.cpu_count() or 1),
        "memory_bytes": float(memory["MemTotal"].split()[0]) * 1024,
        "memory_available_bytes": float(memory["MemAvailable"].split()[0]) * 1024,
        "disk_bytes": float((disk.f_blocks - disk.f_bfree + disk.f_bavail) * disk.f_frsize),
        "disk_free_bytes": float(disk.f_bavail * disk.f_frsize),
    }


def rows(used: Mapping[str, Used], disk: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """A row for each project that runs, or whose files were measured: the answer to a hub. ``disk`` has their sizes in
    bytes."""
    nothing = Used(None, None, None)
    measured = {project_id for project_id, size in disk.items() if size is not None}
    return [
        {
            "project_id": project_id,
            "cpu_seconds": (one := used.get(project_id, nothing)).cpu_seconds,
            "memory_bytes": one.memory_bytes,
            "tasks": one.tasks,
            "disk_bytes": disk.get(project_id),
        }
        for project_id in sorted(used.keys() | measured)
    ]


def _of_processes(pids: Iterable[int]) -> Used:
    seconds = memory = tasks = 0.0
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        # proc_pid_stat(5), counted from the third field: utime, stime, cutime, cstime; num_threads; rss in pages.
        seconds += sum(map(int, stat[11:15])) / _CLOCK
        tasks += int(stat[17])
        memory += int(stat[21]) * _PAGE
    return Used(seconds, memory, tasks)
