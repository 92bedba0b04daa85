"""Rights of people change: one-time passwords, removed accounts, sharing in a loop, sessions that are prolonged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import pytest

from natskit.bus.connection import FREE_RETURNS
from natskit.hub.state.records import Session
from natskit.hub.timestamp import iso
from natskit.rpc import RpcError, decode_response, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call, cookie_of
from tests.hub.test_hub_api import person
from tests.hub.test_revocations import Scene, may_use, scene_of
from tests.kit.wait import eventually

NEW_PASSWORD = "a password of my own"  # noqa: S105


async def ask(site: Site, hub: str, cookie: str, method: str, **params: Any) -> Any:
    answer = await site.http(hub, "POST", "/api/rpc", encode_request(method, params), cookie=cookie)
    return decode_response(answer.content)


async def test_a_one_time_password_is_good_for_nothing_else(site: Site) -> None:
    admin = await site.admin()
    email, account_id, cookie = await person(site, admin)
    project_id = (await ask(site, "hub-1", cookie, "create_project", title="P"))["project_id"]
    password = (await call(admin, "hub.admin", "account_set_password", email=email))["password"]
    _, cookie = await site.sign_in("hub-1", email, password)
    for name in site.hubs:
        for method, params in (
            ("list_projects", {}),
            ("create_project", {"title": "Q"}),
            ("start_project", {"project_id": project_id}),
            ("share_project", {"project_id": project_id, "email": email}),
            ("read_text_file_from_project", {"project_id": project_id, "path": "a"}),
        ):
            with pytest.raises(RpcError, match="change it first") as refused:
                await ask(site, name, cookie, method, **params)
            assert refused.value.kind == "must_change_password"
        assert (await ask(site, name, cookie, "whoami"))["must_change_password"]
        assert [s["mine"] for s in await ask(site, name, cookie, "list_sessions")] == [True]
    browser = await site.browser(account_id, cookie)
    assert (await call(browser, f"hub.api.{account_id}", "ping"))["pong"]
    with pytest.raises(RpcError, match="change it first"):
        await call(browser, f"hub.api.{account_id}", "list_projects")
    assert not await may_use(browser, project_id)

    await ask(site, "hub-2", cookie, "change_password", current_password=password, new_password=NEW_PASSWORD)

    async def usable() -> bool:
        return await may_use(browser, project_id)

    await eventually(usable, "the same connection has its projects")
    assert len(await call(browser, f"hub.api.{account_id}", "list_projects")) == 1


async def test_an_account_that_owns_projects_is_not_removed_by_accident(site: Site) -> None:
    scene = await scene_of(site)
    with pytest.raises(RpcError, match="owns 1 projects"):
        await call(scene.admin, "hub.admin", "account_remove", email=scene.owner_email)
    for heir, problem in ((scene.owner_email, "another account"), ("nobody@example.org", "no account has")):
        with pytest.raises(RpcError, match=problem):
            await call(scene.admin, "hub.admin", "account_remove", email=scene.owner_email, give_projects_to=heir)
    fates = {"give_projects_to": scene.email, "delete_projects": True}
    with pytest.raises(RpcError, match="not both"):
        await call(scene.admin, "hub.admin", "account_remove", email=scene.owner_email, **fates)
    assert (await ask(site, "hub-1", scene.owner_cookie, "whoami"))["email"] == scene.owner_email
    gone = await call(
        scene.admin, "hub.admin", "account_remove", email=scene.owner_email, give_projects_to=scene.email.upper()
    )
    assert gone["projects"] == [scene.project]
    (project,) = await ask(site, "hub-2", scene.cookie, "list_projects")
    assert (project["role"], [c["email"] for c in project["collaborators"]]) == ("owner", [scene.email])
    with pytest.raises(RpcError, match="no account has"):
        await call(scene.admin, "hub.admin", "account_remove", email=scene.owner_email)


async def test_the_removal_of_an_account_goes_on_where_it_was_interrupted(site: Site) -> None:
    """The test writes each state in which a hub may have left it when it died."""
    admin = await site.admin()
    hub = await site.state()
    for lost in (["memberships"], ["memberships", "accounts"]):
        email, account_id, cookie = await person(site, admin)
        project_id = (await ask(site, "hub-1", cookie, "create_project", title="P"))["project_id"]
        await call(admin, "hub.admin", "account_disable", email=email)
        for bucket in lost:
            key = account_id if bucket == "accounts" else f"{account_id}.{project_id}"
            headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}
            await hub.request(f"$KV.{bucket}.{key}", b"", headers=headers, timeout=5)

        async def removed(email: str = email) -> dict[str, Any]:
            done: dict[str, Any] = await call(admin, "hub.admin", "account_remove", email=email, delete_projects=True)
            return done

        assert (await eventually(removed, "removed"))["account_id"] == account_id
        again = await call(admin, "hub.admin", "account_add", email=email, password=PASSWORD)
        assert again["account_id"] != account_id, "the e-mail is free, for somebody else"
        assert await site.sign_in("hub-2", email, PASSWORD)


async def test_nobody_is_cut_again_and_again_by_a_friend(site: Site) -> None:
    scene = await scene_of(site)
    shared = 0

    async def share_and_unshare() -> None:
        nonlocal shared
        for hub in ("hub-1", "hub-2") * 10:
            scene.hub = hub
            for method in ("unshare_project", "share_project"):
                await scene.rpc(method, scene.owner_cookie, project_id=scene.project, email=scene.email)
            shared += 1

    with pytest.raises(RpcError, match=r"try again in \d+ s") as refused:
        await share_and_unshare()
    assert refused.value.kind == "limit"
    assert 0 < refused.value.data["retry_after"] <= 60
    assert shared <= 5, "two hubs count the same changes"
    with pytest.raises(RpcError, match="no collaborator"):  # what was taken away is away, at any time
        await scene.rpc("unshare_project", scene.owner_cookie, project_id=scene.project, email=scene.email)
    await call(scene.admin, "hub.admin", "project_share", project_id=scene.project, email=scene.email)


async def test_a_session_slides_up_to_its_end_without_dropping_the_connection(site: Site) -> None:
    admin = await site.admin()
    hub = await site.state()
    _, account_id, cookie = await person(site, admin)
    scene = Scene(site, admin, guest=account_id)
    session_id = await scene.session_of(cookie)
    browser = await site.browser(account_id, cookie)
    names, now = await scene.names(), time.time()

    async def with_session(**fields: float) -> str:
        """Give the session some age. Returns it when the hub has the change, and an empty text until then."""
        last = Session(
            account_id=account_id,
            created_at=now - 1000,
            expires_at=now + 300,
            absolute_expires_at=fields.get("absolute_expires_at", now + 86400),
            last_seen=now - 1000,
        )
        await hub.request(f"$KV.sessions.{session_id}", last.to_json(), timeout=5)
        known = str((await ask(site, "hub-1", cookie, "list_sessions"))[0]["expires_at"])
        return known if known == iso(last.expires_at) else ""

    before = await eventually(with_session, "the session is old")
    answer = await site.http("hub-1", "GET", "/api/session", cookie=cookie)
    assert answer.json()["expires_at"] > before
    renewed = cookie_of(answer)
    assert renewed != cookie
    assert await scene.names() == names
    assert browser.stats["reconnects"] == 0
    await eventually(lambda: with_session(absolute_expires_at=now + 400), "the session is near its end")
    answer = await site.http("hub-1", "GET", "/api/session", cookie=renewed)
    assert 390 <= int(answer.headers["set-cookie"].lower().partition("max-age=")[2].partition(";")[0]) <= 400
    await asyncio.gather(*(site.http(name, "POST", "/api/sign-out", cookie=cookie) for name in site.hubs))
    for stolen in (cookie, renewed, cookie_of(answer)):
        for name in site.hubs:
            assert (await site.http(name, "GET", "/api/session", cookie=stolen)).status_code == 401


async def test_who_was_locked_out_meanwhile_cannot_undo_it(site: Site) -> None:
    """A call that began earlier, through either hub, with a stolen cookie or the old password."""
    admin = await site.admin()
    email, _, cookie = await person(site, admin)
    over = asyncio.Event()

    async def keep_me(hub: str) -> None:
        while not over.is_set():
            with contextlib.suppress(RpcError, KeyError):
                await ask(site, hub, cookie, "end_all_sessions", keep_this=True)

    loops = [asyncio.create_task(keep_me(hub)) for hub in (*site.hubs, *site.hubs)]
    try:
        for _ in range(20):  # while they are at it
            await ask(site, "hub-1", cookie, "ping")
        await call(admin, "hub.admin", "account_sign_out", email=email)
        for hub in site.hubs:
            assert (await site.http(hub, "GET", "/api/session", cookie=cookie)).status_code == 401
    finally:
        over.set()
        await asyncio.gather(*loops)
    for hub in site.hubs:
        assert (await site.http(hub, "GET", "/api/session", cookie=cookie)).status_code == 401

    for number in range(3):
        old, theirs, ours = (f"{word} password {number}" for word in ("their first", "their next", "the admin's"))
        await call(admin, "hub.admin", "account_set_password", email=email, password=old)
        _, cookie = await site.sign_in("hub-1", email, old)
        with pytest.raises(RpcError, match="the one you have"):
            await ask(site, "hub-1", cookie, "change_password", current_password=old, new_password=old)
        attempts = [
            ask(site, hub, cookie, "change_password", current_password=old, new_password=theirs) for hub in site.hubs
        ]
        reset = call(admin, "hub.admin", "account_set_password", email=email, password=ours)
        await asyncio.gather(*attempts, reset, return_exceptions=True)
        for hub in site.hubs:
            await site.sign_in(hub, email, ours)


async def test_whose_rights_change_again_and_again_is_back_at_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """nats-server 2.15 closes the WebSocket with 1011 ("internal error" in RFC 6455) and the text "Kicked"."""
    admin = await site.admin()
    _, _, owner = await person(site, admin)
    email, guest, cookie = await person(site, admin)
    connection = await site.browser(guest, cookie)
    changes: list[tuple[str, str, float]] = []
    connection._on_status = lambda status, reason: changes.append((status, reason, time.monotonic()))
    caplog.set_level(logging.DEBUG, "natskit.bus.connection")
    caplog.set_level(logging.DEBUG, "nats")
    for number in range(2 * FREE_RETURNS):
        project = (await ask(site, "hub-1", owner, "create_project", title="P"))["project_id"]
        await ask(site, "hub-1", owner, "share_project", project_id=project, email=email)

        async def usable(project: str = project) -> bool:
            return await may_use(connection, project)

        await eventually(usable, f"the right to project {number} is there")

    async def settled() -> bool:
        return changes[-1][0] == "connected"

    await eventually(settled, "the client has said so")
    status, reasons, moments = zip(*changes, strict=True)
    assert status == ("disconnected", "connecting", "connected") * (len(changes) // 3)
    assert set(reasons) == {"a hub has disconnected this client: its rights have changed", ""}
    away = [moments[n + 2] - moments[n] for n in range(0, len(moments), 3)]
    assert sorted(away)[len(away) // 2] < 0.2, away
    assert sorted(away[FREE_RETURNS:])[FREE_RETURNS // 2] < 0.5, away
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
