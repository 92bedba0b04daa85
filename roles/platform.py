"""What the control machine keeps about a platform: its settings as validated, its identity, and where it is."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pyinfra import inventory, state
from pyinfra.api import Host, Inventory

from natskit import __version__, named_files, topology
from natskit.errors import NatskitError, SettingsError
from natskit.identity import Identity, passphrase
from natskit.identity.files import make_private, write_private
from natskit.identity.tls import ensure_ca
from natskit.identity.vault import Vault
from natskit.settings import Settings
from natskit.topology import Topology
from roles import artifacts, build, preflight, service, tls
from roles.errors import DeployError

CONNECTOR_KEYS = ("ssh_", "docker_", "_")
"""Prefixes of data that pyinfra's connectors read, not natskit."""

passphrase.withdraw()

_locks: dict[Path, IO[str]] = {}
_platform: list[tuple[Topology, dict[str, Settings]]] = []
"""Validated once, for the host that pyinfra prepares first."""
_checking = threading.Lock()
"""The others wait meanwhile: hosts are prepared side by side."""


def validate(host: Host, inventory: Inventory) -> tuple[Settings, Topology]:
    """This host's settings and the platform they are part of, whole and typed.

    Ends the run, before any host is touched, with one line for each error of any host.
    """
    try:
        with _checking:
            if not _platform:
                _platform.append(_checked(inventory))
        site, known = _platform[0]
        return known[host.name], site
    except NatskitError as error:
        raise DeployError(str(error)) from None


def _checked(inventory: Inventory) -> tuple[Topology, dict[str, Settings]]:
    site, known = topology.validate((h.name, h.groups, _ours(h.data.dict())) for h in inventory)  # type: ignore[no-untyped-call]
    first = next(iter(known.values()))
    on_systemd = service.uses_systemd(first)
    if on_systemd:
        topology.refuse(
            f"inventory, host {settings.platform_name}: {problem}"
            for settings in site.nats
            if (problem := artifacts.unknown_version(settings))
        )
    for settings in known.values():
        build.environment(settings, [*settings.hub_api_packages, *settings.runner_project_api_packages])
        if not service.uses_systemd(settings):
            preflight.check(settings)
    if not is_dry():
        _lock(first.control)
    Vault(first.identity).unlock()
    if on_systemd:
        preflight.check_hosts(inventory, site, known)
    return site, known


def _ours(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if not key.startswith(CONNECTOR_KEYS)}


def _lock(root: Path) -> None:
    """One deploy at a time: a second would remove the first one's supervisord.pid. Held until this ends."""
    make_private(root)
    file = (root / ".deploy.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise SettingsError(f"another deploy of {root} is running: wait until it has ended") from None
    _locks[root] = file


def is_dry() -> bool:
    """Whether this run only shows what another would change: then the control machine is not written to either."""
    return "--dry" in sys.argv


def identity(settings: Settings) -> Identity:
    """The platform's identity, made at the first deploy; in a dry run only in memory."""
    try:
        found = Identity.ensure(settings.identity, now=int(time.time()), write=not is_dry())
        if not is_dry():
            ensure_ca(found.files, now=int(time.time()))
        return found
    except NatskitError as error:
        raise DeployError(str(error)) from None


def reached(role: str) -> list[Host]:
    """The hosts of a role that this deploy can reach, in its order."""
    return [host for host in inventory if role in host.groups and host in state.activated_hosts]


def ca_file(settings: Settings) -> Path:
    """The certificate of the platform's CA, on the control machine."""
    return settings.identity / "tls" / "ca.crt"


def describe(site: Topology, identity: Identity) -> None:
    """Write ``platform.json``, from which the ``natskit`` command learns where everything is. It holds no secret."""
    first = site.nats[0]
    root = first.platform_root
    content: dict[str, Any] = {
        "version": __version__,
        "url": site.url,
        "nats_urls": site.nats_urls,
        "nats_ca_file": str(ca_file(first)) if first.platform_tls else None,
        "ca_file": str(ca_file(first)),
        "identity": str(identity.directory),
        "creds": {
            "platform_admin": str(identity.creds_path("PLATFORM", "admin")),
            "sys_admin": str(identity.creds_path("SYS", "admin")),
        },
        "nats": [settings.platform_name for settings in site.nats],
        "hubs": [site.hub_label(settings, name) for settings in site.hub for name in settings.hub_names],
        "first_account": site.hub[0].platform_first_account,
        "resolvers": {settings.platform_name: settings.nats_resolver for settings in site.nats},
        "authorization_ttl": site.hub[0].hub_authorization_ttl,
        "session_sliding": site.hub[0].hub_session_sliding,
        "runners": [settings.runner_uuid for settings in site.runner],
        "deploy": how_to_deploy(sys.argv, os.environ),
        "certificates": tls.used(site),
        "named_files": named_files.outside(site),
    }
    if not service.uses_systemd(first):
        content |= {
            "monitor_url": f"http://127.0.0.1:{first.nats_monitor_port}",
            # With TLS a hub's port is for the proxy alone; over the bus each of them can be asked as well.
            "hub_urls": [] if first.platform_tls else [f"http://127.0.0.1:{port}" for port in first.hub_ports],
            "programs": ["nats", *first.hub_names, "proxy", "runner"],
            "supervisor_socket": str(root / "supervisor" / "supervisor.sock"),
            "log_directory": str(root / "log"),
        }
    if not is_dry():
        write_private(first.control / "platform.json", json.dumps(content, indent=2) + "\n")


_ONCE = {"-y", "--yes", "--dry", "--diff", "--json", "-v", "-vv", "-vvv", "--debug", "--debug-all", "--serial"}
_ONCE_WITH_VALUE = {"--limit", "--exclude", "--fail-percent", "--ssh-password", "--password"}
_ONCE_WITH_VALUE |= {"--ssh-key-password", "--key-password"}
_VARIABLES = ("NATSKIT_LOCAL", "NATSKIT_CLUSTER", "NATSKIT_CONTROL")


def how_to_deploy(argv: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What has to be run to deploy again as now: without a prompt, on all hosts, and without passwords."""
    words, rest = [], list(argv[1:])
    while rest:
        word = rest.pop(0)
        if word in _ONCE_WITH_VALUE:
            rest = rest[1:]
        elif word not in _ONCE and word.partition("=")[0] not in _ONCE_WITH_VALUE:
            words.append(word)
    return {
        "arguments": words,
        "directory": str(Path.cwd()),
        "environment": {name: environment[name] for name in _VARIABLES if name in environment},
    }
