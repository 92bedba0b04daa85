"""Ask supervisord for the state of its programs, and start and stop them, over its socket (supervisord.org, "XML-RPC
API").

The command ``supervisorctl`` does the same in a Python process of its own for every step.
"""

from __future__ import annotations

import contextlib
import xmlrpc.client
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natskit.errors import ConnectionLostError, NatskitError
from natskit.ops.stop_platform import wait_for_end

NOT_RUNNING = 70
ALREADY_STARTED = 60
"""supervisor's codes (``supervisor.xmlrpc.Faults``) for what is as it should be already."""


@dataclass(frozen=True)
class Process:
    """One program. ``state`` is supervisor's term (RUNNING, STARTING, BACKOFF, FATAL, STOPPED)."""

    name: str
    state: str
    pid: int
    detail: str


def socket_of(root: Path) -> Path:
    """The socket of the supervisord that runs the platform in a folder."""
    return root / "supervisor" / "supervisor.sock"


def processes(socket: Path) -> list[Process]:
    """Every program. Raises :class:`ConnectionLostError` when supervisord does not answer."""
    with _supervisord(socket) as supervisord:
        found = supervisord.getAllProcessInfo()
    return [
        Process(str(p["name"]), str(p["statename"]), int(p["pid"]), str(p["description"] or p["spawnerr"]))
        for p in found
    ]


def start(socket: Path, program: str) -> None:
    """Start a program unless it runs, and wait until it has run for a second.

    This and the functions below raise :class:`ConnectionLostError` when supervisord does not answer, and
    :class:`NatskitError` when it refuses or fails.
    """
    with _supervisord(socket, program) as supervisord, _unless(ALREADY_STARTED):
        supervisord.startProcess(program)


def restart(socket: Path, program: str) -> None:
    """Stop a program if it runs, wait until it has ended, and start it as :func:`start` does."""
    with _supervisord(socket, program) as supervisord, _unless(NOT_RUNNING):
        supervisord.stopProcess(program)
    start(socket, program)


def hang_up(socket: Path, program: str) -> None:
    """Send SIGHUP to a program."""
    with _supervisord(socket, program) as supervisord:
        supervisord.signalProcess(program, "HUP")


def update(socket: Path, program: str) -> None:
    """Make supervisord read the definitions again, and apply the change to this program: start it, restart it, or stop
    it if its definition is gone. Does not wait for the start."""
    with _supervisord(socket, program) as supervisord:
        added, changed, removed = supervisord.reloadConfig()[0]
        if program in (*changed, *removed):
            supervisord.stopProcessGroup(program)
            supervisord.removeProcessGroup(program)
        if program in (*changed, *added):
            supervisord.addProcessGroup(program)


def shut_down(root: Path) -> None:
    """End the supervisord of a platform and its programs, and wait until it has ended; do nothing if none answers, or
    if it is ending already. Raises ``TimeoutError`` if it does not end.

    Not with supervisor's ``restart``: it does that later, and answers meanwhile as if it were done.
    """
    try:
        with _supervisord(socket_of(root)) as supervisord:
            pid = supervisord.getPID()
            supervisord.shutdown()
    except NatskitError:
        return
    wait_for_end(pid, root)


@contextlib.contextmanager
def _supervisord(socket: Path, program: str = "") -> Iterator[Any]:
    """The methods of supervisord's XML-RPC API."""
    from supervisor.xmlrpc import SupervisorTransport  # of the extra `deploy`; hosts with systemd are asked without it

    transport = SupervisorTransport(None, None, f"unix://{socket}")
    try:
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as server:
            yield server.supervisor
    except xmlrpc.client.Fault as fault:
        raise NatskitError(f"supervisor refuses{f' {program}' if program else ''}: {fault.faultString}") from None
    except (OSError, xmlrpc.client.Error) as error:
        raise ConnectionLostError(f"supervisor does not answer on {socket} ({error}): run `make up`") from None


@contextlib.contextmanager
def _unless(code: int) -> Iterator[None]:
    """Ignore one of supervisor's faults."""
    try:
        yield
    except xmlrpc.client.Fault as fault:
        if fault.faultCode != code:
            raise
