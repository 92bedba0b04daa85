"""The JWTs a hub signs: answers to the auth callout, browsers' cookies, and projects' tickets to the door."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, NamedTuple

from natskit.errors import ClaimsError
from natskit.hub.records import Session
from natskit.hub.state import Holder, Rights
from natskit.identity import HubKeys, claims, nkey
from natskit.permissions import check_id

_CACHED = 20_000
"""Verified JWTs remembered: in a storm of reconnects the same ones come again."""


class Ticket(NamedTuple):
    """What an AUTH user JWT says: whose it is, its public key, when it was made, and whether holding it is enough."""

    holder: Holder
    public_key: str
    issued_at: int
    bearer: bool


class Tokens:
    """Signs with the keys of :class:`HubKeys`, and reads back what any hub signed with them."""

    def __init__(self, keys: HubKeys, ttl: int) -> None:
        self._ttl = ttl
        self.use(keys)

    def use(self, keys: HubKeys) -> None:
        """Sign with these from now on."""
        self.platform_account = keys.platform_account
        self._auth_account = keys.auth_account
        self._auth = nkey.key_pair(keys.auth_signing_seed)
        self._accepted = {self._auth.public_key.decode(): 0} | keys.accepted
        self._scoped = {role: nkey.key_pair(seed) for role, seed in keys.platform_seeds.items()}
        self._verified: dict[str, dict[str, Any]] = {}

    def holder(self, token: str, now: int) -> Ticket:
        """Who an AUTH user JWT belongs to. Raises :class:`ClaimsError`."""
        body = self._verified.get(token)
        if body is None or 0 < body.get("exp", 0) <= now:
            self._verified.pop(token, None)
            body = claims.verify(token, issuers=self._accepted, now=now)
            if len(self._verified) >= _CACHED:
                self._verified.clear()
            self._verified[token] = body
        # nats-server has refused by now what is signed by a key that is out; a cookie also comes over HTTP.
        if claims.tag(body, "kind") == "browser" and 0 < self._accepted[body["iss"]] <= now:
            raise ClaimsError("a cookie is signed by a key that is out")
        identifier, kind = str(body.get("name", "")), claims.tag(body, "kind")
        try:
            check_id(identifier, "the name")
            session_id = check_id(claims.tag(body, "session") or "", "the session") if kind == "browser" else "-"
        except Exception as error:
            raise ClaimsError(f"a JWT names nobody: {error}") from None
        if kind not in ("browser", "project", "runner"):
            raise ClaimsError("a JWT says no kind")
        holder = Holder(kind, identifier, session_id)  # type: ignore[arg-type]
        bearer = body.get("nats", {}).get("bearer_token") is True
        return Ticket(holder, str(body.get("sub", "")), int(body.get("iat", 0)), bearer)

    def grant(self, holder: Holder, rights: Rights, user_nkey: str, now: int) -> str:
        """The PLATFORM user JWT of a holder: the scope of its role, the tags of its rights, a limited time."""
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
        return claims.encode(user, self._scoped[holder.kind])

    def response(self, *, user_nkey: str, server_id: str, now: int, jwt: str = "", error: str = "") -> bytes:
        """The signed answer to a callout."""
        body = claims.authorization_response_claims(
            user_nkey=user_nkey,
            server_id=server_id,
            auth_account=self._auth_account,
            issued_at=now,
            jwt=jwt,
            error=error,
        )
        return claims.encode(body, self._auth).encode()

    def cookie(self, session_id: str, session: Session, now: int) -> str:
        """A browser's bearer JWT. Its key is made here and thrown away: a bearer never signs."""
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
        """The JWT of a project's agent, whose key the runner made and keeps."""
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
