"""The other ways to sign in, with a real browser through the proxy, and the command's view of these accounts."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from natskit.identity.claims import cookie_name
from tests.documents import block
from tests.kit.ports import free_port
from tests.kit.wait import wait_for
from tests.oidc.provider import Provider
from tests.platform.conftest import BACKEND_TOKEN
from tests.platform.site import LocalSite, World
from tests.platform.test_console import browser, context, page  # noqa: F401


@pytest.fixture(scope="module", autouse=True)
def running(provider: Provider) -> Provider:
    provider.start()
    provider.wait()
    return provider


@pytest.fixture
def shop(site: LocalSite, tmp_path: Path) -> Iterator[int]:
    """The port of the example in docs/how-to/backend-sign-in.md, run exactly as the page shows it."""
    (tmp_path / "shop.py").write_text(block("docs/how-to/backend-sign-in.md", "Example", "python"))
    (tmp_path / "token").write_text(BACKEND_TOKEN)
    port = free_port()
    told = {"BUS": site.url, "TOKEN_FILE": str(tmp_path / "token"), "BUS_CA": site.ca_file, "PORT": str(port)}
    process = subprocess.Popen([sys.executable, str(tmp_path / "shop.py")], env=os.environ | told)

    def listens() -> bool:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True

    try:
        wait_for(listens, "the shop listens")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def is_in(page: Page, email: str) -> None:  # noqa: F811
    expect(page.locator("#connection-state")).to_have_text("connected")
    expect(page.locator("#who")).to_have_text(email)


def test_at_an_openid_provider(page: Page, site: LocalSite) -> None:  # noqa: F811
    page.goto(site.url)
    page.get_by_role("link", name="Sign in with Example").click()
    page.fill("[name=login]", "ada")
    page.fill("[name=password]", "any")
    page.click("button[type=submit]")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_url(f"{site.url}/")
    is_in(page, "ada@example.org")


def test_by_an_address_outside_ascii(page: Page, site: LocalSite, world: World) -> None:  # noqa: F811
    """A field of the type "email" would refuse it, and macOS may send é as e and an accent."""
    email = "jos\u00e9@b\u00fccher.example"
    site.natskit("account", "add", email, "--password-stdin", stdin="pässwörter sind lang")
    page.goto(site.url)
    page.fill("#email", "jose\u0301@b\u00fccher.example")
    page.fill("#password", unicodedata.normalize("NFD", "pässwörter sind lang"))
    page.click("#sign-in-button")
    is_in(page, email)
    page.fill("#create-title", "\u200b")
    page.click("#create-button")
    expect(page.locator("#projects-error")).to_contain_text("U+200B")
    expect(page.locator("#projects li")).to_have_count(0)
    page.fill("#create-title", "Caf\u00e9")
    page.click("#create-button")
    page.get_by_role("button", name="Caf\u00e9").click()
    page.fill("#share-email", f"\u202e{world.email_a}")
    page.click("#share-button")
    expect(page.locator("#share-error")).to_contain_text("U+202E")
    page.fill("#share-email", world.email_a.upper())
    page.click("#share-button")
    expect(page.locator("#people")).to_contain_text(world.email_a)


def test_at_an_openid_provider_in_two_tabs(context: BrowserContext, site: LocalSite) -> None:  # noqa: F811
    tabs = [context.new_page(), context.new_page()]
    for tab in tabs:
        tab.goto(f"{site.url}/api/oidc/start")
        tab.wait_for_selector("[name=login]")
    for tab in tabs:
        tab.fill("[name=login]", "ada")
        tab.fill("[name=password]", "any")
        tab.click("button[type=submit]")
        if tab is tabs[0]:  # the provider asks once
            tab.get_by_role("button", name="Continue").click()
        tab.wait_for_url(f"{site.url}/")
        is_in(tab, "ada@example.org")
    tabs[0].goto(f"{site.url}/api/oidc/callback?code=x&state=y")  # a bookmark
    tabs[0].wait_for_url(f"{site.url}/")
    is_in(tabs[0], "ada@example.org")


def test_somebody_whom_the_provider_does_not_know_well(page: Page, site: LocalSite) -> None:  # noqa: F811
    page.goto(f"{site.url}/api/oidc/start")
    page.fill("[name=login]", "mallory+unverified")
    page.fill("[name=password]", "any")
    page.click("button[type=submit]")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_have_text("Example has no verified e-mail address of you.")
    page.click("#back")
    expect(page.locator("#sign-in-button")).to_be_visible()


@pytest.mark.parametrize("way", ["http://127.0.0.1:{}/bus", "http://localhost:{}/bus-here"])
def test_from_a_site_with_accounts_of_its_own(
    page: Page,  # noqa: F811
    context: BrowserContext,  # noqa: F811
    site: LocalSite,
    shop: int,
    way: str,
) -> None:
    page.goto(way.format(shop))
    page.wait_for_url(f"{site.url}/")
    is_in(page, "ada@shop.example")
    (cookie,) = [cookie for cookie in context.cookies() if cookie["name"] == cookie_name(site.url)]
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")


def test_the_command_tells_who_did_what(site: LocalSite, world: World) -> None:
    site.sign_in(world.email_a, world.password)
    with site.http() as http:
        assert http.post("/api/sign-in", json={"email": world.email_b, "password": "wrong password"}).status_code == 401
        refused = http.post("/api/backend/session", json={"email": "a@b"}, headers={"Authorization": "Bearer x"})
        assert refused.status_code == 401
        del http.headers["Origin"]
        own = {"Authorization": f"Bearer {BACKEND_TOKEN}"}
        assert http.post("/api/backend/session", content=b"x" * 10_000, headers=own).status_code == 413
        made = http.post("/api/backend/session", json={"email": f"b@{site.domain}"}, headers=own)
        assert made.status_code == 409

    def shown() -> list[str]:
        lines = site.natskit("audit", "--since", "1h").stdout.splitlines()
        return lines if any("backend_session" in line for line in lines) else []

    text = "\n".join(wait_for(shown, "the audit"))
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    for expected in (
        rf"{user}@\S+ +account_add +ok +.*email={world.email_a}",
        rf"{world.email_a} +sign_in +ok +.*address=127\.0\.0\.1",
        rf"{world.email_b} +sign_in +refused: wrong password",
        r"backend +refused: token",
    ):
        assert re.search(expected, text), f"{expected}\n{text}"
    events = site.natskit("audit", "--since", "1h", "--account", world.email_b, "--json").stdout.splitlines()
    assert events
    assert all(world.email_b in event or world.names["b"] in event for event in events)
    assert world.password not in text + "".join(events)
    assert BACKEND_TOKEN not in text + "".join(events)
    wrong = site.natskit("audit", "--since", "yesterday", check=False)
    assert (wrong.returncode, "--since 'yesterday' is not a time" in wrong.stderr) == (1, True)
