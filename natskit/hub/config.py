"""The settings file that ``python -m natskit.hub --settings FILE`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from natskit import __version__
from natskit.bus.permissions import MAX_PROJECTS_PER_ACCOUNT
from natskit.bus.servers import NatsServers
from natskit.identity.claims import COOKIE
from natskit.process.metrics_endpoint import MetricsAccess


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TlsFiles(_Part):
    """PEM files: the hub's certificate and key, and the CA that signs its clients' certificates (the proxy's).

    The hub also accepts clients with its own certificate."""

    certificate: Path
    key: Path
    ca: Path


class HttpSettings(_Part):
    """Where the hub serves HTTP; only the proxy should reach it. With ``tls``: HTTPS with client certificates."""

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    tls: TlsFiles | None = None


class CredsFiles(_Part):
    """The creds file of the hub in each NATS account."""

    auth: Path
    platform: Path


class SessionSettings(_Part):
    """How long a session lasts: since it was last seen, and since sign-in."""

    sliding_seconds: int = Field(default=7 * 86400, ge=60)
    absolute_seconds: int = Field(default=30 * 86400, ge=60)


class PasswordSettings(_Part):
    """Cost of argon2id: OWASP's recommendation (Password Storage Cheat Sheet). A hash takes about 0.03 s and 19 MiB."""

    argon2_concurrency: int = Field(default=1, ge=1, le=64)
    time_cost: int = Field(default=2, ge=1)
    memory_kib: int = Field(default=19 * 1024, ge=8)


class BackendEntry(_Part):
    """A trusted backend: the SHA-256 of its token, the accounts it may open sessions for, and its networks."""

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
    email_claims: list[str] = ["email"]
    verified_domains: list[str] = []
    ca_file: Path | None = None


class RunnerEntry(_Part):
    """A runner of the deploy. No other runner may connect."""

    name: str
    public_key: str
    retiring_key: str = ""
    """The previous key, while a rotation accepts both."""


class HubProgram(_Part):
    """All settings of a hub. Secrets are paths to files."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]+$")
    version: str = __version__
    http: HttpSettings
    nats: NatsServers
    creds: CredsFiles
    keys: Path
    state_folder: Path | None = None
    """A folder of this hub's own, where it keeps what it last had of the state. It has password hashes in it. Without
    one, a hub reads the whole state when it starts."""
    keep_state_seconds: float = Field(default=300, gt=0)
    """The pause between two writes of these files. It is longer if writing them takes more than a hundredth of it."""
    allowed_origins: list[str]
    cookie: str = COOKIE
    """The name of the session cookie."""
    session: SessionSettings = SessionSettings()
    authorization_ttl_seconds: int = Field(default=900, ge=10)
    password: PasswordSettings = PasswordSettings()
    backends: dict[str, BackendEntry] = {}
    oidc: OidcSettings | None = None
    administrators: list[str] = []
    """The e-mail addresses of accounts that may call methods for administrators."""
    api_packages: list[str] = []
    metrics: MetricsAccess | None = None
    """Where the hub shows its metrics to another host than the proxy's."""
    runners: dict[str, RunnerEntry] = {}
    share_changes_per_minute: int = Field(default=10, ge=2)
    """How often a minute a project may be shared with an account or taken from it. The other rate limits derive from
    this (:mod:`natskit.hub.state.view`)."""
    caller_share: float = Field(default=0.25, gt=0)
    """The part of this hub's time that one caller may use in the long run."""
    max_projects_per_account: int = Field(default=MAX_PROJECTS_PER_ACCOUNT, ge=1, le=MAX_PROJECTS_PER_ACCOUNT)
