"""The hub's view of the whole state: five buckets, indexes over them, and the connections that each change affects."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from natskit.bus.connection import Connection
from natskit.hub.config import RunnerEntry
from natskit.hub.limits.rate_limit import RateLimit
from natskit.hub.state.bucket import Bucket
from natskit.hub.state.index import Index
from natskit.hub.state.records import (
    Account,
    Backup,
    EmailClaim,
    Membership,
    Project,
    Record,
    Runner,
    Session,
    email_keys,
    external_key,
    has_old_key,
)
from natskit.process.lifecycle import run_all
from natskit.rpc import RpcError
from natskit.validation.names import address_key

PROJECTS_AT_ONCE = 6
"""An owner may change the rights of one account in all projects this many times as often as in a single project: it is
normal to share several projects with one person."""

AccountRecord = Account | EmailClaim
RunnerRecord = Runner | Backup
BACKUP = "backup"
"""The key of the :class:`Backup`, among those of runners: it is about their files, too."""


class Holder(NamedTuple):
    """The holder of a connection; hubs and administrators are none."""

    kind: Literal["browser", "project", "runner"]
    id: str
    session_id: str = "-"


class Rights(NamedTuple):
    """The rights of a holder: the tags of its user JWT, and the name that identifies them in a list of connections."""

    tags: list[str]
    name: str
    expires_at: float | None
    public_key: str


class State:
    """Answers questions about the state from memory.

    Right before a change becomes visible, ``locked_out``, ``ended`` or ``changed`` is called with the names of the
    connections that it outdates.
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
        self.membership_changes = RateLimit(changes_per_minute, time.monotonic)
        """By ``account.project``."""
        self._blocked: set[tuple[str, str]] = set()
        self.sharing_changes = RateLimit(changes_per_minute * PROJECTS_AT_ONCE, time.monotonic)
        """By ``owner.account``."""
        self.unshared_projects = RateLimit(changes_per_minute * PROJECTS_AT_ONCE, time.monotonic)
        """By ``owner.account``. Counted apart from sharing, so that a project just shared can be taken away."""
        self.deleted_projects = RateLimit(changes_per_minute * PROJECTS_AT_ONCE, time.monotonic)
        """By owner."""
        self.renamed_projects = RateLimit(changes_per_minute, time.monotonic)
        """By project."""
        self._tags: dict[str, tuple[list[str], str]] = {}
        self._in_order: dict[str, list[str]] = {}
        self._projects_of = Index()
        self._members_of = Index()
        self._sessions_of = Index()
        self._alike = Index()
        """Accounts by the key of their e-mail, which an older hub may have claimed under another key."""
        self.accounts: Bucket[AccountRecord] = Bucket(connection, "accounts", _parse_account, self._on_account)
        self.projects: Bucket[Project] = Bucket(
            connection, "projects", lambda _, data: Project.from_json(data), self._on_project
        )
        self.memberships: Bucket[Membership] = Bucket(
            connection, "memberships", lambda _, d: Membership.from_json(d), self._on_membership
        )
        self.sessions: Bucket[Session] = Bucket(
            connection,
            "sessions",
            lambda _, data: Session.from_json(data),
            self._on_session,
            # Nobody waits for an answer to this, unlike at sign-out.
            on_expired=lambda key: locked_out(self.names_of_session(key)),
        )
        self.runners: Bucket[RunnerRecord] = Bucket(connection, "runners", _parse_runner, self._on_runner)
        self.buckets = (self.accounts, self.projects, self.memberships, self.sessions, self.runners)

    @property
    def current(self) -> bool:
        """Whether the view of every bucket is up to date, as far as this hub can know."""
        return all(bucket.current.is_set() for bucket in self.buckets)

    @property
    def recent(self) -> bool:
        """Whether each bucket's view is current, or was a moment ago and is not known to lack anything
        (:meth:`Bucket.is_recent`)."""
        return all(bucket.is_recent() for bucket in self.buckets)

    async def follow(self) -> None:
        """Follow all buckets until cancelled."""
        await run_all(bucket.follow() for bucket in self.buckets)

    async def load(self, folder: Path, owner: str) -> None:
        """Take what this hub last had from its files, before :meth:`follow`."""
        for bucket in self.buckets:  # accounts before sessions: a change of an account ends no session then
            await bucket.load(folder, owner)

    async def keep(self, folder: Path, owner: str) -> None:
        """Write what this hub has into its files, one for each bucket. Raises :class:`OSError`."""
        for bucket in self.buckets:
            await bucket.keep(folder, owner)

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
        """An account by its e-mail, however it is typed. Also finds one whose e-mail only looks the same."""
        claimed = next((found for key in email_keys(email) if (found := self._claimed(key))), None)
        if claimed is not None:
            return claimed
        alike = self._alike.get(address_key(email))
        accounts = [(account_id, account) for account_id in alike if (account := self.account(account_id))]
        return min(accounts, key=lambda item: item[1].created_at, default=None)

    def claim_of_email(self, email: str) -> EmailClaim | None:
        """The claim of an e-mail, even if the account no longer exists."""
        claims = (self.accounts.get(key) for key in email_keys(email))
        return next((claim for claim in claims if isinstance(claim, EmailClaim)), None)

    def account_by_external(self, issuer: str, subject: str) -> tuple[str, Account] | None:
        """The account of a person that another site vouches for (:func:`external_key`)."""
        return self._claimed(external_key(issuer, subject))

    def is_known_to(self, issuer: str, account_id: str) -> bool:
        """Whether an issuer or backend already has a subject for this account."""
        claims = (entry.value for entry in self.accounts.entries.values() if isinstance(entry.value, EmailClaim))
        return any(claim.issuer == issuer and claim.account_id == account_id for claim in claims)

    def all_accounts(self) -> list[tuple[str, Account]]:
        """Every account."""
        return [(k, e.value) for k, e in self.accounts.entries.items() if isinstance(e.value, Account)]

    def membership(self, account_id: str, project_id: str) -> Membership | None:
        """An account's membership in a project."""
        return self.memberships.get(f"{account_id}.{project_id}")

    def projects_of(self, account_id: str) -> set[str]:
        """The projects an account may use."""
        return {p for p in self._projects_of.get(account_id) if p in self.projects.entries}

    def projects_in_order(self, account_id: str) -> list[str]:
        """The same, oldest first. Cached until it changes: a request for one of 1,500 must not sort them all."""
        kept = self._in_order.get(account_id)
        if kept is None:
            found = [(self.projects.entries[p].value.created_at, p) for p in self.projects_of(account_id)]
            kept = self._in_order[account_id] = [p for _, p in sorted(found)]
        return kept

    def memberships_of(self, account_id: str) -> set[str]:
        """The projects that an account has a membership in, including projects that no longer exist."""
        return self._projects_of.get(account_id)

    def all_projects(self) -> list[tuple[str, Project]]:
        """All projects except trials, oldest first."""
        found = [(p, e.value) for p, e in self.projects.entries.items() if not e.value.trial]
        return sorted(found, key=lambda one: one[1].created_at)

    def projects_on(self, runner_id: str) -> dict[str, Project]:
        """The projects whose files a runner has."""
        return {p: e.value for p, e in self.projects.entries.items() if e.value.runner_id == runner_id}

    def members_of(self, project_id: str) -> set[str]:
        """The accounts that may use a project."""
        return self._members_of.get(project_id)

    def owners_of(self, project_id: str) -> set[str]:
        """The accounts that own a project: one, except for a moment while it is handed over."""
        members = self._members_of.get(project_id)
        return {a for a in members if (found := self.membership(a, project_id)) and found.role == "owner"}

    def sessions_of(self, account_id: str) -> set[str]:
        """The live sessions of an account."""
        return self._sessions_of.get(account_id)

    def live_session(self, session_id: str) -> tuple[Session, Account] | None:
        """A session that may be used now, and its account. Not one that a ticket has yet to open."""
        session = self.sessions.get(session_id)
        account = self.account(session.account_id) if session is not None else None
        if session is None or account is None or session.ticket or session.expires_at <= time.time():
            return None
        return (session, account) if account.lets_in(session_id, session) else None

    def runner_key(self, runner_id: str | None) -> str | None:
        """The public key of a runner that the deploy knows and that is not revoked; else ``None``."""
        return next(iter(self._runner_keys(runner_id)), None)

    def runner(self, runner_id: str | None) -> Runner | None:
        """What is known of a runner that was heard from, or revoked."""
        found = self.runners.get(runner_id or "")
        return found if isinstance(found, Runner) else None

    async def change_runner(self, runner_id: str, mutate: Callable[[Runner | None], Runner | None]) -> None:
        """Change what is known of a runner to the result of ``mutate``. Raises :class:`StateError`."""
        await self.runners.change(runner_id, lambda old: mutate(old if isinstance(old, Runner) else None))

    @property
    def backup(self) -> Backup | None:
        """What the control machine has last said of its backups."""
        found = self.runners.get(BACKUP)
        return found if isinstance(found, Backup) else None

    def is_alive(self, runner_id: str | None) -> bool:
        """Whether a runner is accepted and was heard from lately."""
        record = self.runner(runner_id)
        return record is not None and record.alive(time.time()) and self.runner_key(runner_id) is not None

    async def update_project(self, project_id: str, **fields: Any) -> Project:
        """Change fields of a project. Raises as :meth:`change_project`."""
        return await self.change_project(project_id, lambda old: replace(old, **fields))

    async def change_project(self, project_id: str, mutate: Callable[[Project], Project]) -> Project:
        """Change a project to the result of ``mutate``, which gets the stream's record and not this hub's view.

        Errors of ``mutate`` go to the caller. Raises :class:`RpcError` if the project is gone, and :class:`StateError`.
        """
        return existing(await self.projects.change(project_id, lambda old: mutate(existing(old))))

    def rights(self, holder: Holder, public_key: str = "") -> Rights | None:
        """The present rights of a holder; ``None`` if it has none. Does no I/O: the callout calls this.

        ``public_key`` matters while a project or a runner has two keys: its rights are those of the key that it
        connects with.
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

    def block(self, holder: Holder) -> set[str]:
        """Refuse a holder, whatever rights it has, until :meth:`unblock`. Returns the names of its connections.

        Only this hub knows: blocking is no part of the state."""
        self._blocked.add((holder.kind, holder.id))
        match holder.kind:
            case "browser":
                return self.names_of_account(holder.id)
            case "project":
                return self._project_names(holder.id, self.projects.get(holder.id))
            case "runner":
                return self._runner_names(holder.id)

    def unblock(self, holder: Holder) -> None:
        """End :meth:`block`."""
        self._blocked.discard((holder.kind, holder.id))

    def is_blocked(self, holder: Holder) -> bool:
        """Whether this hub refuses a holder for now, whatever rights it has."""
        return (holder.kind, holder.id) in self._blocked

    def is_valid(self, holder: Holder, name: str) -> bool:
        """Whether a connection of this holder, with this name, has the rights that it would get now."""
        if self.is_blocked(holder):
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
        if not sessions:  # the common case in a series of changes; the digest of 4,000 projects takes a while
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
            # With a one-time password, an account may only replace it: others may have read it on its way.
            projects = [] if account is not None and account.one_time else sorted(self.projects_of(account_id))
            author = [f"author:{account_id}"] if projects else []
            tags = [f"account:{account_id}", *author, *(f"project:{p}" for p in projects)]
            cached = self._tags[account_id] = (tags, _digest(tags))
        return cached

    def _forget_projects_of(self, account_id: str) -> None:
        self._tags.pop(account_id, None)
        self._in_order.pop(account_id, None)

    def _runner_keys(self, runner_id: str | None) -> list[str]:
        """The accepted public keys of a runner, the one in use first. None if that was revoked."""
        known, record = self.known_runners.get(runner_id or ""), self.runner(runner_id)
        revoked = record.revoked_keys if record is not None else []
        if known is None or known.public_key in revoked:
            return []
        return [key for key in (known.public_key, known.retiring_key) if key and key not in revoked]

    def _project_keys(self, project: Project | None) -> list[str]:
        """The accepted public keys of a project's agent, the one in use first."""
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
        self._note_email(key, new)
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

    def _note_email(self, account_id: str, new: AccountRecord | None) -> None:
        for record, is_there in ((self.accounts.get(account_id), False), (new, True)):
            if isinstance(record, Account) and has_old_key(record.email):
                (self._alike.add if is_there else self._alike.discard)(address_key(record.email), account_id)

    def _on_project(self, key: str, new: Project | None) -> None:
        old = self.projects.get(key)
        if self.projects.current.is_set() and old is not None:
            if new is None:
                for owner in self.owners_of(key):
                    self.deleted_projects.note(owner)
            elif new.title != old.title:
                self.renamed_projects.note(key)
        if (old is None) != (new is None):
            for account_id in self._members_of.get(key):
                self._changed(self.names_of_account(account_id))
                self._forget_projects_of(account_id)
        self._locked_out(self._project_names(key, old) - self._project_names(key, new))

    def _on_membership(self, key: str, new: Membership | None) -> None:
        account_id, _, project_id = key.partition(".")
        if self._projects_of.has(account_id, project_id) == (new is not None):
            return
        if self.memberships.current.is_set():  # otherwise this is read from the bucket, and was written long ago
            self._count_sharing(account_id, project_id, new)
        self._changed(self.names_of_account(account_id))
        self._forget_projects_of(account_id)
        if new is not None:
            self._projects_of.add(account_id, project_id)
            self._members_of.add(project_id, account_id)
        else:
            self._projects_of.discard(account_id, project_id)
            self._members_of.discard(project_id, account_id)

    def _count_sharing(self, account_id: str, project_id: str, new: Membership | None) -> None:
        self.membership_changes.note(f"{account_id}.{project_id}")
        for owner in self.owners_of(project_id) - {account_id}:
            self.sharing_changes.note(f"{owner}.{account_id}")
            if new is None:
                self.unshared_projects.note(f"{owner}.{account_id}")

    def _on_session(self, key: str, new: Session | None) -> None:
        old = self.sessions.get(key)
        if old is not None and new is None:
            self._ended(self.names_of_session(key))
            self._sessions_of.discard(old.account_id, key)
        elif new is not None:
            self._sessions_of.add(new.account_id, key)

    def _on_runner(self, key: str, new: RunnerRecord | None) -> None:
        old, known = self.runners.get(key), self.known_runners.get(key)
        before, after = (set(one.revoked_keys if isinstance(one, Runner) else ()) for one in (old, new))
        if known is not None and known.public_key in after - before:
            mine = self.projects_on(key).items()
            self._locked_out(self._runner_names(key).union(*(self._project_names(p, project) for p, project in mine)))


def existing(project: Project | None) -> Project:
    """The project. Raises :class:`RpcError` if there is none any more."""
    if project is None:
        raise RpcError("not_found", "the project was deleted meanwhile")
    return project


def _parse_account(key: str, data: bytes) -> AccountRecord:
    model: type[Record] = EmailClaim if key.startswith(("email.", "external.")) else Account
    return model.from_json(data)  # type: ignore[return-value]


def _parse_runner(key: str, data: bytes) -> RunnerRecord:
    model: type[Record] = Backup if key == BACKUP else Runner
    return model.from_json(data)  # type: ignore[return-value]


def _agent_rights(holder: Holder, keys: list[str], public_key: str) -> Rights | None:
    """The rights of a project or a runner that connects with ``public_key``; ``keys`` are the accepted ones."""
    if holder.kind == "browser" or not keys:
        return None
    return _fixed_rights(holder.kind, holder.id, public_key if public_key in keys else keys[0])


def _fixed_rights(kind: Literal["project", "runner"], identifier: str, public_key: str) -> Rights:
    tags = [f"{kind}:{identifier}"]
    return Rights(tags, f"{kind}.{identifier}.-.{_digest([*tags, public_key])}", None, public_key)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
