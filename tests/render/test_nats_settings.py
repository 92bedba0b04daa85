"""Each setting of nats-server, rendered, checked and started by the real one; and what it would refuse, refused before.

``nats-server -t`` reads a configuration and no more: what does not fit together is only refused when it starts.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from natskit.config import referenced_files
from natskit.config.render import nats_values, render
from natskit.config.settings import Settings, load
from natskit.config.topology import Topology
from natskit.errors import SettingsError
from natskit.identity.identity import NATS_ACCOUNTS, Identity
from natskit.identity.tls import ensure_ca, ensure_server_certificate
from tests.kit.nats import PROGRAM, READY, NatsServer
from tests.kit.ports import free_port, free_ports
from tests.kit.wait import wait_for
from tests.render.test_configs import give_certificate

KEY, OTHER_KEY = "k" * 32, "12345678901234567890123456789012e4"


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """An identity with a CA."""
    directory = tmp_path_factory.mktemp("identity")
    Identity.ensure(directory, now=int(time.time()))
    ensure_ca(directory, now=int(time.time()))
    return Identity.load(directory)


@pytest.fixture
def own(tmp_path: Path, identity: Identity) -> dict[str, str]:
    """A user's own certificate, on the host."""
    certificate, key = ensure_server_certificate(identity.directory, "own", ["bus.example.org"], now=int(time.time()))
    (tmp_path / "own.crt").write_text(certificate)
    (tmp_path / "own.key").write_text(key)
    return {"certificate": str(tmp_path / "own.crt"), "key": str(tmp_path / "own.key")}


def own_ports() -> dict[str, int]:
    """A port for each listener that every configuration has."""
    keys = ("nats_port", "nats_websocket_port", "nats_monitor_port", "nats_cluster_port")
    return dict(zip(keys, free_ports(len(keys)), strict=True))


def written(tmp_path: Path, identity: Identity, given: dict[str, Any]) -> tuple[Settings, Path]:
    """The configuration for these settings, with all the files that it names."""
    settings = load({"platform_root": str(tmp_path), "nats_host": "127.0.0.1"} | own_ports() | given, "inventory")
    for folder in (tmp_path / "nats", *map(Path, settings.nats_writable)):
        folder.mkdir(parents=True, exist_ok=True)
    give_certificate(identity.directory, tmp_path / "nats")
    for account in NATS_ACCOUNTS:
        jwt = tmp_path / "nats" / "jwt" / f"{identity.account_public_key(account)}.jwt"
        jwt.write_text(identity.account_jwt(account))
    for number, remote in enumerate(settings.nats_leafnode_remotes):
        if remote.credentials:
            (tmp_path / "nats" / f"leafnode-{number}.creds").write_text(referenced_files.creds(remote.credentials))
    path = tmp_path / "nats" / "nats-server.conf"
    site = Topology((settings,), (settings,), (settings,), (settings,))
    path.write_text(render("nats-server.conf", nats_values(settings, site, identity)))
    return settings, path


def systemd_reads(text: str) -> dict[str, str]:
    """systemd's reading of an ``EnvironmentFile`` like natskit's: it removes one pair of quotes."""
    return {name: value[1:-1] for name, _, value in (line.partition("=") for line in text.splitlines())}


def start(path: Path, environment: dict[str, str]) -> str:
    """Start nats-server and stop it as soon as it is ready. Returns its log, which may be in a separate file."""
    server = NatsServer(path.parent, name=path.stem)
    own_log = path.parent / "log" / "nats-server.log"

    def said() -> str:
        return server.said() + (own_log.read_text() if own_log.exists() else "")

    try:
        server.start_as_configured(os.environ | environment)
        wait_for(lambda: READY in said() or not server.is_running, "nats-server is ready")
        return said()
    finally:
        server.kill()


GATEWAYS = [{"name": "west", "urls": ["tls://west.example.org:7222"]}, {"name": "natskit", "urls": ["tls://a:7222"]}]
REMOTE = {"urls": ["tls://hub.example.org:7422"]}

ROUTE: dict[str, Any] = {"nats_cluster_routes": ["10.9.9.9:6222"]}
ACCEPTED: list[dict[str, Any]] = [
    {"nats_client_advertise": "bus.example.org:4222", "nats_server_tags": ["az:a", "ssd"]},
    {"nats_server_metadata": {"rack": 'the "old" one'}, "nats_auth_timeout": 2.5, "nats_tls_timeout": 3},
    {"nats_cluster_routes": ["10.9.9.9:6222"], "nats_cluster_advertise": "10.0.0.1:6222"},
    {"nats_cluster_routes": "10.9.9.9:6222,10.9.9.8:6222", "nats_cluster_pool_size": 5},
    *(
        {"nats_cluster_routes": ["10.9.9.9:6222"], "nats_cluster_pool_size": -1, "nats_cluster_compression": mode}
        for mode in ("off", "accept", "s2_auto", "s2_fast", "s2_better", "s2_best")
    ),
    {"nats_cluster_routes": ["10.9.9.9:6222"], "nats_cluster_no_advertise": False},
    {"nats_leafnode_port": 0, "nats_leafnode_advertise": "leaf.example.org:7422", "nats_leafnode_compression": "off"},
    {"nats_leafnode_port": 0, "nats_leafnode_min_version": "2.10.0"},
    {"nats_leafnode_remotes": [REMOTE | {"compression": "s2_best", "hub": True}]},
    {"nats_leafnode_remotes": [REMOTE | {"deny_imports": ["a.>"], "deny_exports": "b,c", "handshake_first": True}]},
    {"nats_leafnode_remotes": '[{"urls": ["wss://hub.example.org:443/leaf"], "account": "AUTH"}]'},
    ROUTE | {"nats_gateway_port": 0, "nats_gateways": GATEWAYS, "nats_gateway_advertise": "10.0.0.1:7222"},
    ROUTE | {"nats_gateway_port": 0, "nats_gateways": GATEWAYS, "nats_gateway_reject_unknown": True},
    {"nats_gateway_port": 0, "nats_gateways": GATEWAYS, "nats_jetstream": False},
    {"nats_gateway_port": 0, "nats_cluster_routes": ["10.9.9.9:6222"]},
    {"nats_mqtt_port": 0},
    {"nats_mqtt_port": 0, "nats_mqtt_ack_wait": 10, "nats_mqtt_max_ack_pending": 100, "nats_mqtt_stream_replicas": 1},
    {"nats_mqtt_port": 0, "nats_mqtt_domain": "hub"},
    {"nats_resolver": "full", "nats_resolver_allow_delete": True, "nats_resolver_interval": 60},
    {"nats_resolver": "full", "nats_resolver_limit": 5000, "nats_resolver_timeout": 2.5},
    {"nats_resolver": "cache", "nats_resolver_ttl": 3600, "nats_resolver_limit": 100},
    {"nats_resolver": "memory"},
    {"nats_max_subscriptions": 10_000, "nats_max_subscription_tokens": 16, "nats_max_closed_clients": 0},
    {"nats_no_fast_producer_stall": True, "nats_ping_max": 5, "nats_lame_duck_grace_period": 0},
    {"nats_jetstream": False},
    {"nats_jetstream_domain": "hub", "nats_jetstream_max_outstanding_catchup": 32 * 1024**2},
    {"nats_jetstream_max_buffered_msgs": 500, "nats_jetstream_max_buffered_size": 1024**2},
    {"nats_jetstream_request_queue_limit": 1000, "nats_jetstream_unique_tag": "az:", "nats_server_tags": "az:a"},
    {"nats_jetstream_limits": {"max_ack_pending": 100, "max_ha_assets": 10, "max_request_batch": 50}},
    {
        "nats_jetstream_limits": {
            "duplicate_window": 60,
            "batch": {"max_inflight_per_stream": 5, "max_inflight_total": 50, "max_msgs": 100, "timeout": 5},
        }
    },
    {"nats_trace": True, "nats_max_traced_msg_len": 100, "nats_logtime_utc": True},
    {"nats_log_to_file": True, "nats_log_size_limit": 1024**2, "nats_log_max_files": 3},
    {"nats_connect_error_reports": 10, "nats_reconnect_error_reports": 2},
    {"nats_section_extra": {"jetstream": "meta_compact: 1000\nmax_concurrent_io: 8"}},
    {"nats_section_extra": {"tls": "connection_rate_limit: 50"}},
    {"nats_section_extra": '{"websocket": "headers { X-Served-By: natskit }", "resolver": "hard_delete: false"}',
     "nats_resolver_allow_delete": True},
    {"nats_cluster_routes": ["10.9.9.9:6222"], "nats_section_extra": {"cluster": "connect_retries: 5"}},
    {"nats_leafnode_port": 0, "nats_section_extra": {"leafnodes": "no_advertise: true"}},
    ROUTE | {"nats_gateway_port": 0, "nats_section_extra": {"gateway": "connect_retries: 5"}},
    {"nats_mqtt_port": 0, "nats_section_extra": {"mqtt": "reject_qos2_publish: true"}},
]  # fmt: skip

LISTENERS: dict[str, dict[str, Any]] = {
    "client": {},
    "websocket": {},
    "cluster": ROUTE,
    "leafnode": {"nats_leafnode_port": 0},
    "gateway": ROUTE | {"nats_gateway_port": 0},
    "mqtt": {"nats_mqtt_port": 0},
}


def with_ports(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with a free port in place of each port 0."""
    return {key: free_port() if key.endswith("_port") and value == 0 else value for key, value in given.items()}


def accepted(tmp_path: Path, identity: Identity, given: dict[str, Any]) -> str:
    """The configuration, after nats-server has checked it and started with it."""
    settings, path = written(tmp_path, identity, with_ports(given))
    environment = systemd_reads(referenced_files.environment_file(referenced_files.jetstream_environment(settings)))
    checked = subprocess.run(
        [PROGRAM, "-t", "-c", path], capture_output=True, text=True, timeout=30, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    log = start(path, environment)
    assert READY in log, log
    return path.read_text()


@pytest.mark.parametrize("given", ACCEPTED, ids=lambda given: " ".join(given).replace("nats_", ""))
def test_nats_server_starts_with(tmp_path: Path, identity: Identity, given: dict[str, Any]) -> None:
    accepted(tmp_path, identity, given)


@pytest.mark.parametrize("listener", LISTENERS)
def test_each_listener_may_have_tls_of_its_own(
    tmp_path: Path, identity: Identity, own: dict[str, str], listener: str
) -> None:
    tls: dict[str, Any] = {**own, "timeout": 4, "min_version": "1.3"}
    if listener not in ("client", "websocket"):
        tls |= {"ca": str(identity.directory / "tls" / "ca.crt"), "pinned_certs": ["ab" * 32]}
    if listener in ("leafnode", "mqtt"):
        tls |= {"verify": True}
    if listener == "leafnode":
        tls |= {"handshake_first": True}
    text = accepted(tmp_path, identity, LISTENERS[listener] | {f"nats_{listener}_tls": tls})
    assert text.count(own["certificate"]) == 1
    assert text.count('min_version: "1.3"') == 1


def test_clients_get_the_certificate_they_ask_for(tmp_path: Path, identity: Identity, own: dict[str, str]) -> None:
    settings, path = written(tmp_path, identity, {"nats_client_tls": own | {"min_version": "1.2"}})
    server = NatsServer(path.parent, name=path.stem).start_as_configured()
    try:
        server.wait_until_ready()
        for name, subject in (("bus.example.org", "bus.example.org"), ("127.0.0.1", "127.0.0.1")):
            assert _shown(settings.nats_port, name, identity.directory / "tls" / "ca.crt") == {subject}
    finally:
        server.kill()


def _shown(port: int, name: str, ca: Path) -> set[str]:
    """The names in the certificate that a client gets when it asks for this name."""
    import ssl

    context = ssl.create_default_context(cafile=str(ca))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        assert plain.recv(4096).startswith(b"INFO")
        with context.wrap_socket(plain, server_hostname=name) as shaken:
            certificate = shaken.getpeercert()
            assert certificate
            return {str(pair[1]) for pair in certificate["subjectAltName"]}


def test_the_creds_of_a_leafnode_are_beside_the_configuration(tmp_path: Path, identity: Identity) -> None:
    creds = tmp_path / "given.creds"
    creds.write_text(identity.creds("STATE", "probe"))
    text = accepted(tmp_path, identity, {"nats_leafnode_remotes": [REMOTE | {"credentials": str(creds)}]})
    assert f'"{tmp_path}/nats/leafnode-0.creds"' in text
    assert identity.account_public_key("PLATFORM") in text


@pytest.mark.parametrize("cipher", ["chachapoly", "aes", None])
def test_the_key_of_jetstream_is_not_in_the_configuration(
    tmp_path: Path, identity: Identity, cipher: str | None
) -> None:
    files = {"nats_jetstream_key_file": KEY, "nats_jetstream_previous_key_file": OTHER_KEY}
    for name, key in files.items():
        (tmp_path / name).write_text(key + "\n")
    given = {name: str(tmp_path / name) for name in files}
    text = accepted(tmp_path, identity, given | {"nats_jetstream_cipher": cipher})
    assert KEY not in text
    assert OTHER_KEY not in text
    assert f"cipher: {cipher or 'chachapoly'}" in text


def test_on_a_cluster_nats_server_cannot_use_the_previous_key(tmp_path: Path, identity: Identity) -> None:
    """The reason why topology.py refuses it. If this fails, nats-server has learned it (recoverAEK in its code)."""
    for name, key in (("one", KEY), ("two", OTHER_KEY)):
        (tmp_path / name).write_text(key)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")

    def says(given: dict[str, str]) -> str:
        settings, path = written(tmp_path, identity, {"nats_cluster_routes": ["10.9.9.9:6222"]} | given)
        variables = systemd_reads(referenced_files.environment_file(referenced_files.jetstream_environment(settings)))
        return start(path, variables)

    assert READY in says({"nats_jetstream_key_file": one})
    assert "message authentication failed" in says(
        {"nats_jetstream_key_file": two, "nats_jetstream_previous_key_file": one}
    )


REFUSED_BY_BOTH: list[tuple[dict[str, Any], str, str, str]] = [
    ({"nats_max_payload": 2 * 1024**2, "nats_max_pending": 1024**2}, "must not be higher than nats_max_pending",
     "max_payload: 2MB, max_pending: 1MB", "cannot be higher than max_pending"),
    ({"nats_lame_duck_grace_period": 30}, "nats_lame_duck_grace_period must be shorter than nats_lame_duck_duration",
     'lame_duck_duration: "30s", lame_duck_grace_period: "30s"', "should be strictly lower than lame duck duration"),
    ({"nats_gateways": GATEWAYS}, "nats_gateways needs nats_gateway_port",
     "gateway { name: natskit, gateways: [{name: a, urls: [nats://a:7222]}] }", "has no port specified"),
    ({"nats_leafnode_remotes": [REMOTE, REMOTE]}, "the same URLs, account and credentials twice",
     "leafnodes { remotes: [{urls: [nats://a:7422]}, {urls: [nats://a:7422]}] }", "duplicate remote"),
    ({"nats_leafnode_remotes": [{"urls": ["tls://a:7422", "wss://b:443"]}]},
     "nats_leafnode_remotes[0]: urls: nats-server does not accept a mix of ws(s):// and other URLs",
     "leafnodes { remotes: [{urls: [nats://a:7422, ws://b:80]}] }", "cannot have a mix of websocket"),
    ({"nats_leafnode_port": 7422, "nats_leafnode_min_version": "2.7.0"}, "nats-server accepts 2.8.0 or later",
     'leafnodes { port: 7422, min_version: "2.7.0" }', "minimum version should be at least 2.8.0"),
    ({"nats_resolver": "cache", "nats_resolver_allow_delete": True},
     "nats_resolver_allow_delete needs nats_resolver = full",
     'resolver { type: cache, dir: "DIR", allow_delete: true }', "CACHE does not accept allow_delete"),
    ({"nats_resolver": "cache", "nats_resolver_interval": 60}, "nats_resolver_interval needs nats_resolver = full",
     'resolver { type: cache, dir: "DIR", interval: "60s" }', "CACHE does not accept sync"),
    ({"nats_resolver": "full", "nats_resolver_ttl": 60}, "nats_resolver_ttl needs nats_resolver = cache",
     'resolver { type: full, dir: "DIR", ttl: "60s" }', "FULL does not accept ttl"),
    ({"nats_jetstream_domain": "a.b"}, "nats_jetstream_domain = 'a.b': string should match pattern",
     "jetstream { domain: a.b, store_dir: DIR }", "invalid domain name"),
    ({"nats_max_subscription_tokens": 256},
     "nats_max_subscription_tokens = 256: input should be less than or equal to 255",
     "max_subscription_tokens: 256", "value is too big"),
    ({"nats_mqtt_max_ack_pending": 65_536, "nats_mqtt_port": 1883}, "nats_mqtt_max_ack_pending = 65536",
     "mqtt { port: 1883, max_ack_pending: 65536 }", "should in [0..65535] range"),
    ({"nats_cluster_compression": "gzip"}, "nats_cluster_compression = 'gzip': input should be 'off', 'accept'",
     "cluster { name: a, port: 6222, compression: gzip }", "unsupported compression mode"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said", "config", "reason"), REFUSED_BY_BOTH)
def test_what_nats_server_refuses_is_refused_before(
    tmp_path: Path, given: dict[str, Any], said: str, config: str, reason: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        load(given, "inventory")
    assert said in str(refused.value)
    path = tmp_path / "nats.conf"
    path.write_text("listen: 127.0.0.1:-1\n" + config.replace("DIR", str(tmp_path)))
    done = subprocess.run([PROGRAM, "-c", path], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode != 0
    assert reason in done.stderr
