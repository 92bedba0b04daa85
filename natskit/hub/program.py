"""The hub's settings file: what ``python -m natskit.hub --settings FILE`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from natskit import __version__
from natskit.connection import NatsServers
from natskit.permissions import MAX_PROJECTS_PER_ACCOUNT


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TlsFiles(_Part):
    """PEM files: what the hub serves with, and the CA whose certificates its clients must show: the proxy's own.

    Who shows the hub's own certificate is let in too."""

    certificate: Path
    key: Path
    ca: Path


class HttpSettings(_Part):
    """Where the hub serves HTTP; only the proxy should reach it. With ``tls``, HTTPS for who shows a certificate."""

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    tls: TlsFiles | None = None


class CredsFiles(_Part):
    """The creds file of the hub in each NATS account."""

    auth: Path
    platform: Path


class SessionSettings(_Part):
    """How long a browser stays signed in: since it was last seen, and since the password was given."""

    sliding_seconds: int = Field(default=7 * 86400, ge=60)
    absolute_seconds: int = Field(default=30 * 86400, ge=60)


class PasswordSettings(_Part):
    """Cost of argon2id: RFC 9106's second recommendation, so a hash takes about 0.1 s and 64 MiB."""

    argon2_concurrency: int = Field(default=1, ge=1, le=64)
    time_cost: int = Field(default=3, ge=1)
    memory_kib: int = Field(default=65536, ge=8)


class BackendEntry(_Part):
    """A trusted backend: the SHA-256 of its token, whose accounts it may open sessions of, where it may come from."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    accounts: Literal["own", "all"] = "own"
    networks: list[str] = []


class OidcSettings(_Part):
    """Sign-in at an OpenID provider."""

    issuer: str
    client_id: str
    client_secret: Path
    redirect_url: str
    scopes: list[str] = ["openid", "email"]
    label: str = "single sign-on"
    make_accounts: bool = True
    link_accounts: bool = False
    domains: list[str] = []
    ca_file: Path | None = None


class RunnerEntry(_Part):
    """A runner the deploy knows: only these may connect."""

    name: str
    public_key: str
    retiring_key: str = ""
    """The key before that one, while a rotation lets both in."""


class HubProgram(_Part):
    """Everything a hub is told at start. Secrets are paths to files."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]+$")
    version: str = __version__
    http: HttpSettings
    nats: NatsServers
    creds: CredsFiles
    keys: Path
    allowed_origins: list[str]
    session: SessionSettings = SessionSettings()
    authorization_ttl_seconds: int = Field(default=900, ge=10)
    password: PasswordSettings = PasswordSettings()
    backends: dict[str, BackendEntry] = {}
    oidc: OidcSettings | None = None
    api_packages: list[str] = []
    runners: dict[str, RunnerEntry] = {}
    share_changes_per_minute: int = Field(default=10, ge=2)
    """How often a project may be shared with an account, or taken from it, before sharing it again has to wait; and
    the measure of what else has a pace (:mod:`natskit.hub.pace`)."""
    caller_share: float = Field(default=0.25, gt=0)
    """The part of this hub's time that one caller may use for long."""
    max_projects_per_account: int = Field(default=MAX_PROJECTS_PER_ACCOUNT, ge=1, le=MAX_PROJECTS_PER_ACCOUNT)
