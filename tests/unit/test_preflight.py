"""The preflight's conclusions from a host's answers. tests/cluster/test_ssh.py tests that it asks the hosts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from natskit.config import topology
from natskit.config.settings import load
from natskit.errors import SettingsError
from roles import artifacts, host_probe, preflight
from roles.artifacts import Target
from tests.kit.ports import free_port


def test_a_look_at_this_machine_names_who_listens(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("a certificate")
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = subprocess.run(
            [sys.executable, "-I", "-", str(tmp_path)],
            input=Path(host_probe.__file__).read_text(),
            capture_output=True,
            text=True,
            check=True,
        )
        port = server.getsockname()[1]
    found = json.loads(done.stdout)
    assert [taken[2] for taken in found["ports"] if taken[0] == port] != []
    assert found["free"] > 0
    assert len(found["authorities"]) == 1


def test_a_look_tries_what_the_host_will_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        places = [f"127.0.0.1:{port}" for port in (listening.getsockname()[1], free_port())]
        done = subprocess.run(
            [sys.executable, "-I", "-", str(tmp_path), *places, "alias.invalid:4222"],
            input=Path(host_probe.__file__).read_text(),
            capture_output=True,
            text=True,
            check=True,
        )
    (said,) = json.loads(done.stdout)["unreached"].items()
    assert said[0] == "alias.invalid:4222"
    assert said[1].startswith("the name is not known here: ")


def test_where_the_programs_of_a_host_connect_to() -> None:
    data = {"platform_control": "/srv/control", "hub_count": 1, "proxy_port": 443}
    roles = {"a": ["nats", "hub"], "b": ["nats", "runner"], "c": ["nats", "proxy"]}
    site, known = topology.validate((name, groups, data) for name, groups in roles.items())
    routes = {"a:6222", "b:6222", "c:6222"}
    clients = {"a:4222", "b:4222", "c:4222"}
    uses = {name: set(preflight.used(known[name], site, known.values())) for name in roles}
    assert uses["a"] == clients | routes - {"a:6222"}
    assert uses["b"] == clients | routes - {"b:6222"}
    assert uses["c"] == clients | {"a:5004", "b:5004", "c:5004", "a:8101", "a:6222", "b:6222"}
    # A host that is down fails alone.
    assert set(preflight.used(known["a"], site, [known["a"], known["b"]])) == {"a:4222", "b:4222", "b:6222"}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (None, "there is no python3: apt-get install python3"),
        (Target("x86_64", "3.9"), "it has Python 3.9: natskit needs 3.11 or newer, as in Debian 12"),
        (Target("riscv64", "3.13"), "it is a riscv64: there is nats-server for x86_64 and aarch64"),
        (Target("aarch64", "3.13"), ""),
    ],
)
def test_where_the_programs_do_not_run(target: Target | None, said: str) -> None:
    assert artifacts.unfit(target) == said


@pytest.mark.parametrize(("skew", "said"), [(2.0, ""), (-3.0, ""), (61.0, "61 s ahead of"), (-7.4, "7 s behind")])
def test_a_clock_may_be_off_by_what_looking_takes(skew: float, said: str) -> None:
    assert said in "".join(preflight._wrong_clock({"skew": skew}))
    assert bool(said) == bool(list(preflight._wrong_clock({"skew": skew})))


@pytest.mark.parametrize(
    ("port", "unit", "found", "is_foreign"),
    [
        (4222, "natskit-nats.service", {}, False),
        (443, "nginx.service", {"has_proxy": True}, False),
        (443, "nginx.service", {"has_proxy": False}, True),
        (443, "apache2.service", {"has_proxy": True}, True),
        (80, "apache2.service", {"has_proxy": True}, False),
    ],
)
def test_a_port_is_taken_by_what_is_not_ours(port: int, unit: str, found: dict[str, Any], is_foreign: bool) -> None:
    answer = {"has_proxy": False, "ports": [[port, 812, "program", unit]]} | found
    said = list(preflight._taken_ports({443: "proxy_port", 4222: "nats_port"}, preflight._foreign(answer)))
    assert said == (
        [f"port {port} is taken by process 812 (program): stop it, or set proxy_port to a free port"]
        if is_foreign
        else []
    )


def test_a_command_line_of_several_lines_is_shown_as_one() -> None:
    (said,) = preflight._taken_ports({443: "proxy_port"}, [(443, 812, "python3 -c import x\n\x1b[2Jx.run()")])
    assert said.startswith("port 443 is taken by process 812 (python3 -c import x\\n\\x1b[2Jx.run()): stop it")


def test_a_host_needs_the_ports_of_its_roles() -> None:
    data = {"platform_control": "/srv/control", "hub_count": 1, "proxy_port": 443}
    roles = {"a": ["nats", "hub"], "b": ["nats"], "c": ["nats", "proxy"]}
    site, known = topology.validate((name, groups, data) for name, groups in roles.items())
    assert set(preflight.ports(known["a"], site)) == {4222, 5004, 8222, 6222, 8101}
    assert set(preflight.ports(known["c"], site)) == {4222, 5004, 8222, 6222, 443}
    doors = {"nats_leafnode_port": 7422, "nats_gateway_port": 7222, "nats_mqtt_port": 1883}
    site, known = topology.validate(
        (name, groups, data | doors | {"proxy_acme_webroot": "/srv/acme"}) for name, groups in roles.items()
    )
    assert set(preflight.ports(known["a"], site)) == {4222, 5004, 8222, 6222, 8101, *doors.values()}
    assert preflight.ports(known["c"], site)[80] == "proxy_http_port"
    alone = load({"platform_root": "/srv/natskit", "platform_manager": "supervisor", "platform_tls": False}, "here")
    assert set(preflight.ports(alone)) == {4222, 5004, 8222, 8101, 8102, 4043}


def test_a_host_without_root_is_told_what_to_do() -> None:
    rights = preflight.HostRights().process(["deploy 1000", "wants a password"])
    assert rights == preflight.Rights("deploy", False, "wants a password")
    assert "set _sudo = True" in "".join(preflight._unfit({"is_root": False, "has_systemd": True}, "", rights))
    assert "systemd does not run" in "".join(preflight._unfit({"is_root": True, "has_systemd": False}, "", rights))


@pytest.mark.parametrize(
    ("browsers", "limits", "servers", "said"),
    [
        (4000, {"open_files": 9024, "local_ports": 28232}, 1, ""),
        (4000, {}, 1, ""),
        (4000, {"open_files": 9023}, 1, "needs 9024 open files in a process, and 9023 are allowed"),
        (4000, {"open_files": 1024}, 1, "or set proxy_max_browsers to 0"),
        (4000, {"open_files": 5024}, 1, "or set proxy_max_browsers to 2000"),
        (30_000, {"open_files": 1 << 20, "local_ports": 28232}, 1, "ports for 28232 connections to 1 nats-server"),
        (30_000, {"open_files": 1 << 20, "local_ports": 28232}, 2, ""),
    ],
)
def test_a_host_must_allow_the_browsers_it_is_to_take(
    browsers: int, limits: dict[str, int], servers: int, said: str
) -> None:
    settings = load({"proxy_max_browsers": browsers}, "here")
    found = "; ".join(preflight.too_many_browsers(settings, limits, servers))
    assert said in found
    assert bool(found) == bool(said)
    assert host_probe.limits().keys() >= limits.keys()


def test_browsers_must_fit_into_a_nats_server() -> None:
    with pytest.raises(SettingsError, match="raise it to 70512 at least"):
        load({"proxy_max_browsers": 70_000}, "here")
    load({"proxy_max_browsers": 70_000, "nats_max_connections": 70_512}, "here")
