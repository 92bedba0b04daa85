"""Find the platform of a command and connect to it."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from natskit.errors import ConnectionLostError, NatskitError, SettingsError
from natskit.validation.names import shown

if TYPE_CHECKING:
    from natskit.bus.connection import Connection
    from natskit.bus.credentials import CredsText
    from natskit.bus.servers import NatsServers
    from natskit.client import Client

T = TypeVar("T")

FOLDER = "platform"
"""The name that `natskit init` gives a platform's folder."""
PATIENCE = 5.0
"""Seconds to wait for nats-server: longer than a restart takes, short enough for the user at the terminal."""


@dataclass(frozen=True)
class Platform:
    """The content of ``platform.json``, which a deploy writes."""

    directory: Path
    content: dict[str, Any]

    @classmethod
    def find(cls, directory: str) -> Platform:
        """Read ``platform.json``. Raises :class:`SettingsError`."""
        path = Path(directory) / "platform.json"
        try:
            found = cls(Path(directory), json.loads(path.read_text()))
        except FileNotFoundError:
            raise SettingsError(
                f"there is no {path}: run `make up` or `natskit deploy` first, or name the platform's folder with "
                "--platform DIR"
            ) from None
        except PermissionError:  # natskit.cli names the owner, for every command
            raise
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path} cannot be read ({error}): deploy again") from None
        identity = Path(found["identity"])
        if identity.parent.resolve() != Path(directory).resolve():
            raise SettingsError(
                f"{path} belongs to {identity.parent}, which was moved or copied here: deploy again, locally with "
                "`make up`"
            )
        return found

    async def client(self, name: str, patience: float) -> Client:
        """Connect as the operator. Raises :class:`ConnectionLostError`."""
        import natskit.bus.nats_without_aiohttp  # noqa: F401 - must come first
        from natskit.client import Client

        creds, ca_file = self.creds("platform_admin"), self["nats_ca_file"]
        return await Client.admin(
            self["nats_urls"], creds, ca_file=ca_file, name=name, patience=patience, said_by=os_user()
        )

    async def streams(self, name: str, patience: float) -> Connection:
        """Connect as the operator to the NATS account STATE. Raises :class:`ConnectionLostError`."""
        from natskit.bus.connection import connect
        from natskit.bus.permissions import inbox_prefix

        return await connect(
            self.nats_servers,
            name=name,
            inbox_prefix=inbox_prefix("admin"),
            creds=self.creds("state_admin"),
            timeout=patience,
        )

    @property
    def nats_servers(self) -> NatsServers:
        """The URLs of its nats-servers, and the CA of their certificates."""
        from natskit.bus.servers import NatsServers

        ca_file = self["nats_ca_file"]
        return NatsServers(urls=self["nats_urls"], ca_file=Path(ca_file) if ca_file else None)

    def creds(self, user: str) -> CredsText:
        """The creds of one of the operator's users, encrypted or not. Raises :class:`IdentityError`."""
        from natskit.bus.credentials import CredsText
        from natskit.identity.vault import Vault

        return CredsText(Vault(Path(self["identity"])).read(Path(self["creds"][user])).decode())

    def __getitem__(self, key: str) -> Any:
        try:
            return self.content[key]
        except KeyError:
            raise SettingsError(
                f"{self.directory / 'platform.json'} has no {key}: another version wrote it, deploy again"
            ) from None


def default_directory() -> str:
    """The default of --platform: the platform of a checkout, or of the inventory in this folder."""
    made_by_init = Path("inventory.py").exists() and Path(FOLDER).is_dir()
    return FOLDER if made_by_init and not Path(".local").exists() else ".local"


def called(folder: Path) -> str:
    """How to run this command in a folder: its name if it is on the PATH, otherwise its path."""
    program = Path(sys.argv[0]).absolute()
    on_path = shutil.which(program.name)
    if on_path and Path(on_path).samefile(program):
        return program.name
    return shlex.quote(str(program.relative_to(folder) if program.is_relative_to(folder) else program))


def os_user() -> str:
    """The user of this command as the operating system reports it: ``ada@laptop`` or ``root (ada by sudo)@laptop``."""
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
            raise ConnectionLostError(f"{error}: check with `natskit status`, start with `make up`") from None
        async with client:
            return await work(client)

    return asyncio.run(run())


def call_hub(directory: str, method: str, *, wait: float = 40, **params: Any) -> Any:
    """One call of ``hub.admin``. Raises :class:`NatskitError`."""
    wanted = {key: value for key, value in params.items() if value is not None}
    return with_client(directory, lambda client: client.call_hub(method, wait=wait, **wanted))


def list_hub(directory: str, method: str, **params: Any) -> list[dict[str, Any]]:
    """All rows of a method of ``hub.admin`` that lists them. Raises :class:`NatskitError`."""
    return with_client(directory, lambda client: client.list_hub(method, wait=40, **params))


def note(directory: str, what: str) -> None:
    """Record an action that needs no hub in the audit log. If no hub answers, warn the user and continue."""
    try:
        call_hub(directory, "note", wait=PATIENCE, what=what)
    except NatskitError as error:
        click.echo(f"not in the audit: {what} ({error})", err=True)


METRICS_FOLDER = "NATSKIT_METRICS"
"""The variable that names the folder of files with metrics, as of node_exporter's textfile collector."""


def metrics_folder(platform: Platform) -> Path | None:
    """Where commands leave metrics: the folder that NATSKIT_METRICS names, or that of a local platform's exporter."""
    if named := os.environ.get(METRICS_FOLDER):
        return Path(named)
    own = platform.directory / "metrics"
    return own if own.is_dir() else None


def show_json(value: Any) -> None:
    """Print a value for a script."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_table(columns: list[str], rows: list[list[str]], empty: str) -> None:
    """Print a table for a person. Invisible characters are printed as escapes."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        click.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in {"project", "account"})
    for row in rows:
        table.add_row(*map(shown, row))
    width = None if sys.stdout.isatty() else 1000  # in a pipe, each row must stay on one line
    Console(highlight=False, markup=False, width=width).print(table)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
