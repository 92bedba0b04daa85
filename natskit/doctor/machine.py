"""Machines: their disks, memory, limits and units, and the remains of earlier processes and projects."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from natskit.doctor import machine_probe
from natskit.doctor.finding import Finding
from natskit.doctor.machine_probe import PROJECTS
from natskit.ops.orphans import command_of, find_orphans, find_workers
from natskit.runner.agent_unit import instance_of, project_of

FULL_SOON, FULL = 0.9, 0.97
"""Of the bytes, and of the files that a file system can have."""
NEAR_LIMIT = 0.8
LITTLE_MEMORY, SWAPPED_SOON = 0.05, 0.8
OFTEN, RECENTLY = 3, 600.0
"""Restarts, and seconds."""
MIB = 1024**2
_SHOWN = 100


def findings(record: Mapping[str, Any], host: str = "", known: set[str] | None = None) -> Iterator[Finding]:
    """What is wrong with a machine, of which :func:`natskit.doctor.machine_probe.look` made the record.

    ``host`` is its name; empty for this machine. ``known`` are the projects that hubs know, if a hub answers.
    """
    where, on = (f"{host}: ", f"on {host}: ") if host else ("", "")
    for one in record["file_systems"]:
        yield from _file_system(one, where, on)
    yield from _memory(record["memory"], where, on)
    yield from _limits(record, where, on)
    for unit in record["units"]:
        yield from _unit(unit, where, on)
    if known is not None:
        yield from _unknown_projects(record, known, where, on)


def _file_system(found: Mapping[str, Any], where: str, on: str) -> Iterator[Finding]:
    """File systems that are nearly full, in bytes or in files, or that nobody can write to."""
    disk, folder = f"{where}the disk of {found['folder']}", shlex.quote(found["folder"])
    usable = found["used_bytes"] + found["free_bytes"]
    part = found["used_bytes"] / usable if usable else 0.0
    if part >= FULL_SOON:
        yield Finding(
            "broken" if part >= FULL else "soon",
            f"{disk} is {part:.0%} full",
            f"{found['free_bytes'] // MIB} of {found['bytes'] // MIB} MiB are free",
            f"{on}du -xh --max-depth=2 {folder} | sort -h | tail",
        )
    part = 1 - found["free_files"] / found["files"] if found["files"] else 0.0
    if part >= FULL_SOON:
        yield Finding(
            "broken" if part >= FULL else "soon",
            f"{disk} can have hardly any more files",
            f"{found['free_files']} of {found['files']} inodes are free, however large the files are",
            f"{on}du -x --inodes --max-depth=2 {folder} | sort -n | tail",
        )
    if found["read_only"]:
        yield Finding(
            "broken",
            f"{disk} is read-only",
            "the kernel mounts a file system so after an error of the disk",
            f"{on}read dmesg, stop this machine, and check the disk",
        )


def _memory(found: Mapping[str, int], where: str, on: str) -> Iterator[Finding]:
    if found["MemAvailable"] < LITTLE_MEMORY * found["MemTotal"]:
        yield Finding(
            "soon",
            f"{where}hardly any memory is left",
            f"{found['MemAvailable'] // MIB} of {found['MemTotal'] // MIB} MiB are available",
            f"{on}systemd-cgtop -m, then lower runner_project_memory, or add memory",
        )
    swapped = found["SwapTotal"] - found["SwapFree"]
    if swapped > SWAPPED_SOON * found["SwapTotal"]:
        yield Finding(
            "soon",
            f"{where}the swap space is nearly full",
            f"{swapped // MIB} of {found['SwapTotal'] // MIB} MiB are in use, and what is swapped out answers slowly",
            f"{on}systemd-cgtop -m, then lower runner_project_memory, or add memory",
        )


def _limits(record: Mapping[str, Any], where: str, on: str) -> Iterator[Finding]:
    """Limits of the kernel that the machine, or one of its users, has nearly reached."""
    number, _, most = record["open_files"]
    if number >= NEAR_LIMIT * most:
        yield Finding(
            "soon",
            f"{where}nearly as many files and connections are open as the kernel allows",
            f"{number} of at most {most}",
            f"{on}raise fs.file-max in /etc/sysctl.d/natskit.conf, then sysctl --system",
        )
    kinds = ("instances", "watches")
    for user, numbers in record["watches"]["users"].items():
        for kind, mine, most in zip(kinds, numbers, record["watches"]["most"], strict=True):
            if mine >= NEAR_LIMIT * most:
                yield Finding(
                    "soon",
                    f"{where}user {user} has nearly as many {kind} of inotify as one user may",
                    f"{mine} of at most {most}: watching a folder fails beyond that",
                    f"{on}raise fs.inotify.max_user_{kind} in /etc/sysctl.d/natskit.conf, then sysctl --system",
                )


def _unit(unit: Mapping[str, Any], where: str, on: str) -> Iterator[Finding]:
    """A unit of systemd that failed, starts again and again, or is not as the deploy left it."""
    name, log = unit["name"], f"{on}journalctl --unit {unit['name']} --pager-end"
    if unit["state"] == "failed":
        yield Finding(
            "soon", f"{where}{name} has failed", f"systemd gave up; the last result was {unit['result']}", log
        )
    elif unit["restarts"] >= OFTEN and unit["seconds"] < RECENTLY:
        yield Finding(
            "soon",
            f"{where}{name} starts again and again",
            f"systemd has restarted it {unit['restarts']} times, the last time {unit['seconds']:.0f} s ago",
            log,
        )
    if unit["out_of_memory"] and not name.startswith("natskit-project@"):  # a project may try what its limit forbids
        yield Finding(
            "soon",
            f"{where}the kernel ended processes of {name} for want of memory",
            f"{unit['out_of_memory']} since the unit started",
            f"{on}journalctl --dmesg --grep 'Out of memory|oom'",
        )
    number, most = unit["open_files"]
    if most and number >= NEAR_LIMIT * most:
        yield Finding(
            "soon",
            f"{where}{name} has nearly as many files and connections open as it may",
            f"{number} of at most {most}",
            f"{log}: who connects? If they are users, add a host of this role",
        )
    if unit["changed_by"]:
        yield Finding(
            "untidy",
            f"{where}{name} has settings that natskit did not write",
            f"in {', '.join(unit['changed_by'])}",
            f"{on}systemctl revert {name}, unless you want them",
        )


def _unknown_projects(record: Mapping[str, Any], known: set[str], where: str, on: str) -> Iterator[Finding]:
    """Agents and files of projects that no hub knows."""
    for unit in record["units"]:
        project = project_of(unit["name"])
        if project is not None and project not in known and unit["state"] == "active":
            yield Finding(
                "soon",
                f"{where}the agent of a project that does not exist runs: {project}",
                f"{unit['name']} is active, and no hub knows the project",
                f"{on}systemctl stop {unit['name']}",
            )
    ids = {instance_of(project) for project in known}
    for name in record["projects"]:
        instance = name.removeprefix(".").removesuffix(".arriving")  # as while a project moves here
        if project_of(f"natskit-project@{instance}.service") is not None and instance not in ids:
            path = f"{PROJECTS}/{name}"
            yield Finding(
                "untidy",
                f"{where}the files of a project that does not exist are left: {name}",
                f"{path} is there, and no hub knows the project",
                f"{on}look at them, then rm -r {shlex.quote(path)}",
            )


def open_files(processes: Mapping[str, int]) -> Iterator[Finding]:
    """Processes of this machine, by program, that are close to their limit of open files."""
    for program, pid in processes.items():
        try:
            number, most = machine_probe.open_files(pid)
        except OSError:  # it has ended
            continue
        if most and number >= NEAR_LIMIT * most:
            yield Finding(
                "soon",
                f"{program} has nearly as many files and connections open as it may",
                f"process {pid} has {number} of at most {most}",
                "raise the limit of this user (nofile in limits.conf(5)), sign in again, scripts/down and make up",
            )


def unreached(host: str, found: Mapping[str, str]) -> Iterator[Finding]:
    """The hosts and ports that a host does not reach, and why."""
    for place, why in found.items():
        yield Finding(
            "broken",
            f"{host} does not reach {place}",
            f"{host} says: {why}",
            "if that host runs, open the port in the firewalls between the two",
        )


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
