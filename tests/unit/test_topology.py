"""A platform of several hosts: mistakes that only a look at all hosts together shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from natskit.config.topology import Topology, validate
from natskit.errors import SettingsError

Hosts = dict[str, tuple[list[str], dict[str, Any]]]

SITE = {"platform_control": "/srv/keys", "proxy_name": "bus.example.org", "proxy_port": 443}


def hosts(**changes: dict[str, Any]) -> Hosts:
    """Three nats-servers, two hubs, a proxy and two runners, each with the settings given for it."""
    groups = {"nats": 3, "hub": 2, "proxy": 1, "runner": 2}
    names = {f"{group}{n}": group for group, count in groups.items() for n in range(1, count + 1)}
    return {
        name: ([group], SITE | {"platform_address": f"10.0.0.{n}"} | changes.get(name, {}))
        for n, (name, group) in enumerate(names.items(), 1)
    }


def check(found: Hosts) -> Topology:
    return validate((name, groups, data) for name, (groups, data) in found.items())[0]


def refusal(found: Hosts) -> str:
    with pytest.raises(SettingsError) as refused:
        check(found)
    return str(refused.value)


def test_every_host_is_told_about_the_others() -> None:
    site = check(hosts())
    assert site.url == "https://bus.example.org"
    assert site.nats_urls == ["tls://10.0.0.1:4222", "tls://10.0.0.2:4222", "tls://10.0.0.3:4222"]
    assert site.routes_for(site.nats[1]) == ["10.0.0.1:6222", "10.0.0.3:6222"]
    assert site.nats_urls_for(site.nats[1])[0] == "tls://10.0.0.2:4222"
    assert site.nats_urls_for(site.hub[0]) == site.nats_urls
    assert site.replicas == 3
    assert [site.hub_label(hub, name) for hub in site.hub for name in hub.hub_names] == [
        "hub1-hub-1",
        "hub1-hub-2",
        "hub2-hub-1",
        "hub2-hub-2",
    ]
    assert len({runner.runner_uuid for runner in site.runner}) == 2


def test_one_host_may_play_every_role() -> None:
    site = check({"one.example.org": (["nats", "hub", "proxy", "runner"], SITE)})
    assert site.nats_urls == ["tls://one.example.org:4222"]
    assert site.routes_for(site.nats[0]) == []
    assert site.replicas == 1
    assert site.hub_label(site.hub[0], "hub-1") == "hub-1"


def test_the_name_pyinfra_knows_a_host_by_is_its_name_and_address() -> None:
    site = check({"one.example.org": (["nats", "hub", "proxy"], SITE)})
    assert (site.nats[0].platform_name, site.nats[0].platform_address) == ("one.example.org", "one.example.org")


@pytest.mark.parametrize("group", ["nats", "hub", "proxy"])
def test_a_role_that_nobody_plays_is_named(group: str) -> None:
    left = {name: host for name, host in hosts().items() if host[0] != [group]}
    assert f"the group {group} has no host" in refusal(left)


def test_two_nats_servers_are_no_cluster() -> None:
    left = {name: host for name, host in hosts().items() if name != "nats3"}
    assert "2 hosts are in the group nats" in refusal(left)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hub1": {"proxy_name": "other.example.org"}}, "proxy_name is bus.example.org on nats1 and other.example.org"),
        ({"nats2": {"platform_address": "10.0.0.1"}}, "platform_address is 10.0.0.1 on nats1 and on nats2"),
        ({"nats2": {"platform_name": "nats1"}}, "platform_name is nats1 on nats1 and on nats2"),
        ({"nats2": {"platform_address": "127.0.0.1"}}, "host nats2: platform_address = '127.0.0.1'"),
        ({"hub1": {"hub_state_replicas": 5}}, "hub_state_replicas"),
        ({"hub1": {"hub_state_max_bytes": 2**21}}, "hub_state_max_bytes differs between hubs"),
        (
            {"nats1": {"nats_jetstream_max_file": 600 * 1024**2}},
            "= 629145600: hub_state_max_bytes, hub_audit_bytes and keeper_max_bytes reserve 22827",
        ),
        ({"hub1": {"nats_prot": 1}}, "inventory, host hub1: unknown setting nats_prot: did you mean nats_port?"),
        (
            {"nats2": {"nats_prot": 1, "hub_port": 0}, "hub1": {"nats_prot": 1}},
            "hosts nats2, hub1: unknown setting nats_prot",
        ),
        ({"hub1": {"hub_port": 0}, "hub2": {"hub_count": 0}}, "host hub2: hub_count = 0"),
        ({name: {"platform_tls": False} for name in hosts()}, "platform_tls is off"),
        ({"hub1": {"platform_control": None}}, "host hub1: platform_control is not set"),
    ],
)
def test_what_does_not_go_together_is_named_with_its_hosts(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(hosts(**changes))


def token(tmp_path: Path, mode: int = 0o600) -> dict[str, Any]:
    path = tmp_path / "token"
    path.write_text("t" * 32)
    path.chmod(mode)
    return {"metrics_token_file": str(path)}


def watched(found: Hosts, **data: Any) -> Hosts:
    """All hosts with these settings, and a tenth that watches them."""
    found = {name: (groups, own | data) for name, (groups, own) in found.items()}
    return found | {"watch": (["monitoring"], SITE | {"platform_address": "10.0.0.10"} | data)}


def test_hosts_show_metrics_to_those_that_watch_and_to_who_is_named(tmp_path: Path) -> None:
    site = check(watched(hosts(), **token(tmp_path), metrics_scrapers=["10.9.0.0/16"]))
    assert site.scrapers == ["10.0.0.10", "10.9.0.0/16"]
    assert [one.platform_name for one in site.monitoring] == ["watch"]
    assert len(site.exporter) == 9
    assert check(hosts()).exporter == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics_token_file": None}, "host watch: the group monitoring needs metrics_token_file"),
        ({"metrics_scrapers": ["everybody"]}, "metrics_scrapers[0] = 'everybody'"),
        ({"metrics_port": 8101}, "metrics_port and hub_port are both 8101"),
    ],
)
def test_what_monitoring_refuses(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(watched(hosts(), **token(tmp_path) | changes))


def test_metrics_for_nobody(tmp_path: Path) -> None:
    found = {name: (groups, own | token(tmp_path)) for name, (groups, own) in hosts().items()}
    assert "metrics_token_file is set, and nobody may read metrics: set metrics_scrapers" in refusal(found)


def test_a_token_that_others_may_read_or_guess(tmp_path: Path) -> None:
    given = token(tmp_path, 0o644)
    assert f"chmod go= {tmp_path / 'token'}" in refusal(watched(hosts(), **given))
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "token").write_text("short")
    said = refusal(watched(hosts(), **given))
    assert "must be one line of at least 32 letters" in said
    assert "'short'" not in said
