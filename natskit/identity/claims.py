"""NATS JWTs: claims as pure functions of their inputs, and their signed form.

Source: github.com/nats-io/jwt v2 (claims version 2, algorithm ``ed25519-nkey``), ADR-14 (JWTs), ADR-26 (auth callout).
Times are Unix seconds and always passed in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import urlsplit

from natskit import json_text
from natskit.bus.permissions import Answers, Permissions
from natskit.errors import ClaimsError
from natskit.identity import nkey

Claims = dict[str, Any]

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_NO_LIMIT = -1
_NANOSECONDS = 1_000_000_000
COOKIE = "__Host-natskit"
"""The cookie a browser's AUTH JWT travels in: the prefix makes browsers insist on Secure, Path=/ and no Domain
(RFC 6265bis). :func:`cookie_name` is the name at a certain site."""
MAX_TOKEN_LENGTH = 1 << 20
"""Maximum length of a JWT in characters. The claims of 4,000 projects take about 200,000."""


def cookie_name(url: str) -> str:
    """The name of a site's cookie. Browsers send cookies to all ports of a host (RFC 6265, 8.5), so sites that differ
    only in the port need different names. Otherwise signing in to one would sign the user out of the other."""
    port = urlsplit(url).port
    return COOKIE if port in (None, 443) else f"{COOKIE}-{port}"


class Signer(Protocol):
    """An nkey that signs, such as :class:`nkeys.KeyPair`."""

    @property
    def public_key(self) -> bytes:
        """Its text."""

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature of the data."""


def encode(claims: Mapping[str, Any], signer: Signer) -> str:
    """Sign claims. ``iss`` is filled in, and ``jti``, the base32 SHA-512/256 of the claims, if they have none."""
    body = {**claims, "iss": signer.public_key.decode()}
    if "jti" not in body:
        digest = hashlib.new("sha512_256", _json(body)).digest()
        body["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    signed = f"{_ENCODED_HEADER}.{_base64(_json(body))}"
    return f"{signed}.{_base64(signer.sign(signed.encode()))}"


def decode(token: str) -> Claims:
    """The claims of a JWT whose signature matches its own ``iss``.

    The caller must check that it trusts ``iss``. Raises :class:`ClaimsError`.
    """
    if len(token) > MAX_TOKEN_LENGTH:
        raise ClaimsError(f"a JWT of {len(token)} characters is longer than {MAX_TOKEN_LENGTH}")
    parts = token.split(".")
    if len(parts) != 3:
        raise ClaimsError("a JWT has three parts separated by dots; this one has " + str(len(parts)))
    try:
        header, body = (json_text.read(_unbase64(part)) for part in parts[:2])
        signature = _unbase64(parts[2])
    except (ValueError, binascii.Error, RecursionError):
        raise ClaimsError("a JWT is not base64url-encoded JSON") from None
    if not isinstance(header, dict) or header.get("alg") != _HEADER["alg"]:
        raise ClaimsError("a JWT is not signed with ed25519-nkey, the only algorithm NATS accepts")
    if not isinstance(body, dict) or not isinstance(body.get("iss"), str):
        raise ClaimsError("a JWT names no issuer")
    if not nkey.verify(body["iss"], f"{parts[0]}.{parts[1]}".encode(), signature):
        raise ClaimsError("the signature of a JWT does not match its content and issuer")
    return body


def verify(token: str, *, issuers: Iterable[str], now: int) -> Claims:
    """The claims of a JWT signed by one of the ``issuers`` and valid at ``now``. Raises :class:`ClaimsError`."""
    body = decode(token)
    if body["iss"] not in set(issuers):
        raise ClaimsError("a JWT is signed by a key that may not sign it")
    if not isinstance(body.get("exp", 0), int) or 0 < body.get("exp", 0) <= now:
        raise ClaimsError("a JWT has expired")
    if not isinstance(body.get("nbf", 0), int) or body.get("nbf", 0) > now:
        raise ClaimsError("a JWT is not valid yet")
    return body


def tag(claims: Mapping[str, Any], name: str) -> str | None:
    """The value of the first tag ``name:value`` of a user's claims."""
    tags = claims.get("nats", {}).get("tags") or []
    return next((str(t).partition(":")[2] for t in tags if str(t).startswith(f"{name}:")), None)


def operator_claims(
    *, name: str, subject: str, signing_keys: Iterable[str], system_account: str, issued_at: int
) -> Claims:
    """The operator's claims: its signing keys and its system account."""
    nats = {"type": "operator", "version": 2, "signing_keys": sorted(signing_keys), "system_account": system_account}
    return {"iat": issued_at, "name": name, "sub": subject, "nats": nats}


def account_claims(
    *,
    name: str,
    subject: str,
    issued_at: int,
    signing_keys: Iterable[str] = (),
    scopes: Iterable[tuple[str, str, Permissions]] = (),
    jetstream: bool = False,
    exports: Mapping[str, Answers] = MappingProxyType({}),
    imports: Iterable[tuple[str, str, str]] = (),
    exported_streams: Iterable[str] = (),
    exported_to_all: Iterable[str] = (),
    imported_streams: Iterable[tuple[str, str, str]] = (),
    callout_users: Iterable[str] = (),
    callout_accounts: Iterable[str] = (),
    revoked: Mapping[str, int] | None = None,
) -> Claims:
    """A NATS account.

    ``scopes`` are a role's name, a signing key of it, and what that key may hand out. ``exports`` are services for all
    NATS accounts, ``exported_to_all`` streams that every one may follow; ``exported_streams`` have one ``*``, in the
    place of the key of the NATS account that may import them. ``imports`` are services of other NATS accounts, and
    ``imported_streams`` streams: the key of each, the subject there, and the one here. ``revoked`` are users by
    their nkeys: what was signed for them up to that time (Unix seconds) is refused. With ``callout_users`` the account
    delegates authentication: everyone else who connects to it is decided on by those users (auth callout, ADR-26), who
    may place them into ``callout_accounts``. Leafnodes and bearer tokens aside, nothing is limited: limits are the
    server's.
    """
    limits: dict[str, Any] = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn"), _NO_LIMIT)
    limits |= {"wildcards": True}
    if jetstream:
        limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), _NO_LIMIT)
    keys: list[Any] = sorted(signing_keys)
    for role, key, permissions in sorted(scopes, key=lambda scope: scope[:2]):
        keys.append({"kind": "user_scope", "key": key, "role": role, "template": _template(permissions)})
    nats: dict[str, Any] = {"type": "account", "version": 2, "limits": limits, "signing_keys": keys}
    exported: list[dict[str, Any]] = [
        {"name": subject, "subject": subject, "type": "service", "response_type": answers}
        for subject, answers in sorted(exports.items())
    ] + [
        {"name": subject, "subject": subject, "type": "stream", "account_token_position": _position(subject)}
        for subject in sorted(exported_streams)
    ]
    exported += [{"name": subject, "subject": subject, "type": "stream"} for subject in sorted(exported_to_all)]
    imported: list[dict[str, Any]] = [
        {"name": here, "subject": subject, "account": account, "type": "service"}
        | ({"local_subject": here} if here != subject else {})
        for account, subject, here in sorted(imports)
    ] + [
        {"name": here, "subject": subject, "account": account, "type": "stream"}
        | ({"local_subject": here} if here != subject else {})
        for account, subject, here in sorted(imported_streams)
    ]
    if exported:
        nats["exports"] = exported
    if imported:
        nats["imports"] = imported
    if revoked:
        nats["revocations"] = dict(revoked)
    if users := sorted(callout_users):
        nats["authorization"] = {"auth_users": users, "allowed_accounts": sorted(callout_accounts)}
    return {"iat": issued_at, "name": name, "sub": subject, "nats": nats}


def _position(subject: str) -> int:
    """Which word of a subject is ``*``, from 1."""
    return subject.split(".").index("*") + 1


def with_rights_of(wanted: Claims, earlier: Claims) -> Claims:
    """A NATS account whose scopes also grant their ``earlier`` rights, including scopes that it no longer has."""
    keys = [key for key in earlier.get("nats", {}).get("signing_keys") or [] if isinstance(key, dict)]
    templates = {key["key"]: key["template"] for key in keys}
    out: Claims = json_text.read(_json(wanted))
    has = {key["key"] for key in out["nats"].get("signing_keys", []) if isinstance(key, dict)}
    out["nats"]["signing_keys"] = sorted(
        [*out["nats"].get("signing_keys", []), *(key for key in keys if key["key"] not in has)],
        key=lambda key: (key["role"], key["key"]) if isinstance(key, dict) else ("", key),
    )
    for scope in out["nats"].get("signing_keys", []):
        before = templates.get(scope["key"], {}) if isinstance(scope, dict) else {}
        for list_ in ("pub", "sub"):
            if subjects := before.get(list_, {}).get("allow"):
                allowed = {*subjects, *scope["template"][list_].get("allow", ())}
                scope["template"][list_] = {"allow": sorted(allowed)}
    return out


def user_claims(*, subject: str, name: str, issuer_account: str, permissions: Permissions, issued_at: int) -> Claims:
    """A user with permissions of its own, signed by a signing key without a scope."""
    nats = {"type": "user", "version": 2, "issuer_account": issuer_account, **_template(permissions)}
    return {"iat": issued_at, "name": name, "sub": subject, "nats": nats}


def temporary_user_claims(
    *, subject: str, name: str, permissions: Permissions, issued_at: int, expires_at: int
) -> Claims:
    """A user with permissions of its own, signed by the NATS account's identity key."""
    nats = {"type": "user", "version": 2, **_template(permissions)}
    return {"iat": issued_at, "exp": expires_at, "name": name, "sub": subject, "nats": nats}


def closed(account: Claims) -> Claims:
    """A NATS account that admits only users signed by its identity key, and offers nothing to other NATS accounts.

    nats-server disconnects all other users.
    """
    return {**account, "nats": {**account["nats"], "signing_keys": [], "exports": []}}


def platform_user_claims(
    *,
    subject: str,
    name: str,
    tags: Iterable[str],
    platform_account: str,
    issued_at: int,
    expires_at: int | None = None,
) -> Claims:
    """A user whose rights are the scope of its signing key. It must not have permissions of its own (jwt
    ``UserScope``)."""
    nats: dict[str, Any] = {"type": "user", "version": 2, "issuer_account": platform_account, "tags": list(tags)}
    claims: Claims = {"iat": issued_at, "name": name, "sub": subject, "nats": nats}
    return claims if expires_at is None else claims | {"exp": expires_at}


def auth_user_claims(
    *,
    subject: str,
    name: str,
    tags: Iterable[str],
    auth_account: str,
    issued_at: int,
    expires_at: int | None = None,
    bearer: bool = False,
    connection_types: Iterable[str] = (),
) -> Claims:
    """A user of the NATS account AUTH, who may request authorization by the auth callout and nothing else.

    ``bearer``: the JWT is enough to connect, without a key that signs the server's nonce (for browsers).
    """
    denied = Permissions(publish=(), subscribe=(), connection_types=tuple(connection_types))
    nats = {"type": "user", "version": 2, "issuer_account": auth_account, "tags": list(tags)} | _template(denied)
    nats |= {"pub": {"deny": [">"]}, "sub": {"deny": [">"]}} | ({"bearer_token": True} if bearer else {})
    claims: Claims = {"iat": issued_at, "name": name, "sub": subject, "nats": nats}
    return claims if expires_at is None else claims | {"exp": expires_at}


def authorization_response_claims(
    *, user_nkey: str, server_id: str, auth_account: str, issued_at: int, jwt: str = "", error: str = ""
) -> Claims:
    """The answer to an auth callout (ADR-26): the user JWT of the connection, or the reason for a refusal.

    ``issuer_account`` is required because a signing key signs it.
    """
    nats = {"type": "authorization_response", "version": 2, "issuer_account": auth_account}
    nats |= {"jwt": jwt} if jwt else {"error": error}
    return {"iat": issued_at, "aud": server_id, "sub": user_nkey, "nats": nats}


def format_creds(jwt: str, seed: str) -> str:
    """The text of a ``.creds`` file, as nsc writes it (jwt ``FormatUserConfig``)."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "NKEY Seed printed below can be used to sign and prove identity.\n"
        "NKEYs are sensitive and should be treated as secrets.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n"
        "*************************************************************\n"
    )


def _template(permissions: Permissions) -> dict[str, Any]:
    """``UserPermissionLimits`` of the jwt library. An empty allow list allows everything, so deny everything
    instead."""
    allow = {"pub": permissions.publish, "sub": permissions.subscribe}
    out: dict[str, Any] = {
        key: {"allow": sorted(subjects)} if subjects else {"deny": [">"]} for key, subjects in allow.items()
    }
    if permissions.connection_types:
        out["allowed_connection_types"] = sorted(permissions.connection_types)
    return out | dict.fromkeys(("subs", "data", "payload"), _NO_LIMIT)


def _json(value: Any) -> bytes:
    return json_text.write_sorted(value)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    """Strict base64url: the standard decoder skips what it does not know, so two texts could be one JWT."""
    data = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if _base64(data) != text:
        raise ValueError("not canonical base64url")
    return data


_ENCODED_HEADER = _base64(_json(_HEADER))
