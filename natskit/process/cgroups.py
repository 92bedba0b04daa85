"""The cgroups of a host, which every user may read: what systemd's units use.

systemd makes one for each unit that runs, and removes it when the unit ends. Source: the kernel's
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from pathlib import Path

PROJECTS = Path("natskit.slice/natskit-projects.slice")
PROGRAMS = Path("system.slice")
PROJECT = "natskit-project@"


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


def project_of(unit: str) -> str | None:
    """The project of a unit; ``None`` for another unit."""
    name = unit.removesuffix(".service")
    if not name.startswith(f"{PROJECT}p"):
        return None
    try:
        return str(uuid.UUID(bytes=base64.b32decode(name.removeprefix(f"{PROJECT}p").upper() + "======")))
    except ValueError:
        return None
