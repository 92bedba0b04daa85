"""The trial of ``natskit ready`` on each runner: start a project without an owner, run a command in it, delete it.

``natskit status`` cannot notice that projects fail to start: the runner and all other parts still answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from natskit.cli.platform import with_client
from natskit.errors import ConnectionLostError, NatskitError
from natskit.rpc import RpcError

if TYPE_CHECKING:
    from natskit.client import Client

START_SECONDS = 40.0
COMMAND_SECONDS = 20.0
ATTEMPTS = 2
"""The first start on a machine that has just booted may take longer than a hub waits."""
WORD = "ready"
_WRITE_AND_READ = ["sh", "-c", 'printf %s "$0" > trial && cat trial', WORD]


def try_runners(directory: str, left: set[str]) -> list[str]:
    """:func:`try_all` on a platform, as its administrator. Hubs that do not answer are a problem like others."""
    try:
        return with_client(directory, lambda client: try_all(client, left))
    except ConnectionLostError as error:
        return [str(error)]


async def try_all(client: Client, left: set[str]) -> list[str]:
    """Try every runner that is not revoked. Returns a line with the name and the reason for each failed runner.

    ``left`` has the ids of trial projects that could not be deleted, as on a machine that was just switched off.
    Another attempt is made in the end, when it may be back.
    """
    runners = [row for row in await client.call_hub("runner_list") if not row["revoked"]]
    found = await asyncio.gather(*(_tried(client, runner, left) for runner in runners))
    await asyncio.gather(*(_delete(client, trial, left) for trial in set(left)))
    return [problem for problem in found if problem]


async def _tried(client: Client, runner: dict[str, Any], left: set[str]) -> str:
    problem = ""
    for _ in range(ATTEMPTS):
        try:
            problem = await _try(client, runner["runner_id"], left)
        except NatskitError as error:
            problem = str(error)
        if not problem:
            return ""
    return f"runner {runner['name']}: {problem}"


async def _try(client: Client, runner_id: str, left: set[str]) -> str:
    """The problem of a new project on this runner; empty if it works. Raises :class:`NatskitError`."""
    trial = (await client.call_hub("runner_try", runner=runner_id))["project_id"]
    left.add(trial)
    try:
        problem = await _use(client, trial)
    except BaseException:  # also on an interruption
        await _delete(client, trial, left)
        raise
    not_deleted = await _delete(client, trial, left)
    return problem or not_deleted


async def _use(client: Client, project_id: str) -> str:
    await client.call_hub("start_project", wait=START_SECONDS, project_id=project_id)
    async with client.exec(project_id, _WRITE_AND_READ, timeout=COMMAND_SECONDS) as run:
        printed, complained = (part.decode(errors="replace").strip() for part in await run.output())
    if run.exit_code == 0 and printed == WORD:
        return ""
    if run.timed_out:
        return f"a command in a new project has not ended after {COMMAND_SECONDS:g} s"
    how = run.signal or f"exit code {run.exit_code}"
    return f"a command in a new project cannot write and read a file ({how}): {complained or 'no output'}"


async def _delete(client: Client, project_id: str, left: set[str]) -> str:
    """Delete the trial project. Returns the reason if that fails; empty if it is deleted, and then not ``left``."""
    try:
        await client.call_hub("project_delete", wait=START_SECONDS, project_id=project_id)
    except NatskitError as error:
        if not isinstance(error, RpcError) or error.kind != "not_found":
            return f"a new project works, but cannot be deleted: {error}"
    left.discard(project_id)
    return ""
