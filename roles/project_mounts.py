"""Checks that a runner's host has the paths and devices that settings give to its projects."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pyinfra import host
from pyinfra.api import FactBase

from natskit.config.settings import Settings
from natskit.runner.sandbox import why_not_shown

PATHS = ("runner_project_read_only_paths", "runner_project_read_write_paths")


class Device(NamedTuple):
    """A device node of a host."""

    path: str
    group: str
    is_disk: bool


class RealPaths(FactBase[dict[str, str]]):
    """The real paths of a host's paths, with all links followed. Leaves out paths that do not exist."""

    def command(self, paths: Sequence[str]) -> str:
        return f'for path in {shlex.join(paths)}; do echo "$path:$(readlink -e -- "$path")"; done'

    def process(self, output: Iterable[str]) -> dict[str, str]:
        pairs = [line.partition(":") for line in output]
        return {path: real for path, _, real in pairs if real}

    default = dict


class Devices(FactBase[list[Device]]):
    """The device nodes at the given paths of a host, or in folders at these paths."""

    def command(self, paths: Sequence[str]) -> str:
        return f"find -L {shlex.join(paths)} -type c,b -printf '%y:%g:%p\\n' 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> list[Device]:
        found = []
        for line in output:
            kind, group, path = line.split(":", 2)
            # The group "disk" also has character devices that can write to disks, such as /dev/sg0.
            found.append(Device(path, group, kind == "b" or group == "disk"))
        return sorted(found)

    default = list


def problems(settings: Settings) -> Iterator[str]:
    """Why this host cannot give its projects the paths and devices in the settings: a line for each."""
    wanted = {path: key for key in PATHS for path in getattr(settings, key)}
    real = host.get_fact(RealPaths, paths=list(wanted)) if wanted else {}
    for path, key in wanted.items():
        if path not in real:
            yield f"{key}: {path} is not there: create it, or remove it from the setting"
        elif why := _why_not_shown(path, real[path], settings):
            yield f"{key}: {path} leads to {real[path]}, which projects cannot be shown: {why}"
    yield from _device_problems(settings.runner_project_devices)


def _why_not_shown(path: str, real: str, settings: Settings) -> str:
    # Projects see /usr anyway.
    return "" if real == path or real.startswith("/usr/") else why_not_shown(real, settings.platform_root)


def _device_problems(wanted: Sequence[str]) -> Iterator[str]:
    devices = host.get_fact(Devices, paths=list(wanted)) if wanted else []
    for path in wanted:
        mine = [device for device in devices if device.path == path or device.path.startswith(f"{path}/")]
        if not mine:
            yield f"runner_project_devices: there is no device {path}: install its driver, or correct the setting"
        for device in mine:
            if device.is_disk:
                yield f"runner_project_devices: {device.path} is a disk, which projects cannot have: remove it"
