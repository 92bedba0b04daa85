"""``hub.api.{account_id}``: the methods for signed-in accounts. Over HTTP: ``POST /api/rpc``.

A platform adds its own methods in the same way: a module with a ``natskit_hub = Methods()``, named in the setting
``hub_api_packages`` (docs/how-to/add-your-own-api.md).
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import Field

from natskit.hub.api.access import is_administrator
from natskit.hub.caller import Caller
from natskit.hub.timestamp import iso
from natskit.rpc import Methods, RpcError

natskit_hub: Methods[Caller] = Methods()


@natskit_hub.method(access="connected", idempotent=True, audited=False, immediate=True)
async def ping(caller: Caller) -> dict[str, Any]:
    """Check that a hub answers, and learn which one."""
    return {"pong": True, "hub": caller.hub.program.name, "time": iso(time.time())}


@natskit_hub.method(access="account", idempotent=True, audited=False, one_time_password=True, immediate=True)
async def whoami(caller: Caller) -> dict[str, Any]:
    """The calling account."""
    account = caller.account
    return {
        "account_id": caller.id,
        "email": account.email,
        "must_change_password": account.one_time,
        "administrator": is_administrator(caller),
    }


@natskit_hub.method(access="account", idempotent=True, audited=False, immediate=True)
async def list_projects(
    caller: Caller, offset: Annotated[int, Field(ge=0)] = 0, limit: Annotated[int, Field(ge=1)] = 4000
) -> list[dict[str, Any]]:
    """The projects the caller may use, oldest first. One answer holds some 3,000; ask for more in parts."""
    return caller.hub.projects.list(caller.id, offset, limit)


@natskit_hub.method(access="account", idempotent=True, changes_rights=True)
async def create_project(
    caller: Caller, title: str, key: Annotated[str, Field(min_length=1, max_length=64)] | None = None
) -> dict[str, Any]:
    """Create a project owned by the caller. If the answer is lost, ask again with the same ``key``."""
    return await caller.hub.projects.create(caller.id, title, key)


@natskit_hub.method(access="member", idempotent=True)
async def rename_project(caller: Caller, project_id: str, title: str) -> dict[str, Any]:
    """Change a project's title."""
    caller.hub.projects.check_renaming_rate(project_id)
    await caller.hub.projects.rename(project_id, title)
    return caller.hub.projects.describe(project_id, caller.id)


@natskit_hub.method(access="owner", idempotent=True, changes_rights=True)
async def delete_project(caller: Caller, project_id: str) -> dict[str, Any]:
    """Delete a project and its files."""
    caller.hub.projects.check_deleting_rate(caller.id)
    await caller.hub.projects.delete(project_id)
    return {"project_id": project_id}


@natskit_hub.method(access="owner", idempotent=True)
async def share_project(caller: Caller, project_id: str, email: str) -> dict[str, Any]:
    """Let another account use a project."""
    account_id, _ = await caller.hub.accounts.by_email(email)
    caller.hub.projects.check_sharing_rate(caller.id, project_id, account_id)
    await caller.hub.projects.share(project_id, account_id)
    return caller.hub.projects.describe(project_id, caller.id)


@natskit_hub.method(access="member", idempotent=True)
async def unshare_project(
    caller: Caller, project_id: str, account_id: str | None = None, email: str | None = None
) -> dict[str, Any]:
    """Remove a collaborator from a project, which only its owner may do, or leave a project."""
    if (account_id is None) == (email is None):
        raise RpcError("invalid_params", "unshare_project needs either account_id or email")
    leaver = account_id or (await caller.hub.accounts.by_email(email or ""))[0]
    if leaver != caller.id:
        await caller.hub.projects.require(caller.id, project_id, owner=True)
        caller.hub.projects.check_unsharing_rate(caller.id, leaver)
    await caller.hub.projects.unshare(project_id, leaver)
    return {"project_id": project_id}


@natskit_hub.method(access="member", idempotent=True)
async def start_project(caller: Caller, project_id: str) -> dict[str, Any]:
    """Start a project and wait until it runs."""
    await caller.hub.projects.start(project_id)
    return caller.hub.projects.describe(project_id, caller.id)


@natskit_hub.method(access="member", idempotent=True)
async def stop_project(caller: Caller, project_id: str) -> dict[str, Any]:
    """Stop a project and wait until it has stopped."""
    await caller.hub.projects.stop(project_id)
    return caller.hub.projects.describe(project_id, caller.id)


@natskit_hub.method(access="member", idempotent=True, audited=False)
async def write_text_file_to_project(
    caller: Caller, project_id: str, path: str, text: str, expected_version: str | None = None
) -> Any:
    """Write a file in a running project. With ``expected_version``, only if nobody has changed it since."""
    params = {"path": path, "text": text} | ({"expected_version": expected_version} if expected_version else {})
    return await caller.hub.projects.call(project_id, "write_text_file", params)


@natskit_hub.method(access="member", idempotent=True, audited=False)
async def read_text_file_from_project(caller: Caller, project_id: str, path: str) -> Any:
    """Read a file of a running project."""
    return await caller.hub.projects.call(project_id, "read_text_file", {"path": path})


@natskit_hub.method(access="administrator", idempotent=True, audited=False, transport="http")
async def describe_platform(caller: Caller) -> dict[str, Any]:
    """The platform as the answering hub sees it: its programs, the use of projects, alerts and the last backup. Each
    hub counts for itself, and the proxy lets them answer in turn."""
    return await caller.hub.overview.describe()


@natskit_hub.method(access="account", audited=False, transport="http", one_time_password=True)
async def list_sessions(caller: Caller) -> list[dict[str, Any]]:
    """The caller's sessions, the last seen first. ``mine`` marks the session that asks. Over NATS the hub knows the
    account but not the session, and ``mine`` is null: natskit's clients ask over HTTP."""
    return caller.hub.sessions.describe(caller.id, caller.session_id)


@natskit_hub.method(access="account", transport="http", one_time_password=True)
async def end_session(caller: Caller, session_id: str) -> dict[str, Any]:
    """End one of the caller's sessions. The hub ends its connections, and its cookie is no longer valid."""
    sessions = caller.hub.sessions
    await sessions.own(caller.id, session_id)
    await (sessions.end(session_id) if caller.session_id is None else sessions.end_now(session_id))
    return {"session_id": session_id}


@natskit_hub.method(access="account", transport="http", one_time_password=True)
async def end_all_sessions(caller: Caller, keep_this: bool = False) -> dict[str, Any]:
    """End all of the caller's sessions. ``keep_this`` keeps the session that asks, which the hub knows over HTTP
    alone."""
    if caller.session_id is not None:
        await caller.hub.accounts.sign_out(caller.id, caller.session_id if keep_this else None)
    elif keep_this:
        raise RpcError("invalid_params", "over NATS the hub does not know which session is yours: use POST /api/rpc")
    else:
        await caller.hub.accounts.end_sessions(caller.id)
    return {"account_id": caller.id}


@natskit_hub.method(access="account", transport="http", one_time_password=True)
async def change_password(caller: Caller, current_password: str, new_password: str) -> dict[str, Any]:
    """Set a new password and end all other sessions. Over NATS, where the hub does not know the session, end all."""
    await caller.hub.accounts.change_password(
        caller.id, caller.account, current_password, new_password, keep=caller.session_id
    )
    return {"account_id": caller.id}
