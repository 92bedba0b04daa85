"""The methods of the project agent for terminals."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from natskit.bus.permissions import account_of_inbox
from natskit.project import environment
from natskit.project.agent import Caller
from natskit.project.paths import path_of
from natskit.project.terminals.program import Outcome
from natskit.project.terminals.recording import Recording
from natskit.project.terminals.viewer import WINDOW_BYTES
from natskit.rpc import Methods, RpcError

terminal_methods: Methods[Caller] = Methods()

Columns = Annotated[int, Field(ge=1, le=1000)]
Rows = Annotated[int, Field(ge=1, le=500)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


@terminal_methods.method("terminal.create", access="member")
async def create(
    caller: Caller,
    name: Name | None = None,
    argv: Annotated[list[str], Field(min_length=1)] | None = None,
    cwd: str = ".",
    env: dict[str, str] | None = None,
    columns: Columns = 80,
    rows: Rows = 24,
    record: Annotated[str, Field(min_length=1)] | None = None,
) -> dict[str, Any]:
    """Start a program on a terminal, by default a login shell. It lives until it ends or is closed.

    ``record`` is the path of a new file, into which it is recorded as asciicast v3.
    """
    directory = caller.home.open(cwd, os.O_PATH | os.O_DIRECTORY)
    try:
        own = caller.agent.environment(path_of(directory), {})
        variables = environment.of_terminal(own, caller.agent.program.environment) | (env or {})
        terminal = await caller.agent.terminals.create(
            name,
            argv or [variables["SHELL"], "-l"],
            cwd=f"/proc/self/fd/{directory}",
            env=variables,
            columns=columns,
            rows=rows,
            cpu_seconds=caller.agent.program.limits.cpu_seconds,
            record=_recorder(caller, record, columns, rows, argv, name) if record is not None else None,
        )
    finally:
        os.close(directory)
    return terminal.describe()


@terminal_methods.method("terminal.list", access="member", idempotent=True)
async def list_terminals(caller: Caller) -> list[dict[str, Any]]:
    """The terminals whose programs run, and who views them."""
    return caller.agent.terminals.list()


@terminal_methods.method("terminal.attach", access="member")
async def attach(
    caller: Caller,
    terminal: str,
    columns: Columns,
    rows: Rows,
    visible: bool = True,
    read_only: bool = False,
    scrollback: Annotated[int, Field(ge=0)] | None = None,
    viewer: Key | None = None,
) -> Outcome:
    """View a terminal: stream its screen, with up to ``scrollback`` rows above it, and then its output.

    A viewer that comes back names its key again; input that it had sent is then not taken twice.
    """
    found = caller.agent.terminals.get(terminal)
    caller.agent.check_room_for_stream()
    view = found.viewer(
        viewer or secrets.token_hex(8),
        account_of_inbox(caller.reply),
        columns=columns,
        rows=rows,
        visible=visible,
        read_only=read_only,
        scrollback=scrollback,
    )
    return await view.run(await caller.open_stream(view, window=WINDOW_BYTES))


@terminal_methods.method("terminal.resize", access="member", idempotent=True)
async def resize(
    caller: Caller, terminal: str, viewer: Key, columns: Columns, rows: Rows, visible: bool = True
) -> dict[str, int]:
    """Tell the size of a viewer's window, and whether it is visible. Answers with the size that the terminal then has.

    A terminal is as large as the smallest visible window.
    """
    found = caller.agent.terminals.get(terminal)
    view = found.find_viewer(viewer)
    if view is None:
        raise RpcError("not_found", f"the terminal {terminal!r} has no viewer {viewer!r}: attach again", what="viewer")
    found.resize(view, columns, rows, visible)
    return {"columns": found.columns, "rows": found.rows}


@terminal_methods.method("terminal.record", access="member")
async def record_terminal(
    caller: Caller, terminal: str, path: Annotated[str, Field(min_length=1)] | None = None
) -> dict[str, Any]:
    """Record what a terminal shows into a new file, as asciicast v3. Without a ``path``, end the recording.

    The file gets its name when the recording ends, which the end of the program does as well.
    """
    found = caller.agent.terminals.get(terminal)
    if path is None:
        await found.end_recording()
    else:
        await found.record(_recorder(caller, path, found.columns, found.rows, found.argv, terminal))
    return found.describe()


@terminal_methods.method("terminal.share", access="member", idempotent=True)
async def share(caller: Caller, terminal: str, typing: Literal["me", "everyone"]) -> dict[str, Any]:
    """Let everyone who views a terminal type, or only the caller's own viewers: the others watch.

    That keeps people from typing into each other's work, and not from using the project: every member may share anew.
    """
    found = caller.agent.terminals.get(terminal)
    found.share(caller.account if typing == "me" else None)
    return found.describe()


@terminal_methods.method("terminal.close", access="member")
async def close(caller: Caller, terminal: str) -> Outcome:
    """End a terminal's program and everything it started: SIGHUP, and SIGKILL two seconds later."""
    found = caller.agent.terminals.get(terminal)
    await found.close()
    assert found.outcome is not None
    return found.outcome


def _recorder(
    caller: Caller, path: str, columns: int, rows: int, argv: list[str] | None, title: str | None
) -> Callable[[], Recording]:
    """What makes the file of a recording, when everything else is known to be right."""
    return lambda: Recording(
        caller.home,
        path,
        most=caller.agent.program.unattended.recording_bytes,
        columns=columns,
        rows=rows,
        command=shlex.join(argv or []),
        title=title or "",
    )
