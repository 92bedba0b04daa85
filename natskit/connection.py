"""A NATS connection that always comes back.

nats-py reconnects when a connection breaks, but closes for good when the server says why: an expired user JWT
(``User Authentication Expired``) is the end of the client object, although the next connect would be authorised anew.
Every connection authorised by the auth callout expires (``hub_authorization_ttl``), so a natskit client must treat
that as a reason to reconnect. A session's cookie may have changed meanwhile: ``before_connect`` is awaited before each
attempt, and the headers it returns go with the WebSocket upgrade. :class:`SignInError` from it ends the connection.

Only the servers of the list are connected to. nats-py adds those a cluster tells of, checks the certificate of such an
address against the name of the server that told of it, and tries them over TCP where a WebSocket is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import re
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import ParseResult

import nats.errors
from nats.aio.client import DEFAULT_BUFFER_SIZE, PING_PROTO, PONG_PROTO, RawCredentials, Srv
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport, WebSocketTransport
from nats.protocol.parser import PERMISSIONS_ERR
from pydantic import BaseModel, ConfigDict, Field

from natskit.errors import AbsentError, AnswerLostError, ConnectionLostError, NatskitError, NotAllowedError, SignInError
from natskit.permissions import answer_prefix
from natskit.program import cancel

log = logging.getLogger(__name__)

Status = Literal["connecting", "connected", "disconnected", "closed"]
Headers = dict[str, str]
BeforeConnect = Callable[[], Awaitable[Headers]]
OnStatus = Callable[[Status, str], None]


class CredsText(RawCredentials):
    """The text of a creds file that need not lie anywhere: an encrypted identity's is never written down."""

    def __repr__(self) -> str:
        return "CredsText()"


Creds = Path | CredsText
"""Where a user's JWT and seed come from: a file, or its text."""

CONNECT_TIMEOUT = 5
"""Seconds. The auth callout alone may take two when all hubs have just restarted."""

OPEN_TIMEOUT = 1.25
"""Seconds until a host that does not even answer the first packet is left for another; the kernel sends it again after
one. A host without power says nothing, and two of those must not use up what `natskit status` waits in all."""

LONGEST_PAUSE = 3.0
"""Seconds between attempts, at most; half of it is random, so that thousands of clients do not come back at once."""

SHORT_LIFE = 2.0
FREE_RETURNS = 6
"""Several changes of rights in a row are normal; being cut more often than this at once is not, and is slowed down."""

PING_INTERVAL = 5
"""Seconds. A half-open connection is noticed after two unanswered pings; behind a proxy in no other way, since the
connection to the proxy is well when the one behind it is not."""


CLOSE_SECONDS = 1.0
"""How long the end of a TLS session may take; asyncio gives a server that says nothing any more 30 s."""

KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}
"""A host that lost its power or its network is noticed by the kernel after about 11 s (tcp(7): seconds, but for the
last, in milliseconds, for data that is not acknowledged), not after 40 to 60 s by NATS pings."""


_CREDS = re.compile(r"-BEGIN NATS USER JWT-+\s+\S+\s.*-BEGIN USER NKEY SEED-+\s+SU[A-Z2-7]{56}\s", re.DOTALL)
"""A creds file (ADR-14): nats-py fails with a traceback when it is another one."""


class NatsServers(BaseModel):
    """Where the NATS servers are, in a program's settings file.

    ``urls`` is the complete list of a cluster's servers. With ``tls://``, or a ``ca_file``, nothing is sent to a server
    before its certificate was checked: for the host of its URL, against ``ca_file`` or else the machine's CAs.
    """

    model_config = ConfigDict(extra="forbid")

    urls: list[str] = Field(min_length=1)
    ca_file: Path | None = None


class Connection(NatsClient):
    """A nats-py client that reconnects whatever ended the connection, until it is closed by its owner."""

    def __init__(
        self,
        before_connect: BeforeConnect | None = None,
        on_status: OnStatus | None = None,
        ca_file: Path | None = None,
        longest_pause: float = LONGEST_PAUSE,
        apart_from: Connection | None = None,
    ) -> None:
        super().__init__()
        self.apart_from = apart_from
        """A connection whose server is avoided where there is a choice: the end of one host cuts one of both."""
        self._ca_file = ca_file
        self._longest_pause = longest_pause
        self._before_connect = before_connect
        self._on_status = on_status
        self._came_back: list[Callable[[], None]] = []
        self._refused: list[tuple[str, Callable[[NotAllowedError], None]]] = []
        self._reason = ""
        self._connected_at = -SHORT_LIFE
        self._cut_short = 0
        self._closing: asyncio.Task[None] | None = None

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` whenever the connection is back and subscriptions are restored; returns the undo."""
        self._came_back.append(callback)
        return lambda: self._came_back.remove(callback)

    def on_refused(self, subject: str, callback: Callable[[NotAllowedError], None]) -> Callable[[], None]:
        """Call ``callback`` when nats-server does not let this client publish to ``subject``; returns the undo."""
        entry = subject, callback
        self._refused.append(entry)
        return lambda: self._refused.remove(entry)

    def inbox_for(self, subject: str) -> str:
        """A new inbox in which whoever serves ``subject`` may answer."""
        return f"{answer_prefix(self._inbox_prefix.decode(), subject)}.{secrets.token_hex(16)}"

    async def use_creds(self, creds: Path) -> None:
        """Connect anew, with these creds. What is on its way may be lost, as when a connection breaks."""
        self._user_credentials = str(creds)
        self._setup_nkeys_jwt_connect()
        if self.is_connected:  # else its next attempt uses them
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await self.flush(1)
            await self.force_reconnect()

    async def ask(self, subject: str, body: bytes, wait: float) -> Msg:
        """One request, one answer. Raises what ``request`` of nats-py raises, which asks in one inbox for all.

        Raises :class:`NotAllowedError` when nats-server says that the subject may not be published to.
        """
        inbox = self.inbox_for(subject)
        if inbox.rpartition(".")[0] == self._inbox_prefix.decode():
            return await self.request(subject, body, timeout=wait)
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        async def arrived(message: Msg) -> None:
            if not answer.done():
                answer.set_result(message)

        def refused(error: NotAllowedError) -> None:
            if not answer.done():
                answer.set_exception(error)

        self._resp_map[inbox] = answer
        forget = self.on_refused(subject, refused)
        subscription = await self.subscribe(inbox, cb=arrived)
        try:
            await self.publish(subject, body, reply=inbox)
            async with asyncio.timeout(wait):
                message = await answer
        except TimeoutError:
            raise nats.errors.TimeoutError from None
        finally:
            self._resp_map.pop(inbox, None)
            forget()
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
        if (message.headers or {}).get("Status") == "503":
            raise nats.errors.NoRespondersError
        return message

    async def _process_err(self, err_msg: str) -> None:
        error = nats.errors.Error(f"nats: {err_msg}")
        self._reason = err_msg.strip("'")
        self._err = error
        if PERMISSIONS_ERR in err_msg:
            self._refuse(err_msg)
            await self._error_cb(error)
        else:
            await self._process_op_err(error)

    def _refuse(self, err_msg: str) -> None:
        """Whoever waits for an answer that cannot come is told. nats-py makes what the server says lower-case."""
        for subject, callback in list(self._refused):
            if f'for publish to "{subject.lower()}"' in err_msg:
                callback(NotAllowedError(f"you may not publish to {subject}"))

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py writes the PING ahead of what is still pending, so that after ``flush`` a subscription may not exist
        # at the server yet. A project that says it answers must be able to.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def move_apart(self) -> None:
        """Connect to another server than :attr:`apart_from` has, if both have the same and another one accepts."""
        taken = self._taken_server()
        if taken is None or not self.is_connected or not _is_same(self._current_server, taken):
            return
        for server in self._server_pool:
            if not _is_same(server, taken) and await _accepts(server):
                server.reconnects = 0
                with contextlib.suppress(nats.errors.Error, TimeoutError):
                    await self.flush(1)  # what is on its way is read before
                await self.force_reconnect()
                return

    def _taken_server(self) -> Srv | None:
        other = self.apart_from
        return other._current_server if other is not None and other.is_connected else None

    async def _select_next_server(self) -> None:
        taken = self._taken_server()
        # One that takes a connection and then fails is not better than the one that is taken.
        if taken and any(not server.reconnects for server in self._server_pool if not _is_same(server, taken)):
            self._server_pool.sort(key=lambda server: _is_same(server, taken))
        await super()._select_next_server()

    async def _connect_to_server(self, s: Srv) -> None:
        old, self._transport = self._transport, None
        if old:
            old.close()  # type: ignore[no-untyped-call]
            with contextlib.suppress(Exception):
                await asyncio.wait_for(old.wait_closed(), 1)  # type: ignore[no-untyped-call]
        self.options["reconnect_time_wait"] = self._pause(s.reconnects)
        # A connection that is cut as soon as it is accepted counts as an attempt that failed.
        self._cut_short = self._cut_short + 1 if time.monotonic() - self._connected_at < SHORT_LIFE else 0
        if self._cut_short > FREE_RETURNS:
            await asyncio.sleep(self._pause(self._cut_short - FREE_RETURNS))
        self._report("connecting")
        try:
            headers = await self._before_connect() if self._before_connect else {}
        except SignInError as error:
            self._reason = str(error)
            self._closing = asyncio.get_running_loop().create_task(self.close())
            raise
        if self.is_closed and asyncio.current_task() is self._reconnection_task:  # by what was awaited
            raise asyncio.CancelledError
        if s.uri.scheme in ("ws", "wss"):
            self._transport = _WebSocket(headers)
            await super()._connect_to_server(s)
        else:
            s.last_attempt = time.monotonic()
            transport = _Tcp()  # type: ignore[no-untyped-call]
            await transport.connect(s.uri, DEFAULT_BUFFER_SIZE, CONNECT_TIMEOUT)
            self._transport = transport

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        info.pop("connect_urls", None)
        server: Any = self._current_server
        wants_tls = server.uri.scheme == "tls" or (server.uri.scheme == "nats" and self._ca_file is not None)
        if initial_connection and wants_tls and not info.get("tls_required"):
            # nats-py would go on in the clear, and hand over the user's JWT.
            raise nats.errors.Error(f"{server.uri.netloc} does not speak TLS")
        await super()._process_info(info, initial_connection)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self._flush_queue is None:  # a URL that nats-py refuses: nothing was opened, and its own would fail
            self._status = status
            return
        # nats-py cancels its attempts once. Where that is forgotten (see ``cancel``) they would go on for ever, and
        # leave open what they open.
        while (attempts := self._reconnection_task) not in (None, asyncio.current_task()) and not attempts.done():
            await cancel([attempts])
        transport: Any = self._transport
        if transport is not None and not self.is_closed:
            # nats-py sends what is pending before it closes, and when that fails, because the server is gone, it leaves
            # the socket open and tells nobody.
            drain = transport.drain

            async def drain_if_possible() -> None:
                with contextlib.suppress(OSError):
                    await drain()

            transport.drain = drain_if_possible
        await super()._close(status, do_cbs)

    async def give_up(self) -> None:
        """Close a connection whose first connect was cancelled, maybe in the middle of closing what it had opened."""
        await self.close()
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
            with contextlib.suppress(OSError):
                await self._transport.wait_closed()  # type: ignore[no-untyped-call]

    async def _process_connect_init(self) -> None:
        # After 2 s nats-server sends a PING, even to a client whose auth callout is still being answered (client.go,
        # firstPingInterval). nats-py would take it for the answer to its own, and itself for connected.
        transport: Any = self._transport
        server: Any = self._current_server
        read = transport.readline

        async def readline() -> bytes:
            while (line := bytes(await read())).startswith(b"PING"):
                transport.write(PONG_PROTO)
                await transport.drain()
            return line

        transport.readline = readline
        try:
            await super()._process_connect_init()
        except ssl.SSLCertVerificationError as error:
            trusted = self._ca_file or "the machine's list of CAs"
            raise nats.errors.Error(
                f"the certificate of {server.uri.netloc} is refused: {error.verify_message} (CAs: {trusted})"
            ) from error
        finally:
            del transport.readline

    def _connect_command(self) -> bytes:
        # nats-py opens a creds file for the seed and then for the JWT. One that is replaced in between would give those
        # of two users, which nats-server refuses after the whole time of an auth callout.
        file = self._user_credentials
        if not isinstance(file, str):
            return super()._connect_command()
        self._user_credentials = CredsText(Path(file).read_text())
        self._setup_nkeys_jwt_connect()
        try:
            return super()._connect_command()
        finally:
            self._user_credentials = file
            self._setup_nkeys_jwt_connect()

    def _pause(self, attempts: int) -> float:
        pause = min(self._longest_pause, 0.1 * 2 ** min(attempts, 10))
        return random.uniform(pause / 2, pause)

    def _report(self, status: Status) -> None:
        if status == "connected":
            self._connected_at = time.monotonic()
        if self._on_status is not None:
            self._on_status(status, self._reason)

    async def _error(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        log.log(logging.DEBUG if reason == self._reason else logging.INFO, "nats: %s", reason)
        self._reason = reason

    async def _disconnected(self) -> None:
        # Nobody can answer what was asked over the connection that is gone: say so now, not at the end of the wait.
        for answer in list(self._resp_map.values()):
            if not answer.done():
                answer.set_exception(nats.errors.ConnectionReconnectingError())
        self._report("disconnected")

    async def _reconnected(self) -> None:
        self._reason = ""
        self._report("connected")
        for callback in list(self._came_back):
            callback()

    async def _closed(self) -> None:
        self._report("closed")


async def connect(
    servers: NatsServers,
    *,
    name: str,
    inbox_prefix: str,
    creds: Creds | None = None,
    before_connect: BeforeConnect | None = None,
    on_status: OnStatus | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 - the first attempt's whole budget, cleaned up here
    longest_pause: float = LONGEST_PAUSE,
    apart_from: Connection | None = None,
) -> Connection:
    """Connect and stay connected. Without a ``timeout``, the first connect is tried until it succeeds.

    ``longest_pause`` is the longest time between two attempts, in seconds; ``apart_from`` a connection whose server
    is avoided while there are others.

    Raises :class:`ConnectionLostError` when the timeout is over, and :class:`NatskitError` at once for what no attempt
    can make good: an unreadable file, a malformed URL.
    """
    _check_files(creds, servers.ca_file)
    connection = Connection(before_connect, on_status, servers.ca_file, longest_pause, apart_from)
    options: dict[str, Any] = {}
    if servers.ca_file is not None:
        try:
            options["tls"] = ssl.create_default_context(cafile=str(servers.ca_file))
        except ssl.SSLError:
            raise NatskitError(f"{servers.ca_file} holds no CA: it must be a certificate in PEM") from None
    connecting = asyncio.ensure_future(
        connection.connect(
            servers=list(servers.urls),
            name=name,
            inbox_prefix=inbox_prefix,
            user_credentials=str(creds) if isinstance(creds, Path) else creds,
            connect_timeout=CONNECT_TIMEOUT,
            max_reconnect_attempts=-1,
            ping_interval=PING_INTERVAL,
            error_cb=connection._error,
            disconnected_cb=connection._disconnected,
            reconnected_cb=connection._reconnected,
            closed_cb=connection._closed,
            **options,
        )
    )
    try:
        # Not ``wait_for``: what it cancels has waits of its own, which may forget that (see ``cancel``), and goes on.
        await asyncio.wait({connecting}, timeout=timeout)
        if not connecting.done():
            raise TimeoutError
        connecting.result()
    except BaseException as error:
        reason = connection._reason
        try:
            await cancel([connecting])
        finally:
            await connection.give_up()
        if isinstance(error, nats.errors.Error):
            raise NatskitError(f"{', '.join(servers.urls)}: {error}") from error
        if isinstance(error, TimeoutError):
            raise ConnectionLostError(
                f"no connection to {', '.join(servers.urls)} within {timeout} s" + (f": {reason}" if reason else "")
            ) from None
        raise
    connection._reason = ""
    connection._report("connected")
    return connection


def _is_same(server: Srv | None, other: Srv) -> bool:
    return server is not None and bool(server.uri.netloc == other.uri.netloc)


async def _accepts(server: Srv) -> bool:
    """Whether a server takes TCP connections."""
    try:
        async with asyncio.timeout(OPEN_TIMEOUT):
            _, writer = await asyncio.open_connection(server.uri.hostname, server.uri.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _check_files(creds: Creds | None, ca_file: Path | None) -> None:
    for file in (creds, ca_file):
        if isinstance(file, Path) and not os.access(file, os.R_OK):
            raise NatskitError(f"{file} cannot be read: it does not exist, or belongs to somebody else")
    text = creds.read_text(errors="replace") if isinstance(creds, Path) else creds
    if text is not None and not _CREDS.search(str(text)):
        where = creds if isinstance(creds, Path) else "the file with this user's creds"
        raise NatskitError(f"{where} holds no JWT with its seed: restore it, or run a deploy, which writes it again")


async def request(connection: Connection, subject: str, body: bytes, wait: float) -> bytes:
    """One request, one answer. Raises :class:`AbsentError` if nobody listens, :class:`ConnectionLostError` if the
    answer is late."""
    try:
        answer = await connection.ask(subject, body, wait)
    except nats.errors.NoRespondersError:
        raise AbsentError(f"nobody answers {subject}: it is not running, or not yet") from None
    except nats.errors.TimeoutError:
        raise ConnectionLostError(f"no answer on {subject} within {wait:g} s") from None
    except nats.errors.ConnectionReconnectingError:
        raise AnswerLostError(
            f"the connection was lost before {subject} answered; what was asked may have been done"
        ) from None
    except nats.errors.Error as error:
        raise ConnectionLostError(f"{subject}: {error}") from error
    return bytes(answer.data)


def log_status(status: Status, reason: str) -> None:
    """An ``on_status`` for programs: their log says when the connection was lost and when it is back."""
    level = logging.DEBUG if status == "connecting" else logging.INFO
    log.log(level, "%s%s", status, f" ({reason})" if reason else "")


def to_json(value: Any) -> bytes:
    """The bytes of a JSON message that is no JSON-RPC."""
    return json.dumps(value, separators=(",", ":")).encode()


class _Tcp(TcpTransport):
    """nats-py's transport, which soon gives up a server that says nothing any more."""

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        await super().connect(uri, buffer_size, min(connect_timeout, OPEN_TIMEOUT))  # type: ignore[arg-type]
        writer: Any = self._io_writer
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # macOS has not all of them
                raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        plain: Any = self._io_writer
        try:
            await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        except BaseException:
            # The plain stream is never told of its end once TLS has taken over: waiting for that would last for ever.
            plain.transport.abort()
            self._io_reader = self._io_writer = None
            raise
        writer: Any = self._io_writer
        writer.transport.get_protocol()._over_ssl = True  # or asyncio warns of each connection the server closes

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


class _WebSocket(WebSocketTransport):
    """nats-py's transport, with headers of one attempt, and one WebSocket message for each flush.

    The HTTP session lives exactly as long as the WebSocket: nats-py's own is left open by a connect that fails or is
    given up, and when the server dies impolitely.
    """

    def __init__(self, headers: Headers) -> None:  # not super's: it opens a session before anything is certain
        self._ws = None
        self._client: Any = None
        self._socket: Any = None
        self._pending: asyncio.Queue[bytes] = asyncio.Queue()
        self._close_task: Any = None
        self._using_tls: bool | None = None
        self._sent_headers = headers

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
        if self._ws is not None:  # nats-py asks again after INFO; a transport is for one attempt
            if self._ws.closed:
                raise ConnectionAbortedError("the server closed the connection before it spoke NATS")
            return
        await self._open(uri, connect_timeout, ssl=ssl_context)
        self._using_tls = True

    async def _open(self, uri: str | ParseResult, connect_timeout: float, **options: Any) -> None:
        import aiohttp  # only needed, and only slow to import, where a WebSocket is used

        self._client = aiohttp.ClientSession()
        try:
            # Not ``wait_for``: with Python 3.11 it would forget a cancellation that comes with the connection.
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
                await asyncio.shield(self._client.close())  # whoever cancels may do so twice

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
            await asyncio.shield(self._close_task)  # whoever waits may be cancelled, the end may not

    async def _end(self, opened: Any) -> None:
        try:
            await opened.close()
        finally:
            await self._client.close()
            # aiohttp leaves the end of the TLS session to itself, which may take 30 s, or outlive the event loop.
            self._socket.abort()
            await asyncio.sleep(0)
