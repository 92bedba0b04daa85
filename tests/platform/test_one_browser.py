"""One browser with one cookie jar: several tabs, several people, several sites on one host, several addresses."""

# ruff: noqa: F811 - fixtures of another module

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.kit.ports import free_port
from tests.kit.wait import wait_for
from tests.platform.raw import RawClient, UpgradeRefusedError
from tests.platform.site import LocalSite, Site, World, deployed
from tests.platform.test_console import browser, context, page, sign_in  # noqa: F401

CONNECTED = "connected"
OTHER = "somebody else has signed in in this browser"


def sessions(site: Site, email: str) -> set[str]:
    """The ids of an account's sessions."""
    return {session["session_id"] for session in site.natskit_json("account", "sessions", email)}


def form(context: BrowserContext, site: Site) -> Page:
    """A tab with the sign-in form. It keeps the form when somebody signs in in another tab."""
    opened = context.new_page()
    opened.goto(site.url)
    expect(opened.locator("#email")).to_be_visible()
    return opened


def enter(tab: Page, email: str, password: str) -> None:
    """Sign in with the form. Brings the tab to the front, because browsers slow down tabs in the background."""
    tab.bring_to_front()
    tab.fill("#email", email)
    tab.fill("#password", password)
    tab.click("#sign-in-button")
    expect(tab.locator("#connection-state")).to_have_text(CONNECTED)


@pytest.fixture
def tabs(context: BrowserContext, site: Site, world: World) -> tuple[Page, Page]:
    """One person is signed in in the first tab, and then another one signed in in the second."""
    first, second = form(context, site), form(context, site)
    enter(first, world.email_a, world.password)
    enter(second, world.email_b, world.password)
    return first, second


def test_a_page_never_shows_or_ends_the_sessions_of_somebody_else(
    tabs: tuple[Page, Page], site: Site, world: World
) -> None:
    first, second = tabs
    theirs = sessions(site, world.email_b)
    first.click("#sessions-button")
    expect(first.locator("#sign-in-error")).to_contain_text(OTHER)
    expect(first.locator("#sessions li")).to_have_count(0)
    expect(first.locator("#email")).to_be_visible()
    assert sessions(site, world.email_b) == theirs
    expect(second.locator("#connection-state")).to_have_text(CONNECTED)
    first.reload()
    expect(first.locator("#who")).to_have_text(world.email_b)


def test_sign_out_everywhere_ends_the_sessions_of_the_one_who_is_shown(
    page: Page,
    context: BrowserContext,
    site: Site,
    world: World,
) -> None:
    """The list of the first person is already open when another one signs in."""
    second = form(context, site)
    sign_in(page, site, world.email_a, world.password)
    page.click("#sessions-button")
    expect(page.locator("#sessions li", has_text="this browser")).to_be_visible()
    enter(second, world.email_b, world.password)
    theirs = sessions(site, world.email_b)
    page.click("#end-all-sessions")
    expect(page.locator("#sign-in-error")).to_contain_text(OTHER)
    assert sessions(site, world.email_b) == theirs
    expect(second.locator("#connection-state")).to_have_text(CONNECTED)


def test_signing_out_ends_the_session_of_the_one_who_is_shown(
    tabs: tuple[Page, Page], site: Site, world: World
) -> None:
    first, second = tabs
    own, theirs = sessions(site, world.email_a), sessions(site, world.email_b)
    first.click("#sign-out")
    expect(first.locator("#email")).to_be_visible()
    assert len(own - sessions(site, world.email_a)) == 1
    assert sessions(site, world.email_b) == theirs
    expect(second.locator("#connection-state")).to_have_text(CONNECTED)


def test_a_page_that_comes_back_finds_that_somebody_else_is_there(
    tabs: tuple[Page, Page], site: Site, world: World
) -> None:
    """Its connection is closed, and the cookie belongs to the other person: the page does not connect with it, and says
    why."""
    first, second = tabs
    site.natskit("project", "share", world.names["q"], world.email_a)  # another right: the connection is cut
    expect(first.locator("#sign-in-error")).to_contain_text(OTHER)
    site.natskit("project", "unshare", world.names["q"], world.email_a)
    expect(second.locator("#connection-state")).to_have_text(CONNECTED)


def test_a_page_that_cannot_ask_first_is_not_connected_as_somebody_else(
    tabs: tuple[Page, Page], site: Site, world: World
) -> None:
    """While no hub answers over HTTP, only the cookie counts. The page names its account to nats-server, which
    refuses."""
    first, _ = tabs
    states: list[str] = []
    first.expose_function("note", lambda state: states.append(state))
    first.evaluate(
        "new MutationObserver(changes => changes.forEach(change => note(change.target.textContent)))"
        ".observe(document.querySelector('#connection-state'), {childList: true})"
    )
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.abort()

    def many() -> bool:
        first.wait_for_timeout(20)  # lets the page's events in
        return len(asked) >= 6

    first.route("**/api/session", refuse)
    site.natskit("project", "share", world.names["q"], world.email_a)
    wait_for(many, "several attempts")
    assert CONNECTED not in states
    first.unroute("**/api/session")
    expect(first.locator("#sign-in-error")).to_contain_text(OTHER)
    site.natskit("project", "unshare", world.names["q"], world.email_a)


def test_the_same_person_may_sign_in_again(page: Page, context: BrowserContext, site: Site, world: World) -> None:
    again = form(context, site)
    sign_in(page, site, world.email_a, world.password)
    enter(again, world.email_a, world.password)
    page.click("#sessions-button")
    expect(page.locator("#sessions li", has_text="this browser")).to_be_visible()
    page.click("#sessions-close")
    site.natskit("project", "share", world.names["q"], world.email_a)
    expect(page.locator("#projects")).to_contain_text("Project of b")
    for one in (page, again):
        expect(one.locator("#connection-state")).to_have_text(CONNECTED)
    site.natskit("project", "unshare", world.names["q"], world.email_a)


def test_a_sign_in_whose_answer_is_lost_opens_one_session(page: Page, site: Site, world: World) -> None:
    """Chromium drops all requests when the machine joins or leaves a network, and the page sends this one again."""
    sent: list[Route] = []

    def lose_the_first_answer(route: Route) -> None:
        sent.append(route)
        if len(sent) == 1:
            route.fetch()
            route.abort("connectionaborted")
        else:
            route.continue_()

    before = sessions(site, world.email_a)
    page.route("**/api/sign-in", lose_the_first_answer)
    sign_in(page, site, world.email_a, world.password)
    assert len(sent) == 2
    assert len(sessions(site, world.email_a) - before) == 1


def test_a_new_password_is_not_set_for_somebody_else(
    page: Page, context: BrowserContext, site: Site, world: World
) -> None:
    made = site.natskit_json("account", "add", f"new-here@{site.domain}")
    other = form(context, site)
    page.goto(site.url)
    page.fill("#email", made["email"])
    page.fill("#password", made["password"])
    page.click("#sign-in-button")
    expect(page.locator("#new-password")).to_be_visible()
    enter(other, world.email_b, world.password)
    page.fill("#current-password", world.password)
    page.fill("#chosen-password", "a password of nobody's choice")
    page.click("#new-password-button")
    expect(page.locator("#sign-in-error")).to_contain_text(OTHER)
    site.sign_in(world.email_b, world.password)


def test_a_page_that_is_looked_at_again_says_so_at_once(tabs: tuple[Page, Page]) -> None:
    first, _ = tabs
    first.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(first.locator("#sign-in-error")).to_contain_text(OTHER)


def test_two_sites_on_two_ports_of_a_host(
    page: Page,
    context: BrowserContext,
    site: Site,
    world: World,
    tmp_path: Path,
) -> None:
    """A browser has one cookie jar for all ports of a host."""
    password = "correct horse battery staple"  # noqa: S105
    with deployed(tmp_path / "other") as other:
        other.natskit("account", "add", "ada@example.org", "--password-stdin", stdin=password)
        sign_in(page, site, world.email_a, world.password)
        second = context.new_page()
        sign_in(second, other, "ada@example.org", password)
        for one, who in ((page, world.email_a), (second, "ada@example.org")):
            one.reload()
            expect(one.locator("#connection-state")).to_have_text(CONNECTED)
            expect(one.locator("#who")).to_have_text(who)
        second.click("#sign-out")
        expect(second.locator("#email")).to_be_visible()
        page.reload()
        expect(page.locator("#who")).to_have_text(world.email_a)
        expect(page.locator("#connection-state")).to_have_text(CONNECTED)


class _Forward(socketserver.BaseRequestHandler):
    """A connection to a forwarded port: copies bytes in both directions."""

    port: ClassVar[int]

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as there:
            threading.Thread(target=self._copy, args=(there, self.request), daemon=True).start()
            self._copy(self.request, there)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


class _Forwarding(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture
def forwarded(site: LocalSite) -> Iterator[str]:
    """The site at another port, as with ``ssh -L``."""
    handler = type("Forward", (_Forward,), {"port": urlsplit(site.url).port})
    with _Forwarding(("127.0.0.1", free_port()), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_address[1]}"
        server.shutdown()


def address(site: Site) -> str:
    """The site by its IP address, which is in its certificate, too."""
    return f"https://127.0.0.1:{urlsplit(site.url).port}"


def test_a_page_at_another_address_names_the_one_of_the_site(
    page: Page,
    site: LocalSite,
    world: World,
    forwarded: str,
) -> None:
    """Even with a cookie, as at a forwarded port of the same host, the browser could not connect."""
    sign_in(page, site, world.email_a, world.password)
    for elsewhere in (address(site), forwarded):
        page.goto(elsewhere)
        expect(page.locator("#sign-in-error")).to_contain_text(f"Open the site at its own address: {site.url}")
        page.fill("#email", world.email_a)
        page.fill("#password", world.password)
        page.click("#sign-in-button")
        expect(page.locator("#sign-in-error")).to_contain_text(f"the address of this site is {site.url}")
        expect(page.locator("#sign-in-error")).to_contain_text(elsewhere)
        noted = f"Origin '{elsewhere}'"
        wait_for(lambda: noted in site.logs(), "a log has it")  # noqa: B023
    page.goto(address(site))
    page.click("#sign-in-error a")
    page.wait_for_url(f"{site.url}/")
    expect(page.locator("#connection-state")).to_have_text(CONNECTED)


def test_a_refused_origin_is_explained_to_the_user_and_logged(site: LocalSite, world: World) -> None:
    session = site.sign_in(world.email_a, world.password)
    with pytest.raises(UpgradeRefusedError) as refused:
        RawClient.websocket(
            site.websocket_url, ca_file=site.ca_file, cookie=session.cookie, origin="https://else.example"
        )
    assert refused.value.status == 403
    wait_for(lambda: "Origin 'https://else.example'" in site.logs(), "a log has it")
    with site.http() as http:
        for path in ("/api/sign-in", "/api/sign-out", "/api/rpc"):
            answer = http.post(path, content=b"{}", headers={"Origin": "https://else.example"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_origin")
            assert site.url in answer.json()["error"]["message"]
        assert http.get("/api/elsewhere").status_code == 404
