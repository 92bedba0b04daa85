"""The programs of the host and its projects, by their cgroups, which every user may read.

systemd makes one for each unit that runs, and removes it when the unit ends. Source: the kernel's
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

PROJECTS = Path("natskit.slice/natskit-projects.slice")
PROGRAMS = Path("system.slice")
PROJECT = "natskit-project@"
_CLOCK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Tree:
    """The cgroups of a host, of either version."""

    root: Path = Path("/sys/fs/cgroup")

    @property
    def _is_new(self) -> bool:
        return (self.root / "cgroup.controllers").exists()

    def units(self, slice_: Path) -> list[str]:
        """The units of a slice that run."""
        folder = self._folder("systemd", slice_)
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def processes(self, unit: Path) -> list[int]:
        """The processes of a unit."""
        return [int(pid) for pid in self._read("systemd", unit, "cgroup.procs").split()]

    def cpu_seconds(self, unit: Path) -> float | None:
        """Processor time since the unit was started."""
        if not self._is_new:
            return _number(self._read("cpuacct", unit, "cpuacct.usage"), 1e-9)
        lines = (line.split() for line in self._read("", unit, "cpu.stat").splitlines())
        return next((int(words[1]) * 1e-6 for words in lines if words[0] == "usage_usec"), None)

    def memory_bytes(self, unit: Path) -> float | None:
        """Memory, with the files that the kernel caches for it."""
        return _number(self._read("memory", unit, "memory.current" if self._is_new else "memory.usage_in_bytes"))

    def tasks(self, unit: Path) -> float | None:
        """Processes and threads."""
        return _number(self._read("pids", unit, "pids.current"))

    def _folder(self, controller: str, unit: Path) -> Path:
        return self.root / unit if self._is_new else self.root / controller / unit

    def _read(self, controller: str, unit: Path, name: str) -> str:
        """A file of a unit; empty when the unit has just ended, or its host does not count this."""
        try:
            return (self._folder(controller, unit) / name).read_text()
        except OSError:
            return ""


def _number(text: str, factor: float = 1.0) -> float | None:
    return int(text) * factor if text.strip().isdecimal() else None


async def collect(expected: Sequence[str], tree: Tree | None = None) -> list[Metric]:
    """The metrics of the programs that should run, and of the projects that do."""
    tree = tree or Tree()
    return [*_programs(tree, expected), *_projects(tree)]


def _programs(tree: Tree, expected: Sequence[str]) -> Iterator[Metric]:
    up = GaugeMetricFamily("natskit_program_up", "Whether a program of the host runs", labels=["program"])
    started = GaugeMetricFamily(
        "natskit_program_start_seconds", "When it was started, in Unix seconds", labels=["program"]
    )
    families = _Of("natskit_program", "a program", "program")
    for unit in expected:
        program, path = unit.removesuffix(".service"), PROGRAMS / unit
        since = [start for pid in tree.processes(path) if (start := _start(pid)) is not None]
        up.add_metric([program], float(bool(since)))
        if since:
            started.add_metric([program], min(since))
            families.add(tree, path, program)
    yield from (up, started, *families.all)


def _projects(tree: Tree) -> Iterator[Metric]:
    families = _Of("natskit_project", "a project", "project_id")
    for unit in tree.units(PROJECTS):
        if project := project_of(unit):
            families.add(tree, PROJECTS / unit, project)
    yield from families.all


class _Of:
    """Processor time, memory and tasks of programs, or of projects."""

    all: tuple[CounterMetricFamily | GaugeMetricFamily, ...]

    def __init__(self, prefix: str, what: str, label: str) -> None:
        self._cpu = CounterMetricFamily(
            f"{prefix}_cpu_seconds", f"Processor time of {what} since its start", labels=[label]
        )
        self._memory = GaugeMetricFamily(f"{prefix}_memory_bytes", f"Memory of {what}, with its cache", labels=[label])
        self._tasks = GaugeMetricFamily(f"{prefix}_tasks", f"Processes and threads of {what}", labels=[label])
        self.all = (self._cpu, self._memory, self._tasks)

    def add(self, tree: Tree, path: Path, name: str) -> None:
        """Read a unit; what its host does not count is left out."""
        values = (tree.cpu_seconds(path), tree.memory_bytes(path), tree.tasks(path))
        for family, value in zip(self.all, values, strict=True):
            if value is not None:
                family.add_metric([name], value)


def project_of(unit: str) -> str | None:
    """The project of a unit, which :func:`natskit.runner.agent_unit.unit_of` names; ``None`` for another unit."""
    name = unit.removesuffix(".service")
    if not name.startswith(f"{PROJECT}p"):
        return None
    try:
        return str(uuid.UUID(bytes=base64.b32decode(name.removeprefix(f"{PROJECT}p").upper() + "======")))
    except ValueError:
        return None


def _start(pid: int) -> float | None:
    """When a process was started, in Unix seconds (proc(5): starttime); ``None`` if it has ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        booted = next(
            float(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime ")
        )
    except OSError:
        return None
    return booted + int(after_name[19]) / _CLOCK
