"""What a machine says of itself: its file systems, memory, programs, and limits.

This file imports only Python's standard library: the doctor's dry run of a deploy sends it as text to every host.

    python3 machine_probe.py FOLDER…    prints the state as JSON; as root, with the processes of all users
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROJECTS = "/var/lib/private/natskit-project"
"""Where systemd keeps the files of a host's projects (:data:`natskit.runner.sandbox.HOMES`)."""
CGROUPS = Path("/sys/fs/cgroup")
_PROPERTIES = (
    *("Id", "LoadState", "ActiveState", "Result", "MainPID", "NRestarts", "ControlGroup", "DropInPaths"),
    "InactiveExitTimestampMonotonic",
)
_MICROSECONDS = 1e6


def look(folders: list[str]) -> dict[str, Any]:
    """The state of this machine, and of the file systems of those of these folders that exist."""
    return {
        "file_systems": file_systems(folders),
        "memory": memory(Path("/proc/meminfo").read_text()),
        "open_files": [int(number) for number in Path("/proc/sys/fs/file-nr").read_text().split()],
        "watches": watches(),
        "units": units(),
        "projects": sorted(os.listdir(PROJECTS)) if os.path.isdir(PROJECTS) else [],
    }


def file_systems(folders: list[str]) -> list[dict[str, Any]]:
    """The file systems of these folders and of mounts inside them, each once: sizes in bytes, and the files that they
    can have (statvfs(3))."""
    found: dict[int, dict[str, Any]] = {}
    for folder in [*folders, *_mounts_in(folders)]:
        try:
            device, there = os.stat(folder).st_dev, os.statvfs(folder)
        except OSError:  # it is not there, or its server is away
            continue
        if device not in found:
            found[device] = {
                "folder": folder,
                "bytes": there.f_blocks * there.f_frsize,
                "used_bytes": (there.f_blocks - there.f_bfree) * there.f_frsize,
                "free_bytes": there.f_bavail * there.f_frsize,  # without what only root may use, as df(1) does
                "files": there.f_files,  # a file system that makes inodes on demand reports none
                "free_files": there.f_ffree,
                "read_only": bool(there.f_flag & os.ST_RDONLY),
            }
    return list(found.values())


def _mounts_in(folders: list[str]) -> list[str]:
    """Mounts inside these folders; not inside the root, where others mount theirs, nor inside the files of projects."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    within = tuple(f"{folder}/" for folder in folders if folder not in ("/", PROJECTS))
    return [mount.replace("\\040", " ") for mount in mounts if mount.startswith(within)]


def memory(text: str) -> dict[str, int]:
    """The lines of /proc/meminfo (proc(5)) that tell of too little memory, in bytes."""
    lines = {name: value.split() for name, _, value in (line.partition(":") for line in text.splitlines())}
    wanted = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    return {name: int(lines[name][0]) * 1024 for name in wanted if name in lines}


def open_files(pid: int) -> tuple[int, int]:
    """How many files a process has open, and how many it may have; 0 for any number. Raises OSError if it has ended."""
    number = len(os.listdir(f"/proc/{pid}/fd"))
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    soft = next(line for line in lines if line.startswith("Max open files")).split()[3]
    return number, int(soft) if soft.isdecimal() else 0


def watches() -> dict[str, Any]:
    """For each user: the instances and the watches of inotify (inotify(7)); and the most that one user may have."""
    users: dict[str, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            user = str(process.stat().st_uid)
            for link in (process / "fd").iterdir():
                if os.readlink(link) == "anon_inode:inotify":
                    text = (process / "fdinfo" / link.name).read_text()
                    mine = users.setdefault(user, [0, 0])
                    mine[0] += 1
                    mine[1] += text.count("inotify wd:")
        except OSError:  # it has ended, or another user may not look at it
            continue
    limits = Path("/proc/sys/fs/inotify")
    most = [int((limits / name).read_text()) for name in ("max_user_instances", "max_user_watches")]
    return {"users": users, "most": most}


def units() -> list[dict[str, Any]]:
    """The units of natskit that systemd knows; none without systemd."""
    if not os.path.isdir("/run/systemd/system"):
        return []
    names = ["natskit-*.service", "nginx.service"]
    said = subprocess.run(
        ["systemctl", "show", "--property", ",".join(_PROPERTIES), "--", *names],
        stdout=subprocess.PIPE,
        check=True,
        timeout=30,
    ).stdout.decode()
    known = [dict(line.split("=", 1) for line in block.splitlines()) for block in said.split("\n\n") if block]
    return [_unit(one) for one in known if one["LoadState"] == "loaded"]


def _unit(said: dict[str, str]) -> dict[str, Any]:
    try:
        files = open_files(int(said["MainPID"])) if said["MainPID"] != "0" else (0, 0)
    except OSError:
        files = (0, 0)
    began = int(said["InactiveExitTimestampMonotonic"]) / _MICROSECONDS
    return {
        "name": said["Id"],
        "state": said["ActiveState"],
        "result": said["Result"],
        "restarts": int(said["NRestarts"]),
        "seconds": max(0.0, time.monotonic() - began),
        "open_files": files,
        "out_of_memory": _out_of_memory(said["ControlGroup"]),
        "changed_by": [path for path in said["DropInPaths"].split() if _is_foreign(path)],
    }


def _out_of_memory(group: str) -> int:
    """How many processes of a unit the kernel has ended since the unit started (cgroup v2, or v1)."""
    if not group:
        return 0
    own = group.lstrip("/")
    for path in (CGROUPS / own / "memory.events", CGROUPS / "memory" / own / "memory.oom_control"):
        try:
            words = [line.split() for line in path.read_text().splitlines()]
        except OSError:
            continue
        return next((int(number) for name, number in words if name == "oom_kill"), 0)
    return 0


def _is_foreign(path: str) -> bool:
    """Whether somebody else wrote this drop-in, for one unit alone. Distributions and containers have some for all."""
    folder, name = os.path.split(path)
    return name != "natskit.conf" and os.path.basename(folder) != "service.d"


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1:])))
