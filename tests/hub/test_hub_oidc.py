"""Sign-in at a real OpenID provider over two real hubs: who comes in, and who does not."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
import pytest_asyncio

from natskit import trail
from natskit.hub.doors import FLOW_COOKIE
from natskit.identity.claims import COOKIE
from tests.hub.conftest import PASSWORD
from tests.hub.site import ORIGIN, Site, call, eventually
from tests.oidc.provider import SECRET, Provider

CALLBACK = "/api/oidc/callback"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    provider = Provider(tmp_path_factory.mktemp("oidc"), ORIGIN + CALLBACK)
    provider.start()
    yield provider
    provider.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> AsyncIterator[Site]:
    """hub-1 and hub-2 make accounts, hub-3 links them instead, hub-4 knows some domains alone."""
    site = Site(tmp_path_factory.mktemp("hub"))
    oidc = {
        "issuer": provider.issuer,
        "client_id": "natskit",
        "client_secret": str(provider.secret_file),
        "redirect_url": provider.redirect_url,
        "label": "Example & Sons",
    }
    try:
        site.start_server()
        site.start_hub("hub-1", oidc=oidc)
        site.start_hub("hub-2", oidc=oidc)
        site.start_hub("hub-3", oidc=oidc | {"make_accounts": False, "link_accounts": True})
        site.start_hub("hub-4", oidc=oidc | {"domains": ["example.com"]})
        provider.wait()
        for name in site.hubs:
            await site.healthy(name)
        yield site
    finally:
        await site.close()


class Browser:
    """A browser that begins at one hub and is answered by another; what it keeps can be stolen and given away."""

    def __init__(self, site: Site, provider: Provider) -> None:
        self._site, self._provider = site, provider
        self.flow = ""

    async def begin(self, hub: str = "hub-1") -> str:
        """The provider's address, and the cookie of the flow."""
        answer = await self._site.http(hub, "GET", "/api/oidc/start")
        assert answer.status_code == 303, answer.text
        attributes = answer.headers["set-cookie"].lower()
        assert all(word in attributes for word in ("httponly", "secure", "samesite=lax", "path=/", "max-age=600"))
        self.flow = answer.cookies[FLOW_COOKIE]
        return str(answer.headers["location"])

    async def visit(self, url: str, name: str) -> str:
        """What is in the address that the provider sends the browser back to."""
        return urlsplit(await asyncio.to_thread(self._provider.visit, url, name)).query

    async def come_back(self, query: str, hub: str = "hub-2", flow: str | None = None) -> httpx.Response:
        headers = {"Cookie": f"{FLOW_COOKIE}={self.flow if flow is None else flow}"}
        async with self._site.client(hub) as client:
            return await client.get(f"{CALLBACK}?{query}", headers=headers)

    async def sign_in(self, name: str, hub: str = "hub-2") -> httpx.Response:
        return await self.come_back(await self.visit(await self.begin(), name), hub)


def refused(answer: httpx.Response, status: int, said: str) -> None:
    """Whether a person sees a page that says why, and gets nothing."""
    assert answer.status_code == status, answer.text
    assert said in answer.text
    assert "text/html" in answer.headers["content-type"]
    assert answer.cookies.get(COOKIE) is None


def replaced(query: str, **changes: str) -> str:
    return urlencode({key: values[0] for key, values in parse_qs(query).items()} | changes)


@pytest.fixture
def browser(site: Site, provider: Provider) -> Browser:
    return Browser(site, provider)


async def test_an_account_is_made_once_and_found_again(site: Site, browser: Browser) -> None:
    name = f"ada-{uuid.uuid4().hex[:8]}"
    answer = await browser.sign_in(name)
    assert (answer.status_code, answer.headers["location"]) == (303, "/"), answer.text
    cookie = answer.cookies[COOKIE]
    session = (await site.http("hub-1", "GET", "/api/session", cookie=cookie)).json()
    assert session["email"] == f"{name}@example.org"
    assert not session["must_change_password"]
    again = await browser.sign_in(name, "hub-1")
    body = await site.http("hub-2", "GET", "/api/session", cookie=again.cookies[COOKIE])
    assert body.json()["account_id"] == session["account_id"]
    connection = await site.browser(session["account_id"], cookie)
    assert (await call(connection, f"hub.api.{session['account_id']}", "whoami"))["email"] == session["email"]
    for password in ("", "anything at all"):
        attempt = {"email": session["email"], "password": password}
        assert (await site.http("hub-1", "POST", "/api/sign-in", attempt)).status_code == 401


async def test_an_answer_is_good_in_the_browser_that_began_and_once(
    site: Site, provider: Provider, browser: Browser
) -> None:
    """Another browser (that of a victim who was sent the link), a forged cookie, another flow, a second time."""
    query = await browser.visit(await browser.begin(), "eve")
    other = Browser(site, provider)
    await other.begin()
    refused(await browser.come_back(query, flow=""), 400, "begun in another browser")
    refused(await browser.come_back(query, flow=f"{browser.flow[:-1]}x"), 400, "begun in another browser")
    refused(await browser.come_back(query, flow=other.flow), 400, "not the answer")
    refused(await browser.come_back(replaced(query, state="x")), 400, "not the answer")
    refused(await browser.come_back(replaced(query, state="\xe9")), 400, "not the answer")
    refused(await browser.come_back(replaced(query, iss="https://evil.example")), 400, "another provider")
    refused(await browser.come_back(replaced(query, error="access_denied")), 403, "access_denied")
    refused(await browser.come_back(replaced(query, code="")), 403, "no code")
    refused(await browser.come_back(replaced(query, code="x" * 5000)), 403, "was used already")
    assert (await browser.come_back(query)).status_code == 303
    refused(await browser.come_back(query, "hub-1"), 403, "was used already")
    script = replaced(query, error="<script>alert(1)</script>")
    assert "<script>" not in (await browser.come_back(script)).text


async def test_a_stolen_code_is_useless_in_another_flow(site: Site, provider: Provider, browser: Browser) -> None:
    """Code injection: the attacker's own flow, with a code that belongs to the victim's. PKCE is what refuses it."""
    stolen = parse_qs(await browser.visit(await browser.begin(), "victim"))["code"][0]
    attacker = Browser(site, provider)
    own = await attacker.visit(await attacker.begin(), "attacker")
    refused(await attacker.come_back(replaced(own, code=stolen)), 403, "was used already, or was not begun here")


async def test_a_code_of_another_client_and_a_nonce_of_another_flow(browser: Browser) -> None:
    other = (await browser.begin()).replace("client_id=natskit", "client_id=other")
    refused(await browser.come_back(await browser.visit(other, "eve")), 403, "was not begun here")
    url = urlsplit(await browser.begin())
    swapped = url._replace(query=replaced(url.query, nonce="of-another-flow")).geturl()
    refused(await browser.come_back(await browser.visit(swapped, "eve")), 403, "is not valid")


LIES = (
    "aud audiences iss nonce nononce old future nosub none hmac stranger unknown".split()  # noqa: SIM905
)


@pytest.mark.parametrize("lie", LIES)
async def test_an_id_token_that_is_not_what_it_should_be(browser: Browser, lie: str) -> None:
    refused(await browser.sign_in(f"eve+{lie}"), 403, "is not valid")


async def test_a_clock_that_is_a_little_off(browser: Browser) -> None:
    assert (await browser.sign_in(f"ada-{uuid.uuid4().hex[:8]}+skewed")).status_code == 303


@pytest.mark.parametrize("special", ["unverified", "text", "noemail"])
async def test_an_email_that_is_not_verified_makes_no_account(site: Site, browser: Browser, special: str) -> None:
    refused(await browser.sign_in(f"mallory+{special}"), 403, "no verified e-mail")
    listed = await call(await site.admin(), "hub.admin", "account_list")
    assert not [row for row in listed if row["email"].startswith("mallory@")]


async def test_an_account_with_the_same_email_is_linked_only_where_settings_say_so(
    site: Site, browser: Browser
) -> None:
    admin, name = await site.admin(), f"grace-{uuid.uuid4().hex[:8]}"
    email = f"{name}@example.org"
    made = await call(admin, "hub.admin", "account_add", email=email.upper(), password=PASSWORD)
    refused(await browser.sign_in(name), 403, "There is an account with your e-mail address")
    refused(await browser.sign_in(f"{name}+unverified", "hub-3"), 403, "no verified e-mail")
    answer = await browser.sign_in(name, "hub-3")
    session = await site.http("hub-1", "GET", "/api/session", cookie=answer.cookies[COOKIE])
    assert session.json()["account_id"] == made["account_id"]
    refused(await browser.sign_in(name), 403, "There is an account with your e-mail address")
    await site.sign_in("hub-1", email, PASSWORD)  # as before
    refused(await browser.sign_in(f"new-{uuid.uuid4().hex[:8]}", "hub-3"), 403, "Nobody has made an account for you")


async def test_only_some_domains(browser: Browser) -> None:
    refused(await browser.sign_in(f"new-{uuid.uuid4().hex[:8]}", "hub-4"), 403, "have no access")


async def test_a_disabled_account_stays_out(site: Site, browser: Browser) -> None:
    admin, name = await site.admin(), f"ada-{uuid.uuid4().hex[:8]}"
    assert (await browser.sign_in(name)).status_code == 303
    await call(admin, "hub.admin", "account_disable", email=f"{name}@example.org")
    refused(await browser.sign_in(name), 403, "is disabled")


async def test_two_hubs_make_one_account_for_one_person(site: Site, provider: Provider) -> None:
    name = f"twin-{uuid.uuid4().hex[:8]}"
    browsers = [Browser(site, provider) for _ in range(4)]
    queries = [await browser.visit(await browser.begin(), name) for browser in browsers]
    answers = await asyncio.gather(
        *(b.come_back(q, f"hub-{n % 2 + 1}") for n, (b, q) in enumerate(zip(browsers, queries, strict=True)))
    )
    assert [answer.status_code for answer in answers] == [303] * 4, [answer.text for answer in answers]
    sessions = [await site.http("hub-1", "GET", "/api/session", cookie=a.cookies[COOKIE]) for a in answers]
    assert len({session.json()["account_id"] for session in sessions}) == 1


async def test_nothing_leads_to_another_site(site: Site, browser: Browser) -> None:
    await browser.begin()
    for path in ("start", "callback"):
        for name in ("next", "return_to", "redirect_uri", "redirect", "url", "state"):
            async with site.client("hub-1") as client:
                answer = await client.get(f"/api/oidc/{path}?{name}=https://evil.example")
            assert "evil" not in answer.headers.get("location", "")
            assert "evil" not in answer.text


async def test_new_keys_and_a_provider_that_is_away(provider: Provider, browser: Browser) -> None:
    query = await browser.visit(await browser.begin(), "ada")
    provider.stop()
    refused(await browser.come_back(query), 502, "does not answer at this moment")
    provider.start()
    await asyncio.to_thread(provider.wait)

    async def signed_in() -> bool:  # it asks for the new keys, but not at once if somebody has just named a wrong one
        return (await browser.sign_in("ada")).status_code == 303

    await eventually(signed_in, "signed in with the new keys", 20)


async def test_a_client_that_the_provider_does_not_know(site: Site, browser: Browser, tmp_path: Path) -> None:
    program = json.loads((site.root / "hub-4" / "hub.json").read_text())
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text("another secret")
    site.kill_hub("hub-4")
    site.start_hub("hub-4", oidc=program["oidc"] | {"client_secret": str(secret)})
    await site.healthy("hub-4")
    refused(await browser.sign_in("ada", "hub-4"), 502, "is not set up well")
    assert "not with this secret: invalid_client" in site.log("hub-4")


async def test_what_the_audit_says_and_nobody_reads_the_secrets(site: Site) -> None:
    admin = await site.admin()
    events = [event async for event in trail.events(admin, 0)]
    kinds = {(e["kind"], e["outcome"], e.get("reason")) for e in events if e.get("via") == "oidc"}
    assert ("sign_in", "ok", None) in kinds
    assert {"unverified e-mail", "wrong state", "wrong ID token", "conflict", "provider down"} <= {
        reason for kind, outcome, reason in kinds if (kind, outcome) == ("sign_in", "refused")
    }
    text = str(events) + "".join(site.log(name) for name in site.hubs)
    assert SECRET not in text
    assert "code=" not in text
