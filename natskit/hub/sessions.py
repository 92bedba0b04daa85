"""Sessions: who is signed in where, and until when. A session is a record in the state; the cookie only names it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from natskit.errors import ClaimsError, NatskitError, SignInError
from natskit.hub.device import describe
from natskit.hub.passwords import Passwords
from natskit.hub.program import SessionSettings
from natskit.hub.projects import iso
from natskit.hub.records import Account, Session
from natskit.hub.state import State
from natskit.hub.tokens import Tokens
from natskit.permissions import check_id
from natskit.rpc import RpcError

SLIDE_SECONDS = 60
"""A session slides at most this often, so that a busy tab does not write all the time."""
KEPT_SECONDS = 60
"""The record outlives the session by this much, so that no clock decides."""
MOST = 100
"""Live sessions of one account; the oldest makes room."""


@dataclass(frozen=True)
class SignedIn:
    """A session that was just checked, and the cookie that names it."""

    session_id: str
    session: Session
    account: Account
    cookie: str


class Sessions:
    """Signs in, checks, slides and ends."""

    def __init__(
        self,
        state: State,
        tokens: Tokens,
        passwords: Passwords,
        settings: SessionSettings,
        cut_now: Callable[[set[str]], None],
    ) -> None:
        self._state = state
        self._cut_now = cut_now
        self._tokens = tokens
        self._passwords = passwords
        self._settings = settings

    async def sign_in(self, email: str, password: str, address: str, user_agent: str) -> SignedIn:
        """Open a session. Raises :class:`SignInError`, the same for every reason and after the same work."""
        await self._state.wait_current(2)
        found = self._state.account_by_email(email)
        right = await self._passwords.verify((found[1].password_hash or None) if found else None, password)
        if found is None or not right or found[1].disabled:
            raise _refused(found, right)
        return await self.open(*found, address, user_agent, "password")

    async def open(self, account_id: str, account: Account, address: str, user_agent: str, via: str) -> SignedIn:
        """Open a session for who was just found to be this account. Raises :class:`SignInError` if that has changed."""
        now = time.time()
        session = self._new(account_id, account.session_epoch, now, address, user_agent, via)
        session_id = str(uuid.uuid4())
        await self._make_room(account_id)
        await self._store(session_id, lambda _: session)
        if self._state.live_session(session_id) is None:
            # Disabled, or given another password while the old one was looked at: the session is of an earlier epoch.
            await self.end(session_id)
            changed = self._state.account(account_id)
            raise _refused((account_id, changed) if changed else None, right=True)
        return SignedIn(session_id, session, account, self._tokens.cookie(session_id, session, int(now)))

    async def reserve(self, account_id: str, account: Account, via: str, seconds: int) -> str:
        """A ticket that opens a session of the account once, within some seconds, wherever it is shown."""
        secret, session_id, now = secrets.token_urlsafe(32), str(uuid.uuid4()), time.time()
        session = self._new(account_id, account.session_epoch, now, "", "", via)
        await self._make_room(account_id)
        held = session.model_copy(update={"ticket": _digest(secret), "expires_at": now + seconds})
        await self._store(session_id, lambda _: held, seconds + KEPT_SECONDS)
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

        await self._store(session_id, use)
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

    async def check(self, cookie: str) -> tuple[str, Session, Account]:
        """The live session a cookie names. Raises :class:`SignInError`."""
        now = time.time()
        try:
            holder = self._tokens.holder(cookie, int(now)).holder
        except ClaimsError:
            raise SignInError("the session has ended; sign in again") from None
        await self._state.sessions.find(holder.session_id)
        live = self._state.live_session(holder.session_id)
        if holder.kind != "browser" or live is None or live[0].account_id != holder.id:
            raise SignInError("the session has ended; sign in again")
        return holder.session_id, *live

    async def slide(self, cookie: str) -> SignedIn:
        """Check a session and prolong it. Raises :class:`SignInError`."""
        session_id, session, account = await self.check(cookie)
        now = time.time()
        if now - session.last_seen >= min(SLIDE_SECONDS, self._settings.sliding_seconds / 10):
            until = min(now + self._settings.sliding_seconds, session.absolute_expires_at)
            slid = session.model_copy(update={"expires_at": until, "last_seen": now})
            stored = await self._store(session_id, lambda old: slid if old is not None else None)
            if stored is None:
                raise SignInError("the session has ended; sign in again")
            session = stored
        return SignedIn(session_id, session, account, self._tokens.cookie(session_id, session, int(now)))

    async def end(self, session_id: str) -> None:
        """End one session. Its connections are cut a little later, so that whoever asked on one gets the answer."""
        await self._state.sessions.change(session_id, lambda _: None)

    async def end_now(self, session_id: str) -> None:
        """End one session, and cut its connections at once."""
        names = self._state.names_of_session(session_id)
        await self.end(session_id)
        self._cut_now(names)

    async def own(self, account_id: str, session_id: str) -> Session:
        """A session of this account. Raises :class:`RpcError` for those of others, as for those that are not."""
        try:
            session = await self._state.sessions.find(check_id(session_id, "session_id"))
        except NatskitError as error:
            raise RpcError("invalid_params", str(error)) from None
        if session is None or session.account_id != account_id:
            raise RpcError("not_found", "you have no such session")
        return session

    async def forget(self, account_id: str) -> None:
        """Remove the records of the sessions that are over since the account's epoch has changed."""
        over = {s for s in self._state.sessions_of(account_id) if self._state.live_session(s) is None}
        await asyncio.gather(*(self.end(session_id) for session_id in over))

    def describe(self, account_id: str, mine: str | None) -> list[dict[str, Any]]:
        """The live sessions of an account as the API shows them, the one seen last first.

        ``mine`` is the session of whoever asks; where that is not known, none is said to be or not to be it.
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
        live = [(self._state.sessions.get(s), s) for s in self._state.sessions_of(account_id)]
        by_age = sorted((session.last_seen, s) for session, s in live if session is not None)
        for _, session_id in by_age[: max(0, len(by_age) - MOST + 1)]:
            await self.end(session_id)

    async def _store(
        self, session_id: str, mutate: Callable[[Session | None], Session | None], lives: int | None = None
    ) -> Session | None:
        """JetStream drops the record by itself when the session is long over, since it may never be asked for again."""
        lives = lives or self._settings.sliding_seconds + KEPT_SECONDS
        return await self._state.sessions.change(session_id, mutate, ttl=f"{lives}s")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _refused(found: tuple[str, Account] | None, right: bool) -> SignInError:
    """The same words for everyone; the reason is for the audit."""
    reason = "unknown e-mail" if found is None else "disabled" if found[1].disabled and right else "wrong password"
    account_id = found[0] if found is not None else "-"
    return SignInError("the e-mail or the password is wrong", reason=reason, account_id=account_id)
