"""Which session ends when an account has too many, repeated sign-ins, and requests for another account."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from natskit.hub.auth.sessions import MAX_SESSIONS
from natskit.identity.claims import COOKIE, cookie_name
from natskit.rpc import encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import ORIGIN, Site, cookie_of
from tests.hub.test_hub_api import person
from tests.hub.test_revocations import names_of
from tests.hub.test_rights import ask
from tests.platform.raw import ClosedError, RawClient

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0"
PROGRAM = "natskit/0.1"


async def sign_in(site: Site, email: str, agent: str, hub: str = "hub-1", **more: str) -> str:
    """The cookie of a new session."""
    async with site.client(hub) as client:
        answer = await client.post(
            "/api/sign-in",
            json={"email": email, "password": PASSWORD, **more},
            headers={"Origin": ORIGIN, "User-Agent": agent},
        )
    assert answer.status_code == 200, answer.text
    return cookie_of(answer)


async def session_of(site: Site, cookie: str) -> dict[str, Any]:
    """The hub's description of the session of a cookie."""
    answer = await site.http("hub-1", "GET", "/api/session", cookie=cookie)
    assert answer.status_code == 200, answer.text
    return {key: answer.json()[key] for key in ("account_id", "session_id")}


async def is_alive(site: Site, cookie: str) -> bool:
    return (await site.http("hub-1", "GET", "/api/session", cookie=cookie)).status_code == 200


async def test_programs_do_not_sign_a_browser_out(site: Site) -> None:
    """Neither an open browser, nor one that was closed for the night. A running program keeps its session, too."""
    email, account_id, _ = await person(site, await site.admin())
    opened = await sign_in(site, email, FIREFOX)
    closed = await sign_in(site, email, FIREFOX)
    running = await sign_in(site, email, PROGRAM)
    connection = await site.browser(account_id, running)
    crashed = await sign_in(site, email, PROGRAM)
    for _ in range(MAX_SESSIONS):
        await sign_in(site, email, PROGRAM)
    assert await is_alive(site, opened)
    assert await is_alive(site, closed)
    assert await is_alive(site, running)
    assert connection.is_connected
    assert not await is_alive(site, crashed)


async def test_browsers_make_room_for_each_other(site: Site) -> None:
    """The session that was used least recently ends, unless it is connected."""
    email, account_id, _ = await person(site, await site.admin())
    opened = await sign_in(site, email, FIREFOX)
    connection = await site.browser(account_id, opened)
    forgotten = await sign_in(site, email, FIREFOX)
    for _ in range(MAX_SESSIONS - 1):
        await sign_in(site, email, FIREFOX)
    assert await is_alive(site, opened)
    assert connection.is_connected
    assert not await is_alive(site, forgotten)


async def test_a_sign_in_that_is_sent_again_opens_no_second_session(site: Site) -> None:
    """A client that lost the answer repeats the request, perhaps to another hub."""
    admin = await site.admin()
    email, account_id, _ = await person(site, admin)
    other_email, other_id, _ = await person(site, admin)
    attempt = str(uuid.uuid4())
    first = await sign_in(site, email, FIREFOX, attempt=attempt)
    again = await sign_in(site, email, FIREFOX, "hub-2", attempt=attempt)
    assert await session_of(site, again) == await session_of(site, first)
    assert len(await ask(site, "hub-1", again, "list_sessions")) == 2  # that of `person` as well
    # The attempt of one account says nothing about the sessions of another.
    stranger = await session_of(site, await sign_in(site, other_email, FIREFOX, attempt=attempt))
    assert stranger["account_id"] == other_id != account_id
    assert stranger["session_id"] != (await session_of(site, first))["session_id"]
    # When the session has ended, the attempt opens a new one, as any sign-in does.
    await site.http("hub-1", "POST", "/api/sign-out", cookie=again)
    assert not await is_alive(site, first)
    assert await is_alive(site, await sign_in(site, email, FIREFOX, attempt=attempt))


@pytest.mark.parametrize("attempt", ["1", "", str(uuid.uuid4()).upper(), 7, ["x"]])
async def test_an_attempt_that_is_no_id_is_refused(site: Site, attempt: object) -> None:
    async with site.client("hub-1") as client:
        answer = await client.post(
            "/api/sign-in",
            json={"email": "a@example.org", "password": PASSWORD, "attempt": attempt},
            headers={"Origin": ORIGIN},
        )
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "attempt must be a lower-case UUID")


async def test_a_request_that_is_meant_for_somebody_else_changes_nothing(site: Site) -> None:
    """All tabs share one cookie. If a page finds the session of another account, it ends nothing."""
    admin = await site.admin()
    _, one, _ = await person(site, admin)
    _, other, cookie = await person(site, admin)
    body = encode_request("end_all_sessions")
    for method, path, content in (
        ("GET", "/api/session", None),
        ("POST", "/api/rpc", body),
        ("POST", "/api/sign-out", None),
    ):
        async with site.client("hub-1") as client:
            headers = {"Origin": ORIGIN, "Cookie": f"{COOKIE}={cookie}", "Natskit-Account": one}
            answer = await client.request(method, path, content=content, headers=headers)
            assert answer.status_code == 409
            assert answer.json()["error"] == {
                "code": "other_account",
                "message": "somebody else has signed in in this browser",
            }
            assert "set-cookie" not in answer.headers
            assert await is_alive(site, cookie)
            right = await client.request("GET", "/api/session", headers=headers | {"Natskit-Account": other})
            assert right.status_code == 200


async def test_a_page_is_not_connected_as_somebody_else(site: Site) -> None:
    """The page names its account, but the cookie belongs to another account by now. With that account's connection, the
    page could not even subscribe to its inbox."""
    admin = await site.admin()
    _, one, _ = await person(site, admin)
    _, other, cookie = await person(site, admin)
    url = f"ws://127.0.0.1:{site.websocket_port}"
    with pytest.raises(ClosedError, match="Authorization Violation"):
        RawClient.websocket(url, cookie=f"{COOKIE}={cookie}", user=one)
    RawClient.websocket(url, cookie=f"{COOKIE}={cookie}", user=other)
    assert [name.split(".")[1] for name in await names_of(site, other)] == [other]
    assert not await names_of(site, one)


async def test_the_cookie_of_a_site_that_has_the_port_in_its_name(site: Site) -> None:
    """The hub exchanges a cookie with the old name for one with the new name, so nobody has to sign in again."""
    admin = await site.admin()
    email, account_id, old = await person(site, admin)
    name = cookie_name("https://localhost:4043")
    assert name == f"{COOKIE}-4043"
    site.start_hub("hub-3", cookie=name)
    await site.healthy("hub-3")
    async with site.client("hub-3") as client:
        answer = await client.post(
            "/api/sign-in", json={"email": email, "password": PASSWORD}, headers={"Origin": ORIGIN}
        )
        assert answer.headers["set-cookie"].startswith(f"{name}=ey")
        renewed = await client.get("/api/session", headers={"Cookie": f"{COOKIE}={old}"})
        assert (renewed.status_code, renewed.json()["account_id"]) == (200, account_id)
        assert renewed.headers["set-cookie"].startswith(f"{name}=ey")
        new = renewed.headers["set-cookie"].split(";")[0]
        answer = await client.post(
            "/api/sign-out", headers={"Origin": ORIGIN, "Cookie": f"{new}; {COOKIE}=another site's"}
        )
        assert [cookie.partition(";")[0] for cookie in answer.headers.get_list("set-cookie")] == [f'{name}=""']
    assert not await is_alive(site, old)


async def test_who_signs_out_does_not_find_somebody_else_signed_in(site: Site) -> None:
    """The browser still has a cookie with the old name, of somebody else's session."""
    admin = await site.admin()
    _, _, old = await person(site, admin)
    email, _, _ = await person(site, admin)
    name = cookie_name("https://localhost:4044")
    site.start_hub("hub-4", cookie=name)
    await site.healthy("hub-4")
    async with site.client("hub-4") as client:
        before = {"Origin": ORIGIN, "Cookie": f"{COOKIE}={old}"}
        words = {"email": email, "password": PASSWORD}
        entered = await client.post("/api/sign-in", json=words, headers=before)
        new = entered.headers["set-cookie"].split(";")[0]
        left = await client.post("/api/sign-out", headers=before | {"Cookie": f"{new}; {COOKIE}={old}"})
    for answer, value in ((entered, new), (left, f'{name}=""')):
        cookies = [cookie.partition(";")[0] for cookie in answer.headers.get_list("set-cookie")]
        assert cookies == [value, f'{COOKIE}=""']
    assert await is_alive(site, old), "it is only this browser that forgets it"
