"""``natskit identity``: the platform's keys on this machine."""

from __future__ import annotations

import click


@click.group()
def identity() -> None:
    """The platform's keys on this machine: rotate them, compare them with the servers'."""
