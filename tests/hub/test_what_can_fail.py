"""A revoked right ends even if a kick is lost, a hub sees an older state, or a server was cut off."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from natskit.hub.app import Hub
from natskit.hub.auth.connection_index import Place
from natskit.hub.auth.disconnect import ENDED_SECONDS
from natskit.hub.auth.sessions import SignedIn
from natskit.hub.config import HubProgram
from natskit.identity.claims import COOKIE
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site
from tests.hub.test_hub_api import person
from tests.hub.test_revocations import names_of
from tests.kit.nats import NatsServer, operator_mode
from tests.kit.ports import free_port
from tests.kit.wait import eventually


@contextlib.asynccontextmanager
async def hub_of_the_test(site: Site, name: str) -> AsyncIterator[Hub]:
    """A hub in this process, which tests can break in ways in which they cannot break another process."""
    site.start_hub(name)  # for its files
    site.kill_hub(name)
    del site.hubs[name]
    hub = Hub(HubProgram.model_validate_json((site.root / name / "hub.json").read_text()))
    try:
        await hub.start()
        yield hub
    finally:
        await hub.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A nats-server without hubs: tests start their own."""
    async with Site.without_hubs(tmp_path_factory.mktemp("fail")) as site:
        yield site


async def somebody(hub: Hub) -> SignedIn:
    """An account that signed in through this hub."""
    email = f"{uuid.uuid4()}@example.org"
    await hub.accounts.add(email, PASSWORD)
    return await hub.sessions.sign_in(email, PASSWORD, "127.0.0.1", "test")


async def gone(site: Site, person: SignedIn) -> bool:
    names = await names_of(site, person.session.account_id)
    return names == set()


async def test_a_kick_that_is_lost(server: Site) -> None:
    async with hub_of_the_test(server, "hub-1") as hub:
        person = await somebody(hub)
        browser = await server.browser(person.session.account_id, person.cookie)
        lost: list[str] = []
        cut = hub.connections._kick

        async def lose(place: Place, name: str) -> None:
            lost.append(name)
            if len(lost) > 2:  # the first are those of the name, at once and at the end of the grace
                await cut(place, name)

        hub.connections._kick = lose  # type: ignore[method-assign]
        await hub.sessions.end_now(person.session_id)
        await eventually(lambda: gone(server, person), "the connection is cut by the comparison that follows")
        assert len(lost) > 2
        await browser.close()


async def test_a_hub_that_authorises_from_an_older_view(server: Site) -> None:
    """The worst case: its view stands still, it believes the view to be current, and it never corrects its
    decisions."""
    async with hub_of_the_test(server, "hub-1") as hub, hub_of_the_test(server, "hub-2") as stale:
        person = await somebody(hub)
        await stale.state.sessions.find(person.session_id)
        for task in stale._tasks:
            task.cancel()
        for bucket in stale.state.buckets:
            await bucket._unsubscribe()
        await hub._callout.stop()
        await hub.sessions.end_now(person.session_id)
        # Part of what happens: from now on the name that was right before is not looked for any more.
        await asyncio.sleep(1.5 * ENDED_SECONDS)
        browser = await server.browser(person.session.account_id, person.cookie)
        await stale._callout.stop()
        await hub._callout.start()
        await eventually(lambda: gone(server, person), "the other hub has cut what this one let in")
        await browser.close()


class LongWay:
    """A TCP proxy to a port of this machine that adds a delay, as if the port were far away."""

    SECONDS = 0.02

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as far:
            back = threading.Thread(target=self._carry, args=(far, near), daemon=True)
            back.start()
            self._carry(near, far)
            back.join()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.SECONDS)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Cluster(Site):
    """Three nats-servers. Hubs use the first. The third, which holds none of the state, is far away."""

    def start_server(self) -> None:
        self.servers = {name: NatsServer(self.root, name=name) for name in "abc"}
        ports = {name: (self.nats_port if name == "a" else free_port()) for name in "abc"}
        routes = {name: free_port() for name in "abc"}
        self.far_port = free_port()
        self.ways = [LongWay(routes[name]) for name in "ab"]
        for name in "abc":
            others = [way.port for way in self.ways] if name == "c" else [routes["a"], routes["b"]]
            self.servers[name].start(f"""
            server_name: {name}
            listen: 127.0.0.1:{ports[name]}
            {f"http: 127.0.0.1:{self.monitor_port}" if name == "c" else ""}
            {operator_mode(self.identity)}
            {f'jetstream: {{ store_dir: "{self.root}/js-{name}" }}' if name != "c" else ""}
            websocket: {{ host: 127.0.0.1, port: {self.far_port if name == "c" else free_port()}, no_tls: true,
                          jwt_cookie: "{COOKIE}" }}
            cluster: {{ name: test, listen: "127.0.0.1:{routes[name]}", no_advertise: true,
                        routes: [ {", ".join(f"nats://127.0.0.1:{port}" for port in others)} ] }}
            """)
        self.websocket_port = self.far_port
        for server in self.servers.values():
            server.wait_until_ready()
        self.make_streams()

    async def all_known(self) -> bool:
        """Whether both hubs know of the third server."""
        async with httpx.AsyncClient() as http:
            server_id = (await http.get(f"http://127.0.0.1:{self.monitor_port}/varz")).json()["server_id"]
        said = [[line for line in self.log(name).splitlines() if server_id in line][-1:] for name in self.hubs]
        return all(last and "new nats-servers answer" in last[0] for last in said)

    def stop_server(self) -> None:
        for server in self.servers.values():
            server.stop()
        for way in self.ways:
            way.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    site = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        site.start_server()
        for name in ("hub-1", "hub-2"):
            site.start_hub(name)
        for name in ("hub-1", "hub-2"):
            await site.healthy(name, 30)
        await eventually(site.all_known, "the hubs know all servers")
        yield site
    finally:
        await site.close()
        print((site.root / "a.log").read_text()[-3000:])
        for name in site.hubs:
            print(f"---- {name}\n{site.log(name)}")


async def test_a_server_that_was_cut_off_comes_back(cluster: Cluster) -> None:
    """While the server is cut off, its clients keep their rights; when it is back, they lose them at once."""
    admin = await cluster.admin()
    email, account_id, cookie = await person(cluster, admin)
    browser = await cluster.browser(account_id, cookie)
    (name,) = await eventually(lambda: names_of(cluster, account_id), "the connection, at the third server")

    async def missed() -> bool:
        return all("no answer from nats-servers" in cluster.log(name) for name in cluster.hubs)

    with cluster.servers["c"].frozen():
        assert (await cluster.http("hub-1", "POST", "/api/sign-out", cookie=cookie)).status_code == 204
        await eventually(missed, "the hubs miss it")

    async def cut() -> bool:
        return name not in await names_of(cluster, account_id)

    await eventually(cut, "cut as soon as the server is back, and not after half a minute", 10)
    await browser.close()
    assert await cluster.sign_in("hub-2", email, PASSWORD)


async def test_a_server_that_was_restarted_is_heard_although_it_is_far(cluster: Cluster) -> None:
    """To the hubs it is a new server, and the last to answer: they must wait for it."""
    await eventually(cluster.all_known, "both hubs have found it again, after the test before this one")
    email, account_id, cookie = await person(cluster, await cluster.admin())
    before = {name: cluster.log(name).count("no answer from nats-servers") for name in cluster.hubs}
    cluster.servers["c"].kill()
    assert (await cluster.http("hub-1", "POST", "/api/sign-out", cookie=cookie)).status_code == 204

    async def missed() -> bool:
        return all(cluster.log(name).count("no answer from nats-servers") > before[name] for name in cluster.hubs)

    await eventually(missed, "the hubs miss it")
    cluster.servers["c"].start()
    for hub in cluster.hubs:
        _, cookie = await cluster.sign_in(hub, email, PASSWORD)
        browser = await cluster.browser(account_id, cookie, 20)
        (name,) = await eventually(lambda: names_of(cluster, account_id), "the connection, at the third server")
        assert (await cluster.http(hub, "POST", "/api/sign-out", cookie=cookie)).status_code == 204

        async def cut(name: str = name) -> bool:
            return name not in await names_of(cluster, account_id)

        await eventually(cut, "cut at the server that is new", 10)
        await browser.close()
