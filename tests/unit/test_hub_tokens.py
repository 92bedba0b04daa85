"""Tokens that a hub signs: who can read them, how long they are valid, and that rights come from the scope alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.errors import ClaimsError
from natskit.hub.auth.tokens import Tokens
from natskit.hub.state.records import Session
from natskit.hub.state.view import Holder, Rights
from natskit.identity import claims, nkey
from natskit.identity.identity import HubKeys

NOW = 1_800_000_000
AUTH = nkey.create_seed("account")
KEYS = HubKeys(
    auth_account=nkey.public_key(nkey.create_seed("account")),
    auth_signing_seed=AUTH,
    platform_account=nkey.public_key(nkey.create_seed("account")),
    platform_seeds={role: nkey.create_seed("account") for role in ("browser", "project", "runner")},
)
TOKENS = Tokens(KEYS, 900)
USER = nkey.public_key(nkey.create_seed("user"))
# Fixed: they are in the names of tests, which all workers of pytest-xdist have to agree on.
ACCOUNT, SESSION = "d0fd9878-18bd-4656-8677-4f754f19738b", "7a1c52e4-0b3d-4f7e-9c68-5d2e1f3a4b6c"


def session(expires_at: float) -> Session:
    return Session(account_id=ACCOUNT, created_at=NOW, expires_at=expires_at, absolute_expires_at=expires_at)


def test_a_cookie_names_its_session_until_it_expires() -> None:
    cookie = TOKENS.cookie(SESSION, session(NOW + 100), NOW)
    assert TOKENS.holder(cookie, NOW).holder == Holder("browser", ACCOUNT, SESSION)
    assert TOKENS.holder(cookie, NOW + 99).issued_at == NOW
    for late in (100, 101, 10_000):
        with pytest.raises(ClaimsError, match="expired"):
            TOKENS.holder(cookie, NOW + late)
    body = claims.decode(cookie)["nats"]
    assert body["bearer_token"]
    assert body["allowed_connection_types"] == ["WEBSOCKET"]
    assert body["pub"] == body["sub"] == {"deny": [">"]}


@given(position=st.integers(min_value=0), letter=st.sampled_from("AZaz09-_."))
def test_a_changed_cookie_is_nobodys(position: int, letter: str) -> None:
    cookie = TOKENS.cookie(SESSION, session(NOW + 100), NOW)
    position %= len(cookie)
    changed = cookie[:position] + letter + cookie[position + 1 :]
    if changed != cookie:
        with pytest.raises(ClaimsError):
            TOKENS.holder(changed, NOW)


def test_other_keys_sign_nothing_that_counts() -> None:
    for seed in (*KEYS.platform_seeds.values(), nkey.create_seed("account"), nkey.create_seed("user")):
        forged = claims.auth_user_claims(
            subject=USER,
            name=ACCOUNT,
            tags=["kind:browser", f"session:{SESSION}"],
            auth_account=KEYS.auth_account,
            issued_at=NOW,
        )
        with pytest.raises(ClaimsError, match="may not sign"):
            TOKENS.holder(claims.encode(forged, nkey.key_pair(seed)), NOW)


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("*", ["kind:browser", f"session:{SESSION}"]),
        (ACCOUNT.upper(), ["kind:project"]),
        (ACCOUNT, ["kind:browser"]),
        (ACCOUNT, ["kind:browser", "session:*"]),
        (ACCOUNT, ["kind:hub"]),
        (ACCOUNT, []),
    ],
)
def test_a_jwt_that_names_nobody(name: str, tags: list[str]) -> None:
    odd = claims.auth_user_claims(subject=USER, name=name, tags=tags, auth_account=KEYS.auth_account, issued_at=NOW)
    with pytest.raises(ClaimsError):
        TOKENS.holder(claims.encode(odd, nkey.key_pair(AUTH)), NOW)


@given(left=st.integers(min_value=1, max_value=100_000))
def test_a_grant_ends_with_the_session_or_the_ttl(left: int) -> None:
    rights = Rights([f"account:{ACCOUNT}"], "browser.x.y.z", NOW + left, "")
    body = claims.decode(TOKENS.grant(Holder("browser", ACCOUNT, SESSION), rights, USER, NOW))
    assert NOW < body["exp"] <= NOW + min(left, 990)
    assert body["exp"] >= NOW + min(left, 810)
    assert body["iss"] == nkey.public_key(KEYS.platform_seeds["browser"])
    assert not {"pub", "sub", "resp"} & set(body["nats"])
