"""Metrics for a scraper that the operator names: ``GET /metrics`` with a bearer token, and TLS except on loopback.

Its port is the only one of a program that may be open to another host than the platform's own. So it does nothing else:
it looks at the address before it reads a request (TLS comes first), takes one short request a connection, and knows of
the token no more than its SHA-256.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from natskit.errors import SettingsError

log = logging.getLogger(__name__)

REQUEST_BYTES = 8192
REQUEST_SECONDS = 5.0
AT_ONCE = 8
"""Connections; of more, the last ones are closed at once."""


class Certificate(BaseModel):
    """PEM files: a certificate and its key."""

    model_config = ConfigDict(extra="forbid")

    certificate: Path
    key: Path


class MetricsAccess(BaseModel):
    """Where a program shows its metrics, and to whom."""

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    token_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the token."""
    networks: list[str]
    """Addresses and networks that may ask."""
    tls: Certificate | None = None


class MetricsEndpoint:
    """Answers scrapers, from :meth:`start` to :meth:`close`."""

    def __init__(self, access: MetricsAccess, text: Callable[[], Awaitable[bytes]]) -> None:
        """``text`` gives the metrics in Prometheus' text format. Raises :class:`SettingsError` for unusable files."""
        self._access, self._text = access, text
        self._networks = [ipaddress.ip_network(network) for network in access.networks]
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if access.tls else None
        self._server: asyncio.Server | None = None
        self._open = 0
        self.renew()

    def renew(self) -> None:
        """Show the present certificate to new connections. Raises :class:`SettingsError`."""
        if self._context is None or self._access.tls is None:
            return
        files = self._access.tls
        try:
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._context.load_cert_chain(files.certificate, files.key)
        except OSError as error:  # ssl.SSLError is one
            names = f"{files.certificate}, {files.key}"
            raise SettingsError(f"one of {names} is unreadable or does not fit the other: {error}") from None

    async def start(self) -> None:
        """Listen. Raises :class:`SettingsError` when the port is taken."""
        timeout = {"ssl_handshake_timeout": REQUEST_SECONDS} if self._context else {}
        try:
            self._server = await asyncio.start_server(
                self._on_connection,
                self._access.host,
                self._access.port,
                # Not by start_tls(): a greeting that arrives before it is called is lost (CPython issue 142352).
                ssl=self._context,
                limit=REQUEST_BYTES,
                **timeout,
            )
        except OSError as error:
            place = f"{self._access.host}:{self._access.port}"
            raise SettingsError(f"the port for metrics, {place}, cannot be used: {error.strerror}") from None

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= AT_ONCE and self._may_ask(writer):
                answer = await asyncio.wait_for(self._answer(reader), REQUEST_SECONDS)
                writer.write(answer)
                await asyncio.wait_for(writer.drain(), REQUEST_SECONDS)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it did not send a request, or does not read
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), REQUEST_SECONDS)

    def _may_ask(self, writer: asyncio.StreamWriter) -> bool:
        peer = writer.get_extra_info("peername")
        return peer is not None and any(ipaddress.ip_address(peer[0]) in network for network in self._networks)

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        scheme, _, token = fields.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1")).hexdigest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._access.token_sha256):
            return _response(
                "401 Unauthorized", b"metrics need the token of the scraper\n", b"WWW-Authenticate: Bearer"
            )
        if head[0].split(" ")[:2] != ["GET", "/metrics"]:
            return _response("404 Not Found", b"there is GET /metrics and nothing else\n")
        try:
            text = await self._text()
        except Exception:
            log.exception("metrics")
            return _response("500 Internal Server Error", b"see the log of this program\n")
        return _response("200 OK", text)


def _response(status: str, body: bytes, *fields: bytes) -> bytes:
    head = [
        f"HTTP/1.1 {status}".encode(),
        b"Content-Type: text/plain; version=0.0.4; charset=utf-8",
        f"Content-Length: {len(body)}".encode(),
        b"Cache-Control: no-store",
        b"Connection: close",
        *fields,
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body
