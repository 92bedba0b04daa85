"""Orphans: processes of a project that outlived its agent."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import defaultdict
from pathlib import Path

MARK = "NATSKIT_PROJECT_ID"
"""In the environment of an agent and of every command. A process can remove it: this finds forgotten processes, and
does not confine hostile ones. On hosts the unit's control group does that."""


_MARKED = f"{MARK}=".encode()


def processes_of(project_id: str, proc: Path = Path("/proc")) -> list[int]:
    """The ids of the processes that carry the project's mark, without this process."""
    return marked(proc).get(project_id, [])


def marked(proc: Path = Path("/proc")) -> dict[str, list[int]]:
    """The ids of the processes that carry the mark of any project, by project, without this process."""
    found = defaultdict[str, list[int]](list)
    for entry in proc.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            for word in (entry / "environ").read_bytes().split(b"\0"):
                if word.startswith(_MARKED):
                    found[word[len(_MARKED) :].decode(errors="replace")].append(int(entry.name))
    return dict(found)


def end_all(project_id: str) -> int:
    """Kill the orphans of a project, and return how many there were."""
    ended = 0
    for _ in range(10):  # a process may fork during the search
        pids = processes_of(project_id)
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                ended += 1
    return ended
