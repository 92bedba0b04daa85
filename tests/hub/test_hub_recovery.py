"""Clients recover when a hub is killed, and when nats-server goes away and comes back."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import nats.errors

from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call
from tests.hub.test_hub_api import person
from tests.kit.wait import eventually


async def test_a_killed_hub_costs_at_most_the_requests_in_flight(site: Site) -> None:
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    failed, answered = 0, set()

    async def one() -> None:
        nonlocal failed
        try:
            answered.add((await call(browser, f"hub.api.{account_id}", "ping"))["hub"])
        except nats.errors.Error:
            failed += 1

    await asyncio.gather(*(one() for _ in range(50)))
    assert answered == {"hub-1", "hub-2"}
    site.kill_hub("hub-2")
    answered.clear()
    for _ in range(20):
        await asyncio.gather(*(one() for _ in range(5)))
    assert answered == {"hub-1"}
    assert failed <= 5, "more than were on their way when the server noticed"
    site.start_hub("hub-2")
    await site.healthy("hub-2")
    await asyncio.gather(*(one() for _ in range(50)))
    assert answered == {"hub-1", "hub-2"}


async def test_rights_change_while_one_hub_is_down(site: Site) -> None:
    """The hub that authorised a connection is dead; the other hub disconnects it."""
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    await site.browser(account_id, cookie)
    site.kill_hub("hub-1")
    assert (await site.http("hub-2", "POST", "/api/sign-out", cookie=cookie)).status_code == 204
    site.start_hub("hub-1")
    await site.healthy("hub-1")
    assert (await site.http("hub-1", "GET", "/api/session", cookie=cookie)).status_code == 401


async def test_nats_server_restarts(site: Site) -> None:
    admin = await site.admin()
    email, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    for pause in (0.0, 1.5):
        site.stop_server()

        async def unwell() -> bool:
            return (await site.http("hub-1", "GET", "/healthz")).status_code == 503

        await eventually(unwell, "the hub says that it is unwell")
        await asyncio.sleep(pause)
        site.start_server()
        await site.healthy("hub-1")
        await site.healthy("hub-2")

        async def pinged() -> bool:
            return bool((await call(browser, f"hub.api.{account_id}", "ping"))["pong"])

        await eventually(pinged, "the same client is back")
        title = f"after {pause}"
        project = await call(browser, f"hub.api.{account_id}", "create_project", title=title)

        async def seen_by_both(project_id: str = project["project_id"]) -> bool:
            lists = [await call(browser, f"hub.api.{account_id}", "list_projects") for _ in range(12)]
            return all(project_id in {p["project_id"] for p in listed} for listed in lists)

        await eventually(seen_by_both, "both hubs follow the state again")
        await site.sign_in("hub-2", email, PASSWORD)


async def test_a_crowd_that_signs_in_is_told_when_to_come_back(site: Site) -> None:
    site.start_hub("hub-slow", password={"argon2_concurrency": 1, "time_cost": 300, "memory_kib": 1024})
    await site.healthy("hub-slow")
    body = {"email": "nobody@example.org", "password": PASSWORD}
    crowd = [asyncio.create_task(site.http("hub-slow", "POST", "/api/sign-in", body)) for _ in range(70)]
    try:
        for answer in asyncio.as_completed(crowd):
            if (refused := await answer).status_code != 401:
                break
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "unavailable"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        # Others are not made to wait by them: nothing else of the hub does.
        assert (await site.http("hub-slow", "GET", "/healthz")).status_code == 200
    finally:
        site.kill_hub("hub-slow")
        await asyncio.gather(*crowd, return_exceptions=True)


async def test_a_hub_ends_cleanly(site: Site) -> None:
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    stop = asyncio.create_task(asyncio.to_thread(site.kill_hub, "hub-2", signal.SIGTERM))
    while not stop.done():
        assert (await call(browser, f"hub.api.{account_id}", "ping"))["pong"]
    assert await stop == 0, site.log("hub-2")
    site.start_hub("hub-2")
    await site.healthy("hub-2")


async def test_a_hub_without_nats_says_so_and_waits(site: Site) -> None:
    """A hub that starts before nats-server answers HTTP at once, and becomes healthy when nats-server is up."""
    site.kill_hub("hub-2")
    site.stop_server()
    site.start_hub("hub-2")

    async def unwell() -> bool:
        answer = await site.http("hub-2", "GET", "/healthz")
        return answer.status_code == 503 and bool(answer.json()["problems"])

    await eventually(unwell, "the hub answers and is unwell")
    for method, path in (("POST", "/api/sign-in"), ("GET", "/api/session"), ("POST", "/api/rpc")):
        assert (await site.http("hub-2", method, path, {})).status_code == 503
    assert (await site.http("hub-2", "GET", "/metrics")).status_code == 200
    site.start_server()
    await site.healthy("hub-2")
    await site.healthy("hub-1")


async def test_a_hub_without_any_project_comes_back(tmp_path: Path) -> None:
    """Its buckets are empty, so it has no last message to compare."""
    site = Site(tmp_path)
    try:
        site.start_server()
        site.start_hub("hub-1")
        await site.healthy("hub-1")
        site.stop_server()

        async def notices() -> bool:
            return (await site.http("hub-1", "GET", "/healthz")).status_code == 503

        await eventually(notices, "the hub notices")
        site.start_server()
        await site.healthy("hub-1", 20)
    finally:
        await site.close()
