"""``natskit status`` and ``natskit ready``: is every part there, and does it answer a real request?"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from natskit.cli.platform import Platform, call_hub, json_option, show_json
from natskit.errors import NatskitError

if TYPE_CHECKING:
    from natskit.cli.checks import Report

MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}
LOG_LINES = 12


@click.command()
@json_option
@click.pass_obj
def status(directory: str, as_json: bool) -> None:
    """Every process, server, hub and runner, each asked something real.

    Exits 0 when the platform works, if need be with a warning that names what is missing (one hub of two), and 1 when
    it does not.

    \b
    Examples:
      natskit status
      natskit status --json | jq -r '.parts[] | select(.state != "ok") | .name'
    """
    from natskit.cli.checks import inspect

    report = inspect(Platform.find(directory))
    if as_json:
        show_json(report.to_json())
    else:
        _print(report)
    sys.exit(1 if report.state == "failed" else 0)


@click.command()
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@click.pass_obj
def ready(directory: str, timeout: float) -> None:
    """Wait until every part answers, make the first account if there is none, and say how to go on.

    \b
    Example:
      natskit ready --timeout 120
    """
    from natskit.cli.checks import inspect

    platform = Platform.find(directory)
    deadline = time.monotonic() + timeout
    report = inspect(platform)
    while report.state != "ok" and time.monotonic() < deadline:
        time.sleep(0.2)
        report = inspect(platform)
    if report.state != "ok":
        _print(report)
        for part in report.parts:
            if part.state != "ok":
                _print_log(platform, part.name)
        raise NatskitError(f"the platform is not ready after {timeout:g} s: see what is failed above")
    _welcome(platform, _first_account(directory, platform))


def _first_account(directory: str, platform: Platform) -> Path | None:
    """Make the first account, its one-time password in a private file; where that file is, if it is still good."""
    path = Path(directory).resolve() / "first-account.txt"
    accounts = call_hub(directory, "account_list")
    if not accounts:
        from natskit.identity.files import write_private

        made = call_hub(directory, "account_add", email=platform["first_account"])
        write_private(path, f"{made['email']}\n{made['password']}\n")
        return path
    first = [a for a in accounts if a["email"] == platform["first_account"]]
    if first and first[0]["must_change_password"] and path.exists():
        return path
    path.unlink(missing_ok=True)
    return None


def _welcome(platform: Platform, password_file: Path | None) -> None:
    ca, url = platform["ca_file"], platform["url"]
    command = ".venv/bin/natskit"
    if platform.directory.resolve() != Path(".local").resolve():
        command += f" --platform {platform.directory}"
    lines = [f"natskit is up: {url}", ""]
    if password_file is not None:
        lines += [
            f"  sign in as   {platform['first_account']}",
            f"  password     the second line of {password_file}",
            "               (one-time: you choose your own when you sign in)",
        ]
    lines += [
        f"  local CA     {ca}",
        "    to trust it, one of:",
        "      Firefox    Settings, Certificates, Authorities, Import",
        f"      Chromium   certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n natskit -i {ca}",
        f"      system     sudo cp {ca} /usr/local/share/ca-certificates/natskit.crt && sudo update-ca-certificates",
        f"      once       curl --cacert {ca} {url}/healthz",
        "",
        f"  try next     {command} status",
        f'               {command} project create {platform["first_account"]} "First steps"',
        f'               {command} exec "First steps" --start -- uname -a',
    ]
    click.echo("\n".join(lines))


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("part", "state", "version", "what it said"):
        table.add_column(column)
    for part in report.parts:
        table.add_row(part.name, Text.from_markup(MARKS[part.state]), part.version, Text(part.detail))
    Console(highlight=False).print(table)
    if report.summary:
        click.echo(report.summary, err=report.state != "ok")


def _print_log(platform: Platform, program: str) -> None:
    path = Path(platform.content.get("log_directory", "/nowhere")) / f"{program}.log"
    if path.exists():
        tail = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
        click.echo("\n".join([f"---- {path}", *tail]), err=True)
