"""The port for metrics: only the scraper that the operator named gets anything, and nobody can hold it."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from natskit.errors import SettingsError
from natskit.identity.tls import ensure_ca, ensure_host_certificate
from natskit.process import metrics_endpoint
from natskit.process.metrics_endpoint import Certificate, MetricsAccess, MetricsEndpoint
from tests.kit.ports import free_port

TOKEN = "x" * 40
GOOD = f"Authorization: Bearer {TOKEN}\r\n"


@asynccontextmanager
async def endpoint(**changes: Any) -> AsyncIterator[tuple[MetricsEndpoint, int]]:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    access = MetricsAccess(port=free_port(), token_sha256=digest, networks=["127.0.0.0/8"]).model_copy(update=changes)

    async def text() -> bytes:
        return b"natskit_test 1\n"

    found = MetricsEndpoint(access, text)
    await found.start()
    try:
        yield found, access.port
    finally:
        await found.close()


def issued(folder: Path, now: int, **options: int) -> Certificate:
    """A certificate of hub.natskit, by a CA in the folder."""
    ensure_host_certificate(folder, "h", ["hub.natskit"], now=now, **options)
    hosts = folder / "tls" / "hosts"
    return Certificate(certificate=hosts / "h.crt", key=hosts / "h.key")


async def ask(port: int, head: str = GOOD, path: str = "/metrics", tls: ssl.SSLContext | None = None) -> bytes:
    name = "hub.natskit" if tls else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:  # it has not read what was sent
        return b""
    finally:
        writer.transport.abort()


async def test_the_token_opens_it() -> None:
    async with endpoint() as (_, port):
        answer = await ask(port)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.endswith(b"\r\n\r\nnatskit_test 1\n")


@pytest.mark.parametrize(
    "head",
    ["", "Authorization: Bearer\r\n", f"Authorization: Basic {TOKEN}\r\n", f"Authorization: Bearer {TOKEN}x\r\n"],
)
async def test_without_it_nothing_is_said(head: str) -> None:
    async with endpoint() as (_, port):
        answer = await ask(port, head)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"natskit_test" not in answer


async def test_there_is_nothing_else() -> None:
    async with endpoint() as (_, port):
        assert (await ask(port, path="/")).startswith(b"HTTP/1.1 404 ")
        assert (await ask(port, path="/metrics/../x")).startswith(b"HTTP/1.1 404 ")


async def test_another_address_is_not_even_read() -> None:
    async with endpoint(networks=["10.0.0.9"]) as (_, port):
        assert await ask(port) == b""


async def test_a_request_that_is_too_long_or_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_endpoint, "REQUEST_SECONDS", 0.2)
    async with endpoint() as (_, port):
        assert await ask(port, "X: " + "a" * 20_000 + "\r\n") == b""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_idle_connections_do_not_keep_the_scraper_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_endpoint, "REQUEST_SECONDS", 0.5)
    async with endpoint() as (_, port):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(metrics_endpoint.AT_ONCE)]
        assert await ask(port) == b""  # there are too many
        for reader, _ in idle:
            assert await asyncio.wait_for(reader.read(), 10) == b""
        assert (await ask(port)).startswith(b"HTTP/1.1 200 ")
        for _, writer in idle:
            writer.close()


async def test_what_fails_is_no_answer_about_its_inside(caplog: pytest.LogCaptureFixture) -> None:
    async with endpoint() as (found, port):

        async def fails() -> bytes:
            raise ValueError("a secret of the inside")

        found._text = fails
        answer = await ask(port)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"secret" not in answer
    assert "a secret of the inside" in caplog.text


async def test_a_renewed_certificate_needs_no_restart(tmp_path: Path) -> None:
    now = int(time.time())

    async def serial(port: int) -> int:
        context = ssl.create_default_context(cafile=ensure_ca(tmp_path, now=now))
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="hub.natskit")
        served = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return x509.load_der_x509_certificate(served).serial_number

    async with endpoint(tls=issued(tmp_path, now)) as (found, port):
        context = ssl.create_default_context(cafile=ensure_ca(tmp_path, now=now))
        assert (await ask(port, tls=context)).startswith(b"HTTP/1.1 200 ")
        before = await serial(port)
        issued(tmp_path, now, renew_days=10_000)
        found.renew()
        assert await serial(port) != before
        (tmp_path / "tls" / "hosts" / "h.key").write_text("no key")
        with pytest.raises(SettingsError, match=r"h\.crt, .*h\.key"):
            found.renew()


async def test_a_port_that_is_taken_is_named() -> None:
    async with endpoint() as (found, port):
        other = MetricsEndpoint(found._access, found._text)
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}, cannot be used"):
            await other.start()
