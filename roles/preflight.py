"""What this machine lacks, said before anything is started: ports that are taken, and by whom; a disk that is full."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from natskit.errors import SettingsError
from natskit.settings import Settings
from natskit.strays import command_of

LEAST_FREE = 1024**3
"""Bytes. JetStream, logs and the projects' files need room; below this the first day would end with a full disk."""

_LISTEN = "0A"


def check(settings: Settings) -> None:
    """Look at the control machine itself. Raises :class:`SettingsError` with one line for each problem."""
    problems = [*_taken_ports(settings), *_full_disk(settings.platform_root)]
    if problems:
        raise SettingsError("\n".join(problems))


def _taken_ports(settings: Settings) -> Iterator[str]:
    ports = {
        settings.nats_port: "nats_port",
        settings.nats_websocket_port: "nats_websocket_port",
        settings.nats_monitor_port: "nats_monitor_port",
        settings.proxy_port: "proxy_port",
        **dict.fromkeys(settings.hub_ports, "hub_port"),
    }
    taken = {port: inode for port, inode in _listeners() if port in ports}
    owners = _owners(set(taken.values())) if taken else {}
    for port, inode in sorted(taken.items()):
        pid, command = owners.get(inode, (0, ""))
        if f"{settings.platform_root}/" in command or _working_directory(pid) == settings.platform_root:
            continue
        who = f"process {pid} ({command[:80].strip()})" if pid else "a process of another user"
        yield f"port {port} is taken by {who}: stop it, or set {ports[port]} to a free port"


def _listeners() -> Iterator[tuple[int, str]]:
    """Port and socket inode of every TCP listener (proc(5), ``/proc/net/tcp``)."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        path = Path(table)
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == _LISTEN:
                yield int(fields[1].rsplit(":", 1)[1], 16), fields[9]


def _owners(inodes: set[str]) -> dict[str, tuple[int, str]]:
    """The process that holds each socket, and its command line."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, tuple[int, str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [str(link.readlink()) for link in (process / "fd").iterdir()]
            held = [wanted[link] for link in links if link in wanted]
            if held:
                found |= dict.fromkeys(held, (int(process.name), command_of(int(process.name))))
        except OSError:
            continue
    return found


def _working_directory(pid: int) -> Path | None:
    """Where a process works: nginx's workers do not say whose they are, but they work in the platform's folder."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def _full_disk(root: Path) -> Iterator[str]:
    place = root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < LEAST_FREE:
        yield f"the disk of {root} has {free // 1024**2} MiB free and needs {LEAST_FREE // 1024**2}: make room"
