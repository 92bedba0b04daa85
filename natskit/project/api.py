"""The built-in methods of the project agent."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from natskit.project.agent import Caller
from natskit.project.command import Result
from natskit.project.file_api import file_methods
from natskit.project.job_api import Seconds, job_methods, start_command
from natskit.project.terminal_api import terminal_methods
from natskit.rpc import Methods, RpcError

natskit_project: Methods[Caller] = Methods()
natskit_project.include(file_methods, "natskit")
natskit_project.include(job_methods, "natskit.project.job_api")
natskit_project.include(terminal_methods, "natskit.project.terminal_api")


@natskit_project.method("ping", access="member", idempotent=True)
async def ping(caller: Caller) -> dict[str, Any]:
    """Prove that the agent answers."""
    return {"pong": True, "project_id": caller.project_id}


@natskit_project.method("exec", access="member")
async def exec_(
    caller: Caller,
    argv: Annotated[list[str], Field(min_length=1)] | None = None,
    command: str | None = None,
    cwd: str = ".",
    env: dict[str, str] | None = None,
    stdin: str | None = None,
    stdin_stream: bool = False,
    timeout: Seconds | None = None,  # noqa: ASYNC109 - a parameter of the method
) -> Result:
    """Run a program (``argv``) or a line of shell (``command``) and stream its output."""
    if stdin is not None and stdin_stream:
        raise RpcError("invalid_params", "exec takes either stdin or stdin_stream")
    caller.agent.check_room_for_stream()
    running = start_command(caller, argv, command, cwd, env, stdin=stdin is not None or stdin_stream)
    try:
        sender = await caller.open_stream(running)
    except BaseException:
        running.discard()
        raise
    if stdin is not None:
        running.feed_all(stdin)
    return await running.run(sender, timeout)
