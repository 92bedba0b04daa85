"""Compare the NATS accounts of an identity with those on its nats-servers, and push the identity's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from natskit.errors import NatskitError
from natskit.identity import claims
from natskit.identity.identity import Identity
from natskit.ops.account_resolver import Server, Servers, name_in


@dataclass(frozen=True)
class Difference:
    """A NATS account, or the operator, that differs between the identity and a server."""

    server: str
    account: str
    name: str
    what: str
    """``missing there``, ``missing here``, ``different``, or ``kept, not used`` (used only after a restart)."""
    fields: tuple[str, ...] = ()
    """The claims that differ."""


async def differing(servers: Servers, identity: Identity) -> list[Difference]:
    """Compare the NATS accounts of servers and identity. Raises :class:`NatskitError` while a server is down."""
    local = identity.account_jwts()
    states = await servers.inspect(local)
    stored = {account: await servers.stored(account) for account in local}
    return [*_operators(states, identity), *differences(states, local, stored)]


def _operators(servers: Iterable[Server], identity: Identity) -> list[Difference]:
    """The servers that trust other operator keys than the identity has, because they were not restarted."""
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
    """Compare ``local`` JWTs, by public key, with the servers' used and ``stored`` JWTs (the latter in no order)."""
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
        # The answers do not name the server that keeps it, except when all keep the same JWT.
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
    """The claims in which two JWTs differ or, if there are none, the times at which they were signed."""
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
    """Make every server use the identity's NATS accounts; see :meth:`natskit.ops.account_resolver.Servers.push`.

    If a server has a newer JWT, as after restoring a local backup, the account is signed again: nats-servers that
    exchange JWTs keep the newer one.
    """
    states = await servers.inspect(identity.account_jwts())
    for name in identity.accounts:
        public, here = identity.account_public_key(name), identity.account_jwt(name)
        others = {server.used.get(public, here) for server in states} | set(await servers.stored(public))
        there = [int(claims.decode(token).get("iat", 0)) for token in others if token and token != here]
        if there and max(there) >= claims.decode(here)["iat"]:
            identity.sign_again(name, after=max(there), now=int(time.time()))
    await servers.push(identity.account_jwts().values())


async def deletable(servers: Servers, identity: Identity, wanted: str) -> tuple[str, str, list[str]]:
    """The public key, the name and the current uses of a NATS account that may be deleted."""
    own = {identity.account_public_key(name): name for name in identity.accounts}
    if wanted in own or wanted in own.values():
        raise NatskitError(f"{own.get(wanted, wanted)} is one of natskit's own NATS accounts, which the platform needs")
    names: dict[str, str] = {}
    for server in await servers.inspect([]):
        for public in (server.kept or set()) - set(own):
            stored = server.used.get(public) or next(iter(await servers.stored(public)), "")
            names[public] = str(claims.decode(stored).get("name", "")) if stored else ""
    matches = [public for public, name in names.items() if wanted in (public, name)]
    if len(matches) != 1:
        known = ", ".join(sorted(name or public for public, name in names.items())) or "only natskit's own"
        what = f"{len(matches)} NATS accounts have the name {wanted}: use the public key" if matches else ""
        raise NatskitError(what or f"no nats-server has a NATS account {wanted}; they have {known}")
    (public,) = matches
    clients, streams = await servers.connections(public), sorted(await servers.streams(public))
    uses = [f"{len(clients)} clients are connected"] if clients else []
    uses += [f"it has the streams {', '.join(streams[:5])}"] if streams else []
    return public, names[public] or public, uses
