"""``natskit account``: the people of the platform."""

from __future__ import annotations

import sys
from typing import Any

import click

from natskit.cli.platform import call_hub, json_option, show_json, show_table

password_option = click.option(
    "--password-stdin",
    is_flag=True,
    help="Read the password from standard input, not to have it in the shell's history.",
)


@click.group()
def account() -> None:
    """The people of the platform: add, list, disable, remove, their passwords and their sessions."""


@account.command()
@click.argument("email")
@password_option
@json_option
@click.pass_obj
def add(directory: str, email: str, password_stdin: bool, as_json: bool) -> None:
    """Add an account; without a password, a one-time password is made up and shown once.

    \b
    Examples:
      natskit account add ada@example.org
      pass show ada | natskit account add ada@example.org --password-stdin
    """
    made = call_hub(directory, "account_add", email=email, password=_read_password(password_stdin))
    _show(made, f"Added {made['email']} ({made['account_id']}).", as_json)


@account.command("list")
@json_option
@click.pass_obj
def list_accounts(directory: str, as_json: bool) -> None:
    """List the accounts.

    \b
    Example:
      natskit account list --json | jq -r '.[] | select(.disabled) | .email'
    """
    accounts = call_hub(directory, "account_list")
    if as_json:
        show_json(accounts)
        return
    rows = [
        [
            a["email"],
            a["account_id"],
            _state(a),
            str(a["projects"]),
            str(a["sessions"]),
            a["made_by"],
            a["created_at"][:10],
        ]
        for a in accounts
    ]
    columns = ["e-mail", "account", "state", "projects", "sessions", "made by", "since"]
    show_table(columns, rows, "No accounts yet. Add one: natskit account add ada@example.org")


@account.command()
@click.argument("email")
@click.option("--enable", is_flag=True, help="Let the account in again.")
@json_option
@click.pass_obj
def disable(directory: str, email: str, enable: bool, as_json: bool) -> None:
    """Keep an account out: its sessions end and its connections are cut at once.

    \b
    Examples:
      natskit account disable ada@example.org
      natskit account disable ada@example.org --enable
    """
    changed = call_hub(directory, "account_disable", email=email, disabled=not enable)
    _show(changed, f"{email} is {'enabled' if enable else 'disabled'}.", as_json)


@account.command("set-password")
@click.argument("email")
@password_option
@json_option
@click.pass_obj
def set_password(directory: str, email: str, password_stdin: bool, as_json: bool) -> None:
    """Set a password and end all sessions of the account; without one, a one-time password is made up.

    \b
    Examples:
      natskit account set-password ada@example.org
      pass show ada | natskit account set-password ada@example.org --password-stdin
    """
    changed = call_hub(directory, "account_set_password", email=email, password=_read_password(password_stdin))
    _show(changed, f"{email} has a new password.", as_json)


@account.command()
@click.argument("email")
@json_option
@click.pass_obj
def sessions(directory: str, email: str, as_json: bool) -> None:
    """List where an account is signed in.

    \b
    Example:
      natskit account sessions ada@example.org
    """
    found = call_hub(directory, "account_sessions", email=email)
    if as_json:
        show_json(found)
        return
    rows = [
        [s["device"], s["address"], *(_minute(s[key]) for key in ("created_at", "last_seen", "expires_at"))]
        for s in found
    ]
    show_table(["device", "address", "since", "last seen", "until (UTC)"], rows, f"{email} is not signed in.")


@account.command("sign-out")
@click.argument("email")
@json_option
@click.pass_obj
def sign_out(directory: str, email: str, as_json: bool) -> None:
    """End all sessions of an account; its connections are cut at once. It may sign in again.

    \b
    Example:
      natskit account sign-out ada@example.org
    """
    changed = call_hub(directory, "account_sign_out", email=email)
    _show(changed, f"{email} is signed out everywhere.", as_json)


@account.command()
@click.argument("email")
@click.option("--give-projects-to", "heir", metavar="EMAIL", help="The account that owns its projects from now on.")
@click.option("--delete-projects", is_flag=True, help="Delete its projects, with their files, for everybody.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def remove(directory: str, email: str, heir: str | None, delete_projects: bool, yes: bool, as_json: bool) -> None:
    """Remove an account: its sessions end, projects of others are without it, its e-mail is free again.

    Refused while it owns projects, unless you say what becomes of them. When it was interrupted, do it again.

    \b
    Examples:
      natskit account remove ada@example.org --give-projects-to bob@example.org
      natskit account remove ada@example.org --delete-projects --yes
    """
    if heir is not None and delete_projects:
        raise click.UsageError("--give-projects-to and --delete-projects exclude each other")
    if not yes:
        click.confirm(
            f"Remove the account {email}{' and its projects' if delete_projects else ''}?", abort=True, err=True
        )
    gone = call_hub(
        directory,
        "account_remove",
        wait=100,
        email=email,
        give_projects_to=heir,
        delete_projects=delete_projects,
    )
    fate = f"deleted {len(gone['projects'])} projects" if heir is None else f"{heir} owns {len(gone['projects'])} more"
    _show(gone, f"Removed {email}" + (f"; {fate}." if gone["projects"] else "."), as_json)


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _read_password(from_stdin: bool) -> str | None:
    if not from_stdin:
        return None
    password = sys.stdin.readline().rstrip("\n")
    if not password:
        raise click.UsageError("--password-stdin: standard input is empty; pipe the password into this command")
    return password


def _show(answer: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        show_json(answer)
        return
    click.echo(sentence)
    if password := answer.get("password"):
        click.echo(f"One-time password, shown only now: {password}")


def _state(row: dict[str, Any]) -> str:
    if row["disabled"]:
        return "disabled"
    return "one-time password" if row["must_change_password"] else "active"
