"""A hub that cannot answer a callout in time: nobody is told that they are not authorised, and all get in later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from natskit.errors import ConnectionLostError
from natskit.hub.app import Hub
from natskit.hub.auth import callout as callout_module
from natskit.hub.state import bucket as bucket_module
from natskit.identity.claims import COOKIE
from tests.hub.site import ORIGIN, Site
from tests.hub.test_what_can_fail import gone, hub_of_the_test, somebody
from tests.kit.wait import eventually
from tests.platform.raw import ClosedError, RawClient


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with Site.without_hubs(tmp_path_factory.mktemp("busy")) as site:
        yield site


def connect(site: Site, cookie: str) -> str:
    """What a browser is told that connects once: empty if it was let in."""
    try:
        url = f"ws://127.0.0.1:{site.websocket_port}/"
        RawClient.websocket(url, cookie=f"{COOKIE}={cookie}", origin=ORIGIN).close()
    except (ClosedError, OSError) as error:
        return str(error) or "closed"
    return ""


def counted(hub: Hub, result: str) -> float:
    return float(hub.metrics.callouts.labels(result)._value.get())


async def test_nobody_is_told_that_they_are_not_authorised(
    server: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callout_module, "BUSY_LOG_SECONDS", 0.2)
    async with hub_of_the_test(server, "hub-1") as hub:
        person = await somebody(hub)
        hub._callout._cost = 1e9  # as with a queue that nobody could work off in time
        subscription: Any = hub._callout._subscription
        monkeypatch.setattr(hub._callout, "_subscription", SimpleNamespace(pending_msgs=1, drain=subscription.drain))
        began = time.monotonic()
        told = await asyncio.to_thread(connect, server, person.cookie)
        assert told, "it was not let in"
        assert "uthoriz" not in told
        assert "uthentication" not in told
        assert time.monotonic() - began < 1.5, "it may try again at once"
        assert counted(hub, "shed") == 1
        assert counted(hub, "refused") == 0

        async def said() -> bool:
            return "busy: 1 clients were disconnected before they were authorised" in caplog.text

        await eventually(said, "the log says so")
        with pytest.raises(ConnectionLostError, match="the hubs are busy: they have asked this client to wait"):
            await server.browser(person.session.account_id, person.cookie, 2)
        before = counted(hub, "shed")
        coming = asyncio.create_task(server.browser(person.session.account_id, person.cookie, 20))

        async def tries_again() -> bool:
            return counted(hub, "shed") >= before + 2

        await eventually(tries_again, "it tries again")
        monkeypatch.undo()
        hub._callout._cost = 0.001
        browser = await coming
        await browser.close()


async def test_a_hub_that_has_lost_its_leader_lets_in_whom_it_knows(
    server: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a new leader is elected: nothing can be written, and the leader cannot be asked."""
    monkeypatch.setattr(bucket_module, "RECENT_SECONDS", 600.0)  # a busy machine
    async with hub_of_the_test(server, "hub-1") as hub:
        known, stranger = await somebody(hub), await somebody(hub)
        silent = asyncio.Event()

        async def no_answer(*_: Any) -> Any:
            await silent.wait()

        for bucket in hub.state.buckets:
            monkeypatch.setattr(bucket, "_stream_info", no_answer)
            bucket._start_over()
        del hub.state.sessions.entries[stranger.session_id]  # its view lacks what another hub has just written
        assert not hub.state.current
        assert await asyncio.to_thread(connect, server, known.cookie) == ""
        told = await asyncio.to_thread(connect, server, stranger.cookie)
        assert told, "it was not let in"
        assert "uthoriz" not in told, "nor refused"
        assert counted(hub, "refused") == 0

        monkeypatch.setattr(bucket_module, "RECENT_SECONDS", 0.0)
        assert await asyncio.to_thread(connect, server, known.cookie), "its view is too old"
        monkeypatch.setattr(bucket_module, "RECENT_SECONDS", 600.0)
        assert await asyncio.to_thread(connect, server, known.cookie) == ""
        hub.state.sessions._lacks = True
        assert await asyncio.to_thread(connect, server, known.cookie), "it knows that it lacks something"


async def test_whom_a_hub_let_in_while_it_lagged_is_looked_at_again(
    server: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other hub has taken the right away and looked for its holder before; nobody else looks any more."""
    monkeypatch.setattr(bucket_module, "RECENT_SECONDS", 600.0)  # a busy machine
    async with hub_of_the_test(server, "hub-1") as other:
        person = await somebody(other)
    async with hub_of_the_test(server, "hub-2") as hub:
        goes_on = asyncio.Event()
        asked = type(hub.state.sessions)._stream_info

        async def later(bucket: Any) -> Any:
            await goes_on.wait()
            return await asked(bucket)

        for bucket in hub.state.buckets:
            monkeypatch.setattr(bucket, "_stream_info", later.__get__(bucket))
            bucket._start_over()
        writer = await server.state()
        deleted = {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}
        await writer.request(f"$KV.sessions.{person.session_id}", b"", timeout=5, headers=deleted)
        browser = await server.browser(person.session.account_id, person.cookie)
        goes_on.set()
        await eventually(lambda: gone(server, person), "the hub has caught up, and has cut it")
        with contextlib.suppress(Exception):
            await browser.close()
