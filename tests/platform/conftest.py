"""One platform for all the tests of this folder, deployed on free ports in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.platform.site import LocalSite, World, deployed, populate


# Gone before the next folder's tests: they may need the machine.
@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSite]:
    """A platform that stands for all the tests of this folder and is taken down at their end."""
    root = Path(tmp_path_factory.mktemp("platform")) / "local"
    # The tests sign in far more often than people do.
    with deployed(root, proxy_sign_in_rate="300", proxy_sign_in_burst="40") as site:
        yield site


@pytest.fixture(scope="package")
def world(site: LocalSite) -> World:
    """Two accounts with a running project each."""
    return populate(site)
