"""The inventories with which people start: the example, and the one that ``natskit init`` writes."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from natskit.cli import cli
from natskit.config import topology
from natskit.config.topology import ROLES, Topology
from natskit.errors import SettingsError
from roles.platform import CONNECTOR_KEYS
from tests.platform.site import REPOSITORY

THREE = [
    *("--nats", "a.example.org", "--nats", "b.example.org", "--nats", "c.example.org"),
    *("--hub", "a.example.org", "--hub", "b.example.org", "--proxy", "c.example.org", "--runner", "c.example.org"),
    *("--user", "deploy", "--domain", "bus.example.org"),
]


def read(inventory: Path, everywhere: Mapping[str, Any]) -> tuple[Topology, dict[str, dict[str, Any]]]:
    """The platform that an inventory describes, and the data of its hosts for pyinfra's connectors."""
    groups: dict[str, list[str]] = {}
    data: dict[str, dict[str, Any]] = {}
    content = runpy.run_path(str(inventory))
    for role in ROLES:
        hosts, shared = content[role] if isinstance(content[role], tuple) else (content[role], {})
        for host in hosts:
            name, own = host if isinstance(host, tuple) else (host, {})
            groups.setdefault(name, []).append(role)
            data[name] = dict(everywhere) | shared | data.get(name, {}) | own
    ours = {name: {k: v for k, v in found.items() if not k.startswith(CONNECTOR_KEYS)} for name, found in data.items()}
    site, _ = topology.validate((name, groups[name], ours[name]) for name in groups)
    return site, data


def init(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["init", *words], input=stdin)


def test_the_example_loads_without_being_edited() -> None:
    site, data = read(REPOSITORY / "inventories" / "example.py", {})
    assert [len(getattr(site, role)) for role in ROLES] == [3, 2, 1, 2]
    assert site.url == "https://bus.example.org"
    assert site.replicas == 3
    assert {host["ssh_strict_host_key_checking"] for host in data.values()} == {"yes"}
    assert all(host["_sudo"] for host in data.values())


def test_init_writes_an_inventory_that_a_deploy_takes(tmp_path: Path) -> None:
    done = init(str(tmp_path / "bus"), *THREE)
    assert done.exit_code == 0, done.output
    settings = runpy.run_path(str(tmp_path / "bus" / "group_data" / "all.py"))
    everywhere = {key: value for key, value in settings.items() if not key.startswith("__")}
    site, data = read(tmp_path / "bus" / "inventory.py", everywhere)
    assert [nats.platform_address for nats in site.nats] == ["a.example.org", "b.example.org", "c.example.org"]
    assert [site.hub_label(hub, "hub-1") for hub in site.hub] == ["a-example-org", "b-example-org"]
    assert site.url == "https://bus.example.org"
    assert {(host["ssh_user"], host["_sudo"]) for host in data.values()} == {("deploy", True)}
    assert f"  cd {tmp_path}/bus\n" in done.output
    assert done.output.splitlines()[-1].endswith(" deploy")
    assert (tmp_path / "bus" / "platform").stat().st_mode & 0o777 == 0o700


def test_init_takes_a_domain_as_a_browser_shows_it_and_no_address(tmp_path: Path) -> None:
    done = init(str(tmp_path / "bus"), *THREE[:-1], "BUS.Example.org.")
    assert done.exit_code == 0, done.output
    settings = runpy.run_path(str(tmp_path / "bus" / "group_data" / "all.py"))
    assert (settings["proxy_name"], settings["platform_first_account"]) == ("bus.example.org", "admin@bus.example.org")
    refused = init(str(tmp_path / "other"), *THREE[:-1], "https://bus.example.org/")
    assert "--domain 'https://bus.example.org/': not a host name alone" in str(refused.exception)
    assert not (tmp_path / "other").exists()


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "inventory.py").write_text("mine")
    done = init(str(tmp_path), *THREE)
    assert isinstance(done.exception, SettingsError)
    assert (tmp_path / "inventory.py").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["inventory.py"]


def test_init_asks_nobody_where_there_is_no_terminal(tmp_path: Path) -> None:
    done = init(str(tmp_path / "bus"), "--nats", "a.example.org", stdin="")
    assert done.exit_code == 2
    assert "--hub HOST is missing" in done.output
    assert not (tmp_path / "bus").exists()


def test_init_asks_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natskit.cli.inventory._has_terminal", lambda: True)
    answers = "bus.example.org\n" * 4 + "root\n\n"
    done = init(str(tmp_path / "bus"), stdin=answers)
    assert done.exit_code == 0, done.output
    settings = (tmp_path / "bus" / "group_data" / "all.py").read_text()
    assert 'ssh_user = "root"' in settings
    assert "_sudo" not in settings
    assert "hub_count = 2" in settings
    assert 'proxy_name = "bus.example.org"' in settings


def test_init_refuses_what_a_deploy_would_refuse(tmp_path: Path) -> None:
    done = init(str(tmp_path / "bus"), *THREE, "--nats", "d.example.org")
    assert isinstance(done.exception, SettingsError)
    assert "use 1, 3 or 5" in str(done.exception)
    assert not (tmp_path / "bus").exists()
