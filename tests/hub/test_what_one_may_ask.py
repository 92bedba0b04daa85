"""The limit on the size of a request is natskit's, not nats-server's, and clients obey "retry in N s"."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from natskit.client import Client
from natskit.hub.limits.admission import LARGEST_REQUEST
from natskit.identity.files import write_private
from natskit.rpc import RpcError, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call
from tests.hub.test_hub_api import person
from tests.kit.wait import eventually


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    site = Site(tmp_path_factory.mktemp("hub"))
    try:
        site.max_payload = 2 * LARGEST_REQUEST
        site.start_server()
        site.start_hub("hub-1", caller_share=0.02)
        await site.healthy("hub-1")
        yield site
    finally:
        await site.close()


def whoami(size: int) -> bytes:
    """A request of this size."""
    body = encode_request("whoami")
    return body + b" " * (size - len(body))


async def test_a_request_that_is_too_long_is_refused_and_told_the_limit(site: Site) -> None:
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)
    for connection, subject in ((browser, f"hub.api.{account_id}"), (admin, "hub.admin")):
        size = LARGEST_REQUEST + 1
        error = json.loads((await connection.request(subject, whoami(size), timeout=10)).data)["error"]
        assert error["data"] == {"kind": "limit", "size": size, "limit": LARGEST_REQUEST}
        assert f"has {size} bytes" in error["message"]
        assert f"at most {LARGEST_REQUEST}" in error["message"]
    longest = json.loads((await browser.request(f"hub.api.{account_id}", whoami(LARGEST_REQUEST), timeout=10)).data)
    assert longest["result"]["account_id"] == account_id
    assert (await call(browser, f"hub.api.{account_id}", "whoami"))["account_id"] == account_id


async def test_a_refused_request_is_counted_but_not_as_an_answer(site: Site) -> None:
    """An answer that took no time would make the hub look fast when it is busy."""
    admin = await site.admin()
    _, account_id, cookie = await person(site, admin)
    browser = await site.browser(account_id, cookie)

    async def counted(name: str) -> float:
        samples = [line.split() for line in (await site.http("hub-1", "GET", "/metrics")).text.splitlines()]
        labelled = [(words[0], words[1]) for words in samples if 'kind="account"' in words[0]]
        return sum(float(value) for sample, value in labelled if sample.startswith(f"{name}{{"))

    answered, refused = await counted("natskit_hub_request_seconds_count"), "natskit_hub_refused_requests_total"
    before = await counted(refused)
    await browser.request(f"hub.api.{account_id}", whoami(LARGEST_REQUEST + 1), timeout=10)
    assert await counted(refused) == before + 1
    assert await counted("natskit_hub_request_seconds_count") == answered
    await call(browser, f"hub.api.{account_id}", "whoami")
    assert await counted("natskit_hub_request_seconds_count") == answered + 1


async def test_over_http_too(site: Site) -> None:
    admin = await site.admin()
    _, _, cookie = await person(site, admin)
    answer = await site.http("hub-1", "POST", "/api/rpc", whoami(LARGEST_REQUEST + 1), cookie)
    assert answer.status_code == 413
    assert f"at most {LARGEST_REQUEST} bytes" in answer.json()["error"]["message"]


async def test_a_client_that_is_told_to_come_back_later_does(site: Site) -> None:
    """The hub did not execute the refused request, so the client may repeat any method."""
    creds = site.root / "admin.creds"
    write_private(creds, site.identity.creds("PLATFORM", "admin"))
    brackets = b"[" * (LARGEST_REQUEST // 2) + b"]" * (LARGEST_REQUEST // 2)
    async with await Client.admin(f"nats://127.0.0.1:{site.nats_port}", creds) as client:

        async def refused() -> bool:
            error = json.loads((await client.connection.request("hub.admin", brackets, timeout=10)).data)["error"]
            return error["data"].get("retry_after") is not None

        await eventually(refused, "the administrator is refused", seconds=30)
        added = await client.call_hub("account_add", email=f"{uuid.uuid4()}@example.org", password=PASSWORD, wait=30)
        assert added["account_id"]
        await eventually(refused, "the administrator is refused", seconds=30)
        with pytest.raises(RpcError, match="rate limit exceeded") as told:
            await client.call_hub("account_list", wait=0.9)  # less than any retry_after
        assert told.value.data["retry_after"] >= 1
