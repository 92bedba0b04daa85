"""Requests for files over HTTP count towards an account's share of a hub."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from natskit.hub.limits.admission import FILE_SECONDS
from natskit.identity.claims import COOKIE
from tests.hub.site import ORIGIN, Site
from tests.hub.test_hub_api import person
from tests.hub.test_revocations import Scene

SHARE = 0.02
BURST = round(1.0 / FILE_SECONDS)
"""Requests that use up the burst of an account, one second of a hub."""


@pytest.fixture(scope="module")
def hub_settings() -> dict[str, Any]:
    return {"caller_share": SHARE}


async def test_a_flood_of_requests_for_files_is_refused(site: Site) -> None:
    admin = await site.admin()
    _, _, cookie = await person(site, admin)
    _, _, other_cookie = await person(site, admin)
    scene = Scene(site, admin)
    ids = {name: (await scene.rpc("create_project", name, title="P"))["project_id"] for name in (cookie, other_cookie)}
    seen: Counter[int] = Counter()
    async with site.client("hub-1") as http:

        async def ask(name: str) -> int:
            path = f"/api/projects/{ids[name]}/files/x"  # it does not run: 409
            answer = await http.get(path, headers={"Cookie": f"{COOKIE}={name}", "Origin": ORIGIN})
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) > 0
            return answer.status_code

        async def ask_until_refused() -> None:
            while not seen[503]:
                seen[await ask(cookie)] += 1

        begun = time.monotonic()
        await asyncio.gather(*(ask_until_refused() for _ in range(10)))
        earned = (time.monotonic() - begun) * SHARE / FILE_SECONDS
        assert seen.keys() == {409, 503}
        assert BURST * 0.9 < seen[409] < BURST + earned + 10
        assert await ask(other_cookie) == 409
