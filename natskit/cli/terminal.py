"""``natskit terminal``: a terminal of a project in this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import click

from natskit.cli import output
from natskit.cli.execute import exit_code, read_stdin, running_project
from natskit.cli.platform import json_option, show_json, show_table, with_client
from natskit.errors import NatskitError

if TYPE_CHECKING:
    from natskit.client import Client
    from natskit.terminal import Terminal

TYPED_BYTES = 4096
NAME = "main"
ARGUMENTS = 2
"""Before the command: project and name."""
MOST_COLUMNS, MOST_ROWS = 1000, 500
"""What a terminal may have. A larger window is used up to that."""
LEAVE = (
    b"\x1b[?1049l\x1b[!p\x1b[?9;1000;1002;1003;1004;1005;1006;1015;2004;2026l\x1b[<99u\x1b>\x1b(B"
    b"\x1b[?7h\x1b[?25h\x1b[m"
)
"""Sets this terminal back, whatever modes the program has left."""


class _Key(click.ParamType[bytes]):
    """A key with Ctrl, as the byte that a terminal sends for it."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, bytes):
            return value
        letter = value.removeprefix("ctrl-").upper()
        if not value.startswith("ctrl-") or len(letter) != 1 or not "A" <= letter <= "_" or letter in "[MJ":
            self.fail(f"{value!r} must be ctrl- and a letter, or one of ]\\^_, but not j, m or [", param, context)
        return bytes([ord(letter) & 0x1F])


class PassOn(click.Command):
    """Everything behind the third argument belongs to COMMAND, such as ``-d 1`` in ``top -d 1``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``--`` before COMMAND."""
        takes_value = {
            name
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        arguments = 0
        value = False
        for place, word in enumerate(args):
            if word == "--":
                break
            if value or (word.startswith("-") and len(word) > 1):
                value = not value and word in takes_value
                continue
            arguments += 1
            if arguments > ARGUMENTS:
                args = [*args[:place], "--", *args[place:]]
                break
        return super().parse_args(ctx, args)


@click.command("terminal", cls=PassOn)
@click.argument("project")
@click.argument("name", default=NAME)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--start", is_flag=True, help="Start the project first if it is not running.")
@click.option("--read-only", is_flag=True, help="Watch only: what you type goes nowhere.")
@click.option(
    "--detach-key", type=_Key(), default="ctrl-]", show_default=True, metavar="KEY", help="Leave, and let it go on."
)
@click.option("--record", metavar="FILE", help="Record it into this new file of the project (asciicast v3).")
@click.option("--stop-recording", is_flag=True, help="End the recording of the terminal NAME instead.")
@click.option("--list", "wants_list", is_flag=True, help="List the terminals of PROJECT instead.")
@click.option("--end", "wants_end", is_flag=True, help="End the terminal NAME and everything in it instead.")
@json_option
@click.pass_obj
def terminal(
    directory: str,
    project: str,
    name: str,
    command: tuple[str, ...],
    start: bool,
    read_only: bool,
    detach_key: bytes,
    record: str | None,
    stop_recording: bool,
    wants_list: bool,
    wants_end: bool,
    as_json: bool,
) -> None:
    """Open the terminal NAME of PROJECT (an id or a title) in this one; NAME is `main` unless you choose another.

    If there is none of that name, it is started with COMMAND, or with a login shell. It goes on without you: after you
    detach with Ctrl-], lose the connection or close this window, the same command brings the screen back. The exit code
    is that of the program, as with `natskit exec`, and 0 if you detach.

    \b
    Examples:
      natskit terminal "First steps"
      natskit terminal "First steps" monitor top -d 1
      natskit terminal "First steps" --list
      natskit terminal "First steps" monitor --end
    """
    if wants_list:
        _list(directory, project, as_json)
    elif wants_end:
        _call(directory, project, "terminal.close", terminal=name)
    elif stop_recording:
        _call(directory, project, "terminal.record", terminal=name)
    elif not (os.isatty(0) and os.isatty(1)):
        raise NatskitError("natskit terminal needs a terminal to draw on: use `natskit exec` in scripts")
    else:

        async def work(client: Client) -> int:
            project_id = await running_project(client, project, start=start)
            await _start(client, project_id, name, list(command), record)
            columns, rows = _window()
            view = client.terminal(project_id, name, columns=columns, rows=rows, read_only=read_only, scrollback=0)
            with _raw():
                attached = await _attach(view, detach_key)
            if attached is None:
                click.echo(f"The terminal {name!r} goes on.", err=True)
                return 0
            return attached

        sys.exit(with_client(directory, work))


async def _start(client: Client, project_id: str, name: str, argv: list[str], record: str | None) -> None:
    from natskit.rpc import RpcError

    columns, rows = _window()
    params: dict[str, Any] = ({"argv": argv} if argv else {}) | ({"record": record} if record else {})
    try:
        await client.call_project(project_id, "terminal.create", name=name, columns=columns, rows=rows, **params)
    except RpcError as error:
        if error.kind != "conflict" or error.data.get("what") == "recording":
            raise
        if argv:
            raise NatskitError(f"the terminal {name!r} runs already: leave out the command, or choose a name") from None
        if record:
            await client.call_project(project_id, "terminal.record", terminal=name, path=record)


async def _attach(view: Terminal, detach_key: bytes) -> int | None:
    """Show the terminal until its program ends; ``None`` if the user has detached."""
    loop = asyncio.get_running_loop()
    background: set[asyncio.Task[None]] = set()

    def later(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = loop.create_task(work)
        background.add(task)
        task.add_done_callback(background.discard)
        return task

    async with view:
        loop.add_signal_handler(signal.SIGWINCH, lambda: later(_resize(view)))
        typing, showing = later(_type(view, detach_key)), later(_show(view))
        try:
            await asyncio.wait({typing, showing}, return_when=asyncio.FIRST_COMPLETED)
            if not showing.done():
                typing.result()
                return None
            showing.result()
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)
            for task in background:
                task.cancel()
    return exit_code(view)


async def _show(view: Terminal) -> None:
    async for kind, data in view:
        if kind == "output":
            await asyncio.to_thread(output.write, 1, data)


async def _type(view: Terminal, detach_key: bytes) -> None:
    while data := await read_stdin(TYPED_BYTES):
        before, pressed, _ = data.partition(detach_key)
        if before:
            await view.write(before)
        if pressed:
            return


async def _resize(view: Terminal) -> None:
    columns, rows = _window()
    with contextlib.suppress(NatskitError):
        await view.resize(columns, rows)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Pass every key on, and set the terminal back at the end."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # keeps what was typed before
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, before)
        output.write(1, LEAVE + b"\x1b[%d;1H\r\n" % _window()[1])


def _window() -> tuple[int, int]:
    """Columns and rows of this terminal."""
    columns, rows = shutil.get_terminal_size()
    return min(max(columns, 1), MOST_COLUMNS), min(max(rows, 1), MOST_ROWS)


def _list(directory: str, project: str, as_json: bool) -> None:
    found = _call(directory, project, "terminal.list")
    if as_json:
        show_json(found)
        return
    rows = [
        [
            one["terminal"],
            f"{one['columns']}×{one['rows']}",
            str(len(one["viewers"])),
            one["title"] or one["command"],
        ]
        for one in found
    ]
    show_table(["terminal", "size", "viewers", "shows"], rows, "No terminals.")


def _call(directory: str, project: str, method: str, **params: Any) -> Any:
    async def work(client: Client) -> Any:
        project_id = await running_project(client, project)
        return await client.call_project(project_id, method, **params)

    return with_client(directory, work)
