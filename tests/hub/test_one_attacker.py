"""One signed-in account asks as much as it can, of what costs a hub most; the others find nothing but a slower hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from natskit.connection import Connection
from natskit.program import cancel
from natskit.rpc import encode_request
from tests.hub.site import Site, call, eventually
from tests.hub.test_hub_api import person

PROJECTS = 150
OTHERS = 12
BRACKETS = b"[" * 450_000 + b"]" * 450_000
"""Slow to read, of all JSON."""


class Attacker:
    """Sends and never waits; counts what comes back."""

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
            assert (await call(connection, f"hub.api.{other}", "whoami"))["account_id"] == other
            assert await call(connection, f"hub.api.{other}", "list_projects") == []
            await connection.close()
    assert {refusal["data"]["kind"] for refusal in attacker.refusals} == {"unavailable"}
    assert any("more than a hub can do for one" in refusal["message"] for refusal in attacker.refusals)
    assert attacker.answers > len(attacker.refusals), "it is slowed down, not locked out"
