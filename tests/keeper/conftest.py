"""One nats-server, a hub and two keepers for each module of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.hub.site import Site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    site = Site(tmp_path_factory.mktemp("keeper"))
    try:
        site.start_server()
        site.start_hub("hub-1")
        site.start_keeper("keeper-1")
        site.start_keeper("keeper-2")
        await site.healthy("hub-1")
        await site.keeper_ready("keeper-1")
        await site.keeper_ready("keeper-2")
        yield site
    finally:
        await site.close()
        for name in site.keepers:
            print(f"---- {name}\n{(site.root / name / 'keeper.log').read_text()[-4000:]}")
