"""A deploy waits for the health of what it changed, and says what that said when it never comes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from natskit.wait import wait


class Health(BaseHTTPRequestHandler):
    """Answers 503 until it was asked as often as it says."""

    sick = 0

    def do_GET(self) -> None:
        Health.sick -= 1
        self.send_response(503 if Health.sick >= 0 else 200)
        self.end_headers()
        self.wfile.write(b"no answer from NATS")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/healthz"
        server.shutdown()
        thread.join()


def test_waits_until_it_is_healthy(url: str) -> None:
    Health.sick = 3
    assert wait(url, 5) == ""
    assert Health.sick == -1


def test_says_what_the_program_said_last(url: str) -> None:
    Health.sick = 10_000
    assert wait(url, 0.2) == "503 no answer from NATS"


def test_says_that_nobody_listens() -> None:
    assert "refused" in wait("http://127.0.0.1:9/healthz", 0.2)
