"""Forbid core dumps: they put a program's whole memory on disk, and natskit's programs hold keys and passwords."""

from __future__ import annotations

import resource


def forbid() -> None:
    """Forbid core dumps of this process and its children.

    A kernel that pipes core dumps to a program ignores the limit; that program honours it. systemd sets the same limit
    before a unit starts (``LimitCORE=0``), and may not allow the program to set limits itself.
    """
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
