"""The platform's outer defences: cookies, origins, sizes, and the paths that a stranger can reach."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable

import nkeys
import pytest

from natskit.identity import claims
from natskit.identity.identity import Identity
from tests.platform.raw import ClosedError, RawClient, UpgradeRefusedError
from tests.platform.site import Session, Site, World


def connect(site: Site, cookie: str | None, origin: str | None = "own", path: str = "") -> RawClient:
    return RawClient.websocket(
        site.websocket_url + path,
        ca_file=site.ca_file,
        cookie=cookie,
        origin=site.url if origin == "own" else origin,
    )


@pytest.fixture(scope="module")
def session(site: Site, world: World) -> Session:
    return site.sign_in(world.email_a, world.password)


def test_the_cookie_is_kept_from_scripts_and_other_sites(site: Site, world: World) -> None:
    with site.http() as http:
        answer = http.post("/api/sign-in", json={"email": world.email_a, "password": world.password})
    attributes = answer.headers["set-cookie"].lower()
    assert attributes.startswith(f"{claims.cookie_name(site.url)}=ey".lower())
    for attribute in ("httponly", "secure", "samesite=strict", "path=/", "max-age="):
        assert attribute in attributes
    assert "domain=" not in attributes
    assert answer.headers["set-cookie"].split("=", 1)[1].split(";")[0] not in answer.text


@pytest.mark.parametrize("origin", [None, "null", "https://evil.example", "http://localhost", "{url}.evil.example"])
def test_a_websocket_needs_the_sites_own_origin(site: Site, session: Session, origin: str | None) -> None:
    with pytest.raises(UpgradeRefusedError) as refused:
        connect(site, session.cookie, origin and origin.format(url=site.url))
    assert refused.value.status == 403


@pytest.mark.parametrize("origin", [None, "null", "https://evil.example"])
@pytest.mark.parametrize("path", ["/api/sign-in", "/api/sign-out", "/api/rpc"])
def test_a_post_needs_the_sites_own_origin(site: Site, session: Session, path: str, origin: str | None) -> None:
    with site.http() as http:
        del http.headers["Origin"]
        headers = {"Cookie": session.cookie} | ({"Origin": origin} if origin else {})
        assert http.post(path, json={}, headers=headers).status_code == 403


def test_a_websocket_without_a_cookie_is_refused(site: Site) -> None:
    with pytest.raises(ClosedError, match=r"Authorization Violation|Authentication"):
        connect(site, None)


def _tamper(token: str) -> str:
    head, body, signature = token.split(".")
    payload = json.loads(base64.urlsafe_b64decode(body + "=="))
    payload["name"] = "00000000-0000-4000-8000-000000000000"
    forged = base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=").decode()
    return f"{head}.{forged}.{signature}"


def _signed_by_a_stranger(token: str) -> str:
    payload = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return claims.encode(payload, nkeys.from_seed(nkeys.encode_seed(b"\x07" * 32, nkeys.PREFIX_BYTE_ACCOUNT)))


def _none_algorithm(token: str) -> str:
    head = base64.urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').rstrip(b"=").decode()
    return f"{head}.{token.split('.')[1]}."


FORGERIES: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "garbage": lambda _: "garbage",
    "tampered": _tamper,
    "cut": lambda token: token[:-8],
    "stranger's key": _signed_by_a_stranger,
    "alg none": _none_algorithm,
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_cookie_opens_nothing(site: Site, session: Session, forgery: str) -> None:
    token = FORGERIES[forgery](session.cookie.split("=", 1)[1])
    with pytest.raises((ClosedError, UpgradeRefusedError)):
        connect(site, f"{claims.cookie_name(site.url)}={token}")
    with site.http() as http:
        assert (
            http.get("/api/session", headers={"Cookie": f"{claims.cookie_name(site.url)}={token}"}).status_code == 401
        )


def _minted(site: Site, world: World, session_id: str, expires_at: int) -> str:
    """A cookie signed with the real AUTH signing key, as a hub run by an attacker could sign it."""
    keys = Identity.load(site.root / "identity").hub_keys()
    user = nkeys.encode_seed(b"\x09" * 32, nkeys.PREFIX_BYTE_USER)
    body = claims.auth_user_claims(
        subject=nkeys.from_seed(user).public_key.decode(),
        name=world.names["a"],
        tags=["kind:browser", f"session:{session_id}"],
        auth_account=keys.auth_account,
        issued_at=int(time.time()) - 100,
        expires_at=expires_at,
        bearer=True,
        connection_types=["WEBSOCKET"],
    )
    return claims.encode(body, nkeys.from_seed(keys.auth_signing_seed.encode()))


def test_an_expired_cookie_opens_nothing(site: Site, world: World, session: Session) -> None:
    session_id = _session_id(session)
    expired = _minted(site, world, session_id, int(time.time()) - 10)
    with pytest.raises(ClosedError):
        connect(site, f"{claims.cookie_name(site.url)}={expired}")
    with site.http() as http:
        assert (
            http.get("/api/session", headers={"Cookie": f"{claims.cookie_name(site.url)}={expired}"}).status_code == 401
        )
    fresh = _minted(site, world, session_id, int(time.time()) + 60)
    connect(site, f"{claims.cookie_name(site.url)}={fresh}").close()


def test_a_cookie_for_a_session_that_does_not_exist_opens_nothing(site: Site, world: World) -> None:
    unknown = _minted(site, world, "00000000-0000-4000-8000-000000000000", int(time.time()) + 60)
    with pytest.raises(ClosedError):
        connect(site, f"{claims.cookie_name(site.url)}={unknown}")


def _session_id(session: Session) -> str:
    payload = json.loads(base64.urlsafe_b64decode(session.cookie.split(".")[1] + "=="))
    return next(str(tag).removeprefix("session:") for tag in payload["nats"]["tags"] if tag.startswith("session:"))


def test_a_cookie_is_no_use_over_plain_tcp(site: Site, session: Session) -> None:
    token = session.cookie.split("=", 1)[1]
    with pytest.raises(ClosedError):
        site.tcp(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n"
            f"-----BEGIN USER NKEY SEED-----\n"
            f"{nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER).decode()}\n------END USER NKEY SEED------\n",
        )


def test_signing_out_cuts_the_connection_and_kills_a_stolen_cookie(site: Site, world: World) -> None:
    victim = site.sign_in(world.email_a, world.password)
    open_connection = connect(site, victim.cookie)
    with site.http() as http:
        assert http.post("/api/sign-out", headers={"Cookie": victim.cookie}).status_code == 204
    open_connection.wait_closed(5)
    with site.http() as http:
        assert http.get("/api/session", headers={"Cookie": victim.cookie}).status_code == 401
        body = {"jsonrpc": "2.0", "id": 1, "method": "whoami"}
        assert http.post("/api/rpc", json=body, headers={"Cookie": victim.cookie}).status_code == 401
    with pytest.raises(ClosedError):
        connect(site, victim.cookie)


def test_a_disabled_account_is_out_at_once(site: Site) -> None:
    password = "a password to be disabled"  # noqa: S105
    email = f"gone@{site.domain}"
    site.natskit("account", "add", email, "--password-stdin", stdin=password)
    session = site.sign_in(email, password)
    open_connection = connect(site, session.cookie)
    site.natskit("account", "disable", email)
    open_connection.wait_closed(5)
    with pytest.raises(ClosedError):
        connect(site, session.cookie)
    with site.http() as http:
        assert http.get("/api/session", headers={"Cookie": session.cookie}).status_code == 401
        answer = http.post("/api/sign-in", json={"email": email, "password": password})
        assert answer.status_code == 401


def test_a_grant_and_its_withdrawal_reach_an_open_connection(site: Site, world: World) -> None:
    """Sharing closes the guest's connection, and the next one, with the same cookie, has the right. Unsharing removes
    it again."""
    guest = site.sign_in(world.email_b, world.password)
    before = connect(site, guest.cookie)
    subject = world.name("projects.{p}.api")
    assert before.publish(subject) != []
    site.natskit("project", "share", world.names["p"], world.email_b)
    before.wait_closed(5)
    during = connect(site, guest.cookie)
    assert during.publish(subject) == []
    assert during.subscribe(world.name("events.project.{p}.>")) == []
    site.natskit("project", "unshare", world.names["p"], world.email_b)
    during.wait_closed(5)
    after = connect(site, guest.cookie)
    assert after.publish(subject) != []


def test_wrong_password_and_unknown_address_get_the_same_answer(site: Site, world: World) -> None:
    with site.http() as http:
        wrong = http.post("/api/sign-in", json={"email": world.email_b, "password": "wrong password"})
        unknown = http.post("/api/sign-in", json={"email": "nobody@example.org", "password": "wrong password"})
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json() == unknown.json()


@pytest.mark.parametrize("path", ["/leafnode", "/mqtt", "/x/leafnode"])
def test_the_path_cannot_choose_another_protocol(site: Site, session: Session, path: str) -> None:
    """nats-server speaks leafnode or MQTT on paths with these endings; the proxy forwards one fixed path."""
    with pytest.raises(UpgradeRefusedError) as refused:
        connect(site, session.cookie, path=path)
    assert refused.value.status == 404


def test_a_control_line_that_is_too_long_ends_only_that_connection(site: Site, session: Session) -> None:
    client = connect(site, session.cookie)
    client.send(b"PUB " + b"a" * 5_000 + b" 0\r\n\r\n")
    assert "control line" in client.wait_closed().lower()
    # More than the server reads at once: what it said last can be lost with the connection that it resets.
    client = connect(site, session.cookie)
    client.send(b"PUB " + b"a" * 70_000 + b" 0\r\n\r\n")
    client.wait_closed()
    connect(site, session.cookie).close()


def test_a_payload_that_is_too_large_ends_only_that_connection(site: Site, session: Session, world: World) -> None:
    client = connect(site, session.cookie)
    size = int(client.info["max_payload"]) + 1
    client.send(f"PUB {world.name('projects.{p}.x')} {size}\r\n".encode() + b"x" * 1000)
    assert "payload" in client.wait_closed().lower()
    connect(site, session.cookie).close()


def test_what_is_inside_stays_inside(site: Site) -> None:
    with site.http() as http:
        assert http.get("/metrics").status_code == 404
        assert http.get("/api/metrics").status_code in {401, 404}
        assert http.get("/healthz").json()["status"] == "ok"
        for path in ("/../identity/natskit.json", "/%2e%2e/identity/natskit.json", "/.git/config", "/console.js/.."):
            assert "seed" not in http.get(path).text


def test_the_page_is_served_with_its_armour(site: Site) -> None:
    with site.http() as http:
        page = http.get("/")
    assert page.status_code == 200
    assert page.http_version in {"HTTP/1.1", "HTTP/2"}
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy or "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"


def test_a_forwarded_address_of_the_clients_own_making_is_ignored(site: Site, world: World) -> None:
    """nats-server trusts X-Forwarded-For, and the proxy overwrites it, so no client can choose its address."""
    session = site.sign_in(world.email_a, world.password)
    client = RawClient.websocket(
        site.websocket_url,
        ca_file=site.ca_file,
        cookie=session.cookie,
        origin=site.url,
        headers={"X-Forwarded-For": "203.0.113.9"},
    )
    connections = "".join(site.monitor("connz?limit=1000&auth=1"))
    assert world.names["a"] in connections
    assert "203.0.113.9" not in connections
    assert client.info["client_ip"] != "203.0.113.9"


def test_no_secret_is_readable_by_others_or_in_a_log(site: Site, world: World) -> None:
    seeds = [path.read_text().strip() for path in (site.root / "identity").rglob("*.nk")]
    assert len(seeds) > 8
    logs = site.logs()
    assert not any(seed in logs for seed in seeds)
    assert world.password not in logs
    assert site.readable_by_others() == []
