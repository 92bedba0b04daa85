"""``hub.project.{project_id}`` and ``hub.runner.{runner_id}``: the methods for project agents and for runners."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec.structs import replace

from natskit.hub.caller import Caller
from natskit.hub.state.records import ProjectState, Runner
from natskit.hub.state.view import Holder
from natskit.hub.timestamp import iso
from natskit.identity import nkey
from natskit.rpc import Methods, RpcError

project_methods: Methods[Caller] = Methods()
runner_methods: Methods[Caller] = Methods()


@project_methods.method("ping", access="connected", idempotent=True, audited=False, immediate=True)
async def project_ping(caller: Caller) -> dict[str, Any]:
    """Check that a hub answers, and learn which one."""
    return {"pong": True, "hub": caller.hub.program.name, "time": iso(time.time())}


@project_methods.method("whoami", access="project", idempotent=True, audited=False, immediate=True)
async def project_whoami(caller: Caller) -> dict[str, Any]:
    """The calling project."""
    return {"project_id": caller.id, "title": caller.hub.projects.get(caller.id).title}


@project_methods.method(access="project", audited=False)
async def list_collaborators(caller: Caller) -> list[dict[str, Any]]:
    """The accounts that may use the calling project."""
    return caller.hub.projects.collaborators(caller.id)


@runner_methods.method(access="runner")
async def register(caller: Caller, version: str) -> dict[str, Any]:
    """A runner has started or reconnected. Returns the projects that should run there, and those of them that need a
    new key: their key was made by a runner that this one has replaced, or a former member may have copied it."""
    await _seen(caller, version=version)
    mine = caller.hub.state.projects_on(caller.id)
    wanted = [p for p, project in mine.items() if project.desired == "running"]
    return {"projects": wanted, "need_keys": caller.hub.projects.keys.missing(caller.id)}


@runner_methods.method(access="runner", audited=False)
async def heartbeat(caller: Caller, running: list[str]) -> dict[str, Any]:
    """A runner is alive. Returns which of its projects need a new key if they run."""
    await _seen(caller, running=running[:10_000])
    return {"need_keys": caller.hub.projects.keys.missing(caller.id)}


@runner_methods.method(access="assigned_runner")
async def project_credentials(caller: Caller, project_id: str, public_key: str) -> dict[str, Any]:
    """The JWT for a project's agent and the key that its runner has just made. The previous key is no longer
    accepted."""
    return await _credentials(caller, project_id, public_key, caller.hub.projects.keys.use)


@runner_methods.method(access="assigned_runner")
async def next_project_credentials(caller: Caller, project_id: str, public_key: str) -> dict[str, Any]:
    """The same for a running agent: the previous key is accepted until :func:`project_uses_next_key`."""
    return await _credentials(caller, project_id, public_key, caller.hub.projects.keys.use_as_well)


@runner_methods.method(access="assigned_runner")
async def project_uses_next_key(caller: Caller, project_id: str, public_key: str) -> dict[str, Any]:
    """The agent was given its new key. Once it has connected with it, the old key is no longer accepted."""
    await caller.hub.projects.keys.use_alone(project_id, public_key)
    return {}


@runner_methods.method(access="assigned_runner", audited=False)
async def is_let_in(caller: Caller, project_id: str, public_key: str) -> bool:
    """Whether an agent with this key may connect."""
    rights = caller.hub.state.rights(Holder("project", project_id), public_key)
    return rights is not None and rights.public_key == public_key


@runner_methods.method(access="assigned_runner", audited=False)
async def project_state(
    caller: Caller, project_id: str, state: ProjectState, detail: str | None = None
) -> dict[str, Any]:
    """Report the state of a project."""
    await caller.hub.projects.report(project_id, state, detail or "")
    return {}


@runner_methods.method(access="runner", audited=False)
async def my_part_of_move(caller: Caller, project_id: str, move_id: str) -> str:
    """What the calling runner may do for this move now: give the files (``source``), take them (``target``), or put
    them in their place (``settle``)."""
    await caller.hub.projects.find(project_id)
    return await caller.hub.projects.moves.part_of(project_id, move_id, caller.id)


@runner_methods.method(access="runner", audited=False)
async def left_of_moves(caller: Caller, project_id: str) -> str | None:
    """What the calling runner has of a project that is to be removed: the whole ``copy`` of a project that was moved
    away, or the ``part`` of one that did not move here after all."""
    await caller.hub.projects.find(project_id)
    return await caller.hub.projects.moves.left_with(project_id, caller.id)


async def _credentials(
    caller: Caller, project_id: str, public_key: str, store: Callable[[str, str], Awaitable[None]]
) -> dict[str, Any]:
    caller.hub.projects.get(project_id)
    if not nkey.is_public_key(public_key, "user"):
        raise RpcError("invalid_params", "public_key is not a public user nkey")
    await store(project_id, public_key)
    return {"jwt": caller.hub.tokens.project_jwt(project_id, public_key, int(time.time()))}


async def _seen(caller: Caller, **fields: Any) -> None:
    """Record that a runner was seen. Fields that it does not report stay as they are."""

    def note(known: Runner | None) -> Runner:
        return replace(known or Runner(version="", last_seen=0), last_seen=time.time(), **fields)

    await caller.hub.state.change_runner(caller.id, note)
