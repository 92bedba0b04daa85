"""Hubs with the smallest ``nats_max_payload``, 65,536 bytes, send long lists in parts and still authorise large
accounts."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from natskit.bus.permissions import projects_that_fit
from natskit.client import Client
from natskit.hub.state.records import Membership, Project
from natskit.identity.files import write_private
from natskit.rpc import RpcError
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call
from tests.hub.test_hub_api import person
from tests.kit.wait import eventually

LEAST = 65_536


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    site = Site(tmp_path_factory.mktemp("hub"))
    try:
        site.max_payload = LEAST
        site.start_server()
        site.start_hub("hub-1")
        await site.healthy("hub-1")
        yield site
    finally:
        await site.close()


async def give_projects(site: Site, account_id: str, count: int) -> None:
    """Write an account's projects into the state, as a hub does."""
    hub = await site.state()
    project = Project(title="p" * 100, created_at=0).to_json()
    member = Membership(role="owner", since=0).to_json()

    async def write(identifier: str) -> None:
        await hub.request(f"$KV.projects.{identifier}", project, timeout=30)
        await hub.request(f"$KV.memberships.{account_id}.{identifier}", member, timeout=30)

    identifiers = [str(uuid.uuid4()) for _ in range(count)]
    for start in range(0, count, 200):
        await asyncio.gather(*(write(i) for i in identifiers[start : start + 200]))


async def test_with_as_many_projects_as_fit_one_gets_in_and_sees_them_all(site: Site) -> None:
    admin = await site.admin()
    email, account_id, _ = await person(site, admin)
    most = projects_that_fit(LEAST)
    await give_projects(site, account_id, most)
    creds = site.root / "admin.creds"
    write_private(creds, site.identity.creds("PLATFORM", "admin"))
    async with await Client.admin(f"nats://127.0.0.1:{site.nats_port}", creds) as client:

        async def counted() -> bool:
            rows = await client.list_hub("account_list")
            return bool(next(row["projects"] for row in rows if row["email"] == email) == most)

        await eventually(counted, "the view has them all", 20)
        everybody = await client.list_hub("project_list")
        assert len({row["project_id"] for row in everybody}) == len(everybody) == most
        assert len(await client.list_hub("project_list", email=email)) == most
        with pytest.raises(RpcError, match=r"more than the 65,536 that fit into one message") as whole:
            await client.call_hub("project_list")
        assert (whole.value.kind, whole.value.data["limit"]) == ("limit", LEAST)
    _, cookie = await site.sign_in("hub-1", email, PASSWORD)
    browser = await site.browser(account_id, cookie)
    assert (await call(browser, f"hub.api.{account_id}", "ping"))["pong"]
    with pytest.raises(RpcError, match=f"already uses {most} projects") as full:
        await call(browser, f"hub.api.{account_id}", "create_project", title="one more")
    assert (full.value.kind, full.value.data["limit"]) == ("limit", most)


async def test_an_account_with_more_projects_is_refused_and_the_log_gives_the_reason(site: Site) -> None:
    """The setting was lowered later. A hub that did not answer would delay nats-server by two seconds."""
    admin = await site.admin()
    email, account_id, _ = await person(site, admin)
    await give_projects(site, account_id, projects_that_fit(LEAST) + 60)
    _, cookie = await site.sign_in("hub-1", email, PASSWORD)
    with pytest.raises(Exception, match=r"no connection|Authorization"):
        await site.browser(account_id, cookie, patience=3)
    assert f"browser {account_id} cannot connect: its authorisation has" in site.log("hub-1")
