"""nats-py's WebSocket transport, with the headers of one attempt and one WebSocket message for each flush.

Import this module only to open a WebSocket: aiohttp takes 11 MB, which a process that connects over TCP does not need.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any
from urllib.parse import ParseResult

import aiohttp
from nats.aio.transport import WebSocketTransport as NatsWebSocketTransport

from natskit.bus.tcp_transport import CLOSE_SECONDS

KICKED = (1011, "Kicked")
"""The WebSocket close code and reason of nats-server 2.15 when a hub has disconnected the client, as hubs do when
rights have changed. In RFC 6455, code 1011 stands for an internal error of the server, which this is not."""


class WebSocketTransport(NatsWebSocketTransport):
    """One WebSocket.

    Its HTTP session lives exactly as long as the WebSocket. nats-py leaves its own session open when a connect fails
    or is given up, and when the server ends without closing the connection.
    """

    def __init__(self, headers: dict[str, str]) -> None:  # not super's, which opens an HTTP session at once
        self._ws = None
        self._client: Any = None
        self._socket: Any = None
        self._pending: asyncio.Queue[bytes] = asyncio.Queue()
        self._close_task: Any = None
        self._using_tls: bool | None = None
        self._sent_headers = headers
        self.kicked = False
        """Whether the server has said that a hub disconnected this client."""

    def __bool__(self) -> bool:
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:  # noqa: ARG002
        await self._open(uri, connect_timeout)
        self._using_tls = False

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,  # noqa: ARG002
        connect_timeout: int,
    ) -> None:
        if self._ws is not None:  # nats-py calls this again after INFO; a transport is for one attempt
            if self._ws.closed:
                raise ConnectionAbortedError("the server closed the connection before it spoke NATS")
            return
        await self._open(uri, connect_timeout, ssl=ssl_context)
        self._using_tls = True

    async def _open(self, uri: str | ParseResult, connect_timeout: float, **options: Any) -> None:
        self._client = aiohttp.ClientSession()
        try:
            # Not ``wait_for``: with Python 3.11 it would lose a cancellation that arrives with the connection.
            async with asyncio.timeout(connect_timeout):
                opened: Any = await self._client.ws_connect(
                    uri if isinstance(uri, str) else uri.geturl(),
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                    headers=self._sent_headers,
                    max_msg_size=0,
                    **options,
                )
                self._ws, self._socket = opened, opened._conn.transport
        finally:
            if self._ws is None:
                self._close_task = asyncio.get_running_loop().create_task(self._client.close())
                await self.wait_closed()

    async def readline(self) -> bytes:
        message: Any = await self._ws.receive()  # type: ignore[union-attr]
        if message.type == aiohttp.WSMsgType.BINARY:
            return bytes(message.data)
        if message.type == aiohttp.WSMsgType.ERROR:
            raise ConnectionError("the WebSocket broke") from message.data
        self.kicked |= message.type == aiohttp.WSMsgType.CLOSE and (message.data, message.extra) == KICKED
        return b""  # nats-py sees that the WebSocket is closed

    async def drain(self) -> None:
        if self._ws is None:
            raise ConnectionResetError("the connection is gone")
        await super().drain()  # type: ignore[no-untyped-call]

    def writelines(self, payload: list[bytes]) -> None:
        self._pending.put_nowait(b"".join(payload))

    def close(self) -> None:
        if self._ws is not None and self._close_task is None:
            self._close_task = asyncio.get_running_loop().create_task(self._end(self._ws))

    async def wait_closed(self) -> None:
        if self._close_task is not None:
            await asyncio.shield(self._close_task)  # the waiting task may be cancelled, the close may not

    async def _end(self, opened: Any) -> None:
        try:
            # aiohttp waits one second for the server's close frame, but without limit until it has sent its own.
            async with asyncio.timeout(2 * CLOSE_SECONDS):
                await opened.close()
        finally:
            # aiohttp does not wait for the end of the TLS session, which may take 30 s or outlive the event loop.
            self._socket.abort()
            await self._client.close()
            await asyncio.sleep(0)
