"""The streams of all NATS accounts of a platform: who may read and replace them, and in which order."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natskit.bus.connection import Connection, connect
from natskit.bus.credentials import CredsText
from natskit.bus.permissions import BACKUP_INBOX, BUCKETS, Permissions
from natskit.bus.servers import NatsServers
from natskit.errors import BackupError
from natskit.identity.identity import Identity
from natskit.ops.account_resolver import Servers, open_servers

CREDS_SECONDS = 12 * 3600
"""Far longer than a backup takes."""
CONNECT_SECONDS = 5.0

ORDER = ("memberships", "sessions", "projects", "accounts", "runners")
"""The buckets of the state, each before those that its records refer to. A backup takes one stream after the other: so
whatever a record refers to is in it."""
assert set(ORDER) == set(BUCKETS)


@dataclass(frozen=True)
class Site:
    """A running platform, as ``platform.json`` says."""

    identity: Path
    servers: NatsServers
    names: tuple[str, ...]
    """The names of its nats-servers."""
    lazy: tuple[str, ...]
    """Those that fetch a NATS account at its first use."""

    @asynccontextmanager
    async def as_user(self, account: str, identity: Identity, rights: Permissions) -> AsyncIterator[Connection]:
        """Connect to a NATS account with these rights. Raises :class:`NatskitError`."""
        creds = identity.temporary_creds(account, "backup", rights, now=int(time.time()), seconds=CREDS_SECONDS)
        connection = await connect(
            self.servers,
            name="natskit backup",
            inbox_prefix=BACKUP_INBOX,
            creds=CredsText(creds),
            timeout=CONNECT_SECONDS,
        )
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def resolvers(self, identity: Identity) -> AsyncIterator[Servers]:
        """Connect as ``SYS/admin``. Raises :class:`NatskitError`."""
        async with open_servers(
            self.servers, CredsText(identity.creds("SYS", "admin")), self.names, self.lazy
        ) as servers:
            yield servers


async def accounts(site: Site, identity: Identity, but: frozenset[str]) -> list[str]:
    """The NATS accounts of the identity that have streams.

    Raises :class:`BackupError` if another NATS account has some, unless its public key is in ``but``: nobody here could
    sign a user of it.
    """
    async with site.resolvers(identity) as servers:
        found = await servers.accounts_with_streams()
        known = {identity.account_public_key(name): name for name in identity.accounts}
        used = [item for server in await servers.inspect(known) for item in server.used.items()]
        used += [(key, token) for key in known for token in await servers.stored(key) if token]
    if closed := sorted({known[key] for key, token in used if key in known and identity.is_closed(known[key], token)}):
        raise BackupError(
            f"NATS account {', '.join(closed)} is closed, because a restore has not ended: its streams may be half "
            "restored. Complete it with `natskit backup restore --overwrite NAME`, then take a backup"
        )
    if foreign := sorted(found - known.keys() - but):
        raise BackupError(
            f"NATS account {', '.join(foreign)} has streams, and its key is not in {site.identity}: back up its "
            "streams with `nats account backup`, and name the account with --without-account"
        )
    # One of the two has the state. What a move has left behind in the other is old: nobody can change it.
    left = "STATE" if identity.state_in_platform else "PLATFORM" if identity.state_can_go_back else None
    return sorted(known[key] for key in found & known.keys() if known[key] != left)


def in_order(streams: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Streams in the order in which a backup takes them: buckets of the state first, then by name."""
    position = {f"KV_{bucket}": number for number, bucket in enumerate(ORDER)}
    return sorted(streams, key=lambda one: (position.get(one["config"]["name"], len(ORDER)), one["config"]["name"]))


def bytes_of(streams: Sequence[dict[str, Any]]) -> int:
    """Bytes of all messages."""
    return sum(int(stream["state"]["bytes"]) for stream in streams)
