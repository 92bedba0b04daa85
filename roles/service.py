"""Keep programs running: with systemd on hosts, with supervisor on a machine without root.

A role names the program to run, and the files whose change requires a restart or a reload. The module of the manager,
``roles/systemd.py`` or ``roles/supervisor.py``, decides between them by the files that changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from natskit.config.settings import Settings
from roles import artifacts, supervisor, systemd
from roles.files import WrittenFile
from roles.managed_program import Program

HEALTHY_SECONDS = "60"
"""How long a program may take to answer its health check. A hub first waits for nats-server to load its streams."""


def uses_systemd(settings: Settings) -> bool:
    """Whether the programs of this host are units of systemd."""
    return settings.platform_manager == "systemd"


def install(settings: Settings) -> None:
    """Install the manager itself, and make the folders of the platform."""
    (systemd if uses_systemd(settings) else supervisor).install(settings)


def run(
    settings: Settings,
    program: Program,
    *,
    restart_on: Sequence[WrittenFile] = (),
    reload_on: Sequence[WrittenFile] = (),
) -> Callable[[], bool]:
    """Keep a program running; restart or reload it if one of those files changed.

    A program that this deploy has started, or restarted because its definition changed, is not restarted again. Call
    the result during the run to learn whether the program kept running.
    """
    keep = systemd.run if uses_systemd(settings) else supervisor.run
    return keep(settings, program, restart_on=restart_on, reload_on=reload_on)


def retire(settings: Settings, prefix: str, keep: Sequence[str]) -> None:
    """Stop and remove the programs with that prefix that are not in ``keep``, such as the third hub after a change to
    two."""
    (systemd if uses_systemd(settings) else supervisor).retire(settings, prefix, keep)


def after(settings: Settings) -> list[str]:
    """A command to put before that of a program which needs the hub, even when all programs start at once.

    It waits for the hub, and starts the program in any case if the hub does not answer in time.
    """
    return [
        sys.executable,
        "-m",
        "natskit.ops.health_wait",
        f"http://127.0.0.1:{settings.hub_port}/healthz",
        "20",
        "--",
    ]


def tidy(settings: Settings) -> None:
    """Remove versions that no program needs any more."""
    if uses_systemd(settings):
        artifacts.tidy(settings)


def python(settings: Settings) -> Path:
    """The Python that has natskit: the one that runs the deploy, or the one installed on the host."""
    return artifacts.python(settings) if uses_systemd(settings) else Path(sys.executable)


def nats_server(settings: Settings) -> Path:
    """The nats-server of the wheel in .venv, or the one installed on the host."""
    return artifacts.nats_server(settings) if uses_systemd(settings) else supervisor.BIN / "nats-server"


def owner(settings: Settings, role: str) -> str:
    """The user that runs a role's program and owns its folder, created if necessary. Empty without root: the user who
    deploys."""
    return systemd.user(role) if uses_systemd(settings) else ""
