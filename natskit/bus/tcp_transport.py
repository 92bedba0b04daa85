"""nats-py's TCP transport, which gives up a server that no longer answers within seconds."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any
from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport as NatsTcpTransport

OPEN_TIMEOUT = 1.25
"""Seconds until a client leaves a host that does not answer the first packet, and tries another. The kernel sends that
packet again after one second. A host without power stays silent, and two such hosts must not use up the whole time
that `natskit status` waits."""

CLOSE_SECONDS = 1.0
"""How long the end of a TLS session may take; asyncio allows a silent server 30 s."""

KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}
"""With these the kernel notices a host that lost its power or its network after about 11 s; NATS pings take 40 to
60 s. Units are seconds, and milliseconds of unacknowledged data for the last (tcp(7))."""


READ_BYTES = 128 * 1024
"""How much is read at once. nats-py reads 32 KiB: a part of a file took 32 turns, and as many pauses of the socket."""


class TcpTransport(NatsTcpTransport):
    """One TCP connection, with or without TLS."""

    kicked = False
    """Over TCP nats-server does not say that a hub disconnected the client."""

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        await super().connect(uri, max(buffer_size, READ_BYTES), min(connect_timeout, OPEN_TIMEOUT))  # type: ignore[arg-type]
        writer: Any = self._io_writer
        raw: socket.socket = writer.get_extra_info("socket")
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):  # macOS lacks some of them
                    raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        except OSError:  # the server has closed the connection already
            writer.transport.abort()
            raise

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        plain: Any = self._io_writer
        try:
            await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        except BaseException:
            # Once TLS has taken over, the plain stream never hears of its end: waiting for it would last for ever.
            plain.transport.abort()
            self._io_reader = self._io_writer = None
            raise
        writer: Any = self._io_writer
        writer.transport.get_protocol()._over_ssl = True  # else asyncio warns of each connection the server closes

    async def read(self, buffer_size: int) -> bytes:
        data: bytes = await super().read(max(buffer_size, READ_BYTES))
        return data

    async def wait_closed(self) -> None:
        writer: Any = self._io_writer
        if writer is None:
            return
        closed = asyncio.ensure_future(writer.wait_closed())
        try:
            await asyncio.wait({closed}, timeout=CLOSE_SECONDS)
        finally:
            if not closed.done():
                writer.transport.abort()
        await closed
