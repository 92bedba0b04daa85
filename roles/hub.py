"""The hubs of a host: their keys, creds and settings."""

from __future__ import annotations

import json
import sys

from natskit import __version__
from natskit.hub.program import HubProgram
from natskit.identity import Identity
from natskit.settings import Settings
from roles import build, service
from roles.files import checked_file, private_directory

CREDS = ("SYS", "AUTH", "PLATFORM")


def deploy(settings: Settings, identity: Identity, runners: dict[str, dict[str, str]]) -> None:
    """Install, configure, activate each hub. ``runners`` are those that may connect, by their ids."""
    for name, port in zip(settings.hub_names, settings.hub_ports, strict=True):
        _deploy_one(settings, identity, runners, name, port)
    service.retire(settings, prefix="hub-", keep=settings.hub_names)


def _deploy_one(
    settings: Settings, identity: Identity, runners: dict[str, dict[str, str]], name: str, port: int
) -> None:
    directory = settings.platform_root / name
    private_directory(directory)
    files = [
        checked_file(
            name=f"Give {name} its creds for NATS account {account}",
            content=identity.creds(account, "hub"),
            path=str(directory / f"{account.lower()}.creds"),
        )
        for account in CREDS
    ]
    files.append(
        checked_file(
            name=f"Give {name} its signing keys",
            content=identity.hub_keys().to_json(),
            path=str(directory / "keys.json"),
        )
    )
    files.append(
        checked_file(
            name=f"Render hub.json of {name}",
            content=program_file(settings, runners, name, port),
            path=str(directory / "hub.json"),
        )
    )
    program = service.Program(
        name=name,
        command=[sys.executable, "-m", "natskit.hub", "--settings", str(directory / "hub.json")],
        environment=build.environment(settings, settings.hub_api_packages),
        priority=20,
        health_url=f"http://127.0.0.1:{port}/healthz",
    )
    service.run(settings, program, restart_on=files)


def program_file(settings: Settings, runners: dict[str, dict[str, str]], name: str, port: int) -> str:
    """The content of ``hub.json``, checked by the hub's own model."""
    directory = settings.platform_root / name
    program = HubProgram.model_validate(
        {
            "name": name,
            "version": __version__,
            "http": {"host": "127.0.0.1", "port": port},
            "nats": {"urls": [settings.nats_url]},
            "creds": {account.lower(): directory / f"{account.lower()}.creds" for account in CREDS},
            "keys": directory / "keys.json",
            "allowed_origins": [settings.url],
            "session": {
                "sliding_seconds": settings.hub_session_sliding,
                "absolute_seconds": settings.hub_session_absolute,
            },
            "authorization_ttl_seconds": settings.hub_authorization_ttl,
            "password": {"argon2_concurrency": settings.hub_password_concurrency},
            "state": {"replicas": settings.hub_state_replicas},
            "api_packages": settings.hub_api_packages,
            "runners": runners,
            "max_projects_per_account": settings.hub_max_projects_per_account,
        }
    )
    return json.dumps(program.model_dump(mode="json"), indent=2) + "\n"
