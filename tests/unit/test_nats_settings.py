"""Settings of nats-server: an error names the place inside the setting, and servers must agree where they have to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from natskit.config.nats_settings import NatsSettings
from natskit.config.settings import load
from natskit.config.topology import assemble, validate
from natskit.errors import SettingsError

NATS = ("nats-1", "nats-2", "nats-3")


def refusal(**data: Any) -> str:
    """The error of :func:`load` for wrong settings."""
    with pytest.raises(SettingsError) as refused:
        load(data, "inventory")
    return str(refused.value)


def of_cluster(
    shared: dict[str, Any] | None = None, own: dict[str, dict[str, Any]] | None = None, number: int = 3
) -> str:
    """The errors of a cluster with these settings; empty if there are none."""
    common = {"platform_control": "/srv/control"} | (shared or {})
    hosts = [(name, ["nats"], common | (own or {}).get(name, {})) for name in NATS[:number]]
    hosts += [("hub-1", ["hub", "proxy"], common | (own or {}).get("hub-1", {}))]
    try:
        assemble(hosts)
    except SettingsError as error:
        return str(error)
    return ""


REMOTE = {"urls": ["tls://hub.example.org:7422"]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"nats_gateways": [{"name": "west", "urls": []}]}, "nats_gateways[0].urls = []: list should have at least 1"),
        ({"nats_gateways": [{"name": "a b", "urls": ["tls://a:1"]}]}, "nats_gateways[0].name = 'a b': string should"),
        ({"nats_gateways": [{"name": "a", "urls": ["tls://a:1", "https://b"]}]}, "nats_gateways[0].urls[1] = 'https://b'"),
        ({"nats_gateways": [{"urls": ["tls://a:1"]}]}, "nats_gateways[0].name: field required"),
        ({"nats_gateways": [{"name": "a", "urls": ["tls://a:1"]}] * 2, "nats_gateway_port": 7222}, "has a twice"),
        ({"nats_gateways": "west"}, "nats_gateways = 'west': input should be a valid list"),
        ({"nats_client_tls": {"certifcate": "/a"}}, "nats_client_tls.certifcate: did you mean certificate?"),
        ({"nats_client_tls": {"certificate": "/a"}}, "certificate and key go together: set both or neither"),
        ({"nats_client_tls": {"certificate": "a.crt", "key": "/a"}}, "nats_client_tls.certificate = 'a.crt': "),
        ({"nats_client_tls": {"verify": True}}, "unknown setting nats_client_tls.verify"),
        ({"nats_cluster_tls": {"pinned_certs": ["ab"]}}, "nats_cluster_tls.pinned_certs[0] = 'ab'"),
        ({"nats_mqtt_tls": {"timeout": 0}, "nats_mqtt_port": 1883}, "nats_mqtt_tls.timeout = 0: input should"),
        ({"nats_leafnode_remotes": [REMOTE | {"account": "platform"}]}, "nats_leafnode_remotes[0].account = "),
        ({"nats_leafnode_remotes": [REMOTE | {"urls": ["tls://u:p@a:1"]}]}, "nats_leafnode_remotes[0].urls[0]"),
        ({"nats_leafnode_remotes": [{"urls": ["ws://a"], "ca": "/a"}]}, "need TLS, which ws:// does not have"),
        ({"nats_jetstream_limits": {"batch": {"timeout": 0}}}, "nats_jetstream_limits.batch.timeout = 0"),
        ({"nats_section_extra": {"jetstreem": "x"}}, "nats_section_extra.jetstreem"),
        ({"nats_server_tags": "AZ:A"}, "nats_server_tags[0] = 'AZ:A'"),
        ({"nats_leafnode_compression": "off"}, "nats_leafnode_compression has no effect without nats_leafnode_port"),
        ({"nats_gateway_advertise": "a:1"}, "nats_gateway_advertise has no effect without nats_gateway_port: set"),
        ({"nats_mqtt_ack_wait": 5}, "nats_mqtt_ack_wait has no effect without nats_mqtt_port: set"),
        ({"nats_mqtt_port": 4222}, "nats_mqtt_port and nats_port are both 4222"),
        ({"nats_client_advertise": "bus"}, "nats_client_advertise = 'bus': write HOST:PORT"),
        ({"nats_log_max_files": 3}, "nats_log_max_files needs a log file: set nats_log_to_file"),
        ({"nats_resolver": "memory", "nats_resolver_limit": 5}, "needs nats_resolver = full or cache, and it is"),
        ({"nats_jetstream_cipher": "aes"}, "nats_jetstream_cipher encrypts nothing without a key"),
        ({"nats_jetstream_previous_key_file": "/k"}, "needs nats_jetstream_key_file, which is not set"),
        ({"nats_jetstream_key_file": "/k", "nats_jetstream_previous_key_file": "/k"}, "are the same file"),
        ({"nats_jetstream_key_file": "/k", "nats_extra": "NATS_JS_KEY: a"}, "which would override"),
        ({"nats_jetstream_key_file": "/k", "platform_manager": "supervisor"}, "needs platform_manager = systemd"),
        ({"nats_jetstream_unique_tag": "az:"}, "no tag in nats_server_tags begins with it"),
        ({"nats_jetstream_directory": "/srv/my disk"}, "nats_jetstream_directory = '/srv/my disk'"),
        ({"platform_tls": False, "nats_cluster_tls": {}}, "nats_cluster_tls is set, but platform_tls is false"),
        ({"nats_cluster_pool_size": -2}, "nats_cluster_pool_size = -2"),
        ({"proxy_certificate": "/a"}, "proxy_key is not set: set both proxy_certificate and proxy_key"),
        ({"proxy_certificate": "a", "proxy_key": "b", "proxy_certificate_on_host": True}, "must be an absolute path"),
        ({"proxy_acme_webroot": "/srv/acme", "proxy_port": 80}, "proxy_http_port and proxy_port are both 80"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_its_place_and_rule(data: dict[str, Any], said: str) -> None:
    assert said in refusal(**data)


def test_what_is_inside_may_come_from_a_command_line() -> None:
    settings = load({"nats_gateways": '[{"name": "west", "urls": ["tls://w:7222"]}]', "nats_gateway_port": "7222"}, "")
    assert settings.nats_gateways[0].urls == ["tls://w:7222"]


@pytest.mark.parametrize(
    ("shared", "own", "said"),
    [
        ({}, {"nats-2": {"nats_jetstream_domain": "hub"}}, "nats_jetstream_domain is None on nats-1 and hub on nats-2"),
        ({}, {"nats-3": {"nats_max_payload": 2**17}}, "nats_max_payload is 1048576 on nats-1 and 131072 on nats-3"),
        ({}, {"nats-1": {"nats_gateway_port": 7222}}, "nats_gateway_port is not set on nats-2"),
        ({}, {"nats-1": {"nats_cluster_name": "west"}}, "nats_cluster_name is"),
        (
            {"nats_resolver": "cache"},
            {},
            "nats-1: nats_resolver = 'cache' needs another nats-server with nats_resolver = 'full'",
        ),
        ({"nats_jetstream": False}, {}, "nats_jetstream is off on all nats-servers"),
        (
            {"hub_state_replicas": 3},
            {"nats-1": {"nats_jetstream": False}},
            "only 2 nats-servers have JetStream",
        ),
        (
            {"nats_mqtt_port": 1883, "nats_mqtt_stream_replicas": 4},
            {},
            "nats_mqtt_stream_replicas = 4: only 3 nats-servers have JetStream",
        ),
        (
            {"nats_jetstream_unique_tag": "az:", "nats_server_tags": ["az:a"]},
            {"nats-2": {"nats_server_tags": ["az:b"]}},
            "nats_jetstream_unique_tag = 'az:' has 2 values in nats_server_tags: the 3 replicas",
        ),
        (
            {"nats_jetstream_key_file": "/one", "nats_jetstream_previous_key_file": "/two"},
            {},
            "on a cluster, nats-server cannot open its own state with it",
        ),
    ],
)
def test_what_servers_must_agree_on(shared: dict[str, Any], own: dict[str, dict[str, Any]], said: str) -> None:
    assert said in of_cluster(shared, own)


@pytest.mark.parametrize(
    ("shared", "own"),
    [
        ({}, {}),
        ({"nats_resolver": "memory"}, {}),
        ({"nats_resolver": "cache"}, {"nats-2": {"nats_resolver": "full"}}),
        ({"nats_gateway_port": 7222, "nats_gateways": [{"name": "west", "urls": ["tls://w:7222"]}]}, {}),
        ({"nats_jetstream_domain": "hub"}, {}),
        ({"hub_state_replicas": 1}, {"nats-3": {"nats_jetstream": False}}),
        ({"nats_jetstream_unique_tag": "az:", "nats_server_tags": ["az:a"]},
         {"nats-2": {"nats_server_tags": ["az:b"]}, "nats-3": {"nats_server_tags": ["az:c"]}}),
    ],
)  # fmt: skip
def test_what_servers_may_do(shared: dict[str, Any], own: dict[str, dict[str, Any]]) -> None:
    assert of_cluster(shared, own) == ""


def test_a_gateway_of_one_server_needs_routes_or_no_jetstream() -> None:
    assert "JetStream cluster requires configured routes" in of_cluster({"nats_gateway_port": 7222}, number=1)
    assert of_cluster({"nats_gateway_port": 7222, "nats_cluster_routes": ["a:6222"]}, number=1) == ""


def test_the_key_of_jetstream_is_looked_at_before_any_host_is_touched(tmp_path: Path) -> None:
    key = tmp_path / "key"
    common = {"platform_control": "/srv/control", "nats_jetstream_key_file": str(key)}
    hosts = [("nats-1", ["nats"], common), ("hub-1", ["hub", "proxy"], common)]
    with pytest.raises(SettingsError, match=r"nats-1: nats_jetstream_key_file = .*/key cannot be read on this machine"):
        validate(hosts)
    key.write_text("too short, and a secret")
    with pytest.raises(SettingsError) as refused:
        validate(hosts)
    assert "must be one line of at least 32 letters" in str(refused.value)
    assert "secret" not in str(refused.value)
    key.write_text("k" * 32)
    validate(hosts)


def test_creds_of_a_leafnode_are_looked_at_before_any_host_is_touched(tmp_path: Path) -> None:
    (tmp_path / "no.creds").write_text("nothing")
    remote = REMOTE | {"credentials": str(tmp_path / "no.creds")}
    common = {"platform_control": "/srv/control"}
    with pytest.raises(SettingsError, match="is not a creds file, which has a JWT and a seed"):
        validate([("n", ["nats"], common | {"nats_leafnode_remotes": [remote]}), ("h", ["hub", "proxy"], common)])


def test_every_setting_is_prefixed() -> None:
    assert all(name.startswith("nats_") for name in NatsSettings.model_fields)
