"""What the KV buckets hold: one model a bucket. Unknown fields are kept out of the way of a rolling upgrade."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["owner", "collaborator"]
ProjectState = Literal["stopped", "starting", "running", "failed"]
Desired = Literal["running", "stopped"]

RUNNER_ALIVE_SECONDS = 30.0
"""A runner that was silent for this long gets no new projects; it sends a heartbeat every ten seconds."""


class Record(BaseModel):
    """A value in a bucket; replaced as a whole, never changed in place."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Account(Record):
    """``accounts/{account_id}``."""

    email: str
    password_hash: str
    disabled: bool = False
    one_time: bool = False
    created_at: float
    session_epoch: int = 0
    """Sessions of an earlier epoch are over: one write ends them all, also those being opened at this moment through
    another hub, whether or not their records are removed after it."""
    kept_session: str = ""
    """The one that the last change of epoch left alive."""
    made_by: str = ""
    """``backend NAME`` or ``oidc`` for an account that was made when it was first used; it has no password."""

    def lets_in(self, session_id: str, session: Session) -> bool:
        """Whether a session of this account is one that it still wants."""
        return not self.disabled and (session.epoch == self.session_epoch or session_id == self.kept_session)


class EmailClaim(Record):
    """``accounts/email.{sha256 of the e-mail}``: who has this e-mail; made before the account, so it is unique.

    ``accounts/external.{sha256}`` as well: which account somebody has who signs in elsewhere.
    """

    account_id: str
    issuer: str = ""
    """Who says so, where it is somebody who signs in elsewhere."""
    taken_at: float = 0
    """When it was taken over, so that this is a write, which whoever removes the claim at that moment loses to."""


class Project(Record):
    """``projects/{project_id}``."""

    title: str
    created_at: float
    runner_id: str | None = None
    desired: Desired = "stopped"
    state: ProjectState = "stopped"
    detail: str = ""
    public_key: str = ""
    next_key: str = ""
    """While a key is being replaced: accepted as well."""
    runner_key: str = ""
    """The key of the runner that asked for the project's; when it is not let in any more, neither is the project."""


class Membership(Record):
    """``memberships/{account_id}.{project_id}``."""

    role: Role
    since: float


class Session(Record):
    """``sessions/{session_id}``; deleted when it ends."""

    account_id: str
    created_at: float
    expires_at: float
    absolute_expires_at: float
    epoch: int = 0
    """The account's, when the password was looked at."""
    address: str = ""
    user_agent: str = ""
    last_seen: float = 0
    via: str = "password"
    """How it was opened: ``password``, ``oidc``, or ``backend NAME``."""
    ticket: str = ""
    """The sha256 of the secret of a ticket that opens the session, and until then there is no cookie for it."""


class Runner(Record):
    """``runners/{runner_id}``."""

    version: str
    last_seen: float
    running: list[str] = []
    revoked_keys: list[str] = []
    """Public keys of this runner that an administrator has taken its rights from."""

    def alive(self, now: float) -> bool:
        """Whether it was heard from lately."""
        return now - self.last_seen < RUNNER_ALIVE_SECONDS


def email_key(email: str) -> str:
    """The key of an e-mail's claim in the bucket ``accounts``."""
    return "email." + hashlib.sha256(email.strip().lower().encode("utf-8", "surrogatepass")).hexdigest()


def external_key(issuer: str, subject: str) -> str:
    """The key of the claim of somebody who is known elsewhere: at an OIDC issuer (``oidc URL``) or to a trusted backend
    (``backend NAME``), as ``subject`` there."""
    named = f"{issuer}\n{subject}".encode("utf-8", "surrogatepass")
    return "external." + hashlib.sha256(named).hexdigest()
