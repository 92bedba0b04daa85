"""The hub's view of the whole state: five buckets, the indexes over them, and who has been touched by a change."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Literal, NamedTuple

from natskit.connection import Connection
from natskit.hub.bucket import Bucket
from natskit.hub.program import RunnerEntry, StateSettings
from natskit.hub.records import (
    Account,
    EmailClaim,
    Membership,
    Project,
    Record,
    Runner,
    Session,
    email_key,
    external_key,
)

AccountRecord = Account | EmailClaim


class Holder(NamedTuple):
    """Who holds a connection, besides hubs and administrators."""

    kind: Literal["browser", "project", "runner"]
    id: str
    session_id: str = "-"


class Rights(NamedTuple):
    """What a holder gets now: the tags of its user JWT, and the name that tells them apart in a list of connections."""

    tags: list[str]
    name: str
    expires_at: float | None
    public_key: str


class State:
    """Answers from memory.

    ``locked_out``, ``ended`` and ``changed`` are called, right before a change is visible, with the names it outdates.
    """

    def __init__(
        self,
        connection: Connection,
        stored: StateSettings,
        runners: dict[str, RunnerEntry],
        locked_out: Callable[[set[str]], None],
        ended: Callable[[set[str]], None],
        changed: Callable[[set[str]], None],
    ) -> None:
        self.known_runners = runners
        self._locked_out = locked_out
        self._ended = ended
        self._changed = changed
        self._tags: dict[str, tuple[list[str], str]] = {}
        self._projects_of: dict[str, set[str]] = defaultdict(set)
        self._members_of: dict[str, set[str]] = defaultdict(set)
        self._sessions_of: dict[str, set[str]] = defaultdict(set)
        self.accounts: Bucket[AccountRecord] = Bucket(connection, "accounts", _parse_account, self._on_account, stored)
        self.projects: Bucket[Project] = Bucket(
            connection, "projects", lambda _, data: Project.model_validate_json(data), self._on_project, stored
        )
        self.memberships: Bucket[Membership] = Bucket(
            connection, "memberships", lambda _, d: Membership.model_validate_json(d), self._on_membership, stored
        )
        self.sessions: Bucket[Session] = Bucket(
            connection, "sessions", lambda _, data: Session.model_validate_json(data), self._on_session, stored
        )
        self.runners: Bucket[Runner] = Bucket(
            connection, "runners", lambda _, data: Runner.model_validate_json(data), lambda *_: None, stored
        )
        self.buckets = (self.accounts, self.projects, self.memberships, self.sessions, self.runners)

    @property
    def current(self) -> bool:
        """Whether every bucket's view is up to date, as far as this hub can know."""
        return all(bucket.current.is_set() for bucket in self.buckets)

    async def follow(self) -> None:
        """Follow all buckets until cancelled."""
        async with asyncio.TaskGroup() as group:
            for bucket in self.buckets:
                group.create_task(bucket.follow())

    async def wait_current(self, seconds: float) -> None:
        """Wait until the whole view is current. Raises :class:`StateError`."""
        for bucket in self.buckets:
            await bucket.wait_current(seconds)

    # ---- questions

    def account(self, account_id: str) -> Account | None:
        """An account by its id."""
        found = self.accounts.get(account_id)
        return found if isinstance(found, Account) else None

    def account_by_email(self, email: str) -> tuple[str, Account] | None:
        """An account by its e-mail, in any case."""
        claim = self.accounts.get(email_key(email))
        if not isinstance(claim, EmailClaim):
            return None
        account = self.account(claim.account_id)
        return (claim.account_id, account) if account else None

    def account_by_external(self, issuer: str, subject: str) -> tuple[str, Account] | None:
        """The account of somebody who is known elsewhere (:func:`external_key`)."""
        claim = self.accounts.get(external_key(issuer, subject))
        if not isinstance(claim, EmailClaim):
            return None
        account = self.account(claim.account_id)
        return (claim.account_id, account) if account else None

    def all_accounts(self) -> list[tuple[str, Account]]:
        """Every account."""
        return [(k, e.value) for k, e in self.accounts.entries.items() if isinstance(e.value, Account)]

    def membership(self, account_id: str, project_id: str) -> Membership | None:
        """What an account is in a project."""
        return self.memberships.get(f"{account_id}.{project_id}")

    def projects_of(self, account_id: str) -> set[str]:
        """The projects an account may use."""
        return {p for p in self._projects_of.get(account_id, ()) if p in self.projects.entries}

    def members_of(self, project_id: str) -> set[str]:
        """The accounts that may use a project."""
        return set(self._members_of.get(project_id, ()))

    def sessions_of(self, account_id: str) -> set[str]:
        """The live sessions of an account."""
        return set(self._sessions_of.get(account_id, ()))

    def rights(self, holder: Holder) -> Rights | None:
        """What a holder gets now; ``None`` if nothing any more. No I/O: this is the callout's path."""
        match holder.kind:
            case "browser":
                session = self.sessions.get(holder.session_id)
                account = self.account(holder.id)
                if session is None or session.account_id != holder.id or session.expires_at <= time.time():
                    return None
                if account is None or account.disabled:
                    return None
                tags, digest = self._account_tags(holder.id)
                name = f"browser.{holder.id}.{holder.session_id}.{digest}"
                return Rights(tags, name, session.expires_at, "")
            case "project":
                project = self.projects.get(holder.id)
                if project is None or not project.public_key:
                    return None
                return _fixed_rights("project", holder.id, project.public_key)
            case "runner":
                runner = self.known_runners.get(holder.id)
                return _fixed_rights("runner", holder.id, runner.public_key) if runner else None

    def names_of_session(self, session_id: str) -> set[str]:
        """The name of a session's connections."""
        session = self.sessions.get(session_id)
        if session is None:
            return set()
        return {f"browser.{session.account_id}.{session_id}.{self._account_tags(session.account_id)[1]}"}

    # ---- indexes; called before the view takes the change

    def _account_tags(self, account_id: str) -> tuple[list[str], str]:
        cached = self._tags.get(account_id)
        if cached is None:
            tags = [f"account:{account_id}", *(f"project:{p}" for p in sorted(self.projects_of(account_id)))]
            cached = self._tags[account_id] = (tags, _digest(tags))
        return cached

    def _browser_names(self, account_id: str) -> set[str]:
        digest = self._account_tags(account_id)[1]
        return {f"browser.{account_id}.{s}.{digest}" for s in self._sessions_of.get(account_id, ())}

    def _on_account(self, key: str, new: AccountRecord | None) -> None:
        old = self.accounts.get(key)
        was_on = isinstance(old, Account) and not old.disabled
        is_on = isinstance(new, Account) and not new.disabled
        if was_on and not is_on:
            self._locked_out(self._browser_names(key))

    def _on_project(self, key: str, new: Project | None) -> None:
        old = self.projects.get(key)
        if (old is None) != (new is None):
            for account_id in self._members_of.get(key, ()):
                self._changed(self._browser_names(account_id))
                self._tags.pop(account_id, None)
        if old and old.public_key and (new is None or old.public_key != new.public_key):
            self._locked_out({_fixed_rights("project", key, old.public_key).name})

    def _on_membership(self, key: str, new: Membership | None) -> None:
        account_id, _, project_id = key.partition(".")
        if (project_id in self._projects_of[account_id]) == (new is not None):
            return
        self._changed(self._browser_names(account_id))
        self._tags.pop(account_id, None)
        if new is not None:
            self._projects_of[account_id].add(project_id)
            self._members_of[project_id].add(account_id)
        else:
            self._projects_of[account_id].discard(project_id)
            self._members_of[project_id].discard(account_id)

    def _on_session(self, key: str, new: Session | None) -> None:
        old = self.sessions.get(key)
        if old is not None and new is None:
            self._ended(self.names_of_session(key))
            self._sessions_of[old.account_id].discard(key)
        elif new is not None:
            self._sessions_of[new.account_id].add(key)


def _parse_account(key: str, data: bytes) -> AccountRecord:
    model: type[Record] = EmailClaim if key.startswith(("email.", "external.")) else Account
    return model.model_validate_json(data)  # type: ignore[return-value]


def _fixed_rights(kind: Literal["project", "runner"], identifier: str, public_key: str) -> Rights:
    tags = [f"{kind}:{identifier}"]
    return Rights(tags, f"{kind}.{identifier}.-.{_digest([*tags, public_key])}", None, public_key)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
