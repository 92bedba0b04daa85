"""``hub.admin``: the methods for the control machine. Only the user ``admin`` of PLATFORM may publish there."""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import Field

from natskit.hub.caller import Caller
from natskit.hub.state.records import Backup
from natskit.hub.state.view import BACKUP
from natskit.hub.timestamp import iso
from natskit.rpc import Methods, RpcError

ALL = 1_000_000
Offset = Annotated[int, Field(ge=0)]
Limit = Annotated[int, Field(ge=1)]
"""Offset and length of a part of a list: long lists do not fit into one answer."""

admin_methods: Methods[Caller] = Methods()


@admin_methods.method(access="admin")
async def account_add(caller: Caller, email: str, password: str | None = None) -> dict[str, Any]:
    """Create an account. Without a password, the answer has a one-time password."""
    return await caller.hub.accounts.add(email, password)


@admin_methods.method(access="admin", audited=False)
async def account_list(caller: Caller, offset: Offset = 0, limit: Limit = ALL) -> list[dict[str, Any]]:
    """All accounts, or a part of them, sorted by e-mail."""
    state = caller.hub.state
    accounts = sorted(state.all_accounts(), key=lambda item: item[1].email)[offset : offset + limit]
    return [
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
        for account_id, account in accounts
    ]


@admin_methods.method(access="admin")
async def account_disable(caller: Caller, email: str, disabled: bool = True) -> dict[str, Any]:
    """Disable an account (its sessions and connections end), or enable it again."""
    return await caller.hub.accounts.disable(email, disabled)


@admin_methods.method(access="admin")
async def account_set_password(caller: Caller, email: str, password: str | None = None) -> dict[str, Any]:
    """Set a password, or generate a one-time password. All sessions of the account end. Refused for an account that was
    made by a backend or an OpenID provider: a password would be a second way in."""
    account_id, account = await caller.hub.accounts.by_email(email)
    if account.made_by:
        raise RpcError(
            "invalid_state",
            f"{account.email} signs in by {account.made_by} and has no password here: change it there; to end its "
            "sessions: natskit account sign-out; to keep it out: natskit account disable",
        )
    made_up = await caller.hub.accounts.set_password(account_id, password)
    return {"account_id": account_id, "email": account.email} | ({"password": made_up} if made_up else {})


@admin_methods.method(access="admin", audited=False)
async def account_sessions(caller: Caller, email: str) -> list[dict[str, Any]]:
    """The sessions of an account."""
    return caller.hub.sessions.describe((await caller.hub.accounts.by_email(email))[0], None)


@admin_methods.method(access="admin")
async def account_sign_out(caller: Caller, email: str) -> dict[str, Any]:
    """End all sessions of an account."""
    account_id, account = await caller.hub.accounts.by_email(email)
    await caller.hub.accounts.sign_out(account_id)
    return {"account_id": account_id, "email": account.email}


@admin_methods.method(access="admin")
async def account_remove(
    caller: Caller, email: str, give_projects_to: str | None = None, delete_projects: bool = False
) -> dict[str, Any]:
    """Remove an account. Refused while it owns projects, unless they are given to another account, or deleted."""
    return await caller.hub.accounts.remove(email, give_projects_to, delete_projects)


@admin_methods.method(access="admin", audited=False)
async def project_list(
    caller: Caller, email: str | None = None, offset: Offset = 0, limit: Limit = ALL
) -> list[dict[str, Any]]:
    """All projects, or those an account may use, oldest first; or a part of them."""
    projects = caller.hub.projects
    if email is not None:
        return projects.list((await caller.hub.accounts.by_email(email))[0], offset, limit)
    entries = caller.hub.state.all_projects()[offset : offset + limit]
    return [projects.describe(project_id) for project_id, _ in entries]


@admin_methods.method(access="admin")
async def project_create(caller: Caller, email: str, title: str) -> dict[str, Any]:
    """Create a project for an account."""
    return await caller.hub.projects.create((await caller.hub.accounts.by_email(email))[0], title)


@admin_methods.method(access="admin")
async def project_share(caller: Caller, project_id: str, email: str) -> dict[str, Any]:
    """Let an account use a project."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.share(project_id, (await caller.hub.accounts.by_email(email))[0])
    return caller.hub.projects.describe(project_id)


@admin_methods.method(access="admin")
async def project_unshare(caller: Caller, project_id: str, email: str) -> dict[str, Any]:
    """Remove a collaborator from a project."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.unshare(project_id, (await caller.hub.accounts.by_email(email))[0])
    return caller.hub.projects.describe(project_id)


@admin_methods.method(access="admin")
async def project_delete(caller: Caller, project_id: str) -> dict[str, Any]:
    """Delete a project and its files."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.delete(project_id)
    return {"project_id": project_id}


@admin_methods.method(access="admin", idempotent=True)
async def start_project(caller: Caller, project_id: str) -> dict[str, Any]:
    """Start a project and wait until it runs."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.start(project_id)
    return caller.hub.projects.describe(project_id)


@admin_methods.method(access="admin", idempotent=True)
async def stop_project(caller: Caller, project_id: str) -> dict[str, Any]:
    """Stop a project and wait until it has stopped."""
    await caller.hub.projects.find(project_id)
    await caller.hub.projects.stop(project_id)
    return caller.hub.projects.describe(project_id)


@admin_methods.method(access="admin")
async def rotate_project_keys(caller: Caller, project_id: str) -> dict[str, Any]:
    """Give a running project a new key without stopping it. ``rotated`` is false if it does not run."""
    await caller.hub.projects.find(project_id)
    return {"project_id": project_id, "rotated": await caller.hub.projects.keys.rotate(project_id)}


@admin_methods.method(access="admin")
async def project_move_begin(caller: Caller, project_id: str, runner: str) -> dict[str, Any]:
    """Begin to move a stopped project with its files, or continue. The project cannot start until the move ends.

    The answer says what is to do next. The caller copies the files (``natskit/cli/move.py``).
    """
    await caller.hub.projects.find(project_id)
    return await caller.hub.projects.moves.begin(project_id, caller.hub.runners.find(runner))


@admin_methods.method(access="admin")
async def project_move_switch(caller: Caller, project_id: str, move_id: str) -> dict[str, Any]:
    """From now on the copy on the new runner is the project, and the old one is to be removed."""
    await caller.hub.projects.find(project_id)
    return await caller.hub.projects.moves.switch(project_id, move_id)


@admin_methods.method(access="admin")
async def project_move_end(caller: Caller, project_id: str, move_id: str) -> dict[str, Any]:
    """The files are in place on the new runner: the project may start."""
    await caller.hub.projects.find(project_id)
    return await caller.hub.projects.moves.end(project_id, move_id)


@admin_methods.method(access="admin")
async def project_move_cancel(caller: Caller, project_id: str) -> dict[str, Any]:
    """Give up a move that has not switched yet. The project stays with the runner that has it."""
    await caller.hub.projects.find(project_id)
    return await caller.hub.projects.moves.cancel(project_id)


@admin_methods.method(access="admin")
async def project_remove_old_copies(caller: Caller, project_id: str) -> dict[str, Any]:
    """Remove what moves have left on other runners. The answer names the runners on which something is left."""
    await caller.hub.projects.find(project_id)
    return await caller.hub.projects.moves.remove_old_copies(project_id)


@admin_methods.method(access="admin")
async def project_assign(caller: Caller, project_id: str, runner: str) -> dict[str, Any]:
    """Assign a stopped project to another runner without its files. They stay where they are, and so do old copies."""
    await caller.hub.projects.find(project_id)
    return await caller.hub.projects.moves.assign(project_id, caller.hub.runners.find(runner))


@admin_methods.method(access="admin", audited=False)
async def runner_list(caller: Caller) -> list[dict[str, Any]]:
    """All runners of the deploy."""
    return caller.hub.runners.list()


@admin_methods.method(access="admin")
async def runner_revoke(caller: Caller, name: str) -> dict[str, Any]:
    """Refuse a runner and its projects' agents, and end their connections."""
    runner_id = caller.hub.runners.find(name)
    await caller.hub.runners.revoke(runner_id)
    return {"runner_id": runner_id}


@admin_methods.method(access="admin")
async def runner_allow(caller: Caller, name: str) -> dict[str, Any]:
    """Accept a revoked runner again."""
    runner_id = caller.hub.runners.find(name)
    await caller.hub.runners.allow(runner_id)
    return {"runner_id": runner_id}


@admin_methods.method(access="admin")
async def runner_try(caller: Caller, runner: str) -> dict[str, Any]:
    """Create a trial project for this runner, which has no owner and is in no list. The caller starts it, runs a
    command in it and deletes it, with the methods for any project."""
    runner_id = caller.hub.runners.find(runner)
    return {"project_id": await caller.hub.projects.create_trial(runner_id), "runner_id": runner_id}


@admin_methods.method(access="admin")
async def note(caller: Caller, what: Annotated[str, Field(max_length=200)]) -> dict[str, Any]:
    """Record in the audit something that was done without a hub: each call of an admin method is an audit event."""
    return {"noted": what, "hub": caller.hub.program.name}


@admin_methods.method(access="admin", audited=False)
async def note_backup(
    caller: Caller, begun: Annotated[float, Field(gt=0)], verified: Annotated[float, Field(gt=0)] | None = None
) -> dict[str, Any]:
    """Tell the hubs when the newest good backup was begun, and when one was last verified, in Unix seconds."""
    record = Backup(begun=begun, verified=verified)
    await caller.hub.state.runners.change(BACKUP, lambda _: record)
    return {"noted": True, "hub": caller.hub.program.name}


@admin_methods.method(access="admin", audited=False)
async def status(caller: Caller) -> dict[str, Any]:
    """The platform as this hub sees it."""
    hub, state, now = caller.hub, caller.hub.state, time.time()
    return {
        "hub": hub.program.name,
        "version": hub.program.version,
        "accounts": len(state.all_accounts()),
        "projects": len(state.all_projects()),
        "sessions": sum(1 for e in state.sessions.entries.values() if e.value.expires_at > now),
        "runners": hub.runners.list(),
    }
