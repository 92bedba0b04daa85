"""``hub.admin``: what the control machine may ask. Only the user ``admin`` of PLATFORM may publish there."""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import Field

from natskit.hub.caller import Caller
from natskit.hub.projects import iso
from natskit.rpc import Methods, RpcError

admin_methods: Methods[Caller] = Methods()


@admin_methods.method()
async def account_add(caller: Caller, email: str, password: str | None = None) -> dict[str, Any]:
    """Make an account; without a password, a one-time password is in the answer."""
    return await caller.hub.accounts.add(email, password)


@admin_methods.method()
async def account_list(caller: Caller) -> list[dict[str, Any]]:
    """Every account."""
    state = caller.hub.state
    rows = [
        {
            "account_id": account_id,
            "email": account.email,
            "disabled": account.disabled,
            "must_change_password": account.one_time,
            "made_by": account.made_by or "administrator",
            "projects": len(state.projects_of(account_id)),
            "sessions": len(state.sessions_of(account_id)),
            "created_at": iso(account.created_at),
        }
        for account_id, account in state.all_accounts()
    ]
    return sorted(rows, key=lambda row: str(row["email"]))


@admin_methods.method()
async def account_disable(caller: Caller, email: str, disabled: bool = True) -> dict[str, Any]:
    """Keep a person out (sessions end, connections are cut), or let them in again."""
    return await caller.hub.accounts.disable(email, disabled)


@admin_methods.method()
async def account_set_password(caller: Caller, email: str, password: str | None = None) -> dict[str, Any]:
    """Set a password, or make up a one-time password; every session of the account ends. Refused for an account that
    was made where its person signs in: with a password here, it would be open to whoever has that as well."""
    account_id, account = await caller.hub.accounts.by_email(email)
    if account.made_by:
        raise RpcError(
            "invalid_state",
            f"{account.email} signs in by {account.made_by} and has no password here: change it there; to end its "
            "sessions: natskit account sign-out; to keep it out: natskit account disable",
        )
    made_up = await caller.hub.accounts.set_password(account_id, password)
    return {"account_id": account_id, "email": account.email} | ({"password": made_up} if made_up else {})


@admin_methods.method()
async def account_sessions(caller: Caller, email: str) -> list[dict[str, Any]]:
    """Where an account is signed in."""
    return caller.hub.sessions.describe((await caller.hub.accounts.by_email(email))[0], None)


@admin_methods.method()
async def account_sign_out(caller: Caller, email: str) -> dict[str, Any]:
    """End every session of an account."""
    account_id, account = await caller.hub.accounts.by_email(email)
    await caller.hub.accounts.sign_out(account_id)
    return {"account_id": account_id, "email": account.email}


@admin_methods.method()
async def account_remove(
    caller: Caller, email: str, give_projects_to: str | None = None, delete_projects: bool = False
) -> dict[str, Any]:
    """Remove an account. Refused while it owns projects, unless they are given to another account, or deleted."""
    return await caller.hub.accounts.remove(email, give_projects_to, delete_projects)


@admin_methods.method()
async def project_list(caller: Caller, email: str | None = None) -> list[dict[str, Any]]:
    """Every project, or those an account may use."""
    projects = caller.hub.projects
    if email is not None:
        return projects.list((await caller.hub.accounts.by_email(email))[0])
    entries = sorted(caller.hub.state.projects.entries.items(), key=lambda item: item[1].value.created_at)
    return [projects.describe(project_id) for project_id, _ in entries]


@admin_methods.method()
async def project_create(caller: Caller, email: str, title: str) -> dict[str, Any]:
    """A new project of an account."""
    return await caller.hub.projects.create((await caller.hub.accounts.by_email(email))[0], title)


@admin_methods.method()
async def project_share(caller: Caller, project_id: str, email: str) -> dict[str, Any]:
    """Let an account use a project."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.share(project_id, (await caller.hub.accounts.by_email(email))[0])
    return caller.hub.projects.describe(project_id)


@admin_methods.method()
async def project_unshare(caller: Caller, project_id: str, email: str) -> dict[str, Any]:
    """Take a project from a collaborator."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.unshare(project_id, (await caller.hub.accounts.by_email(email))[0])
    return caller.hub.projects.describe(project_id)


@admin_methods.method()
async def project_delete(caller: Caller, project_id: str) -> dict[str, Any]:
    """Delete a project with its files."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.delete(project_id)
    return {"project_id": project_id}


@admin_methods.method()
async def start_project(caller: Caller, project_id: str) -> dict[str, Any]:
    """Start a project and wait until it runs."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.start(project_id)
    return caller.hub.projects.describe(project_id)


@admin_methods.method()
async def stop_project(caller: Caller, project_id: str) -> dict[str, Any]:
    """Stop a project and wait until it has stopped."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.stop(project_id)
    return caller.hub.projects.describe(project_id)


@admin_methods.method()
async def rotate_project_keys(caller: Caller, project_id: str) -> dict[str, Any]:
    """Give a project that runs a new key, without stopping it; ``rotated`` is false for one that does not run."""
    await caller.hub.projects.find(project_id)
    return {"project_id": project_id, "rotated": await caller.hub.projects.keys.rotate(project_id)}


@admin_methods.method()
async def project_move(caller: Caller, project_id: str, runner: str) -> dict[str, Any]:
    """Have a stopped project started by another runner from now on; its files stay where they are."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.move(project_id, caller.hub.runners.find(runner))
    return caller.hub.projects.describe(project_id)


@admin_methods.method()
async def runner_list(caller: Caller) -> list[dict[str, Any]]:
    """Every runner of the deploy."""
    return caller.hub.runners.list()


@admin_methods.method()
async def runner_revoke(caller: Caller, name: str) -> dict[str, Any]:
    """Refuse a runner and its projects' agents, and cut their connections."""
    runner_id = caller.hub.runners.find(name)
    await caller.hub.runners.revoke(runner_id)
    return {"runner_id": runner_id}


@admin_methods.method()
async def runner_allow(caller: Caller, name: str) -> dict[str, Any]:
    """Let a revoked runner in again."""
    runner_id = caller.hub.runners.find(name)
    await caller.hub.runners.allow(runner_id)
    return {"runner_id": runner_id}


@admin_methods.method()
async def note(caller: Caller, what: Annotated[str, Field(max_length=200)]) -> dict[str, Any]:
    """Put into the audit what was done without a hub: each call of a method here is an event of it."""
    return {"noted": what, "hub": caller.hub.program.name}


@admin_methods.method()
async def status(caller: Caller) -> dict[str, Any]:
    """The platform as this hub sees it."""
    hub, state, now = caller.hub, caller.hub.state, time.time()
    return {
        "hub": hub.program.name,
        "version": hub.program.version,
        "accounts": len(state.all_accounts()),
        "projects": len(state.projects.entries),
        "sessions": sum(1 for e in state.sessions.entries.values() if e.value.expires_at > now),
        "runners": hub.runners.list(),
    }
