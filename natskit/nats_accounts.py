"""The NATS accounts of an identity, and those on its nats-servers: where they differ, and how that is mended."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from natskit.errors import NatskitError
from natskit.identity import NATS_ACCOUNTS, Identity, claims
from natskit.resolver import Server, Servers, name_in


@dataclass(frozen=True)
class Difference:
    """One NATS account, or the operator, that is not the same here and on a server."""

    server: str
    account: str
    name: str
    what: str
    """``missing there``, ``missing here``, ``different``, or ``kept, not used``: it would be used after a restart."""
    fields: tuple[str, ...] = ()
    """Which claims differ."""


async def differing(servers: Servers, identity: Identity) -> list[Difference]:
    """Where the servers' NATS accounts are not the identity's. Raises :class:`NatskitError` while a server is away."""
    local = identity.account_jwts()
    looked = await servers.look(local)
    stored = {account: await servers.stored(account) for account in local}
    return [*_operators(looked, identity), *differences(looked, local, stored)]


def _operators(servers: Iterable[Server], identity: Identity) -> list[Difference]:
    """Which servers believe other keys of the operator than they should: one that was not restarted."""
    own = identity.operator_public_key
    wanted = {own, *identity.operator_keys}
    return [
        Difference(server.name, own, "operator", "different", ("signing_keys",))
        for server in servers
        if set(server.operator_keys) != wanted
    ]


def differences(
    servers: Iterable[Server], local: Mapping[str, str], stored: Mapping[str, list[str]]
) -> list[Difference]:
    """The same of what is known already: ``local`` JWTs by public key, and those that servers keep, in no order."""
    found: list[Difference] = []
    known = list(servers)
    for account, token in local.items():
        name = name_in(token)
        for server in known:
            if account in server.used and server.used[account] != token:
                fields = changed(token, server.used[account])
                found.append(Difference(server.name, account, name, "different", fields))
            elif account not in server.used and server.kept is not None and account not in server.kept:
                found.append(Difference(server.name, account, name, "missing there"))
        # Which server keeps it is not told, unless all keep the same.
        odd = {kept for kept in stored.get(account, []) if kept != token}
        if odd and account not in {d.account for d in found}:
            all_of_them = len(set(stored[account])) == 1
            where = [s.name for s in known] if all_of_them else ["one of " + ", ".join(s.name for s in known)]
            found += [Difference(s, account, name, "kept, not used", changed(token, min(odd))) for s in where]
    for server in known:
        for account in sorted((server.kept or set()) - set(local)):
            found.append(Difference(server.name, account, name_in(server.used.get(account, "")), "missing here"))
    return found


def changed(here: str, there: str) -> tuple[str, ...]:
    """Which claims of two JWTs differ; if none, when each was signed."""
    try:
        one, other = claims.decode(here), claims.decode(there)
    except NatskitError:
        return ("unreadable",)
    paths: list[str] = []

    def compare(path: str, a: Any, b: Any) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted({*a, *b}):
                compare(f"{path}.{key}" if path else key, a.get(key), b.get(key))
        elif a != b:
            paths.append(path)

    compare("", *({key: value for key, value in body.items() if key not in ("iat", "jti")} for body in (one, other)))
    short = tuple("signed by another key" if path == "iss" else path.removeprefix("nats.") for path in paths)
    return short or (f"signed at {_time(there)} there, at {_time(here)} here",)


def _time(token: str) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(int(claims.decode(token).get("iat", 0))))


async def push_all(servers: Servers, identity: Identity) -> None:
    """Make every server use the identity's NATS accounts; see :meth:`natskit.resolver.Servers.push`.

    One that is younger on a server, as after the restore of a backup here, is signed again: of two, servers that hear
    of each other's keep the younger one.
    """
    looked = await servers.look(identity.account_jwts())
    for name in NATS_ACCOUNTS:
        public, here = identity.account_public_key(name), identity.account_jwt(name)
        others = {server.used.get(public, here) for server in looked} | set(await servers.stored(public))
        there = [int(claims.decode(token).get("iat", 0)) for token in others if token and token != here]
        if there and max(there) >= claims.decode(here)["iat"]:
            identity.sign_again(name, after=max(there), now=int(time.time()))
    await servers.push(identity.account_jwts().values())


async def deletable(servers: Servers, identity: Identity, wanted: str) -> tuple[str, str, list[str]]:
    """The public key and the name of a NATS account that may be deleted, and what it is used for."""
    own = {identity.account_public_key(name): name for name in NATS_ACCOUNTS}
    if wanted in own or wanted in own.values():
        raise NatskitError(f"{own.get(wanted, wanted)} is one of natskit's own NATS accounts: without it nothing works")
    names: dict[str, str] = {}
    for server in await servers.look([]):
        for public in (server.kept or set()) - set(own):
            stored = server.used.get(public) or next(iter(await servers.stored(public)), "")
            names[public] = str(claims.decode(stored).get("name", "")) if stored else ""
    matches = [public for public, name in names.items() if wanted in (public, name)]
    if len(matches) != 1:
        known = ", ".join(sorted(name or public for public, name in names.items())) or "none but natskit's own"
        what = f"{len(matches)} NATS accounts are called {wanted}: use the public key" if matches else ""
        raise NatskitError(what or f"no nats-server has a NATS account {wanted}: there are {known}")
    (public,) = matches
    clients, streams = await servers.connections(public), sorted(await servers.streams(public))
    uses = [f"{len(clients)} clients are connected"] if clients else []
    uses += [f"it has the streams {', '.join(streams[:5])}"] if streams else []
    return public, names[public] or public, uses
