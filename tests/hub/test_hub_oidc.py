"""Sign-in at a real OpenID provider with several real hubs: which people natskit accepts, and which it refuses."""

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

from natskit.hub.sign_in.oidc import FLOWS
from natskit.hub.web.sign_in_options import flow_cookie
from natskit.identity.claims import COOKIE
from natskit.ops import audit_reader
from tests.hub.conftest import PASSWORD
from tests.hub.site import ORIGIN, Site, call
from tests.kit.wait import eventually
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
    """hub-1 and hub-2 make accounts, hub-3 links them instead, hub-4 accepts few domains, hub-5 trusts one domain."""
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
        vouched = {"verified_domains": ["example.org"], "email_claims": ["email", "preferred_username", "upn"]}
        site.start_hub("hub-5", oidc=oidc | vouched | {"scopes": ["openid", "email", "profile"]})
        provider.wait()
        for name in site.hubs:
            await site.healthy(name)
        yield site
    finally:
        await site.close()


class Browser:
    """A browser that begins at one hub and gets the answer at another. Tests can steal its cookies and give them
    away."""

    def __init__(self, site: Site, provider: Provider) -> None:
        self._site, self._provider = site, provider
        self.cookies: dict[str, str] = {}

    @property
    def flows(self) -> list[str]:
        """The cookies of its sign-in attempts."""
        return [value for name, value in self.cookies.items() if name.startswith(flow_cookie(COOKIE, ""))]

    async def get(self, path: str, hub: str) -> httpx.Response:
        """Send a request, and keep the answer's cookies as a browser does."""
        async with self._site.client(hub) as client:
            sent = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
            answer = await client.get(path, headers={"Cookie": sent} if sent else {})
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies.pop(name, None)
            if "max-age=0" not in line.lower():
                self.cookies[name] = value
        return answer

    async def begin(self, hub: str = "hub-1") -> str:
        """The provider's address. Keeps the flow's cookie."""
        answer = await self.get("/api/oidc/start", hub)
        assert answer.status_code == 303, answer.text
        attributes = answer.headers.get_list("set-cookie")[-1].lower()
        assert all(word in attributes for word in ("httponly", "secure", "samesite=lax", "path=/", "max-age=600"))
        return str(answer.headers["location"])

    async def visit(self, url: str, name: str) -> str:
        """Sign in at the provider. Returns the parameters with which it sends the browser back."""
        return urlsplit(await asyncio.to_thread(self._provider.visit, url, name)).query

    async def come_back(self, query: str, hub: str = "hub-2") -> httpx.Response:
        return await self.get(f"{CALLBACK}?{query}", hub)

    async def try_to_come_back(self, query: str, **cookies: str) -> httpx.Response:
        """Come back with these cookies added, and forget the cookies of the answer."""
        other = Browser(self._site, self._provider)
        other.cookies = self.cookies | cookies
        return await other.come_back(query)

    async def sign_in(self, name: str, hub: str = "hub-2") -> httpx.Response:
        return await self.come_back(
            await self.visit(await self.begin("hub-5" if hub == "hub-5" else "hub-1"), name), hub
        )


def refused(answer: httpx.Response, status: int, said: str) -> None:
    """Whether the person sees a page with the reason, and gets no session."""
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
    """natskit refuses another browser (of a victim who was sent the link), a forged cookie, another flow, and a second
    use."""
    query = await browser.visit(await browser.begin(), "eve")
    ((name, flow),) = browser.cookies.items()
    other = Browser(site, provider)
    await other.begin()
    (others,) = other.flows
    refused(await other.try_to_come_back(query), 400, "begun in another browser")
    refused(await browser.try_to_come_back(query, **{name: f"{flow[:-1]}x"}), 400, "begun in another browser")
    refused(await browser.try_to_come_back(query, **{name: others}), 400, "not the answer")
    refused(await browser.try_to_come_back(replaced(query, state="x")), 400, "begun in another browser")
    refused(await browser.try_to_come_back(replaced(query, state="\xe9")), 400, "begun in another browser")
    refused(await browser.try_to_come_back(replaced(query, iss="https://evil.example")), 400, "another provider")
    refused(await browser.try_to_come_back(replaced(query, error="access_denied")), 403, "access_denied")
    refused(await browser.try_to_come_back(replaced(query, code="")), 403, "no code")
    refused(await browser.try_to_come_back(replaced(query, code="x" * 5000)), 403, "was used already")
    script = replaced(query, error="<script>alert(1)</script>")
    assert "<script>" not in (await browser.try_to_come_back(script)).text
    assert (await browser.try_to_come_back(query)).status_code == 303
    refused(await browser.come_back(query, "hub-1"), 403, "was used already")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["the first one first", "the last one first"])
async def test_two_tabs_sign_in_side_by_side(browser: Browser, order: tuple[int, int]) -> None:
    name = f"ada-{uuid.uuid4().hex[:8]}"
    queries = [await browser.visit(await browser.begin(hub), name) for hub in ("hub-1", "hub-2")]
    for n in order:
        answer = await browser.come_back(queries[n], "hub-1")
        assert (answer.status_code, answer.headers["location"]) == (303, "/"), answer.text
    assert browser.flows == []


async def test_an_attempt_that_was_given_up_leaves_the_next_one_alone(browser: Browser) -> None:
    given_up, query = [await browser.visit(await browser.begin(), "ada") for _ in range(2)]
    refused(await browser.come_back(replaced(given_up, error="access_denied")), 403, "access_denied")
    assert len(browser.flows) == 1
    assert (await browser.come_back(query)).status_code == 303


async def test_attempts_without_an_end_leave_a_browser_with_a_few_cookies(browser: Browser) -> None:
    """A request may have 8 KiB of cookies, including that of the session."""
    browser.cookies[flow_cookie(COOKIE, "broken")] = "x"
    queries = [await browser.visit(await browser.begin(), "ada") for _ in range(FLOWS + 2)]
    assert len(browser.flows) == FLOWS
    assert "x" not in browser.flows
    assert sum(map(len, browser.flows)) < 4096
    refused(await browser.come_back(queries[0]), 400, "finished already, took longer than 10 minutes, or was begun in")
    assert (await browser.come_back(queries[2])).status_code == 303
    assert (await browser.come_back(queries[-1])).status_code == 303


async def test_the_address_of_an_answer_opened_again(browser: Browser) -> None:
    """By a bookmark, the "back" button, or a reload. A person who is signed in continues; others see the reason."""
    for query in ("", "code=x&state=y", "state=\xe9", "error=access_denied"):
        refused(await browser.come_back(query), 400, "begun in another browser")
    query = await browser.visit(await browser.begin(), "ada")
    assert (await browser.come_back(query)).status_code == 303
    cookie = browser.cookies[COOKIE]
    for again in (query, ""):
        answer = await browser.come_back(again)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert browser.cookies == {COOKIE: cookie}
    browser.cookies[COOKIE] = "over"
    refused(await browser.come_back(query), 400, "begun in another browser")


async def test_a_stolen_code_is_useless_in_another_flow(site: Site, provider: Provider, browser: Browser) -> None:
    """Code injection: the attacker's own flow, with a code from the victim's flow. PKCE makes the provider refuse
    it."""
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


UNVERIFIED = "unverified untrue zero yes list noedov".split()  # noqa: SIM905
SILENT = "silent null entra noemail upn username noaddress both".split()  # noqa: SIM905


@pytest.mark.parametrize("special", UNVERIFIED + SILENT)
async def test_an_email_that_is_not_verified_makes_no_account(site: Site, browser: Browser, special: str) -> None:
    refused(await browser.sign_in(f"mallory+{special}"), 403, "no verified e-mail")
    listed = await call(await site.admin(), "hub.admin", "account_list")
    assert not [row for row in listed if row["email"].startswith("mallory@")]


@pytest.mark.parametrize("special", ["text", "Text", "number", "edov"])
async def test_a_provider_that_writes_its_booleans_otherwise(site: Site, browser: Browser, special: str) -> None:
    """Amazon Cognito writes "true"; Entra ID writes 1, or a text."""
    await comes_in(site, browser, f"ada-{uuid.uuid4().hex[:8]}", special, "hub-1")


@pytest.mark.parametrize("special", ["silent", "null", "entra", "upn", "username", "both"])
async def test_a_provider_that_says_nothing_is_believed_in_domains_of_its_own(
    site: Site, browser: Browser, special: str
) -> None:
    await comes_in(site, browser, f"ada-{uuid.uuid4().hex[:8]}", special, "hub-5")
    other = f"ada-{uuid.uuid4().hex[:8]}@elsewhere.example"
    refused(await browser.sign_in(f"{other}+{special}", "hub-5"), 403, "no verified e-mail")


@pytest.mark.parametrize("special", [*UNVERIFIED, "noemail", "noaddress"])
async def test_what_a_provider_calls_unverified_is_so_in_its_own_domains_too(browser: Browser, special: str) -> None:
    refused(await browser.sign_in(f"mallory+{special}", "hub-5"), 403, "no verified e-mail")


async def comes_in(site: Site, browser: Browser, name: str, special: str, hub: str) -> None:
    answer = await browser.sign_in(f"{name}+{special}", hub)
    assert (answer.status_code, answer.headers.get("location")) == (303, "/"), answer.text
    session = await site.http("hub-2", "GET", "/api/session", cookie=answer.cookies[COOKIE])
    assert session.json()["email"] == f"{name}@example.org"


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


async def test_an_address_that_only_looks_like_that_of_an_account_is_not_linked(site: Site, browser: Browser) -> None:
    """The person has proved ownership of this address, not of the one that looks like it."""
    admin, domain = await site.admin(), f"{uuid.uuid4().hex[:8]}.example"
    made = await call(admin, "hub.admin", "account_add", email=f"coco@{domain}", password=PASSWORD)
    refused(await browser.sign_in(f"сосо@{domain}", "hub-3"), 403, "looks the same as the e-mail of another account")
    refused(await browser.sign_in(f"a\u200bda@{domain}", "hub-3"), 403, "no verified e-mail")
    answer = await browser.sign_in(f"COCO@{domain}", "hub-3")
    session = await site.http("hub-1", "GET", "/api/session", cookie=answer.cookies[COOKIE])
    assert session.json()["account_id"] == made["account_id"]


@pytest.mark.parametrize("alike", ["\ufb01ne", "\uff46ine"])
async def test_an_address_that_would_be_stored_as_another_one(site: Site, browser: Browser, alike: str) -> None:
    """A person with a ligature in the address does not get the account of the address without it."""
    admin, domain = await site.admin(), f"{uuid.uuid4().hex[:8]}.example"
    address = f"{alike}@{domain}"
    refused(await browser.sign_in(address), 403, "may be another person")
    made = await call(admin, "hub.admin", "account_add", email=f"fine@{domain}", password=PASSWORD)
    refused(await browser.sign_in(address, "hub-3"), 403, "may be another person")
    answer = await browser.sign_in(f"FINE@{domain}", "hub-3")
    session = await site.http("hub-1", "GET", "/api/session", cookie=answer.cookies[COOKIE])
    assert session.json()["account_id"] == made["account_id"]


async def test_a_domain_that_only_looks_like_one_of_the_settings(browser: Browser) -> None:
    refused(await browser.sign_in("eve@ехамрле.org+silent", "hub-5"), 403, "no verified e-mail")
    refused(await browser.sign_in("eve@exаmple.org+silent", "hub-5"), 403, "no verified e-mail")
    assert (await browser.sign_in(f"eve-{uuid.uuid4().hex[:8]}@EXAMPLE.org+silent", "hub-5")).status_code == 303


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
    refused(await browser.sign_in("ada", "hub-4"), 502, "is misconfigured")
    assert "not with this secret: invalid_client" in site.log("hub-4")


async def test_what_the_audit_says_and_nobody_reads_the_secrets(site: Site) -> None:
    admin = await site.admin()
    events = [event async for event in audit_reader.events(admin, 0)]
    kinds = {(e["kind"], e["outcome"], e.get("reason")) for e in events if e.get("via") == "oidc"}
    assert ("sign_in", "ok", None) in kinds
    assert {"unverified e-mail", "wrong state", "wrong ID token", "conflict", "provider down"} <= {
        reason for kind, outcome, reason in kinds if (kind, outcome) == ("sign_in", "refused")
    }
    text = str(events) + "".join(site.log(name) for name in site.hubs)
    assert SECRET not in text
    assert "code=" not in text
