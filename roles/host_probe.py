"""The state of a machine: listening processes and their ports, free disk space, the clock, and what it reaches.

This file imports only Python's standard library: a deploy sends it as text to hosts where nothing is installed yet.

    python3 host_probe.py [--connect] FOLDER [ADDRESS:PORT …]

It prints the state as JSON. As root, it names every process. With ``--connect`` it tries all connections, also if this
host was deployed before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NGINX_DROP_IN = "/etc/systemd/system/nginx.service.d/natskit.conf"
"""The file that makes Debian's nginx the platform's proxy. Without it, nginx does not belong to the platform."""

REACH_SECONDS = 5.0
_LISTEN = "0A"


def listeners() -> dict[int, tuple[str, int]]:
    """The socket inode and the user's number of every TCP listener, by its port (proc(5), ``/proc/net/tcp``)."""
    found: dict[int, tuple[str, int]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        path = Path(table)
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == _LISTEN:
                found[int(fields[1].rsplit(":", 1)[1], 16)] = (fields[9], int(fields[7]))
    return found


def owners(inodes: set[str]) -> dict[str, tuple[int, str]]:
    """The process that holds each socket, and its command line. Only root sees the processes of other users."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, tuple[int, str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = [wanted[link] for link in _descriptors(process) if link in wanted]
            if held:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.update(dict.fromkeys(held, (int(process.name), command)))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def _descriptors(process: Path) -> list[str]:
    """The open files of a process. Leaves out those that it closes meanwhile."""
    found = []
    for link in (process / "fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            continue
    return found


def unit_of(pid: int) -> str:
    """The systemd unit a process belongs to; empty if none."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text().split()
    except OSError:
        return ""
    parts = [part for group in groups for part in group.split("/") if part.endswith(".service")]
    return parts[-1] if parts else ""


def free(folder: Path) -> int:
    """Free bytes on the disk of a folder, which may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def limits() -> dict[str, int]:
    """How many files a process may have open here, and how many connections this host may have to one address."""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return {
        "open_files": int(Path("/proc/sys/fs/nr_open").read_text()),
        "local_ports": int(last) - int(first) + 1,
    }


def authorities(folder: Path) -> list[str]:
    """Digests of the CA certificates that deploys have written to a folder."""
    files = [*folder.glob("ca.crt"), *folder.glob("*/tls/ca.crt")]
    return sorted({hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


def _addresses(place: str) -> list[tuple[str, int]]:
    """The addresses of ``ADDRESS:PORT``. Raises OSError if this machine cannot resolve the name."""
    address, _, port = place.rpartition(":")
    return [(str(found[4][0]), int(port)) for found in socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)]


def unknown(place: str) -> str:
    """Why this machine cannot resolve the name in ``ADDRESS:PORT``; empty if it can."""
    try:
        _addresses(place)
    except OSError as error:
        return _not_known(error)
    return ""


def _not_known(error: OSError) -> str:
    return f"the name is not known here: {error.strerror}"


def unreached(place: str) -> str:
    """Why this machine does not reach ``ADDRESS:PORT``; empty if it does. A refused connection counts as reached: the
    program that will listen there may not be installed yet."""
    try:
        addresses = _addresses(place)
    except OSError as error:
        return _not_known(error)
    named, why = place.rpartition(":")[0], ""
    for address in addresses:
        try:
            socket.create_connection(address, REACH_SECONDS).close()
            return ""
        except ConnectionRefusedError:
            return ""
        except OSError as error:
            said = os.strerror(error.errno) if error.errno else f"no answer in {REACH_SECONDS:g} s"
            why = why or (said if address[0] == named else f"{said} at {address[0]}")
    return why


def all_unreached(places: list[str], try_one: Callable[[str], str] = unreached) -> dict[str, str]:
    """The places for which ``try_one`` returns a problem, and the problems. Tries all places at the same time."""
    with ThreadPoolExecutor(max(len(places), 1)) as pool:
        found = pool.map(lambda place: (place, try_one(place)), places)
        return {place: why for place, why in found if why}


def main() -> None:
    """Print the state."""
    words = sys.argv[1:]
    connect = "--connect" in words
    folder, *places = [word for word in words if word != "--connect"]
    ports = listeners()
    held = owners({inode for inode, _ in ports.values()})
    taken = [(port, *held.get(inode, (0, ""))) for port, (inode, _) in sorted(ports.items())]
    deployed = authorities(Path(folder))
    found = {
        "ports": [(port, pid, command[:80], unit_of(pid) if pid else "") for port, pid, command in taken],
        "free": free(Path(folder)),
        "limits": limits(),
        "authorities": deployed,
        "has_proxy": Path(NGINX_DROP_IN).exists(),
        # Between hosts that were deployed before, no answer is an outage, which this deploy may be meant to mend. The
        # restart gate checks the servers itself.
        "unreached": all_unreached(places, unknown if deployed and not connect else unreached),
        "clock": time.time(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
