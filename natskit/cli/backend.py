"""``natskit backend``: sites that sign their own people in."""

from __future__ import annotations

import re

import click

from natskit.cli.platform import show_json
from natskit.errors import NatskitError


@click.group()
def backend() -> None:
    """Trusted backends: sites that sign their own people in (docs/backend.md)."""


@backend.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def token(name: str, as_json: bool) -> None:
    """Make up a token for a backend, and the setting that lets it in. It is shown once and kept nowhere.

    \b
    Example:
      natskit backend token shop
    """
    from natskit.hub.backend import digest, new_token

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name):
        raise NatskitError(f"{name[:40]!r} is no name for a backend: up to 32 lower-case letters, digits and hyphens")
    made = new_token()
    if as_json:
        show_json({"name": name, "token": made, "sha256": digest(made)})
        return
    click.echo(f"The token of {name}, shown only now; give it to the backend as a secret:\n\n  {made}\n")
    click.echo("And in inventories/group_data/all.py, before the next deploy:\n")
    click.echo(f'  hub_backends = {{"{name}": {{"sha256": "{digest(made)}"}}}}')
