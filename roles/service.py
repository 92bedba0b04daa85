"""Programs that are kept running. Here by supervisor, without root; on hosts systemd takes this module's place.

A role says what to run and which of its files a restart or a reload depends on; this module decides, once, from what
changed.
"""

from __future__ import annotations

import os
import resource
import shlex
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
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
OPEN_FILES = 16_384
"""nginx needs two for each connection of a browser, nats-server one."""
HEALTHY_SECONDS = "60"
"""How long a program may take to answer its health check: a hub first waits for nats-server to load its streams."""


@dataclass(frozen=True)
class Program:
    """One program: its command, and how it is stopped. ``priority`` orders starts; low goes first."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    priority: int = 100
    stop_signal: str = "TERM"
    stop_seconds: int = 20
    health_url: str = ""
    """Where it answers 200 once it works; a deploy goes on only then, so that a bad change stops at the first hub."""


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
    yield StringCommand(shlex.join([sys.executable, "-m", "natskit.strays", f"{root}/supervisor/programs"]))
    start = shlex.join([str(BIN / "supervisord"), "-c", configuration])
    said = shlex.quote(f"{root}/supervisor/start.log")
    yield StringCommand(f"rm -f {pid_file}; {start} </dev/null >{said} 2>&1 || {{ cat {said} >&2; exit 1; }}")


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
        content=render(
            "supervisord.conf", {"root": root, "user": "root" if os.geteuid() == 0 else "", "open_files": _open_files()}
        ),
        path=_configuration(settings),
    )
    server.shell(
        name="Stop supervisord for its new configuration",
        commands=[_stop(settings)],
        _if=configuration.did_change,
    )
    _supervisord(name="Start supervisord", configuration=_configuration(settings), root=str(root))


def _open_files() -> int:
    """As many as the platform may need, or as the user may have: supervisord would not start with more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)


def _stop(settings: Settings) -> str:
    """Not ``reload``: supervisord does that in its own time, and answers meanwhile as if it were done."""
    pid = shlex.quote(str(settings.platform_root / "supervisor" / "supervisord.pid"))
    return (
        f"if {control(settings)} shutdown >/dev/null 2>&1; then "
        f"while kill -0 $(cat {pid} 2>/dev/null) 2>/dev/null; do sleep 0.1; done; fi"
    )


def run(
    settings: Settings,
    program: Program,
    *,
    restart_on: Sequence[OperationMeta] = (),
    reload_on: Sequence[OperationMeta] = (),
    reload_command: str = "",
) -> Callable[[], bool]:
    """Keep a program running; restart or reload it if one of those operations changed something.

    A program that was only just started, or restarted because its definition changed, is not restarted again;
    the answer, to be asked during the run, says whether it kept running.
    """
    configuration = _configuration(settings)
    manage = control(settings)
    definition = checked_file(
        name=f"Define program {program.name}",
        content=_definition(settings, program),
        path=str(_definition_path(settings, program.name)),
    )
    server.shell(
        name=f"Start {program.name} by its new definition",
        commands=[f"{manage} update {program.name}", *_wait(program)],
        _if=definition.did_change,
    )
    started = _started(name=f"Run {program.name}", program=program.name, configuration=configuration)

    def kept_running() -> bool:
        return not definition.did_change() and not started.did_change()

    def unless_fresh(changes: Sequence[OperationMeta]) -> Callable[[], bool]:
        return lambda: any(change.did_change() for change in changes) and kept_running()

    if restart_on:
        server.shell(
            name=f"Restart {program.name}",
            commands=[f"{manage} restart {program.name}", *_wait(program)],
            _if=unless_fresh(restart_on),
        )
    if reload_on:
        server.shell(
            name=f"Reload {program.name}",
            commands=[reload_command.replace("{control}", manage)],
            _if=unless_fresh(reload_on),
        )
    return kept_running


def without_strays(settings: Settings) -> list[str]:
    """What comes before the command of a program whose workers can outlive it."""
    programs = settings.platform_root / "supervisor" / "programs"
    return [sys.executable, "-m", "natskit.strays", str(programs), "--"]


def after(url: str) -> list[str]:
    """What comes before the command of a program that another one must have come up for, also when all start at once.

    It is started in any case when the other has not come up in time.
    """
    return [sys.executable, "-m", "natskit.wait", url, "20", "--"]


def _definition(settings: Settings, program: Program) -> str:
    return render(
        "supervisor-program.conf",
        {
            "program": program.name,
            "command": shlex.join(program.command).replace("%", "%%"),
            "environment": dict(program.environment),
            "priority": program.priority,
            "stop_signal": program.stop_signal,
            "stop_seconds": program.stop_seconds,
            "working_directory": settings.platform_root,
            "root": settings.platform_root,
        },
    )


def _definition_path(settings: Settings, name: str) -> Path:
    return settings.platform_root / "supervisor" / "programs" / f"{name}.conf"


def _wait(program: Program) -> list[str]:
    if not program.health_url:
        return []
    return [shlex.join([sys.executable, "-m", "natskit.wait", program.health_url, HEALTHY_SECONDS])]


@operation()
def _started(program: str, configuration: str) -> Generator[StringCommand, None, None]:
    """Start a known program that is not running: stopped by hand, or given up on after too many failures."""
    state = host.get_fact(SupervisorStates, configuration=configuration).get(program)
    if state is None or state in {"RUNNING", "STARTING"}:
        host.noop(f"{program} runs")
        return
    yield StringCommand(f"{_control(configuration)} start {program}")


def control(settings: Settings) -> str:
    """The command line that controls the programs; the verb and a program's name follow."""
    return _control(_configuration(settings))


def retire(settings: Settings, prefix: str, keep: Sequence[str]) -> None:
    """Stop and forget the programs with that prefix that are not kept, such as the third hub after a change to two."""
    _retired(
        name=f"Retire what is left of {prefix}*",
        prefix=prefix,
        keep=list(keep),
        configuration=_configuration(settings),
        directory=str(settings.platform_root / "supervisor" / "programs"),
    )


@operation()
def _retired(prefix: str, keep: list[str], configuration: str, directory: str) -> Generator[StringCommand, None, None]:
    known = host.get_fact(SupervisorStates, configuration=configuration)
    gone = sorted(name for name in known if name.startswith(prefix) and name not in keep)
    if not gone:
        host.noop(f"nothing is left of {prefix}*")
    for name in gone:
        yield StringCommand(
            f"rm -f {shlex.quote(f'{directory}/{name}.conf')} && {_control(configuration)} update {name}"
        )
