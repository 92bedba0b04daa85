"""Programs kept running by supervisor, without root. ``roles/service.py`` has what it and systemd have in common."""

from __future__ import annotations

import os
import resource
import shlex
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FactBase, StringCommand, operation
from pyinfra.operations import server

from natskit.render import render
from natskit.settings import Settings
from roles.files import WrittenFile, checked_file, private_directory
from roles.program import OPEN_FILES, Program

BIN = Path(sys.prefix) / "bin"


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
    # No core dumps, of nginx and nats-server neither: they would hold keys. Whatever it starts inherits that.
    start = "ulimit -c 0; " + shlex.join([str(BIN / "supervisord"), "-c", configuration])
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
    """supervisord itself."""
    root = settings.platform_root
    for folder in (root, root / "log", root / "supervisor", root / "supervisor" / "programs"):
        private_directory(folder)
    configuration = checked_file(
        name="Render supervisord.conf",
        content=render(
            "supervisord.conf", {"root": root, "user": "root" if os.geteuid() == 0 else "", "open_files": _open_files()}
        ),
        path=Path(_configuration(settings)),
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
        f"if {_control(_configuration(settings))} shutdown >/dev/null 2>&1; then "
        f"while kill -0 $(cat {pid} 2>/dev/null) 2>/dev/null; do sleep 0.1; done; fi"
    )


def run(
    settings: Settings,
    program: Program,
    *,
    restart_on: Sequence[WrittenFile] = (),
    reload_on: Sequence[WrittenFile] = (),
) -> Callable[[], bool]:
    """See :func:`roles.service.run`."""
    configuration = _configuration(settings)
    manage = _control(configuration)
    wait = [shlex.join(program.healthy)] if program.healthy else []
    definition = checked_file(
        name=f"Define program {program.name}",
        content=_definition(settings, program),
        path=_definition_path(settings, program.name),
    )
    server.shell(
        name=f"Start {program.name} by its new definition",
        commands=[f"{manage} update {program.name}", *wait],
        _if=definition.did_change,
    )
    started = _started(name=f"Run {program.name}", program=program.name, configuration=configuration)

    def kept_running() -> bool:
        return not definition.did_change() and not started.did_change()

    def unless_fresh(changes: Sequence[WrittenFile]) -> Callable[[], bool]:
        return lambda: any(change.did_change() for change in changes) and kept_running()

    if restart_on:
        server.shell(
            name=f"Restart {program.name}",
            commands=[f"{manage} restart {program.name}", *wait],
            _if=unless_fresh(restart_on),
        )
    if reload_on:
        reload = shlex.join(program.reload) if program.reload else f"{manage} signal HUP {program.name}"
        server.shell(
            name=f"Reload {program.name}",
            commands=[f"{reload} || {manage} restart {program.name}"],
            _if=unless_fresh(reload_on),
        )
    return kept_running


def without_strays(settings: Settings) -> list[str]:
    """What comes before the command of a program whose workers can outlive it."""
    programs = settings.platform_root / "supervisor" / "programs"
    return [sys.executable, "-m", "natskit.strays", str(programs), "--"]


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


@operation()
def _started(program: str, configuration: str) -> Generator[StringCommand, None, None]:
    """Start a known program that is not running: stopped by hand, or given up on after too many failures."""
    state = host.get_fact(SupervisorStates, configuration=configuration).get(program)
    if state is None or state in {"RUNNING", "STARTING"}:
        host.noop(f"{program} runs")
        return
    yield StringCommand(f"{_control(configuration)} start {program}")


def retire(settings: Settings, prefix: str, keep: Sequence[str]) -> None:
    """See :func:`roles.service.retire`."""
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
