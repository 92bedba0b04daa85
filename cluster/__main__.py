"""Start, remove and list a cluster: ``python -m cluster up NAME``."""

from __future__ import annotations

import os
from pathlib import Path

import click
from testcontainers.core.config import testcontainers_config

from cluster import access, lifecycle
from cluster.machines import MACHINES


@click.group()
def main() -> None:
    """A cluster of eight small machines in Docker, each with systemd as on a real host.

    New machines run Debian 13, or the release that NATSKIT_DEBIAN says, 12 or 13.
    """
    # The machines outlive this command: the reaper would remove them when it ends.
    testcontainers_config.ryuk_disabled = True


@main.command()
@click.argument("name")
@click.argument("subnet", default="")
def up(name: str, subnet: str) -> None:
    """Start what is missing or stopped. SUBNET is a /24. Default: 172.31.77.0/24.

    A deploy logs in to the machines by SSH, with the key in .cluster/NAME/ssh.
    """
    network = lifecycle.up(name, subnet, debian=os.environ.get("NATSKIT_DEBIAN") or "13")
    access.let_in(name, Path(__file__).parents[1] / ".cluster" / name / "ssh")
    click.echo(f"cluster {name} is up: {len(MACHINES)} machines in {network}")


@main.command()
@click.argument("name")
def down(name: str) -> None:
    """Remove its machines, their disks and its network; the image stays."""
    if not lifecycle.is_installed():
        click.echo("there is no Docker here, and so no cluster")
    elif lifecycle.down(name):
        click.echo(f"cluster {name} is gone")
    else:
        click.echo(f"there is no cluster {name}")


@main.command("list")
@click.argument("name")
def listing(name: str) -> None:
    """Print a line for each machine: its container, role, address and state."""
    for machine in lifecycle.listed(name):
        click.echo(f"{machine.container} {machine.role} {machine.address} {machine.state}")


if __name__ == "__main__":
    try:
        main(prog_name="python -m cluster")
    except lifecycle.ClusterError as error:
        raise SystemExit(str(error)) from None
