"""Three nats-servers with TLS everywhere: which clients they accept, which servers a client trusts, and reconnects."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

import natskit.bus.connection
from natskit.bus.connection import Connection, connect
from natskit.bus.permissions import inbox_prefix
from natskit.bus.servers import NatsServers
from natskit.client import Client
from natskit.errors import ConnectionLostError, NatskitError
from natskit.identity.identity import Identity
from natskit.identity.tls import ensure_ca, ensure_host_certificate
from tests.kit.nats import NatsServer
from tests.kit.ports import free_port
from tests.kit.wait import eventually

NOW = int(time.time())
MEMBERS = (1, 2, 3)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")


def address(number: int) -> str:
    """Each server has its own address, as on hosts, and a certificate for that address alone."""
    return f"127.0.0.{number}"


class Cluster:
    """nats-servers by number. Those in ``MEMBERS`` form a cluster."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.identity = Identity.ensure(root / "identity", now=NOW)
        self.port, self.route_port, self.monitor_port = free_port(), free_port(), free_port()
        self.ca = ensure_ca(root, now=NOW)
        self.servers: dict[int, NatsServer] = {}
        self.connections: list[Connection] = []
        self.creds = {}
        for account, role in (("PLATFORM", "hub"), ("PLATFORM", "admin"), ("SYS", "admin")):
            path = self.creds[account, role] = root / f"{account}-{role}.creds"
            path.touch(mode=0o600)
            path.write_text(self.identity.creds(account, role))

    def url(self, number: int) -> str:
        return f"tls://{address(number)}:{self.port}"

    def certificate(self, number: int, ca_root: Path, host: str) -> str:
        ensure_host_certificate(ca_root, f"nats-{number}", [host], now=NOW)
        files = ca_root / "tls" / "hosts" / f"nats-{number}"
        return f'cert_file: "{files}.crt", key_file: "{files}.key", ca_file: "{ca_root / "tls" / "ca.crt"}"'

    def start(self, number: int, *, ca_root: Path | None = None, host: str = "") -> None:
        """Start a server again, or for the first time, with a certificate of the CA in ``ca_root`` for ``host``."""
        folder = self.root / f"nats-{number}"
        folder.mkdir(exist_ok=True)
        tls = self.certificate(number, ca_root or self.root, host or address(number))
        routes = ", ".join(f"nats-route://{address(n)}:{self.route_port}" for n in MEMBERS if n != number)
        preload = ", ".join(
            f"{self.identity.account_public_key(n)}: {self.identity.account_jwt(n)}" for n in ("SYS", "AUTH")
        )
        self.servers.setdefault(number, NatsServer(folder)).start(f"""
        server_name: nats-{number}
        host: {address(number)}
        port: {self.port}
        http: {address(number)}:{self.monitor_port}
        operator: {self.identity.operator_jwt}
        system_account: {self.identity.account_public_key("SYS")}
        resolver: {{ type: full, dir: "{folder}/jwt" }}
        resolver_preload: {{ {preload} }}
        tls: {{ {tls} }}
        cluster: {{
          name: test, host: {address(number)}, port: {self.route_port}, routes: [{routes}],
          tls: {{ {tls}, verify: true }}
        }}
        """)

    def ask(self, number: int, page: str) -> Any:
        with urllib.request.urlopen(f"http://{address(number)}:{self.monitor_port}/{page}", timeout=5) as answer:
            return json.load(answer)

    async def whole(self) -> None:
        """Start the servers that a test has killed, and wait until all servers have found each other."""
        for number in MEMBERS:
            if number not in self.servers or not self.servers[number].is_running:
                self.start(number)

        async def routed() -> bool:
            seen = [{r["remote_name"] for r in self.ask(n, "routez")["routes"]} for n in MEMBERS]
            return seen == [{f"nats-{m}" for m in MEMBERS if m != n} for n in MEMBERS]

        await eventually(routed, "the cluster")

    async def connect(self, role: str, *numbers: int, **options: Any) -> Connection:
        connection = await connect(
            NatsServers(urls=[self.url(n) for n in numbers], ca_file=options.pop("ca_file", self.ca)),
            name=role,
            inbox_prefix=inbox_prefix(role),  # type: ignore[arg-type]
            creds=self.creds["PLATFORM", role],
            timeout=options.pop("timeout", 10),
            **options,
        )
        self.connections.append(connection)
        return connection

    async def close(self) -> None:
        for connection in self.connections:
            await connection.close()
        for server in self.servers.values():
            server.kill()


def where(connection: Connection) -> int:
    url = connection.connected_url
    assert url is not None
    return int(str(url.hostname).rpartition(".")[2])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        await cluster.whole()
        resolved = resolver(cluster, ",".join(cluster.url(n) for n in MEMBERS))
        assert resolved.returncode == 0, resolved.stderr
        yield cluster
    finally:
        await cluster.close()
        for number in MEMBERS:
            print(f"---- nats-{number}\n{cluster.servers[number].log()[-4000:]}")


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def whole(cluster: Cluster) -> None:
    await cluster.whole()


def resolver(cluster: Cluster, urls: str, *options: str) -> subprocess.CompletedProcess[str]:
    token = cluster.root / "PLATFORM.jwt"
    token.write_text(cluster.identity.account_jwt("PLATFORM"))
    options = options or ("--ca", str(cluster.ca))
    command = [sys.executable, "-m", "natskit.ops.account_resolver", *options, "--server", "nats-1", urls, str(token)]
    creds = cluster.creds["SYS", "admin"].read_text()
    return subprocess.run(command, input=creds, capture_output=True, text=True, timeout=30, check=False)


async def test_claims_pushed_to_one_server_reach_all_of_them(cluster: Cluster) -> None:
    key = cluster.identity.account_public_key("PLATFORM")

    async def everywhere() -> bool:
        return all((cluster.root / f"nats-{n}" / "jwt" / f"{key}.jwt").exists() for n in MEMBERS)

    await eventually(everywhere, "the claims on each server")


async def test_claims_are_pushed_while_a_server_is_down(cluster: Cluster) -> None:
    down = f"tls://127.0.0.9:{cluster.port}"
    pushed = resolver(cluster, f"{down},{down},{down},{cluster.url(2)}")
    assert pushed.returncode == 0, pushed.stderr
    refused = resolver(cluster, cluster.url(1), "--ca", str(cluster.creds["SYS", "admin"]))
    assert refused.returncode == 1
    assert "holds no CA" in refused.stderr


async def test_a_client_comes_back_on_another_server(cluster: Cluster) -> None:
    listener = await cluster.connect("hub", *MEMBERS)
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def on_message(message: Msg) -> None:
        heard.put_nowait(message.data)

    await listener.subscribe("hub.admin", "hub", cb=on_message)
    await listener.flush()
    for death in range(2):
        first = where(listener)
        speaker = await cluster.connect("admin", *(n for n in MEMBERS if n != first))
        back = asyncio.Event()
        listener.on_reconnect(back.set)
        cluster.servers[first].kill()
        await asyncio.wait_for(back.wait(), 5)
        assert where(listener) != first

        async def speak(speaker: Connection = speaker, text: bytes = str(death).encode()) -> bool:
            await speaker.publish("hub.admin", text)
            return await asyncio.wait_for(heard.get(), 0.1) == text

        await eventually(speak, "a message after the death of a server", 5)
        while not heard.empty():
            heard.get_nowait()
        await cluster.whole()


async def test_two_connections_stay_apart(cluster: Cluster) -> None:
    """Whichever server dies, a hub keeps one of its connections for requests."""
    for _ in range(4):  # once it could be chance
        one = await cluster.connect("hub", *MEMBERS)
        other = await cluster.connect("hub", *MEMBERS, apart_from=one)
        one.apart_from = other
        assert where(one) != where(other)
        for dies in (one, other):
            back = asyncio.Event()
            dies.on_reconnect(back.set)
            cluster.servers[where(dies)].kill()
            await asyncio.wait_for(back.wait(), 10)
            assert where(one) != where(other)
            await cluster.whole()
    last = where(one)
    back = asyncio.Event()
    other.on_reconnect(back.set)
    for number in MEMBERS:
        if number != last:
            cluster.servers[number].kill()
    await asyncio.wait_for(back.wait(), 10)
    assert where(other) == last, "where there is no other, it is not avoided"
    await other.move_apart()
    assert other.is_connected, "nor left"
    await cluster.whole()
    back.clear()
    await other.move_apart()
    await asyncio.wait_for(back.wait(), 10)
    assert where(other) != where(one) == last


async def test_creds_are_replaced_between_two_looks_at_them(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner replaces them while the agent connects. The seed and the JWT must always be of the same user."""
    creds, told = tmp_path / "creds", list[str]()
    creds.write_text(cluster.identity.creds("PLATFORM", "admin"))
    connection = await connect(
        NatsServers(urls=[cluster.url(1)], ca_file=cluster.ca),
        name="replaced",
        inbox_prefix=inbox_prefix("admin"),
        creds=creds,
        on_status=lambda status, _reason: told.append(status),
    )
    cluster.connections.append(connection)
    seed_of: Any = connection._read_creds_user_nkey

    def seed_and_replace(source: Any) -> bytearray:
        seed: bytearray = seed_of(source)
        creds.write_text(cluster.identity.creds("PLATFORM", "hub"))
        return seed

    monkeypatch.setattr(connection, "_read_creds_user_nkey", seed_and_replace)
    back = asyncio.Event()
    connection.on_reconnect(back.set)
    told.clear()
    await connection.force_reconnect()
    await asyncio.wait_for(back.wait(), 10)
    assert told.count("connecting") == 1, "let in at once"


async def test_a_server_that_says_nothing_any_more_is_left(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natskit.bus.connection, "PING_INTERVAL", 0.2)
    client = await cluster.connect("admin", *MEMBERS)
    first, back = where(client), asyncio.Event()
    client.on_reconnect(back.set)
    with cluster.servers[first].frozen():
        # Three pings, a second for the end of the TLS session, and a first attempt that may be this server's again.
        await asyncio.wait_for(back.wait(), 3 * 0.2 + 1 + natskit.bus.connection.CONNECT_TIMEOUT + 3)
        assert where(client) != first


async def test_only_the_servers_of_the_list_are_used(cluster: Cluster) -> None:
    client = await cluster.connect("admin", 1)
    back = asyncio.Event()
    client.on_reconnect(back.set)
    cluster.servers[1].kill()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(back.wait(), 1)
    assert [str(uri.uri.hostname) for uri in client.server_pool] == [address(1)]
    cluster.start(1)
    await asyncio.wait_for(back.wait(), 10)
    assert where(client) == 1


async def test_a_client_without_the_ca_says_so(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ConnectionLostError, match=r"certificate of 127\.0\.0\.1:\d+ is refused: .*the machine's list"):
        await cluster.connect("admin", 1, ca_file=None, timeout=1)
    with pytest.raises(ConnectionLostError, match=r"is refused: .*ca\.crt"):
        await cluster.connect("admin", *MEMBERS, ca_file=ensure_ca(tmp_path, now=NOW), timeout=1)
    with pytest.raises(NatskitError, match="holds no CA"):
        await cluster.connect("admin", 1, ca_file=cluster.creds["SYS", "admin"])


@pytest.mark.parametrize("wrong", ["ca", "address"])
async def test_a_false_server_is_not_believed(cluster: Cluster, tmp_path: Path, wrong: str) -> None:
    if wrong == "ca":
        cluster.start(4, ca_root=tmp_path)
    else:
        cluster.start(4, host=address(1))
    try:

        async def listens() -> bool:
            socket.create_connection((address(4), cluster.port), 0.2).close()
            return True

        await eventually(listens, "nats-4")
        reason = "unable to get local issuer" if wrong == "ca" else "IP address mismatch"
        with pytest.raises(ConnectionLostError, match=f"certificate of 127.0.0.4:.* is refused: .*{reason}"):
            await cluster.connect("admin", 4, timeout=1)
        for _ in range(5):  # whichever is tried first
            assert where(await cluster.connect("admin", 4, 2)) == 2
    finally:
        cluster.servers[4].kill()


async def test_a_server_of_a_foreign_ca_does_not_join(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(5, ca_root=tmp_path)
    try:

        async def refused() -> bool:
            return "TLS route handshake error" in cluster.servers[5].log()

        await eventually(refused, "the refusal")
        for number in MEMBERS:
            assert "nats-5" not in {r["remote_name"] for r in cluster.ask(number, "routez")["routes"]}
        assert cluster.ask(5, "routez")["num_routes"] == 0
    finally:
        cluster.servers[5].kill()


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_nothing_is_said_to_a_server_without_tls(cluster: Cluster, scheme: str) -> None:
    said = bytearray()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"nonce":"abc","auth_required":true,"max_payload":1048576}\r\n')
        said.extend(await reader.read())
        writer.close()

    async with await asyncio.start_server(pretend, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        servers = NatsServers(urls=[f"{scheme}://127.0.0.1:{port}"], ca_file=cluster.ca)
        with pytest.raises(ConnectionLostError, match=f"127.0.0.1:{port} does not speak TLS"):
            await connect(
                servers,
                name="x",
                inbox_prefix=inbox_prefix("admin"),
                creds=cluster.creds["PLATFORM", "admin"],
                timeout=1,
            )
    assert said == b""


async def test_the_operator_names_one_server_or_all(cluster: Cluster) -> None:
    creds = cluster.creds["PLATFORM", "admin"]
    for urls in (cluster.url(3), [f"tls://127.0.0.9:{cluster.port}", cluster.url(3)]):
        async with await Client.admin(urls, creds, ca_file=cluster.ca) as client:
            assert where(client.connection) == 3


def test_each_file_of_the_cluster_is_private(cluster: Cluster) -> None:
    hosts = cluster.root / "tls" / "hosts"
    assert {os.stat(path).st_mode & 0o777 for path in hosts.iterdir()} == {0o600}
