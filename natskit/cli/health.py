"""``natskit status`` and ``natskit ready``: check that every part answers a real request."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from natskit.cli.platform import Platform, call_hub, called, default_directory, json_option, list_hub, show_json
from natskit.errors import NatskitError

if TYPE_CHECKING:
    from natskit.backup.record import Record
    from natskit.cli.checks import Report

MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}
LOG_LINES = 12


@click.command()
@json_option
@click.pass_obj
def status(directory: str, as_json: bool) -> None:
    """Check every process, server, hub and runner with a real request.

    Exits 0 when the platform works, with a warning for a part that is not needed for that (one hub of two). Exits 1
    when it does not work.

    \b
    Examples:
      natskit status
      natskit status --json | jq -r '.parts[] | select(.state != "ok") | .name'
    """
    from natskit.cli.checks import inspect

    platform = Platform.find(directory)
    report, backup = inspect(platform), _last_backup(platform)
    if as_json:
        show_json(report.to_json() | {"backup": backup.model_dump(mode="json") if backup else None})
    else:
        _print(report)
        if backup:
            click.echo(backup.words(datetime.now(UTC)))
    sys.exit(1 if report.state == "failed" else 0)


def _last_backup(platform: Platform) -> Record | None:
    """What is known of backups; ``None`` where none was taken from this machine."""
    from natskit.backup.record import FILE, Record

    return Record.read(platform.directory) if (platform.directory / FILE).exists() else None


@click.command()
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@click.pass_obj
def ready(directory: str, timeout: float) -> None:
    """Wait until the platform works: every part answers and every runner can run a command in a new project.

    Creates the first account if there is none, and prints the next steps.

    \b
    Example:
      natskit ready --timeout 120
    """
    from natskit.cli.checks import inspect
    from natskit.cli.trial import try_runners

    platform = Platform.find(directory)
    deadline = time.monotonic() + timeout
    report = inspect(platform)
    while not report.is_ready and time.monotonic() < deadline:
        time.sleep(0.2)
        report = inspect(platform)
    if not report.is_ready:
        _print(report)
        for part in report.parts:
            if part.state != "ok":
                _print_log(platform, part.name)
        raise NatskitError(f"the platform is not ready after {timeout:g} s: fix the failed parts listed above")
    left = set[str]()
    problems = try_runners(directory, left)
    while problems and time.monotonic() < deadline:  # a runner that has just started may not answer yet
        time.sleep(0.2)
        problems = try_runners(directory, left)
    if problems:
        _print_log(platform, "runner")
        raise NatskitError("\n".join(["the platform is up, but projects do not work:", *problems]))
    _welcome(platform, _first_account(directory, platform))


def _first_account(directory: str, platform: Platform) -> Path | None:
    """Create the first account and write its one-time password to a private file.

    Returns the path of that file while the password is valid.
    """
    path = Path(directory).resolve() / "first-account.txt"
    accounts = list_hub(directory, "account_list")
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
    ca, url = shlex.quote(platform["ca_file"]), platform["url"]
    command = called(Path.cwd())
    if platform.directory.resolve() != Path(default_directory()).resolve():
        command += f" --platform {shlex.quote(str(platform.directory))}"
    lines = [f"natskit is up: {url}", ""]
    if password_file is not None:
        lines += [
            f"  sign in as   {platform['first_account']}",
            f"  password     the second line of {password_file}",
            "               (one-time: you choose your own when you sign in)",
        ]
    lines += [
        f"  local CA     {platform['ca_file']}",
        "    trust it in one of these ways:",
        "      Firefox    Settings, Certificates, Authorities, Import",
        f"      Chromium   certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n natskit -i {ca}",
        f"      system     sudo cp {ca} /usr/local/share/ca-certificates/natskit.crt && sudo update-ca-certificates",
        *([f"      once       curl --cacert {ca} {url}/healthz"] if shutil.which("curl") else []),
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
    for column in ("part", "state", "version", "detail"):
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
