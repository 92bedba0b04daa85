"""What a role says about a program that is to be kept running, whatever keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OPEN_FILES = 16_384
"""nginx needs two for each connection of a browser, nats-server one."""


@dataclass(frozen=True)
class Program:
    """One program: its command, how it is reloaded and stopped, and how one knows that it works."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    priority: int = 100
    """The order of starts under supervisor; low goes first."""
    reload: Sequence[str] = ()
    """A command that fails when only a restart will do; without one, SIGHUP reloads."""
    stop_signal: str = "TERM"
    stop_seconds: int = 20
    healthy: Sequence[str] = ()
    """A command that returns when the program works, and fails when it does not in time. A deploy goes on only then,
    so that a bad change stops at the first host."""
    before_restart: Sequence[str] = ()
    """A command that fails where the platform could not do without this program now."""
    template: str = ""
    """Of its unit; the program's name unless told."""
    unit: Mapping[str, Any] = field(default_factory=dict)
    """What the template of its unit needs beyond this."""
