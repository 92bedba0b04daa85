"""Hubs find the connections whose rights have changed by name, search more than once, and never list all
connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from natskit.hub.auth import connection_index, disconnect
from natskit.hub.auth.connection_index import Place
from natskit.hub.auth.disconnect import Connections
from natskit.hub.metrics import Metrics
from natskit.hub.state.view import State
from natskit.process.lifecycle import cancel
from tests.hub.site import Site
from tests.hub.test_hub_api import person
from tests.hub.test_revocations import is_gone, names_of
from tests.kit.wait import eventually


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with Site.without_hubs(tmp_path_factory.mktemp("disconnect")) as site:
        yield site


@contextlib.asynccontextmanager
async def following(site: Site) -> AsyncIterator[tuple[State, Connections]]:
    """The state and the connections of a hub that does nothing else. It has finished its first full comparison."""
    hub = await site.connect("hub", site.identity.creds("PLATFORM", "hub"))
    state = State(
        await site.state(),
        {},
        locked_out=lambda names: connections.disconnect_now(names),
        ended=lambda names: connections.disconnect_ended(names),
        changed=lambda names: connections.disconnect_soon(names),
    )
    connections = Connections(hub, state, site.identity.hub_keys().platform_account, Metrics())
    tasks = [asyncio.create_task(state.follow())]
    await state.wait_current(10)
    compared = asyncio.Event()
    compare = connections._compare

    async def first(only: dict[str, str]) -> None:
        await compare(only)
        compared.set()

    connections._compare = first  # type: ignore[method-assign]
    tasks.append(asyncio.create_task(connections.run()))
    try:
        await asyncio.wait_for(compared.wait(), 10)
        # New servers have been found, and compared.
        await eventually(lambda: _settled(connections), "the comparisons of the start are over")
        yield state, connections
    finally:
        await cancel(tasks)


async def _settled(connections: Connections) -> bool:
    return bool(connections._servers) and connections._index.is_complete and not connections._compare_soon.is_set()


@contextlib.asynccontextmanager
async def asking(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[dict[str, str]]]:
    """The requests that the hub sends to the servers during the block."""
    asked: list[dict[str, str]] = []
    page = connections._page

    async def noted(only: dict[str, str], *rest: Any) -> bool:
        asked.append(only)
        return await page(only, *rest)

    monkeypatch.setattr(connections, "_page", noted)
    # A server that is slow to answer counts as a new one later, and then everything is compared.
    monkeypatch.setattr(disconnect, "ANSWER_SECONDS", 10.0)
    yield asked


async def connected(site: Site) -> tuple[str, str]:
    """A browser that a hub authorised which no longer runs: its account and the connection's name."""
    site.start_hub("hub-1")
    await site.healthy("hub-1")
    _, account_id, cookie = await person(site, await site.admin())
    await site.browser(account_id, cookie)
    (name,) = await names_of(site, account_id)
    site.kill_hub("hub-1")
    await eventually(lambda: is_gone(site, "hub-1"), "the hub is gone")
    return account_id, name


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_lost_disconnect_is_made_up_for_without_listing_everybody(
    site: Site, monkeypatch: pytest.MonkeyPatch, lost: int, complete: bool
) -> None:
    """With nats-server's events the hub asks no server; without them, it asks by name."""
    account_id, name = await connected(site)
    async with following(site) as (state, connections), asking(connections, monkeypatch) as asked:
        assert connections._index.is_complete
        connections._index.is_complete = complete
        kicks: list[str] = []
        kick = connections._kick

        async def lossy(place: Place, name: str) -> None:
            kicks.append(name)
            if len(kicks) > lost:
                await kick(place, name)

        monkeypatch.setattr(connections, "_kick", lossy)
        await state.sessions.change(name.split(".")[2], lambda _: None)

        async def gone() -> bool:
            return not await names_of(site, account_id)

        await eventually(gone, "the session's connection has ended", disconnect.COMPARE_SECONDS / 2)
        assert kicks == [name] * (lost + 1)
        assert {only.get("user") for only in asked} == (set() if complete else {name}), "nothing else was asked"


async def test_what_nats_server_says_of_connections_reaches_the_index(site: Site) -> None:
    async with following(site) as (_, connections):
        account_id, name = await connected(site)

        async def places() -> list[Place]:
            return list(connections._index.find(name))

        (place,) = await eventually(places, "the connection is known")
        await connections._kick(place, name)

        async def gone() -> bool:
            return not connections._index.find(name)

        await eventually(gone, "it is known to be closed")
        assert await names_of(site, account_id) == set()


async def test_what_was_not_said_is_found_by_comparing_and_asked_for_until_all_is_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_index, "EVENT_SECONDS", 0.0)
    async with following(site) as (_, connections):
        monkeypatch.setattr(connections._index, "opened", lambda _: None)
        _, name = await connected(site)
        assert connections._index.find(name) == set()
        await connections._compare({})
        assert len(connections._index.find(name)) == 1
        assert not connections._index.is_complete
        await connections._compare({})
        assert connections._index.is_complete
        connections._connection._came_back[-1]()
        assert not connections._index.is_complete, "what was said while it was away is lost"
        await eventually(lambda: _is_complete(connections), "everything is compared")


async def _is_complete(connections: Connections) -> bool:
    return connections._index.is_complete


async def test_a_connection_that_should_not_have_been_let_in_ends_within_moments(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another hub authorised it from an older view, and then died. No change in this hub's view points to it."""
    site.start_hub("hub-1")
    await site.healthy("hub-1")
    _, account_id, cookie = await person(site, await site.admin())
    async with following(site) as (state, connections), asking(connections, monkeypatch) as asked:
        valid, kick = state.is_valid, connections._kick
        ended: list[str] = []

        async def noted(place: Place, name: str) -> None:
            ended.append(name)
            await kick(place, name)

        monkeypatch.setattr(state, "is_valid", lambda holder, name: holder.id != account_id and valid(holder, name))
        monkeypatch.setattr(connections, "_kick", noted)
        await site.browser(account_id, cookie)

        async def has_ended() -> bool:
            return any(account_id in name for name in ended)

        await eventually(has_ended, "it is ended", disconnect.COMPARE_SECONDS / 2)
        assert asked == []
    site.kill_hub("hub-1")
