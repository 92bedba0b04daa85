"""Trusted backends: a site with accounts of its own signs its people in here, with a token that can do nothing else.

``POST /api/backend/session`` answers with the cookie to set, for a backend that answers under the platform's own host
name. ``POST /api/backend/ticket`` answers with an address to send the browser to, for any other site; it is good once
and for a minute, and the session is opened when the browser comes. A hub knows the SHA-256 of each token, which has 256
random bits, so nothing slower is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from typing import Any

from natskit.hub.audit.events import Audit
from natskit.hub.auth.sessions import Sessions, SignedIn
from natskit.hub.config import BackendEntry
from natskit.hub.services.accounts import Accounts
from natskit.hub.state.records import Account
from natskit.rpc import RpcError
from natskit.validation.names import address_form

LARGEST_BODY = 8192
TICKET_SECONDS = 60
TOKEN_PREFIX = "natskit-backend-"  # noqa: S105
"""A prefix by which scanners for leaked secrets recognise a token."""


def new_token() -> str:
    """A token: 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """The digest of a token, which hubs know instead of the token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class Backends:
    """Authenticates the backends of the settings and opens sessions for them."""

    def __init__(self, entries: dict[str, BackendEntry], accounts: Accounts, sessions: Sessions, audit: Audit) -> None:
        self._entries = entries
        self._accounts = accounts
        self._sessions = sessions
        self._audit = audit

    def authenticate(self, authorization: str, address: str) -> str | None:
        """The name of the backend whose token a request carries; ``None`` if none does, or it comes from elsewhere."""
        scheme, _, token = authorization.partition(" ")
        presented, found = digest(token.strip()), None
        for name, entry in self._entries.items():  # compare with all of them: the time must not tell which one it is
            if hmac.compare_digest(presented, entry.sha256) and scheme.lower() == "bearer":
                found = name
        if found is not None and not _is_in(address, self._entries[found].networks):
            self._audit.record_of_stranger("backend", reason="network", by=f"backend {found}", address=address)
            return None
        if found is None:
            self._audit.record_of_stranger("backend", reason="token", address=address)
        return found

    async def open_session(self, name: str, body: dict[str, Any], address: str) -> tuple[SignedIn, bool]:
        """A session for the account that a backend names, and whether the account was made now. Raises
        :class:`RpcError` and :class:`SignInError`."""
        account_id, account, made = await self._account(name, body, address)
        theirs, agent = _text(body, "address"), _text(body, "user_agent")
        signed_in = await self._sessions.open(account_id, account, theirs, agent, f"backend {name}")
        self._note("backend_session", name, account_id, address, session_id=signed_in.session_id, made=made or None)
        return signed_in, made

    async def ticket(self, name: str, body: dict[str, Any], address: str) -> tuple[str, str, bool]:
        """A ticket for the account that a backend names, the account's id, and whether it was made now. Raises
        :class:`RpcError`."""
        account_id, account, made = await self._account(name, body, address)
        ticket = await self._sessions.reserve(account_id, account, f"backend {name}", TICKET_SECONDS)
        self._note("backend_ticket", name, account_id, address, session_id=ticket.partition(".")[0], made=made or None)
        return ticket, account_id, made

    async def _account(self, name: str, body: dict[str, Any], address: str) -> tuple[str, Account, bool]:
        email, subject = _text(body, "email"), _text(body, "id")
        unknown = set(body) - {"email", "id", "address", "user_agent"}
        if not email or unknown:
            known = "email, id, address and user_agent, which are texts; email is needed"
            raise RpcError("invalid_params", f"a request for a session has the members {known}")
        made_by = f"backend {name}"

        def check(account: Account | None) -> None:
            if account is not None and account.made_by != made_by and self._entries[name].accounts != "all":
                raise RpcError("conflict", f"{email[:80]!r} is an account that this backend did not create")
            if account is not None and account.disabled:
                raise RpcError("forbidden", "the account is disabled")

        try:
            who = f"id {subject}" if subject else self._known_by(made_by, email)
            return await self._accounts.of_external(made_by, who, email, made_by=made_by, check=check)
        except RpcError as error:
            self._audit.record_of_stranger(
                "backend_session", reason=error.kind, by=made_by, email=email, address=address
            )
            raise

    def _known_by(self, made_by: str, email: str) -> str:
        """The subject of a person that a backend names by e-mail alone, in which case never mattered."""
        return self._accounts.known_by(made_by, [f"email {address_form(email)}", f"email {email.strip().lower()}"])

    def _note(self, kind: str, name: str, account_id: str, address: str, **fields: Any) -> None:
        self._audit.record_of_account(kind, account=account_id, by=f"backend {name}", address=address, **fields)


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key, "")
    if not isinstance(value, str) or len(value) > 320:
        raise RpcError("invalid_params", f"{key} must be a text of at most 320 characters")
    return value


def _is_in(address: str, networks: list[str]) -> bool:
    if not networks:
        return True
    try:
        return any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in networks)
    except ValueError:
        return False
