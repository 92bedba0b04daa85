"""How a command finds its platform and talks to it."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from natskit.errors import ConnectionLostError, NatskitError, SettingsError

if TYPE_CHECKING:
    from natskit.client import Client
    from natskit.connection import CredsText, NatsServers

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds to wait for nats-server: one that is restarting is back sooner, and whoever types should not wait longer."""


@dataclass(frozen=True)
class Platform:
    """What ``platform.json`` says; a deploy writes it."""

    directory: Path
    content: dict[str, Any]

    @classmethod
    def find(cls, directory: str) -> Platform:
        """Read ``platform.json``. Raises :class:`SettingsError`."""
        path = Path(directory) / "platform.json"
        try:
            return cls(Path(directory), json.loads(path.read_text()))
        except FileNotFoundError:
            raise SettingsError(
                f"there is no {path}: run `make up` first, or say where the platform is with --platform DIR"
            ) from None
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path} cannot be read ({error}): deploy again") from None

    async def client(self, name: str, patience: float) -> Client:
        """Connect as the operator. Raises :class:`ConnectionLostError`."""
        from natskit.client import Client

        creds, ca_file = self.creds("platform_admin"), self["nats_ca_file"]
        return await Client.admin(
            self["nats_urls"], creds, ca_file=ca_file, name=name, patience=patience, said_by=os_user()
        )

    @property
    def nats_servers(self) -> NatsServers:
        """Where its nats-servers are, and by which CA they are known."""
        from natskit.connection import NatsServers

        ca_file = self["nats_ca_file"]
        return NatsServers(urls=self["nats_urls"], ca_file=Path(ca_file) if ca_file else None)

    def creds(self, user: str) -> CredsText:
        """The creds of a user of the operator, sealed or not. Raises :class:`IdentityError`."""
        from natskit.connection import CredsText
        from natskit.identity.vault import Vault

        return CredsText(Vault(Path(self["identity"])).read(Path(self["creds"][user])).decode())

    def __getitem__(self, key: str) -> Any:
        try:
            return self.content[key]
        except KeyError:
            raise SettingsError(
                f"{self.directory / 'platform.json'} has no {key}: another version wrote it, deploy again"
            ) from None


def os_user() -> str:
    """Who runs this command, as this machine says: ``ada@laptop``, or ``root (ada by sudo)@laptop``."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"
    sudo = os.environ.get("SUDO_USER", "")
    return f"{name} ({sudo} by sudo)@{socket.gethostname()}" if sudo else f"{name}@{socket.gethostname()}"


def with_client(directory: str, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Connect as the operator, do the work, disconnect."""
    platform = Platform.find(directory)

    async def run() -> T:
        try:
            client = await platform.client("cli", PATIENCE)
        except ConnectionLostError as error:
            raise ConnectionLostError(f"{error}: `natskit status` says what runs, `make up` starts it") from None
        async with client:
            return await work(client)

    return asyncio.run(run())


def call_hub(directory: str, method: str, *, wait: float = 40, **params: Any) -> Any:
    """One call of ``hub.admin``. Raises :class:`NatskitError`."""
    wanted = {key: value for key, value in params.items() if value is not None}
    return with_client(directory, lambda client: client.call_hub(method, wait=wait, **wanted))


def note(directory: str, what: str) -> None:
    """Put into the audit what was done without a hub. Where none answers, whoever did it is told, and goes on."""
    try:
        call_hub(directory, "note", wait=PATIENCE, what=what)
    except NatskitError as error:
        click.echo(f"not in the audit: {what} ({error})", err=True)


def show_json(value: Any) -> None:
    """Print a value for a script."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_table(columns: list[str], rows: list[list[str]], empty: str) -> None:
    """Print rows for a person."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        click.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in {"project", "account"})
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 1000  # what reads a pipe wants a row in a line
    Console(highlight=False, markup=False, width=width).print(table)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
