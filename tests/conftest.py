"""What all tests with real servers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.platform.raw import RawClient
from tests.platform.site import Site


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
    arguments = getattr(item, "funcargs", {})
    site = next((found for name in ("site", "cluster") if isinstance(found := arguments.get(name), Site)), None)
    if report.failed and site is not None:
        report.sections.append(("logs of the platform", site.logs()))
