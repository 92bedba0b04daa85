"""``natskit exec``: run a command in a project as if it were local."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import click

from natskit.cli import output
from natskit.cli.platform import with_client
from natskit.errors import NatskitError
from natskit.process.descriptors import readable
from natskit.process.signals import SIGNALLED

if TYPE_CHECKING:
    from natskit.client import Client, Execution
    from natskit.terminal import Terminal

STDIN_BLOCK = 32 * 1024
LEAVING_SECONDS = 1.0
"""Maximum time to cancel the remote command after this one received a signal."""
NO_COMMAND = 127
"""A shell's exit code for "command not found"."""
TIMED_OUT = 124
"""The exit code of coreutils' ``timeout``."""


@click.command("exec")
@click.argument("project")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--cwd", metavar="DIR", help="Run it in this folder, relative to the project's home.")
@click.option("--env", "-e", "environment", multiple=True, metavar="KEY=VALUE", help="Set an environment variable.")
@click.option("--stdin", "forward_stdin", is_flag=True, help="Forward standard input.")
@click.option("--timeout", type=click.FloatRange(min=0.001), metavar="SECONDS", help="End it after this time.")
@click.option("--detach", is_flag=True, help="Start it as a job, which needs no reader, and print its id.")
@click.option("--start", is_flag=True, help="Start the project first if it is not running.")
@click.pass_obj
def execute(
    directory: str,
    project: str,
    command: tuple[str, ...],
    cwd: str | None,
    environment: tuple[str, ...],
    forward_stdin: bool,
    timeout: float | None,
    detach: bool,
    start: bool,
) -> None:
    """Run COMMAND in PROJECT (an id or a title), stream its output and return its exit code.

    The exit code is 128 + the number of the signal that ended COMMAND, 124 after a timeout, 127 if COMMAND is not
    found. Ctrl-C cancels the command. Put -- before a command that has options. With --detach, COMMAND goes on when
    this program ends; `natskit job` lists such commands, reads their output and ends them.

    \b
    Examples:
      natskit exec "First steps" -- make test
      natskit exec "First steps" --timeout 60 -- sh -c 'sleep 100 | cat'
      tar c . | natskit exec "First steps" --stdin -- tar x
      natskit exec "First steps" --detach -- python train.py
    """
    if detach and forward_stdin:
        raise click.UsageError(
            "--detach and --stdin exclude each other: a detached command has no reader and no writer"
        )
    variables = dict(_variable(pair) for pair in environment)

    async def work(client: Client) -> int:
        from natskit.rpc import RpcError

        project_id = await running_project(client, project, start=start)
        if detach:
            asked = {"argv": list(command), "cwd": cwd, "env": variables, "timeout": timeout}
            params: dict[str, Any] = {name: value for name, value in asked.items() if value}
            job = await client.call_project(project_id, "job.start", **params)
            click.echo(job["job"])
            return 0
        execution = client.exec(
            project_id,
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


async def running_project(client: Client, project: str, *, start: bool = False) -> str:
    """The id of a project that runs. Raises :class:`NatskitError` if it does not, unless it is to ``start``."""
    from natskit.cli.project import find_project

    found = await find_project(client, project)
    if found["state"] != "running":
        if not start:
            raise NatskitError(f"project {project!r} is {found['state']}: add --start, or start it first")
        await client.call_hub("start_project", wait=40, project_id=found["project_id"])
    return str(found["project_id"])


async def _follow(execution: Execution, forward_stdin: bool) -> int:
    loop = asyncio.get_running_loop()
    background: set[asyncio.Task[None]] = set()

    def later(work: Coroutine[Any, Any, None]) -> None:
        background.add(loop.create_task(work))

    def end_by(number: signal.Signals) -> None:
        later(_end_by(number, execution))

    async with execution:
        loop.add_signal_handler(signal.SIGINT, lambda: later(execution.cancel()))
        enders = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
        for number in enders:
            loop.add_signal_handler(number, end_by, number)
        if forward_stdin:
            later(_forward(execution))
        try:
            async for stream, data in execution:
                await asyncio.to_thread(output.write, 1 if stream == "stdout" else 2, data)
        finally:
            for number in (signal.SIGINT, *enders):
                loop.remove_signal_handler(number)
            for task in background:
                task.cancel()
    return exit_code(execution)


async def _end_by(number: signal.Signals, execution: Execution) -> None:
    """Cancel the command in the project, which would otherwise run for minutes, and die by the same signal."""
    with contextlib.suppress(NatskitError, TimeoutError):
        async with asyncio.timeout(LEAVING_SECONDS):
            await execution.leave()
    asyncio.get_running_loop().remove_signal_handler(number)
    os.kill(os.getpid(), number)


async def _forward(execution: Execution) -> None:
    while data := await read_stdin(STDIN_BLOCK):
        await execution.write(data)
    with contextlib.suppress(NatskitError):
        await execution.close_stdin()


async def read_stdin(most: int) -> bytes:
    """Read the next block. Waits for a terminal or pipe without a thread, which would delay the exit. Yields to the
    event loop also for a file that is always readable: the command may have ended."""
    if sys.stdin is None:  # the parent process closed it: 0 may be any file by now
        return b""
    while True:
        try:
            await readable(0)
        except PermissionError:  # a regular file, or /dev/zero: reading it does not wait
            await asyncio.sleep(0)
        with contextlib.suppress(BlockingIOError):  # another process has read it
            return os.read(0, most)


def exit_code(ended: Execution | Terminal) -> int:
    """The exit code for how a command, or the program on a terminal, ended."""
    if getattr(ended, "timed_out", False):
        return TIMED_OUT
    if ended.signal is not None:
        return SIGNALLED + (ended.signal_number or 0)
    return ended.exit_code if ended.exit_code is not None else 1


def _variable(pair: str) -> tuple[str, str]:
    key, separator, value = pair.partition("=")
    if not separator or not key:
        raise click.BadParameter(f"{pair!r} must have the form KEY=VALUE", param_hint="--env")
    return key, value
