"""The methods of the project agent for jobs."""

from __future__ import annotations

import os
import shlex
from typing import Annotated, Any

from pydantic import Field

from natskit.project.agent import Caller
from natskit.project.command import Command, Result
from natskit.project.jobs import JobReader
from natskit.project.paths import path_of
from natskit.rpc import Methods, RpcError

job_methods: Methods[Caller] = Methods()

Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
SAID_CHARACTERS = 1000
"""How much of its command line a job's description has."""


def start_command(
    caller: Caller, argv: list[str] | None, command: str | None, cwd: str, env: dict[str, str] | None, *, stdin: bool
) -> Command:
    """Start a program (``argv``) or a line of shell (``command``). Raises :class:`RpcError`."""
    if (argv is None) == (command is None):
        raise RpcError("invalid_params", "name either argv or command")
    directory = caller.home.open(cwd, os.O_PATH | os.O_DIRECTORY)
    try:
        return Command(
            argv if argv is not None else ["/bin/sh", "-c", command or ""],
            cwd=f"/proc/self/fd/{directory}",
            env=caller.agent.environment(path_of(directory), env or {}),
            stdin="pipe" if stdin else "none",
            leftovers=caller.agent.leftovers,
            cpu_seconds=caller.agent.program.limits.cpu_seconds,
        )
    finally:
        os.close(directory)


@job_methods.method("job.start", access="member")
async def start(
    caller: Caller,
    argv: Annotated[list[str], Field(min_length=1)] | None = None,
    command: str | None = None,
    cwd: str = ".",
    env: dict[str, str] | None = None,
    stdin: str | None = None,
    timeout: Seconds | None = None,  # noqa: ASYNC109 - a parameter of the method
) -> dict[str, Any]:
    """Start a program (``argv``) or a line of shell (``command``) as a job, which needs no reader."""
    caller.agent.jobs.check_room()
    caller.agent.leftovers.check_room()
    running = start_command(caller, argv, command, cwd, env, stdin=stdin is not None)
    if stdin is not None:
        running.feed_all(stdin)
    says = command if command is not None else shlex.join(argv or [])
    return caller.agent.jobs.start(running, says[:SAID_CHARACTERS], timeout).describe()


@job_methods.method("job.list", access="member", idempotent=True)
async def list_jobs(caller: Caller) -> list[dict[str, Any]]:
    """The jobs that run, and the last that have ended."""
    return caller.agent.jobs.list()


@job_methods.method("job.attach", access="member")
async def attach(caller: Caller, job: str) -> Result:
    """Stream the kept output of a job, and then its new output until it ends."""
    found = caller.agent.jobs.get(job)
    caller.agent.check_room_for_stream()
    return await found.follow(await caller.open_stream(JobReader()))


@job_methods.method("job.end", access="member")
async def end(caller: Caller, job: str) -> dict[str, Any]:
    """End a job as a cancelled command ends, and wait for it. Changes nothing in one that has ended."""
    found = caller.agent.jobs.get(job)
    found.end()
    await found.over.wait()
    return found.describe()


@job_methods.method("job.forget", access="member")
async def forget(caller: Caller, job: str) -> None:
    """Drop a job that has ended, with its output."""
    caller.agent.jobs.forget(job)
