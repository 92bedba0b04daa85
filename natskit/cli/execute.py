"""``natskit exec``: run a command in a project as if it ran here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from natskit.cli.platform import with_client
from natskit.errors import NatskitError

if TYPE_CHECKING:
    from natskit.client import Client, Execution

STDIN_BLOCK = 32 * 1024
NO_COMMAND = 127
"""The exit code of a shell that finds no such command."""
TIMED_OUT = 124
"""The exit code of coreutils' ``timeout``."""


@click.command("exec")
@click.argument("project")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--cwd", metavar="DIR", help="Where to run it, relative to the project's home.")
@click.option("--env", "-e", "environment", multiple=True, metavar="KEY=VALUE", help="Add to its environment.")
@click.option("--stdin", "forward_stdin", is_flag=True, help="Send it what comes on standard input.")
@click.option("--timeout", type=click.FloatRange(min=0.001), metavar="SECONDS", help="End it after so long.")
@click.option("--start", is_flag=True, help="Start the project first, if it does not run.")
@click.pass_obj
def execute(
    directory: str,
    project: str,
    command: tuple[str, ...],
    cwd: str | None,
    environment: tuple[str, ...],
    forward_stdin: bool,
    timeout: float | None,
    start: bool,
) -> None:
    """Run COMMAND in PROJECT (an id or a title): its output streams, its exit code is returned.

    A signal gives 128 + its number, a timeout 124, no such command 127. Ctrl-C cancels the command.
    Put -- before a command that has options.

    \b
    Examples:
      natskit exec "First steps" -- make test
      natskit exec "First steps" --timeout 60 -- sh -c 'sleep 100 | cat'
      tar c . | natskit exec "First steps" --stdin -- tar x
    """
    variables = dict(_variable(pair) for pair in environment)

    async def work(client: Client) -> int:
        from natskit.cli.project import find_project
        from natskit.rpc import RpcError

        found = await find_project(client, project)
        if found["state"] != "running":
            if not start:
                raise NatskitError(f"project {project!r} is {found['state']}: add --start, or start it first")
            await client.call_hub("start_project", wait=40, project_id=found["project_id"])
        execution = client.exec(
            found["project_id"],
            list(command),
            cwd=cwd,
            env=variables or None,
            stdin_stream=forward_stdin,
            timeout=timeout,
        )
        try:
            return await _follow(execution, forward_stdin)
        except RpcError as error:
            if error.data.get("what") != "command":
                raise
            click.echo(f"natskit: {error}", err=True)
            return NO_COMMAND

    sys.exit(with_client(directory, work))


async def _follow(execution: Execution, forward_stdin: bool) -> int:
    loop = asyncio.get_running_loop()
    background: set[asyncio.Task[None]] = set()

    def cancel() -> None:
        background.add(loop.create_task(execution.cancel()))

    async with execution:
        loop.add_signal_handler(signal.SIGINT, cancel)
        if forward_stdin:
            background.add(loop.create_task(_forward(execution)))
        try:
            async for stream, data in execution:
                await asyncio.to_thread(_write, 1 if stream == "stdout" else 2, data)
        except BrokenPipeError:
            return 128 + signal.SIGPIPE
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            for task in background:
                task.cancel()
    return _exit_code(execution)


async def _forward(execution: Execution) -> None:
    while data := await _read_stdin():
        await execution.write(data)
    with contextlib.suppress(NatskitError):
        await execution.close_stdin()


async def _read_stdin() -> bytes:
    """What comes next. A terminal or pipe is waited for without a thread that would hold up the end."""
    if sys.stdin is None:  # closed by whoever started us: 0 may be any file by now
        return b""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(0, readable.set)
    except PermissionError:  # epoll(7) takes no regular file; reading one does not wait
        return os.read(0, STDIN_BLOCK)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(0)
    return os.read(0, STDIN_BLOCK)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _exit_code(execution: Execution) -> int:
    if execution.timed_out:
        return TIMED_OUT
    if execution.signal is not None:
        return 128 + signal.Signals[execution.signal].value
    return execution.exit_code if execution.exit_code is not None else 1


def _variable(pair: str) -> tuple[str, str]:
    key, separator, value = pair.partition("=")
    if not separator or not key:
        raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--env")
    return key, value
