"""A plugin's methods, the limit of projects, and a caller that sends too many requests at once."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from natskit.rpc import RpcError, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call
from tests.hub.test_hub_api import person
from tests.kit.wait import eventually

PLUGIN = """
import asyncio

from natskit.hub.caller import Caller
from natskit.rpc import Methods, RpcError

natskit_hub = Methods()


@natskit_hub.method()
async def greet(caller: Caller, greeting: str, times: int = 1) -> str:
    return " ".join([greeting] * times) + " " + caller.account.email


@natskit_hub.method()
async def sleep(caller: Caller, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@natskit_hub.method()
async def refuse(caller: Caller) -> None:
    raise RpcError("conflict", "not today", weekday=3)


@natskit_hub.method()
async def crash(caller: Caller) -> None:
    raise ZeroDivisionError("secret detail")


@natskit_hub.method()
async def strange(caller: Caller) -> object:
    return object()
"""


@pytest.fixture(scope="module")
def package(site: Site) -> str:
    (Path(site.root) / "my_package.py").write_text(PLUGIN)
    return "my_package"


async def test_own_methods_limits_and_a_crowd(site: Site, package: str) -> None:
    for name in ("hub-1", "hub-2"):
        site.kill_hub(name)
    site.python_path = str(site.root)
    site.start_hub("hub-1", api_packages=[package], max_projects_per_account=2)
    await site.healthy("hub-1")
    admin = await site.admin()
    email, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    subject = f"hub.api.{account_id}"
    _, other_id, other_cookie = await person(site, admin)
    other = await site.browser(other_id, other_cookie)

    assert await call(browser, subject, "greet", greeting="hello", times=2) == f"hello hello {email}"
    over_http = await site.http("hub-1", "POST", "/api/rpc", encode_request("greet", {"greeting": "hi"}), cookie=cookie)
    assert over_http.json()["result"] == f"hi {email}"
    for method, kind in (("refuse", "conflict"), ("crash", "internal_error"), ("strange", "internal_error")):
        with pytest.raises(RpcError) as caught:
            await call(browser, subject, method)
        assert caught.value.kind == kind
        assert "secret" not in caught.value.message
        if kind == "internal_error":
            said = caught.value
            assert (said.data["program"], said.data["host"]) == ("hub-1", socket.gethostname())
            assert said.data["id"] in said.message
            assert f"internal error {said.data['id']}: method {method} failed" in site.log("hub-1")

    slow = [asyncio.create_task(call(browser, subject, "sleep", seconds=1.0)) for _ in range(80)]

    async def refused() -> bool:
        return sum(task.done() for task in slow) == 30

    await eventually(refused, "those that are too many are turned away")
    assert (await call(other, f"hub.api.{other_id}", "ping"))["pong"]
    assert sum(task.done() for task in slow) == 30, "another account's ping did not wait for them"
    results = await asyncio.gather(*slow, return_exceptions=True)
    assert results.count("slept") == 50
    assert {r.kind for r in results if isinstance(r, RpcError)} == {"unavailable"}

    for title in ("one", "two"):
        await call(browser, subject, "create_project", title=title)
    with pytest.raises(RpcError, match="already uses 2 projects") as limit:
        await call(browser, subject, "create_project", title="three")
    assert (limit.value.kind, limit.value.data["limit"]) == ("limit", 2)


async def test_an_unknown_package_is_an_error_at_start(site: Site) -> None:
    site.start_hub("hub-3", api_packages=["no_such_package"])
    process, _ = site.hubs["hub-3"]
    assert await asyncio.to_thread(process.wait, 60) == 2
    assert "no_such_package" in site.log("hub-3")


async def test_thousands_of_projects_in_one_session(site: Site) -> None:
    """nats-server expands the subjects of 4,000 projects, so a connection still works at the limit."""
    from natskit.hub.state.records import Membership, Project

    admin = await site.admin()
    email, account_id, cookie = await person(site, admin)
    hub = await site.state()
    project = Project(title="p", created_at=0).to_json()
    member = Membership(role="owner", since=0).to_json()
    identifiers = [f"00000000-0000-4000-8000-{n:012x}" for n in range(4000)]

    async def write(identifier: str) -> None:
        await hub.request(f"$KV.projects.{identifier}", project, timeout=30)
        await hub.request(f"$KV.memberships.{account_id}.{identifier}", member, timeout=30)

    for start in range(0, len(identifiers), 500):
        await asyncio.gather(*(write(i) for i in identifiers[start : start + 500]))

    async def counted() -> bool:
        rows = await call(admin, "hub.admin", "account_list")
        return bool(next(row["projects"] for row in rows if row["email"] == email) == 4000)

    await eventually(counted, "the view has them all", 20)
    _, cookie = await site.sign_in("hub-1", email, PASSWORD)
    browser = await site.browser(account_id, cookie)
    assert (await call(browser, f"hub.api.{account_id}", "ping"))["pong"]
    with pytest.raises(RpcError, match="ask for less"):
        await call(browser, f"hub.api.{account_id}", "list_projects")
    parts = [
        await call(browser, f"hub.api.{account_id}", "list_projects", offset=offset, limit=2000) for offset in (0, 2000)
    ]
    assert len({project["project_id"] for part in parts for project in part}) == 4000
