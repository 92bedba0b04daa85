"""``natskit audit``: read the audit log."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from natskit.cli.platform import PATIENCE, Platform, show_table, with_client
from natskit.errors import NatskitError
from natskit.validation.names import address_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from natskit.client import Client

NAMES_SECONDS = 5.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_FORMS = "use an age such as 90s, 30m, 24h, 7d or 2w, or a time in UTC such as 2026-01-31 or 2026-01-31T12:00"


@click.command()
@click.option(
    "--since",
    default="24h",
    show_default=True,
    metavar="WHEN",
    help="Show events since an age (90s, 30m, 24h, 7d, 2w) or a time in UTC (2026-01-31, 2026-01-31T12:00).",
)
@click.option("--account", "who", metavar="WHO", help="Show events by or about this account (an e-mail or an id).")
@click.option("--follow", is_flag=True, help="Keep printing new events.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, with all fields.")
@click.pass_obj
def audit(directory: str, since: str, who: str | None, follow: bool, as_json: bool) -> None:
    """Show the audit log: sign-ins, refusals with their reasons, shared projects and administrators' actions.

    The field "said_by" is the user name that the command on the control machine sent. Times are UTC.

    \b
    Examples:
      natskit audit --since 7d --account ada@example.org
      natskit audit --since 1h --json | grep '"outcome": "refused"'
      natskit audit --follow --json | logger -t natskit-audit
    """
    start = parse_since(since, time.time())
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        with_client(directory, lambda client: _show(directory, client, start, who, follow=follow, as_json=as_json))


async def _show(directory: str, client: Client, start: float, who: str | None, *, follow: bool, as_json: bool) -> None:
    from natskit.ops import audit_reader

    names = await _names(client)
    connection = await Platform.find(directory).streams("natskit audit", PATIENCE)
    try:
        events = audit_reader.events(connection, start, follow=follow)
        await _print(events, names, who, follow=follow, as_json=as_json)
    finally:
        await connection.close()


async def _print(
    events: AsyncIterator[dict[str, Any]], names: dict[str, str], who: str | None, *, follow: bool, as_json: bool
) -> None:
    wanted = called(who, names) if who else None
    rows = []
    async for event in events:
        named = (address_key(str(event.get(key, ""))) for key in ("account", "target", "email"))
        if wanted is not None and wanted.isdisjoint(named):
            continue
        if as_json:
            click.echo(json.dumps(event))
        elif follow:
            click.echo("  ".join(row(event, names)))
        else:
            rows.append(row(event, names))
        if follow:
            sys.stdout.flush()
    if not as_json and not follow:
        show_table(["time", "who", "what", "result", "details"], rows, "No events since then.")


def parse_since(text: str, now: float) -> float:
    """The Unix time that ``--since`` names. Raises :class:`NatskitError`."""
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if found:
        return max(0.0, now - int(found[1]) * _UNITS[found[2]])
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise NatskitError(f"--since {text[:40]!r} is not a time: {_FORMS}") from None
    start = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if start > now:
        raise NatskitError(f"--since {text[:40]!r} is in the future: {_FORMS}")
    return start


async def _names(client: Client) -> dict[str, str]:
    """The accounts' e-mails by id. Empty when no hub answers: the audit log can be read without a hub."""
    try:
        return {row["account_id"]: row["email"] for row in await client.list_hub("account_list", wait=NAMES_SECONDS)}
    except NatskitError as error:
        click.echo(f"showing account ids instead of e-mails, because no hub answers: {error}", err=True)
        return {}


def called(who: str, names: dict[str, str]) -> set[str]:
    """The keys under which events mention an account: its e-mail, also after its removal, and its id."""
    wanted = address_key(who)
    return {wanted} | {account_id for account_id, email in names.items() if address_key(email) == wanted}


def row(event: dict[str, Any], names: dict[str, str]) -> list[str]:
    """The columns of an event in the table. ``names`` maps account ids to e-mails."""
    account = str(event.get("account", "-"))
    who = event.get("said_by") or names.get(account) or event.get("email") or account
    result = str(event.get("outcome", "")) + (f": {event['reason']}" if event.get("reason") else "")
    details = [
        f"{key}={names.get(str(value), value)}"
        for key, value in event.items()
        if key not in ("time", "id", "kind", "outcome", "reason", "said_by", "hub", "user_agent")
        and not (key == "account" and str(value) in ("-", account) and who != event.get("said_by"))
        and not (key == "by" and str(value) == f"account {account}")
    ]
    return [_safe(text) for text in (str(event.get("time", "")), str(who), str(event.get("kind", "")), result)] + [
        _safe(" ".join(details))
    ]


def _safe(text: str) -> str:
    """Replace control characters: an attacker in a hub could write terminal escape sequences into the audit log."""
    return "".join(c if c.isprintable() else "?" for c in text)
