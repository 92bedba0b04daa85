"""What the control machine keeps about a platform: its settings as validated, its identity, and where it is."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pyinfra.api.exceptions import PyinfraError

from natskit import __version__
from natskit.errors import NatskitError, SettingsError
from natskit.identity import Identity
from natskit.identity.files import make_private
from natskit.identity.tls import ensure_ca
from natskit.settings import Settings, load
from roles import build, preflight
from roles.files import checked_file

CONNECTOR_KEYS = ("ssh_", "docker_", "_")
"""Prefixes of data that pyinfra's connectors read, not natskit."""

_locks: dict[Path, IO[str]] = {}


def validate(data: Mapping[str, Any]) -> Settings:
    """The host's settings, whole and typed. Ends the run, before any host is touched, with one line for each error."""
    ours = {key: value for key, value in data.items() if not key.startswith(CONNECTOR_KEYS)}
    try:
        settings = load(ours, "inventory")
        build.environment(settings, [*settings.hub_api_packages, *settings.runner_project_api_packages])
        preflight.check(settings)
        if not is_dry():
            _lock(settings.platform_root)
        return settings
    except NatskitError as error:
        raise PyinfraError(str(error)) from None


def _lock(root: Path) -> None:
    """One deploy at a time: a second would remove the first one's supervisord.pid. Held until this ends."""
    make_private(root)
    file = (root / ".deploy.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        if root not in _locks:
            raise SettingsError(f"another deploy of {root} is running: wait until it has ended") from None
    else:
        _locks[root] = file


def is_dry() -> bool:
    """Whether this run only shows what another would change: then the control machine is not written to either."""
    return "--dry" in sys.argv


def identity(settings: Settings) -> Identity:
    """The platform's identity, made at the first deploy; in a dry run only in memory."""
    try:
        found = Identity.ensure(settings.platform_root / "identity", now=int(time.time()), write=not is_dry())
        if not is_dry():
            ensure_ca(found.directory, now=int(time.time()))
        return found
    except NatskitError as error:
        raise PyinfraError(str(error)) from None


def describe(settings: Settings, found: Identity) -> None:
    """Write ``platform.json``, from which the ``natskit`` command learns where everything is. It holds no secret."""
    root = settings.platform_root
    content = {
        "version": __version__,
        "url": settings.url,
        "nats_url": settings.nats_url,
        "monitor_url": f"http://127.0.0.1:{settings.nats_monitor_port}",
        "ca_file": str(found.directory / "tls" / "ca.crt"),
        "identity": str(found.directory),
        "creds": {
            "platform_admin": str(found.creds_path("PLATFORM", "admin")),
            "sys_admin": str(found.creds_path("SYS", "admin")),
        },
        "hubs": [
            {"name": name, "url": f"http://127.0.0.1:{port}"}
            for name, port in zip(settings.hub_names, settings.hub_ports, strict=True)
        ],
        "programs": ["nats", *settings.hub_names, "proxy", "runner"],
        "supervisor_socket": str(root / "supervisor" / "supervisor.sock"),
        "log_directory": str(root / "log"),
        "first_account": settings.platform_first_account,
    }
    checked_file(
        name="Describe the platform for the natskit command",
        content=json.dumps(content, indent=2) + "\n",
        path=str(root / "platform.json"),
    )
