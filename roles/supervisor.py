"""Keep programs running with supervisor, without root, by the interface of ``roles/service.py``."""

from __future__ import annotations

import os
import resource
import shlex
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from pyinfra import host, logger
from pyinfra.api import FunctionCommand, Host, State, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from natskit.config.render import ini, render
from natskit.config.settings import Settings
from natskit.errors import NatskitError
from natskit.ops.supervisor import hang_up, processes, restart, shut_down, socket_of, start, update
from roles.files import WrittenFile, checked_file, private_directory
from roles.managed_program import Program, nats_open_files

BIN = Path(sys.prefix) / "bin"


def _configuration(settings: Settings) -> str:
    return str(settings.platform_root / "supervisor" / "supervisord.conf")


@operation()
def _supervisord(configuration: str, root: Path) -> Generator[StringCommand, None, None]:
    """Start supervisord unless it answers. Its children do not inherit the terminal or the deploy's pipes."""
    if _states(root) is not None:
        host.noop("supervisord runs")
        return
    pid_file = shlex.quote(f"{root}/supervisor/supervisord.pid")
    programs = f"{root}/supervisor/programs"
    yield StringCommand(shlex.join([sys.executable, "-m", "natskit.ops.orphans", programs]))
    # Remove definitions of a platform that was moved here: supervisord would not start with them, and the deploy writes
    # each of them again below.
    here = shlex.quote(f"directory = {ini(str(root))}")
    yield StringCommand(f"grep -LZxF -- {here} {shlex.quote(programs)}/*.conf 2>/dev/null | xargs -0r rm -f")
    # No core dumps, not even of nginx and nats-server: they would hold keys. All programs it starts inherit this.
    start = "ulimit -c 0; " + shlex.join([str(BIN / "supervisord"), "-c", configuration])
    said = shlex.quote(f"{root}/supervisor/start.log")
    yield StringCommand(f"rm -f {pid_file}; {start} </dev/null >{said} 2>&1 || {{ cat {said} >&2; exit 1; }}")


def _states(root: Path) -> dict[str, str] | None:
    """The state of each program, by its name; ``None`` when supervisord does not answer, or is ending."""
    try:
        return {process.name: process.state for process in processes(socket_of(root))}
    except NatskitError:
        return None


def _done(state: State, host: Host, step: Callable[..., None], *arguments: object) -> bool:  # noqa: ARG001 - pyinfra's
    """Take a step for pyinfra. Whether that went well; otherwise the deploy's output says why not."""
    try:
        step(*arguments)
    except (NatskitError, TimeoutError) as error:
        logger.error(f"{host.print_prefix}{error}")
        return False
    return True


@operation(is_idempotent=False)
def _told(step: Callable[[Path, str], None], program: Program, root: Path) -> Generator[PyinfraCommand, None, None]:
    """Have supervisord take a step with a program that starts it, and wait until it works."""
    yield FunctionCommand(_done, [step, socket_of(root), program.name], {})
    if program.healthy:
        yield StringCommand(shlex.join(program.healthy))


@operation(is_idempotent=False)
def _reloaded(program: Program, root: Path) -> Generator[PyinfraCommand, None, None]:
    """Reload a program. Where that fails, restart it, and wait until it works."""
    restarted: list[str] = []
    yield FunctionCommand(_reload_or_restart, [program, socket_of(root), restarted], {})
    if restarted and program.healthy:
        yield StringCommand(shlex.join(program.healthy))


def _reload_or_restart(state: State, host: Host, program: Program, socket: Path, restarted: list[str]) -> bool:
    if program.reload:
        command = StringCommand(shlex.join(program.reload))
        reloaded, _ = host.run_shell_command(command, print_output=state.print_output, print_input=state.print_input)
    else:
        reloaded = True
        try:
            hang_up(socket, program.name)
        except NatskitError:
            reloaded = False
    if reloaded:
        return True
    restarted.append(program.name)
    return _done(state, host, restart, socket, program.name)


@operation(is_idempotent=False)
def _stopped(root: Path) -> Generator[FunctionCommand, None, None]:
    yield FunctionCommand(_done, [shut_down, root], {})


def install(settings: Settings) -> None:
    """Install supervisord itself."""
    root = settings.platform_root
    for folder in (root, root / "log", root / "supervisor", root / "supervisor" / "programs"):
        private_directory(folder)
    configuration = checked_file(
        name="Render supervisord.conf",
        content=render(
            "supervisord.conf",
            {
                "root": root,
                "user": "root" if os.geteuid() == 0 else "",
                "open_files": _open_files(settings),
                "interpreter": f"{sys.executable}, {sys.version.split()[0]}",
            },
        ),
        path=Path(_configuration(settings)),
    )
    _stopped(name="Stop supervisord for its new configuration", root=root, _if=configuration.did_change)
    _supervisord(name="Start supervisord", configuration=_configuration(settings), root=root)


def _open_files(settings: Settings) -> int:
    """As many as the platform may need, or as the user may have: with more, supervisord would not start."""
    wanted = max(nats_open_files(settings.proxy_max_browsers), settings.proxy_open_files)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def run(
    settings: Settings,
    program: Program,
    *,
    restart_on: Sequence[WrittenFile] = (),
    reload_on: Sequence[WrittenFile] = (),
) -> Callable[[], bool]:
    """See :func:`roles.service.run`."""
    root = settings.platform_root
    definition = checked_file(
        name=f"Define program {program.name}",
        content=_definition(settings, program),
        path=_definition_path(settings, program.name),
    )
    _told(
        name=f"Start {program.name} by its new definition",
        step=update,
        program=program,
        root=root,
        _if=definition.did_change,
    )
    started = _started(name=f"Run {program.name}", program=program.name, root=root)

    def kept_running() -> bool:
        return not definition.did_change() and not started.did_change()

    def unless_fresh(changes: Sequence[WrittenFile]) -> Callable[[], bool]:
        return lambda: any(change.did_change() for change in changes) and kept_running()

    if restart_on:
        restart_if = unless_fresh(restart_on)
        _told(name=f"Restart {program.name}", step=restart, program=program, root=root, _if=restart_if)
    if reload_on:
        _reloaded(name=f"Reload {program.name}", program=program, root=root, _if=unless_fresh(reload_on))
    return kept_running


def without_orphans(settings: Settings) -> list[str]:
    """A command to put before that of a program whose workers can outlive it: it ends the orphans first."""
    programs = settings.platform_root / "supervisor" / "programs"
    return [sys.executable, "-m", "natskit.ops.orphans", str(programs), "--"]


def _definition(settings: Settings, program: Program) -> str:
    return render(
        "supervisor-program.conf",
        {
            "program": program.name,
            "command": shlex.join(program.command),
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
def _started(program: str, root: Path) -> Generator[FunctionCommand, None, None]:
    """Start a defined program that does not run: an operator stopped it, or supervisord gave up after failures."""
    if (_states(root) or {}).get(program, "RUNNING") in {"RUNNING", "STARTING"}:
        host.noop(f"{program} runs")
        return
    yield FunctionCommand(_done, [start, socket_of(root), program], {})


def retire(settings: Settings, prefix: str, keep: Sequence[str]) -> None:
    """See :func:`roles.service.retire`."""
    _retired(name=f"Retire what is left of {prefix}*", prefix=prefix, keep=list(keep), root=settings.platform_root)


@operation()
def _retired(prefix: str, keep: list[str], root: Path) -> Generator[PyinfraCommand, None, None]:
    gone = sorted(name for name in _states(root) or {} if name.startswith(prefix) and name not in keep)
    if not gone:
        host.noop(f"nothing is left of {prefix}*")
    for name in gone:
        yield StringCommand("rm -f " + shlex.quote(f"{root}/supervisor/programs/{name}.conf"))
        yield FunctionCommand(_done, [update, socket_of(root), name], {})
