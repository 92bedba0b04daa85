"""Every setting of a deploy: flat keys, prefixed by role, with type, unit, default and reason.

A whole inventory is validated by :func:`load` before any host is touched. A default that is not the program's own says
why.
"""

from __future__ import annotations

import difflib
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from natskit.errors import SettingsError
from natskit.permissions import MAX_PROJECTS_PER_ACCOUNT

Port = Annotated[int, Field(ge=1, le=65535)]
Bytes = Annotated[int, Field(ge=0)]
Seconds = Annotated[int, Field(ge=1)]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")]
"""A DNS name or an IPv4 address."""
Package = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]

MAX_ROOT = 107 - len("/supervisor/supervisor.sock.4194304")
"""unix(7): the path of a socket has at most 107 bytes; supervisor makes its own under a name that ends in its pid."""

_ID_OR_NOTHING = r"^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?$"
_RUNNER_NAMESPACE = uuid.UUID("6e617473-6b69-7400-8000-72756e6e6572")


def _split(value: Any) -> Any:
    """``a,b`` from a command line is the list ``["a", "b"]``."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Hosts = Annotated[list[Host], BeforeValidator(_split), Field(min_length=1)]
Packages = Annotated[list[Package], BeforeValidator(_split)]
Folders = Annotated[list[Annotated[str, Field(pattern=r"^/")]], BeforeValidator(_split)]
"""Absolute paths."""


class _Role(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlatformSettings(_Role):
    """Where the platform lives on its machine."""

    platform_root: Path
    """Folder of everything that lands on the host; absolute."""
    platform_python_path: Folders = []
    """Folders with Python packages of your own, for hub_api_packages and runner_project_api_packages."""
    platform_first_account: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")] = "admin@localhost"
    """E-mail of the account that is made when there is none yet."""

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        if not self.platform_root.is_absolute():
            raise ValueError("platform_root must be an absolute path")
        if re.search(r"[\s%;\"'$]", str(self.platform_root)):
            raise ValueError(
                f"platform_root {self.platform_root} has a character that supervisor or nginx read as more than a name "
                "(space, quote, %, ;, $): put it elsewhere, locally with NATSKIT_LOCAL"
            )
        if len(str(self.platform_root)) > MAX_ROOT:
            raise ValueError(
                f"platform_root {self.platform_root} is longer than {MAX_ROOT} characters, and the path of a Unix "
                "socket in it would not fit: put it elsewhere, locally with NATSKIT_LOCAL"
            )
        return self


class NatsSettings(_Role):
    """nats-server. Names and units follow its configuration (docs.nats.io, "Configuration")."""

    nats_host: Host = "127.0.0.1"
    nats_port: Port = 4222
    nats_websocket_host: Host = "127.0.0.1"
    """Loopback, because it speaks no TLS: the proxy in front of it does."""
    nats_websocket_port: Port = 5004
    nats_monitor_port: Port = 8222
    """Always on loopback: monitoring names every connection and its subjects."""
    nats_max_payload: Annotated[int, Field(ge=65_536, le=64 * 1024**2)] = 1024 * 1024
    """Bytes. The server's own default and its maximum; larger messages hold up everybody behind them."""
    nats_max_control_line: Annotated[int, Field(ge=512)] = 4096
    """Bytes. The server's own default; the longest subject of ours has 90."""
    nats_max_connections: Annotated[int, Field(ge=1)] = 65_536
    nats_max_pending: Annotated[int, Field(ge=1024**2)] = 64 * 1024 * 1024
    """Bytes the server holds for a reader that is too slow before it is cut off: the server's own default."""
    nats_write_deadline: Seconds = 10
    nats_ping_interval: Seconds = 20
    """Not the server's 120: a browser whose network vanished should not look present for minutes."""
    nats_auth_timeout: Annotated[float, Field(gt=0, le=30)] = 5
    """Seconds. Not the server's 2: after a restart thousands of clients wait for the same two hubs."""
    nats_lame_duck_duration: Annotated[int, Field(ge=30)] = 30
    """Seconds over which clients are moved away before the server stops; 30 is the server's minimum."""
    nats_jetstream_max_file: Bytes = 10 * 1024**3
    nats_jetstream_max_memory: Bytes = 256 * 1024**2
    nats_sync_interval: Annotated[str, Field(pattern=r"^(always|[1-9][0-9]*(ms|s|m))$")] = "always"
    """Not the server's 2m, which loses acknowledged writes at power loss (Jepsen, NATS 2.12.1, 2025)."""
    nats_debug: bool = False
    nats_extra: str = ""
    """Anything nats-server knows and we do not model, appended to its configuration as it is."""


class HubSettings(_Role):
    """The hubs of one host."""

    hub_count: Annotated[int, Field(ge=1, le=64)] = 2
    """Two, so that one may die; they share the requests in a queue group."""
    hub_port: Port = 8101
    """HTTP port of the first hub, on loopback; the others follow."""
    hub_session_sliding: Seconds = 7 * 86_400
    """Seconds a browser stays signed in without being seen."""
    hub_session_absolute: Seconds = 30 * 86_400
    """Seconds after which the password is asked for again in any case."""
    hub_authorization_ttl: Annotated[int, Field(ge=10)] = 900
    """Seconds a connection keeps its rights without asking again: the backstop for a lost kick."""
    hub_password_concurrency: Annotated[int, Field(ge=1, le=64)] = 1
    """Passwords hashed at the same time; each takes a core for 0.1 s and 64 MiB, and callouts must not wait for it."""
    hub_max_projects_per_account: Annotated[int, Field(ge=1, le=MAX_PROJECTS_PER_ACCOUNT)] = MAX_PROJECTS_PER_ACCOUNT
    hub_api_packages: Packages = []
    """Python packages that add methods to the hub (README, "Your own API")."""
    hub_state_replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """Copies of the state: 1 on one machine, 3 on a cluster."""


class ProxySettings(_Role):
    """nginx."""

    proxy_name: Host = "localhost"
    """The host name in the address bar; the site's origin is made of it and the port."""
    proxy_listen: Host = "127.0.0.1"
    proxy_port: Port = 4043
    proxy_certificate_hosts: Hosts = ["localhost", "127.0.0.1"]
    """DNS names and addresses in the certificate from the local CA."""
    proxy_websocket_buffer: Bytes = 65_536
    """Bytes for each direction of each open WebSocket that is busy: bulk speed against memory (bench/RESULTS.md)."""
    proxy_sign_in_rate: Annotated[int, Field(ge=1)] = 30
    """Sign-in attempts a minute and address; more are answered 429."""
    proxy_sign_in_burst: Annotated[int, Field(ge=0)] = 20
    """Attempts beyond that rate that are let through at once: a class behind one address."""
    proxy_max_body: Bytes = 1024 * 1024
    """Bytes of an HTTP request; the hubs take no more than a NATS message may have."""


class RunnerSettings(_Role):
    """The runner of one host, and the limits of each process of its projects."""

    runner_name: str = "local"
    runner_id: Annotated[str, Field(pattern=_ID_OR_NOTHING)] = ""
    """Lower-case UUID; made from the name where none is given."""
    runner_project_memory: Annotated[int, Field(ge=256 * 1024**2)] | None = 4 * 1024**3
    """Bytes of data of one process (RLIMIT_DATA)."""
    runner_project_processes: Annotated[int, Field(ge=16)] | None = None
    """RLIMIT_NPROC counts all processes of the user the runner runs as, so locally it would count yours: off."""
    runner_project_file: Annotated[int, Field(ge=1024**2)] | None = 2 * 1024**3
    """Bytes of one file (RLIMIT_FSIZE)."""
    runner_project_window: Annotated[int, Field(ge=128 * 1024, le=32 * 1024**2)] = 2 * 1024**2
    """Bytes of output of one command that may be on their way, unacknowledged."""
    runner_project_api_packages: Packages = []
    """Python packages that add methods to the project agent (README, "Your own API")."""


class Settings(RunnerSettings, ProxySettings, HubSettings, NatsSettings, PlatformSettings):
    """All settings of one host that plays every role."""

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports: dict[int, str] = {}
        named = [
            ("nats_port", self.nats_port),
            ("nats_websocket_port", self.nats_websocket_port),
            ("nats_monitor_port", self.nats_monitor_port),
            ("proxy_port", self.proxy_port),
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
    def _messages_fit(self) -> Self:
        if self.nats_max_payload > self.nats_max_pending:
            raise ValueError("nats_max_payload must not be higher than nats_max_pending: nats-server would not start")
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
        """Where hubs, runners and projects of this host connect."""
        return f"nats://{self.nats_host}:{self.nats_port}"

    @property
    def runner_uuid(self) -> str:
        """The runner's id."""
        return self.runner_id or str(uuid.uuid5(_RUNNER_NAMESPACE, self.runner_name))


def load(data: Mapping[str, Any], place: str) -> Settings:
    """The settings in ``data``; ``place`` says where they came from.

    Raises :class:`SettingsError` with one line for each wrong setting: its place, key, value and rule.
    """
    try:
        return Settings.model_validate(dict(data))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem, place) for problem in error.errors())) from None


def _explain(problem: Any, place: str) -> str:
    key = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Settings.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else "natskit/settings.py has them all"
        return f"{place}: unknown setting {key}: {hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not key:
        return f"{place}: {message}"
    return f"{place}: {key} = {problem['input']!r}: {message[0].lower()}{message[1:]}"
