"""A program that crashes may leave its whole memory on disk; those of natskit hold keys and passwords."""

from __future__ import annotations

import resource


def forbid() -> None:
    """For this process and what it starts. A kernel that pipes core dumps to a program still does: that one looks.

    systemd does the same before a unit starts (``LimitCORE=0``), and may not let the program set a limit any more.
    """
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
