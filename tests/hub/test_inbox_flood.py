"""A project can flood only the inboxes of its own callers.

It may publish to the part of any account's inbox that carries its own id. Clients subscribe there only while they wait
for its answer, so nats-server delivers nothing else.
"""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import nats.errors

from natskit.bus.permissions import inbox_prefix
from natskit.identity import nkey
from natskit.identity.claims import format_creds
from tests.hub.site import NO_TLS, Site, call
from tests.hub.test_hub_api import person

MESSAGES, SIZE = 2000, 4096


async def connection_of(site: Site, account_id: str) -> dict[str, Any]:
    """An account's only connection, from the server."""
    async with httpx.AsyncClient(verify=NO_TLS) as client:
        answer = await client.get(f"http://127.0.0.1:{site.monitor_port}/connz?auth=true&subs=true")
    (found,) = [c for c in answer.json()["connections"] if account_id in c.get("authorized_user", "")]
    return dict(found)


async def test_a_flood_from_a_foreign_project_does_not_reach_a_client(site: Site) -> None:
    admin, runner = await site.admin(), await site.runner()
    email, _, _ = await person(site, admin)
    _, victim, cookie = await person(site, admin)
    browser = await site.browser(victim, cookie)
    assert (await call(browser, f"hub.api.{victim}", "ping"))["pong"]  # its inbox for the hubs' answers is there
    foreign = (await call(admin, "hub.admin", "project_create", email=email, title="Foreign"))["project_id"]
    mine, seed = f"hub.runner.{site.runner_id}", nkey.create_seed("user")

    async def start(message: Any) -> None:
        key = nkey.public_key(seed)
        ticket = await call(runner, mine, "project_credentials", project_id=foreign, public_key=key)
        tickets.append(ticket["jwt"])
        await call(runner, mine, "project_state", project_id=foreign, state="running")
        await message.respond(b'{"jsonrpc":"2.0","id":0,"result":{}}')

    tickets: list[str] = []
    await call(runner, mine, "register", version="1")
    await runner.subscribe(f"runners.{site.runner_id}.api", cb=start)
    await call(admin, "hub.admin", "start_project", project_id=foreign)
    project = await site.connect("project", format_creds(tickets[0], seed), foreign)

    # As it reads a stream of a project of its own (natskit.bus.output_stream).
    await browser.subscribe(f"{browser.inbox_for(f'projects.{uuid.uuid4()}.api')}.*", cb=_ignore)
    await browser.flush()
    before = await connection_of(site, victim)
    inbox = inbox_prefix("browser", victim)
    subscribed = before["subscriptions_list"]
    assert len(subscribed) == 2
    assert all(s.startswith(f"{inbox}.") and s != f"{inbox}.>" for s in subscribed), subscribed
    refused: list[str] = []
    project._error_cb = _noting(refused)
    for subject in (f"{inbox}.{foreign}.{uuid.uuid4().hex}", f"{inbox}.{foreign}.a.b"):
        for _ in range(MESSAGES):
            await project.publish(subject, b"x" * SIZE)
    await project.flush()
    assert not refused, "it may publish there"
    after = await connection_of(site, victim)
    assert after["out_bytes"] - before["out_bytes"] < SIZE, "nothing of it was sent"
    for subscription in subscribed:  # and where the victim listens, it may not publish
        await project.publish(subscription.replace("*", "x"), b"x")
    await project.flush()
    assert len(refused) == len(subscribed)
    assert (await call(browser, f"hub.api.{victim}", "ping"))["pong"]


async def _ignore(_: Any) -> None:
    pass


def _noting(refused: list[str]) -> Any:
    async def note(error: Exception) -> None:
        assert isinstance(error, nats.errors.Error)
        refused.append(str(error))

    return note
