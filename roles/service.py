"""Programs that are kept running. Here by supervisor, without root; on hosts systemd takes this module's place.

A role says what to run and which of its files a restart or a reload depends on; this module decides, once, from what
changed.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FactBase, StringCommand, operation
from pyinfra.api.operation import OperationMeta
from pyinfra.operations import server

from natskit.render import render
from natskit.settings import Settings
from roles.files import checked_file, private_directory

BIN = Path(sys.prefix) / "bin"


@dataclass(frozen=True)
class Program:
    """One program: its command, and how it is stopped. ``priority`` orders starts; low goes first."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    priority: int = 100
    stop_signal: str = "TERM"
    stop_seconds: int = 20


class SupervisorStates(FactBase[dict[str, str]]):
    """The state of each program, by its name; empty when supervisord does not answer."""

    def command(self, configuration: str) -> str:
        return f"{_control(configuration)} status 2>/dev/null || true"

    def process(self, output: Any) -> dict[str, str]:
        words = [line.split() for line in output]
        return {line[0]: line[1] for line in words if len(line) > 1 and line[1].isupper()}

    default = dict


def _control(configuration: str) -> str:
    return shlex.join([str(BIN / "supervisorctl"), "-c", configuration])


def _configuration(settings: Settings) -> str:
    return str(settings.platform_root / "supervisor" / "supervisord.conf")


@operation()
def _supervisord(configuration: str, root: str) -> Generator[StringCommand, None, None]:
    """Start supervisord unless it answers. Its children do not inherit the terminal or the deploy's pipes."""
    pid_file = shlex.quote(f"{root}/supervisor/supervisord.pid")
    if host.get_fact(SupervisorStates, configuration=configuration) or _is_alive(root):
        host.noop("supervisord runs")
        return
    start = shlex.join([str(BIN / "supervisord"), "-c", configuration])
    yield StringCommand(f"rm -f {pid_file} && {start} </dev/null >/dev/null 2>&1")


class _Alive(FactBase[bool]):
    def command(self, root: str) -> str:
        control = _control(f"{root}/supervisor/supervisord.conf")
        return f"{control} pid 2>/dev/null | grep -qE '^[0-9]+$' && echo yes || true"

    def process(self, output: Any) -> bool:
        return "yes" in list(output)


def _is_alive(root: str) -> bool:
    return bool(host.get_fact(_Alive, root=root))


def install(settings: Settings) -> None:
    """The service manager itself."""
    root = settings.platform_root
    for folder in (root, root / "log", root / "supervisor", root / "supervisor" / "programs"):
        private_directory(folder)
    configuration = checked_file(
        name="Render supervisord.conf",
        content=render("supervisord.conf", {"root": root, "user": "root" if os.geteuid() == 0 else ""}),
        path=_configuration(settings),
    )
    server.shell(
        name="Reload supervisord with its new configuration",
        commands=[f"{_control(_configuration(settings))} pid >/dev/null 2>&1 && "
                  f"{_control(_configuration(settings))} reload || true"],
        _if=configuration.did_change,
    )  # fmt: skip
    _supervisord(name="Start supervisord", configuration=_configuration(settings), root=str(root))


def run(
    settings: Settings,
    program: Program,
    *,
    restart_on: Sequence[OperationMeta] = (),
    reload_on: Sequence[OperationMeta] = (),
    reload_command: str = "",
) -> None:
    """Keep a program running; restart or reload it if one of those operations changed something.

    A program that was only just started, or restarted because its definition changed, is not restarted again.
    """
    root = settings.platform_root
    configuration = _configuration(settings)
    content = render(
        "supervisor-program.conf",
        {
            "program": program.name,
            "command": shlex.join(program.command).replace("%", "%%"),
            "environment": dict(program.environment),
            "priority": program.priority,
            "stop_signal": program.stop_signal,
            "stop_seconds": program.stop_seconds,
            "working_directory": root,
            "root": root,
        },
    )
    path = root / "supervisor" / "programs" / f"{program.name}.conf"
    definition = checked_file(name=f"Define program {program.name}", content=content, path=str(path))
    server.shell(
        name=f"Start {program.name} by its new definition",
        commands=[f"{_control(configuration)} update {program.name}"],
        _if=definition.did_change,
    )
    started = _started(name=f"Run {program.name}", program=program.name, configuration=configuration)

    def unless_fresh(changes: Sequence[OperationMeta]) -> Any:
        return lambda: (
            any(change.did_change() for change in changes) and not definition.did_change() and not started.did_change()
        )

    if restart_on:
        server.shell(
            name=f"Restart {program.name}",
            commands=[f"{_control(configuration)} restart {program.name}"],
            _if=unless_fresh(restart_on),
        )
    if reload_on:
        server.shell(
            name=f"Reload {program.name}",
            commands=[reload_command.replace("{control}", _control(configuration))],
            _if=unless_fresh(reload_on),
        )


@operation()
def _started(program: str, configuration: str) -> Generator[StringCommand, None, None]:
    """Start a known program that is not running: stopped by hand, or given up on after too many failures."""
    state = host.get_fact(SupervisorStates, configuration=configuration).get(program)
    if state is None or state in {"RUNNING", "STARTING"}:
        host.noop(f"{program} runs")
        return
    yield StringCommand(f"{_control(configuration)} start {program}")


def retire(settings: Settings, names: Sequence[str]) -> None:
    """Stop and forget programs that are no longer wanted, such as the third hub after a change to two."""
    for name in names:
        _retired(
            name=f"Retire program {name}",
            program=name,
            configuration=_configuration(settings),
            path=str(settings.platform_root / "supervisor" / "programs" / f"{name}.conf"),
        )


@operation()
def _retired(program: str, configuration: str, path: str) -> Generator[StringCommand, None, None]:
    if program not in host.get_fact(SupervisorStates, configuration=configuration):
        host.noop(f"{program} is not there")
        return
    yield StringCommand(f"rm -f {shlex.quote(path)} && {_control(configuration)} update {program}")
