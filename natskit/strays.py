"""End the programs that outlived their supervisord, which was killed or ran out of memory.

    python -m natskit.strays PROGRAMS_DIRECTORY

Nobody restarts or stops them any more, and they hold the ports their successors need. A stray is known by its whole
command line, which must be that of a program defined in the folder: an editor with the same file open is none.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 10.0
"""Seconds between SIGTERM and SIGKILL; the runner stops its projects meanwhile."""


def end_strays(programs: Path, patience: float = PATIENCE) -> list[int]:
    """End them, wait until they have gone, and return their process ids."""
    strays = list(find_strays(programs))
    _signal(strays, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while (left := [pid for pid in strays if _command(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(left, signal.SIGKILL)
    while [pid for pid in left if _command(pid)]:
        time.sleep(0.05)
    return strays


def find_strays(programs: Path) -> Iterator[int]:
    """Processes whose command is one of those defined in ``programs``."""
    commands = {" ".join(_defined(path)) for path in programs.glob("*.conf")}
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        command = _command(pid).removeprefix("nginx: master process ").strip()
        if command and command in commands:
            yield pid


def _defined(path: Path) -> list[str]:
    for line in path.read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and name.strip() == "command":
            return shlex.split(value.replace("%%", "%"))
    return []


def _command(pid: int) -> str:
    """Its words, joined by spaces; empty once it has ended, even before its parent has taken note."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            continue


if __name__ == "__main__":
    if ended := end_strays(Path(sys.argv[1])):
        print(f"ended {len(ended)} programs that had outlived their supervisord")
