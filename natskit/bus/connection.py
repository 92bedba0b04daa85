"""A NATS connection that reconnects until its owner closes it.

nats-py reconnects when a connection breaks, but closes for good when the server gives a reason: an expired user JWT
(``User Authentication Expired``) ends the client object, although the server would authorise the next connect. Every
connection that the auth callout authorises expires (``hub_authorization_ttl``), so a natskit client has to reconnect
then. A session's cookie may have changed by that time: the connection awaits ``before_connect`` before each attempt,
and sends the headers it returns with the WebSocket upgrade. A :class:`SignInError` from it ends the connection.

The connection uses only the servers in its list. nats-py would add servers that a cluster announces, check the
certificate of such an address against the name of the announcing server, and connect to it over TCP instead of by
WebSocket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import nats.errors
from nats.aio.client import DEFAULT_BUFFER_SIZE, PING_PROTO, PONG_PROTO, Srv
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.protocol.parser import PERMISSIONS_ERR

from natskit.bus.credentials import Creds, CredsText, check_creds, check_readable
from natskit.bus.large_messages import LargeMessageParser
from natskit.bus.payload import Pieces, headers_size
from natskit.bus.permissions import answer_prefix
from natskit.bus.servers import NatsServers
from natskit.bus.tcp_transport import CLOSE_SECONDS, OPEN_TIMEOUT, TcpTransport
from natskit.bus.tls_trust import client_context, trusted
from natskit.errors import ConnectionLostError, NatskitError, NotAllowedError, SignInError
from natskit.process.lifecycle import cancel, spawn

log = logging.getLogger(__name__)

Status = Literal["connecting", "connected", "disconnected", "closed"]
Headers = dict[str, str]
BeforeConnect = Callable[[], Awaitable[Headers]]
OnStatus = Callable[[Status, str], None]
TakeRaw = Callable[[bytes, bytes], bool]
"""Takes the headers and the data of an answer, and says whether it was the last."""


CONNECT_TIMEOUT = 5
"""Seconds. The auth callout alone may take two of them when all hubs have just restarted."""

LONGEST_PAUSE = 3.0
"""The most seconds between attempts. Half of it is random, so that thousands of clients do not reconnect at once."""

ANOTHER_PLATFORM = (
    "The nats-server there does not accept these credentials. If another platform took its port while this one was "
    "starting, stop that platform (scripts/down FOLDER) or set other ports, and deploy again"
)
"""The port was free when the deploy looked. What answers there now may be anybody's nats-server."""

SHORT_LIFE = 2.0
"""Seconds. A connection that ends sooner counts as a failed attempt."""
KICKED_LIFE = 0.05
"""The same when a hub has disconnected the client: rights may change at any moment, and a hub collects changes for
twice as long."""
FREE_RETURNS = 6
"""How many failed attempts in a row are normal. A client that is disconnected more often waits before the next one."""
PING_INTERVAL = 5
"""Seconds. The client notices a half-open connection after two unanswered pings. Behind a proxy nothing else shows it:
the connection to the proxy works when the one behind it does not."""


class Connection(NatsClient):
    """A nats-py client that reconnects, for whatever reason the connection ended, until its owner closes it."""

    def __init__(
        self,
        before_connect: BeforeConnect | None = None,
        on_status: OnStatus | None = None,
        ca_file: Path | None = None,
        longest_pause: float = LONGEST_PAUSE,
        apart_from: Connection | None = None,
    ) -> None:
        super().__init__()
        self._ps = LargeMessageParser(self)
        self.apart_from = apart_from
        """Avoid the server of this connection where there is a choice, so that the loss of a host ends only one."""
        self._ca_file = ca_file
        self._longest_pause = longest_pause
        self._before_connect = before_connect
        self._on_status = on_status
        self._came_back: list[Callable[[], None]] = []
        self._raw: dict[int, Callable[[bytes, bytes], None]] = {}
        """What answers of :meth:`ask_many` are handed to, by their subscription."""
        self._refused: list[tuple[str, Callable[[NotAllowedError], None]]] = []
        self._reason = ""
        self._connected_at = -SHORT_LIFE
        self._was_let_in = False
        """Whether the present connection, or the one that has just ended, was authorised."""
        self._cut_short = 0
        self._closing: asyncio.Task[None] | None = None
        self._endings: set[asyncio.Task[None]] = set()
        """Transports that are being closed."""

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after each reconnect, when subscriptions are restored. Call the result to stop that."""
        self._came_back.append(callback)
        return lambda: self._came_back.remove(callback)

    def on_refused(self, subject: str, callback: Callable[[NotAllowedError], None]) -> Callable[[], None]:
        """Call ``callback`` when nats-server refuses a publish to ``subject``. Call the result to stop that."""
        entry = subject, callback
        self._refused.append(entry)
        return lambda: self._refused.remove(entry)

    def inbox_for(self, subject: str) -> str:
        """A new inbox to which the service behind ``subject`` may publish its answer."""
        return f"{answer_prefix(self._inbox_prefix.decode(), subject)}.{secrets.token_hex(16)}"

    async def use_creds(self, creds: Path) -> None:
        """Reconnect with these creds. Messages in transit may be lost, as when a connection breaks."""
        self._user_credentials = str(creds)
        if self.is_connected:  # else its next attempt uses them
            await self._connect_anew()

    async def ask(self, subject: str, body: bytes | Pieces, wait: float, headers: dict[str, str] | None = None) -> Msg:
        """Send one request and return its answer.

        nats-py's ``request`` uses one inbox for all answers; a project or a runner may answer only in an inbox with its
        own id. Raises the errors of nats-py's ``request``, and :class:`NotAllowedError` if nats-server refuses the
        publish.
        """
        inbox = self.inbox_for(subject)
        if inbox.rpartition(".")[0] == self._inbox_prefix.decode():
            content: Any = body
            return await self.request(subject, content, timeout=wait, headers=headers)
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
            await self.publish(subject, body, reply=inbox, headers=headers)
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

    async def ask_many(self, subject: str, body: bytes, take: TakeRaw, stall: float) -> None:
        """Send one request, and hand the headers and the data of each answer to ``take`` until that returns true.

        They are the bytes that nats-server sent: nats-py's own messages, with their headers parsed and a queue in
        between, cost several times as much, which counts for hundreds of thousands of answers. ``take`` must be quick.

        Raises what ``take`` raises, and :class:`nats.errors.Error`: if no other answer follows for ``stall`` seconds,
        if nobody listens, or if the connection breaks.
        """
        inbox = self.inbox_for(subject)
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answers = 0

        def arrived(headers: bytes, data: bytes) -> None:
            nonlocal answers
            answers += 1
            if ended.done():
                return
            try:
                if headers.startswith(b"NATS/1.0 503"):
                    raise nats.errors.NoRespondersError
                if take(headers, data):
                    ended.set_result(None)
            except Exception as error:
                ended.set_exception(error)

        subscription = await self.subscribe(inbox, cb=_ignore)
        self._raw[subscription._id] = arrived
        self._resp_map[inbox] = ended
        try:
            await self.publish(subject, body, reply=inbox)
            while not ended.done():
                before = answers
                await asyncio.wait({ended}, timeout=stall)
                if not ended.done() and answers == before:
                    raise nats.errors.TimeoutError
            ended.result()
        finally:
            ended.cancel()
            self._resp_map.pop(inbox, None)
            self._raw.pop(subscription._id, None)
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if (arrived := self._raw.get(sid)) is not None:
            arrived(headers or b"", data)
            return
        await super()._process_msg(sid, subject, reply, data, headers)

    async def publish(
        self, subject: str, payload: bytes | Pieces = b"", reply: str = "", headers: dict[str, Any] | None = None
    ) -> None:
        """Publish a message, as nats-py does.

        Raises :class:`nats.errors.MaxPayloadError` also if payload and headers together are too large: nats-server
        disconnects a client for that, and nats-py checks the payload alone.
        """
        if headers and len(payload) + headers_size(headers) > self.max_payload:
            raise nats.errors.MaxPayloadError
        content: Any = payload
        await super().publish(subject, content, reply, headers)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes | Pieces, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        if not isinstance(payload, Pieces):
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        # nats-py would join the pieces. They follow each other here, since nothing else runs until the last one.
        lines = "".join(f"{key}: {value}\r\n" for key, value in (headers or {}).items())
        header = f"NATS/1.0\r\n{lines}\r\n".encode()
        command = f"HPUB {subject} {reply} {len(header)} {len(header) + payload_size}\r\n".encode() + header
        self._pending += [command, *payload]
        self._pending_data_size += len(command) + payload_size
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        await self._send_command(b"\r\n")
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

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
        """Tell the callers whose request nats-server has refused. nats-py changes the server's text to lower case."""
        for subject, callback in list(self._refused):
            if f'for publish to "{subject.lower()}"' in err_msg:
                callback(NotAllowedError(f"you may not publish to {subject}"))

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py writes the PING ahead of pending commands, so after ``flush`` a subscription may not exist at the
        # server yet. A project that reports itself ready must be able to answer.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        # A PONG may arrive after its ``flush`` has given up: nats-py would fail, and then read nothing any more.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def move_apart(self) -> None:
        """If this connection and :attr:`apart_from` share a server, move this one to another server that accepts it."""
        taken = self._taken_server()
        if taken is None or not self.is_connected or not _is_same(self._current_server, taken):
            return
        for server in self._server_pool:
            if not _is_same(server, taken) and await _accepts(server):
                server.reconnects = 0
                await self._connect_anew()
                return

    async def _connect_anew(self) -> None:
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await self.flush(1)  # send pending messages, and read those in transit, first
        await self.force_reconnect()

    def _taken_server(self) -> Srv | None:
        other = self.apart_from
        return other._current_server if other is not None and other.is_connected else None

    async def _select_next_server(self) -> None:
        taken = self._taken_server()
        # A server that accepts a connection and then fails is no better than sharing one.
        if taken and any(not server.reconnects for server in self._server_pool if not _is_same(server, taken)):
            self._server_pool.sort(key=lambda server: _is_same(server, taken))
        await super()._select_next_server()

    async def _connect_to_server(self, s: Srv) -> None:
        old, self._transport = self._transport, None
        if old:
            await asyncio.wait({self._leave(old)}, timeout=CLOSE_SECONDS)
        self.options["reconnect_time_wait"] = self._pause(s.reconnects)
        # A connection that the server ends as soon as it was accepted counts as a failed attempt.
        life = KICKED_LIFE if _is_kicked(old) else SHORT_LIFE
        self._cut_short = self._cut_short + 1 if time.monotonic() - self._connected_at < life else 0
        if self._cut_short > FREE_RETURNS:
            await asyncio.sleep(self._pause(self._cut_short - FREE_RETURNS))
        self._report("connecting")
        try:
            headers = await self._before_connect() if self._before_connect else {}
        except SignInError as error:
            self._reason = str(error)
            self._begin_close(NatsClient.CLOSED)
            raise
        if self.is_closed and asyncio.current_task() is self._reconnection_task:  # ``before_connect`` has closed it
            raise asyncio.CancelledError
        if s.uri.scheme in ("ws", "wss"):
            from natskit.bus.websocket_transport import WebSocketTransport  # takes 11 MB, see there

            self._transport = WebSocketTransport(headers)
            await super()._connect_to_server(s)
        else:
            s.last_attempt = time.monotonic()
            transport = TcpTransport()
            await transport.connect(s.uri, DEFAULT_BUFFER_SIZE, CONNECT_TIMEOUT)
            self._transport = transport

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        info.pop("connect_urls", None)
        server: Any = self._current_server
        wants_tls = server.uri.scheme == "tls" or (server.uri.scheme == "nats" and self._ca_file is not None)
        if initial_connection and wants_tls and not info.get("tls_required"):
            # nats-py would continue without TLS, and send the user's JWT in the clear.
            raise nats.errors.Error(f"{server.uri.netloc} does not speak TLS")
        await super()._process_info(info, initial_connection)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self._flush_queue is None:  # nats-py refused the URL: nothing is open, and its own ``_close`` would fail
            self._status = status
            return
        # In a task of its own: the caller may be cancelled, and nats-py would leave the socket open. A second caller
        # waits for the same task.
        await asyncio.shield(self._begin_close(status, do_cbs))

    def _begin_close(self, status: int, do_cbs: bool = True) -> asyncio.Task[None]:
        if self._closing is None or self._closing.done():
            self._closing = asyncio.get_running_loop().create_task(self._close_all(status, do_cbs))
        return self._closing

    async def _close_all(self, status: int, do_cbs: bool) -> None:
        """Close, and wait until no socket of any attempt is open."""
        # nats-py cancels its reconnect task once. If the task loses that cancellation (see ``cancel``), it would go on
        # for ever, and leave sockets open.
        while (attempts := self._reconnection_task) is not None and not attempts.done():
            await cancel([attempts])
        transport: Any = self._transport
        if transport is not None and not self.is_closed:
            # nats-py sends pending messages before it closes. If that fails, because the server is gone, nats-py leaves
            # the socket open and calls no callback. A server that stopped reading would keep it waiting for ever.
            drain = transport.drain

            async def drain_if_possible() -> None:
                with contextlib.suppress(OSError):
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        await drain()

            transport.drain = drain_if_possible
        try:
            await super()._close(status, do_cbs)
        finally:
            if self._transport is not None:  # an attempt was cancelled, or the event loop ends
                self._leave(self._transport)
        while self._endings:
            await asyncio.wait(self._endings)

    def _leave(self, transport: Any) -> asyncio.Task[None]:
        """Start to close a transport, and return the task that waits for its end."""

        async def closed() -> None:
            with contextlib.suppress(Exception):  # errors of a connection that was given up concern nobody
                await transport.wait_closed()

        transport.close()
        return spawn(self._endings, closed())

    async def _process_connect_init(self) -> None:
        # After 2 s nats-server sends a PING, even to a client that still waits for the auth callout (client.go,
        # firstPingInterval). nats-py would take it for the answer to its own PING, and consider itself connected. So it
        # would if the connection ends before that answer, as when a hub is busy.
        transport: Any = self._transport
        server: Any = self._current_server
        read = transport.readline

        async def readline() -> bytes:
            while (line := bytes(await read())).startswith(b"PING"):
                transport.write(PONG_PROTO)
                await transport.drain()
            if not line:
                raise nats.errors.UnexpectedEOF
            return line

        transport.readline = readline
        try:
            await super()._process_connect_init()
        except ssl.SSLCertVerificationError as error:
            raise nats.errors.Error(
                f"the certificate of {server.uri.netloc} is refused: {error.verify_message} "
                f"(CAs: {trusted(self._ca_file)})"
            ) from error
        finally:
            del transport.readline

    def _connect_command(self) -> bytes:
        # nats-py reads a creds file twice, for the seed and for the JWT. If the file is replaced in between, they
        # belong to two users, and nats-server refuses them after the full timeout of an auth callout.
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
        if status in ("connecting", "connected"):
            self._was_let_in = status == "connected"
        if status == "connected":
            self._connected_at = time.monotonic()
        if self._on_status is not None:
            self._on_status(status, self._reason)

    async def _error(self, error: Exception) -> None:
        if _is_kicked(self._transport):
            changed = "a hub has disconnected this client: its rights have changed"
            self._reason = changed if self._was_let_in else "the hubs are busy: they have asked this client to wait"
            log.debug("%s", self._reason)
            return
        reason = str(error) or type(error).__name__
        log.log(logging.DEBUG if reason == self._reason else logging.INFO, "nats: %s", reason)
        self._reason = reason

    async def _disconnected(self) -> None:
        # No answer can arrive over a connection that is gone: fail pending requests now, not at their timeout.
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
    """Connect and stay connected. Without a ``timeout``, try until the first connect succeeds.

    ``longest_pause`` is the longest time between two attempts, in seconds. The connection avoids the server of
    ``apart_from`` while there are others.

    Raises :class:`ConnectionLostError` when the timeout is over, and :class:`NatskitError` at once if no attempt can
    succeed: an unreadable file, a malformed URL.
    """
    if creds is not None:
        check_creds(creds)
    if servers.ca_file is not None:
        check_readable(servers.ca_file)
    connection = Connection(before_connect, on_status, servers.ca_file, longest_pause, apart_from)
    options: dict[str, Any] = {}
    if servers.ca_file is not None or any(url.startswith(("tls://", "wss://")) for url in servers.urls):
        try:
            options["tls"] = client_context(servers.ca_file)
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
        # Not ``wait_for``: it cancels once, and the task may lose that cancellation and go on (see ``cancel``).
        await asyncio.wait({connecting}, timeout=timeout)
        if not connecting.done():
            raise TimeoutError
        connecting.result()
    except BaseException as error:
        reason = connection._reason
        if creds is not None and "authorization violation" in reason.lower():
            reason += f". {ANOTHER_PLATFORM}"
        try:
            await cancel([connecting])
        finally:
            await connection.close()
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


async def _ignore(_: Msg) -> None:
    """No message gets here."""


def _is_kicked(transport: Any) -> bool:
    return transport is not None and bool(transport.kicked)


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


def log_status(status: Status, reason: str) -> None:
    """An ``on_status`` for programs: log when the connection is lost and when it is back."""
    level = logging.DEBUG if status == "connecting" else logging.INFO
    log.log(level, "%s%s", status, f" ({reason})" if reason else "")
