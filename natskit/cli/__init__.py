"""The command ``natskit``: accounts, projects, runners, commands in projects, health, keys, templates, a new inventory.

Commands import what they need when they run, so that ``natskit --help`` is quick.
"""

from __future__ import annotations

import sys

import click

from natskit import core_dumps
from natskit.cli.account import account
from natskit.cli.audit import audit
from natskit.cli.backend import backend
from natskit.cli.execute import execute
from natskit.cli.health import ready, status
from natskit.cli.identity import identity
from natskit.cli.inventory import init
from natskit.cli.project import project
from natskit.cli.rotate import delete_account, diff, push, rotate
from natskit.cli.runner import runner
from natskit.cli.template import render
from natskit.errors import NatskitError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="natskit", message="natskit %(version)s")
@click.option(
    "--platform",
    "directory",
    envvar="NATSKIT_PLATFORM",
    default=".local",
    show_default=True,
    metavar="DIR",
    help="The folder a deploy made, with platform.json in it [env: NATSKIT_PLATFORM].",
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


for command in (account, project, runner, execute, audit, backend, status, ready, identity, render, init):
    cli.add_command(command)
for command in (rotate, diff, push, delete_account):
    identity.add_command(command)


def main() -> None:
    """Run the command; an error of ours is one line on stderr and exit code 1."""
    core_dumps.forbid()
    try:
        cli(standalone_mode=True)
    except NatskitError as error:
        click.echo(f"natskit: {error}", err=True)
        sys.exit(1)
