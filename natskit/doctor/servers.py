"""The nats-servers: their NATS accounts, streams and storage."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from natskit.bus.connection import Connection
from natskit.bus.jetstream import STREAM_NOT_FOUND, JetStreamError, SilenceError, api
from natskit.bus.permissions import DOCUMENT_STREAMS
from natskit.doctor.finding import Finding
from natskit.identity.identity import Identity
from natskit.ops.account_diff import differing
from natskit.ops.account_resolver import Servers, name_in
from natskit.ops.stream_provisioning import StreamSettings, differences_of, wanted

FULL_SOON, FULL = 0.8, 0.95
"""The parts of a limit from which it is a finding; nats-server refuses writes at the limit."""
INFO_SECONDS = 3.0


async def accounts(servers: Servers, identity: Identity) -> list[Finding]:
    """NATS accounts that differ from the identity. Raises :class:`NatskitError` while a server is down."""
    found = await differing(servers, identity)
    if closed := sorted({one.name for one in found if one.what != "missing here" and "signing_keys" in one.fields}):
        used = [token for server in await servers.inspect(identity.account_jwts()) for token in server.used.values()]
        if any(identity.is_closed(name, token) for name in closed for token in used if name_in(token) == name):
            return [
                Finding(
                    "broken",
                    f"NATS account {', '.join(closed)} is closed to everybody",
                    "a restore has not ended, and what it has restored may be half: a deploy would open it",
                    "natskit backup restore --overwrite NAME, before anything else",
                )
            ]
    return [
        Finding(
            "broken",
            f"{one.server} has another NATS account {one.name or one.account} than the identity",
            f"the JWT there is {one.what}" + (f": {', '.join(one.fields)} differ" if one.fields else ""),
            "natskit identity diff, then natskit identity push",
        )
        for one in found
        if one.what != "missing here"
    ]


async def streams(
    connection: Connection, settings: StreamSettings, deploy: str, account: str = "STATE"
) -> list[Finding]:
    """A NATS account's streams that are missing, changed or nearly full, have no leader, or lack a copy."""
    found = await asyncio.gather(*(_stream(connection, config, deploy) for config in wanted(settings, account)))
    return [finding for of_stream in found for finding in of_stream]


async def _stream(connection: Connection, config: dict[str, Any], deploy: str) -> list[Finding]:
    name = config["name"]
    try:
        info = await api(connection, f"STREAM.INFO.{name}", {}, INFO_SECONDS)
    except SilenceError:
        return [_without_leader(name, f"no server answers for it within {INFO_SECONDS:g} s")]
    except JetStreamError as error:
        if error.code != STREAM_NOT_FOUND:
            return [_without_leader(name, str(error))]
        return [Finding("broken", f"stream {name} is missing", str(error), deploy)]
    if "cluster" in info and not info["cluster"].get("leader"):
        return [_without_leader(name, "a server says that none of its copies leads")]
    found = [*_copies(name, info), *_room(name, info)]
    if changed := differences_of(info["config"], config):
        why = f"its configuration is not that of the inventory: {', '.join(changed)}"
        found.append(Finding("soon", f"stream {name} was changed by hand", why, deploy))
    return found


def _without_leader(name: str, why: str) -> Finding:
    mend = "natskit status names the nats-servers that are away: start them"
    return Finding("broken", f"stream {name} has no leader", f"{why}; a majority of its copies must run", mend)


def _copies(name: str, info: dict[str, Any]) -> Iterator[Finding]:
    for replica in (info.get("cluster") or {}).get("replicas") or []:
        if replica.get("offline") or not replica.get("current"):
            why = "is offline" if replica.get("offline") else f"is {replica.get('lag', 0)} operations behind"
            yield Finding(
                "soon",
                f"stream {name} lacks a copy: that on {replica['name']}",
                f"its leader, {info['cluster'].get('leader')}, says that {replica['name']} {why}",
                f"start nats-server on {replica['name']}, and wait: natskit status",
            )


def _room(name: str, info: dict[str, Any]) -> Iterator[Finding]:
    used, limit = int(info["state"]["bytes"]), int(info["config"]["max_bytes"])
    setting = "keeper_max_bytes" if name in DOCUMENT_STREAMS else "hub_state_max_bytes"
    if info["config"]["discard"] == "new" and limit > 0 and used >= FULL_SOON * limit:
        yield Finding(
            "broken" if used >= FULL * limit else "soon",
            f"stream {name} is nearly full",
            f"it has {used} of at most {limit} bytes, and refuses writes when it is full",
            f"raise {setting} in the inventory, and deploy",
        )


async def storage(servers: Servers) -> list[Finding]:
    """JetStream's storage on each server. Raises :class:`NatskitError` while a server is down."""
    found = []
    for name, (used, limit) in (await servers.storage()).items():
        if limit > 0 and used >= FULL_SOON * limit:
            found.append(
                Finding(
                    "broken" if used >= FULL * limit else "soon",
                    f"JetStream of {name} is nearly full",
                    f"its streams take {used} of at most {limit} bytes (nats_jetstream_max_file)",
                    "raise nats_jetstream_max_file in the inventory, and deploy",
                )
            )
    return found
