"""A right that was taken away is gone even if a kick is lost, a hub sees an older state, or a server was cut off."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from natskit.hub.app import Hub
from natskit.hub.program import HubProgram
from natskit.identity.claims import COOKIE
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, eventually, free_port
from tests.hub.test_hub_api import person
from tests.hub.test_revocations import Scene


@contextlib.asynccontextmanager
async def hub_of_the_test(site: Site, name: str) -> AsyncIterator[Hub]:
    """A hub in this process, which can be made to fail where a hub of its own process cannot."""
    site.start_hub(name)  # for its files
    site.kill_hub(name)
    del site.hubs[name]
    hub = Hub(HubProgram.model_validate_json((site.root / name / "hub.json").read_text()))
    try:
        await hub.start()
        yield hub
    finally:
        await hub.stop()


async def test_a_kick_that_is_lost(site: Site) -> None:
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    scene = Scene(site, admin, guest=account_id)
    async with hub_of_the_test(site, "hub-3") as hub:
        for name in ("hub-1", "hub-2"):
            site.kill_hub(name)
        browser = await site.browser(account_id, cookie)
        lost: list[str] = []
        cut = hub.connections._cut

        async def lose_the_first(server: str, cid: int, name: str) -> None:
            if lost:
                await cut(server, cid, name)
            lost.append(name)

        hub.connections._cut = lose_the_first  # type: ignore[method-assign]
        await hub.sessions.end_now(next(iter(hub.state.sessions_of(account_id))))

        async def gone() -> bool:
            return await scene.names() == set()

        await eventually(gone, "the connection is cut by the comparison that follows")
        assert len(lost) >= 2
        await browser.close()
        for name in ("hub-1", "hub-2"):
            site.start_hub(name)
            await site.healthy(name)


async def test_a_hub_that_authorises_from_an_older_view(site: Site) -> None:
    """The worst case: its view stands still, and it believes that it is current."""
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    scene = Scene(site, admin, guest=account_id)
    session_id = await scene.session_of(cookie)
    async with hub_of_the_test(site, "hub-4") as stale:
        assert session_id in stale.state.sessions.entries
        stale._tasks[0].cancel()
        for bucket in stale.state.buckets:
            await bucket._unsubscribe()
        # It must not repair by itself what it did.
        for task in stale._tasks[1:]:
            task.cancel()
        assert (await site.http("hub-1", "POST", "/api/sign-out", cookie=cookie)).status_code == 204
        assert session_id in stale.state.sessions.entries
        browser = await site.browser(account_id, cookie)  # refused by the others, and tried again
        await stale._callout.stop()

        async def gone() -> bool:
            return await scene.names() == set()

        await eventually(gone, "the others have cut what it let in")
        await browser.close()


class Cluster(Site):
    """Three nats-servers; hubs use the first, and the third, which holds nothing of the state, is cut off."""

    def start_server(self) -> None:
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        ports = {name: (self.nats_port if name == "a" else free_port()) for name in "abc"}
        routes = {name: free_port() for name in "abc"}
        accounts = {
            self.identity.account_public_key(n): self.identity.account_jwt(n) for n in ("SYS", "AUTH", "PLATFORM")
        }
        self.far_port = free_port()
        for name in "abc":
            config = f"""
            server_name: {name}
            listen: 127.0.0.1:{ports[name]}
            {f"http: 127.0.0.1:{self.monitor_port}" if name == "c" else ""}
            operator: {self.identity.operator_jwt}
            system_account: {self.identity.account_public_key("SYS")}
            resolver: MEMORY
            resolver_preload: {{ {", ".join(f"{k}: {v}" for k, v in accounts.items())} }}
            {f'jetstream: {{ store_dir: "{self.root}/js-{name}" }}' if name != "c" else ""}
            websocket: {{ host: 127.0.0.1, port: {self.far_port if name == "c" else free_port()}, no_tls: true,
                          jwt_cookie: "{COOKIE}" }}
            cluster: {{ name: test, listen: "127.0.0.1:{routes[name]}",
                        routes: [ {", ".join(f"nats://127.0.0.1:{port}" for port in routes.values())} ] }}
            """
            path = self.root / f"{name}.conf"
            path.write_text(config)
            with (self.root / f"{name}.log").open("ab") as log:
                self.servers[name] = subprocess.Popen(
                    [str(Path(sys.executable).with_name("nats-server")), "-c", str(path)], stdout=log, stderr=log
                )
        self.websocket_port = self.far_port
        deadline = time.monotonic() + 10
        for port in (*ports.values(), self.far_port):
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 0.2).close()
                    break
                time.sleep(0.02)

    def stop_server(self) -> None:
        for server in self.servers.values():
            server.send_signal(signal.SIGCONT)
            server.terminate()
            server.wait(10)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: object) -> AsyncIterator[Cluster]:
    site = Cluster(tmp_path_factory.mktemp("cluster"))  # type: ignore[attr-defined]
    try:
        site.start_server()
        for name in ("hub-1", "hub-2"):
            site.start_hub(name)
        for name in ("hub-1", "hub-2"):
            await site.healthy(name, 30)
        yield site
    finally:
        await site.close()
        print((site.root / "a.log").read_text()[-3000:])
        for name in site.hubs:
            print(f"---- {name}\n{site.log(name)}")


async def test_a_server_that_was_cut_off_comes_back(cluster: Cluster) -> None:
    """While nobody can reach it, its clients keep what they had; when it is back, they lose it at once."""
    admin = await cluster.admin()
    email, account_id, cookie = await person(cluster, admin)
    scene = Scene(cluster, admin, guest=account_id)
    browser = await cluster.browser(account_id, cookie)
    (name,) = await eventually(scene.names, "the connection, at the third server")
    server = cluster.servers["c"]
    server.send_signal(signal.SIGSTOP)
    assert (await cluster.http("hub-1", "POST", "/api/sign-out", cookie=cookie)).status_code == 204

    async def missed() -> bool:
        return all("nats-servers do not answer" in cluster.log(name) for name in cluster.hubs)

    await eventually(missed, "the hubs miss it")
    server.send_signal(signal.SIGCONT)

    async def gone() -> bool:
        return name not in await scene.names()

    await eventually(gone, "cut as soon as the server is back, and not after half a minute", 10)
    await browser.close()
    assert await cluster.sign_in("hub-2", email, PASSWORD)
