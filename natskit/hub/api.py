"""``hub.api.{account_id}``: what a signed-in person may ask the hub. Also over HTTP, as ``POST /api/rpc``.

A platform adds its own methods in the same way: a module with a ``natskit_hub = Methods()``, named in the setting
``hub_api_packages`` (README, "Your own API").
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import Field

from natskit.hub.caller import Caller
from natskit.hub.projects import iso
from natskit.rpc import Methods, RpcError

natskit_hub: Methods[Caller] = Methods()


@natskit_hub.method()
async def ping(caller: Caller) -> dict[str, Any]:
    """Whether the hub answers, and which one."""
    return {"pong": True, "hub": caller.hub.program.name, "time": iso(time.time())}


@natskit_hub.method()
async def whoami(caller: Caller) -> dict[str, Any]:
    """The calling account."""
    account = caller.account
    return {"account_id": caller.id, "email": account.email, "must_change_password": account.one_time}


@natskit_hub.method()
async def list_projects(
    caller: Caller, offset: Annotated[int, Field(ge=0)] = 0, limit: Annotated[int, Field(ge=1)] = 4000
) -> list[dict[str, Any]]:
    """The projects the caller may use, oldest first. Some 3,000 fit into one answer; beyond that, ask for parts."""
    return caller.hub.projects.list(caller.id, offset, limit)


@natskit_hub.method()
async def create_project(
    caller: Caller, title: str, key: Annotated[str, Field(min_length=1, max_length=64)] | None = None
) -> dict[str, Any]:
    """A new project, owned by the caller. Who did not hear the answer asks again with the same ``key``."""
    _ = caller.account
    return await caller.hub.projects.create(caller.id, title, key)


@natskit_hub.method()
async def rename_project(caller: Caller, project_id: str, title: str) -> dict[str, Any]:
    """Change a project's title."""
    await caller.hub.projects.require(caller.id, project_id)
    caller.hub.projects.check_pace_of_renaming(project_id)
    await caller.hub.projects.rename(project_id, title)
    return caller.hub.projects.describe(project_id, caller.id)


@natskit_hub.method()
async def delete_project(caller: Caller, project_id: str) -> dict[str, Any]:
    """Delete a project with its files. Only its owner may."""
    await caller.hub.projects.require(caller.id, project_id, owner=True)
    caller.hub.projects.check_pace_of_deleting(caller.id)
    await caller.hub.projects.delete(project_id)
    return {"project_id": project_id}


@natskit_hub.method()
async def share_project(caller: Caller, project_id: str, email: str) -> dict[str, Any]:
    """Let another account use a project. Only its owner may."""
    await caller.hub.projects.require(caller.id, project_id, owner=True)
    account_id, _ = await caller.hub.accounts.by_email(email)
    caller.hub.projects.check_pace_of_sharing(caller.id, project_id, account_id)
    await caller.hub.projects.share(project_id, account_id)
    return caller.hub.projects.describe(project_id, caller.id)


@natskit_hub.method()
async def unshare_project(
    caller: Caller, project_id: str, account_id: str | None = None, email: str | None = None
) -> dict[str, Any]:
    """Take a project from a collaborator (its owner may), or leave it oneself."""
    if (account_id is None) == (email is None):
        raise RpcError("invalid_params", "unshare_project needs either account_id or email")
    await caller.hub.projects.require(caller.id, project_id)
    leaver = account_id or (await caller.hub.accounts.by_email(email or ""))[0]
    if leaver != caller.id:
        await caller.hub.projects.require(caller.id, project_id, owner=True)
        caller.hub.projects.check_pace_of_unsharing(caller.id, leaver)
    await caller.hub.projects.unshare(project_id, leaver)
    return {"project_id": project_id}


@natskit_hub.method()
async def start_project(caller: Caller, project_id: str) -> dict[str, Any]:
    """Start a project and wait until it runs."""
    await caller.hub.projects.require(caller.id, project_id)
    await caller.hub.projects.start(project_id)
    return caller.hub.projects.describe(project_id, caller.id)


@natskit_hub.method()
async def stop_project(caller: Caller, project_id: str) -> dict[str, Any]:
    """Stop a project and wait until it has stopped."""
    await caller.hub.projects.require(caller.id, project_id)
    await caller.hub.projects.stop(project_id)
    return caller.hub.projects.describe(project_id, caller.id)


@natskit_hub.method()
async def write_text_file_to_project(
    caller: Caller, project_id: str, path: str, text: str, expected_version: str | None = None
) -> Any:
    """Write a file in a running project; with ``expected_version`` only if nobody else changed it meanwhile."""
    await caller.hub.projects.require(caller.id, project_id)
    params = {"path": path, "text": text} | ({"expected_version": expected_version} if expected_version else {})
    return await caller.hub.projects.call(project_id, "write_text_file", params)


@natskit_hub.method()
async def read_text_file_from_project(caller: Caller, project_id: str, path: str) -> Any:
    """Read a file of a running project."""
    await caller.hub.projects.require(caller.id, project_id)
    return await caller.hub.projects.call(project_id, "read_text_file", {"path": path})


@natskit_hub.method()
async def list_sessions(caller: Caller) -> list[dict[str, Any]]:
    """Where the caller is signed in, the session seen last first. ``mine`` says which one asks; over NATS, where the
    hub knows the account but not the session, it is null: ask over HTTP, as natskit's clients do."""
    return caller.hub.sessions.describe(caller.id, caller.session_id)


@natskit_hub.method()
async def end_session(caller: Caller, session_id: str) -> dict[str, Any]:
    """Sign out one of the caller's sessions; its connections are cut, and its cookie is good for nothing."""
    sessions = caller.hub.sessions
    await sessions.own(caller.id, session_id)
    await (sessions.end(session_id) if caller.session_id is None else sessions.end_now(session_id))
    return {"session_id": session_id}


@natskit_hub.method()
async def end_all_sessions(caller: Caller, keep_this: bool = False) -> dict[str, Any]:
    """Sign out everywhere; with ``keep_this`` everywhere else, for which the hub has to know the session (HTTP)."""
    if caller.session_id is not None:
        await caller.hub.accounts.sign_out(caller.id, caller.session_id if keep_this else None)
    elif keep_this:
        raise RpcError("invalid_params", "over NATS the hub does not know which session is yours: use POST /api/rpc")
    else:
        await caller.hub.accounts.end_sessions(caller.id)
    return {"account_id": caller.id}


@natskit_hub.method()
async def change_password(caller: Caller, current_password: str, new_password: str) -> dict[str, Any]:
    """Set a new password. Every other session ends; over NATS, where the hub does not know the session, every one."""
    await caller.hub.accounts.change_password(
        caller.id, caller.account, current_password, new_password, keep=caller.session_id
    )
    return {"account_id": caller.id}
