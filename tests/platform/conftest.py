"""One platform for all tests of this folder, deployed on free ports in its own folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from natskit.hub.sign_in.backend import digest, new_token
from tests.kit.ports import free_port
from tests.oidc.provider import Provider
from tests.platform.site import LocalSite, World, deployed, populate

# Gone before the next folder's tests: they may need the machine.
BACKEND_TOKEN = new_token()
ADMINISTRATOR = "chief@example.org"
"""The account that may see the page Platform of the console. Tests that need it make it."""


@pytest.fixture(scope="package")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """The platform's OpenID provider. Tests that need it start it."""
    port = free_port()
    provider = Provider(tmp_path_factory.mktemp("oidc"), f"https://localhost:{port}/api/oidc/callback")
    yield provider
    provider.stop()


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[LocalSite]:
    """A platform for all tests of this folder, taken down at the end."""
    root = Path(tmp_path_factory.mktemp("platform")) / "local"
    doors = {
        "proxy_port": str(urlsplit(provider.redirect_url).port),
        "hub_oidc_issuer": provider.issuer,
        "hub_oidc_client_id": "natskit",
        "hub_oidc_client_secret_file": str(provider.secret_file),
        "hub_oidc_label": "Example",
        "hub_administrators": ADMINISTRATOR,
        "hub_backends": json.dumps({"shop": {"sha256": digest(BACKEND_TOKEN)}}),
    }
    # The tests sign in far more often than people do.
    with deployed(root, proxy_sign_in_rate="300", proxy_sign_in_burst="40", **doors) as site:
        yield site


@pytest.fixture(scope="package")
def world(site: LocalSite) -> World:
    """Two accounts with a running project each."""
    return populate(site)
