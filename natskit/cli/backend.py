"""``natskit backend``: tokens of trusted backends."""

from __future__ import annotations

import re

import click

from natskit.cli.platform import show_json
from natskit.errors import NatskitError


@click.group()
def backend() -> None:
    """Manage trusted backends: sites that sign in their own users (docs/how-to/backend-sign-in.md)."""


@backend.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def token(name: str, as_json: bool) -> None:
    """Generate a backend's token and the setting that allows it. natskit shows the token once and does not store it.

    \b
    Example:
      natskit backend token shop
    """
    from natskit.hub.sign_in.backend import digest, new_token

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name):
        raise NatskitError(f"{name[:40]!r} is not a backend name: use up to 32 lower-case letters, digits and hyphens")
    made = new_token()
    if as_json:
        show_json({"name": name, "token": made, "sha256": digest(made)})
        return
    click.echo(f"The token of {name}, shown only now. Store it as a secret of the backend:\n\n  {made}\n")
    click.echo("Add this to inventories/group_data/all.py before the next deploy:\n")
    click.echo(f'  hub_backends = {{"{name}": {{"sha256": "{digest(made)}"}}}}')
