"""The records in the KV buckets, one model for each bucket. Unknown fields are ignored, for rolling upgrades."""

from __future__ import annotations

import functools
import hashlib
import sys
from typing import Any, Literal, Self

import msgspec

from natskit.validation.names import address_key

Role = Literal["owner", "collaborator"]
ProjectState = Literal["stopped", "starting", "running", "failed"]
Desired = Literal["running", "stopped"]
Left = Literal["copy", "part"]
"""What a move has left on a runner: the whole project, or what had arrived when the move was given up."""

RUNNER_ALIVE_SECONDS = 30.0
"""A runner that has been silent for this long gets no new projects. It sends a heartbeat every ten seconds."""


class Record(msgspec.Struct, frozen=True):
    """A value in a bucket. It is replaced as a whole (``msgspec.structs.replace``), never changed in place.

    A hub holds all of them in memory, where a struct takes much less than a pydantic model. No record can be part of a
    cycle, so the garbage collector need not look at any.
    """

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a stored value. Raises :class:`ValueError` if a field is missing or has another type."""
        try:
            record: Self = _decoder(cls).decode(data)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None
        return record

    def to_json(self) -> bytes:
        """The value as it is stored."""
        return msgspec.json.encode(self)


@functools.cache
def _decoder(model: type[Record]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(model)


class Account(Record, frozen=True, kw_only=True, gc=False):
    """``accounts/{account_id}``."""

    email: str
    password_hash: str
    disabled: bool = False
    one_time: bool = False
    created_at: float
    session_epoch: int = 0
    """Sessions of an earlier epoch have ended: one write ends them all, including those that another hub is just
    opening, whether or not their records are removed afterwards."""
    kept_session: str = ""
    """The session that the last change of epoch kept."""
    made_by: str = ""
    """``backend NAME`` or ``oidc URL`` for an account that was created on first use. It has no password."""

    def lets_in(self, session_id: str, session: Session) -> bool:
        """Whether the account accepts this session of its own."""
        return not self.disabled and (session.epoch == self.session_epoch or session_id == self.kept_session)


class EmailClaim(Record, frozen=True, kw_only=True, gc=False):
    """``accounts/email.{sha256 of the e-mail's key}``: the account with this e-mail. Written before the account, so it
    is unique.

    Also ``accounts/external.{sha256}``: the account of a person that another site vouches for.
    """

    account_id: str
    issuer: str = ""
    """The site that vouches for the person; empty for an e-mail."""
    taken_at: float = 0
    """When the claim was taken over: that makes it a write, which wins against removing the claim at the same
    moment."""

    def __post_init__(self) -> None:
        _share_account_id(self)


class Project(Record, frozen=True, kw_only=True, gc=False):
    """``projects/{project_id}``."""

    title: str
    created_at: float
    runner_id: str | None = None
    desired: Desired = "stopped"
    state: ProjectState = "stopped"
    detail: str = ""
    public_key: str = ""
    next_key: str = ""
    """Also accepted, while a key is being replaced."""
    runner_key: str = ""
    """The key of the runner that made the project's. When that is refused, so is the project."""
    trial: bool = False
    """Created to check that its runner can start a project. It has no owner and is in no list."""
    moving_to: str = ""
    """The runner that its files are being moved to. The project cannot start until they are in place there: see
    :mod:`natskit.hub.services.project_moves`."""
    move_id: str = ""
    """The command that moves the files. Runners refuse an earlier one."""
    left_on: dict[str, Left] = {}
    """The runners on which moves have left something that is to be removed."""


class Membership(Record, frozen=True, kw_only=True, gc=False):
    """``memberships/{account_id}.{project_id}``."""

    role: Role
    since: float


class Session(Record, frozen=True, kw_only=True, gc=False):
    """``sessions/{session_id}``; deleted when it ends."""

    account_id: str
    created_at: float
    expires_at: float
    absolute_expires_at: float
    epoch: int = 0
    """The account's epoch when the person was authenticated."""
    address: str = ""
    user_agent: str = ""
    last_seen: float = 0
    via: str = "password"
    """How it was opened: ``password``, ``oidc``, or ``backend NAME``."""
    ticket: str = ""
    """The SHA-256 of the secret of the ticket that will open the session. Until then it has no cookie."""

    def __post_init__(self) -> None:
        _share_account_id(self)


class Runner(Record, frozen=True, kw_only=True, gc=False):
    """``runners/{runner_id}``."""

    version: str
    last_seen: float
    running: list[str] = []
    revoked_keys: list[str] = []
    """Public keys of this runner that an administrator has revoked."""

    def alive(self, now: float) -> bool:
        """Whether it was heard from lately."""
        return now - self.last_seen < RUNNER_ALIVE_SECONDS


class Backup(Record, frozen=True, kw_only=True, gc=False):
    """``runners/backup``: what the control machine has said of its backups. All times are Unix seconds."""

    begun: float
    """Of the newest good one."""
    verified: float | None = None
    """When a backup was last restored on trial, and was good."""


def _share_account_id(record: EmailClaim | Session) -> None:
    """Keep the account's id once in memory, with the key of the account's own record."""
    msgspec.structs.force_setattr(record, "account_id", sys.intern(record.account_id))


def email_key(email: str) -> str:
    """The key of an e-mail's claim in the bucket ``accounts``: the same for addresses that look the same."""
    return _email_key(address_key(email))


def email_keys(email: str) -> list[str]:
    """The keys where the claim of an e-mail may be. The first is that of older hubs, which only ignored case."""
    return list(dict.fromkeys((_email_key(email.strip().lower()), email_key(email))))


def has_old_key(email: str) -> bool:
    """Whether an older hub may have written the claim of an e-mail under another key. Takes less than
    :func:`email_keys`, which matters for all accounts at once."""
    return email.strip().lower() != address_key(email)


def _email_key(text: str) -> str:
    return "email." + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def external_key(issuer: str, subject: str) -> str:
    """The key of the claim of a person whom an OIDC issuer (``oidc URL``) or a trusted backend (``backend NAME``) calls
    ``subject``."""
    named = f"{issuer}\n{subject}".encode("utf-8", "surrogatepass")
    return "external." + hashlib.sha256(named).hexdigest()
