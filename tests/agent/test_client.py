"""Signing in and staying connected. A small proxy stands for nginx and the hubs; nats-server is real."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import aiohttp
import nats.errors
import pytest
from aiohttp import web
from nats.aio.msg import Msg

import natskit.bus.request
import natskit.client
from natskit import rpc
from natskit.bus.connection import Status, connect
from natskit.bus.servers import NatsServers
from natskit.bus.websocket_transport import WebSocketTransport
from natskit.client import Client
from natskit.errors import AbsentError, ConnectionLostError, NatskitError, SignInError
from tests.kit.wait import eventually
from tests.platform.line import Line

from .conftest import Server
from .test_streams import kick, server_id

ACCOUNT = str(uuid.uuid4())
WEBSOCKET = """
websocket { listen: "127.0.0.1:PORT", no_tls: true }
no_auth_user: admin
"""


class Front:
    """``/api`` and ``/nats`` on one port. Records the clients' requests."""

    def __init__(self, websocket_port: int) -> None:
        self.url = ""
        self.session = "s1"
        self.account_id = ACCOUNT
        self.refreshes = 0
        self.cookies: list[str] = []
        self.origins: set[str | None] = set()
        self._websocket_port = websocket_port

    async def sign_in(self, request: web.Request) -> web.Response:
        self.origins.add(request.headers.get("Origin"))
        body = await request.json()
        if body != {"email": "a@example.org", "password": "right"}:
            error = {"error": {"code": "wrong_credentials", "message": "e-mail or password is wrong"}}
            return web.json_response(error, status=401)
        return self._welcome()

    async def get_session(self, request: web.Request) -> web.Response:
        self.refreshes += 1
        if request.cookies.get("natskit") != self.session:
            return web.json_response({"error": {"code": "no_session", "message": "no"}}, status=401)
        self.session = f"s{self.refreshes + 1}"
        return self._welcome()

    async def sign_out(self, _request: web.Request) -> web.Response:
        self.session = "ended"
        return web.Response(status=204)

    async def nats(self, request: web.Request) -> web.StreamResponse:
        self.origins.add(request.headers.get("Origin"))
        self.cookies.append(request.cookies["natskit"])
        if request.cookies["natskit"] != self.session:
            return web.Response(status=403)
        here = web.WebSocketResponse(max_msg_size=0)
        await here.prepare(request)
        async with aiohttp.ClientSession() as session:
            url = f"ws://127.0.0.1:{self._websocket_port}"
            async with session.ws_connect(url, max_msg_size=0) as there:
                tasks = {asyncio.ensure_future(_pipe(here, there)), asyncio.ensure_future(_pipe(there, here))}
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in tasks:
                        task.cancel()
        await here.close()
        return here

    def _welcome(self) -> web.Response:
        response = web.json_response(
            {
                "account_id": self.account_id,
                "email": "a@example.org",
                "must_change_password": False,
                "nats": {"path": "/nats", "inbox_prefix": f"_INBOX.account.{ACCOUNT}"},
            }
        )
        response.set_cookie("natskit", self.session, httponly=True)
        return response


async def _pipe(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    target: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        async for message in source:
            if message.type == aiohttp.WSMsgType.BINARY:
                await target.send_bytes(message.data)


@pytest.fixture(scope="module")
def websocket_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory))
        server.extra = WEBSOCKET
        server.start()
        yield server
        server.stop()


@pytest.fixture
async def front(websocket_server: Server) -> AsyncIterator[Front]:
    front = Front(websocket_server.websocket_port)
    app = web.Application()
    app.router.add_post("/api/sign-in", front.sign_in)
    app.router.add_post("/api/sign-out", front.sign_out)
    app.router.add_get("/api/session", front.get_session)
    app.router.add_get("/nats", front.nats)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    front.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    yield front
    await runner.cleanup()


async def test_sign_in_call_and_come_back(front: Front, websocket_server: Server) -> None:
    statuses: list[Status] = []
    async with await Client.sign_in(front.url, "a@example.org", "right") as client:
        client.on_status(lambda status, _reason: statuses.append(status))
        assert client.account_id == ACCOUNT
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        async def note(message: Msg) -> None:
            heard.put_nowait(message.data)

        stop = await client.subscribe(f"events.account.{ACCOUNT}.>", note)
        await client.publish(f"events.account.{ACCOUNT}.projects", b"1")
        assert await asyncio.wait_for(heard.get(), 5) == b"1"
        assert front.cookies == ["s1"]

        await kick(websocket_server, client.connection.client_id, server_id(client))
        await eventually(lambda: statuses[-1:] == ["connected"], "the client is back")
        assert front.refreshes == 1
        assert front.cookies == ["s1", "s2"], "the second attempt brings the refreshed cookie"
        await client.publish(f"events.account.{ACCOUNT}.projects", b"2")
        assert await asyncio.wait_for(heard.get(), 5) == b"2"
        await stop()

        statuses.clear()
        await asyncio.to_thread(websocket_server.stop)
        await eventually(lambda: "connecting" in statuses, "it tries")
        await asyncio.to_thread(websocket_server.start)
        await eventually(lambda: statuses[-1:] == ["connected"], "the client is back")
    assert front.origins == {front.url}


async def test_an_expired_authorisation_is_no_end(websocket_server: Server) -> None:
    """When the JWT of a callout's answer expires, nats-server sends an error after which plain nats-py closes for
    good."""
    statuses: list[Status] = []
    client = await Client.admin(websocket_server.url("admin"), None)
    client.on_status(lambda status, _reason: statuses.append(status))
    await client.connection._process_err("'user authentication expired'")
    await eventually(lambda: statuses[-1:] == ["connected"], "the client is back")
    assert statuses[0] == "disconnected"
    await client.connection.flush()
    await client.close()


async def test_what_no_attempt_can_make_good() -> None:
    with pytest.raises(NatskitError, match=r"/missing\.creds cannot be read"):
        await Client.admin("nats://127.0.0.1:1", "/missing.creds")
    with pytest.raises(NatskitError, match="invalid"):
        await Client.admin("nats://", None)


async def test_being_cut_at_once_again_and_again_is_slowed_down(websocket_server: Server) -> None:
    client = await Client.admin(websocket_server.url("admin"), None)
    began, returns = time.monotonic(), 0
    while time.monotonic() - began < 2:
        back = asyncio.Event()
        forget = client.connection.on_reconnect(back.set)
        await client.connection._process_err("'something'")
        await back.wait()
        forget()
        returns += 1
    assert returns <= 12
    await client.close()


async def test_what_was_asked_over_a_lost_connection_fails_at_once(websocket_server: Server) -> None:
    client = await Client.admin(websocket_server.url("admin"), None)
    asked = asyncio.Event()

    async def never_answer(_message: Msg) -> None:
        asked.set()

    await client.subscribe("hub.admin", never_answer)
    call = asyncio.ensure_future(client.call_hub("not_to_be_repeated", wait=60))
    await asyncio.wait_for(asked.wait(), 5)
    await kick(websocket_server, client.connection.client_id, server_id(client))
    with pytest.raises(ConnectionLostError, match="may have been carried out"):
        await asyncio.wait_for(call, 5)
    await client.close()


async def test_what_may_be_done_twice_is_asked_again(websocket_server: Server) -> None:
    client = await Client.admin(websocket_server.url("admin"), None)
    answers: asyncio.Queue[Msg] = asyncio.Queue()

    async def take(message: Msg) -> None:
        answers.put_nowait(message)

    await client.subscribe("hub.admin", take)
    call = asyncio.ensure_future(client.call_hub("ping", wait=60))
    await asyncio.wait_for(answers.get(), 5)
    await kick(websocket_server, client.connection.client_id, server_id(client))
    again = await asyncio.wait_for(answers.get(), 5)
    await again.respond(rpc.encode_result(1, "pong"))
    assert await asyncio.wait_for(call, 5) == "pong"
    await client.close()


async def test_who_is_away_for_a_moment_is_asked_again(
    websocket_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await Client.admin(websocket_server.url("admin"), None)
    asked: list[str] = []

    async def answer(message: Msg) -> None:
        await message.respond(rpc.encode_result(1, "done"))

    async def request(*args: Any) -> tuple[bytes, memoryview]:
        asked.append(args[1])
        try:
            return await natskit.bus.request.request_with_data(*args)
        except AbsentError:
            if len(asked) == 3:
                await client.subscribe("hub.admin", answer)
            raise

    monkeypatch.setattr(natskit.client, "request_with_data", request)
    monkeypatch.setattr(natskit.client, "ABSENT_SECONDS", 0.01)
    with pytest.raises(ConnectionLostError, match=r"nobody answers hub\.admin"):
        await client.call_hub("not_to_be_repeated")
    assert len(asked) == 2
    assert await client.call_hub("not_to_be_repeated") == "done"
    await client.close()


async def test_wrong_password(front: Front) -> None:
    with pytest.raises(SignInError, match="e-mail or password is wrong"):
        await Client.sign_in(front.url, "a@example.org", "wrong")


async def test_nothing_there() -> None:
    with pytest.raises(ConnectionLostError):
        await Client.sign_in("http://127.0.0.1:1", "a@example.org", "right")
    with pytest.raises(NatskitError, match="not a URL"):
        await Client.sign_in("localhost", "a@example.org", "right")


async def test_the_end_of_the_session_ends_the_client(front: Front, websocket_server: Server) -> None:
    statuses: list[tuple[Status, str]] = []
    client = await Client.sign_in(front.url, "a@example.org", "right")
    client.on_status(lambda status, reason: statuses.append((status, reason)))
    front.session = "ended elsewhere"
    await kick(websocket_server, client.connection.client_id, server_id(client))
    await eventually(lambda: statuses[-1:] and statuses[-1][0] == "closed", "the client closes")
    assert "session has ended" in statuses[-1][1]
    await client.close()


async def test_sign_out(front: Front) -> None:
    client = await Client.sign_in(front.url, "a@example.org", "right")
    await client.sign_out()
    assert front.session == "ended"
    assert client.status == "closed"


async def test_the_end_of_a_program_is_the_end_of_its_session(front: Front) -> None:
    async with await Client.sign_in(front.url, "a@example.org", "right"):
        assert front.session == "s1"
    assert front.session == "ended"


async def test_a_sign_in_that_fails_half_way_leaves_no_session(front: Front) -> None:
    front.account_id = "not an id"
    with pytest.raises(NatskitError, match="not an id"):
        await Client.sign_in(front.url, "a@example.org", "right")
    assert front.session == "ended"


async def test_a_websocket_that_died_before_nats_spoke_is_not_opened_again() -> None:
    """nats-py asks for TLS again after INFO. A second session would hide the first one, and nobody would close that."""

    async def upgrade_and_leave(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/", upgrade_and_leave)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    uri = urlparse(site.name.replace("http", "ws"))._replace(netloc=f"127.0.0.1:{runner.addresses[0][1]}", path="/")
    transport = WebSocketTransport({})
    await transport.connect(uri, 0, 5)
    assert await transport.readline() == b""
    first = transport._client
    with pytest.raises(ConnectionError):
        await transport.connect_tls(uri, ssl.create_default_context(), 0, 5)
    transport.close()
    await transport.wait_closed()
    assert transport._client is first
    assert first.closed
    await runner.cleanup()


def _url(server: Server, scheme: str) -> str:
    return f"ws://127.0.0.1:{server.websocket_port}" if scheme == "ws" else server.url("admin")


def _is_closed(transport: Any, scheme: str) -> bool:
    return bool(transport._client.closed if scheme == "ws" else transport._io_writer.is_closing())


@pytest.mark.parametrize("scheme", ["ws", "nats"])
async def test_closing_during_a_reconnect_leaves_nothing_open(websocket_server: Server, scheme: str) -> None:
    """Whatever awaits in between may forget that it was cancelled (see ``natskit.process.lifecycle.cancel``)."""
    between, calls = asyncio.Event(), 0

    async def forgetful() -> dict[str, str]:
        nonlocal calls
        calls += 1
        if calls > 1:
            between.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
        return {}

    url = _url(websocket_server, scheme)
    connection = await connect(
        NatsServers(urls=[url]), name="forgetful", inbox_prefix="_INBOX.admin", before_connect=forgetful
    )
    client_id, server = connection.client_id, connection._server_info["server_id"]
    await kick(websocket_server, client_id, server)
    await asyncio.wait_for(between.wait(), 5)
    await connection.close()
    task = connection._reconnection_task
    assert task is not None
    await asyncio.wait({task}, timeout=5)
    assert task.done()
    assert connection._transport is None or _is_closed(connection._transport, scheme)


async def test_closing_while_being_refused_ends_the_attempts() -> None:
    """The refusal and the close arrive in the same turn of the event loop. ``wait_for`` of Python 3.11 then loses the
    cancellation, and nats-py would try to connect forever."""
    refusing: list[asyncio.StreamWriter] = []
    pinged = asyncio.Event()

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1024,"auth_required":true}\r\n')
        while (line := await reader.readline()) and not line.startswith(b"PING"):
            pass
        if not refusing:
            writer.write(b"PONG\r\n")
        refusing.append(writer)
        pinged.set()

    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    connection = await connect(NatsServers(urls=[url]), name="refused", inbox_prefix="_INBOX.admin")
    pinged.clear()
    await connection.force_reconnect()
    await asyncio.wait_for(pinged.wait(), 5)
    transport: Any = connection._transport
    transport._io_reader.feed_data(b"-ERR 'Authorization Violation'\r\n")
    await asyncio.sleep(0)  # let the task that waits for the line run, and then the task that waits for it
    await connection.close()
    assert connection._reconnection_task is not None
    assert connection._reconnection_task.done()
    assert connection.is_closed
    assert connection._transport is None or _is_closed(connection._transport, "nats")
    for writer in refusing:
        writer.close()
    listening.close()
    await listening.wait_closed()


async def test_closing_with_something_unsent_while_nobody_is_there() -> None:
    async def upgrade(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_bytes(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1024}\r\n')
        async for message in socket:
            if b"PING" in message.data:
                await socket.send_bytes(b"PONG\r\n")
        return socket

    app = web.Application()
    app.router.add_get("/", upgrade)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    told: list[Status] = []
    connection = await connect(
        NatsServers(urls=[f"ws://127.0.0.1:{runner.addresses[0][1]}"]),
        name="unsent",
        inbox_prefix="_INBOX.admin",
        on_status=lambda status, _reason: told.append(status),
    )
    await runner.cleanup()
    await eventually(lambda: told.count("connecting") > 2, "it is tried in vain")
    await connection.publish("x", b"unsent")
    await connection.close()
    assert told[-1] == "closed"


@pytest.mark.parametrize("scheme", ["ws", "nats"])
async def test_closing_with_something_unsent_to_a_dead_server_closes_the_socket(
    websocket_server: Server, scheme: str
) -> None:
    """nats-py flushes before it closes, and would leave the socket open when the flush fails."""
    url = _url(websocket_server, scheme)
    told: list[Status] = []
    connection = await connect(
        NatsServers(urls=[url]),
        name="unsent",
        inbox_prefix="_INBOX.admin",
        on_status=lambda status, _reason: told.append(status),
    )
    transport: Any = connection._transport

    async def fail() -> None:
        raise ConnectionResetError("Cannot write to closing transport")

    transport.drain = fail
    connection._pending, connection._pending_data_size = [b"PUB x 0\r\n\r\n"], 11
    await connection.close()
    assert told[-1] == "closed"
    assert _is_closed(transport, scheme)


@pytest.mark.parametrize("scheme", ["ws", "nats"])
@pytest.mark.parametrize("turns", range(4))
async def test_a_close_that_is_cancelled_and_one_meanwhile_leave_no_socket_open(
    websocket_server: Server, scheme: str, turns: int
) -> None:
    """On a busy machine, a timeout around a close often cancels it, and another task closes at the same time."""
    connection = await connect(
        NatsServers(urls=[_url(websocket_server, scheme)]), name="twice", inbox_prefix="_INBOX.admin", timeout=10
    )
    transport: Any = connection._transport
    first = asyncio.create_task(connection.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    await connection.close()
    assert connection.is_closed
    assert _is_closed(transport, scheme)


async def test_after_a_flush_the_server_has_each_subscription_of_before(directory: Path) -> None:
    """nats-py sends the PING of a flush before a pending SUB. The server's own trace shows the order."""
    server = Server(directory)
    server.extra = "trace: true"
    server.start()
    try:
        connection = await connect(
            NatsServers(urls=[server.url("admin")]), name="flush", inbox_prefix="_INBOX.admin", timeout=10
        )
        await connection.subscribe("first.>", cb=_ignore)
        await connection.flush()
        said = server.log()
        assert said.index("[SUB first.>") < said.rindex("[PING]")
        await connection.close()
    finally:
        server.stop()


async def test_a_connection_goes_on_after_a_flush_that_timed_out(directory: Path) -> None:
    """nats-py 2.16.0 stops reading when the PONG arrives later, and does not reconnect."""
    server = Server(directory)
    server.start()
    try:
        with Line(urlparse(server.url("admin")).port or 4222) as line:
            through = re.sub(r":\d+$", f":{line.port}", server.url("admin"))
            connection = await connect(
                NatsServers(urls=[through]), name="late", inbox_prefix="_INBOX.admin", timeout=10
            )
            line.hold()
            with pytest.raises(nats.errors.TimeoutError):
                await connection.flush(1)
            line.release()
            await connection.flush(10)
            assert connection.stats["reconnects"] == 0
            await connection.close()
    finally:
        server.stop()


async def _ignore(_message: Msg) -> None:
    """Discard a message."""
