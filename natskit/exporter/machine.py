"""The host itself: its clock, memory, load and file systems."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

KIB = 1024
LOOK_SECONDS = 2.0
"""The longest that a file system may take to say how full it is. A scrape waits for all parts for four."""

Values = tuple[float, ...]
HANGS: Values = ()
"""Seen of a file system that does not answer."""


class Machine:
    """The machine, and the file systems of some folders, of which one may hang."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._looks = {folder: Look(folder) for folder in folders}

    async def collect(self) -> list[Metric]:
        """The metrics. A file system that hangs is missing among the disks, and ``natskit_host_disk_hangs`` says so."""
        seen = await asyncio.gather(*(look.values() for look in self._looks.values()))
        return _machine() + _file_systems(dict(zip(self._looks, seen, strict=True)))


class Look:
    """A look at the file system of a folder, in a thread of its own: one thread, however often and long it hangs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: Future[Values | None] | None = None

    async def values(self) -> Values | None:
        """What is seen; ``None`` if there is nothing to see. A file system that hangs is :data:`HANGS`."""
        if self._running is None:
            self._running = Future()
            # Not a thread of the event loop's pool: the end of the program would wait for it.
            threading.Thread(target=self._look, args=[self._running], daemon=True).start()
        await asyncio.wait([asyncio.wrap_future(self._running)], timeout=LOOK_SECONDS)
        if not self._running.done():
            return HANGS
        seen, self._running = self._running.result(), None
        return seen

    def _look(self, answer: Future[Values | None]) -> None:
        try:
            answer.set_result(_seen(self._folder))
        except OSError:  # it is not there, or this program may not look at it
            answer.set_result(None)


def _machine() -> list[Metric]:
    memory = _memory(Path("/proc/meminfo").read_text())
    return [
        GaugeMetricFamily(
            "natskit_host_time_seconds",
            "The host's clock in Unix seconds; compare it with the time of the sample",
            value=time.time(),
        ),
        GaugeMetricFamily("natskit_host_load1", "Load average of one minute", value=os.getloadavg()[0]),
        GaugeMetricFamily("natskit_host_processors", "Processors of the host", value=float(os.cpu_count() or 1)),
        GaugeMetricFamily("natskit_host_memory_bytes", "Memory of the host", value=memory["MemTotal"]),
        GaugeMetricFamily(
            "natskit_host_memory_available_bytes",
            "Memory that programs can still get without swapping",
            value=memory["MemAvailable"],
        ),
        GaugeMetricFamily(
            "natskit_host_swap_used_bytes",
            "Memory that is swapped out",
            value=memory.get("SwapTotal", 0.0) - memory.get("SwapFree", 0.0),
        ),
    ]


def _memory(text: str) -> dict[str, float]:
    """The lines of /proc/meminfo (proc(5)), in bytes."""
    pairs = [line.partition(":") for line in text.splitlines()]
    return {name: float(value.split()[0]) * KIB for name, _, value in pairs if value.split()[1:] == ["kB"]}


def _file_systems(seen: Mapping[Path, Values | None]) -> list[Metric]:
    names = {
        "natskit_host_disk_bytes": "Size of the file system of a folder, without what only root may use",
        "natskit_host_disk_free_bytes": "Bytes that are free for programs",
        "natskit_host_disk_files": "Files that the file system can have; 0 if it has no limit",
        "natskit_host_disk_free_files": "Files that can still be made",
        "natskit_host_disk_read_only": "Whether it is mounted read-only, as after an error",
    }
    families = [GaugeMetricFamily(name, meaning, labels=["folder"]) for name, meaning in names.items()]
    hangs = GaugeMetricFamily("natskit_host_disk_hangs", "Whether it does not answer", labels=["folder"])
    for folder, values in seen.items():
        if values is not None:
            hangs.add_metric([str(folder)], float(values is HANGS))
            for family, value in zip(families, values, strict=False):
                family.add_metric([str(folder)], float(value))
    return [*families, hangs]


def _seen(folder: Path) -> Values:
    there = os.statvfs(folder)
    used = (there.f_blocks - there.f_bfree) * there.f_frsize
    free = there.f_bavail * there.f_frsize
    return used + free, free, there.f_files, there.f_favail, _is_read_only(folder.resolve())


def _is_read_only(folder: Path) -> bool:
    """Whether the file system itself is. All that systemd shows this program is mounted read-only (ProtectSystem=), so
    only the options of the file system count, which stand behind the hyphen (proc_pid_mountinfo(5))."""
    place, options = Path("/"), ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, of_file_system = line.partition(" - ")
        mounted_on = Path(mount.split()[4].replace("\\040", " "))
        if folder.is_relative_to(mounted_on) and mounted_on.is_relative_to(place):
            place, options = mounted_on, of_file_system.split()[2]
    return "ro" in options.split(",")
