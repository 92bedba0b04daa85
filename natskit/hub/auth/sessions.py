"""Sessions: records in the state that say who is signed in, where, and until when. A cookie only names a session."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from natskit.bus.permissions import check_id
from natskit.errors import ClaimsError, NatskitError, OtherAccountError, SignInError
from natskit.hub.auth.passwords import Passwords
from natskit.hub.auth.tokens import Tokens
from natskit.hub.auth.user_agent import describe, is_browser
from natskit.hub.config import SessionSettings
from natskit.hub.state.records import Account, Session, email_key
from natskit.hub.state.view import AccountRecord, State
from natskit.hub.timestamp import iso
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

SLIDE_SECONDS = 60
"""A session is prolonged at most this often, so that a busy tab does not write all the time."""
TICKET_KEPT_SECONDS = 60
"""How much longer than a ticket its record is kept, so that a late user is told that the ticket is too old."""
MAX_SESSIONS = 100
"""Sessions of one account. To make room, the least important one ends: sessions of programs before those of browsers,
sessions without a connection before others, and among these the one last seen longest ago."""
MOST_CONNECTION_CHECKS = 20
"""How many sessions are checked for connections. If all have some, the first of them ends."""


@dataclass(frozen=True)
class SignedIn:
    """A session that was just checked, and the cookie that names it."""

    session_id: str
    session: Session
    account: Account
    cookie: str


class Sessions:
    """Opens, checks, prolongs and ends sessions."""

    def __init__(
        self,
        state: State,
        tokens: Tokens,
        passwords: Passwords,
        settings: SessionSettings,
        disconnect_now: Callable[[set[str]], None],
        is_connected: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._state = state
        self._disconnect_now = disconnect_now
        self._is_connected = is_connected
        self._tokens = tokens
        self._passwords = passwords
        self._settings = settings

    async def sign_in(
        self, email: str, password: str, address: str, user_agent: str, attempt: str | None = None
    ) -> SignedIn:
        """Open a session. Raises :class:`SignInError`, the same for every reason and after the same work.

        A client that repeats a request because its answer was lost names the same ``attempt``, an id of its choice: it
        gets the session that the first request opened.
        """
        await self._state.wait_current(2)
        found = self._state.account_by_email(email)
        stored = (found[1].password_hash or None) if found else None
        disabled = found is not None and found[1].disabled
        who = f"{email_key(email)} {address}"
        right, renewed = await self._passwords.verify(stored, password, who, in_vain=disabled)
        if found is None or not right or disabled:
            raise _refused(found, right)
        signed_in = await self.open(*found, address, user_agent, "password", attempt)
        if renewed is not None:
            await self._renew(*found, renewed)
        return signed_in

    async def _renew(self, account_id: str, account: Account, renewed: str) -> None:
        """Replace the hash of a password by one with the cost of the settings, unless the password has changed
        meanwhile. If that fails, the person is signed in nevertheless, and the next sign-in tries again."""

        def mutate(old: AccountRecord | None) -> AccountRecord | None:
            if isinstance(old, Account) and old.password_hash == account.password_hash:
                return replace(old, password_hash=renewed)
            return old

        try:
            await self._state.accounts.change(account_id, mutate)
        except NatskitError as error:
            log.warning("the password of account %s keeps its old hash: %s", account_id, error)

    async def open(
        self, account_id: str, account: Account, address: str, user_agent: str, via: str, attempt: str | None = None
    ) -> SignedIn:
        """Open a session for an account that was just authenticated, or find the one that the same ``attempt`` opened.
        Raises :class:`SignInError` if the account may no longer sign in."""
        now = time.time()
        session = self._new(account_id, account.session_epoch, now, address, user_agent, via)
        # Derived from the account as well, so that no attempt of one account names a session of another.
        session_id = str(uuid.uuid5(uuid.UUID(account_id), attempt) if attempt is not None else uuid.uuid4())
        await self._make_room(account_id)

        def opened(old: Session | None) -> Session:
            return old if old is not None and old.epoch == session.epoch else session

        session = await self._store(session_id, opened, session.expires_at) or session
        if self._state.live_session(session_id) is None:
            # The account was disabled, or its password changed, while this one was verified: the epoch is an earlier
            # one.
            await self.end(session_id)
            changed = self._state.account(account_id)
            raise _refused((account_id, changed) if changed else None, right=True)
        return SignedIn(session_id, session, account, self._tokens.cookie(session_id, session, int(now)))

    async def reserve(self, account_id: str, account: Account, via: str, seconds: int) -> str:
        """A ticket that opens a session of the account once, within ``seconds``, in any browser."""
        secret, session_id, now = secrets.token_urlsafe(32), str(uuid.uuid4()), time.time()
        session = self._new(account_id, account.session_epoch, now, "", "", via)
        await self._make_room(account_id)
        held = replace(session, ticket=_digest(secret), expires_at=now + seconds)
        await self._store(session_id, lambda _: held, now + seconds + TICKET_KEPT_SECONDS)
        return f"{session_id}.{secret}"

    async def enter(self, ticket: str, address: str, user_agent: str) -> SignedIn:
        """Open the session of a ticket, which is used up by that. Raises :class:`SignInError`."""
        session_id, _, secret = ticket.partition(".")
        held = await self._state.sessions.find(session_id)
        if held is None or not held.ticket or not hmac.compare_digest(held.ticket, _digest(secret)):
            raise SignInError("this address was used already, or is wrong", reason="unknown ticket")
        account, now = self._state.account(held.account_id), time.time()
        if account is None or not account.lets_in(session_id, held):
            raise SignInError("this account may not use the platform", reason="disabled", account_id=held.account_id)
        if held.expires_at <= now:
            raise SignInError("this address is too old", reason="old ticket", account_id=held.account_id)
        opened = self._new(held.account_id, held.epoch, now, address, user_agent, held.via)

        def use(old: Session | None) -> Session:
            if old is None or old.ticket != held.ticket:
                raise SignInError("this address was used already, or is wrong", reason="used ticket")
            return opened

        await self._store(session_id, use, opened.expires_at)
        if self._state.live_session(session_id) is None:
            await self.end(session_id)
            raise SignInError("the session has ended", reason="ended meanwhile", account_id=held.account_id)
        return SignedIn(session_id, opened, account, self._tokens.cookie(session_id, opened, int(now)))

    def _new(self, account_id: str, epoch: int, now: float, address: str, user_agent: str, via: str) -> Session:
        absolute = now + self._settings.absolute_seconds
        return Session(
            account_id=account_id,
            created_at=now,
            expires_at=min(now + self._settings.sliding_seconds, absolute),
            absolute_expires_at=absolute,
            epoch=epoch,
            address=address[:64],
            user_agent=user_agent[:256],
            last_seen=now,
            via=via,
        )

    async def check(self, cookie: str, meant: str | None = None) -> tuple[str, Session, Account]:
        """The live session that a cookie names. Raises :class:`SignInError`.

        ``meant`` is the account that the session should belong to, if the caller says so. All tabs of a browser share
        one cookie, and another person may have signed in in another tab: this raises :class:`OtherAccountError` then.
        """
        now = time.time()
        try:
            holder = self._tokens.holder(cookie, int(now)).holder
        except ClaimsError:
            raise SignInError("the session has ended; sign in again") from None
        await self._state.sessions.find(holder.session_id)
        live = self._state.live_session(holder.session_id)
        if holder.kind != "browser" or live is None or live[0].account_id != holder.id:
            raise SignInError("the session has ended; sign in again")
        if meant is not None and meant != holder.id:
            raise OtherAccountError("somebody else has signed in in this browser")
        return holder.session_id, *live

    async def slide(self, cookie: str, meant: str | None = None) -> SignedIn:
        """Check a session and prolong it. Raises what :meth:`check` does."""
        session_id, session, account = await self.check(cookie, meant)
        now = time.time()
        if now - session.last_seen >= min(SLIDE_SECONDS, self._settings.sliding_seconds / 10):
            until = min(now + self._settings.sliding_seconds, session.absolute_expires_at)
            slid = replace(session, expires_at=until, last_seen=now)
            stored = await self._store(session_id, lambda old: slid if old is not None else None, until)
            if stored is None:
                raise SignInError("the session has ended; sign in again")
            session = stored
        return SignedIn(session_id, session, account, self._tokens.cookie(session_id, session, int(now)))

    async def end(self, session_id: str) -> None:
        """End one session. Its connections end a little later, so that a caller on one of them gets the answer."""
        await self._state.sessions.change(session_id, lambda _: None)

    async def end_now(self, session_id: str) -> None:
        """End one session, and its connections at once."""
        names = self._state.names_of_session(session_id)
        await self.end(session_id)
        self._disconnect_now(names)

    async def own(self, account_id: str, session_id: str) -> Session:
        """A session of this account. Raises the same :class:`RpcError` for other accounts' sessions and missing
        ones."""
        try:
            session = await self._state.sessions.find(check_id(session_id, "session_id"))
        except NatskitError as error:
            raise RpcError("invalid_params", str(error)) from None
        if session is None or session.account_id != account_id:
            raise RpcError("not_found", "you have no such session")
        return session

    async def forget(self, account_id: str) -> None:
        """Remove the records of the sessions that a change of the account's epoch has ended."""
        over = {s for s in self._state.sessions_of(account_id) if self._state.live_session(s) is None}
        await asyncio.gather(*(self.end(session_id) for session_id in over))

    def describe(self, account_id: str, mine: str | None) -> list[dict[str, Any]]:
        """The live sessions of an account as the API shows them, the last seen first.

        ``mine`` is the caller's session. If it is ``None`` (not known), so is ``mine`` of each session.
        """
        live = [(s, found[0]) for s in self._state.sessions_of(account_id) if (found := self._state.live_session(s))]
        return [
            {
                "session_id": session_id,
                "device": describe(session.user_agent),
                "address": session.address,
                "created_at": iso(session.created_at),
                "last_seen": iso(session.last_seen),
                "expires_at": iso(session.expires_at),
                "mine": session_id == mine if mine is not None else None,
            }
            for session_id, session in sorted(live, key=lambda item: (-item[1].last_seen, item[0]))
        ]

    async def _make_room(self, account_id: str) -> None:
        held = {s: session for s in self._state.sessions_of(account_id) if (session := self._state.sessions.get(s))}
        while len(held) >= MAX_SESSIONS:
            session_id = await self._least_important(held)
            del held[session_id]
            await self.end(session_id)

    async def _least_important(self, held: dict[str, Session]) -> str:
        kinds = {session_id: self._kind(session_id, session) for session_id, session in held.items()}
        least = min(kinds.values())
        alike = sorted((s for s in held if kinds[s] == least), key=lambda s: (held[s].last_seen, s))
        for session_id in alike[:MOST_CONNECTION_CHECKS]:
            names = self._state.names_of_session(session_id)
            if least == 0 or not any([await self._is_connected(name) for name in names]):
                return session_id
        return alike[0]

    def _kind(self, session_id: str, session: Session) -> int:
        """0: a session that has ended; 1: of a program; 2: of a browser, or of a ticket that will open one."""
        if session.ticket and session.expires_at > time.time():
            return 2
        if self._state.live_session(session_id) is None:
            return 0
        return 2 if is_browser(session.user_agent) else 1

    async def _store(
        self, session_id: str, mutate: Callable[[Session | None], Session | None], until: float
    ) -> Session | None:
        """Write a session that JetStream removes at ``until`` (Unix time).

        All hubs hear of that at the same time and end its connections: one clock decides for all of them.
        """
        seconds = max(1, math.ceil(until - time.time()))
        return await self._state.sessions.change(session_id, mutate, ttl=f"{seconds}s")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _refused(found: tuple[str, Account] | None, right: bool) -> SignInError:
    """The message is always the same. The reason is for the audit."""
    reason = "unknown e-mail" if found is None else "disabled" if found[1].disabled and right else "wrong password"
    account_id = found[0] if found is not None else "-"
    return SignInError("the e-mail or the password is wrong", reason=reason, account_id=account_id)
