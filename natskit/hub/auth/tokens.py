"""The JWTs that a hub signs: answers to the auth callout, browsers' cookies, and the user JWTs of project agents."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, NamedTuple

from natskit.bus.permissions import check_id
from natskit.errors import ClaimsError
from natskit.hub.auth.signer import Signer
from natskit.hub.state.records import Session
from natskit.hub.state.view import Holder, Rights
from natskit.identity import claims, nkey
from natskit.identity.identity import HubKeys

_CACHED = 20_000
"""Verified JWTs that are cached: when all clients reconnect, the same ones come again."""


class Ticket(NamedTuple):
    """What an AUTH user JWT says: its holder, public key and time of issue, and whether it is a bearer token."""

    holder: Holder
    public_key: str
    issued_at: int
    bearer: bool


class Tokens:
    """Signs with the keys of :class:`HubKeys`, and verifies what any hub signed with them."""

    def __init__(self, keys: HubKeys, ttl: int) -> None:
        self._ttl = ttl
        self.use(keys)

    def use(self, keys: HubKeys) -> None:
        """Sign with these keys from now on."""
        self.platform_account = keys.platform_account
        self._auth_account = keys.auth_account
        self._auth = Signer(keys.auth_signing_seed)
        self._accepted = {self._auth.public_key.decode(): 0} | keys.accepted
        self._scoped = {role: Signer(seed) for role, seed in keys.platform_seeds.items()}
        self._verified: dict[str, dict[str, Any]] = {}

    def holder(self, token: str, now: int) -> Ticket:
        """The holder of an AUTH user JWT. Raises :class:`ClaimsError`."""
        body = self._verified.get(token)
        if body is None or 0 < body.get("exp", 0) <= now:
            self._verified.pop(token, None)
            body = claims.verify(token, issuers=self._accepted, now=now)
            if len(self._verified) >= _CACHED:
                self._verified.clear()
            self._verified[token] = body
        # nats-server refuses JWTs that a retired key signed. Cookies also come over HTTP, so this checks them.
        if claims.tag(body, "kind") == "browser" and 0 < self._accepted[body["iss"]] <= now:
            raise ClaimsError("the cookie is signed by a retired key")
        identifier, kind = str(body.get("name", "")), claims.tag(body, "kind")
        try:
            check_id(identifier, "the name")
            session_id = check_id(claims.tag(body, "session") or "", "the session") if kind == "browser" else "-"
        except Exception as error:
            raise ClaimsError(f"the JWT names no holder: {error}") from None
        if kind not in ("browser", "project", "runner"):
            raise ClaimsError("the JWT has no kind")
        holder = Holder(kind, identifier, session_id)  # type: ignore[arg-type]
        bearer = body.get("nats", {}).get("bearer_token") is True
        return Ticket(holder, str(body.get("sub", "")), int(body.get("iat", 0)), bearer)

    def grant(self, holder: Holder, rights: Rights, user_nkey: str, now: int) -> str:
        """The PLATFORM user JWT of a holder: with the scope of its role, the tags of its rights, and an expiry."""
        expires_at = now + int(self._ttl * random.uniform(0.9, 1.1))  # spreads the renewals
        if rights.expires_at is not None:
            expires_at = max(now + 1, min(expires_at, int(rights.expires_at)))
        user = claims.platform_user_claims(
            subject=user_nkey,
            name=rights.name,
            tags=rights.tags,
            platform_account=self.platform_account,
            issued_at=now,
            expires_at=expires_at,
        )
        return claims.encode(user | {"jti": user_nkey}, self._scoped[holder.kind])

    def response(self, *, user_nkey: str, server_id: str, now: int, jwt: str = "", error: str = "") -> bytes:
        """The signed answer to a callout.

        The nkey is new for each callout (ADR-26), so it serves as the id of both JWTs. The hash of the claims, which
        nats-io/jwt takes, would cost another encoding of them; nats-server does not look at it.
        """
        body = claims.authorization_response_claims(
            user_nkey=user_nkey,
            server_id=server_id,
            auth_account=self._auth_account,
            issued_at=now,
            jwt=jwt,
            error=error,
        )
        return claims.encode(body | {"jti": user_nkey}, self._auth).encode()

    def cookie(self, session_id: str, session: Session, now: int) -> str:
        """A browser's bearer JWT. Its key is thrown away: bearer tokens never sign."""
        return self._ticket(
            nkey.public_key(nkey.create_seed("user")),
            session.account_id,
            ("kind:browser", f"session:{session_id}"),
            now,
            expires_at=int(session.expires_at),
            bearer=True,
            connection_types=("WEBSOCKET",),
        )

    def project_jwt(self, project_id: str, public_key: str, now: int) -> str:
        """The JWT of a project's agent. The runner makes and keeps the key."""
        return self._ticket(public_key, project_id, ("kind:project",), now)

    def _ticket(
        self,
        subject: str,
        name: str,
        tags: Iterable[str],
        now: int,
        *,
        expires_at: int | None = None,
        bearer: bool = False,
        connection_types: Iterable[str] = (),
    ) -> str:
        user = claims.auth_user_claims(
            subject=subject,
            name=name,
            tags=tags,
            auth_account=self._auth_account,
            issued_at=now,
            expires_at=expires_at,
            bearer=bearer,
            connection_types=connection_types,
        )
        return claims.encode(user, self._auth)
