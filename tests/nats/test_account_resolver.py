"""Two nats-servers that keep NATS accounts on disk: read the accounts in use, push, compare and delete them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from natskit.bus.connection import Connection, connect
from natskit.bus.credentials import CredsText
from natskit.bus.servers import NatsServers
from natskit.errors import NatskitError
from natskit.identity import claims, nkey
from natskit.identity.identity import Identity
from natskit.ops.account_diff import deletable, differing, push_all
from natskit.ops.account_resolver import Servers, open_servers
from tests.kit.nats import NatsServer
from tests.kit.ports import free_port
from tests.kit.wait import eventually
from tests.platform.raw import ClosedError, RawClient

NOW = int(time.time())


@dataclass
class Machines:
    """Two nats-servers in a cluster."""

    root: Path
    identity: Identity
    ports: dict[str, int]
    routes: dict[str, int]
    servers: dict[str, NatsServer] = field(default_factory=dict)

    def start(self, name: str) -> None:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "jwt").mkdir(exist_ok=True)
        for public, token in {} if any((folder / "jwt").iterdir()) else self.identity.account_jwts().items():
            (folder / "jwt" / f"{public}.jwt").write_text(token)
        others = ", ".join(f'"nats://127.0.0.1:{port}"' for other, port in self.routes.items() if other != name)
        cluster = (
            f'cluster {{ name: test, listen: "127.0.0.1:{self.routes[name]}", routes: [{others}] }}' if others else ""
        )
        self.servers.setdefault(name, NatsServer(folder)).start(f"""
            server_name: {name}
            listen: "127.0.0.1:{self.ports[name]}"
            operator: {self.identity.operator_jwt}
            system_account: {self.identity.account_public_key("SYS")}
            resolver: {{ type: full, dir: "{folder}/jwt", allow_delete: {"true" if name != "strict" else "false"} }}
            jetstream: {{ store_dir: "{folder}/jetstream" }}
            {cluster}
        """)

    async def connect(self, name: str, creds: str) -> Connection:
        """Connect to one server only."""
        servers = NatsServers(urls=[f"nats://127.0.0.1:{self.ports[name]}"])
        return await connect(servers, name="test", inbox_prefix="_INBOX", creds=CredsText(creds), timeout=10)

    def is_let_in(self, creds: str) -> set[str]:
        """The servers that accept a client."""
        found = set()
        for name in [name for name, server in self.servers.items() if server.is_running]:
            with contextlib.suppress(ClosedError, ConnectionError):
                client = RawClient.tcp("127.0.0.1", self.ports[name], creds)
                client.close()
                found.add(name)
        return found


BOTH = {"n1", "n2"}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    root = tmp_path_factory.mktemp("resolver")
    identity = Identity.ensure(root / "identity", now=NOW)
    found = Machines(root, identity, {n: free_port() for n in BOTH}, {n: free_port() for n in BOTH})
    try:
        for name in sorted(BOTH):
            found.start(name)
        yield found
    finally:
        for server in found.servers.values():
            server.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(machines: Machines) -> AsyncIterator[Servers]:
    async def listens() -> bool:
        return machines.is_let_in(machines.identity.creds("SYS", "admin")) == BOTH

    await eventually(listens, "both nats-servers listen")
    there = NatsServers(urls=[f"nats://127.0.0.1:{machines.ports['n1']}"])
    async with open_servers(there, CredsText(machines.identity.creds("SYS", "admin")), BOTH) as found:

        async def both_answer() -> bool:
            return len(await found.inspect([])) == 2

        await eventually(both_answer, "both nats-servers know of each other")
        for name in BOTH:  # loads PLATFORM there
            await (await machines.connect(name, machines.identity.creds("PLATFORM", "admin"))).close()
        yield found


def tenant(machines: Machines, name: str, signer: str = "") -> tuple[str, str, str]:
    """Another NATS account: its public key, its JWT, and the creds of a user who may do anything in it."""
    seed, user = nkey.create_seed("account"), nkey.create_seed("user")
    public = nkey.public_key(seed)
    wanted = claims.account_claims(name=name, subject=public, issued_at=NOW, jetstream=True)
    token = claims.encode(wanted, nkey.key_pair(signer or machines.identity.operator_signing_seed))
    nats_part: dict[str, Any] = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
    body = {"iat": NOW, "name": "u", "sub": nkey.public_key(user), "nats": nats_part}
    return public, token, claims.format_creds(claims.encode(body, nkey.key_pair(seed)), user)


async def raw_push(servers: Servers, token: str) -> Any:
    """A server's answer to a JWT that any tool pushes."""
    return json.loads((await servers._connection.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=5)).data)


async def test_what_is_the_same_does_not_differ(machines: Machines, servers: Servers) -> None:
    assert await differing(servers, machines.identity) == []


async def test_a_rotation_lets_both_in_and_then_the_old_one_out(machines: Machines, servers: Servers) -> None:
    identity = Identity.load(machines.identity.directory, write=True)
    old = identity.creds("STATE", "probe")
    connected = await machines.connect("n2", old)
    number = connected.client_id
    identity.begin_rotation("nats-account", now=NOW, urgent=False)
    found = await differing(servers, identity)
    assert {(d.server, d.name, d.what) for d in found} == {
        (s, n, "different") for s in BOTH for n in ("SYS", "PLATFORM", "STATE", "DOCS")
    }
    assert {d.fields for d in found} == {("signing_keys",)}
    await push_all(servers, identity)
    assert await differing(servers, identity) == []
    identity.switch_keys(now=NOW, cookie_seconds=1)
    new = identity.creds("STATE", "probe")
    assert machines.is_let_in(old) == BOTH
    assert machines.is_let_in(new) == BOTH
    await connected.flush()
    assert connected.client_id == number, "nobody was cut"
    identity.note_moved(now=NOW)
    identity.drop_old_keys(now=NOW)
    # Use the new creds from now on: these servers disconnect the fixture's connection.
    there = NatsServers(urls=[f"nats://127.0.0.1:{machines.ports['n1']}"])
    async with open_servers(there, CredsText(identity.creds("SYS", "admin")), BOTH) as again:
        await push_all(again, identity)
        assert await differing(again, identity) == []
        assert machines.is_let_in(old) == set()
        assert machines.is_let_in(new) == BOTH

        async def cut() -> bool:
            return not connected.is_connected

        await eventually(cut, "a client that uses the old key is disconnected")
        await connected.close()
    identity.end_rotation(now=NOW)
    machines.identity = identity


@pytest_asyncio.fixture(loop_scope="module")
async def admin(machines: Machines, servers: Servers) -> AsyncIterator[Servers]:
    """The current administrator."""
    assert servers
    there = NatsServers(urls=[f"nats://127.0.0.1:{machines.ports['n1']}"])
    async with open_servers(there, CredsText(machines.identity.creds("SYS", "admin")), BOTH) as found:
        yield found


async def test_what_is_acknowledged_and_not_used_is_seen_and_repaired(machines: Machines, admin: Servers) -> None:
    """A JWT by a key that the servers do not trust: they acknowledge it, store it and return it, but do not use it."""
    public = machines.identity.account_public_key("PLATFORM")
    body = claims.decode(machines.identity.account_jwt("PLATFORM")) | {"iat": NOW + 500}
    foreign = claims.encode(body, nkey.key_pair(nkey.create_seed("operator")))
    assert "error" not in await raw_push(admin, foreign)
    assert set(await admin.stored(public)) == {foreign}
    with pytest.raises(
        NatskitError, match=r"n1 does not trust the operator's key O.* that signed NATS account PLATFORM"
    ):
        await admin.push([foreign])
    found = await differing(admin, machines.identity)
    assert [(d.server, d.name, d.what, d.fields) for d in found] == [
        (server, "PLATFORM", "kept, not used", ("signed by another key",)) for server in sorted(BOTH)
    ]
    await push_all(admin, machines.identity)
    assert await differing(admin, machines.identity) == []
    assert claims.decode(machines.identity.account_jwt("PLATFORM"))["iat"] > NOW + 500


async def test_another_nats_account_is_deleted_everywhere_and_only_when_nobody_uses_it(
    machines: Machines, admin: Servers
) -> None:
    public, token, creds = tenant(machines, "TENANT")
    await admin.push([token])
    assert machines.is_let_in(creds) == BOTH
    found = await differing(admin, machines.identity)
    assert {(d.server, d.account, d.what) for d in found} == {(server, public, "missing here") for server in BOTH}
    for own in ("PLATFORM", machines.identity.account_public_key("SYS")):
        with pytest.raises(NatskitError, match="one of natskit's own NATS accounts"):
            await deletable(admin, machines.identity, own)
    with pytest.raises(NatskitError, match="no nats-server has a NATS account OTHER; they have TENANT"):
        await deletable(admin, machines.identity, "OTHER")
    connected = await machines.connect("n2", creds)
    # A round of raft takes 4 to 9 s, and two servers that stand at the same moment need another one.
    await eventually(lambda: _has_jetstream(connected), "JetStream has a leader", seconds=60)
    await connected.jetstream().add_stream(name="orders", subjects=["orders.>"])
    assert await deletable(admin, machines.identity, "TENANT") == (
        public,
        "TENANT",
        ["1 clients are connected", "it has the streams orders"],
    )
    await connected.jetstream().delete_stream("orders")
    await connected.close()
    await eventually(lambda: _unused(admin, machines.identity), "nobody uses it")
    await admin.delete(public, machines.identity.operator_signing_seed)
    assert machines.is_let_in(creds) == set()
    assert await differing(admin, machines.identity) == []


async def _has_jetstream(connection: Connection) -> bool:
    return bool(await connection.jetstream().account_info())


async def _unused(admin: Servers, identity: Identity) -> bool:
    return (await deletable(admin, identity, "TENANT"))[2] == []


async def test_only_the_operator_deletes(machines: Machines, admin: Servers) -> None:
    public, token, creds = tenant(machines, "KEPT")
    await admin.push([token])
    with pytest.raises(NatskitError, match=rf"refuses to delete NATS account {public}: .*not trusted"):
        await admin.delete(public, nkey.create_seed("operator"))
    assert machines.is_let_in(creds) == BOTH
    await admin.delete(public, machines.identity.operator_signing_seed)


async def test_a_server_that_is_away_is_named_and_nothing_is_deleted(machines: Machines, admin: Servers) -> None:
    public, token, creds = tenant(machines, "AWAY")
    await admin.push([token])
    machines.servers["n2"].kill()
    try:
        with pytest.raises(NatskitError, match=r"n2 does not answer .*start it"):
            await push_all(admin, machines.identity)
        with pytest.raises(NatskitError, match="n2 does not answer"):
            await admin.delete(public, machines.identity.operator_signing_seed)
        assert machines.is_let_in(creds) == {"n1"}
    finally:
        machines.start("n2")

    async def is_back() -> bool:  # and has what it had
        return await differing(admin, machines.identity) != []

    await eventually(is_back, "n2 is back")
    await admin.delete(public, machines.identity.operator_signing_seed)


async def test_where_nothing_may_be_deleted_the_setting_is_named(tmp_path: Path) -> None:
    identity = Identity.ensure(tmp_path / "identity", now=NOW)
    alone = Machines(tmp_path, identity, {"strict": free_port()}, {"strict": free_port()})
    alone.start("strict")
    try:
        alone.servers["strict"].wait_until_ready()
        there = NatsServers(urls=[f"nats://127.0.0.1:{alone.ports['strict']}"])
        async with open_servers(there, CredsText(identity.creds("SYS", "admin")), ["strict"]) as strict:
            public, token, creds = tenant(alone, "TENANT")
            await strict.push([token])
            with pytest.raises(NatskitError, match=r"nats_resolver_allow_delete = True, then a deploy"):
                await strict.delete(public, identity.operator_signing_seed)
            assert alone.is_let_in(creds) == {"strict"}
    finally:
        alone.servers["strict"].kill()
