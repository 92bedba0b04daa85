"""Programs that are kept running: by systemd on hosts, by supervisor where there is no root.

A role says what to run and which of its files a restart or a reload depends on; the manager's module decides, once,
from what changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from natskit.settings import Settings
from roles import artifacts, supervisor, systemd
from roles.files import WrittenFile
from roles.program import Program

HEALTHY_SECONDS = "60"
"""How long a program may take to answer its health check: a hub first waits for nats-server to load its streams."""


def uses_systemd(settings: Settings) -> bool:
    """Whether the programs of this host are units of systemd."""
    return settings.platform_manager == "systemd"


def install(settings: Settings) -> None:
    """The manager itself, and the folders everything else lands in."""
    (systemd if uses_systemd(settings) else supervisor).install(settings)


def run(
    settings: Settings,
    program: Program,
    *,
    restart_on: Sequence[WrittenFile] = (),
    reload_on: Sequence[WrittenFile] = (),
) -> Callable[[], bool]:
    """Keep a program running; restart or reload it if one of those operations changed something.

    A program that was only just started, or restarted because its definition changed, is not restarted again;
    the answer, to be asked during the run, says whether it kept running.
    """
    keep = systemd.run if uses_systemd(settings) else supervisor.run
    return keep(settings, program, restart_on=restart_on, reload_on=reload_on)


def retire(settings: Settings, prefix: str, keep: Sequence[str]) -> None:
    """Stop and forget the programs with that prefix that are not kept, such as the third hub after a change to two."""
    (systemd if uses_systemd(settings) else supervisor).retire(settings, prefix, keep)


def after(settings: Settings) -> list[str]:
    """What comes before the command of a program that the hub must have come up for, also when all start at once.

    It is started in any case when the hub has not come up in time.
    """
    return [sys.executable, "-m", "natskit.wait", f"http://127.0.0.1:{settings.hub_port}/healthz", "20", "--"]


def tidy(settings: Settings) -> None:
    """Remove what no program needs any more."""
    if uses_systemd(settings):
        artifacts.tidy(settings)


def python(settings: Settings) -> Path:
    """The Python that has natskit: this very one, or the one installed on the host."""
    return artifacts.python(settings) if uses_systemd(settings) else Path(sys.executable)


def nats_server(settings: Settings) -> Path:
    """nats-server: of the wheel in .venv, or the one installed on the host."""
    return artifacts.nats_server(settings) if uses_systemd(settings) else supervisor.BIN / "nats-server"


def owner(settings: Settings, role: str) -> str:
    """The user a role's program runs as, who owns its folder; made if need be. Nobody else where there is no root."""
    return systemd.user(role) if uses_systemd(settings) else ""
