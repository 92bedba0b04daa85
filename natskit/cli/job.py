"""``natskit job``: commands in projects that need no reader."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from natskit.cli import output
from natskit.cli.execute import exit_code, running_project
from natskit.cli.platform import json_option, show_json, show_table, with_client
from natskit.process.signals import SIGNALLED

if TYPE_CHECKING:
    from natskit.client import Client

COMMAND_CHARACTERS = 60


@click.group()
def job() -> None:
    """List, read and end jobs: commands that `natskit exec --detach` started, and that run without a reader.

    PROJECT is an id, or a title that no other project has.
    """


@job.command("list")
@click.argument("project")
@json_option
@click.pass_obj
def list_jobs(directory: str, project: str, as_json: bool) -> None:
    """List the jobs that run, and the last that have ended.

    \b
    Example:
      natskit job list "First steps"
    """
    jobs = _call(directory, project, "job.list")
    if as_json:
        show_json(jobs)
        return
    rows = [[found["job"], _state(found), _when(found["started_at"]), _short(found["command"])] for found in jobs]
    show_table(["job", "state", "started", "command"], rows, "No jobs.")


@job.command()
@click.argument("project")
@click.argument("job_id", metavar="JOB")
@click.pass_obj
def attach(directory: str, project: str, job_id: str) -> None:
    """Print the kept output of a job, follow it until the job ends, and return its exit code as `natskit exec` does.

    Ctrl-C ends this command, not the job. If the project no longer keeps the beginning of the output, a note on
    standard error says so.

    \b
    Example:
      natskit job attach "First steps" 1f0c93ab
    """

    async def work(client: Client) -> int:
        project_id = await running_project(client, project)
        async with client.job(project_id, job_id) as reading:
            async for stream, data in reading:
                await asyncio.to_thread(output.write, 1 if stream == "stdout" else 2, data)
        if reading.dropped_bytes:
            click.echo(f"natskit: {reading.dropped_bytes:,} bytes of the output are not kept any more", err=True)
        return exit_code(reading)

    try:
        code = with_client(directory, work)
    except KeyboardInterrupt:
        click.echo(f"\nThe job goes on. To read it again: natskit job attach {shlex.quote(project)} {job_id}", err=True)
        code = SIGNALLED + signal.SIGINT
    sys.exit(code)


@job.command()
@click.argument("project")
@click.argument("job_id", metavar="JOB")
@json_option
@click.pass_obj
def end(directory: str, project: str, job_id: str, as_json: bool) -> None:
    """End a job: send SIGTERM to it and everything it started, and SIGKILL two seconds later. Keeps its output.

    \b
    Example:
      natskit job end "First steps" 1f0c93ab
    """
    ended = _call(directory, project, "job.end", job=job_id)
    if as_json:
        show_json(ended)
    else:
        click.echo(f"{job_id}: {_state(ended)}")


@job.command()
@click.argument("project")
@click.argument("job_id", metavar="JOB")
@click.pass_obj
def forget(directory: str, project: str, job_id: str) -> None:
    """Drop a job that has ended, with its output.

    \b
    Example:
      natskit job forget "First steps" 1f0c93ab
    """
    _call(directory, project, "job.forget", job=job_id)


def _call(directory: str, project: str, method: str, **params: Any) -> Any:
    async def work(client: Client) -> Any:
        project_id = await running_project(client, project)
        return await client.call_project(project_id, method, **params)

    return with_client(directory, work)


def _state(found: dict[str, Any]) -> str:
    result = found["result"]
    if result is None:
        return "running"
    if result["timed_out"]:
        return "timed out"
    return f"ended by {result['signal']}" if result["signal"] else f"exit code {result['exit_code']}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _short(command: str) -> str:
    return command if len(command) <= COMMAND_CHARACTERS else command[: COMMAND_CHARACTERS - 1] + "…"
