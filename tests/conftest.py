"""Fixtures of all tests with real servers."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from tests.platform.raw import RawClient
from tests.platform.site import Site

# A busy machine makes any example slow.
hypothesis.settings.register_profile("natskit", deadline=None)
hypothesis.settings.load_profile("natskit")


@pytest.fixture(autouse=True)
def close_raw_clients() -> Iterator[None]:
    """Close the sockets that a test left open. Otherwise the garbage collector warns about them in some later test."""
    yield
    for client in RawClient.opened:
        if not client.kept:
            client.close()
    RawClient.opened[:] = [client for client in RawClient.opened if client.kept]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the servers' logs to the report of a failing test."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    arguments = getattr(item, "funcargs", {})
    site = next((found for name in ("site", "cluster") if isinstance(found := arguments.get(name), Site)), None)
    if report.failed and site is not None:
        report.sections.append(("logs of the platform", site.logs()))
