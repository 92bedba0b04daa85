"""Accounts: created by an administrator, a backend or an OpenID provider; found by e-mail."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from natskit.hub.auth.passwords import Passwords, one_time_password
from natskit.hub.auth.sessions import Sessions
from natskit.hub.services.projects import Projects
from natskit.hub.state.records import Account, EmailClaim, email_key, email_keys, external_key
from natskit.hub.state.view import AccountRecord, State
from natskit.rpc import RpcError
from natskit.validation.names import NameRefusedError, address_form, checked_address, opaque


class Accounts:
    """Creates, changes and removes accounts."""

    def __init__(
        self,
        state: State,
        passwords: Passwords,
        sessions: Sessions,
        projects: Projects,
        disconnect_now: Callable[[set[str]], None],
    ) -> None:
        self._state = state
        self._passwords = passwords
        self._sessions = sessions
        self._projects = projects
        self._disconnect_now = disconnect_now
        self._changing: set[str] = set()

    async def add(self, email: str, password: str | None) -> dict[str, Any]:
        """Create an account. Without a password, generate and return a one-time password."""
        email = _checked(email)
        given = one_time_password() if password is None else password
        hashed = await self._passwords.hash(given, email)
        taken = self._state.account_by_email(email)
        account_id = taken[0] if taken else await self._reserve(email_key(email), str(uuid.uuid4()))
        if found := self._state.account(account_id):
            alike = "" if address_form(found.email) == address_form(email) else f", which looks the same as {email!r}"
            raise RpcError("conflict", f"there is already an account with the e-mail {found.email!r}{alike}")
        account = Account(email=email, password_hash=hashed, one_time=password is None, created_at=time.time())
        await self._state.accounts.change(account_id, lambda old: old or account)
        return {"account_id": account_id, "email": email} | ({"password": given} if password is None else {})

    def known_by(self, issuer: str, subjects: list[str]) -> str:
        """The first of these subjects that an issuer has an account for; the first of all if there is none."""
        return next((s for s in subjects if self._state.account_by_external(issuer, s)), subjects[0])

    async def of_external(
        self, issuer: str, subject: str, email: str, *, made_by: str, check: Callable[[Account | None], None]
    ) -> tuple[str, Account, bool]:
        """The account of a person that another site vouches for, created or linked on first use. The last item says
        whether it was created now.

        ``check`` is called each time, and raises if the account may not be used: with the person's account, on first
        use with the account that has this e-mail, or with ``None`` before one is created. Raises :class:`RpcError` for
        an invalid e-mail.
        """
        found = self._state.account_by_external(issuer, subject)
        if found is None:
            await self._state.accounts.find(external_key(issuer, subject))  # another hub may have created it
            found = self._state.account_by_external(issuer, subject)
        if found is not None:
            check(found[1])
            return (*found, False)
        email = _vouched(email)
        taken = self._state.account_by_email(email)
        check(taken[1] if taken else None)
        if taken:
            _check_same(taken[1], email)
        if taken and self._state.is_known_to(issuer, taken[0]):
            # Addresses are reassigned to other people; only the subject says who a person is.
            raise RpcError("conflict", f"{email[:80]!r} is the account of another person of {made_by}")
        # In this order, a hub that finds the account also finds whose it is.
        account_id = await self._reserve(email_key(email), taken[0] if taken else str(uuid.uuid4()))
        await self._reserve(external_key(issuer, subject), account_id, issuer)
        fresh = Account(email=email, password_hash="", made_by=made_by, created_at=time.time())
        account = await self._state.accounts.change(account_id, lambda old: old or fresh)
        assert isinstance(account, Account)
        if taken is None and account != fresh:  # an administrator or another hub was quicker
            try:
                _check_same(account, email)
                check(account)
            except RpcError:
                await self._state.accounts.change(external_key(issuer, subject), lambda _: None)
                raise
        return account_id, account, account == fresh

    async def _reserve(self, key: str, account_id: str, issuer: str = "") -> str:
        """Claim a key for an account, unless an existing account has it. Returns the account that has the key.

        Takes over the claim of an e-mail whose account was never written because a hub died in between.
        """

        def mutate(old: AccountRecord | None) -> AccountRecord:
            if isinstance(old, EmailClaim) and self._state.account(old.account_id) is not None:
                return old
            if isinstance(old, EmailClaim) and key.startswith("email."):
                return replace(old, taken_at=time.time())
            return EmailClaim(account_id=account_id, issuer=issuer)

        claim = await self._state.accounts.change(key, mutate)
        assert isinstance(claim, EmailClaim)
        return claim.account_id

    async def _release(self, key: str, account_id: str) -> None:
        """Release an e-mail, unless another account has claimed it since this one was removed."""
        claim = self._state.accounts.get(key)
        if isinstance(claim, EmailClaim) and claim.account_id == account_id:
            await self._state.accounts.change(key, lambda old: None if old == claim else old)

    async def by_email(self, email: str) -> tuple[str, Account]:
        """The account with this e-mail. Raises :class:`RpcError`."""
        found = self._state.account_by_email(email)
        if found is None and (claim := await self._claim(email)):
            await self._state.accounts.find(claim.account_id)
            found = self._state.account_by_email(email)
        if found is None:
            _checked(email)
            raise RpcError("not_found", f"no account has the e-mail {email[:80]!r}")
        return found

    async def _claim(self, email: str) -> EmailClaim | None:
        """The claim of an e-mail, including one that another hub wrote a moment ago."""
        if self._state.claim_of_email(email) is None:
            await self._state.accounts.find(email_key(email))
        return self._state.claim_of_email(email)

    async def disable(self, email: str, disabled: bool) -> dict[str, Any]:
        """Disable or enable an account. Disabling ends its sessions and refuses the keys of its projects."""
        account_id, account = await self.by_email(email)
        if disabled:
            await self.sign_out(account_id, disabled=True)
            await self._projects.refuse_keys(account_id)
        else:
            await self._update(account_id, disabled=False)
        return {"account_id": account_id, "email": account.email, "disabled": disabled}

    async def remove(self, email: str, heir_email: str | None, delete_projects: bool) -> dict[str, Any]:
        """Remove an account. Its own projects go to an heir or are deleted. A repeated call continues where the last
        stopped.

        The account is locked out first. Raises :class:`RpcError` before any change if it owns projects and the caller
        does not say what becomes of them, and later if one of them cannot be deleted at this moment.
        """
        if heir_email is not None and delete_projects:
            raise RpcError("invalid_params", "give the projects to another account or delete them, not both")
        claim = await self._claim(email)
        account_id = claim.account_id if claim is not None else (await self.by_email(email))[0]
        account = self._state.account(account_id)
        heir = (await self.by_email(heir_email))[0] if heir_email is not None else None
        if heir == account_id:
            raise RpcError("invalid_params", f"{email} is the account to remove: name another account for its projects")
        self._projects.check_fate(account_id, heir, delete_projects)
        if self._state.account(account_id) is not None:
            await self.sign_out(account_id, disabled=True)
        gone = await self._projects.leave_all(account_id, heir)
        await self._state.accounts.change(account_id, lambda _: None)
        gone |= await self._projects.leave_all(account_id, heir)  # projects shared with it meanwhile
        for key in {key for known in (email, account.email if account else email) for key in email_keys(known)}:
            await self._release(key, account_id)
        return {"account_id": account_id, "email": email, "projects": sorted(gone)}

    async def end_sessions(
        self, account_id: str, keep: str | None = None, verified: str | None = None, **fields: Any
    ) -> None:
        """End every session of an account, except ``keep``, with one write, which also changes ``fields``.

        At the time of the write, ``keep`` must be alive and ``verified`` be the hash of the password: a caller that
        another hub locked out a moment ago cannot undo that. Raises :class:`RpcError`. Connections end a little later,
        so that the caller gets the answer.
        """

        def mutate(old: AccountRecord | None) -> AccountRecord:
            if not isinstance(old, Account):
                raise RpcError("not_found", "the account is gone")
            if verified is not None and old.password_hash != verified:
                raise RpcError("conflict", "the password has changed; sign in again")
            session = self._state.sessions.get(keep) if keep else None
            if keep and (session is None or not old.lets_in(keep, session)):
                raise RpcError("forbidden", "the session has ended; sign in again")
            return replace(old, session_epoch=old.session_epoch + 1, kept_session=keep or "", **fields)

        await self._state.accounts.change(account_id, mutate)
        await self._sessions.forget(account_id)

    async def sign_out(self, account_id: str, keep: str | None = None, **fields: Any) -> None:
        """The same, and disconnect at once."""
        names = self._state.names_of_account(account_id, but=keep or "")
        await self.end_sessions(account_id, keep, **fields)
        self._disconnect_now(names)

    async def set_password(self, account_id: str, password: str | None) -> str | None:
        """Set a password and end all sessions. Returns the password if it was generated."""
        given = one_time_password() if password is None else password
        hashed = await self._passwords.hash(given, account_id)
        await self.sign_out(account_id, password_hash=hashed, one_time=password is None)
        return given if password is None else None

    async def change_password(
        self, account_id: str, account: Account, current: str, new: str, keep: str | None
    ) -> None:
        """Set the password that the account's owner has chosen. All sessions end except ``keep``.

        Raises :class:`RpcError` if the current password is wrong. One change at a time for each account: all accounts
        share the threads that verify passwords.
        """
        if opaque(new) == opaque(current):
            raise RpcError("invalid_params", "the new password is the one you have: choose another")
        if account_id in self._changing:
            raise RpcError("unavailable", "the password is already being changed; try again in a moment")
        self._changing.add(account_id)
        try:
            if not (await self._passwords.verify(account.password_hash, current, account_id)).right:
                raise RpcError("forbidden", "the current password is wrong")
            hashed = await self._passwords.hash(new, account_id)
            end = self.end_sessions if keep is None else self.sign_out
            await end(account_id, keep, verified=account.password_hash, password_hash=hashed, one_time=False)
        finally:
            self._changing.discard(account_id)

    async def _update(self, account_id: str, **fields: Any) -> Account:
        def mutate(old: AccountRecord | None) -> AccountRecord:
            if not isinstance(old, Account):
                raise RpcError("not_found", "the account is gone")
            return replace(old, **fields)

        account = await self._state.accounts.change(account_id, mutate)
        assert isinstance(account, Account)
        return account


def _check_same(account: Account, email: str) -> None:
    """Raises :class:`RpcError` if the e-mail of an account only looks like this one, which may belong to another
    person."""
    if address_form(account.email) != address_form(email):
        raise RpcError("conflict", f"{email[:80]!r} looks the same as the e-mail of another account")


def _vouched(email: str) -> str:
    """The e-mail that another site vouches for. Raises :class:`RpcError`.

    Nobody types it here. So full-width letters or a ligature are not another way to type an address: such an address is
    a different mailbox from the one with plain letters, under which it would be stored.
    """
    stored = _checked(email)
    if address_form(email) != address_form(stored):
        raise RpcError(
            "conflict", f"{email.strip()[:80]!r} looks the same as {stored!r}, which may be another person's"
        )
    return stored


def _checked(email: str) -> str:
    try:
        return checked_address(email)
    except NameRefusedError as error:
        raise RpcError("invalid_params", str(error)) from None
