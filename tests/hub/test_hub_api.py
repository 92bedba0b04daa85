"""Two real hubs on a real nats-server: signing in, the API, and rights that change while people are connected."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import nats.errors
import pytest

from natskit.connection import Connection
from natskit.errors import ConnectionLostError
from natskit.rpc import RpcError, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call, eventually


async def person(site: Site, admin: Connection) -> tuple[str, str, str]:
    """A new account: e-mail, id, cookie."""
    email = f"{uuid.uuid4()}@example.org"
    await call(admin, "hub.admin", "account_add", email=email, password=PASSWORD)

    async def sign_in() -> tuple[str, str]:
        return await site.sign_in("hub-1", email, PASSWORD)

    account_id, cookie = await eventually(sign_in, "sign in")
    return email, account_id, cookie


async def test_ping_of_a_signed_in_browser(site: Site) -> None:
    admin = await site.admin()
    email, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    answers = [await call(browser, f"hub.api.{account_id}", "ping") for _ in range(30)]
    assert all(answer["pong"] for answer in answers)
    assert {answer["hub"] for answer in answers} == {"hub-1", "hub-2"}
    assert (await call(browser, f"hub.api.{account_id}", "whoami"))["email"] == email
