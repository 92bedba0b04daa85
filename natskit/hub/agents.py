"""``hub.project.{project_id}`` and ``hub.runner.{runner_id}``: what project agents and runners ask the hub."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from natskit.hub.caller import Caller
from natskit.hub.projects import iso
from natskit.hub.records import Project, ProjectState, Runner
from natskit.hub.state import Holder
from natskit.identity import nkey
from natskit.rpc import Methods, RpcError

project_methods: Methods[Caller] = Methods()
runner_methods: Methods[Caller] = Methods()


@project_methods.method("ping")
async def project_ping(caller: Caller) -> dict[str, Any]:
    """Whether the hub answers, and which one."""
    return {"pong": True, "hub": caller.hub.program.name, "time": iso(time.time())}


@project_methods.method("whoami")
async def project_whoami(caller: Caller) -> dict[str, Any]:
    """The calling project."""
    return {"project_id": caller.id, "title": caller.hub.projects.get(caller.id).title}


@project_methods.method()
async def list_collaborators(caller: Caller) -> list[dict[str, Any]]:
    """Who may use the calling project."""
    caller.hub.projects.get(caller.id)
    return caller.hub.projects.collaborators(caller.id)


@runner_methods.method()
async def register(caller: Caller, version: str) -> dict[str, Any]:
    """A runner has started, or is back: which projects should run there, and which of those need a new key if they do:
    theirs is that of another runner, which this one has replaced, or somebody has left who may have copied it."""
    await _seen(caller, version=version)
    mine = caller.hub.state.projects_on(caller.id)
    wanted = [p for p, project in mine.items() if project.desired == "running"]
    return {"projects": wanted, "need_keys": caller.hub.projects.keys.missing(caller.id)}


@runner_methods.method()
async def heartbeat(caller: Caller, running: list[str]) -> dict[str, Any]:
    """A runner is alive. Which of its projects need a new key, if they run."""
    await _seen(caller, running=running[:10_000])
    return {"need_keys": caller.hub.projects.keys.missing(caller.id)}


@runner_methods.method()
async def project_credentials(caller: Caller, project_id: str, public_key: str) -> dict[str, Any]:
    """The JWT of a project's agent, whose key the runner has just made; the key before it is dead from now on."""
    return await _credentials(caller, project_id, public_key, caller.hub.projects.keys.use)


@runner_methods.method()
async def next_project_credentials(caller: Caller, project_id: str, public_key: str) -> dict[str, Any]:
    """The same for an agent that runs: the key before it is good until :func:`project_uses_next_key`."""
    return await _credentials(caller, project_id, public_key, caller.hub.projects.keys.use_as_well)


@runner_methods.method()
async def project_uses_next_key(caller: Caller, project_id: str, public_key: str) -> dict[str, Any]:
    """The agent was told of its new key: once it has come with it, the old one is dead."""
    await _own_project(caller, project_id)
    await caller.hub.projects.keys.use_alone(project_id, public_key)
    return {}


@runner_methods.method()
async def is_let_in(caller: Caller, project_id: str, public_key: str) -> bool:
    """Whether an agent with this key may connect."""
    await _own_project(caller, project_id)
    rights = caller.hub.state.rights(Holder("project", project_id), public_key)
    return rights is not None and rights.public_key == public_key


@runner_methods.method()
async def project_state(
    caller: Caller, project_id: str, state: ProjectState, detail: str | None = None
) -> dict[str, Any]:
    """What has become of a project."""
    await _own_project(caller, project_id)
    await caller.hub.projects.report(project_id, state, detail or "")
    return {}


async def _credentials(
    caller: Caller, project_id: str, public_key: str, store: Callable[[str, str], Awaitable[None]]
) -> dict[str, Any]:
    project = await _own_project(caller, project_id)
    if project.desired != "running":
        raise RpcError("invalid_state", "the project should not run")
    if not nkey.is_public_key(public_key, "user"):
        raise RpcError("invalid_params", "public_key is no public user nkey")
    await store(project_id, public_key)
    return {"jwt": caller.hub.tokens.project_jwt(project_id, public_key, int(time.time()))}


async def _own_project(caller: Caller, project_id: str) -> Project:
    _check_let_in(caller)
    project = await caller.hub.projects.find(project_id)
    if project.runner_id != caller.id:
        raise RpcError("forbidden", "the project belongs to another runner")
    return project


async def _seen(caller: Caller, **fields: Any) -> None:
    """Note that a runner is there. What it does not say stays as it was, or as another hub was just told."""
    _check_let_in(caller)

    def note(known: Runner | None) -> Runner:
        return (known or Runner(version="", last_seen=0)).model_copy(update={"last_seen": time.time(), **fields})

    await caller.hub.state.runners.change(caller.id, note)


def _check_let_in(caller: Caller) -> None:
    if caller.hub.state.runner_key(caller.id) is None:
        raise RpcError("forbidden", "the runner is not known to this platform, or was revoked")
