"""The terminals of a project, by name."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

from natskit.project.config import UnattendedLimits
from natskit.project.terminals.emulator_client import EmulatorClient
from natskit.project.terminals.program import Program
from natskit.project.terminals.recording import Recording
from natskit.project.terminals.terminal import Terminal
from natskit.rpc import RpcError


class Terminals:
    """Those whose programs run."""

    def __init__(self, limits: UnattendedLimits) -> None:
        self._limits = limits
        self._terminals: dict[str, Terminal | None] = {}
        """``None`` while it starts."""
        self._emulator = EmulatorClient()
        self._watches: set[asyncio.Task[None]] = set()

    async def create(
        self,
        name: str | None,
        argv: list[str],
        *,
        cwd: str,
        env: dict[str, str],
        columns: int,
        rows: int,
        cpu_seconds: int | None,
        record: Callable[[], Recording] | None = None,
    ) -> Terminal:
        """Start a program, and ``record`` what it prints.

        Raises :class:`RpcError` if the name is taken, or if there are too many.
        """
        name = self._free_name(name)
        if len(self._terminals) >= self._limits.max_terminals:
            raise RpcError("limit", f"the project has {len(self._terminals)} terminals, which is the limit: close one")
        if importlib.util.find_spec("pyghostty") is None:
            raise RpcError("unavailable", "terminals need the package pyghostty, which this project's host lacks")
        recording = record() if record is not None else None
        try:
            program = Program(argv, cwd=cwd, env=env, columns=columns, rows=rows, cpu_seconds=cpu_seconds)
        except BaseException:
            if recording is not None:
                recording.discard()
            raise
        terminal = Terminal(name, argv, program, columns, rows, self._limits, recording)
        self._terminals[name] = None
        try:
            await terminal.start(self._emulator)
        except BaseException:
            terminal.kill()
            terminal.end_recording_now()
            program.close()
            del self._terminals[name]
            raise
        self._terminals[name] = terminal
        watch = asyncio.get_running_loop().create_task(self._forget_when_over(terminal))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return terminal

    def get(self, name: str) -> Terminal:
        """A terminal. Raises :class:`RpcError` if there is none of that name."""
        terminal = self._terminals.get(name)
        if terminal is None:
            raise RpcError(
                "not_found", f"there is no terminal {name[:64]!r}: its program may have ended", what="terminal"
            )
        return terminal

    def list(self) -> list[dict[str, Any]]:
        """All of them, the oldest first."""
        return [terminal.describe() for terminal in self._terminals.values() if terminal is not None]

    def close(self) -> None:
        """End all programs at once."""
        for terminal in self._terminals.values():
            if terminal is not None:
                with contextlib.suppress(OSError):
                    terminal.kill()
                terminal.end_recording_now()
        self._emulator.stop()

    async def _forget_when_over(self, terminal: Terminal) -> None:
        await terminal.over.wait()
        del self._terminals[terminal.name]

    def _free_name(self, name: str | None) -> str:
        if name is None:
            return next(free for number in itertools.count(1) if (free := str(number)) not in self._terminals)
        if name in self._terminals:
            raise RpcError(
                "conflict",
                f"there is a terminal {name!r} already: attach to it, or choose another name",
                what="terminal",
            )
        return name
