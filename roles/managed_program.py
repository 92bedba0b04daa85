"""A role's description of a program to keep running, for systemd or supervisor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OPEN_FILES = 16_384
"""The limit of open files of programs that no setting gives another one."""
BLOCKS = 8192
"""Files that nats-server has open beside its clients: blocks of streams, routes, logs."""


def nats_open_files(browsers: int) -> int:
    """The files that a nats-server may have open, which may have to take this many browsers."""
    return max(OPEN_FILES, browsers + BLOCKS)


@dataclass(frozen=True)
class Program:
    """One program: its command, how to reload and stop it, and how to check that it works."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    priority: int = 100
    """The order of starts under supervisor; the lowest starts first."""
    reload: Sequence[str] = ()
    """A command that fails if only a restart can apply the change. Without one, SIGHUP reloads."""
    stop_signal: str = "TERM"
    stop_seconds: int = 20
    healthy: Sequence[str] = ()
    """A command that returns when the program works, and fails if that takes too long. A deploy waits for it, so that a
    bad change stops at the first host."""
    before_restart: Sequence[str] = ()
    """A command that fails if the platform cannot do without this program now."""
    template: str = ""
    """The template of its unit; by default named after the program."""
    unit: Mapping[str, Any] = field(default_factory=dict)
    """Further values for the template of its unit."""
