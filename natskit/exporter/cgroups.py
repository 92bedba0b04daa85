"""The programs of the host and its projects, by their cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from natskit.process.cgroups import PROGRAMS, PROJECTS, Tree, project_of

_CLOCK = os.sysconf("SC_CLK_TCK")


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
