"""The control machine's records of a platform: its validated settings, its identity, and its location."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pyinfra import host, inventory, state
from pyinfra.api import Host, Inventory, StringCommand, operation

from natskit import __version__
from natskit.config import referenced_files, topology
from natskit.config.kit import kit
from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.errors import NatskitError, SettingsError
from natskit.identity import passphrase
from natskit.identity.backup import unfinished_restore
from natskit.identity.files import make_private, write_private
from natskit.identity.identity import Identity
from natskit.identity.tls import ensure_ca
from natskit.identity.vault import Vault
from natskit.ops.stream_provisioning import StreamSettings
from natskit.ops.supervisor import socket_of
from roles import (
    artifacts,
    build,
    lean_pyinfra,  # noqa: F401 - to import it is enough
    machines,
    preflight,
    service,
    shell,
    tls,
)
from roles.errors import DeployError

CONNECTOR_KEYS = ("ssh_", "docker_", "_")
"""Prefixes of data for pyinfra's connectors, which natskit does not read."""

passphrase.withdraw()

_locks: dict[Path, IO[str]] = {}
_platform: list[tuple[Topology, dict[str, Settings]]] = []
"""The result of the validation, which runs once, for the host that pyinfra prepares first."""
_checking = threading.Lock()
"""pyinfra prepares hosts in parallel: the others wait for the first one."""


def validate(host: Host, inventory: Inventory) -> tuple[Settings, Topology]:
    """This host's settings, and those of the whole platform, as typed models.

    Ends the run before it changes any host, with one line for each error of any host.
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
    for each in inventory:
        shell.prepare(each)
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
        machines.look(inventory, site, known)
        preflight.check_hosts(inventory, site, known)
    return site, known


def _ours(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if not key.startswith(CONNECTOR_KEYS)}


def _lock(root: Path) -> None:
    """Allow one deploy at a time: a second one would remove the first one's supervisord.pid. Held until this process
    ends."""
    make_private(root)
    file = (root / ".deploy.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise SettingsError(f"another deploy of {root} is running: wait until it has ended") from None
    _locks[root] = file


def is_dry() -> bool:
    """Whether this is a dry run, which does not write to the control machine either."""
    return "--dry" in sys.argv


def identity(settings: Settings) -> Identity:
    """The platform's identity, created at the first deploy; in a dry run only in memory."""
    if name := unfinished_restore(settings.identity):
        raise DeployError(
            f"a restore of the backup {name} has not ended, and the platform is closed: a deploy would open it. Run "
            f"natskit backup restore --overwrite {name}, or open it as it is with natskit identity push"
        )
    try:
        found = Identity.ensure(settings.identity, now=int(time.time()), write=not is_dry())
        if not is_dry():
            ensure_ca(found.files, now=int(time.time()))
        return found
    except NatskitError as error:
        raise DeployError(str(error)) from None


def reached(role: str) -> list[Host]:
    """The hosts of a role that this deploy can reach, in the order of the inventory."""
    return [host for host in inventory if role in host.groups and host in state.activated_hosts]


def ca_file(settings: Settings) -> Path:
    """The certificate of the platform's CA, on the control machine."""
    return settings.identity / "tls" / "ca.crt"


def stream_settings(site: Topology) -> StreamSettings:
    """The inventory's settings of streams, which are the same for all hubs."""
    hub = site.hub[0]
    return StreamSettings(
        replicas=site.replicas,
        state_bytes=hub.hub_state_max_bytes,
        audit_seconds=hub.hub_audit_days * 86_400,
        audit_bytes=hub.hub_audit_bytes,
        document_bytes=hub.keeper_max_bytes,
    )


def describe(site: Topology, identity: Identity) -> None:
    """Write ``platform.json``, which tells the ``natskit`` command where everything is. It holds no secret.

    Its operation comes last, on the last host of those that this deploy can reach. A deploy that fails leaves the file
    as it was.
    """
    last = [host for host in inventory if host in state.activated_hosts][-1:]
    if host not in last:
        return
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
            "state_admin": str(identity.creds_path("STATE", "admin")),
            "sys_admin": str(identity.creds_path("SYS", "admin")),
        },
        "nats": [settings.platform_name for settings in site.nats],
        "hubs": [site.hub_label(settings, name) for settings in site.hub for name in settings.hub_names],
        "keepers": [site.keeper_label(settings, name) for settings in site.hub for name in settings.keeper_names],
        "first_account": site.hub[0].platform_first_account,
        "resolvers": {settings.platform_name: settings.nats_resolver for settings in site.nats},
        "authorization_ttl": site.hub[0].hub_authorization_ttl,
        "session_sliding": site.hub[0].hub_session_sliding,
        "runners": [settings.runner_uuid for settings in site.runner],
        "backup_bytes": {settings.runner_uuid: settings.runner_backup_max_bytes for settings in site.runner},
        "deploy": how_to_deploy(sys.argv, os.environ),
        "certificates": tls.used(site),
        "named_files": referenced_files.outside(site),
        "local_files": referenced_files.local(site),
        "streams": stream_settings(site).model_dump(),
    }
    if not service.uses_systemd(first):
        content |= {
            "monitor_url": f"http://127.0.0.1:{first.nats_monitor_port}",
            # With TLS, only the proxy may use a hub's port. Every hub can also be reached over NATS.
            "hub_urls": [] if first.platform_tls else [f"http://127.0.0.1:{port}" for port in first.hub_ports],
            "programs": [
                *("nats", *first.hub_names, *first.keeper_names, "proxy", "runner"),
                *(["exporter"] if first.metrics_token_file else []),
            ],
            "supervisor_socket": str(socket_of(root)),
            "log_directory": str(root / "log"),
            "projects": {settings.runner_uuid: str(root / "runner" / "projects") for settings in site.runner},
        }
    _recorded(
        name="Tell the natskit command where everything is",
        path=first.control / "platform.json",
        content=json.dumps(content, indent=2) + "\n",
    )


@operation()
def _recorded(path: Path, content: str) -> Generator[StringCommand, None, None]:
    """Write a file on the control machine when the hosts are done, unless one failed. It says what the deploy did, and
    is no change itself: pyinfra calls this function again when it runs the operation (``State.is_executing``)."""
    host.noop(f"{path} is written")
    if state.is_executing and not state.failed_hosts & state.activated_hosts:
        write_private(path, content)
    yield from ()


_ONCE = {"-y", "--yes", "--dry", "--diff", "--json", "-v", "-vv", "-vvv", "--debug", "--debug-all", "--serial"}
_ONCE_WITH_VALUE = {"--limit", "--exclude", "--fail-percent", "--ssh-password", "--password"}
_ONCE_WITH_VALUE |= {"--ssh-key-password", "--key-password"}
_VARIABLES = ("NATSKIT_LOCAL", "NATSKIT_CLUSTER", "NATSKIT_CONTROL")


def how_to_deploy(argv: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """The command that repeats this deploy: without a prompt, on all hosts, and without passwords."""
    words, rest = [], list(argv[1:])
    while rest:
        word = rest.pop(0)
        if word in _ONCE_WITH_VALUE:
            rest = rest[1:]
        elif Path(word).resolve() == kit() / "deploy.py":
            words.append("deploy.py")  # wherever natskit is by then
        elif word not in _ONCE and word.partition("=")[0] not in _ONCE_WITH_VALUE:
            words.append(word)
    return {
        "arguments": words,
        "directory": str(Path.cwd()),
        "environment": {name: environment[name] for name in _VARIABLES if name in environment and _reads(words, name)},
    }


def _reads(words: Sequence[str], variable: str) -> bool:
    """Whether the inventory among the words of a command may read a variable. ``make`` sets NATSKIT_CLUSTER always."""
    texts = [
        path.read_text(errors="replace") for word in words if (path := Path(word)).suffix == ".py" and path.is_file()
    ]
    return variable != "NATSKIT_CLUSTER" or any(variable in text for text in texts)
