"""What a machine has: who listens on which port, room on the disk, the clock. Plain Python, nothing of natskit's own:
a deploy sends this file as text to hosts where nothing is installed yet.

    python3 look.py FOLDER    prints it as JSON; run by root it names every process
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

NGINX_DROP_IN = "/etc/systemd/system/nginx.service.d/natskit.conf"
"""What makes Debian's nginx the platform's proxy; without it, it is somebody else's."""

_LISTEN = "0A"


def listeners() -> dict[int, str]:
    """The socket inode of every TCP listener, by its port (proc(5), ``/proc/net/tcp``)."""
    found: dict[int, str] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        path = Path(table)
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == _LISTEN:
                found[int(fields[1].rsplit(":", 1)[1], 16)] = fields[9]
    return found


def owners(inodes: set[str]) -> dict[str, tuple[int, str]]:
    """The process that holds each socket, and its command line; not those of other users, unless root asks."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, tuple[int, str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [str(link.readlink()) for link in (process / "fd").iterdir()]
            held = [wanted[link] for link in links if link in wanted]
            if held:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.update(dict.fromkeys(held, (int(process.name), command)))
        except OSError:
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
    """Bytes left on the disk where a folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def authorities(folder: Path) -> list[str]:
    """Digests of the certificates of CAs that a deploy left there."""
    files = [*folder.glob("ca.crt"), *folder.glob("*/tls/ca.crt")]
    return sorted({hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


def main() -> None:
    """Print all of it."""
    folder = Path(sys.argv[1])
    ports = listeners()
    held = owners(set(ports.values()))
    taken = [(port, *held.get(inode, (0, ""))) for port, inode in sorted(ports.items())]
    found = {
        "ports": [(port, pid, command[:80], unit_of(pid) if pid else "") for port, pid, command in taken],
        "free": free(folder),
        "authorities": authorities(folder),
        "has_proxy": Path(NGINX_DROP_IN).exists(),
        "clock": time.time(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
