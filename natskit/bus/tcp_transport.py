"""nats-py's TCP transport, which gives up a server that no longer answers within seconds, and copies large messages as
little as possible.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
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


READ_BYTES = 64 * 1024
"""How much is read at once, unless it goes to a block of the caller's. nats-py reads 32 KiB."""
LARGE_BYTES = 16 * 1024
"""What is smaller is joined before it is written."""


class _Protocol(asyncio.BufferedProtocol):
    """Feeds a :class:`asyncio.StreamReader`, or fills a block of memory."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(READ_BYTES)
        self.streams = asyncio.StreamReaderProtocol(self.reader)
        """What the reader and the writer of the connection know of it."""
        self.fed = 0
        """Bytes that the reader has got."""
        self._own = memoryview(bytearray(READ_BYTES))
        self._block: memoryview | None = None
        self._filled: asyncio.Future[None] | None = None

    async def fill(self, block: memoryview) -> None:
        """Read into a block until it is full, while the reader has nothing. Raises :class:`ConnectionResetError`."""
        if self.reader.at_eof():
            raise ConnectionResetError("the connection ended within a message")
        self._block, self._filled = block, asyncio.get_running_loop().create_future()
        try:
            await self._filled
        finally:
            self._block = self._filled = None

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._block if self._block is not None else self._own

    def buffer_updated(self, nbytes: int) -> None:
        if self._block is None:
            self.fed += nbytes
            self.reader.feed_data(self._own[:nbytes])
            return
        self._block = self._block[nbytes:] or None
        if self._block is None and self._filled is not None and not self._filled.done():
            self._filled.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.streams.connection_made(transport)

    def eof_received(self) -> bool | None:
        self._give_up()
        return self.streams.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up()
        self.streams.connection_lost(exc)

    def pause_writing(self) -> None:
        self.streams.pause_writing()

    def resume_writing(self) -> None:
        self.streams.resume_writing()

    def _give_up(self) -> None:
        if self._filled is not None and not self._filled.done():
            self._filled.set_exception(ConnectionResetError("the connection ended within a message"))


class TcpTransport(NatsTcpTransport):
    """One TCP connection, with or without TLS."""

    kicked = False
    """Over TCP nats-server does not say that a hub disconnected the client."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._protocol: _Protocol
        self._taken = 0
        """Bytes that were taken from the reader."""

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:  # noqa: ARG002
        async with asyncio.timeout(min(connect_timeout, OPEN_TIMEOUT)):
            loop, host, port = asyncio.get_running_loop(), str(uri.hostname), int(uri.port or 4222)
            transport, protocol = await loop.create_connection(_Protocol, host, port)
        self._use(transport, protocol)
        # nats-py keeps the plain transport, which would be closed with its last reference.
        self._bare_io_reader, self._bare_io_writer = self._io_reader, self._io_writer
        raw: socket.socket = transport.get_extra_info("socket")
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):  # macOS lacks some of them
                    raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        except OSError:  # the server has closed the connection already
            transport.abort()
            raise

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,  # noqa: ARG002
        connect_timeout: int,
    ) -> None:
        plain: Any = self._io_writer
        protocol, host = _Protocol(), uri if isinstance(uri, str) else uri.hostname
        try:
            async with asyncio.timeout(connect_timeout):
                loop = asyncio.get_running_loop()
                over_tls = await loop.start_tls(plain.transport, protocol, ssl_context, server_hostname=host)
        except BaseException:
            # Once TLS has taken over, the plain stream never hears of its end: waiting for it would last for ever.
            plain.transport.abort()
            self._io_reader = self._io_writer = None
            raise
        assert over_tls is not None
        protocol.connection_made(over_tls)  # start_tls does not; the reader could not pause the connection
        self._use(over_tls, protocol)

    def _use(self, transport: asyncio.Transport, protocol: _Protocol) -> None:
        self._protocol, self._taken, self._io_reader = protocol, 0, protocol.reader
        loop = asyncio.get_running_loop()
        self._io_writer = asyncio.StreamWriter(transport, protocol.streams, protocol.reader, loop)

    async def read(self, buffer_size: int) -> bytes:
        data: bytes = await super().read(max(buffer_size, READ_BYTES))
        self._taken += len(data)
        return data

    async def readline(self) -> bytes:
        line: bytes = await super().readline()  # type: ignore[no-untyped-call]
        self._taken += len(line)
        return line

    async def read_into(self, block: memoryview) -> None:
        """Fill a block of memory from the socket. Raises :class:`ConnectionResetError` if the connection ends first."""
        while block and self._protocol.fed > self._taken:
            reader: Any = self._io_reader
            data = await reader.read(len(block))
            self._taken += len(data)
            block[: len(data)] = data
            block = block[len(data) :]
        if block:
            await self._protocol.fill(block)

    def writelines(self, payload: Iterable[bytes | memoryview]) -> None:
        """Write some pieces: the large ones as they are. asyncio would join them, and then keep a copy of what the
        socket does not take at once."""
        writer: Any = self._io_writer
        small: list[bytes | memoryview] = []
        for piece in payload:
            if len(piece) < LARGE_BYTES:
                small.append(piece)
                continue
            writer.write(b"".join(small))
            small.clear()
            writer.write(memoryview(piece))
        if small:
            writer.write(b"".join(small))

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
