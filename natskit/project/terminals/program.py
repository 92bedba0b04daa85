"""A program on a pseudo-terminal: start it, write to it, signal it, and learn how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import secrets
import shutil
import signal
import struct
import subprocess
import termios
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypedDict

from natskit.process.signals import signal_name
from natskit.project.command import prefer_to_agent, reason
from natskit.rpc import RpcError

READ_BYTES = 64 * 1024
START = 'exec "$@" <>/proc/self/fd/0 >&0 2>&0'
"""A session leader's controlling terminal is the first terminal that it opens. A shell can open one between the start
of the session and the program; a fork with Python code in the child could hang, since the agent has threads."""

VARIABLE = "NATSKIT_TERMINAL"
"""In the environment of what is started in a terminal: its value, which no other terminal has, tells all of it."""


class Outcome(TypedDict):
    """Why a viewer's stream ended: how the program ended, or that the viewer was detached."""

    exit_code: int | None
    signal: str | None
    signal_number: int | None
    detached: bool


class Program:
    """A started program. It leads a session, whose controlling terminal is the pseudo-terminal.

    Raises :class:`RpcError` if it cannot be started. ``ended`` is set when its process has ended; others of its session
    may still run then.
    """

    def __init__(
        self, argv: Sequence[str], *, cwd: str, env: dict[str, str], columns: int, rows: int, cpu_seconds: int | None
    ) -> None:
        marker = secrets.token_hex(8)
        try:
            found = _is_there(argv[0], cwd, env.get("PATH", ""))
        except ValueError:  # a NUL character, or half of one
            found = False
        if not found:
            raise RpcError("not_found", f"there is no command {argv[0][:200]!r}", what="command")
        try:
            self.master, slave = os.openpty()
        except OSError as error:
            raise RpcError("unavailable", f"there is no pseudo-terminal left: {reason(error)}") from None
        try:
            self.resize(columns, rows)
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", START, "sh", *argv],
                stdin=slave,
                cwd=cwd,
                env=env | {VARIABLE: marker},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            os.close(self.master)
            raise RpcError("invalid_state", f"{argv[0][:200]!r} cannot be started: {reason(error)}") from None
        finally:
            os.close(slave)
        os.set_blocking(self.master, False)
        self.pid = self._process.pid
        self.ended = asyncio.Event()
        prefer_to_agent(self.pid)
        if cpu_seconds is not None:
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        self._marker = f"{VARIABLE}={marker}".encode()
        self._known: set[tuple[int, bytes]] = set()
        self._pidfd = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    def read(self) -> bytes | None:
        """Output that is there; ``b""`` if there is none at the moment, and ``None`` if there will be no more."""
        try:
            return os.read(self.master, READ_BYTES) or None
        except BlockingIOError:
            return b""
        except OSError:  # EIO: no process has the terminal open any more
            return None

    def write(self, data: bytes) -> int:
        """Write input, and return how much of it the terminal took."""
        try:
            return os.write(self.master, data)
        except BlockingIOError:
            return 0
        except OSError:  # it hung up
            return len(data)

    def resize(self, columns: int, rows: int) -> None:
        """Set the size. The kernel tells the programs (SIGWINCH) if it differs."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self, processes: Iterable[int]) -> None:
        """Tell processes that their terminal is gone (SIGHUP)."""
        _send(processes, signal.SIGHUP)
        _send(processes, signal.SIGCONT)

    def kill(self, processes: Iterable[int]) -> None:
        """End processes."""
        _send(processes, signal.SIGKILL)

    def session(self) -> list[int]:
        """The living processes of its session.

        Not by process groups: those of a shell's jobs are unknown, and the terminal's foreground group is 0 while no
        process has it open, which for ``killpg`` means the caller's own.
        """
        return [process.pid for process in _processes() if process.session == self.pid]

    def everything(self) -> list[int]:
        """The living processes that it started, also those that have left its session, as ``setsid`` and daemons do.

        They are its descendants, those that were when it was asked before, and those that have the terminal's
        variable in the environment they were started with, which also tells a daemon whose parent has ended.
        """
        living = {process.pid: process for process in _processes()}
        found = {
            pid
            for pid, process in living.items()
            if process.session == self.pid or (pid, process.started) in self._known or _has(pid, self._marker)
        }
        found.discard(os.getpid())
        while more := {pid for pid, process in living.items() if process.parent in found} - found:
            found |= more
        self._known = {(pid, living[pid].started) for pid in found}
        return list(found)

    def result(self) -> Outcome:
        """How it ended."""
        code = self._process.wait()
        return {
            "exit_code": code if code >= 0 else None,
            "signal": signal_name(-code) if code < 0 else None,
            "signal_number": -code if code < 0 else None,
            "detached": False,
        }

    def close(self) -> None:
        """Close the terminal. The session must have no process that should go on."""
        loop = asyncio.get_running_loop()
        if not self.ended.is_set():
            loop.remove_reader(self._pidfd)
        os.close(self.master)
        os.close(self._pidfd)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self.ended.set()


def _is_there(program: str, cwd: str, path: str) -> bool:
    if "/" in program:
        return os.access(os.path.join(cwd, program), os.X_OK)
    return shutil.which(program, path=path) is not None


class _Process(NamedTuple):
    pid: int
    parent: int
    session: int
    started: bytes
    """When, in ticks since the start of the machine: with its number, it tells a process from all others."""


def _processes() -> Iterator[_Process]:
    """All that live."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # ended meanwhile
                # The name, in parentheses, may contain any character. proc(5) lists what follows it.
                with open(f"/proc/{entry.name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                if fields[0] not in (b"Z", b"X"):
                    yield _Process(int(entry.name), int(fields[1]), int(fields[3]), fields[19])


def _has(pid: int, variable: bytes) -> bool:
    """Whether a process was started with a variable."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return variable in file.read().split(b"\0")
    except OSError:  # it has ended meanwhile, or is somebody else's
        return False


def _send(processes: Iterable[int], number: signal.Signals) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
