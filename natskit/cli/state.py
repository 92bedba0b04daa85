"""``natskit state``: confirm that the state stays in its own NATS account, or move it back for an older version."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from natskit.cli.platform import Platform, note
from natskit.errors import NatskitError

if TYPE_CHECKING:
    from natskit.bus.connection import Connection
    from natskit.identity.identity import Identity


@click.group()
def state() -> None:
    """Confirm the move of the state to its own NATS account, or undo it.

    The first deploy of this version moves the state of an older one from the NATS account PLATFORM to STATE, while the
    platform runs. What was in PLATFORM stays there until you confirm.
    """


@state.command()
@click.pass_obj
def confirm(directory: str) -> None:
    """Delete what the move of the state has left behind. There is no way back to the older version then.

    \b
    Example:
      natskit state confirm
    """
    from natskit.backup.state_move import delete_frozen

    platform, identity = _moved(directory)

    async def work() -> list[str]:
        connection = await _connect(platform, identity, "PLATFORM")
        try:
            return await delete_frozen(connection)
        finally:
            await connection.close()

    names = asyncio.run(work())
    identity.note_state("confirmed", now=int(time.time()))
    _push(platform, identity)
    note(directory, "state confirm")
    click.echo(f"The old streams are deleted: {', '.join(names)}. Back up the platform now.")


@state.command()
@click.pass_obj
def back(directory: str) -> None:
    """Move the state back to where an older version has it. Deploy the older version right after that.

    Until then, nobody can sign in or change anything; what runs goes on.

    \b
    Example:
      natskit state back
    """
    from natskit.backup.state_move import move
    from natskit.ops.stream_provisioning import StreamSettings

    platform, identity = _moved(directory)
    settings = StreamSettings.model_validate(platform["streams"])
    note(directory, "state back")

    async def work() -> list[str]:
        source = await _connect(platform, identity, "STATE")
        try:
            target = await _connect(platform, identity, "PLATFORM")
            try:
                key = identity.account_public_key("PLATFORM")
                return await move(source, target, settings, key, audit_last=True)
            finally:
                await target.close()
        finally:
            await source.close()

    for line in asyncio.run(work()):
        click.echo(line)
    identity.note_state("PLATFORM", now=int(time.time()))
    _push(platform, identity)
    click.echo(
        "The state is back in PLATFORM. Deploy the older version now: until then, hubs cannot use it.\n"
        "Its `natskit backup create` does not know the NATS account STATE, which keeps an old copy: add "
        f"--without-account {identity.account_public_key('STATE')}"
    )


def _moved(directory: str) -> tuple[Platform, Identity]:
    """The platform and its identity, if the state was moved and can go back. Raises :class:`NatskitError`."""
    from natskit.identity.identity import Identity

    platform = Platform.find(directory)
    identity = Identity.load(Path(platform["identity"]), write=True)
    if identity.state_in_platform:
        raise NatskitError("the state is in PLATFORM, as an older version has it: deploy to move it")
    if not identity.state_can_go_back:
        raise NatskitError("there is nothing to confirm or to undo: the state is in STATE alone")
    return platform, identity


async def _connect(platform: Platform, identity: Identity, account: str) -> Connection:
    from natskit.backup.state_move import CONNECT_SECONDS, CREDS_SECONDS, MOVE_STATE
    from natskit.bus.connection import connect
    from natskit.bus.credentials import CredsText
    from natskit.bus.permissions import BACKUP_INBOX

    creds = identity.temporary_creds(account, "backup", MOVE_STATE, now=int(time.time()), seconds=CREDS_SECONDS)
    return await connect(
        platform.nats_servers,
        name="natskit state",
        inbox_prefix=BACKUP_INBOX,
        creds=CredsText(creds),
        timeout=CONNECT_SECONDS,
    )


def _push(platform: Platform, identity: Identity) -> None:
    """Let the nats-servers know what has changed."""
    from natskit.cli.rotate import run_on_servers
    from natskit.ops.account_diff import push_all

    if "memory" in platform["resolvers"].values():
        click.echo("With the resolver memory, nats-servers learn of this from the next deploy.")
    else:
        run_on_servers(platform, identity, lambda servers: push_all(servers, identity))
