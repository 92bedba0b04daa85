"""Every way to revoke a right works on open connections, and for clients that reconnect with the old credentials.

Each test runs with two hubs, and again after the hub that authorised the connection was killed. The tests check the
result in the server's list of connections, and with a separate connection.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from natskit.bus.connection import Connection
from natskit.bus.jetstream import ask
from natskit.errors import ConnectionLostError, NotAllowedError
from natskit.rpc import RpcError, decode_response, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import NO_TLS, Site, call
from tests.hub.test_hub_api import person
from tests.kit.wait import eventually

NEW_PASSWORD = "another long password"  # noqa: S105


@dataclass
class Scene:
    """A guest with two connected sessions, in a project that somebody else has shared."""

    site: Site
    admin: Connection
    hub: str = "hub-1"
    """The one that is asked over HTTP."""
    email: str = ""
    guest: str = ""
    cookie: str = ""
    other_cookie: str = ""
    owner: str = ""
    owner_email: str = ""
    owner_cookie: str = ""
    project: str = ""
    live: dict[str, Connection] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    """Cookies that were found to be good for nothing."""

    async def reconnect(self) -> None:
        for cookie, connection in list(self.live.items()):
            await connection.close()
            self.live[cookie] = await self.site.browser(self.guest, cookie)

    async def rpc(self, method: str, cookie: str, **params: Any) -> Any:
        answer = await self.site.http(self.hub, "POST", "/api/rpc", encode_request(method, params), cookie=cookie)
        return decode_response(answer.content)

    async def names(self) -> set[str]:
        """The names of the guest's connections, from the server."""
        return await names_of(self.site, self.guest)

    async def session_of(self, cookie: str) -> str:
        return str(next(s["session_id"] for s in await self.rpc("list_sessions", cookie) if s["mine"]))


async def names_of(site: Site, account_id: str) -> set[str]:
    """The names of an account's connections, from the server."""
    async with httpx.AsyncClient(verify=NO_TLS) as client:
        answer = await client.get(f"http://127.0.0.1:{site.monitor_port}/connz?auth=true")
    names = {c.get("authorized_user", "") for c in answer.json()["connections"]}
    return {name for name in names if account_id in name}


async def is_gone(site: Site, hub: str) -> bool:
    """Whether nats-server no longer has a connection of a hub."""
    async with httpx.AsyncClient(verify=NO_TLS) as client:
        answer = await client.get(f"http://127.0.0.1:{site.monitor_port}/connz")
    return not any(c.get("name", "").startswith(f"{hub}-") for c in answer.json()["connections"])


async def scene_of(site: Site) -> Scene:
    admin = await site.admin()
    scene = Scene(site, admin)
    scene.owner_email, scene.owner, scene.owner_cookie = await person(site, admin)
    scene.email, scene.guest, scene.cookie = await person(site, admin)
    _, scene.other_cookie = await site.sign_in("hub-2", scene.email, PASSWORD)
    scene.project = (await scene.rpc("create_project", scene.owner_cookie, title="P"))["project_id"]
    await scene.rpc("share_project", scene.owner_cookie, project_id=scene.project, email=scene.email)
    for cookie in (scene.cookie, scene.other_cookie):
        scene.live[cookie] = await site.browser(scene.guest, cookie)

    async def usable() -> bool:
        return all([await may_use(connection, scene.project) for connection in scene.live.values()])

    await eventually(usable, "the guest may use the project")
    return scene


async def may_use(connection: Connection, project_id: str) -> bool:
    """Whether nats-server accepts a message to the project. Nobody is there to answer it."""
    try:
        await connection.ask(f"projects.{project_id}.api", b"", 1)
    except NotAllowedError:
        return False
    except Exception as error:
        return "no responders" in str(error)
    return True


async def unshare(scene: Scene) -> None:
    await scene.rpc("unshare_project", scene.owner_cookie, project_id=scene.project, email=scene.email)


async def leave(scene: Scene) -> None:
    await scene.rpc("unshare_project", scene.cookie, project_id=scene.project, account_id=scene.guest)


async def delete_project(scene: Scene) -> None:
    await scene.rpc("delete_project", scene.owner_cookie, project_id=scene.project)


async def remove_owner(scene: Scene) -> None:
    await call(scene.admin, "hub.admin", "account_remove", email=scene.owner_email, delete_projects=True)


async def sign_out(scene: Scene) -> None:
    assert (await scene.site.http(scene.hub, "POST", "/api/sign-out", cookie=scene.cookie)).status_code == 204


async def end_session(scene: Scene) -> None:
    ended = await scene.session_of(scene.cookie)
    await scene.rpc("end_session", scene.other_cookie, session_id=ended)


async def end_session_over_nats(scene: Scene) -> None:
    ended = await scene.session_of(scene.cookie)
    await call(scene.live[scene.other_cookie], f"hub.api.{scene.guest}", "end_session", session_id=ended)


async def end_other_sessions(scene: Scene) -> None:
    await scene.rpc("end_all_sessions", scene.other_cookie, keep_this=True)


async def change_password(scene: Scene) -> None:
    await scene.rpc("change_password", scene.other_cookie, current_password=PASSWORD, new_password=NEW_PASSWORD)


async def end_all_sessions(scene: Scene) -> None:
    await scene.rpc("end_all_sessions", scene.other_cookie)


async def end_all_over_nats(scene: Scene) -> None:
    await call(scene.live[scene.cookie], f"hub.api.{scene.guest}", "end_all_sessions")


async def change_password_over_nats(scene: Scene) -> None:
    changed = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    await call(scene.live[scene.cookie], f"hub.api.{scene.guest}", "change_password", **changed)


async def disable(scene: Scene) -> None:
    await call(scene.admin, "hub.admin", "account_disable", email=scene.email)


async def set_password(scene: Scene) -> None:
    await call(scene.admin, "hub.admin", "account_set_password", email=scene.email)


async def sign_out_by_admin(scene: Scene) -> None:
    await call(scene.admin, "hub.admin", "account_sign_out", email=scene.email)


async def remove(scene: Scene) -> None:
    await call(scene.admin, "hub.admin", "account_remove", email=scene.email)


Event = Callable[[Scene], Awaitable[None]]
RIGHT: list[Event] = [unshare, leave, delete_project, remove_owner]
"""The guest stays, without the project."""
ONE: list[Event] = [sign_out, end_session, end_session_over_nats, end_other_sessions, change_password]
"""One session of the guest ends, the other goes on."""
ALL: list[Event] = [
    *(end_all_sessions, end_all_over_nats, change_password_over_nats),
    *(disable, set_password, sign_out_by_admin, remove),
]
"""All of the guest's sessions end."""


@pytest.mark.parametrize("killed", [False, True], ids=["two hubs", "their hub is dead"])
async def test_what_is_taken_away_is_gone(site: Site, killed: bool) -> None:
    """One hub authorised all connections, and is killed; the other hub disconnects them."""
    events = [*((e, loses_the_right) for e in RIGHT), *((e, loses_one) for e in ONE), *((e, loses_all) for e in ALL)]
    scenes = [await scene_of(site) for _ in events]
    if killed:
        site.kill_hub("hub-2")
        for scene in scenes:
            await scene.reconnect()
        site.start_hub("hub-2")
        await site.healthy("hub-2")
        site.kill_hub("hub-1")
        await eventually(lambda: is_gone(site, "hub-1"), "nats-server has noticed, and gives requests to the other one")
        for scene in scenes:
            scene.hub = "hub-2"
    try:
        outcomes = await asyncio.gather(
            *(loses(scene, event) for scene, (event, loses) in zip(scenes, events, strict=True)), return_exceptions=True
        )
        failed = [(e.__name__, o) for (e, _), o in zip(events, outcomes, strict=True) if isinstance(o, BaseException)]
        assert not failed, failed
    finally:
        if killed:
            site.start_hub("hub-1")
            await site.healthy("hub-1")
    # A hub that has just started knows as well who is out.
    for scene in scenes:
        for cookie in scene.over:
            assert (await site.http("hub-1", "GET", "/api/session", cookie=cookie)).status_code == 401


async def loses_the_right(scene: Scene, event: Event) -> None:
    before = await scene.names()
    assert len(before) == 2
    await event(scene)

    async def lost() -> bool:
        now = await scene.names()
        return len(now) == 2 and not now & before

    await eventually(lost, "both connections were cut, and are back with other rights")
    for connection in scene.live.values():
        assert not await may_use(connection, scene.project)
    again = await scene.site.browser(scene.guest, scene.cookie)
    assert not await may_use(again, scene.project)
    await again.close()


async def loses_one(scene: Scene, event: Event) -> None:
    ended, kept = await scene.session_of(scene.cookie), await scene.session_of(scene.other_cookie)
    await event(scene)

    async def cut() -> bool:
        return not any(ended in name for name in await scene.names())

    await eventually(cut, "the connection of the ended session is cut")
    await refused(scene, scene.cookie)
    assert any(kept in name for name in await scene.names()), "the other one goes on"
    assert (await scene.site.http(scene.hub, "GET", "/api/session", cookie=scene.other_cookie)).status_code == 200
    assert (await call(scene.live[scene.other_cookie], f"hub.api.{scene.guest}", "ping"))["pong"]
    assert [s["session_id"] for s in await scene.rpc("list_sessions", scene.other_cookie)] == [kept]


async def loses_all(scene: Scene, event: Event) -> None:
    await event(scene)

    async def cut() -> bool:
        return await scene.names() == set()

    await eventually(cut, "all connections are cut")
    for cookie in list(scene.live):
        await refused(scene, cookie)


async def refused(scene: Scene, cookie: str) -> None:
    """The cookie gives neither a connection nor the API, at any hub."""
    await scene.live.pop(cookie).close()
    scene.over.add(cookie)
    for name, (process, _) in scene.site.hubs.items():
        if process.poll() is None:

            async def out(name: str = name) -> bool:
                asked = await scene.site.http(name, "POST", "/api/rpc", encode_request("whoami"), cookie=cookie)
                again = await scene.site.http(name, "GET", "/api/session", cookie=cookie)
                return asked.status_code == again.status_code == 401

            await eventually(out, f"{name} refuses the cookie", 1)
    with pytest.raises(ConnectionLostError):
        await scene.site.browser(scene.guest, cookie, patience=0.5)


async def test_a_session_that_ends_by_time_ends_for_live_connections(site: Site) -> None:
    """Within a second of JetStream's message, whatever the hub's clock says."""
    scene = await scene_of(site)
    ended = await scene.session_of(scene.cookie)
    hub = await site.state()
    record = await ask(hub, "find", "sessions", {"last_by_subj": f"$KV.sessions.{ended}"})
    told: asyncio.Queue[float] = asyncio.Queue()

    async def heard(message: Any) -> None:
        if "Nats-Marker-Reason" in (message.headers or {}):
            told.put_nowait(time.monotonic())

    await hub.subscribe(f"state.sessions.{ended}", cb=heard)
    await hub.flush()
    body = base64.b64decode(record["message"]["data"])
    await hub.request(f"$KV.sessions.{ended}", body, timeout=2, headers={"Nats-TTL": "2s"})
    assert any(ended in name for name in await scene.names())
    moment = await asyncio.wait_for(told.get(), 5)

    async def cut() -> bool:
        return not any(ended in name for name in await scene.names())

    await eventually(cut, "its connection is cut", 1)
    assert time.monotonic() - moment < 1
    await refused(scene, scene.cookie)
    (left,) = await scene.rpc("list_sessions", scene.other_cookie)
    assert left["mine"]
    assert (await call(scene.live[scene.other_cookie], f"hub.api.{scene.guest}", "ping"))["pong"]


async def test_a_session_is_kept_as_long_as_it_is_good(site: Site) -> None:
    admin = await site.admin()
    _, _, cookie = await person(site, admin)
    session = await Scene(site, admin).session_of(cookie)
    hub = await site.state()
    found = await ask(hub, "find", "sessions", {"last_by_subj": f"$KV.sessions.{session}"})
    record = json.loads(base64.b64decode(found["message"]["data"]))
    headers = base64.b64decode(found["message"]["hdrs"]).decode()
    lives = int(headers.partition("Nats-TTL: ")[2].partition("s")[0])
    assert 0 <= lives - (record["expires_at"] - record["created_at"]) <= 1


async def test_sessions_are_ones_own(site: Site) -> None:
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    _, other_id, other_cookie = await person(site, admin)
    scene = Scene(site, admin)
    mine = await scene.session_of(cookie)
    with pytest.raises(RpcError, match="no such session"):
        await scene.rpc("end_session", other_cookie, session_id=mine)
    with pytest.raises(RpcError, match="lower-case UUID"):
        await scene.rpc("end_session", other_cookie, session_id="*")
    assert mine not in {s["session_id"] for s in await scene.rpc("list_sessions", other_cookie)}
    browser = await site.browser(account_id, cookie)
    over_nats = await call(browser, f"hub.api.{account_id}", "list_sessions")
    assert [(s["session_id"], s["mine"]) for s in over_nats] == [(mine, None)], "what the hub does not know, it says"
    with pytest.raises(RpcError, match="does not know which session"):
        await call(browser, f"hub.api.{account_id}", "end_all_sessions", keep_this=True)
    assert other_id != account_id
