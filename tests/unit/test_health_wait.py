"""A deploy waits until the changed program is healthy, and reports its answer if that never happens."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from natskit.hub.config import TlsFiles
from natskit.hub.web.tls import server_context
from natskit.identity.tls import ensure_ca, ensure_host_certificate
from natskit.ops.health_wait import wait

OTHERS = {
    "/page": (200, b"<html>It works!</html>"),
    "/list": (200, b"[]"),
    "/sick": (200, b'{"status": "unavailable"}'),
    "/created": (201, b'{"status": "ok"}'),
    "/moved": (302, b""),
}
"""Answers that are no answer of a healthy hub, by path."""


class Health(BaseHTTPRequestHandler):
    """Answers 503 a given number of times, then as a hub does; on other paths it answers as other programs do."""

    sick = 0

    def do_GET(self) -> None:
        Health.sick -= 1
        status, body = (503, b"no answer from NATS") if Health.sick >= 0 else (200, b'{"status": "ok", "hub": "hub-1"}')
        status, body = OTHERS.get(self.path, (status, body))
        self.send_response(status)
        self.send_header("Location", "/healthz")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(HTTPServer):
    """Says nothing about clients that are refused in the handshake."""

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[str]:
    with Server(("127.0.0.1", 0), Health) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_port}/healthz"
        server.shutdown()
        thread.join()


@pytest.fixture
def url() -> Iterator[str]:
    with serving() as url:
        yield url


def test_waits_until_it_is_healthy(url: str) -> None:
    Health.sick = 3
    assert wait(url, 5) == ""
    assert Health.sick == -1


def test_says_what_the_program_said_last(url: str) -> None:
    Health.sick = 10_000
    assert wait(url, 0.2) == "503 no answer from NATS"


@pytest.mark.parametrize("path", OTHERS)
def test_another_program_is_no_healthy_hub(url: str, path: str) -> None:
    Health.sick = 0
    assert wait(url, 5) == ""
    assert wait(url.replace("/healthz", path), 0.1).startswith(str(OTHERS[path][0]))


def test_says_that_nobody_listens() -> None:
    assert "refused" in wait("http://127.0.0.1:9/healthz", 0.2)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "natskit.ops.health_wait", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_runs_the_command_in_either_case(url: str) -> None:
    Health.sick = 0
    then = ["--", sys.executable, "-c", "import sys; print(sys.argv[1:])", "--ca", "--", "x"]
    well = command(url, "5", *then)
    assert (well.returncode, well.stdout, well.stderr) == (0, "['--ca', '--', 'x']\n", "")
    Health.sick = 10_000
    ill = command(url, "0.2", *then)
    assert (ill.returncode, ill.stdout) == (0, "['--ca', '--', 'x']\n")
    assert ill.stderr == f"{url} is not healthy after 0.2 s: 503 no answer from NATS\n"


def test_trusts_and_shows_what_it_is_told(tmp_path: Path) -> None:
    now = int(time.time())
    for name, hosts in (("hub", ["127.0.0.1"]), ("elsewhere", ["127.0.0.2"])):
        ensure_host_certificate(tmp_path, name, hosts, now=now)
    ca, files = ensure_ca(tmp_path, now=now), tmp_path / "tls" / "hosts"
    mine = ["--ca", str(ca), "--cert", str(files / "hub.crt"), "--key", str(files / "hub.key")]
    Health.sick = 0
    with serving(server_context(TlsFiles(certificate=files / "hub.crt", key=files / "hub.key", ca=ca))) as url:
        assert command(*mine, url, "5").returncode == 0
        assert "certificate verify failed" in command(*mine[2:], url, "0.2").stderr
        assert command(*mine[:2], url, "0.2").returncode == 1
        absent = command("--ca", str(tmp_path / "no.crt"), url, "0.2")
        assert absent.returncode == 1
        assert "no.crt" in absent.stderr
    other = TlsFiles(certificate=files / "elsewhere.crt", key=files / "elsewhere.key", ca=ca)
    with serving(server_context(other)) as url:
        assert "IP address mismatch" in command(*mine, url, "0.2").stderr


def test_what_only_echoes_is_no_answer() -> None:
    """This happens when nobody listens and TCP connects to itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo() -> None:
            with contextlib.suppress(OSError):  # until the listener is shut down
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(ConnectionError):
                        connection.sendall(connection.recv(4096))

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        try:
            said = wait(f"http://127.0.0.1:{listener.getsockname()[1]}/healthz", 0.06)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
        assert "GET /healthz" in said
