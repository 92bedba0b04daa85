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
    """The people of the platform: add, list, disable, set passwords."""


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
        [a["email"], a["account_id"], _state(a), str(a["projects"]), str(a["sessions"]), a["created_at"][:10]]
        for a in accounts
    ]
    columns = ["e-mail", "account", "state", "projects", "sessions", "since"]
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
