"""End orphans: processes whose supervisord or master process was killed or ran out of memory.

    python -m natskit.ops.orphans PROGRAMS_DIRECTORY                     programs without their supervisord
    python -m natskit.ops.orphans PROGRAMS_DIRECTORY -- COMMAND…         workers without their master, then run COMMAND

Nothing restarts or stops an orphan, and it holds the ports that its successor needs. A program is identified by its
whole command line, as defined in the folder, so that an editor with the same file open does not match. A worker is
identified by its executable, its working directory and a process group without a leader: supervisord gives each
program its own group.
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
"""Seconds from one signal to the next, stronger one. The runner needs this time to stop its projects."""


class ForeignProcessError(OSError):
    """The process to end belongs to another user, whose uid is ``user``."""

    def __init__(self, pid: int, user: int) -> None:
        super().__init__(f"process {pid} belongs to another user (uid {user}): only that user can end it")
        self.user = user


def end_orphans(programs: Path, patience: float = PATIENCE) -> list[int]:
    """End orphaned programs and workers, wait until they have ended, and return their process ids.

    Raises :class:`ForeignProcessError`, and ``TimeoutError`` for a process that even SIGKILL does not end in time.
    """
    return _end([*find_orphans(programs), *find_workers(programs)], patience)


def end_workers(programs: Path, patience: float = PATIENCE) -> list[int]:
    """End orphaned workers, wait until they have ended, and return their process ids."""
    return _end(list(find_workers(programs)), patience)


def _end(orphans: list[int], patience: float) -> list[int]:
    # In lame duck mode, nats-server ignores SIGTERM but ends on SIGINT.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        left = [pid for pid in orphans if command_of(pid)]
        _signal(left, number)
        deadline = time.monotonic() + patience
        while (left := [pid for pid in left if command_of(pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)
    if left:
        raise TimeoutError(f"SIGKILL did not end these processes: {', '.join(map(str, left))}")
    return orphans


def find_orphans(programs: Path) -> Iterator[int]:
    """Processes whose command is defined in ``programs`` and whose parent is not a supervisord.

    The supervisord may be another platform's: a copied folder defines the commands of the original, which may run.
    """
    commands = {" ".join(_defined(path)) for path in programs.glob("*.conf")}
    for pid in process_ids():
        command = command_of(pid).removeprefix("nginx: master process ").strip()
        if command and command in commands and not _is_supervised(pid):
            yield pid


def find_workers(programs: Path) -> Iterator[int]:
    """Processes that run a defined program's executable in its working directory, in a group without a leader."""
    root = programs.resolve().parents[1]
    executables = {Path(words[0]).resolve() for path in programs.glob("*.conf") if (words := _defined(path))}
    for pid in process_ids():
        process = Path("/proc", str(pid))
        try:
            group = int(_status_of(pid)[2])
            ours = (process / "cwd").readlink() == root and (process / "exe").readlink() in executables
        except OSError:  # it has ended, or belongs to another user
            continue
        if ours and not command_of(group):
            yield pid


def _is_supervised(pid: int) -> bool:
    """Whether its parent is a supervisord. Process 1 does not count: it adopts orphans, also where it is one."""
    try:
        parent = int(_status_of(pid)[1])
        return parent != 1 and is_supervisord(words_of(parent))
    except OSError:  # it has ended
        return True


def _status_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat (proc(5)) from the state on: state, parent, process group, ... Raises OSError."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()


def is_supervisord(words: list[str]) -> bool:
    """Whether this is the command line of supervisord, a Python script."""
    return any(os.path.basename(word) == "supervisord" for word in words[:2])


def _defined(path: Path) -> list[str]:
    """The arguments of the program's own command, without the wrapper before ``--``."""
    for line in path.read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and name.strip() == "command":
            words = shlex.split(value.replace("%%", "%"))
            return words[words.index("--") + 1 :] if "--" in words else words
    return []


def process_ids() -> list[int]:
    """The ids of the current processes. Any of them may end at any moment."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def words_of(pid: int) -> list[str]:
    """The arguments of a process's command line; none once it has ended, even before its parent has reaped it."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return os.fsdecode(line.rstrip(b"\0")).split("\0") if line else []


def command_of(pid: int) -> str:
    """The command line of a process, joined by spaces; empty once it has ended."""
    return " ".join(words_of(pid))


def _signal(pids: list[int], number: signal.Signals) -> None:
    """Raises :class:`ForeignProcessError`."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it has ended
            continue
        except PermissionError:
            raise ForeignProcessError(pid, os.stat(f"/proc/{pid}").st_uid) from None


def main(arguments: list[str]) -> None:
    """See the module."""
    programs, command = Path(arguments[0]), arguments[2:]
    if command:
        end_workers(programs)
        os.execv(command[0], command)  # noqa: S606
    elif ended := end_orphans(programs):
        print(f"ended {len(ended)} programs that had outlived their supervisord")


if __name__ == "__main__":
    main(sys.argv[1:])
