"""``natskit account``: manage accounts."""

from __future__ import annotations

import sys
from typing import Any

import click

from natskit.cli.platform import call_hub, json_option, list_hub, show_json, show_table

password_option = click.option(
    "--password-stdin",
    is_flag=True,
    help="Read the password from standard input, which keeps it out of the shell's history.",
)


@click.group()
def account() -> None:
    """Manage accounts: add, list, disable and remove them, set passwords, end sessions."""


@account.command()
@click.argument("email")
@password_option
@json_option
@click.pass_obj
def add(directory: str, email: str, password_stdin: bool, as_json: bool) -> None:
    """Add an account. Without a password, natskit generates a one-time password and shows it once.

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
    accounts = list_hub(directory, "account_list")
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
@click.option("--enable", is_flag=True, help="Allow the account to sign in again.")
@json_option
@click.pass_obj
def disable(directory: str, email: str, enable: bool, as_json: bool) -> None:
    """Disable an account: end its sessions, disconnect it at once and refuse its sign-ins.

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
    """Set a password and end all sessions of the account. Without a password, natskit generates a one-time password.

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
    """List the sessions of an account.

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
    """End all sessions of an account and disconnect it at once. The account may sign in again.

    \b
    Example:
      natskit account sign-out ada@example.org
    """
    changed = call_hub(directory, "account_sign_out", email=email)
    _show(changed, f"{email} is signed out everywhere.", as_json)


@account.command()
@click.argument("email")
@click.option("--give-projects-to", "heir", metavar="EMAIL", help="Transfer its projects to this account.")
@click.option("--delete-projects", is_flag=True, help="Delete its projects and their files, for all collaborators.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def remove(directory: str, email: str, heir: str | None, delete_projects: bool, yes: bool, as_json: bool) -> None:
    """Remove an account: end its sessions, take it out of shared projects and free its e-mail address.

    An account that owns projects is refused unless you transfer or delete them. If the command is interrupted, run it
    again.

    \b
    Examples:
      natskit account remove ada@example.org --give-projects-to bob@example.org
      natskit account remove ada@example.org --delete-projects --yes
    """
    if heir is not None and delete_projects:
        raise click.UsageError("--give-projects-to and --delete-projects exclude each other: choose one")
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
    password = sys.stdin.readline().rstrip("\r\n")
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
