"""Sign-in at an OpenID provider: the authorization code flow with PKCE, state and nonce.

Sources: OpenID Connect Core 1.0 (3.1), RFC 7636 (PKCE), RFC 9207 (``iss`` in the answer), RFC 9700 (best practice).
The state of a flow is in a cookie of the browser that began it, with a MAC by a key that all hubs have. So any hub can
finish a flow that another began, and nobody can finish in their own browser a flow that began in another. Each flow has
a cookie of its own, named by its ``state``: a second tab, or a second click, does not undo the first.

The issuer and ``sub`` decide whose account it is, never an e-mail that the provider did not verify.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
import ssl
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote_plus, urlsplit

import httpx
from authlib.common.urls import add_params_to_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from natskit.bus.tls_trust import client_context
from natskit.errors import OidcError, SettingsError, SignInError, StateError
from natskit.hub.audit.events import Audit
from natskit.hub.auth.sessions import Sessions, SignedIn
from natskit.hub.config import OidcSettings
from natskit.hub.services.accounts import Accounts
from natskit.hub.state.records import Account
from natskit.hub.state.view import State
from natskit.identity.files import check_private
from natskit.rpc import RpcError
from natskit.validation.names import address_key, domain_of, is_address

log = logging.getLogger(__name__)

FLOW_SECONDS = 600
"""How long a person may take at the provider."""
FLOWS = 8
"""Flows that one browser may have under way, in as many tabs. Each has a cookie of some 400 bytes that goes with every
request to the site, and nginx accepts at most 8 KiB of cookies."""
SKEW_SECONDS = 60
"""How far the provider's clock may be off, in seconds."""
METADATA_SECONDS = 3600
"""How long the provider's addresses and keys are kept."""
AGAIN_SECONDS = 2
"""Pause before asking a provider again that did not answer."""
KEYS_AGAIN_SECONDS = 10
"""For an unknown key the hub fetches the keys again, at most this often: anybody can name a key."""
REQUEST_SECONDS = 8.0
LARGEST_ANSWER = 256 * 1024
AT_ONCE = 32
"""Requests to the provider at the same time."""
VERIFIED = ("email_verified", "xms_edov")
"""Claims that say whether the address in ``email`` is verified: that of Core 5.1, and Entra ID's (optional claims: the
owner of the address's domain was verified)."""
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Signature algorithms that an ID token may use: none of those that the client's secret is enough for."""


class Oidc:
    """Signs people in at the provider of the settings."""

    flow_seconds = FLOW_SECONDS

    def __init__(
        self,
        settings: OidcSettings,
        secret: str,
        cookie_key: bytes,
        state: State,
        accounts: Accounts,
        sessions: Sessions,
        audit: Audit,
    ) -> None:
        self.settings = settings
        self._secret = secret
        self._cookie_key = cookie_key
        self._state = state
        self._accounts = accounts
        self._sessions = sessions
        self._audit = audit
        self._provider = _Provider(settings)

    async def begin(self) -> tuple[str, str, str]:
        """Begin a flow: the provider's address to send the browser to, the flow's name, and its cookie, which must come
        back with the answer."""
        metadata = await self._provider.metadata()
        flow = {name: secrets.token_urlsafe(32) for name in ("state", "nonce", "verifier")}
        url = add_params_to_uri(
            metadata["authorization_endpoint"],
            {
                "response_type": "code",
                "client_id": self.settings.client_id,
                "redirect_uri": self.settings.redirect_url,
                "scope": " ".join(self.settings.scopes),
                "state": flow["state"],
                "nonce": flow["nonce"],
                "code_challenge": create_s256_code_challenge(flow["verifier"]),
                "code_challenge_method": "S256",
            }.items(),
        )
        cookie = seal(flow | {"until": time.time() + FLOW_SECONDS}, self._cookie_key)
        return str(url), self.flow_name(flow["state"]), cookie

    @staticmethod
    def flow_name(state: str) -> str:
        """The name of the flow with this state, which ends the name of its cookie."""
        return hashlib.sha256(state.encode(errors="replace")).hexdigest()[:16]

    def too_many(self, cookies: dict[str, str]) -> list[str]:
        """The names of the flows to end before a new one begins, so that there are at most :data:`FLOWS`."""
        until = {name: (unseal(cookie, self._cookie_key) or {"until": 0})["until"] for name, cookie in cookies.items()}
        return sorted(until, key=lambda name: -until[name])[FLOWS - 1 :]

    async def finish(self, query: dict[str, str], cookie: str, address: str, user_agent: str) -> SignedIn:
        """Open a session for the person whom the provider sent back. Raises :class:`OidcError`."""
        try:
            found = await self._account(query, cookie, address)
            return await self._sessions.open(*found, address, user_agent, "oidc")
        except OidcError as error:
            log.info("sign-in at %s refused: %s %s", self.settings.issuer, error.reason, error.detail)
            self._refused(error.reason, error.account_id, address, user_agent, error.detail)
            raise
        except SignInError as error:
            self._refused(error.reason, error.account_id, address, user_agent)
            raise OidcError(403, error.reason, "This account may not use the platform.") from None
        except (RpcError, StateError) as error:
            log.warning("sign-in at %s failed: %s", self.settings.issuer, error)
            raise OidcError(503, "unavailable", "This is not possible at this moment. Try again in a while.") from None

    async def _account(self, query: dict[str, str], cookie: str, address: str) -> tuple[str, Account]:
        flow = unseal(cookie, self._cookie_key)
        if flow is None or flow["until"] < time.time():
            raise OidcError(
                400,
                "no flow",
                "This sign-in is finished already, took longer than "
                f"{FLOW_SECONDS // 60} minutes, or was begun in another browser.",
            )
        if not hmac.compare_digest(flow["state"].encode(), query.get("state", "").encode(errors="replace")):
            raise OidcError(400, "wrong state", "This is not the answer to the sign-in that this browser began.")
        if query.get("iss", self.settings.issuer) != self.settings.issuer:
            raise OidcError(400, "wrong issuer", "The answer comes from another provider.")
        if "error" in query or not query.get("code"):
            said = re.sub(r"[^a-z_ ]", "", query.get("error", "no code"))[:40]
            raise OidcError(403, f"provider: {said}", f"{self.settings.label} did not let you in ({said}).")
        claims, access_token = await self._provider.exchange(
            query["code"], flow["verifier"], flow["nonce"], self._secret
        )
        subject = claims["sub"]
        if self._state.account_by_external(self._issuer, subject) is None:
            email = await self._verified_email(claims, access_token)
        else:
            email = ""  # known by its subject: the e-mail does not matter any more
        try:
            account_id, account, made = await self._accounts.of_external(
                self._issuer, subject, email, made_by=self._issuer, check=self._check
            )
        except RpcError as error:
            if error.kind == "limit":
                raise
            raise OidcError(403, error.kind, f"{error.message}.") from None
        if made:
            self._audit.record(
                "account_made", account=account_id, by=self._issuer, email=account.email, address=address
            )
        return account_id, account

    @property
    def _issuer(self) -> str:
        return f"oidc {self.settings.issuer}"

    async def _verified_email(self, claims: dict[str, Any], access_token: str) -> str:
        """The verified e-mail of a new person. Raises :class:`OidcError` if there is none."""
        email, why = find_email(claims, self.settings)
        if not email:  # many providers have it only at the userinfo endpoint (Core 5.3)
            email, why = find_email(await self._provider.with_userinfo(claims, access_token), self.settings)
        if not email:
            said = f"{self.settings.label} has no verified e-mail address of you."
            raise OidcError(403, "unverified e-mail", said, detail=why)
        if self.settings.domains and domain_of(email) not in self.settings.domains:
            raise OidcError(403, "domain", "E-mail addresses such as yours have no access here.")
        return email

    def _check(self, account: Account | None) -> None:
        if account is None and not self.settings.make_accounts:
            raise RpcError("forbidden", "Nobody has made an account for you here")
        if account is None:
            return
        if account.disabled:
            raise RpcError("forbidden", "This account is disabled")
        if account.made_by != self._issuer and not self.settings.link_accounts:
            raise RpcError("conflict", "There is an account with your e-mail address: sign in to it as before")

    def _refused(self, reason: str, account_id: str, address: str, user_agent: str, detail: str = "") -> None:
        self._audit.record_of_stranger(
            "sign_in",
            reason=reason,
            account=account_id,
            address=address,
            via="oidc",
            user_agent=user_agent,
            detail=detail,
        )


class _Provider:
    """Requests to the provider. Every method raises :class:`OidcError`."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._context: ssl.SSLContext | None = None
        self._metadata: dict[str, Any] = {}
        self._metadata_until = self._again_at = 0.0
        self._failure: OidcError | None = None
        self._keys: KeySet | None = None
        self._keys_asked = -float(KEYS_AGAIN_SECONDS)
        self._asking = asyncio.Lock()
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def metadata(self) -> dict[str, Any]:
        """The provider's metadata, cached for an hour, and longer while the provider does not answer."""
        async with self._asking:
            if time.monotonic() < self._metadata_until:
                return self._metadata
            if self._failure is not None and time.monotonic() < self._again_at:
                raise self._failure  # this caller waited for the same answer
            try:
                self._metadata, self._failure = await self._discover(), None
            except OidcError as error:
                self._again_at = time.monotonic() + AGAIN_SECONDS
                if not self._metadata:
                    self._failure = error
                    raise
                self._metadata_until = self._again_at
            else:
                self._metadata_until = time.monotonic() + METADATA_SECONDS
            return self._metadata

    async def _discover(self) -> dict[str, Any]:
        found = await self._json("GET", self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != self._settings.issuer:
            raise self._broken(f"it says that it is {str(found.get('issuer'))[:100]!r}")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not self._may_be_asked(found.get(name)):
                raise self._broken(f"its {name} is not an https address")
        return found

    async def exchange(self, code: str, verifier: str, nonce: str, secret: str) -> tuple[dict[str, Any], str]:
        """The claims of the ID token for a code, and the access token."""
        metadata = await self.metadata()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._settings.redirect_url,
            "code_verifier": verifier,
        }
        methods = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        headers = {}
        if "client_secret_basic" in methods:
            headers["Authorization"] = _basic(self._settings.client_id, secret)
        else:
            form |= {"client_id": self._settings.client_id, "client_secret": secret}
        answer = await self._json("POST", metadata["token_endpoint"], headers, form)
        token, access_token = answer.get("id_token"), answer.get("access_token")
        if not isinstance(token, str) or not isinstance(access_token, str):
            raise self._broken("its answer has no ID token")
        supported = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        algorithms = [name for name in ALGORITHMS if name in supported]
        expected = {"issuer": self._settings.issuer, "client_id": self._settings.client_id, "nonce": nonce}
        try:
            try:
                claims = check_id_token(token, await self._key_set(), algorithms, access_token, time.time(), **expected)
            except (InvalidKeyIdError, BadSignatureError):  # the provider has new keys, perhaps under the old names
                keys = await self._key_set(anew=True)
                claims = check_id_token(token, keys, algorithms, access_token, time.time(), **expected)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise OidcError(
                403, "wrong ID token", f"What {self._settings.label} said of you is not valid.", detail=str(error)[:200]
            ) from None
        return claims, access_token

    async def with_userinfo(self, claims: dict[str, Any], access_token: str) -> dict[str, Any]:
        """The claims, with those about the e-mail from the userinfo endpoint (Core 5.3)."""
        url = (await self.metadata()).get("userinfo_endpoint")
        if not isinstance(url, str) or not self._may_be_asked(url):
            return claims
        more = await self._json("GET", url, {"Authorization": f"Bearer {access_token}"})
        if more.get("sub") != claims["sub"]:  # Core 5.3.2
            raise OidcError(403, "wrong userinfo", f"What {self._settings.label} said of you is not valid.")
        taken = [name for name in self._settings.email_claims if name != "email"]
        if "email" in more and ("email" not in claims or _is_verified(claims) is None):
            # A statement about verification is about the address beside it, never about the one in the ID token.
            claims = {name: value for name, value in claims.items() if name not in VERIFIED}
            taken += ["email", *VERIFIED]
        return claims | {name: more[name] for name in taken if name in more}

    async def _key_set(self, anew: bool = False) -> KeySet:
        metadata = await self.metadata()
        async with self._asking:
            age = time.monotonic() - self._keys_asked
            if self._keys is None or age >= (KEYS_AGAIN_SECONDS if anew else METADATA_SECONDS):
                self._keys_asked = time.monotonic()
                self._keys = key_set((await self._json("GET", metadata["jwks_uri"])).get("keys"))
            return self._keys

    async def _json(
        self, method: str, url: str, headers: dict[str, str] | None = None, form: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """A request for a JSON object. Follows no redirect and uses no proxy of the environment."""
        if self._context is None:
            self._context = client_context(self._settings.ca_file)
        wanted = {"Accept": "application/json", **(headers or {})}
        body = b""
        try:
            async with (
                self._slots,
                asyncio.timeout(REQUEST_SECONDS),
                httpx.AsyncClient(verify=self._context, trust_env=False, timeout=REQUEST_SECONDS) as client,
                client.stream(method, url, headers=wanted, data=form) as answer,
            ):
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > LARGEST_ANSWER:
                        raise self._broken(f"its answer is longer than {LARGEST_ANSWER} bytes")
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            log.warning("%s %s: %s", method, url, str(error) or type(error).__name__)
            raise OidcError(
                502, "provider down", f"{self._settings.label} does not answer at this moment. Try again in a while."
            ) from None
        try:
            parsed = json.loads(body)
        except ValueError:
            parsed = None
        if form is not None and 400 <= answer.status_code < 500 and isinstance(parsed, dict):
            said = re.sub(r"[^a-z_]", "", str(parsed.get("error")))[:40]
            if said in ("invalid_client", "unauthorized_client"):
                raise self._broken(f"it does not let this client in, or not with this secret: {said}")
            raise OidcError(403, f"code refused: {said}", "This sign-in was used already, or was not begun here.")
        if answer.status_code != 200 or not isinstance(parsed, dict):
            raise self._broken(f"{urlsplit(url).path} answered {answer.status_code}, and not with a JSON object")
        return parsed

    def _may_be_asked(self, url: Any) -> bool:
        """Whether an address has https or the issuer's scheme: settings allow http only for an issuer on this
        machine."""
        return isinstance(url, str) and urlsplit(url).scheme in ("https", urlsplit(self._settings.issuer).scheme)

    def _broken(self, why: str) -> OidcError:
        log.error("the provider %s is misconfigured: %s", self._settings.issuer, why)
        return OidcError(
            502, "provider broken", f"{self._settings.label} is misconfigured. Please tell the operator of this site."
        )


def find_email(claims: dict[str, Any], settings: OidcSettings) -> tuple[str, str]:
    """The e-mail address to trust, or an empty text and the reason why there is none.

    An address in ``email`` is trusted if the provider says that it is verified. In the domains of ``verified_domains``
    it is also trusted if the provider says nothing about it, and so is an address in another claim. An address that the
    provider calls unverified is never trusted: people who can choose their address there could sign in as others.
    """
    why = []
    said = claims.get("email")
    for name in settings.email_claims:
        email = claims.get(name)
        if not isinstance(email, str) or not is_address(email):
            why.append(f"no address in {name}")
            continue
        verified = _is_verified(claims) if name == "email" else None
        # An address that one claim calls unverified is unverified in the others too.
        if _is_verified(claims) is False and isinstance(said, str) and address_key(email) == address_key(said):
            verified = False
        if verified or (verified is None and domain_of(email) in settings.verified_domains):
            return email, ""
        if verified is False:
            why.append(f"{name} is not verified")
        else:
            why.append(
                f"nothing says that {name} is verified, and {domain_of(email)[:80]} is not in its verified domains"
            )
    return "", "; ".join(why)


def _is_verified(claims: dict[str, Any]) -> bool | None:
    """Whether the provider says that the address in ``email`` is verified; ``None`` if it says nothing.

    Core 5.1 has a JSON boolean. Cognito writes a text, and Entra ID a text or a number.
    """
    said = [str(claims[name]).strip().lower() for name in VERIFIED if claims.get(name) is not None]
    return all(word in ("true", "1") for word in said) if said else None


def check_id_token(
    token: str,
    keys: KeySet,
    algorithms: Iterable[str],
    access_token: str,
    now: float,
    *,
    issuer: str,
    client_id: str,
    nonce: str,
) -> dict[str, Any]:
    """The claims of an ID token for this client and this flow (Core 3.1.3.7).

    Raises what joserfc raises, :class:`InvalidKeyIdError` for a key that is not among ``keys``.
    """
    decoded = jwt.decode(token, keys, registry=JWSRegistry(algorithms=list(algorithms), strict_check_header=False))
    options: Any = {"iss": {"essential": True, "value": issuer}, "aud": {"essential": True, "value": client_id}}
    params = {"nonce": nonce, "client_id": client_id, "access_token": access_token}
    claims = CodeIDToken(decoded.claims, decoded.header, options, params)
    claims.validate(now=int(now), leeway=SKEW_SECONDS)
    if not isinstance(claims["sub"], str) or not 1 <= len(claims["sub"]) <= 255:
        raise ValueError("sub is not a text of 1 to 255 characters")
    return dict(claims)


def key_set(keys: Any) -> KeySet:
    """The public signing keys of a JWKS. Other keys, and unreadable ones, are left out."""
    found = []
    for key in keys if isinstance(keys, list) else []:
        if isinstance(key, dict) and key.get("kty") in ("RSA", "EC") and key.get("use", "sig") == "sig":
            try:
                found += KeySet.import_key_set({"keys": [key]}).keys
            except (JoseError, ValueError, TypeError, KeyError) as error:
                log.warning("a key of the OpenID provider cannot be read: %s", type(error).__name__)
    return KeySet(found)


def client_secret(settings: OidcSettings) -> str:
    """The client's secret, from its file. Raises :class:`NatskitError`, whose message has nothing of its content."""
    check_private(settings.client_secret)
    try:
        secret = settings.client_secret.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{settings.client_secret} cannot be read: {type(error).__name__}") from None
    if not secret:
        raise SettingsError(f"{settings.client_secret} is empty: it has to hold the client's secret")
    return secret


def cookie_key(seed: str) -> bytes:
    """The key for the MAC of flow cookies, derived from a secret that all hubs have."""
    return hmac.digest(seed.encode(), b"natskit oidc flow", hashlib.sha256)


def seal(flow: dict[str, Any], key: bytes) -> str:
    """A flow as a cookie."""
    body = base64.urlsafe_b64encode(json.dumps(flow).encode()).rstrip(b"=")
    return f"{body.decode()}.{hmac.digest(key, body, hashlib.sha256).hex()}"


def unseal(cookie: str, key: bytes) -> dict[str, Any] | None:
    """The flow in a cookie; ``None`` if no hub made the cookie."""
    body, _, mac = cookie.encode(errors="replace").partition(b".")
    if not hmac.compare_digest(hmac.digest(key, body, hashlib.sha256).hex().encode(), mac):
        return None
    flow: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    return flow


def _basic(client_id: str, secret: str) -> str:
    """The header for HTTP basic authentication. RFC 6749, 2.3.1: both parts are form-encoded first."""
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
    return "Basic " + base64.b64encode(pair.encode()).decode()
