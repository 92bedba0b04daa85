"""``hub.project.{project_id}`` and ``hub.runner.{runner_id}``: what project agents and runners ask the hub."""

from __future__ import annotations

import time
from typing import Any

from natskit.hub.caller import Caller
from natskit.hub.projects import iso
from natskit.hub.records import Project, ProjectState, Runner
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
    """A runner has started: which projects should run there."""
    await _seen(caller, version=version, running=[])
    entries = caller.hub.state.projects.entries.items()
    return {
        "projects": [p for p, e in entries if e.value.runner_id == caller.id and e.value.desired == "running"],
    }


@runner_methods.method()
async def heartbeat(caller: Caller, running: list[str]) -> dict[str, Any]:
    """A runner is alive."""
    await _seen(caller, version=None, running=running[:10_000])
    return {}


@runner_methods.method()
async def project_credentials(caller: Caller, project_id: str, public_key: str) -> dict[str, Any]:
    """The JWT of a project's agent, whose key the runner has just made."""
    project = await _own_project(caller, project_id)
    if project.desired != "running":
        raise RpcError("invalid_state", "the project should not run")
    if not nkey.is_public_key(public_key, "user"):
        raise RpcError("invalid_params", "public_key is no public user nkey")
    await caller.hub.projects.set_public_key(project_id, public_key)
    return {"jwt": caller.hub.tokens.project_jwt(project_id, public_key, int(time.time()))}


@runner_methods.method()
async def project_state(
    caller: Caller, project_id: str, state: ProjectState, detail: str | None = None
) -> dict[str, Any]:
    """What has become of a project."""
    await _own_project(caller, project_id)
    await caller.hub.projects.report(project_id, state, detail or "")
    return {}


async def _own_project(caller: Caller, project_id: str) -> Project:
    project = await caller.hub.projects.find(project_id)
    if project.runner_id != caller.id:
        raise RpcError("forbidden", "the project belongs to another runner")
    return project


async def _seen(caller: Caller, version: str | None, running: list[str]) -> None:
    """Note that a runner is there. A heartbeat keeps the version, which another hub may just have been told."""
    if caller.id not in caller.hub.state.known_runners:
        raise RpcError("forbidden", "the runner is not known to this platform")

    def note(known: Runner | None) -> Runner:
        kept = known.version if known is not None else ""
        return Runner(version=kept if version is None else version, last_seen=time.time(), running=running)

    await caller.hub.state.runners.change(caller.id, note)
