"""NATS JWTs: natskit reads what it signed, and accepts nothing else."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.bus.permissions import SCOPES, Permissions
from natskit.errors import ClaimsError
from natskit.identity import claims, nkey

SEED = nkey.create_seed("account")
SIGNER = nkey.key_pair(SEED)
ISSUER = nkey.public_key(SEED)
USER = nkey.public_key(nkey.create_seed("user"))
NOW = 1_800_000_000

bodies = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20) | st.none(), max_size=5).map(
    lambda extra: {"iat": NOW, "sub": USER, "name": "x", "nats": {"type": "user", "extra": extra}}
)
TOKEN_ALPHABET = string.ascii_letters + string.digits + "-_."


@given(bodies)
def test_what_is_signed_is_what_is_read(body: dict[str, Any]) -> None:
    read = claims.decode(claims.encode(body, SIGNER))
    assert {key: value for key, value in read.items() if key not in {"iss", "jti"}} == body
    assert read["iss"] == ISSUER


@given(st.data())
def test_any_changed_character_is_noticed(data: st.DataObject) -> None:
    token = claims.encode({"iat": NOW, "sub": USER, "nats": {"type": "user"}}, SIGNER)
    place = data.draw(st.integers(0, len(token) - 1))
    character = data.draw(st.sampled_from(TOKEN_ALPHABET).filter(lambda c: c != token[place]))
    with pytest.raises(ClaimsError):
        claims.decode(token[:place] + character + token[place + 1 :])


@given(st.text(max_size=200) | st.text(alphabet=TOKEN_ALPHABET, max_size=200))
def test_no_text_makes_it_fail_otherwise(text: str) -> None:
    with pytest.raises(ClaimsError):
        claims.decode(text)


@pytest.mark.parametrize("depth", [10_000])
def test_deeply_nested_json_is_refused(depth: int) -> None:
    part = claims._base64(b"[" * depth)
    with pytest.raises(ClaimsError):
        claims.decode(f"{part}.{part}.{part}")


def test_an_algorithm_of_the_bearers_choice_is_refused() -> None:
    _, body, signature = claims.encode({"iat": NOW, "sub": USER}, SIGNER).split(".")
    headers: list[object] = [{"typ": "JWT", "alg": "none"}, {"typ": "JWT"}, []]
    for header in headers:
        with pytest.raises(ClaimsError, match="ed25519-nkey"):
            claims.decode(f"{claims._base64(json.dumps(header).encode())}.{body}.{signature}")


@given(expires=st.integers(NOW - 1000, NOW + 1000), now=st.integers(NOW - 1000, NOW + 1000))
def test_a_jwt_is_good_until_it_expires(expires: int, now: int) -> None:
    token = claims.encode({"iat": NOW, "sub": USER, "exp": expires}, SIGNER)
    if now < expires:
        assert claims.verify(token, issuers=[ISSUER], now=now)["exp"] == expires
    else:
        with pytest.raises(ClaimsError, match="expired"):
            claims.verify(token, issuers=[ISSUER], now=now)


def test_only_the_named_issuers_are_trusted() -> None:
    token = claims.encode({"iat": NOW, "sub": USER}, nkey.key_pair(nkey.create_seed("account")))
    with pytest.raises(ClaimsError, match="may not sign"):
        claims.verify(token, issuers=[ISSUER], now=NOW)


def test_a_jwt_from_the_future_is_refused() -> None:
    token = claims.encode({"iat": NOW, "sub": USER, "nbf": NOW + 10}, SIGNER)
    with pytest.raises(ClaimsError, match="not valid yet"):
        claims.verify(token, issuers=[ISSUER], now=NOW)


def test_nothing_allowed_means_everything_denied() -> None:
    """An empty list in a NATS JWT means "no restriction", the opposite of what a reader expects."""
    account = claims.account_claims(
        name="X", subject=ISSUER, issued_at=NOW, scopes=[("mute", ISSUER, Permissions((), ("a",)))]
    )
    template = account["nats"]["signing_keys"][0]["template"]
    assert template["pub"] == {"deny": [">"]}
    assert template["sub"] == {"allow": ["a"]}


def test_a_user_of_a_scope_carries_no_rights_of_its_own() -> None:
    user = claims.platform_user_claims(
        subject=USER, name="x", tags=["account:a"], platform_account=ISSUER, issued_at=NOW
    )
    assert set(user["nats"]) == {"type", "version", "issuer_account", "tags"}


def test_someone_at_the_door_may_do_nothing() -> None:
    user = claims.auth_user_claims(subject=USER, name="x", tags=[], auth_account=ISSUER, issued_at=NOW, bearer=True)
    assert user["nats"]["pub"] == user["nats"]["sub"] == {"deny": [">"]}


def test_the_browsers_scope_is_for_websockets() -> None:
    account = claims.account_claims(
        name="X", subject=ISSUER, issued_at=NOW, scopes=[("browser", ISSUER, SCOPES["browser"])]
    )
    assert account["nats"]["signing_keys"][0]["template"]["allowed_connection_types"] == ["WEBSOCKET"]


@given(st.binary(max_size=64))
def test_a_public_key_is_recognised_by_its_checksum(data: bytes) -> None:
    assert not nkey.is_public_key(data.decode("latin-1"), "user")
    assert nkey.is_public_key(USER, "user")
    assert not nkey.is_public_key(USER, "account")
