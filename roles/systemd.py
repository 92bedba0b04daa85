"""Programs kept running by systemd. ``roles/service.py`` has what it and supervisor have in common.

Where a program runs on several hosts, it is restarted on one after the other, each when the one before works again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

from pyinfra import host
from pyinfra.api import FactBase, StringCommand, operation
from pyinfra.operations import files, server

from natskit.config.render import render
from natskit.config.settings import Settings
from natskit.runner.systemd import parse_list
from roles import artifacts
from roles.files import WrittenFile, checked_file
from roles.managed_program import OPEN_FILES, Program

UNITS = Path("/etc/systemd/system")
RELOADED = Path("/run/natskit/reloaded")
"""A folder with a file for each unit. The file's time is that of the last reload, which systemd does not record."""


class UnitStates(FactBase[dict[str, str]]):
    """The units of natskit and their states."""

    def command(self, pattern: str) -> str:
        return f"systemctl list-units --all --plain --no-legend {shlex.quote(pattern)} || true"

    def process(self, output: Iterable[str]) -> dict[str, str]:
        return {unit: state.active for unit, state in parse_list("\n".join(output)).items()}

    default = dict


class Unread(FactBase[list[str]]):
    """The files that a running unit has not read, because an earlier deploy changed them and then ended early.

    A gate may have refused, or a host may have become unreachable: then the files are up to date and the program is
    not.
    """

    def command(self, unit: str, paths: list[str], also_reloads: bool) -> str:
        since = f"systemctl show --timestamp=us+utc --value -p ActiveEnterTimestamp {shlex.quote(unit)}"
        find = f'find {shlex.join(paths)} -maxdepth 0 -newermt "$since"'
        reloaded = shlex.quote(str(RELOADED / unit))
        if also_reloads:
            find = f"if [ -e {reloaded} ]; then {find} -newer {reloaded}; else {find}; fi"
        return f'since=$({since}) && [ -n "$since" ] && {find} 2>/dev/null || true'

    def process(self, output: Iterable[str]) -> list[str]:
        return [line for line in output if line.startswith("/")]

    default = list


def install(settings: Settings) -> None:
    """Make the folders of the platform, and install its programs. Each role's own folder belongs to its user."""
    # Users may pass through without listing the folder: projects read the CA's certificate there.
    for folder, mode in ((settings.platform_root, "711"), (settings.platform_programs, "755")):
        files.directory(name=f"Make folder {folder}", path=str(folder), mode=mode, user="root", group="root")
    artifacts.install_programs(settings)


def user(role: str) -> str:
    """Make the system user of a role's program, and return its name."""
    name = f"natskit-{role}"
    server.user(  # noqa: S604
        name=f"Make user {name}",
        user=name,
        system=True,
        home="/nonexistent",
        ensure_home=False,
        shell="/usr/sbin/nologin",
    )
    return name


def unit(program: Program) -> str:
    """The name of a program's unit."""
    return str(program.unit.get("unit_name") or f"natskit-{program.name}.service")


def run(
    settings: Settings,  # noqa: ARG001 - as supervisor's
    program: Program,
    *,
    restart_on: Sequence[WrittenFile] = (),
    reload_on: Sequence[WrittenFile] = (),
) -> Callable[[], bool]:
    """See :func:`roles.service.run`."""
    name = unit(program)
    definition = define(program, str(program.unit.get("path") or UNITS / name))
    wait = [shlex.join(program.healthy)] if program.healthy else []
    before = [shlex.join(program.before_restart)] if program.before_restart else []
    started = _started(name=f"Run {program.name}", unit=name, wait=wait)

    def unread(written: Sequence[WrittenFile], also_reloads: bool) -> bool:
        paths = [str(file.path) for file in written]
        return bool(paths) and bool(host.get_fact(Unread, unit=name, paths=paths, also_reloads=also_reloads))

    to_restart, to_reload = unread([definition, *restart_on], False), unread(reload_on, True)

    def outdated() -> bool:
        changed = to_restart or any(file.did_change() for file in (definition, *restart_on))
        return changed and not started.did_change()

    restart = [*before, "systemctl daemon-reload", _restart(name), *wait]
    server.shell(name=f"Restart {program.name}", commands=restart, _if=outdated, _serial=True)
    if reload_on:
        reload = f"systemctl reload {name} && mkdir -p {RELOADED} && touch {RELOADED / name}"
        server.shell(
            name=f"Reload {program.name}",
            commands=[f"{{ {reload}; }} || {{ {' && '.join(restart)}; }}"],
            _if=lambda: (
                (to_reload or any(file.did_change() for file in reload_on))
                and not outdated()
                and not started.did_change()
            ),
            _serial=True,
        )
    return lambda: not outdated() and not started.did_change()


def _restart(unit: str) -> str:
    """Restart a unit, also one that has failed so often that systemd starts it no more for now (StartLimitBurst)."""
    return f"{{ systemctl reset-failed {unit} 2>/dev/null || true; systemctl restart {unit}; }}"


def define(program: Program, path: str) -> WrittenFile:
    """Write a unit, and make systemd read it."""
    template = program.template or f"natskit-{program.name}.service"
    files.directory(name=f"Make folder {Path(path).parent}", path=str(Path(path).parent), mode="755")
    definition = checked_file(
        name=f"Define unit {Path(path).name}",
        content=render(
            template,
            {
                "name": program.name,
                "command": shlex.join(program.command),
                "reload_command": shlex.join(program.reload),
                "environment": dict(program.environment),
                "stop_seconds": program.stop_seconds,
                "open_files": OPEN_FILES,
                **program.unit,
            },
        ),
        path=Path(path),
        mode="644",
    )
    server.shell(
        name=f"Let systemd read {Path(path).name}", commands=["systemctl daemon-reload"], _if=definition.did_change
    )
    return definition


@operation()
def _started(unit: str, wait: list[str]) -> Generator[StringCommand, None, None]:
    """Start and enable a unit that does not run: it is new, an operator stopped it, or it failed."""
    if host.get_fact(UnitStates, pattern="*.service").get(unit) in ("active", "reloading", "activating"):
        host.noop(f"{unit} runs")
        return
    yield StringCommand(f"systemctl enable --quiet {unit} && {_restart(unit)}")
    for command in wait:
        yield StringCommand(command)


def retire(settings: Settings, prefix: str, keep: Sequence[str]) -> None:  # noqa: ARG001 - as supervisor's
    """See :func:`roles.service.retire`."""
    _retired(
        name=f"Retire what is left of {prefix}*",
        pattern=f"natskit-{prefix}*.service",
        keep=[f"natskit-{name}.service" for name in keep],
    )


@operation()
def _retired(pattern: str, keep: list[str]) -> Generator[StringCommand, None, None]:
    gone = sorted(unit for unit in host.get_fact(UnitStates, pattern=pattern) if unit not in keep)
    if not gone:
        host.noop(f"nothing is left of {pattern}")
        return
    for unit in gone:
        yield StringCommand(f"systemctl disable --quiet --now {unit}; rm -f {UNITS / unit}")
    yield StringCommand("systemctl daemon-reload")
