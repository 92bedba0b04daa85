"""End what outlived the one who looked after it, when that one was killed or ran out of memory.

    python -m natskit.strays PROGRAMS_DIRECTORY                     programs without their supervisord
    python -m natskit.strays PROGRAMS_DIRECTORY -- COMMAND…         workers without their master, then run COMMAND

Nobody restarts or stops them any more, and they hold the ports their successors need. A program is known by its whole
command line, which must be that of a program defined in the folder: an editor with the same file open is none. A
worker is known by its executable, its working directory, and a process group whose leader has gone: supervisord gives
each program a group of its own.
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
    """End programs and workers, wait until they have gone, and return their process ids."""
    return _end([*find_strays(programs), *find_workers(programs)], patience)


def end_workers(programs: Path, patience: float = PATIENCE) -> list[int]:
    """End workers without a master, wait until they have gone, and return their process ids."""
    return _end(list(find_workers(programs)), patience)


def _end(strays: list[int], patience: float) -> list[int]:
    _signal(strays, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while (left := [pid for pid in strays if command_of(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(left, signal.SIGKILL)
    while [pid for pid in left if command_of(pid)]:
        time.sleep(0.05)
    return strays


def find_strays(programs: Path) -> Iterator[int]:
    """Processes whose command is one of those defined in ``programs``."""
    commands = {" ".join(_defined(path)) for path in programs.glob("*.conf")}
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        command = command_of(pid).removeprefix("nginx: master process ").strip()
        if command and command in commands:
            yield pid


def find_workers(programs: Path) -> Iterator[int]:
    """Processes that run the executable of a defined program where it would, in a group without a leader."""
    root = programs.resolve().parents[1]
    executables = {Path(words[0]).resolve() for path in programs.glob("*.conf") if (words := _defined(path))}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            group = int((process / "stat").read_text().rsplit(")", 1)[1].split()[2])
            ours = (process / "cwd").readlink() == root and (process / "exe").readlink() in executables
        except OSError:  # ended meanwhile, or another user's
            continue
        if ours and not command_of(group):
            yield int(process.name)


def _defined(path: Path) -> list[str]:
    """The words of the program's own command, without what is run before it."""
    for line in path.read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and name.strip() == "command":
            words = shlex.split(value.replace("%%", "%"))
            return words[words.index("--") + 1 :] if "--" in words else words
    return []


def command_of(pid: int) -> str:
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


def main(arguments: list[str]) -> None:
    """See the module."""
    programs, command = Path(arguments[0]), arguments[2:]
    if command:
        end_workers(programs)
        os.execv(command[0], command)  # noqa: S606
    elif ended := end_strays(programs):
        print(f"ended {len(ended)} programs that had outlived their supervisord")


if __name__ == "__main__":
    main(sys.argv[1:])
