"""One platform for all the tests of this folder, deployed on free ports in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.platform.raw import RawClient
from tests.platform.site import Site, World, deployed, populate


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A platform that stands for the whole run and is taken down at its end."""
    root = Path(tmp_path_factory.mktemp("platform")) / "local"
    # The tests sign in far more often than people do.
    with deployed(root, proxy_sign_in_rate="300", proxy_sign_in_burst="40") as site:
        yield site


@pytest.fixture(scope="session")
def world(site: Site) -> World:
    """Two accounts with a running project each."""
    return populate(site)


@pytest.fixture(autouse=True)
def close_raw_clients() -> Iterator[None]:
    """A test need not close what it opened: sockets left to the garbage collector warn, in some other test."""
    yield
    for client in RawClient.opened:
        if not client.kept:
            client.close()
    RawClient.opened[:] = [client for client in RawClient.opened if client.kept]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failing test shows what the servers said."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    site = getattr(item, "funcargs", {}).get("site")
    if report.failed and isinstance(site, Site):
        report.sections.append(("logs of the platform", site.logs()))
