"""Accounts: made by an administrator, found by e-mail."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from natskit.hub.passwords import Passwords, one_time_password
from natskit.hub.projects import Projects
from natskit.hub.records import Account, EmailClaim, email_key, external_key
from natskit.hub.sessions import Sessions
from natskit.hub.state import AccountRecord, State
from natskit.rpc import RpcError

_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}")


def is_email(text: str) -> bool:
    """Whether a text looks like an e-mail address."""
    return _EMAIL.fullmatch(text.strip()) is not None


class Accounts:
    """What may be done to accounts."""

    def __init__(
        self,
        state: State,
        passwords: Passwords,
        sessions: Sessions,
        projects: Projects,
        cut_now: Callable[[set[str]], None],
    ) -> None:
        self._state = state
        self._passwords = passwords
        self._sessions = sessions
        self._projects = projects
        self._cut_now = cut_now
        self._changing: set[str] = set()

    async def add(self, email: str, password: str | None) -> dict[str, Any]:
        """Make an account. Without a password a one-time password is made up and returned."""
        email = _checked(email)
        given = one_time_password() if password is None else password
        hashed = await self._passwords.hash(given)
        account_id = await self._reserve(email_key(email), str(uuid.uuid4()))
        if self._state.account(account_id) is not None:
            raise RpcError("conflict", f"there is already an account with the e-mail {email!r}")
        account = Account(email=email, password_hash=hashed, one_time=password is None, created_at=time.time())
        await self._state.accounts.change(account_id, lambda old: old or account)
        return {"account_id": account_id, "email": email} | ({"password": given} if password is None else {})

    async def of_external(
        self, issuer: str, subject: str, email: str, *, made_by: str, check: Callable[[Account | None], None]
    ) -> tuple[str, Account, bool]:
        """The account of somebody who is known elsewhere, made or linked on first use; whether it was made now.

        ``check`` is called every time: with the account that is theirs, or on first use has this e-mail, or with
        ``None`` before one is made. It raises if that may not be. Raises :class:`RpcError` for what is no e-mail.
        """
        found = self._state.account_by_external(issuer, subject)
        if found is None:
            await self._state.accounts.find(external_key(issuer, subject))  # another hub may just have made it
            found = self._state.account_by_external(issuer, subject)
        if found is not None:
            check(found[1])
            return (*found, False)
        email = _checked(email)
        taken = self._state.account_by_email(email)
        check(taken[1] if taken else None)
        if taken and self._state.is_known_to(issuer, taken[0]):
            # An address goes to another person sooner or later; who it is, the issuer says by its subject.
            raise RpcError("conflict", f"{email[:80]!r} is the account of somebody whom {made_by} calls otherwise")
        # In this order: who finds the account made, by another hub at this moment, finds whose it is, too.
        account_id = await self._reserve(email_key(email), taken[0] if taken else str(uuid.uuid4()))
        await self._reserve(external_key(issuer, subject), account_id, issuer)
        fresh = Account(email=email, password_hash="", made_by=made_by, created_at=time.time())
        account = await self._state.accounts.change(account_id, lambda old: old or fresh)
        assert isinstance(account, Account)
        if taken is None and account.made_by != made_by:  # an administrator was quicker
            try:
                check(account)
            except RpcError:
                await self._state.accounts.change(external_key(issuer, subject), lambda _: None)
                raise
        return account_id, account, account == fresh

    async def _reserve(self, key: str, account_id: str, issuer: str = "") -> str:
        """Claim a key for an account, unless another one that exists has it; whose it is then.

        A claim of an e-mail whose account was never written (a hub died in between) is taken over.
        """

        def mutate(old: AccountRecord | None) -> AccountRecord:
            if isinstance(old, EmailClaim) and self._state.account(old.account_id) is not None:
                return old
            if isinstance(old, EmailClaim) and key.startswith("email."):
                return old.model_copy(update={"taken_at": time.time()})
            return EmailClaim(account_id=account_id, issuer=issuer)

        claim = await self._state.accounts.change(key, mutate)
        assert isinstance(claim, EmailClaim)
        return claim.account_id

    async def by_email(self, email: str) -> tuple[str, Account]:
        """The account with this e-mail. Raises :class:`RpcError`."""
        found = self._state.account_by_email(email)
        if found is None:
            claim = await self._state.accounts.find(email_key(email))
            if isinstance(claim, EmailClaim):
                await self._state.accounts.find(claim.account_id)
            found = self._state.account_by_email(email)
        if found is None:
            raise RpcError("not_found", f"no account has the e-mail {email[:80]!r}")
        return found

    async def disable(self, email: str, disabled: bool) -> dict[str, Any]:
        """Keep a person out, or let them in again. Their sessions end, and with them the keys of their projects."""
        account_id, account = await self.by_email(email)
        if disabled:
            await self.sign_out(account_id, disabled=True)
            await self._projects.refuse_keys(account_id)
        else:
            await self._update(account_id, disabled=False)
        return {"account_id": account_id, "email": account.email, "disabled": disabled}

    async def remove(self, email: str, heir_email: str | None, delete_projects: bool) -> dict[str, Any]:
        """Remove an account; its own projects go to an heir, or are deleted. Asked again, it goes on where it stopped.

        The person is locked out first. Raises :class:`RpcError` before anything is changed if it owns projects and
        nothing is said about them, and later if one of them cannot be deleted at this moment.
        """
        if heir_email is not None and delete_projects:
            raise RpcError("invalid_params", "projects are either given to another account or deleted, not both")
        claim = await self._state.accounts.find(email_key(email))
        if not isinstance(claim, EmailClaim):
            raise RpcError("not_found", f"no account has the e-mail {email[:80]!r}")
        account_id = claim.account_id
        heir = (await self.by_email(heir_email))[0] if heir_email is not None else None
        if heir == account_id:
            raise RpcError("invalid_params", f"{email} is the account that is to be removed: name another heir")
        self._projects.check_fate(account_id, heir, delete_projects)
        if self._state.account(account_id) is not None:
            await self.sign_out(account_id, disabled=True)
        gone = await self._projects.leave_all(account_id, heir)
        await self._state.accounts.change(account_id, lambda _: None)
        gone |= await self._projects.leave_all(account_id, heir)  # what was shared with it meanwhile
        # Unless somebody has taken the e-mail already: since the account is gone, it is free.
        await self._state.accounts.change(email_key(email), lambda old: None if old == claim else old)
        return {"account_id": account_id, "email": email, "projects": sorted(gone)}

    async def end_sessions(
        self, account_id: str, keep: str | None = None, verified: str | None = None, **fields: Any
    ) -> None:
        """End every session of an account, except ``keep``, with one write, which also changes ``fields``.

        ``keep`` has to be alive, and ``verified`` the hash of the password, when it is written: whoever was locked out
        a moment ago, by another hub, cannot undo that. Raises :class:`RpcError`. Connections are cut a little later, so
        that whoever asked on one gets the answer.
        """

        def mutate(old: AccountRecord | None) -> AccountRecord:
            if not isinstance(old, Account):
                raise RpcError("not_found", "the account is gone")
            if verified is not None and old.password_hash != verified:
                raise RpcError("conflict", "the password was changed meanwhile; sign in again")
            session = self._state.sessions.get(keep) if keep else None
            if keep and (session is None or not old.lets_in(keep, session)):
                raise RpcError("forbidden", "the session has ended; sign in again")
            return old.model_copy(update={"session_epoch": old.session_epoch + 1, "kept_session": keep or "", **fields})

        await self._state.accounts.change(account_id, mutate)
        await self._sessions.forget(account_id)

    async def sign_out(self, account_id: str, keep: str | None = None, **fields: Any) -> None:
        """The same, and cut their connections at once."""
        names = self._state.names_of_account(account_id, but=keep or "")
        await self.end_sessions(account_id, keep, **fields)
        self._cut_now(names)

    async def set_password(self, account_id: str, password: str | None) -> str | None:
        """Set a password and end the sessions that were opened with the old one; returns it if it was made up."""
        given = one_time_password() if password is None else password
        hashed = await self._passwords.hash(given)
        await self.sign_out(account_id, password_hash=hashed, one_time=password is None)
        return given if password is None else None

    async def change_password(
        self, account_id: str, account: Account, current: str, new: str, keep: str | None
    ) -> None:
        """Set the password that its owner has chosen; every session ends, except ``keep``, if that is known.

        Raises :class:`RpcError` if the current password is wrong. One at a time for each account: the threads that
        look at passwords are there for everybody.
        """
        if new == current:
            raise RpcError("invalid_params", "the new password is the one you have: choose another")
        if account_id in self._changing:
            raise RpcError("unavailable", "the password is being changed already; try again in a moment")
        self._changing.add(account_id)
        try:
            if not await self._passwords.verify(account.password_hash, current):
                raise RpcError("forbidden", "the current password is wrong")
            hashed = await self._passwords.hash(new)
            end = self.end_sessions if keep is None else self.sign_out
            await end(account_id, keep, verified=account.password_hash, password_hash=hashed, one_time=False)
        finally:
            self._changing.discard(account_id)

    async def _update(self, account_id: str, **fields: Any) -> Account:
        def mutate(old: AccountRecord | None) -> AccountRecord:
            if not isinstance(old, Account):
                raise RpcError("not_found", "the account is gone")
            return old.model_copy(update=fields)

        account = await self._state.accounts.change(account_id, mutate)
        assert isinstance(account, Account)
        return account


def _checked(email: str) -> str:
    if not is_email(email):
        raise RpcError("invalid_params", f"{email.strip()[:80]!r} is no e-mail address")
    return email.strip()
