"""The built-in methods of the project agent."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any

from pydantic import Field

from natskit.project.agent import Caller
from natskit.project.command import Command, Result
from natskit.project.home import Entry, version_of
from natskit.rpc import Methods, RpcError

natskit_project: Methods[Caller] = Methods()

Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]


@natskit_project.method("ping")
async def ping(caller: Caller) -> dict[str, Any]:
    """Prove that the agent answers."""
    return {"pong": True, "project_id": caller.project_id}


@natskit_project.method("exec")
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
    if (argv is None) == (command is None):
        raise RpcError("invalid_params", "exec needs either argv or command")
    if stdin is not None and stdin_stream:
        raise RpcError("invalid_params", "exec takes either stdin or stdin_stream")
    caller.agent.check_room_for_stream()
    directory = caller.home.open(cwd, os.O_PATH | os.O_DIRECTORY)
    try:
        running = Command(
            argv if argv is not None else ["/bin/sh", "-c", command or ""],
            cwd=f"/proc/self/fd/{directory}",
            env=caller.agent.environment(env or {}),
            stdin="pipe" if stdin is not None or stdin_stream else "none",
            cpu_seconds=caller.agent.program.limits.cpu_seconds,
        )
    finally:
        os.close(directory)
    try:
        sender = await caller.open_stream(running)
    except BaseException:
        running.discard()
        raise
    if stdin is not None:
        running.feed(stdin.encode("utf-8", "surrogatepass"))
        running.end_of_input()
    return await running.run(sender, timeout)


@natskit_project.method("read_text_file")
async def read_text_file(caller: Caller, path: str) -> dict[str, str]:
    """The text of a file and its version."""
    data = await asyncio.to_thread(caller.home.read, path, caller.max_answer)
    try:
        return {"text": data.decode(), "version": version_of(data)}
    except UnicodeDecodeError:
        raise RpcError("invalid_state", f"{path[:200]!r} is not text in UTF-8") from None


@natskit_project.method("write_text_file")
async def write_text_file(caller: Caller, path: str, text: str, expected_version: str | None = None) -> dict[str, str]:
    """Replace a file at once, if it still is what the caller believes."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise RpcError("invalid_params", "the text contains half a character (a lone surrogate)") from None
    async with caller.agent.writing:
        return {"version": await asyncio.to_thread(caller.home.write, path, data, expected_version)}


@natskit_project.method("list_directory")
async def list_directory(caller: Caller, path: str = ".") -> list[Entry]:
    """The names in a directory."""
    return await asyncio.to_thread(caller.home.list, path)
