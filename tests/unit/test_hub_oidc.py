"""The parts of the OpenID sign-in that need no provider: cookies that nobody can forge, keys, secrets, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from natskit.config.settings import Settings, load
from natskit.config.topology import validate
from natskit.errors import NatskitError, SettingsError
from natskit.hub.config import OidcSettings
from natskit.hub.sign_in.oidc import client_secret, cookie_key, find_email, key_set, seal, unseal

KEY = cookie_key("SAAISASEED")
FLOW = {"state": "s", "nonce": "n", "verifier": "v", "until": 1.5}
OIDC = {"hub_oidc_issuer": "https://id.example.org", "hub_oidc_client_id": "natskit"}


def test_a_flow_survives_its_cookie() -> None:
    assert unseal(seal(FLOW, KEY), KEY) == FLOW
    assert unseal(seal(FLOW, cookie_key("SAAIOTHERS")), KEY) is None


@given(st.data())
def test_a_cookie_that_no_hub_made(data: st.DataObject) -> None:
    good = seal(FLOW, KEY)
    place = data.draw(st.integers(0, len(good) - 1))
    other = data.draw(st.characters().filter(lambda c: c != good[place]))
    assert unseal(good[:place] + other + good[place + 1 :], KEY) is None
    assert unseal(data.draw(st.text()), KEY) is None


def test_only_public_keys_that_may_sign_are_taken() -> None:
    keys: Any = [
        RSAKey.generate_key(2048, {"kid": "rsa"}).as_dict(private=False),
        ECKey.generate_key("P-256", {"kid": "ec", "use": "sig"}).as_dict(private=False),
        ECKey.generate_key("P-256", {"kid": "enc", "use": "enc"}).as_dict(private=False),
        OKPKey.generate_key("Ed25519", {"kid": "okp"}).as_dict(private=False),
        OctKey.generate_key(256, {"kid": "oct"}).as_dict(),
        {"kty": "RSA", "kid": "broken"},
        {"kty": "EC", "kid": "broken", "crv": "P-256", "x": 1, "y": None},
        "no key",
    ]
    assert [key.kid for key in key_set(keys).keys] == ["rsa", "ec"]
    assert key_set(None).keys == []


def test_the_secret_is_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    settings = OidcSettings(issuer="i", client_id="c", client_secret=path, redirect_url="r")
    path.touch(mode=0o600)
    with pytest.raises(SettingsError, match="is empty"):
        client_secret(settings)
    path.write_text("the secret\n")
    assert client_secret(settings) == "the secret"
    path.chmod(0o644)
    with pytest.raises(NatskitError, match="secret") as refused:
        client_secret(settings)
    assert "the secret" not in str(refused.value)
    path.unlink()
    with pytest.raises(NatskitError, match="No such file"):
        client_secret(settings)


def settings(**data: Any) -> Settings:
    return load({"platform_root": "/srv/natskit", "platform_manager": "supervisor", "platform_tls": False} | data, "it")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (OIDC, "hub_oidc_client_secret_file is not set: set all of"),
        ({"hub_oidc_client_id": "x"}, "hub_oidc_issuer is not set: set all of"),
        (OIDC | {"hub_oidc_issuer": "http://id.example.org"}, "hub_oidc_issuer = 'http://id.example.org'"),
        (OIDC | {"hub_oidc_issuer": "https://id.example.org?x=1"}, "string should match pattern"),
        ({"hub_oidc_scopes": "email"}, "hub_oidc_scopes must contain openid"),
        ({"hub_oidc_label": "<b>"}, "hub_oidc_label"),
        (
            OIDC | {"hub_oidc_issuer": "https://login.microsoftonline.com/common/v2.0"},
            "is for all tenants: use the id of your tenant",
        ),
        ({"hub_oidc_email_claims": "mail"}, "hub_oidc_email_claims"),
        ({"hub_oidc_email_claims": ""}, "hub_oidc_email_claims must name a claim"),
        ({"hub_oidc_email_claims": "email,upn"}, "count only for the domains in hub_oidc_verified_domains"),
        ({"hub_backends": {"shop": {"sha256": "x"}}}, "hub_backends.shop.sha256 = 'x'"),
        ({"hub_backends": {"Shop": {"sha256": "0" * 64}}}, "hub_backends.Shop"),
        ({"hub_backends": {"shop": {"sha256": "0" * 64, "networks": ["10.0.0.1/8"]}}}, "has host bits set"),
        ({"hub_backends": {"shop": {"sha265": "0" * 64}}}, "did you mean sha256?"),
        ({"hub_audit_days": 0}, "hub_audit_days = 0"),
    ],
)
def test_wrong_settings_are_named(data: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings(**data)
    assert said in str(refused.value)


NAMED: dict[str, Any] = {"email_claims": ["email", "preferred_username"], "verified_domains": ["example.org"]}


@pytest.mark.parametrize(
    ("claims", "found"),
    [
        ({"email": "a@example.org", "preferred_username": "a@example.org", "email_verified": False}, ""),
        ({"email": "a@example.org", "preferred_username": "A@EXAMPLE.org", "email_verified": "false"}, ""),
        ({"email": "a@example.org", "preferred_username": "\uff41@example.org", "xms_edov": 0}, ""),
        ({"email": "a@else.example", "preferred_username": "a@example.org", "email_verified": False}, "a@example.org"),
        ({"preferred_username": "a@example.org"}, "a@example.org"),
        ({"preferred_username": "a@else.example"}, ""),
    ],
)
def test_what_is_called_unverified_is_so_in_every_claim(tmp_path: Path, claims: dict[str, Any], found: str) -> None:
    settings = OidcSettings(issuer="i", client_id="c", client_secret=tmp_path, redirect_url="r", **NAMED)
    assert find_email(claims, settings)[0] == found


@pytest.mark.parametrize("content", [None, "", "two\nlines\n"])
def test_a_secret_file_that_holds_no_secret(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
    data = OIDC | {"hub_oidc_client_secret_file": str(path), "platform_control": str(tmp_path)}
    with pytest.raises(SettingsError, match=f"hub_oidc_client_secret_file = {path}"):
        validate([("one", ["nats", "hub", "proxy", "runner"], data)])


def test_hubs_have_to_agree_and_the_audit_needs_its_room(tmp_path: Path) -> None:
    here = {"platform_control": str(tmp_path)}
    hosts: list[Any] = [
        ("a", ["nats", "hub", "proxy"], here | {"nats_jetstream_max_file": 100 << 20}),
        ("b", ["hub"], here | {"hub_audit_days": 30}),
    ]
    with pytest.raises(SettingsError) as refused:
        validate(hosts)
    assert "hub_audit_days differs between hubs" in str(refused.value)
    assert "hub_state_max_bytes, hub_audit_bytes and keeper_max_bytes reserve" in str(refused.value)
