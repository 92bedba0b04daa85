"""Between hosts, nothing works without TLS and, where hosts talk to each other, a certificate of the platform."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from natskit.client import Client
from natskit.errors import NatskitError
from natskit.identity.tls import ensure_ca, ensure_host_certificate
from tests.cluster.site import HUBS, NATS, Cluster
from tests.platform.raw import ClosedError, RawClient

ROUTES, PROXY = "routes", "proxy"
NOW = int(time.time())
WEBSOCKET = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
INNER_DOORS = {
    "route": (ROUTES, "nats-1", 6222, b"", b"INFO "),
    "websocket": (PROXY, "nats-1", 5004, WEBSOCKET, b"HTTP/1.1 "),
    "hub-1": (PROXY, "hub-1", 8101, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200"),
    "hub-2": (PROXY, "hub-2", 8101, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200"),
}
"""Whose CA opens it, machine, port, what is said there, and how an answer begins."""

MakeContext = Callable[[Cluster, Path], ssl.SSLContext | None]


def _trusting(cluster: Cluster) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cluster.ca_file)
    context.load_verify_locations(cluster.root / "identity" / ROUTES / "tls" / "ca.crt")
    return context


def _with_certificate(cluster: Cluster, ca: Path, scratch: Path) -> ssl.SSLContext:
    certificate, key = ensure_host_certificate(ca, "nats-9", ["nats-9", "proxy.natskit"], now=NOW)
    file = scratch / "both.pem"
    file.write_text(certificate + key)
    context = _trusting(cluster)
    context.load_cert_chain(file)
    return context


def _foreign(cluster: Cluster, scratch: Path) -> ssl.SSLContext:
    """A certificate like natskit's, of another CA."""
    return _with_certificate(cluster, scratch / "foreign", scratch)


def _own(cluster: Cluster, scratch: Path, part: str = "") -> ssl.SSLContext:
    """A certificate of the platform's CA, or of a part's CA, made in a copy of its folder so that nothing is left
    behind."""
    for name in ("ca.crt", "ca.key"):
        copy = scratch / "own" / "tls" / name
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        copy.touch(mode=0o600)
        copy.write_bytes((cluster.root / "identity" / part / "tls" / name).read_bytes())
    return _with_certificate(cluster, scratch / "own", scratch)


STRANGERS: dict[str, MakeContext] = {
    "without TLS": lambda _cluster, _scratch: None,
    "without a certificate": lambda cluster, _: _trusting(cluster),
    "with a foreign CA's certificate": _foreign,
}


def hear(address: str, port: int, context: ssl.SSLContext | None, words: bytes) -> bytes:
    """The first answer on a connection after we have sent something; empty if the server closes it."""
    with contextlib.suppress(ssl.SSLError, ConnectionError), contextlib.ExitStack() as opened:
        connection: socket.socket = opened.enter_context(socket.create_connection((address, port), timeout=10))
        if context is not None:
            connection = opened.enter_context(context.wrap_socket(connection, server_hostname=address))
        # With TLS 1.3 the client is done before the server has looked at its certificate: the answer tells.
        connection.sendall(words)
        return connection.recv(4096)
    return b""


@pytest.mark.parametrize("door", INNER_DOORS)
def test_each_door_opens_to_those_it_is_for(cluster: Cluster, tmp_path: Path, door: str) -> None:
    """Without this, the refusals below would prove nothing."""
    part, machine, port, words, answer = INNER_DOORS[door]
    assert hear(cluster.address(machine), port, _own(cluster, tmp_path, part), words).startswith(answer)


@pytest.mark.parametrize("part", ["", ROUTES, PROXY])
@pytest.mark.parametrize("door", INNER_DOORS)
def test_and_to_no_other_host_of_the_platform(cluster: Cluster, tmp_path: Path, door: str, part: str) -> None:
    """A client of the route port may publish as anybody and hears everything. A client of a hub or of the WebSocket
    listener may claim any address for a browser."""
    own, machine, port, words, _ = INNER_DOORS[door]
    if part != own:
        assert hear(cluster.address(machine), port, _own(cluster, tmp_path, part), words) == b""


def test_a_hub_is_not_let_in_by_the_other_one(cluster: Cluster, tmp_path: Path) -> None:
    """Its certificate opens only its own port, for the deploy's health check."""
    answers = {}
    for holder in HUBS:
        files = "/var/lib/natskit/hub-1/tls"
        (tmp_path / holder).touch(mode=0o600)
        (tmp_path / holder).write_text(cluster.sh(holder, f"cat {files}/host.crt {files}/host.key").stdout)
        context = _trusting(cluster)
        context.load_cert_chain(tmp_path / holder)
        for door in HUBS:
            _, machine, port, words, answer = INNER_DOORS[door]
            answers[holder, door] = hear(cluster.address(machine), port, context, words).startswith(answer)
    assert {pair for pair, answered in answers.items() if answered} == {(hub, hub) for hub in HUBS}


def test_no_host_but_its_own_has_the_key_of_a_door(cluster: Cluster) -> None:
    """A certificate that opens a port is only on the hosts that use it, and its CA only on those that check it."""
    holders = {ROUTES: {"nats-1", "nats-2", "nats-3"}, PROXY: {"nats-1", "nats-2", "nats-3", "hub-1", "hub-2"}}
    keys = {ROUTES: holders[ROUTES], PROXY: {"proxy-1"}}
    for part, machines in holders.items():
        tls = cluster.root / "identity" / part / "tls"
        authority = (tls / "ca.crt").read_text()
        issued = [path.read_text() for path in (tls / "hosts").glob("*.key")]
        for machine in cluster.machines:
            held = cluster.sh(machine, "cat /var/lib/natskit/*/tls/* 2>/dev/null", check=False).stdout
            assert (authority in held) == (machine in machines), (part, machine)
            assert any(key in held for key in issued) == (machine in keys[part]), (part, machine)


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("door", INNER_DOORS)
def test_a_stranger_is_refused(cluster: Cluster, tmp_path: Path, door: str, stranger: str) -> None:
    _, machine, port, words, answer = INNER_DOORS[door]
    said = hear(cluster.address(machine), port, STRANGERS[stranger](cluster, tmp_path), words)
    assert not said.startswith(answer)
    # A plain word to a TLS port may be answered, in the clear, by just that.
    assert said == b"" or said[0] == 0x15 or b"400" in said.split(b"\r\n")[0], said


@pytest.mark.parametrize("server", NATS)
def test_a_client_without_tls_gets_no_further_than_hello(cluster: Cluster, server: str) -> None:
    creds = Path(cluster.info["creds"]["platform_admin"])
    with pytest.raises(ClosedError):
        RawClient.tcp(cluster.address(server), 4222, creds)
    cluster.tcp(creds, server).close()


async def test_a_client_does_not_believe_a_foreign_ca(cluster: Cluster, tmp_path: Path) -> None:
    """A server that impersonates another one gets no credentials. Here the platform is the impostor."""
    foreign = ensure_ca(tmp_path, now=NOW)
    creds = Path(cluster.info["creds"]["platform_admin"])
    with pytest.raises(ssl.SSLCertVerificationError):
        RawClient.tcp(cluster.address("nats-1"), 4222, creds, ca_file=foreign)
    with pytest.raises(NatskitError):
        await Client.admin(cluster.info["nats_urls"], creds, ca_file=foreign, patience=3)


def test_the_servers_say_so_themselves(cluster: Cluster) -> None:
    for routes in cluster.variables("cluster"):
        assert (routes["tls_required"], routes["tls_verify"]) == (True, True)
        assert len(routes["urls"]) == len(NATS) - 1
    assert cluster.variables("tls_required") == [True] * len(NATS)
    for answer in map(json.loads, cluster.monitor("connz?limit=1000")):
        assert all(connection.get("tls_version") for connection in answer["connections"]), answer


def test_no_port_but_these_is_open(cluster: Cluster) -> None:
    """To other machines, besides 22, which deploys use. 127.0.0.11 is Docker's own."""
    expected = {"nats": {4222, 5004, 6222}, "hub": {8101}, "proxy": {80, 443}, "runner": set[int]()}
    for machine in cluster.machines:
        listed = cluster.sh(machine, "ss --no-header --listening --tcp --numeric").stdout.splitlines()
        addresses = [line.split()[3].rpartition(":") for line in listed]
        # The test of cloud metadata may still be listening.
        opened = {int(port) for host, _, port in addresses if not host.startswith(("127.", "[::1]", "169.254."))}
        assert opened <= {22} | expected[machine.partition("-")[0]], machine
