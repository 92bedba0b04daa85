"""The hub's view of the whole state: five buckets, the indexes over them, and who has been touched by a change."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from natskit.connection import Connection
from natskit.hub.bucket import Bucket
from natskit.hub.pace import Pace
from natskit.hub.program import RunnerEntry
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
from natskit.rpc import RpcError

PROJECTS_AT_ONCE = 6
"""One owner may change what one account may do this many times as often as a single project's rights: sharing several
projects with the same person is normal, and a class is many persons."""

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
        runners: dict[str, RunnerEntry],
        locked_out: Callable[[set[str]], None],
        ended: Callable[[set[str]], None],
        changed: Callable[[set[str]], None],
        changes_per_minute: int = 10,
    ) -> None:
        self.known_runners = runners
        self._locked_out = locked_out
        self._ended = ended
        self._changed = changed
        self.changes_of_one = Pace(changes_per_minute, time.monotonic)
        """By ``account.project``."""
        self._held_off: set[tuple[str, str]] = set()
        self.changes_by_one = Pace(changes_per_minute * PROJECTS_AT_ONCE, time.monotonic)
        """By ``owner.account``."""
        self.unshared = Pace(changes_per_minute * PROJECTS_AT_ONCE, time.monotonic)
        """By ``owner.account``. Not together with what was shared: what was given a moment ago can be taken."""
        self.deleted = Pace(changes_per_minute * PROJECTS_AT_ONCE, time.monotonic)
        """By owner."""
        self.renamed = Pace(changes_per_minute, time.monotonic)
        """By project."""
        self._tags: dict[str, tuple[list[str], str]] = {}
        self._in_order: dict[str, list[str]] = {}
        self._projects_of: dict[str, set[str]] = defaultdict(set)
        self._members_of: dict[str, set[str]] = defaultdict(set)
        self._sessions_of: dict[str, set[str]] = defaultdict(set)
        self.accounts: Bucket[AccountRecord] = Bucket(connection, "accounts", _parse_account, self._on_account)
        self.projects: Bucket[Project] = Bucket(
            connection, "projects", lambda _, data: Project.model_validate_json(data), self._on_project
        )
        self.memberships: Bucket[Membership] = Bucket(
            connection, "memberships", lambda _, d: Membership.model_validate_json(d), self._on_membership
        )
        self.sessions: Bucket[Session] = Bucket(
            connection, "sessions", lambda _, data: Session.model_validate_json(data), self._on_session
        )
        self.runners: Bucket[Runner] = Bucket(
            connection, "runners", lambda _, data: Runner.model_validate_json(data), self._on_runner
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
        return self._claimed(email_key(email))

    def account_by_external(self, issuer: str, subject: str) -> tuple[str, Account] | None:
        """The account of somebody who is known elsewhere (:func:`external_key`)."""
        return self._claimed(external_key(issuer, subject))

    def is_known_to(self, issuer: str, account_id: str) -> bool:
        """Whether an issuer, or a backend, has a name for this account already."""
        claims = (entry.value for entry in self.accounts.entries.values() if isinstance(entry.value, EmailClaim))
        return any(claim.issuer == issuer and claim.account_id == account_id for claim in claims)

    def all_accounts(self) -> list[tuple[str, Account]]:
        """Every account."""
        return [(k, e.value) for k, e in self.accounts.entries.items() if isinstance(e.value, Account)]

    def membership(self, account_id: str, project_id: str) -> Membership | None:
        """What an account is in a project."""
        return self.memberships.get(f"{account_id}.{project_id}")

    def projects_of(self, account_id: str) -> set[str]:
        """The projects an account may use."""
        return {p for p in self._projects_of.get(account_id, ()) if p in self.projects.entries}

    def projects_in_order(self, account_id: str) -> list[str]:
        """The same, oldest first. Kept until it changes: to ask for one of 1,500 must not cost the sorting of all."""
        kept = self._in_order.get(account_id)
        if kept is None:
            found = [(self.projects.entries[p].value.created_at, p) for p in self.projects_of(account_id)]
            kept = self._in_order[account_id] = [p for _, p in sorted(found)]
        return kept

    def memberships_of(self, account_id: str) -> set[str]:
        """The projects that an account has a membership of, also if there is no such project any more."""
        return set(self._projects_of.get(account_id, ()))

    def projects_on(self, runner_id: str) -> dict[str, Project]:
        """The projects whose files a runner has."""
        return {p: e.value for p, e in self.projects.entries.items() if e.value.runner_id == runner_id}

    def members_of(self, project_id: str) -> set[str]:
        """The accounts that may use a project."""
        return set(self._members_of.get(project_id, ()))

    def owners_of(self, project_id: str) -> set[str]:
        """The accounts that own a project: one, but for the moment in which it is handed over."""
        members = self._members_of.get(project_id, ())
        return {a for a in members if (found := self.membership(a, project_id)) and found.role == "owner"}

    def sessions_of(self, account_id: str) -> set[str]:
        """The live sessions of an account."""
        return set(self._sessions_of.get(account_id, ()))

    def live_session(self, session_id: str) -> tuple[Session, Account] | None:
        """A session that may be used now, and its account; not one that its ticket has yet to open."""
        session = self.sessions.get(session_id)
        account = self.account(session.account_id) if session is not None else None
        if session is None or account is None or session.ticket or session.expires_at <= time.time():
            return None
        return (session, account) if account.lets_in(session_id, session) else None

    def runner_key(self, runner_id: str | None) -> str | None:
        """The public key of a runner that is let in: known to the deploy, and not revoked."""
        return next(iter(self._runner_keys(runner_id)), None)

    def is_alive(self, runner_id: str | None) -> bool:
        """Whether a runner is let in and was heard from lately."""
        record = self.runners.get(runner_id or "")
        return record is not None and record.alive(time.time()) and self.runner_key(runner_id) is not None

    async def update_project(self, project_id: str, **fields: Any) -> Project:
        """Change fields of a project. Raises :class:`RpcError` if it is gone, and :class:`StateError`."""

        def mutate(old: Project | None) -> Project:
            if old is None:
                raise RpcError("not_found", "the project was deleted meanwhile")
            return old.model_copy(update=fields)

        project = await self.projects.change(project_id, mutate)
        assert project is not None
        return project

    def rights(self, holder: Holder, public_key: str = "") -> Rights | None:
        """What a holder gets now; ``None`` if nothing any more. No I/O: this is the callout's path.

        The ``public_key`` matters while a project or a runner has two: its rights are those of the key that it came
        with.
        """
        match holder.kind:
            case "browser":
                live = self.live_session(holder.session_id)
                if live is None or live[0].account_id != holder.id:
                    return None
                tags, digest = self._account_tags(holder.id)
                name = f"browser.{holder.id}.{holder.session_id}.{digest}"
                return Rights(tags, name, live[0].expires_at, "")
            case "project":
                return _agent_rights(holder, self._project_keys(self.projects.get(holder.id)), public_key)
            case "runner":
                return _agent_rights(holder, self._runner_keys(holder.id), public_key)

    def hold_off(self, holder: Holder) -> set[str]:
        """Do not let a holder in, whatever rights it has, until :meth:`let_in`; the names of its connections. This is
        between this hub and whoever floods it, and no part of the state."""
        self._held_off.add((holder.kind, holder.id))
        match holder.kind:
            case "browser":
                return self.names_of_account(holder.id)
            case "project":
                return self._project_names(holder.id, self.projects.get(holder.id))
            case "runner":
                return self._runner_names(holder.id)

    def let_in(self, holder: Holder) -> None:
        """The end of :meth:`hold_off`."""
        self._held_off.discard((holder.kind, holder.id))

    def is_held_off(self, holder: Holder) -> bool:
        """Whether a holder is kept out, for now, whatever rights it has."""
        return (holder.kind, holder.id) in self._held_off

    def is_valid(self, holder: Holder, name: str) -> bool:
        """Whether a connection of this holder, with this name, has what it would get now."""
        if self.is_held_off(holder):
            return False
        if holder.kind == "project":
            return name in self._project_names(holder.id, self.projects.get(holder.id))
        if holder.kind == "runner":
            return name in self._runner_names(holder.id)
        rights = self.rights(holder)
        return rights is not None and rights.name == name

    def names_of_session(self, session_id: str) -> set[str]:
        """The name of a session's connections."""
        session = self.sessions.get(session_id)
        if session is None:
            return set()
        return {f"browser.{session.account_id}.{session_id}.{self._account_tags(session.account_id)[1]}"}

    def names_of_account(self, account_id: str, but: str = "") -> set[str]:
        """The names of the connections of all sessions of an account, except those of the session ``but``."""
        sessions = self._sessions_of.get(account_id)
        if not sessions:  # the common case of many changes in a row, and the digest of 4,000 projects takes a while
            return set()
        digest = self._account_tags(account_id)[1]
        return {f"browser.{account_id}.{s}.{digest}" for s in sessions if s != but}

    def _claimed(self, key: str) -> tuple[str, Account] | None:
        claim = self.accounts.get(key)
        if not isinstance(claim, EmailClaim):
            return None
        account = self.account(claim.account_id)
        return (claim.account_id, account) if account else None

    # ---- indexes; called before the view takes the change

    def _account_tags(self, account_id: str) -> tuple[list[str], str]:
        cached = self._tags.get(account_id)
        if cached is None:
            account = self.account(account_id)
            # Whoever has a one-time password may do nothing but replace it: it was sent, and others may have read it.
            projects = [] if account is not None and account.one_time else sorted(self.projects_of(account_id))
            tags = [f"account:{account_id}", *(f"project:{p}" for p in projects)]
            cached = self._tags[account_id] = (tags, _digest(tags))
        return cached

    def _forget_projects_of(self, account_id: str) -> None:
        self._tags.pop(account_id, None)
        self._in_order.pop(account_id, None)

    def _runner_keys(self, runner_id: str | None) -> list[str]:
        """The public keys that a runner may come with, the one in use first: none if that was revoked."""
        known, record = self.known_runners.get(runner_id or ""), self.runners.get(runner_id or "")
        revoked = record.revoked_keys if record is not None else []
        if known is None or known.public_key in revoked:
            return []
        return [key for key in (known.public_key, known.retiring_key) if key and key not in revoked]

    def _project_keys(self, project: Project | None) -> list[str]:
        """The public keys that a project's agent may come with, the one in use first."""
        if project is None:
            return []
        keys = self._runner_keys(project.runner_id)
        if not keys or project.runner_key not in ("", *keys):
            return []
        return [key for key in (project.public_key, project.next_key) if key]

    def _runner_names(self, runner_id: str) -> set[str]:
        return {_fixed_rights("runner", runner_id, key).name for key in self._runner_keys(runner_id)}

    def _project_names(self, project_id: str, project: Project | None) -> set[str]:
        return {_fixed_rights("project", project_id, key).name for key in self._project_keys(project)}

    def _on_account(self, key: str, new: AccountRecord | None) -> None:
        old = self.accounts.get(key)
        if not isinstance(old, Account):
            self._tags.pop(key, None)
            return
        if not isinstance(new, Account) or (new.disabled and not old.disabled):
            self._locked_out(self.names_of_account(key))
            self._tags.pop(key, None)
            return
        ended: set[str] = set()
        if new.session_epoch != old.session_epoch:
            ended = self.names_of_account(key, but=new.kept_session)
            self._ended(ended)
        if new.one_time != old.one_time:
            self._changed(self.names_of_account(key) - ended)
            self._tags.pop(key, None)

    def _on_project(self, key: str, new: Project | None) -> None:
        old = self.projects.get(key)
        if self.projects.current.is_set() and old is not None:
            if new is None:
                for owner in self.owners_of(key):
                    self.deleted.note(owner)
            elif new.title != old.title:
                self.renamed.note(key)
        if (old is None) != (new is None):
            for account_id in self._members_of.get(key, ()):
                self._changed(self.names_of_account(account_id))
                self._forget_projects_of(account_id)
        self._locked_out(self._project_names(key, old) - self._project_names(key, new))

    def _on_membership(self, key: str, new: Membership | None) -> None:
        account_id, _, project_id = key.partition(".")
        if (project_id in self._projects_of[account_id]) == (new is not None):
            return
        if self.memberships.current.is_set():  # else what is read was written long ago
            self._note_pace(account_id, project_id, new)
        self._changed(self.names_of_account(account_id))
        self._forget_projects_of(account_id)
        if new is not None:
            self._projects_of[account_id].add(project_id)
            self._members_of[project_id].add(account_id)
        else:
            self._projects_of[account_id].discard(project_id)
            self._members_of[project_id].discard(account_id)

    def _note_pace(self, account_id: str, project_id: str, new: Membership | None) -> None:
        self.changes_of_one.note(f"{account_id}.{project_id}")
        for owner in self.owners_of(project_id) - {account_id}:
            self.changes_by_one.note(f"{owner}.{account_id}")
            if new is None:
                self.unshared.note(f"{owner}.{account_id}")

    def _on_session(self, key: str, new: Session | None) -> None:
        old = self.sessions.get(key)
        if old is not None and new is None:
            self._ended(self.names_of_session(key))
            self._sessions_of[old.account_id].discard(key)
        elif new is not None:
            self._sessions_of[new.account_id].add(key)

    def _on_runner(self, key: str, new: Runner | None) -> None:
        old, known = self.runners.get(key), self.known_runners.get(key)
        before, after = (set(record.revoked_keys if record else ()) for record in (old, new))
        if known is not None and known.public_key in after - before:
            mine = self.projects_on(key).items()
            self._locked_out(self._runner_names(key).union(*(self._project_names(p, project) for p, project in mine)))


def _parse_account(key: str, data: bytes) -> AccountRecord:
    model: type[Record] = EmailClaim if key.startswith(("email.", "external.")) else Account
    return model.model_validate_json(data)  # type: ignore[return-value]


def _agent_rights(holder: Holder, keys: list[str], public_key: str) -> Rights | None:
    """Those of a project or a runner that came with ``public_key``, by one of the ``keys`` it may come with."""
    if holder.kind == "browser" or not keys:
        return None
    return _fixed_rights(holder.kind, holder.id, public_key if public_key in keys else keys[0])


def _fixed_rights(kind: Literal["project", "runner"], identifier: str, public_key: str) -> Rights:
    tags = [f"{kind}:{identifier}"]
    return Rights(tags, f"{kind}.{identifier}.-.{_digest([*tags, public_key])}", None, public_key)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
