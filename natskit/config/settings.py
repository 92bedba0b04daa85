"""Every setting of a deploy: flat keys, prefixed by role, with type, unit, default and reason.

:func:`load` validates the settings of each host, and ``natskit/config/topology.py`` the whole inventory, before a
deploy changes any host. A default that differs from the program's own gives the reason.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from natskit.bus.permissions import DOCUMENT_SHARDS, MAX_PROJECTS_PER_ACCOUNT
from natskit.config import local_paths
from natskit.config.nats_settings import NatsSettings
from natskit.config.types import HOST_PATH, Bytes, Email, Host, HostPath, Listed, Port, Seconds, Structured, Unit
from natskit.errors import SettingsError
from natskit.project.environment import OWN as OWN_VARIABLES
from natskit.runner.sandbox import clean, why_no_device, why_not_shown
from natskit.validation.addresses import host_name

Package = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]

_ID_OR_NOTHING = r"^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?$"
_RUNNER_NAMESPACE = uuid.UUID("6e617473-6b69-7400-8000-72756e6e6572")


BackendName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Scope = Annotated[str, Field(pattern=r"^[\x21\x23-\x5b\x5d-\x7e]+$")]
"""RFC 6749, 3.3."""
_LEAST_PASSWORD_MEMORY = (46 * 1024, 19 * 1024, 12 * 1024, 9 * 1024, 7 * 1024)
"""KiB for argon2id with 1, 2, … iterations (OWASP Password Storage Cheat Sheet)."""
_YEAR = 365 * 86_400
"""Seconds."""
OTHER_CONNECTIONS = 512
"""What nginx and nats-server have open beside browsers: hubs, runners, projects, requests over HTTP, files."""
_ISSUER = r"^(https://[^\s?#/]+|http://(localhost|127\.0\.0\.1)(:\d+)?)(/[^\s?#]*)?$"
"""OpenID Connect Core, 2: https, without query and fragment."""


EmailClaim = Literal["email", "preferred_username", "upn"]
_MANY_TENANTS = re.compile(
    r"https://login\.microsoftonline\.[a-z]+/(common|organizations|consumers)(/|$)", re.IGNORECASE
)
"""Entra ID's multi-tenant addresses. Its tokens name the tenant's own address instead."""


def _issuer(value: str) -> str:
    """Check the issuer's host name. The issuer must equal the provider's text exactly, so it is not normalized."""
    parts = urlsplit(value)
    host = host_name(parts.hostname or "")
    if parts.netloc not in (host, f"{host}:{parts.port}"):
        raise ValueError(f"write its host as the provider does: {host}")
    return value


def _network(value: str) -> str:
    ipaddress.ip_network(value)
    return value


Network = Annotated[str, AfterValidator(_network)]
Packages = Annotated[list[Package], Listed]
Folders = Annotated[list[Annotated[str, Field(pattern=r"^/")]], Listed]
"""Absolute paths."""
Shown = Annotated[list[Annotated[str, AfterValidator(clean)]], Listed]
"""Absolute paths on a host that its projects can see."""


def _may_be_set(name: str) -> str:
    if name in OWN_VARIABLES or name.startswith("NATSKIT_"):
        raise ValueError(f"natskit itself sets {', '.join(OWN_VARIABLES)} and what begins with NATSKIT_")
    return name


Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_may_be_set)]
VariableValue = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class _Role(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlatformSettings(_Role):
    """The platform's folders on its hosts, and the service manager of its programs."""

    platform_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$")] = "natskit"
    """The host's name within the platform. Default in an inventory: pyinfra's name for the host."""
    platform_address: Host = "127.0.0.1"
    """DNS name or IPv4 address that other hosts use to reach this one. Default: pyinfra's name for the host."""
    platform_manager: Literal["systemd", "supervisor"] = "systemd"
    """The service manager that keeps the programs running: systemd on hosts, supervisor without root."""
    platform_tls: bool = True
    """TLS between the programs, with certificates of the platform's own CA. Off only when everything is on loopback."""
    platform_root: Path = Path("/var/lib/natskit")
    """Folder on the host for everything except programs and systemd units. An absolute path."""
    platform_programs: Path = Path("/opt/natskit")
    """Folder of the programs that systemd runs, with one folder per version. An absolute path."""
    platform_control: Path | None = None
    """Folder on the control machine with the platform's identity, the files to upload and ``platform.json``."""
    platform_python_path: Folders = []
    """Folders with your own Python packages, for hub_api_packages and runner_project_api_packages."""
    platform_first_account: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")] = "admin@localhost"
    """E-mail of the first account, which is created if there are no accounts."""

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        for key in ("platform_root", "platform_programs", "platform_control"):
            path = getattr(self, key)
            if path is not None and not path.is_absolute():
                raise ValueError(f"{key} = {path} is not an absolute path: write it from / on")
        if self.platform_manager == "systemd":
            for key in ("platform_root", "platform_programs"):
                if not re.fullmatch(HOST_PATH, str(getattr(self, key))):
                    raise ValueError(
                        f"{key} {getattr(self, key)} has a character with a special meaning for systemd or nginx "
                        "(space, quote, %, ;, $, backslash): choose another folder"
                    )
            return self
        for folder in self.platform_python_path:
            if why := local_paths.unfit_packages(Path(folder)):
                raise ValueError(f"platform_python_path {folder} {why}: move it to another folder")
        if why := local_paths.unfit_root(self.platform_root):
            raise ValueError(f"platform_root {self.platform_root} {why}: choose another folder, with NATSKIT_LOCAL")
        return self

    @property
    def control(self) -> Path:
        """The folder on the control machine."""
        return self.platform_control or self.platform_root

    @property
    def identity(self) -> Path:
        """The folder of the platform's keys, on the control machine."""
        return self.control / "identity"

    @property
    def listen(self) -> str:
        """The address to listen on: loopback if platform_address is a loopback address, otherwise every interface.
        Behind NAT, the host itself does not have the address that others use."""
        return "127.0.0.1" if self.platform_address in ("127.0.0.1", "localhost") else "0.0.0.0"


class BackendSettings(_Role):
    """A trusted backend."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of its token, as `natskit backend token` prints it."""
    accounts: Literal["own", "all"] = "own"
    """The accounts for which it may open sessions: only those it created, or all. With "all", its token is worth as
    much as every password of the platform."""
    networks: Annotated[list[Network], Listed] = []
    """Addresses or networks that may use the token, such as 10.0.0.0/8. Default: all."""


class HubSettings(_Role):
    """The hubs of one host."""

    hub_count: Annotated[int, Field(ge=1, le=64)] = 2
    """Number of hubs on the host. Two, so that one may fail; they share the requests in a queue group."""
    hub_port: Port = 8101
    """HTTP port of the first hub; the other hubs use the following ports. On hosts it uses TLS and accepts only the
    proxy."""
    hub_session_sliding: Seconds = 7 * 86_400
    """Seconds until an inactive browser is signed out."""
    hub_session_absolute: Seconds = 30 * 86_400
    """Seconds until every browser is signed out, active or not."""
    hub_authorization_ttl: Annotated[int, Field(ge=10), Unit("seconds")] = 900
    """Seconds until a connection must be authorized again. Normally a change of rights disconnects it at once; this
    limit applies if that disconnect is lost."""
    hub_password_concurrency: Annotated[int, Field(ge=1, le=64)] = 1
    """Passwords that each hub hashes at the same time. Each takes 0.03 s of a core and `hub_password_memory`; auth
    callouts must not wait for it."""
    hub_password_memory: Annotated[int, Field(ge=7168, le=1024**2), Unit("KiB")] = 19 * 1024
    """Memory for hashing a password (argon2id). A changed cost applies to each account at its next sign-in. Source:
    https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html#argon2id"""
    hub_password_iterations: Annotated[int, Field(ge=1, le=100)] = 2
    """How often argon2id passes over that memory. With less than 19 MiB, OWASP asks for more iterations: 3 with 12 MiB,
    4 with 9, 5 with 7; and one is enough with 46. Source:
    https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html#argon2id"""
    hub_max_projects_per_account: Annotated[int, Field(ge=1, le=MAX_PROJECTS_PER_ACCOUNT)] = MAX_PROJECTS_PER_ACCOUNT
    """Maximum number of projects an account may use. nats-server's limit on the subjects of one session is slightly
    higher."""
    hub_share_changes: Annotated[int, Field(ge=2), Unit("a minute")] = 10
    """How often per minute a project may be shared with, or taken from, the same account. Each change disconnects that
    account, not the owner who makes it. A project may be renamed as often. An owner may delete projects, and take
    projects from one account, six times as often."""
    hub_caller_share: Annotated[float, Field(ge=0.01, le=100), Unit("of its time")] = 0.25
    """The share of each hub's time that one account, project or runner may use over a longer time. Further requests are
    refused with `unavailable` and `retry_after`; files over HTTP are slowed down. 0.25 allows 4,000 small requests a
    second, a list of 1,500 projects every 0.2 s, or 100 MB of files a second. From 1 on there is no limit."""
    hub_administrators: Annotated[list[Email], Listed] = []
    """E-mail addresses of the accounts that see the page Platform of the console (docs/how-to/monitor.md). Make these
    accounts yourself before: a backend or an OpenID provider could make one with an address that nobody has yet."""
    hub_api_packages: Packages = []
    """Python packages that add methods to the hub (docs/how-to/add-your-own-api.md)."""
    hub_audit_days: Annotated[int, Field(ge=1, le=3650), Unit("days")] = 365
    """Age after which events are deleted from the audit log."""
    hub_audit_bytes: Annotated[int, Field(ge=1024**2), Unit("bytes")] = 512 * 1024**2
    """Size that nats-server reserves for the audit log. Above it, the oldest events are deleted. An event takes about
    400 bytes."""
    hub_backends: Annotated[dict[BackendName, BackendSettings], Structured] = {}
    """Trusted backends by name, which may sign users in (docs/how-to/backend-sign-in.md). `natskit backend token`
    creates one."""
    hub_oidc_issuer: Annotated[str, Field(pattern=_ISSUER), AfterValidator(_issuer)] | None = None
    """Issuer URL of the OpenID provider for single sign-on, exactly as the provider writes it
    (docs/how-to/openid-connect.md); https, or http on loopback."""
    hub_oidc_client_id: str = ""
    """The client id of this site at the provider. The redirect URI is the site's address with /api/oidc/callback."""
    hub_oidc_client_secret_file: Path | None = None
    """File on the control machine with the client's secret."""
    hub_oidc_ca_file: Path | None = None
    """CA of the provider's certificate (PEM), on the control machine. Default: the CAs that the host trusts."""
    hub_oidc_scopes: Annotated[list[Scope], Listed] = ["openid", "email"]
    """The scopes to request. openid is required; email is needed to create or link accounts."""
    hub_oidc_label: Annotated[str, Field(pattern=r"^[^\x00-\x1f<>]{1,60}$")] = "single sign-on"
    """The provider's name on the button of the sign-in page."""
    hub_oidc_make_accounts: bool = True
    """Create an account at the first sign-in of a user with a verified e-mail. Otherwise only linked accounts can sign
    in."""
    hub_oidc_link_accounts: bool = False
    """Link a user with a verified e-mail to the account with that e-mail. Only for a provider that you trust with every
    account: its statement about an e-mail replaces the password."""
    hub_oidc_domains: Annotated[list[Host], Listed] = []
    """Domains whose e-mail addresses may create or link an account. Default: all."""
    hub_oidc_verified_domains: Annotated[list[Host], Listed] = []
    """Domains whose e-mail addresses count as verified if the provider does not say, as Entra ID does not. Only for
    domains whose addresses the provider's administrators assign. An address that the provider calls unverified is
    still refused."""
    hub_oidc_email_claims: Annotated[list[EmailClaim], Listed] = ["email"]
    """Claims that may hold the e-mail address, in order of preference. preferred_username and upn, which need the scope
    profile, count only for addresses in hub_oidc_verified_domains."""
    hub_state_replicas: Annotated[int, Field(ge=1, le=5)] | None = None
    """Replicas of the state. Default: 3 on a cluster of nats-servers, 1 with one nats-server."""
    hub_state_max_bytes: Annotated[int, Field(ge=1024**2), Unit("bytes")] = 128 * 1024**2
    """Maximum size of each of the five buckets of the state, so that none can fill the others' space. An account or a
    session takes about half a kilobyte. nats_jetstream_max_file must have space for all five."""


class KeeperSettings(_Role):
    """The keepers of documents, which run on the hosts of hubs."""

    keeper_count: Annotated[int, Field(ge=1, le=16)] = 2
    """Number of keepers on each host of hubs. Two, so that one may fail; they share the requests in a queue group."""
    keeper_max_bytes: Annotated[int, Field(ge=16 * 1024**2), Unit("bytes")] = 1024**3
    """Maximum size of all documents with their history, which nats-server reserves: a quarter for each of four streams.
    Beyond it, updates are refused, and nothing is lost. nats_jetstream_max_file must have space for it. It counts
    before compression: the files of a full stream take less (nats-server #5905)."""
    keeper_max_document_bytes: Annotated[int, Field(ge=65_536, le=64 * 1024**2), Unit("bytes")] = 8 * 1024**2
    """Maximum size of one document, in Yjs' encoding and without its history."""
    keeper_max_documents: Annotated[int, Field(ge=1, le=100_000)] = 5000
    """Maximum number of documents of one project. Their paths must also fit into one message (nats_max_payload)."""
    keeper_max_project_bytes: Annotated[int, Field(ge=65_536), Unit("bytes")] | None = None
    """Maximum size of one project's documents with their whole history. Default: a sixteenth of keeper_max_bytes, which
    is a quarter of the stream that the project's documents are in."""
    keeper_account_bytes: Annotated[int, Field(ge=65_536), Unit("bytes an hour")] = 64 * 1024**2
    """How much one account may store in documents through each keeper at once, and an hour in the long run. The account
    waits beyond that, so that an alert comes before an account with many projects has filled the streams."""
    keeper_thin_after_days: Annotated[int, Field(ge=0, le=36_500), Unit("days")] = 0
    """After how many days keepers thin out the history of documents, unless a project's members set something else. 0:
    never. Named versions stay, and nothing of the documents themselves is lost."""
    keeper_thin_to: Literal["minute", "hour"] = "minute"
    """Of each minute or hour, one version stays of a history that keepers thin out."""
    keeper_memory: Annotated[int, Field(ge=1024**2), Unit("bytes")] = 128 * 1024**2
    """Size of the documents that each keeper holds in memory, in Yjs' encoding. They take several times as much."""
    keeper_caller_share: Annotated[float, Field(ge=0.01, le=100), Unit("of its time")] = 0.25
    """The share of each keeper's time that one account may use over a longer time, as hub_caller_share."""

    @model_validator(mode="after")
    def _project_fits(self) -> Self:
        stream = self.keeper_max_bytes // DOCUMENT_SHARDS
        if self.project_bytes > stream:
            raise ValueError(
                f"keeper_max_project_bytes = {self.project_bytes} is more than one stream holds ({stream} bytes, a "
                "quarter of keeper_max_bytes): lower it, or raise keeper_max_bytes"
            )
        return self

    @property
    def project_bytes(self) -> int:
        """How many bytes one project's documents may take."""
        return self.keeper_max_project_bytes or self.keeper_max_bytes // DOCUMENT_SHARDS // 4


class ProxySettings(_Role):
    """nginx."""

    proxy_name: Host = "localhost"
    """The host name in the site's URL, without scheme and port. Together with proxy_port it is the site's only address.
    """
    proxy_listen: Host | None = None
    """Address to listen on. Default: every interface on a host that others reach, otherwise loopback."""
    proxy_port: Port = 4043
    """Port for https. Not 443, which needs root on this machine."""
    proxy_http_port: Port | None = None
    """Port for plain HTTP, which answers ACME challenges and redirects everything else to https. Default: 80 with
    proxy_acme_webroot, otherwise none."""
    proxy_certificate: Path | None = None
    """Your own certificate for proxy_name, with its chain up to the root (PEM), on the control machine."""
    proxy_key: Path | None = None
    """The key of proxy_certificate (PEM, without a password)."""
    proxy_certificate_on_host: bool = False
    """A program on the host renews the certificate (docs/how-to/acme.md). proxy_certificate and proxy_key are then
    paths on the host. Default: platform_root/proxy/tls.crt and tls.key; a deploy writes a certificate there only if
    there is none."""
    proxy_hsts: Annotated[int, Field(ge=0), Unit("seconds")] | None = None
    """How long browsers must use only https for proxy_name, on all its ports (Strict-Transport-Security); 0 ends that.
    Default: a year for a site with its own certificate; none with the platform's CA, for localhost and IP addresses.
    Source: RFC 6797."""
    proxy_acme_webroot: HostPath | None = None
    """Folder on the host whose .well-known/acme-challenge is served over plain HTTP, for certbot --webroot and lego
    --http.webroot. Source: RFC 8555, section 8.3."""
    proxy_certificate_hosts: Annotated[list[Host], Listed] = []
    """DNS names and addresses in the certificate from the platform's CA. Default: proxy_name and the host's address."""
    proxy_websocket_buffer: Bytes = 65_536
    """Buffer size for each direction of each busy WebSocket. Larger is faster but needs more memory (bench/RESULTS.md).
    """
    proxy_max_browsers: Annotated[int, Field(ge=100, le=500_000)] = 4000
    """Browsers that may be connected at the same time through this host. The limits of nginx and nats-server for
    connections and open files follow from it, and a deploy checks that the host allows them: nginx takes two
    connections for a browser, nats-server one."""
    proxy_sign_in_rate: Annotated[int, Field(ge=1), Unit("a minute")] = 30
    """Sign-in attempts per minute and client address. Further attempts get status 429."""
    proxy_sign_in_burst: Annotated[int, Field(ge=0)] = 20
    """Attempts above that rate that are still accepted at once, for a class behind one address."""
    proxy_max_body: Bytes = 1024 * 1024
    """Maximum size of an HTTP request; 0 means no limit at the proxy. A hub takes at most 1 MiB, whatever this says, so
    a larger value changes only which of the two refuses a request."""

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        if (self.proxy_certificate is None) != (self.proxy_key is None):
            missing = "proxy_key" if self.proxy_key is None else "proxy_certificate"
            raise ValueError(f"{missing} is not set: set both proxy_certificate and proxy_key, or neither")
        for path in (self.proxy_certificate, self.proxy_key):
            if path is not None and self.proxy_certificate_on_host and not re.fullmatch(r"/[^\s%;\"'$\\]*", str(path)):
                raise ValueError(f"with proxy_certificate_on_host, {path} must be an absolute path on the host")
        return self

    @property
    def hsts_seconds(self) -> int | None:
        """The value of Strict-Transport-Security; ``None`` if the header is not sent."""
        own = self.proxy_certificate is not None or self.proxy_certificate_on_host
        labels = self.proxy_name.split(".")
        public = labels[-1] != "localhost" and not labels[-1].isdecimal()
        return self.proxy_hsts if self.proxy_hsts is not None else _YEAR if own and public else None

    @property
    def proxy_connections(self) -> int:
        """The connections that each worker of nginx may have: all browsers may come to the same one, and
        :data:`OTHER_CONNECTIONS` are for requests over HTTP and for those that are just ending."""
        return 2 * self.proxy_max_browsers + OTHER_CONNECTIONS

    @property
    def proxy_open_files(self) -> int:
        """The files that each worker of nginx may have open."""
        return self.proxy_connections + OTHER_CONNECTIONS

    @property
    def http_port(self) -> int | None:
        """The port for plain HTTP; ``None`` without one."""
        return self.proxy_http_port or (80 if self.proxy_acme_webroot else None)


BACKUP_BYTES = 1024**4
"""The default of runner_backup_max_bytes."""


class RunnerSettings(_Role):
    """The runner of one host, and the limits of its projects."""

    runner_name: str = ""
    """The runner's name in ``natskit status``. Default: the host's name."""
    runner_id: Annotated[str, Field(pattern=_ID_OR_NOTHING)] = ""
    """The runner's id, a lower-case UUID. Default: derived from the name."""
    runner_project_memory: Annotated[int, Field(ge=256 * 1024**2), Unit("bytes")] | None = 4 * 1024**3
    """Memory limit: on a host for the whole project, locally for the data of each process (RLIMIT_DATA)."""
    runner_project_processes: Annotated[int, Field(ge=16)] = 512
    """Maximum number of a project's processes and threads on a host. Not limited locally, where RLIMIT_NPROC would
    count your own processes too."""
    runner_project_cpu: Annotated[int, Field(ge=1), Unit("% of a core")] | None = 200
    """CPU limit of a project on a host, in percent of one core; 200 is two cores. Not limited locally."""
    runner_project_file: Annotated[int, Field(ge=1024**2), Unit("bytes")] | None = 2 * 1024**3
    """Maximum size of one file (RLIMIT_FSIZE)."""
    runner_project_disk: Annotated[int, Field(ge=16 * 1024**2), Unit("bytes")] | None = 10 * 1024**3
    """Maximum size of all files of a project on a host, each counted as at least 16 KiB. A project above the limit is
    stopped; its user gets time to delete files."""
    runner_disk_reserve: Bytes = 1024**3
    """Minimum free disk space on a runner's host. Below it, the runner stops the project that writes the most."""
    runner_backup_max_bytes: Annotated[int, Field(ge=1024**2), Unit("bytes")] = BACKUP_BYTES
    """The most that the host may send to the target of backups during one backup. Somebody who has taken over the host
    could otherwise fill the target."""
    runner_project_window: Annotated[int, Field(ge=128 * 1024, le=32 * 1024**2), Unit("bytes")] = 2 * 1024**2
    """Maximum unacknowledged output of one command."""
    runner_project_reader_patience: Annotated[int, Field(ge=10), Unit("seconds")] = 600
    """How long a command keeps running while nobody reads its output (a frozen tab, a closed lid, a lost network). A
    reader that returns within this time gets the whole output; a command that prints more than the window waits for
    it. A closed tab or killed program looks the same, so its command also runs for this time."""
    runner_project_terminals: Annotated[int, Field(ge=1, le=1000)] = 32
    """Maximum number of terminals of a project (docs/how-to/use-terminals.md)."""
    runner_project_scrollback: Annotated[int, Field(ge=0, le=1024**3), Unit("bytes")] = 8 * 1024**2
    """Memory of each terminal for the lines that have left its screen. A cell takes 8 bytes: 8 MiB hold about 10,000
    lines of 80 columns."""
    runner_project_recording: Annotated[int, Field(ge=64 * 1024), Unit("bytes")] = 64 * 1024**2
    """Maximum size of a recording of a terminal (docs/how-to/use-terminals.md). A full one ends, and the terminal goes
    on."""
    runner_project_clipboard: bool = False
    """Whether programs on terminals may set the clipboard of the viewer who types (OSC 52). They can never read it. A
    program that prints what others wrote, such as `cat`, could then change what you paste next."""
    runner_project_jobs: Annotated[int, Field(ge=1, le=1000)] = 32
    """Maximum number of jobs of a project: those that run, and the last that have ended."""
    runner_project_job_output: Annotated[int, Field(ge=64 * 1024, le=1024**3), Unit("bytes")] = 1024**2
    """How much of each job's output is kept in memory. Older output is dropped."""
    runner_project_output_rate: Annotated[int, Field(ge=64 * 1024), Unit("bytes a second")] = 32 * 1024**2
    """How much the program on each terminal, and each job, may print. Beyond that it waits, so that output without a
    reader does not take the project's processor time."""
    runner_project_documents: Annotated[int, Field(ge=0, le=10_000)] = 1000
    """Maximum number of documents of a project that are kept the same as the files at their paths; 0 for none. Each
    costs a request when the project starts, and each folder with documents an inotify watch."""
    runner_project_api_packages: Packages = []
    """Python packages that add methods to the project agent (docs/how-to/add-your-own-api.md)."""
    runner_project_environment: Annotated[dict[Variable, VariableValue], Structured] = {}
    """Environment variables of every command in projects, such as {"https_proxy": "http://proxy.example.org:3128"}. A
    project gets them at its next start. Set no secrets: every command of every project can read them. A local platform
    also passes on the proxy variables and CA files of its own environment; this setting overrides them."""
    runner_project_read_only_paths: Shown = []
    """Files and folders of a host that its projects can read at the same path, such as /srv/datasets or /etc/pip.conf
    (docs/reference/sandbox.md). File modes must allow others to read them. Not for projects on this machine."""
    runner_project_read_write_paths: Shown = []
    """Files and folders that all projects of a host can also write to, if file modes allow others to write: a project's
    uid changes with each start. Files there do not count towards a project's disk limit."""
    runner_project_devices: Shown = []
    """Devices that projects of a host may use: a device such as /dev/nvidia0, or all in a folder such as /dev/dri.
    Projects get each device's group."""


class MetricsSettings(_Role):
    """What Prometheus may read of each host, and hosts that watch the platform (docs/how-to/monitor.md)."""

    metrics_token_file: Path | None = None
    """File on the control machine with the token that a scraper shows: at least 32 characters, mode 0600. Hosts get
    only its SHA-256. Without it, there are no metrics for other hosts. Make it with openssl rand -base64 32."""
    metrics_scrapers: Annotated[list[Network], Listed] = []
    """Addresses or networks that may read metrics, such as 10.0.0.9. Hosts of the group monitoring may always do so."""
    metrics_port: Port = 9464
    """Port of each host's exporter; its hubs use the following ports for their own metrics."""
    monitoring_port: Port = 9090
    """Port of Prometheus on a host of the group monitoring, on loopback alone: look at it through an SSH tunnel."""
    monitoring_alertmanager_port: Port = 9093
    """Port of Alertmanager there, on loopback alone."""
    monitoring_retention: Annotated[int, Field(ge=1), Unit("days")] = 30
    """How long Prometheus keeps samples. Its own default is 15; 30 show a month's growth."""
    monitoring_alertmanager_file: Path | None = None
    """Alertmanager's configuration, on the control machine: whom it tells, and how. It may hold secrets. Default: it
    tells nobody, and shows alerts on its own page."""


NATS_STOP_SECONDS = 30
"""Maximum time for JetStream to write its data when nats-server stops."""


class Settings(
    MetricsSettings, RunnerSettings, ProxySettings, KeeperSettings, HubSettings, NatsSettings, PlatformSettings
):
    """All settings of one host, for every role."""

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports: dict[int, str] = {}
        optional = ("nats_leafnode_port", "nats_gateway_port", "nats_mqtt_port")
        named: list[tuple[str, int]] = [
            ("nats_port", self.nats_port),
            ("nats_websocket_port", self.nats_websocket_port),
            ("nats_monitor_port", self.nats_monitor_port),
            ("nats_cluster_port", self.nats_cluster_port),
            *((key, port) for key in optional if (port := getattr(self, key)) is not None),
            ("proxy_port", self.proxy_port),
            *((("proxy_http_port", self.http_port),) if self.http_port else ()),
            *((f"hub_port + {n}" if n else "hub_port", port) for n, port in enumerate(self.hub_ports)),
            *((f"metrics_port + {n}" if n else "metrics_port", port) for n, port in enumerate(self.metrics_ports)),
            ("monitoring_port", self.monitoring_port),
            ("monitoring_alertmanager_port", self.monitoring_alertmanager_port),
        ]
        for key, port in named:
            if port in ports:
                raise ValueError(f"{key} and {ports[port]} are both {port}: choose different ports")
            ports[port] = key
        if self.hub_ports[-1] > 65535:
            raise ValueError(
                f"hub_port = {self.hub_port}: hub_count = {self.hub_count} needs ports above 65535; lower one"
            )
        return self

    @model_validator(mode="after")
    def _browsers_fit(self) -> Self:
        asked = "proxy_max_browsers" in self.model_fields_set
        if asked and self.proxy_max_browsers + OTHER_CONNECTIONS > self.nats_max_connections:
            raise ValueError(
                f"proxy_max_browsers = {self.proxy_max_browsers}: a nats-server must also take the browsers of the "
                f"others, and nats_max_connections is {self.nats_max_connections}: raise it to "
                f"{self.proxy_max_browsers + OTHER_CONNECTIONS} at least"
            )
        return self

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if not self.platform_tls:
            for listener in ("client", "websocket", "cluster", "leafnode", "gateway", "mqtt"):
                if getattr(self, f"nats_{listener}_tls") is not None:
                    raise ValueError(f"nats_{listener}_tls is set, but platform_tls is false: remove one of them")
        if self.nats_jetstream_key_file and self.platform_manager == "supervisor":
            raise ValueError(
                "nats_jetstream_key_file needs platform_manager = systemd, which passes the key to nats-server without "
                "exposing it; with supervisor, encrypt the disk instead"
            )
        return self

    @model_validator(mode="after")
    def _projects_see_what_they_may(self) -> Self:
        for key in ("runner_project_read_only_paths", "runner_project_read_write_paths"):
            for path in getattr(self, key):
                if why := why_not_shown(path, self.platform_root):
                    raise ValueError(f"{key}: projects cannot be shown {path}: {why}")
        if both := {*self.runner_project_read_only_paths} & {*self.runner_project_read_write_paths}:
            raise ValueError(
                f"{min(both)} is in runner_project_read_only_paths and in runner_project_read_write_paths: remove one"
            )
        for outer in self.runner_project_read_write_paths:
            for path in (*self.runner_project_read_only_paths, *self.runner_project_read_write_paths):
                if path.startswith(f"{outer}/"):
                    raise ValueError(
                        f"{path} is in {outer}, which is in runner_project_read_write_paths: a project could replace "
                        "it with a link to any path of the host, which other projects would see at their next start; "
                        "use folders that do not contain each other"
                    )
        for path in self.runner_project_devices:
            if why := why_no_device(path):
                raise ValueError(f"runner_project_devices: projects cannot have {path}: {why}")
        return self

    @model_validator(mode="after")
    def _oidc_is_whole(self) -> Self:
        if _MANY_TENANTS.match(self.hub_oidc_issuer or ""):
            raise ValueError(
                f"hub_oidc_issuer = {self.hub_oidc_issuer!r} is for all tenants: use the id of your tenant, "
                "https://login.microsoftonline.com/TENANT/v2.0"
            )
        needed = ("hub_oidc_issuer", "hub_oidc_client_id", "hub_oidc_client_secret_file")
        missing = [key for key in needed if not getattr(self, key)]
        if missing and len(missing) < len(needed):
            raise ValueError(f"{missing[0]} is not set: set all of {', '.join(needed)}, or none")
        if "openid" not in self.hub_oidc_scopes:
            raise ValueError("hub_oidc_scopes must contain openid")
        if not self.hub_oidc_email_claims:
            raise ValueError("hub_oidc_email_claims must name a claim, such as email")
        if set(self.hub_oidc_email_claims) != {"email"} and not self.hub_oidc_verified_domains:
            raise ValueError(
                "hub_oidc_email_claims: preferred_username and upn count only for the domains in "
                "hub_oidc_verified_domains, which is empty: add your domains"
            )
        return self

    @model_validator(mode="after")
    def _passwords_are_safe(self) -> Self:
        least = _LEAST_PASSWORD_MEMORY[min(self.hub_password_iterations, len(_LEAST_PASSWORD_MEMORY)) - 1]
        if self.hub_password_memory < least:
            raise ValueError(
                f"hub_password_memory = {self.hub_password_memory}: with hub_password_iterations = "
                f"{self.hub_password_iterations}, OWASP asks for at least {least} KiB; raise one of them"
            )
        return self

    @model_validator(mode="after")
    def _sessions_end(self) -> Self:
        if self.hub_session_absolute < self.hub_session_sliding:
            raise ValueError("hub_session_absolute must not be shorter than hub_session_sliding")
        return self

    @property
    def nats_stop_seconds(self) -> int:
        """How long the service manager waits before it kills nats-server. A kill loses data that JetStream has not
        written.

        On hosts, a stop starts lame duck mode, or finds it already running, and takes at most its duration. On this
        machine clients have no other server, so the stop signal skips lame duck mode.
        """
        lame_duck = self.nats_lame_duck_duration if self.platform_manager == "systemd" else 0
        return lame_duck + NATS_STOP_SECONDS

    @property
    def hub_ports(self) -> list[int]:
        """HTTP ports of the hubs."""
        return [self.hub_port + n for n in range(self.hub_count)]

    @property
    def metrics_ports(self) -> list[int]:
        """The port of the exporter, and those of the hubs' metrics, in the order of the hubs; none without a token."""
        return [self.metrics_port + n for n in range(self.hub_count + 1)] if self.metrics_token_file else []

    @property
    def hub_names(self) -> list[str]:
        """Names of the hubs, which are also the names of their programs."""
        return [f"hub-{n + 1}" for n in range(self.hub_count)]

    @property
    def keeper_names(self) -> list[str]:
        """Names of the keepers, which are also the names of their programs."""
        return [f"keeper-{n + 1}" for n in range(self.keeper_count)]

    @property
    def url(self) -> str:
        """The site's address, which is also its origin."""
        port = "" if self.proxy_port == 443 else f":{self.proxy_port}"
        return f"https://{self.proxy_name}{port}"

    @property
    def nats_url(self) -> str:
        """The URL of this host's nats-server for hubs, runners and projects."""
        return f"{'tls' if self.platform_tls else 'nats'}://{self.platform_address}:{self.nats_port}"

    @property
    def jetstream_directory(self) -> Path:
        """The folder of nats-server's streams."""
        return Path(self.nats_jetstream_directory or self.platform_root / "nats" / "jetstream")

    @property
    def nats_writable(self) -> list[str]:
        """The folders that nats-server writes to."""
        folder = self.platform_root / "nats"
        logs = [folder / "log"] if self.nats_log_to_file else []
        return [str(path) for path in (folder / "jwt", self.jetstream_directory, folder / "run", *logs)]

    @property
    def lowest_proxy_port(self) -> int:
        """Below 1024, nginx needs the right to bind it."""
        return min(self.proxy_port, self.http_port or self.proxy_port)

    @property
    def runner_shown(self) -> Path:
        """The folder on a runner's host whose changes its running projects see."""
        return self.platform_root / "runner" / "shown"

    @property
    def runner_label(self) -> str:
        """The runner's name."""
        return self.runner_name or self.platform_name

    @property
    def runner_uuid(self) -> str:
        """The runner's id."""
        return self.runner_id or str(uuid.uuid5(_RUNNER_NAMESPACE, self.runner_label))


def load(data: Mapping[str, Any], place: str) -> Settings:
    """The settings in ``data``, which came from ``place``.

    Raises :class:`SettingsError` with one line for each wrong setting: its place, key, value and rule.
    """
    try:
        return Settings.model_validate(dict(data))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem, place) for problem in error.errors())) from None


def _explain(problem: Any, place: str) -> str:
    key, inside = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _names(Settings) if inside else Settings.model_fields
        near = difflib.get_close_matches(inside.rpartition(".")[2] if inside else key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/reference/settings.md lists all settings"
        return f"{place}: unknown setting {key}{inside}: {hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not key:
        return f"{place}: {message}"
    shown = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    return f"{place}: {key}{inside}{shown}: {message[0].lower()}{message[1:]}"


def _path(location: tuple[str | int, ...]) -> tuple[str, str]:
    """The setting and the location within it: ``nats_gateways`` and ``[0].urls``."""
    key, *parts = location or ("",)
    # pydantic adds "[key]" after an invalid key of a dictionary.
    inside = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts if part != "[key]"]
    return str(key), "".join(inside)


def _names(model: type[BaseModel]) -> set[str]:
    """The names of all settings inside a model's settings."""
    found: set[str] = set()
    for field in model.model_fields.values():
        for part in parts(field.annotation):
            found |= set(part.model_fields) | _names(part)
    return found


def parts(annotation: Any) -> list[type[BaseModel]]:
    """The models in the type of a setting, also within lists and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for argument in get_args(annotation) for part in parts(argument)]
