"""Two real hubs on a real nats-server: signing in, the API, and rights that change while people are connected."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import nats.errors
import pytest

from natskit.bus.connection import Connection
from natskit.errors import ConnectionLostError
from natskit.rpc import RpcError, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import NO_TLS, Site, call
from tests.kit.wait import eventually


async def person(site: Site, admin: Connection) -> tuple[str, str, str]:
    """A new account: e-mail, id, cookie."""
    email = f"{uuid.uuid4()}@example.org"
    await call(admin, "hub.admin", "account_add", email=email, password=PASSWORD)

    async def sign_in() -> tuple[str, str]:
        return await site.sign_in("hub-1", email, PASSWORD)

    account_id, cookie = await eventually(sign_in, "sign in")
    return email, account_id, cookie


async def test_ping_of_a_signed_in_browser(site: Site) -> None:
    admin = await site.admin()
    email, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    answers = [await call(browser, f"hub.api.{account_id}", "ping") for _ in range(30)]
    assert all(answer["pong"] for answer in answers)
    assert {answer["hub"] for answer in answers} == {"hub-1", "hub-2"}
    assert (await call(browser, f"hub.api.{account_id}", "whoami"))["email"] == email


async def test_ids_and_malformed_requests(site: Site) -> None:
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    subject = f"hub.api.{account_id}"
    bodies: list[tuple[bytes, int]] = [
        (b"", -32700),
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 100_000, -32700),
        (b"[]", -32600),
        (b"1", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32600),
        (encode_request("no_such_method"), -32601),
        (encode_request("ping", {"extra": 1}), -32602),
        (encode_request("create_project"), -32602),
        (encode_request("create_project", {"title": " "}), -32602),
        (encode_request("start_project", {"project_id": "*"}), -32602),
        (encode_request("start_project", {"project_id": str(uuid.uuid4())}), -32002),
    ]
    for body, code in bodies:
        answer = json.loads((await browser.request(subject, body, timeout=5)).data)
        assert answer["error"]["code"] == code, (body[:80], answer)
    assert (await call(browser, subject, "ping"))["pong"]


async def test_a_project_is_made_once_for_a_key(site: Site) -> None:
    """A client that missed the answer asks again, maybe another hub. Another account's key makes another project."""
    admin = await site.admin()
    _, owner_id, owner_cookie = await person(site, admin)
    _, other_id, other_cookie = await person(site, admin)
    owner, other = await site.browser(owner_id, owner_cookie), await site.browser(other_id, other_cookie)
    made = await asyncio.gather(
        *(call(owner, f"hub.api.{owner_id}", "create_project", title="One", key="k") for _ in range(10))
    )
    assert len({project["project_id"] for project in made}) == 1
    assert len(await call(owner, f"hub.api.{owner_id}", "list_projects")) == 1
    foreign = await call(other, f"hub.api.{other_id}", "create_project", title="Two", key="k")
    assert foreign["project_id"] != made[0]["project_id"]
    assert foreign["title"] == "Two"


async def test_two_people_share_a_project(site: Site) -> None:
    """The same connection object can use the project after the grant, and no longer after the grant ends."""
    admin = await site.admin()
    _, owner_id, owner_cookie = await person(site, admin)
    email, friend_id, friend_cookie = await person(site, admin)
    owner, friend = await site.browser(owner_id, owner_cookie), await site.browser(friend_id, friend_cookie)
    events: list[bytes] = []

    async def on_event(message: Any) -> None:
        events.append(message.data)

    await friend.subscribe(f"events.account.{friend_id}.>", cb=on_event)
    project = await call(owner, f"hub.api.{owner_id}", "create_project", title="  Our   project ")
    project_id = project["project_id"]
    assert project["title"] == "Our project"
    assert project["role"] == "owner"
    with pytest.raises(RpcError, match="no such project"):
        await call(friend, f"hub.api.{friend_id}", "rename_project", project_id=project_id, title="Mine")

    shared = await call(owner, f"hub.api.{owner_id}", "share_project", project_id=project_id, email=email.upper())
    assert [c["role"] for c in shared["collaborators"]] == ["owner", "collaborator"]

    heard: list[str] = []

    async def on_message(message: Any) -> None:
        heard.append(message.subject)

    await friend.subscribe(f"events.project.{project_id}.>", cb=on_message)

    async def listed() -> Any:
        return await call(friend, f"hub.api.{friend_id}", "list_projects")

    assert [p["project_id"] for p in await eventually(listed, "the project is listed")] == [project_id]
    await eventually(lambda: _names(site, friend_id, 1), "the friend is connected with a new name")
    with pytest.raises(RpcError, match="only the owner"):
        await call(friend, f"hub.api.{friend_id}", "delete_project", project_id=project_id)
    await call(owner, f"hub.api.{owner_id}", "unshare_project", project_id=project_id, account_id=friend_id)

    async def empty() -> bool:
        return bool(await call(friend, f"hub.api.{friend_id}", "list_projects") == [])

    await eventually(empty, "the project is gone from the list")
    with pytest.raises(RpcError, match=r"only the owner|no such project"):
        await call(friend, f"hub.api.{friend_id}", "unshare_project", project_id=project_id, account_id=owner_id)
    await call(owner, f"hub.api.{owner_id}", "delete_project", project_id=project_id)
    assert await call(owner, f"hub.api.{owner_id}", "list_projects") == []


async def _names(site: Site, account_id: str, count: int) -> list[str] | None:
    """The names of an account's connections, from the server."""
    import httpx

    async with httpx.AsyncClient(verify=NO_TLS) as client:
        answer = await client.get(f"http://127.0.0.1:{site.monitor_port}/connz?auth=true")
    names = [c.get("authorized_user", "") for c in answer.json()["connections"]]
    found = [name for name in names if account_id in name]
    return found if len(found) == count else None


async def test_sign_out_cuts_at_once_and_for_good(site: Site) -> None:
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    await call(browser, f"hub.api.{account_id}", "ping")
    assert (await site.http("hub-2", "POST", "/api/sign-out", cookie=cookie)).status_code == 204
    await eventually(lambda: _is_cut(site, account_id), "the connection is cut")
    await browser.close()
    with pytest.raises(ConnectionLostError):
        await site.browser(account_id, cookie)
    for name in site.hubs:
        assert (await site.http(name, "GET", "/api/session", cookie=cookie)).status_code == 401


async def _is_cut(site: Site, account_id: str) -> bool:
    return await _names(site, account_id, 0) == []


async def test_a_disabled_account_is_cut_and_answers_like_a_wrong_password(site: Site) -> None:
    admin = await site.admin()
    email, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    await call(admin, "hub.admin", "account_disable", email=email)
    await eventually(lambda: _is_cut(site, account_id), "the connection is cut")
    await browser.close()
    bodies = set()
    for who, password in ((email, PASSWORD), (email, "wrong password"), ("nobody@example.org", PASSWORD)):

        async def refused(who: str = who, password: str = password) -> str:
            answer = await site.http("hub-1", "POST", "/api/sign-in", {"email": who, "password": password})
            assert answer.status_code == 401
            return answer.text

        bodies.add(await eventually(refused, "refused"))
    assert len(bodies) == 1
    await call(admin, "hub.admin", "account_disable", email=email, disabled=False)
    await eventually(lambda: site.sign_in("hub-1", email, PASSWORD), "signed in again")


async def test_a_new_password_ends_the_other_sessions(site: Site) -> None:
    admin = await site.admin()
    email, account_id, cookie = await person(site, admin)
    _, other = await site.sign_in("hub-1", email, PASSWORD)
    new = {"current_password": PASSWORD, "new_password": "another long password"}
    answer = await site.http("hub-1", "POST", "/api/rpc", encode_request("change_password", new), cookie=cookie)
    assert "result" in answer.json(), answer.text
    assert (await site.http("hub-1", "GET", "/api/session", cookie=cookie)).status_code == 200
    assert (await site.http("hub-1", "GET", "/api/session", cookie=other)).status_code == 401
    browser = await site.browser(account_id, cookie)
    again = {"current_password": "another long password", "new_password": PASSWORD}
    assert await call(browser, f"hub.api.{account_id}", "change_password", **again) == {"account_id": account_id}
    await eventually(lambda: _is_cut(site, account_id), "the session over NATS ends, too")
    await browser.close()
    _, cookie = await site.sign_in("hub-1", email, PASSWORD)
    wrong = await site.http(
        "hub-1", "POST", "/api/rpc", encode_request("change_password", again | {"current_password": "x"}), cookie=cookie
    )
    assert wrong.json()["error"]["data"]["kind"] == "forbidden"


async def test_an_empty_password_is_not_replaced_by_one_that_nobody_knows(site: Site) -> None:
    admin = await site.admin()
    email, _, cookie = await person(site, admin)
    empty = encode_request("change_password", {"current_password": PASSWORD, "new_password": ""})
    answer = await site.http("hub-1", "POST", "/api/rpc", empty, cookie=cookie)
    assert answer.json()["error"]["data"]["kind"] == "invalid_params"
    await site.sign_in("hub-1", email, PASSWORD)


async def test_one_account_looks_at_one_password_at_a_time(site: Site) -> None:
    """One account cannot take the threads for passwords from others who sign in."""
    _, _, cookie = await person(site, await site.admin())
    wrong = encode_request("change_password", {"current_password": "x", "new_password": PASSWORD})
    answers = await asyncio.gather(*(site.http("hub-1", "POST", "/api/rpc", wrong, cookie=cookie) for _ in range(10)))
    kinds = [answer.json()["error"]["data"]["kind"] for answer in answers]
    assert set(kinds) <= {"forbidden", "unavailable"}
    assert "unavailable" in kinds


async def test_odd_requests_to_sign_in_are_refused_not_failed(site: Site) -> None:
    for body in (b'{"email":"a@example.org","password":"\\ud800"}', b'{"email":"\\ud800@example.org","password":"x"}'):
        assert (await site.http("hub-1", "POST", "/api/sign-in", body)).status_code == 401
    assert (await site.http("hub-1", "POST", "/api/sign-in/", b"{}")).status_code == 404


async def test_accounts_are_unique_by_email_even_when_two_hubs_are_asked_at_once(site: Site) -> None:
    admin = await site.admin()
    email = f"{uuid.uuid4()}@example.org"
    calls = [call(admin, "hub.admin", "account_add", email=e) for e in (email, email.upper(), email, email)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    made = [r for r in results if isinstance(r, dict)]
    assert len(made) >= 1
    assert len({r["account_id"] for r in made}) == 1
    listed = await call(admin, "hub.admin", "account_list")
    assert len([row for row in listed if row["email"].lower() == email]) == 1


async def test_a_runner_starts_and_stops_a_project(site: Site) -> None:
    admin, runner = await site.admin(), await site.runner()
    email, _, _ = await person(site, admin)
    mine = f"hub.runner.{site.runner_id}"
    asked: list[str] = []

    async def on_request(message: Any) -> None:
        request = json.loads(message.data)
        asked.append(request["method"])
        project_id = request["params"]["project_id"]
        if request["method"] == "start_project":
            key = site.runner_key
            ticket = await call(runner, mine, "project_credentials", project_id=project_id, public_key=key)
            assert ticket["jwt"].startswith("eyJ")
            await call(runner, mine, "project_state", project_id=project_id, state="running")
        await message.respond(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {}}).encode())

    assert (await call(runner, mine, "register", version="1"))["projects"] == []
    await runner.subscribe(f"runners.{site.runner_id}.api", cb=on_request)
    project = await call(admin, "hub.admin", "project_create", email=email, title="P")
    project_id = project["project_id"]
    assert (await call(admin, "hub.admin", "start_project", project_id=project_id))["state"] == "running"
    assert (await call(runner, mine, "register", version="1"))["projects"] == [project_id]
    assert (await call(admin, "hub.admin", "status"))["runners"][0]["alive"]
    assert (await call(admin, "hub.admin", "stop_project", project_id=project_id))["state"] == "stopped"
    with pytest.raises(RpcError, match="should not run"):
        await call(runner, mine, "project_credentials", project_id=project_id, public_key=site.runner_key)
    await call(admin, "hub.admin", "project_delete", project_id=project_id)
    assert asked == ["start_project", "stop_project", "delete_project"]


async def test_http_is_guarded(site: Site) -> None:
    admin = await site.admin()
    email, _, cookie = await person(site, admin)
    credentials = {"email": email, "password": PASSWORD}
    for origin in (None, "null", "https://evil.example"):
        for path in ("/api/sign-in", "/api/sign-out", "/api/rpc"):
            answer = await site.http("hub-1", "POST", path, credentials, cookie=cookie, origin=origin)
            assert answer.status_code == 403, (origin, path)
    for body in (b"", b"[]", b"{", b"[" * 50_000, b'{"email": 1, "password": 2}'):
        assert (await site.http("hub-1", "POST", "/api/sign-in", body)).status_code == 400
    assert (await site.http("hub-1", "POST", "/api/sign-in", b"x" * 2_000_000)).status_code == 413
    for bad in ("", "x", cookie[:-4] + "AAAA", cookie + "x"):
        assert (await site.http("hub-1", "GET", "/api/session", cookie=bad)).status_code == 401
        assert (await site.http("hub-1", "POST", "/api/rpc", encode_request("ping"), cookie=bad)).status_code == 401
    answer = await site.http("hub-1", "GET", "/api/session", cookie=cookie)
    header = answer.headers["set-cookie"].lower()
    assert all(word in header for word in ("httponly", "secure", "samesite=strict", "path=/", "max-age="))
    assert "natskit_hub_sign_ins_total" in (await site.http("hub-1", "GET", "/metrics")).text
    assert PASSWORD not in site.log("hub-1")
    assert cookie not in site.log("hub-1")


async def test_nobody_may_ask_as_somebody_else(site: Site) -> None:
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    _, other_id, _ = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    for subject in (f"hub.api.{other_id}", "hub.admin", f"hub.runner.{site.runner_id}"):
        with pytest.raises((nats.errors.TimeoutError, nats.errors.NoRespondersError)):
            await browser.request(subject, encode_request("ping"), timeout=0.3)
