"""The command ``natskit``: accounts, projects, runners, commands in projects, health, keys, templates, a new inventory.

Commands import their modules when they run, to keep ``natskit --help`` fast.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from natskit.cli import extras, output
from natskit.cli.account import account
from natskit.cli.audit import audit
from natskit.cli.backend import backend
from natskit.cli.backup import backup
from natskit.cli.canary import canary
from natskit.cli.copy import copy
from natskit.cli.deploy import deploy
from natskit.cli.doctor import doctor
from natskit.cli.document import document
from natskit.cli.execute import execute
from natskit.cli.health import ready, status
from natskit.cli.identity import identity
from natskit.cli.inventory import init
from natskit.cli.job import job
from natskit.cli.platform import default_directory
from natskit.cli.project import project
from natskit.cli.rotate import delete_account, diff, push, rotate
from natskit.cli.runner import runner
from natskit.cli.schedule import schedule
from natskit.cli.state import state
from natskit.cli.sync import sync
from natskit.cli.template import render
from natskit.cli.terminal import terminal
from natskit.errors import NatskitError
from natskit.process import core_dumps


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="natskit", message="natskit %(version)s")
@click.option(
    "--platform",
    "directory",
    envvar="NATSKIT_PLATFORM",
    default=default_directory,
    metavar="DIR",
    help="The platform's folder, where the deploy wrote platform.json [env: NATSKIT_PLATFORM; default: .local, or "
    "`platform` beside an inventory that `natskit init` wrote].",
)
@click.pass_context
def cli(context: click.Context, directory: str) -> None:
    """Administer a natskit platform from its control machine.

    \b
    Examples:
      natskit status
      natskit account add ada@example.org
      natskit project create ada@example.org "First steps"
      natskit exec "First steps" --start -- uname -a
    """
    context.obj = directory


for command in (
    account,
    project,
    runner,
    execute,
    terminal,
    job,
    document,
    copy,
    sync,
    audit,
    backend,
    backup,
    state,
    status,
    ready,
    doctor,
    canary,
    schedule,
    identity,
    render,
    init,
    deploy,
):
    cli.add_command(command)
for command in (rotate, diff, push, delete_account):
    identity.add_command(command)


def main() -> None:
    """Run the command. An error of natskit's is one line on stderr and exit code 1."""
    core_dumps.forbid()
    output.run(_run)


def _run() -> None:
    try:
        cli(standalone_mode=True)
    except NatskitError as error:
        click.echo(f"natskit: {error}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        advice = extras.advice(error)
        if advice is None:
            raise
        click.echo(f"natskit: {advice}", err=True)
        sys.exit(1)
    except PermissionError as error:
        click.echo(f"natskit: {_explain(error)}", err=True)
        sys.exit(1)


def _explain(error: PermissionError) -> str:
    """An error message that names the user who may access the file."""
    from natskit.ops import stop_platform

    try:
        stop_platform.check_owner(Path(os.path.abspath(os.fsdecode(error.filename or "."))))
    except stop_platform.NotOursError as closed:
        return f"{closed}, or name another platform with --platform or NATSKIT_LOCAL"
    return str(error)
