"""The host itself: its clock, memory, load and file systems."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

KIB = 1024


async def collect(folders: Sequence[Path]) -> list[Metric]:
    """The metrics of the machine, and of the file systems of these folders, of which one may hang."""
    return await asyncio.to_thread(_collect, folders)


def _collect(folders: Sequence[Path]) -> list[Metric]:
    memory = _memory(Path("/proc/meminfo").read_text())
    found: list[Metric] = [
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
    return found + _file_systems(folders)


def _memory(text: str) -> dict[str, float]:
    """The lines of /proc/meminfo (proc(5)), in bytes."""
    pairs = [line.partition(":") for line in text.splitlines()]
    return {name: float(value.split()[0]) * KIB for name, _, value in pairs if value.split()[1:] == ["kB"]}


def _file_systems(folders: Sequence[Path]) -> list[Metric]:
    names = {
        "natskit_host_disk_bytes": "Size of the file system of a folder, without what only root may use",
        "natskit_host_disk_free_bytes": "Bytes that are free for programs",
        "natskit_host_disk_files": "Files that the file system can have; 0 if it has no limit",
        "natskit_host_disk_free_files": "Files that can still be made",
        "natskit_host_disk_read_only": "Whether it is mounted read-only, as after an error",
    }
    families = [GaugeMetricFamily(name, meaning, labels=["folder"]) for name, meaning in names.items()]
    for folder in folders:
        try:
            there = os.statvfs(folder)
        except OSError:  # it is not there, or this program may not look at it
            continue
        used = (there.f_blocks - there.f_bfree) * there.f_frsize
        free = there.f_bavail * there.f_frsize
        values = (used + free, free, there.f_files, there.f_favail, _is_read_only(folder.resolve()))
        for family, value in zip(families, values, strict=True):
            family.add_metric([str(folder)], float(value))
    return [*families]


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
