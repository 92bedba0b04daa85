"""Every setting of a deploy: flat keys, prefixed by role, with type, unit, default and reason.

A whole inventory is validated by :func:`load`, host by host, and by ``natskit/topology.py``, before any host is
touched. A default that is not the program's own says why.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from natskit.errors import SettingsError
from natskit.nats_settings import NatsSettings
from natskit.permissions import MAX_PROJECTS_PER_ACCOUNT
from natskit.setting_types import Bytes, Host, HostPath, Listed, Port, Seconds, Structured, Unit

Package = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]

MAX_ROOT = 107 - len("/supervisor/supervisor.sock.4194304")
"""unix(7): the path of a socket has at most 107 bytes; supervisor makes its own under a name that ends in its pid."""

_ID_OR_NOTHING = r"^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?$"
_RUNNER_NAMESPACE = uuid.UUID("6e617473-6b69-7400-8000-72756e6e6572")


BackendName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Scope = Annotated[str, Field(pattern=r"^[\x21\x23-\x5b\x5d-\x7e]+$")]
"""RFC 6749, 3.3."""
_ISSUER = r"^(https://[^\s?#/]+|http://(localhost|127\.0\.0\.1)(:\d+)?)(/[^\s?#]*)?$"
"""OpenID Connect Core, 2: https, without query and fragment."""


def _network(value: str) -> str:
    ipaddress.ip_network(value)
    return value


Network = Annotated[str, AfterValidator(_network)]
Packages = Annotated[list[Package], Listed]
Folders = Annotated[list[Annotated[str, Field(pattern=r"^/")]], Listed]
"""Absolute paths."""


class _Role(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlatformSettings(_Role):
    """Where the platform lives on its hosts, and how its programs are kept running."""

    platform_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$")] = "natskit"
    """The host's name within the platform; in an inventory, the name pyinfra knows the host by, unless told."""
    platform_address: Host = "127.0.0.1"
    """DNS name or IPv4 address where the other hosts reach this one; unless told, pyinfra's name for the host."""
    platform_manager: Literal["systemd", "supervisor"] = "systemd"
    """What keeps the programs running: systemd on hosts, supervisor where there is no root."""
    platform_tls: bool = True
    """TLS between the programs, by certificates of the platform's own CA; off only where all of it is on loopback."""
    platform_root: Path = Path("/var/lib/natskit")
    """Folder of everything that lands on the host, but for programs and systemd's units; absolute."""
    platform_programs: Path = Path("/opt/natskit")
    """Folder of the programs that systemd runs, each version beside the others; absolute."""
    platform_control: Path | None = None
    """Folder on the control machine with the platform's identity, what is uploaded, and ``platform.json``."""
    platform_python_path: Folders = []
    """Folders with Python packages of your own, for hub_api_packages and runner_project_api_packages."""
    platform_first_account: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")] = "admin@localhost"
    """E-mail of the account that is made when there is none yet."""

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        for key in ("platform_root", "platform_programs", "platform_control"):
            path = getattr(self, key)
            if path is not None and not path.is_absolute():
                raise ValueError(f"{key} must be an absolute path, and is {path}")
        if re.search(r"[\s%;\"'$]", str(self.platform_root)):
            raise ValueError(
                f"platform_root {self.platform_root} has a character that supervisor or nginx read as more than a name "
                "(space, quote, %, ;, $): put it elsewhere, locally with NATSKIT_LOCAL"
            )
        if self.platform_manager == "supervisor" and len(str(self.platform_root)) > MAX_ROOT:
            raise ValueError(
                f"platform_root {self.platform_root} is longer than {MAX_ROOT} characters, and the path of a Unix "
                "socket in it would not fit: put it elsewhere, locally with NATSKIT_LOCAL"
            )
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
        """The address to listen on: nobody but this machine where it is known by loopback, otherwise every interface,
        since the address others use may be one that the host itself does not have (NAT)."""
        return "127.0.0.1" if self.platform_address in ("127.0.0.1", "localhost") else "0.0.0.0"


class BackendSettings(_Role):
    """A trusted backend."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of its token, as `natskit backend token` prints it."""
    accounts: Literal["own", "all"] = "own"
    """Sessions of which accounts it may open: those it made itself, or everybody's. With "all", its token is as good as
    every password of the platform."""
    networks: Annotated[list[Network], Listed] = []
    """Where it may come from, as addresses or networks such as 10.0.0.0/8; from anywhere, unless told."""


class HubSettings(_Role):
    """The hubs of one host."""

    hub_count: Annotated[int, Field(ge=1, le=64)] = 2
    """Two, so that one may die; they share the requests in a queue group."""
    hub_port: Port = 8101
    """HTTP port of the first hub; the others follow. On hosts it speaks TLS, with the proxy alone."""
    hub_session_sliding: Seconds = 7 * 86_400
    """Seconds a browser stays signed in without being seen."""
    hub_session_absolute: Seconds = 30 * 86_400
    """Seconds after which the password is asked for again in any case."""
    hub_authorization_ttl: Annotated[int, Field(ge=10), Unit("seconds")] = 900
    """Seconds a connection keeps its rights without asking again: the backstop for a lost kick."""
    hub_password_concurrency: Annotated[int, Field(ge=1, le=64)] = 1
    """Passwords hashed at the same time; each takes a core for 0.1 s and 64 MiB, and callouts must not wait for it."""
    hub_max_projects_per_account: Annotated[int, Field(ge=1, le=MAX_PROJECTS_PER_ACCOUNT)] = MAX_PROJECTS_PER_ACCOUNT
    """nats-server's own end of the list of subjects of one session lies just above."""
    hub_share_changes: Annotated[int, Field(ge=2), Unit("a minute")] = 10
    """How often a minute a project may be shared with, or taken from, the same account before sharing it again has to
    wait: each time cuts that account's connections, and its owner is not the one who notices. A project may be renamed
    as often; its owner may delete projects, and take projects from one account, six times as often."""
    hub_caller_share: Annotated[float, Field(ge=0.01, le=100), Unit("of its time")] = 0.25
    """The part of each hub's time that one account, project or runner may use for long; who asks for more is refused
    with `unavailable` and `retry_after`. 0.25 is 4,000 small requests a second, or a list of 1,500 projects every
    0.2 s. From 1 up nobody is kept from what a hub can do."""
    hub_api_packages: Packages = []
    """Python packages that add methods to the hub (README, "Your own API")."""
    hub_audit_days: Annotated[int, Field(ge=1, le=3650), Unit("days")] = 365
    """What happened longer ago is forgotten by the audit."""
    hub_audit_bytes: Annotated[int, Field(ge=1024**2), Unit("bytes")] = 512 * 1024**2
    """Bytes of the audit, which nats-server sets aside; beyond, the oldest events go. One takes about 400."""
    hub_backends: Annotated[dict[BackendName, BackendSettings], Structured] = {}
    """Trusted backends by name, each allowed to sign people in (docs/backend.md); `natskit backend token` makes one."""
    hub_oidc_issuer: Annotated[str, Field(pattern=_ISSUER)] | None = None
    """The OpenID provider where people can sign in as well, as it calls itself (docs/oidc.md); https, or http on
    loopback."""
    hub_oidc_client_id: str = ""
    """What this site is called there. Its redirect URI is the site's address with /api/oidc/callback."""
    hub_oidc_client_secret_file: Path | None = None
    """File on the control machine with the client's secret."""
    hub_oidc_ca_file: Path | None = None
    """CA of the provider's certificate (PEM), on the control machine; unless told, what the host trusts."""
    hub_oidc_scopes: Annotated[list[Scope], Listed] = ["openid", "email"]
    """What is asked for; openid must be among it, and email for who has no account yet."""
    hub_oidc_label: Annotated[str, Field(pattern=r"^[^\x00-\x1f<>]{1,60}$")] = "single sign-on"
    """What the button of the sign-in page calls it."""
    hub_oidc_make_accounts: bool = True
    """Make an account for who comes for the first time, with a verified e-mail; otherwise only linked ones come in."""
    hub_oidc_link_accounts: bool = False
    """Let who comes with a verified e-mail into the account that has it. Only for a provider whose word on an e-mail is
    as good as the password of that account."""
    hub_oidc_domains: Annotated[list[Host], Listed] = []
    """Only e-mail addresses of these domains come in for the first time; all, unless told."""
    hub_state_replicas: Annotated[int, Field(ge=1, le=5)] | None = None
    """Copies of the state; unless told 3 on a cluster of nats-servers, 1 where there is one."""
    hub_state_max_bytes: Annotated[int, Field(ge=1024**2), Unit("bytes")] = 128 * 1024**2
    """Bytes of each of the five buckets of the state, so that none takes the room of another; an account or a session
    has about half a kilobyte. nats_jetstream_max_file has to have room for all five."""


class ProxySettings(_Role):
    """nginx."""

    proxy_name: Host = "localhost"
    """The host name in the address bar; the site's origin is made of it and the port."""
    proxy_listen: Host | None = None
    """Address to listen on; every interface of a host that others reach, unless told."""
    proxy_port: Port = 4043
    """For https. Not 443, which needs root on this machine."""
    proxy_http_port: Port | None = None
    """Listen for plain HTTP as well and send everybody to https, but for challenges of ACME; 80 with
    proxy_acme_webroot, unless told."""
    proxy_certificate: Path | None = None
    """Your own certificate for proxy_name, with the chain up to its root (PEM), on the control machine."""
    proxy_key: Path | None = None
    """Its key (PEM, without a password)."""
    proxy_certificate_on_host: bool = False
    """Something on the host renews the certificate (docs/acme.md): proxy_certificate and proxy_key are paths there, or,
    if not set, platform_root/proxy/tls.crt and tls.key, where a deploy puts a certificate only if there is none."""
    proxy_acme_webroot: HostPath | None = None
    """Folder on the host whose .well-known/acme-challenge is answered from over plain HTTP: for certbot --webroot and
    lego --http.webroot. Source: RFC 8555, section 8.3."""
    proxy_certificate_hosts: Annotated[list[Host], Listed] = []
    """DNS names and addresses in the certificate from the platform's CA; unless told, proxy_name and the address."""
    proxy_websocket_buffer: Bytes = 65_536
    """Bytes for each direction of each open WebSocket that is busy: bulk speed against memory (bench/RESULTS.md)."""
    proxy_sign_in_rate: Annotated[int, Field(ge=1), Unit("a minute")] = 30
    """Sign-in attempts a minute and address; more are answered 429."""
    proxy_sign_in_burst: Annotated[int, Field(ge=0)] = 20
    """Attempts beyond that rate that are let through at once: a class behind one address."""
    proxy_max_body: Bytes = 1024 * 1024
    """Bytes of an HTTP request; the hubs take no more than a NATS message may have."""

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        if (self.proxy_certificate is None) != (self.proxy_key is None):
            missing = "proxy_key" if self.proxy_key is None else "proxy_certificate"
            raise ValueError(f"proxy_certificate and proxy_key go together, and {missing} is not set")
        for path in (self.proxy_certificate, self.proxy_key):
            if path is not None and self.proxy_certificate_on_host and not re.fullmatch(r"/[^\s%;\"'$\\]*", str(path)):
                raise ValueError(f"proxy_certificate_on_host is set, and {path} is not an absolute path on the host")
        return self

    @property
    def http_port(self) -> int | None:
        """Where plain HTTP is answered, if it is."""
        return self.proxy_http_port or (80 if self.proxy_acme_webroot else None)


class RunnerSettings(_Role):
    """The runner of one host, and the limits of each process of its projects."""

    runner_name: str = ""
    """What the runner is called in ``natskit status``; the host's name, unless told."""
    runner_id: Annotated[str, Field(pattern=_ID_OR_NOTHING)] = ""
    """Lower-case UUID; made from the name where none is given."""
    runner_project_memory: Annotated[int, Field(ge=256 * 1024**2), Unit("bytes")] | None = 4 * 1024**3
    """Bytes: of all of a project together on a host; locally of the data of each process (RLIMIT_DATA)."""
    runner_project_processes: Annotated[int, Field(ge=16)] = 512
    """Processes and threads of a project on a host; locally RLIMIT_NPROC would count yours, and it is not limited."""
    runner_project_cpu: Annotated[int, Field(ge=1), Unit("% of a core")] | None = 200
    """Percent of one core that a project on a host may use; 200 is two cores. Not limited locally."""
    runner_project_file: Annotated[int, Field(ge=1024**2), Unit("bytes")] | None = 2 * 1024**3
    """Bytes of one file (RLIMIT_FSIZE)."""
    runner_project_disk: Annotated[int, Field(ge=16 * 1024**2), Unit("bytes")] | None = 10 * 1024**3
    """Bytes of a project's files on a host, of which each counts as 16 KiB at the least; one that has more is stopped,
    and its user gets time to clean up."""
    runner_disk_reserve: Bytes = 1024**3
    """Bytes that stay free on a runner's host: below, the project that writes most is stopped."""
    runner_project_window: Annotated[int, Field(ge=128 * 1024, le=32 * 1024**2), Unit("bytes")] = 2 * 1024**2
    """Bytes of output of one command that may be on their way, unacknowledged."""
    runner_project_api_packages: Packages = []
    """Python packages that add methods to the project agent (README, "Your own API")."""


class Settings(RunnerSettings, ProxySettings, HubSettings, NatsSettings, PlatformSettings):
    """All settings of one host that plays every role."""

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
        ]
        for key, port in named:
            if port in ports:
                raise ValueError(f"{key} and {ports[port]} are both {port}: give each its own port")
            ports[port] = key
        if self.hub_ports[-1] > 65535:
            raise ValueError(f"hub_port = {self.hub_port}: no room below 65536 for the {self.hub_count} of hub_count")
        return self

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if not self.platform_tls:
            for listener in ("client", "websocket", "cluster", "leafnode", "gateway", "mqtt"):
                if getattr(self, f"nats_{listener}_tls") is not None:
                    raise ValueError(f"nats_{listener}_tls changes TLS that is off: platform_tls is false")
        if self.nats_jetstream_key_file and self.platform_manager == "supervisor":
            raise ValueError(
                "nats_jetstream_key_file needs platform_manager systemd, which gives nats-server the key without "
                "showing it to others; here, encrypt the disk"
            )
        return self

    @model_validator(mode="after")
    def _oidc_is_whole(self) -> Self:
        needed = ("hub_oidc_issuer", "hub_oidc_client_id", "hub_oidc_client_secret_file")
        missing = [key for key in needed if not getattr(self, key)]
        if missing and len(missing) < len(needed):
            raise ValueError(f"{', '.join(needed)} go together, and {missing[0]} is not set")
        if "openid" not in self.hub_oidc_scopes:
            raise ValueError("hub_oidc_scopes must have openid among them")
        return self

    @model_validator(mode="after")
    def _sessions_end(self) -> Self:
        if self.hub_session_absolute < self.hub_session_sliding:
            raise ValueError("hub_session_absolute must not be shorter than hub_session_sliding")
        return self

    @property
    def hub_ports(self) -> list[int]:
        """HTTP ports of the hubs."""
        return [self.hub_port + n for n in range(self.hub_count)]

    @property
    def hub_names(self) -> list[str]:
        """Names of the hubs, which are the names of their programs."""
        return [f"hub-{n + 1}" for n in range(self.hub_count)]

    @property
    def url(self) -> str:
        """The site's address, which is also its origin."""
        port = "" if self.proxy_port == 443 else f":{self.proxy_port}"
        return f"https://{self.proxy_name}{port}"

    @property
    def nats_url(self) -> str:
        """Where hubs, runners and projects reach this host's nats-server."""
        return f"{'tls' if self.platform_tls else 'nats'}://{self.platform_address}:{self.nats_port}"

    @property
    def jetstream_directory(self) -> Path:
        """Where nats-server keeps its streams."""
        return Path(self.nats_jetstream_directory or self.platform_root / "nats" / "jetstream")

    @property
    def nats_writable(self) -> list[str]:
        """The folders nats-server writes to."""
        folder = self.platform_root / "nats"
        logs = [folder / "log"] if self.nats_log_to_file else []
        return [str(path) for path in (folder / "jwt", self.jetstream_directory, folder / "run", *logs)]

    @property
    def lowest_proxy_port(self) -> int:
        """Below 1024, nginx needs the right to bind it."""
        return min(self.proxy_port, self.http_port or self.proxy_port)

    @property
    def runner_label(self) -> str:
        """What the runner is called."""
        return self.runner_name or self.platform_name

    @property
    def runner_uuid(self) -> str:
        """The runner's id."""
        return self.runner_id or str(uuid.uuid5(_RUNNER_NAMESPACE, self.runner_label))


def load(data: Mapping[str, Any], place: str) -> Settings:
    """The settings in ``data``; ``place`` says where they came from.

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
        hint = f"did you mean {near[0]}?" if near else "docs/settings.md has them all"
        return f"{place}: unknown setting {key}{inside}: {hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not key:
        return f"{place}: {message}"
    shown = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    return f"{place}: {key}{inside}{shown}: {message[0].lower()}{message[1:]}"


def _path(location: tuple[str | int, ...]) -> tuple[str, str]:
    """The setting, and the place in it: ``nats_gateways`` and ``[0].urls``."""
    key, *parts = location or ("",)
    # A key of a dictionary that is wrong itself is followed by "[key]".
    inside = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts if part != "[key]"]
    return str(key), "".join(inside)


def _names(model: type[BaseModel]) -> set[str]:
    """The names of all that is inside a model's settings."""
    found: set[str] = set()
    for field in model.model_fields.values():
        for part in parts(field.annotation):
            found |= set(part.model_fields) | _names(part)
    return found


def parts(annotation: Any) -> list[type[BaseModel]]:
    """The models in the type of a setting: itself, what a list holds, or what else it may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for argument in get_args(annotation) for part in parts(argument)]
