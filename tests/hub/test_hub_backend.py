"""Trusted backends and their tickets, with two real hubs."""

from __future__ import annotations

import asyncio
import json
import unicodedata
import uuid
from typing import Any

import httpx
import pytest

from natskit.hub.sign_in.backend import TOKEN_PREFIX, digest, new_token
from natskit.identity.claims import COOKIE
from natskit.ops import audit_reader
from natskit.rpc import RpcError, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import ORIGIN, Site, call

TOKENS = {name: new_token() for name in ("shop", "forum", "root", "inside")}
BACKENDS: dict[str, Any] = {name: {"sha256": digest(token)} for name, token in TOKENS.items()}
BACKENDS["root"]["accounts"] = "all"
BACKENDS["inside"]["networks"] = ["10.0.0.0/8", "192.0.2.1"]


@pytest.fixture(scope="module")
def hub_settings() -> dict[str, Any]:
    return {"backends": BACKENDS}


async def ask(
    site: Site, body: Any, *, backend: str = "shop", hub: str = "hub-1", path: str = "session", **headers: str
) -> httpx.Response:
    """Send a request as a backend does: without an Origin, with its token."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Authorization": f"Bearer {TOKENS[backend]}"} | headers
    async with site.client(hub) as client:
        return await client.post(f"/api/backend/{path}", content=content, headers=sent)


def person() -> str:
    return f"{uuid.uuid4()}@example.org"


async def enter(site: Site, url: str, hub: str = "hub-2") -> httpx.Response:
    assert url.startswith(f"{ORIGIN}/api/enter?ticket=")
    async with site.client(hub) as client:
        return await client.get(url.removeprefix(ORIGIN))


async def test_a_session_and_its_cookie(site: Site) -> None:
    email = person()
    answer = await ask(site, {"email": email, "address": "198.51.100.7", "user_agent": "Lynx"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["made"]
    assert answer.cookies.get(COOKIE) is None  # the backend sets it, not this answer
    attributes = body["set_cookie"].lower()
    assert attributes.startswith("__host-natskit=ey")
    for word in ("httponly", "secure", "samesite=strict", "path=/", f"max-age={body['cookie']['max_age']}"):
        assert word in attributes
    again = (await ask(site, {"email": email.upper()}, hub="hub-2")).json()
    assert not again["made"]
    assert again["account_id"] == body["account_id"]
    connection = await site.browser(body["account_id"], body["cookie"]["value"])
    assert (await call(connection, f"hub.api.{body['account_id']}", "whoami"))["email"] == email
    change = encode_request("change_password", {"current_password": "", "new_password": PASSWORD})
    refusal = await site.http("hub-1", "POST", "/api/rpc", change, cookie=body["cookie"]["value"])
    assert refusal.json()["error"]["data"]["kind"] == "forbidden"
    for password in ("", PASSWORD):
        attempt = {"email": email, "password": password}
        assert (await site.http("hub-1", "POST", "/api/sign-in", attempt)).status_code == 401


async def test_an_email_is_the_same_however_the_site_writes_it(site: Site) -> None:
    name = f"jos\u00e9.{uuid.uuid4().hex[:8]}"
    first = (await ask(site, {"email": f"{name}@b\u00fccher.example"})).json()
    spellings = (unicodedata.normalize("NFD", name), name.upper())
    for again in [f"{spelling}@xn--bcher-kva.example" for spelling in spellings]:
        answer = await ask(site, {"email": again}, hub="hub-2")
        assert (answer.status_code, answer.json().get("account_id")) == (200, first["account_id"]), answer.text
    plain = (await ask(site, {"email": f"{name[:-8].replace(chr(233), 'e')}coco@example.org"})).json()
    assert plain["made"]
    alike = await ask(site, {"email": "jose.сосо@example.org"})
    assert (alike.status_code, alike.json()["error"]["code"]) == (409, "conflict")
    wide = await ask(site, {"id": name, "email": f"\uff41{name}@example.org"})
    assert (wide.status_code, wide.json()["error"]["code"]) == (409, "conflict")
    hidden = await ask(site, {"email": f"ada\u200b{name}@example.org"})
    assert (hidden.status_code, hidden.json()["error"]["code"]) == (400, "invalid_params")


async def test_an_id_of_the_site_outlives_an_email(site: Site) -> None:
    first = (await ask(site, {"id": "4711", "email": person()})).json()
    second = (await ask(site, {"id": "4711", "email": person()}, hub="hub-2")).json()
    assert (second["account_id"], second["email"]) == (first["account_id"], first["email"])
    other = await ask(site, {"id": "4711", "email": person()}, backend="forum")
    assert other.json()["account_id"] != first["account_id"]


async def test_an_address_that_somebody_else_has_by_now_is_not_the_account_of_before(site: Site) -> None:
    email = person()
    assert (await ask(site, {"id": "one", "email": email})).json()["made"]
    for wanted in ({"id": "two", "email": email}, {"email": email}):
        for path in ("session", "ticket"):
            answer = await ask(site, wanted, path=path, hub="hub-2")
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert (await ask(site, {"id": "one", "email": email}, hub="hub-2")).status_code == 200
    plain = person()
    assert (await ask(site, {"email": plain})).json()["made"]
    assert (await ask(site, {"id": plain, "email": person()})).json()["email"] != plain


async def test_a_backend_has_the_accounts_that_it_made(site: Site) -> None:
    admin, email, theirs = await site.admin(), person(), person()
    made = await call(admin, "hub.admin", "account_add", email=email, password=PASSWORD)
    other = (await ask(site, {"email": theirs}, backend="forum")).json()
    for wanted in ({"email": email}, {"email": theirs}, {"id": "1", "email": email}):
        for path in ("session", "ticket"):
            answer = await ask(site, wanted, path=path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert (await ask(site, {"email": email}, backend="root")).json()["account_id"] == made["account_id"]
    assert (await ask(site, {"email": theirs}, backend="root")).json()["account_id"] == other["account_id"]
    await call(admin, "hub.admin", "account_disable", email=theirs)
    for path in ("session", "ticket"):
        assert (await ask(site, {"email": theirs}, backend="forum", path=path)).status_code == 403


async def test_its_accounts_have_no_password_and_get_none(site: Site) -> None:
    admin, email = await site.admin(), person()
    opened = (await ask(site, {"email": email})).json()
    with pytest.raises(RpcError, match=rf"{email} signs in by backend shop and has no password here.*disable"):
        await call(admin, "hub.admin", "account_set_password", email=email)
    answer = await site.http("hub-1", "GET", "/api/session", cookie=opened["cookie"]["value"])
    assert answer.status_code == 200, "nobody was signed out"
    (row,) = [row for row in await call(admin, "hub.admin", "account_list") if row["email"] == email]
    assert (row["made_by"], row["must_change_password"]) == ("backend shop", False)


async def test_who_has_no_token_gets_nothing(site: Site) -> None:
    body = {"email": person()}
    wrong = ("", "Bearer", "Bearer x", f"Basic {TOKENS['shop']}", f"Bearer {TOKEN_PREFIX}", f"Bearer {digest('x')}")
    for authorization in (*wrong, f"Bearer {BACKENDS['shop']['sha256']}", f"Bearer {TOKENS['shop']}x"):
        answer = await ask(site, body, Authorization=authorization)
        assert answer.status_code == 401, authorization
    assert (await ask(site, body, backend="inside")).status_code == 401
    for address, status in (("10.1.2.3", 200), ("192.0.2.1", 200), ("192.0.2.2", 401), ("x", 401)):
        answer = await ask(site, body, backend="inside", **{"X-Forwarded-For": address})
        assert answer.status_code == status, address
    # It is good for nothing else.
    for method, path in (("GET", "/api/session"), ("POST", "/api/rpc")):
        async with site.client("hub-1") as client:
            headers = {"Authorization": f"Bearer {TOKENS['root']}", "Origin": ORIGIN}
            answer = await client.request(method, path, content=encode_request("whoami"), headers=headers)
        assert answer.status_code == 401


async def test_odd_requests(site: Site) -> None:
    for body in (b"", b"[]", {}, {"email": ""}, {"email": 1}, {"email": "no address"}, {"email": "a@b", "x": "y"}):
        assert (await ask(site, body)).status_code == 400, body
    assert (await ask(site, {"email": "a@b", "id": "x" * 321})).status_code == 400
    assert (await ask(site, b"x" * 10_000)).status_code == 413
    admin = await site.admin()
    assert "a@b" not in [row["email"] for row in await call(admin, "hub.admin", "account_list")]


async def test_first_use_by_many_at_once_makes_one_account(site: Site) -> None:
    email = person()
    answers = await asyncio.gather(*(ask(site, {"email": email}, hub=f"hub-{n % 2 + 1}") for n in range(8)))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert len({answer.json()["account_id"] for answer in answers}) == 1
    assert sum(answer.json()["made"] for answer in answers) == 1


async def test_a_ticket_opens_one_session_once(site: Site) -> None:
    answer = (await ask(site, {"email": person()}, path="ticket")).json()
    assert answer["seconds"] == 60
    entered = await asyncio.gather(*(enter(site, answer["url"], f"hub-{n % 2 + 1}") for n in range(6)))
    good = [one for one in entered if one.status_code == 303]
    assert len(good) == 1, [one.status_code for one in entered]
    assert good[0].headers["location"] == "/"
    session = await site.http("hub-1", "GET", "/api/session", cookie=good[0].cookies[COOKIE])
    assert session.json()["account_id"] == answer["account_id"]
    for name in site.hubs:
        late = await enter(site, answer["url"], name)
        assert (late.status_code, late.cookies.get(COOKIE)) == (403, None)
        assert "used already" in late.text


async def test_a_wrong_ticket_opens_nothing(site: Site) -> None:
    answer = (await ask(site, {"email": person()}, path="ticket")).json()
    session_id, _, secret = answer["url"].partition("ticket=")[2].partition(".")
    async with site.client("hub-1") as client:
        path = answer["url"].removeprefix(ORIGIN)
        assert (await client.head(path)).status_code == 405
        assert (await client.get(path, headers={"Sec-Purpose": "prefetch;prerender"})).status_code == 405
    for wrong in ("", "x", session_id, f"{session_id}.", f"{session_id}.{secret[:-1]}x", f"{uuid.uuid4()}.{secret}"):
        assert (await enter(site, f"{ORIGIN}/api/enter?ticket={wrong}")).status_code == 403
    assert (await enter(site, answer["url"])).status_code == 303


@pytest.mark.parametrize("method", ["account_disable", "account_sign_out", "account_remove"])
async def test_a_ticket_ends_with_the_sessions_of_its_account(site: Site, method: str) -> None:
    email = person()
    answer = (await ask(site, {"email": email}, path="ticket")).json()
    await call(await site.admin(), "hub.admin", method, email=email)
    assert (await enter(site, answer["url"])).status_code == 403


async def test_who_was_removed_comes_back_as_somebody_new(site: Site) -> None:
    admin, email = await site.admin(), person()
    first = (await ask(site, {"id": email, "email": email})).json()
    assert (await call(admin, "hub.admin", "account_remove", email=email))["account_id"] == first["account_id"]
    assert (await site.http("hub-2", "GET", "/api/session", cookie=first["cookie"]["value"])).status_code == 401
    again = (await ask(site, {"id": email, "email": email}, hub="hub-2")).json()
    assert again["made"]
    assert again["account_id"] != first["account_id"]
    events = [e async for e in audit_reader.events(admin, 0) if e["account"] == first["account_id"]]
    assert [e["kind"] for e in events] == ["backend_session", "account_remove"]


async def test_each_use_is_in_the_audit(site: Site) -> None:
    admin, email = await site.admin(), person()
    account_id = (await ask(site, {"email": email}, path="ticket")).json()["account_id"]
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        async for event in audit_reader.events(admin, 0, follow=True):
            seen.append(event)
            if (event["kind"], event["account"]) == ("backend_ticket", account_id):
                break
    assert seen[-1]["by"] == "backend shop"
    reasons = {(event["kind"], event.get("reason")) for event in seen if event["outcome"] == "refused"}
    assert {("backend", "token"), ("backend", "network"), ("backend_session", "conflict")} <= reasons
    assert ("sign_in", "unknown ticket") in reasons
    text = str(seen) + "".join(site.log(name) for name in site.hubs)
    assert not [token for token in TOKENS.values() if token in text]
