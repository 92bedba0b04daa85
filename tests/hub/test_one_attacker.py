"""One signed-in account floods the hub with the most expensive requests. Others only notice a slower hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from natskit.bus.connection import Connection
from natskit.identity.claims import COOKIE
from natskit.process.lifecycle import cancel
from natskit.rpc import encode_request
from tests.hub.site import Site, call
from tests.hub.test_hub_api import person
from tests.kit.wait import eventually
from tests.platform.raw import ClosedError, RawClient

PROJECTS = 150
OTHERS = 12
BRACKETS = b"[" * 450_000 + b"]" * 450_000
"""Slow to read, of all JSON."""


class Attacker:
    """Sends without waiting, and counts the answers."""

    def __init__(self, connection: Connection, account_id: str) -> None:
        self._connection, self._account = connection, account_id
        self.refusals: list[dict[str, Any]] = []
        self.answers = 0

    @contextlib.asynccontextmanager
    async def attacking(self) -> AsyncIterator[None]:
        inbox = self._connection.new_inbox()
        subscription = await self._connection.subscribe(inbox, cb=self._hear)
        flood = asyncio.create_task(self._flood(inbox))
        try:
            yield
        finally:
            await cancel([flood])
            await subscription.unsubscribe()

    async def _flood(self, inbox: str) -> None:
        bodies = [BRACKETS, *[encode_request("list_projects", {})] * 20]
        while True:
            for body in bodies:
                await self._connection.publish(f"hub.api.{self._account}", body, reply=inbox)
            await self._connection.flush()

    async def _hear(self, message: Any) -> None:
        self.answers += 1
        if b'"retry_after"' in message.data[:400]:
            self.refusals.append(json.loads(message.data)["error"])


async def answered(connection: Connection, account_id: str) -> bool:
    """Ask again, as natskit's clients do, if nats-server has disconnected the hub because of the flood."""
    async with asyncio.timeout(5):
        assert (await call(connection, f"hub.api.{account_id}", "whoami"))["account_id"] == account_id
        return bool(await call(connection, f"hub.api.{account_id}", "list_projects") == [])


async def test_the_others_are_let_in_and_answered(site: Site) -> None:
    admin = await site.admin()
    email, account_id, cookie = await person(site, admin)
    for number in range(PROJECTS):
        await call(admin, "hub.admin", "project_create", email=email, title=f"P{number}")
    others = [await person(site, admin) for _ in range(OTHERS)]
    attacker = Attacker(await site.browser(account_id, cookie), account_id)

    async def refused() -> bool:
        return len(attacker.refusals) >= 100

    async with attacker.attacking():
        await eventually(refused, "the attacker is refused", seconds=60)
        for _, other, their_cookie in others:
            connection = await site.browser(other, their_cookie)
            await eventually(partial(answered, connection, other), "the others are answered", 60)
            await connection.close()
    assert {refusal["data"]["kind"] for refusal in attacker.refusals} == {"unavailable"}
    assert any("rate limit exceeded" in refusal["message"] for refusal in attacker.refusals)
    assert attacker.answers > len(attacker.refusals), "it is slowed down, not locked out"


@pytest.mark.parametrize("answers_to", ["themselves", "somebody else"])
async def test_who_floods_is_cut_and_comes_back_later(site: Site, answers_to: str) -> None:
    """A client that never waits sends more than a hub can read, with reply subjects of its choice."""
    admin = await site.admin()
    # nats-server may have disconnected a hub for the flood of the test before: what was asked of it then is lost.
    _, account_id, cookie = await eventually(partial(person, site, admin), "an account is made", 60)
    _, other, their_cookie = await eventually(partial(person, site, admin), "another account is made", 60)
    inbox = f"_INBOX.account.{account_id if answers_to == 'themselves' else other}.x"
    body = encode_request("list_projects", {})
    many = f"PUB hub.api.{account_id} {inbox} {len(body)}\r\n".encode() + body + b"\r\n"
    url, named = f"ws://127.0.0.1:{site.websocket_port}", f"{COOKIE}={cookie}"
    raw, over = RawClient.websocket(url, cookie=named), threading.Event()

    def flood() -> bool:
        """Send the flood. Returns whether nats-server closed the connection."""
        with contextlib.suppress(ClosedError, OSError):
            while not over.is_set():
                raw.send(500 * many)
                raw.ping()
            return False
        return True

    flooding = asyncio.get_running_loop().run_in_executor(None, flood)
    try:
        done, _ = await asyncio.wait([flooding], timeout=60)
        assert done, "it is cut"
    finally:
        over.set()
    assert await flooding
    logged = "".join((site.root / hub / "hub.log").read_text() for hub in site.hubs)
    assert "disconnected and blocked for" in logged
    assert logged.count(account_id) < 100, "nobody fills the disk with log"
    connection = await site.browser(other, their_cookie)
    await eventually(partial(answered, connection, other), "another account is answered", 60)

    async def back() -> bool:
        raw = await asyncio.to_thread(RawClient.websocket, url, cookie=named)
        raw.close()
        return True

    await eventually(back, "it is let in again", seconds=30)
