"""A hub's answer over HTTP to an unforeseen error."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from starlette.requests import Request

from natskit import rpc
from natskit.hub.web.context import WebContext
from natskit.hub.web.files import _sent_range
from natskit.hub.web.responses import RefusedError
from natskit.hub.web.routes import HttpApi


async def fail(_cookie: str) -> Any:
    raise ZeroDivisionError("the secret")


async def test_a_failure_says_where_to_look_and_keeps_its_secrets(caplog: pytest.LogCaptureFixture) -> None:
    rpc.set_program_name("hub-7")
    hub = SimpleNamespace(ready=True, sessions=SimpleNamespace(slide=fail))
    transport = httpx.ASGITransport(HttpApi(cast("WebContext", hub)).app())
    async with httpx.AsyncClient(transport=transport, base_url="https://localhost") as client:
        answer = await client.get("/api/session")
    assert answer.status_code == 500
    assert answer.headers["cache-control"] == "no-store"
    assert "secret" not in answer.text
    error = answer.json()["error"]
    assert (error["code"], error["program"], error["host"]) == ("internal_error", "hub-7", socket.gethostname())
    assert f"internal error {error['id']} in hub-7" in error["message"]
    (record,) = caplog.records
    assert record.getMessage() == f"internal error {error['id']}: GET /api/session failed"
    assert record.exc_info is not None


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"content-length": "5"}, (0, 5)),
        ({"content-length": "5", "content-range": "bytes 3-7/8"}, (3, 8)),
        ({"content-length": "0", "content-range": "bytes */8"}, (8, 8)),
        ({}, 411),
        ({"content-length": "5", "content-range": "bytes 3-7/9"}, 400),
        ({"content-length": "4", "content-range": "bytes 3-7/8"}, 400),
        ({"content-length": "5", "content-range": "bytes */8"}, 400),
        ({"content-length": "5", "content-range": "bytes 3-7/*"}, 400),
    ],
)
def test_where_the_body_of_an_upload_begins(said: dict[str, str], found: tuple[int, int] | int) -> None:
    headers = [(name.encode(), value.encode()) for name, value in said.items()]
    request = Request({"type": "http", "method": "PUT", "headers": headers})
    if isinstance(found, tuple):
        assert _sent_range(request, "ab" * 16) == found
    else:
        with pytest.raises(RefusedError) as caught:
            _sent_range(request, "ab" * 16)
        assert caught.value.response.status_code == found
