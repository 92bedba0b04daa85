"""Each module of this folder has one nats-server and two hubs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.hub.site import Site

PASSWORD = "correct horse battery staple"  # noqa: S105


@pytest.fixture(scope="module")
def hub_settings() -> dict[str, Any]:
    """Settings of a module's hubs besides the usual ones."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory, hub_settings: dict[str, Any]) -> AsyncIterator[Site]:
    site = Site(tmp_path_factory.mktemp("hub"))
    try:
        site.start_server()
        site.start_hub("hub-1", **hub_settings)
        site.start_hub("hub-2", **hub_settings)
        await site.healthy("hub-1")
        await site.healthy("hub-2")
        yield site
    finally:
        await site.close()
        for name in site.hubs:
            print(f"---- {name}\n{site.log(name)}")
