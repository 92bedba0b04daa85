"""natskit's JWTs on a real nats-server: who may connect, and which JWTs and answers of a hub it refuses."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from natskit.bus.connection import Connection, connect
from natskit.bus.servers import NatsServers
from natskit.identity import claims, nkey
from natskit.identity.identity import STATIC_USERS, Identity
from tests.kit.nats import operator_mode, running
from tests.kit.ports import free_port

NOW = int(time.time())
RUNNER = "5f0c6f0e-7a3e-4c8e-9d5b-0c1f2e3d4a5b"
VIOLATION = "-ERR 'Authorization Violation'"


@dataclass
class Server:
    """A nats-server, and the hub's side of its callout, which answers as the test says."""

    identity: Identity
    port: int
    jwt: str
    seed: str
    answer: str = "good"
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def on_callout(self, message: Msg) -> None:
        asked = claims.decode(message.data.decode())["nats"]
        self.asked.append(asked)
        keys, user_nkey = self.identity.hub_keys(), asked["user_nkey"]
        user = claims.platform_user_claims(
            subject=nkey.public_key(nkey.create_seed("user")) if self.answer == "subject" else user_nkey,
            name=f"runner.{RUNNER}.-.abc",
            tags=[f"runner:{RUNNER}"],
            platform_account=keys.platform_account,
            issued_at=NOW,
            expires_at=NOW - 10 if self.answer == "expired" else NOW + 900,
        )
        if self.answer == "permissions":
            user["nats"]["pub"] = {"allow": [">"]}
        seed = nkey.create_seed("account") if self.answer == "foreign" else keys.platform_seeds["runner"]
        jwt = claims.encode(user, nkey.key_pair(seed))
        if self.answer == "tampered":
            jwt = tampered(jwt)
        result = {"error": "no"} if self.answer == "error" else {"jwt": jwt}
        response = claims.authorization_response_claims(
            user_nkey=user_nkey,
            server_id=asked["server_id"]["id"],
            auth_account=keys.auth_account,
            issued_at=NOW,
            **result,
        )
        await message.respond(claims.encode(response, nkey.key_pair(keys.auth_signing_seed)).encode())


def tampered(jwt: str) -> str:
    """The same claims with another signature."""
    head, body, signature = jwt.split(".")
    return f"{head}.{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


async def knock(server: Server, jwt: str, seed: str, *commands: str) -> list[str]:
    """The server's answer to a client that connects, sends commands and pings, up to the pong or the end."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            nonce = json.loads((await reader.readline()).removeprefix(b"INFO "))["nonce"]
            signature = base64.b64encode(nkey.key_pair(seed).sign(nonce.encode())).decode()
            options = {"jwt": jwt, "sig": signature, "verbose": False, "pedantic": False, "protocol": 1}
            lines = [f"CONNECT {json.dumps(options)}", *commands, "PING", ""]
            writer.write("\r\n".join(lines).encode())
            heard: list[str] = []
            with contextlib.suppress(ConnectionError):
                while "PONG" not in heard and (line := await reader.readline()):
                    heard.append(line.decode().strip())
            # A server that is slow to answer a callout pings meanwhile.
            return [line for line in heard if line != "PING" and not line.startswith("INFO ")]
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.ensure(tmp_path_factory.mktemp("claims") / "identity", now=NOW)


@pytest.fixture(scope="module")
def port(identity: Identity) -> Iterator[int]:
    """The port of a nats-server with that identity."""
    port = free_port()
    with running(identity.directory.parent, f'listen: "127.0.0.1:{port}"\n{operator_mode(identity)}'):
        yield port


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(identity: Identity, port: int) -> AsyncIterator[Server]:
    creds, public = identity.runner_creds(RUNNER, now=NOW)
    jwt, seed = creds.splitlines()[1], creds.split("SEED-----\n")[1].splitlines()[0]
    assert nkey.public_key(seed) == public
    hub = await connect_as(port, identity, "AUTH", "hub")
    try:
        found = Server(identity, port, jwt, seed)
        await hub.subscribe("$SYS.REQ.USER.AUTH", queue="hub", cb=found.on_callout)
        await hub.flush()
        yield found
    finally:
        await hub.close()


async def connect_as(port: int, identity: Identity, account: str, user: str) -> Connection:
    return await connect(
        NatsServers(urls=[f"nats://127.0.0.1:{port}"]),
        name=user,
        inbox_prefix="_INBOX",
        creds=identity.creds_path(account, user),
        timeout=10,
    )


@pytest.mark.parametrize(("account", "user"), STATIC_USERS)
async def test_every_static_user_connects(server: Server, account: str, user: str) -> None:
    before = len(server.asked)
    connection = await connect_as(server.port, server.identity, account, user)
    try:
        await connection.flush()
        assert connection.is_connected
    finally:
        await connection.close()
    assert len(server.asked) == before


async def test_a_good_answer_lets_a_runner_do_what_its_scope_says(server: Server) -> None:
    server.answer = "good"
    allowed = (f"PUB hub.runner.{RUNNER} 0\r\n", f"SUB runners.{RUNNER}.api 1")
    assert await knock(server, server.jwt, server.seed, *allowed) == ["PONG"]
    heard = await knock(server, server.jwt, server.seed, "PUB hub.admin 0\r\n", "SUB runners.*.api 1")
    assert [line.casefold() for line in heard] == [
        "-err 'permissions violation for publish to \"hub.admin\"'",
        "-err 'permissions violation for subscription to \"runners.*.api\"'",
        "pong",
    ]


async def test_the_request_carries_the_nonce_and_its_signature(server: Server) -> None:
    """A hub checks them again (:mod:`natskit.hub.auth.callout`)."""
    server.answer = "good"
    await knock(server, server.jwt, server.seed)
    asked = server.asked[-1]
    signature = base64.b64decode(asked["connect_opts"]["sig"])
    nonce = asked["client_info"]["nonce"].encode()
    assert nkey.verify(nkey.public_key(server.seed), nonce, signature)


@pytest.mark.parametrize("answer", ["error", "expired", "permissions", "subject", "foreign", "tampered"])
async def test_an_answer_that_lets_nobody_in(server: Server, answer: str) -> None:
    server.answer = answer
    before = len(server.asked)
    assert await knock(server, server.jwt, server.seed) == [VIOLATION]
    assert len(server.asked) == before + 1
    server.answer = "good"
    assert await knock(server, server.jwt, server.seed) == ["PONG"]


def auth_jwt(server: Server, **changes: Any) -> str:
    keys = server.identity.hub_keys()
    given: dict[str, Any] = {
        "subject": nkey.public_key(server.seed),
        "name": RUNNER,
        "tags": ["kind:runner"],
        "issued_at": NOW - 100,
    }
    user = claims.auth_user_claims(auth_account=keys.auth_account, **(given | changes))
    return claims.encode(user, nkey.key_pair(keys.auth_signing_seed))


async def test_a_jwt_that_never_reaches_a_hub(server: Server) -> None:
    """Each is refused by nats-server itself; the first shows that it is for what is wrong with the others.

    nats-server 2.15 sends a callout for some of them all the same, but in the account ``$G``, where no hub listens, and
    refuses when nobody has answered for two seconds. Should it ever ask in AUTH, this fails.
    """
    server.answer = "good"
    assert await knock(server, auth_jwt(server), server.seed) == ["PONG"]
    before = len(server.asked)
    keys = server.identity.hub_keys()
    stranger = nkey.create_seed("user")
    hub = claims.platform_user_claims(
        subject=nkey.public_key(stranger),
        name="hub",
        tags=[],
        platform_account=keys.platform_account,
        issued_at=NOW,
    )
    body = claims.auth_user_claims(
        subject=nkey.public_key(stranger), name=RUNNER, tags=[], auth_account=keys.auth_account, issued_at=NOW
    )
    refused = {
        "another's seed": (server.jwt, stranger),
        "a tampered signature": (tampered(server.jwt), server.seed),
        "expired": (auth_jwt(server, expires_at=NOW - 10), server.seed),
        "only for WebSockets": (auth_jwt(server, connection_types=["WEBSOCKET"]), server.seed),
        "signed by a stranger": (claims.encode(body, nkey.key_pair(nkey.create_seed("account"))), stranger),
        "PLATFORM's hub, signed by AUTH's key": (
            claims.encode(hub, nkey.key_pair(keys.auth_signing_seed)),
            stranger,
        ),
        "nothing": ("", server.seed),
    }
    heard = await asyncio.gather(*(knock(server, jwt, seed) for jwt, seed in refused.values()))
    assert dict(zip(refused, heard, strict=True)) == {what: [VIOLATION] for what in refused}
    assert len(server.asked) == before
