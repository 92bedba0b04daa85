"""The hubs of a host: their keys, creds and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyinfra.operations import files as pyinfra_files

from natskit import __version__
from natskit.config import referenced_files
from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.hub.config import HubProgram
from natskit.identity.claims import cookie_name
from natskit.identity.identity import Identity
from roles import build, exporter, service, tls
from roles.files import checked_file, private_directory
from roles.managed_program import Program

CREDS = ("AUTH", "PLATFORM")
STATE = "state"
"""The folder in which a hub keeps what it last had of the state, in its own folder."""
OIDC_SECRET = "oidc-secret.key"  # noqa: S105
OIDC_CA = "oidc-ca.crt"


def deploy(settings: Settings, site: Topology, identity: Identity, runners: dict[str, dict[str, str]]) -> None:
    """Install, configure, activate each hub. ``runners`` are the runners that may connect, by id."""
    for name, port in zip(settings.hub_names, settings.hub_ports, strict=True):
        _deploy_one(settings, site, identity, runners, name, port)
    service.retire(settings, prefix="hub-", keep=settings.hub_names)


def _deploy_one(
    settings: Settings,
    site: Topology,
    identity: Identity,
    runners: dict[str, dict[str, str]],
    name: str,
    port: int,
) -> None:
    directory, owner = settings.platform_root / name, service.owner(settings, "hub")
    python = str(service.python(settings))
    for folder in (directory, directory / STATE):
        private_directory(folder, owner)
    certificate = tls.install(settings, identity, "hub", directory, owner) if settings.platform_tls else []
    files = [
        checked_file(
            name=f"Give {name} its creds for NATS account {account}",
            content=identity.creds(account, "hub"),
            path=directory / f"{account.lower()}.creds",
            owner=owner,
        )
        for account in CREDS
    ]
    keys = checked_file(
        name=f"Give {name} its signing keys",
        content=identity.hub_keys().to_json(),
        path=directory / "keys.json",
        owner=owner,
    )
    oidc = _oidc_files(settings)
    files += [
        checked_file(
            name=f"Give {name} the {what} of its OpenID provider", content=content, path=directory / file, owner=owner
        )
        for file, (what, content) in oidc.items()
    ]
    files.append(
        checked_file(
            name=f"Render hub.json of {name}",
            content=program_file(settings, site, runners, name, port),
            path=directory / "hub.json",
            owner=owner,
        )
    )
    program = Program(
        name=name,
        command=[python, "-m", "natskit.hub", "--settings", str(directory / "hub.json")],
        environment={} if service.uses_systemd(settings) else build.environment(settings, settings.hub_api_packages),
        priority=20,
        healthy=[python, "-m", "natskit.ops.health_wait", *_url(settings, directory, port), service.HEALTHY_SECONDS],
        template="natskit-hub.service",
        # A hub applies a new certificate and new signing keys without a restart.
        unit={"user": owner, "directory": str(directory), "reload_command": "/bin/kill -HUP $MAINPID"},
    )
    service.run(settings, program, restart_on=files, reload_on=[keys, *certificate])
    # Files of earlier settings, and (sys.creds) of hubs of an older version. The hub no longer reads them.
    for file in sorted({OIDC_SECRET, OIDC_CA, "sys.creds"} - oidc.keys()):
        pyinfra_files.file(name=f"Leave {name} no {file}", path=str(directory / file), present=False)


def _oidc_files(settings: Settings) -> dict[str, tuple[str, str]]:
    """The settings of OIDC that a hub reads from files of their own: what they are and their content, by file name."""
    if settings.hub_oidc_issuer is None:
        return {}
    found = {OIDC_SECRET: ("client secret", referenced_files.oidc_secret(settings))}
    if settings.hub_oidc_ca_file:
        found[OIDC_CA] = ("CA", settings.hub_oidc_ca_file.expanduser().read_text())
    return found


def _oidc(settings: Settings, site: Topology, directory: Path) -> dict[str, Any] | None:
    if settings.hub_oidc_issuer is None:
        return None
    return {
        "issuer": settings.hub_oidc_issuer,
        "client_id": settings.hub_oidc_client_id,
        "client_secret": directory / OIDC_SECRET,
        "redirect_url": f"{site.url}/api/oidc/callback",
        "scopes": settings.hub_oidc_scopes,
        "label": settings.hub_oidc_label,
        "make_accounts": settings.hub_oidc_make_accounts,
        "link_accounts": settings.hub_oidc_link_accounts,
        "domains": settings.hub_oidc_domains,
        "email_claims": settings.hub_oidc_email_claims,
        "verified_domains": settings.hub_oidc_verified_domains,
        "ca_file": directory / OIDC_CA if settings.hub_oidc_ca_file else None,
    }


def _url(settings: Settings, directory: Path, port: int) -> list[str]:
    """The URL of a hub's health check, and the options for the certificate to check it with."""
    if not settings.platform_tls:
        return [f"http://127.0.0.1:{port}/healthz"]
    files = directory / "tls"
    certificate = ["--ca", str(files / "ca.crt"), "--cert", str(files / "host.crt"), "--key", str(files / "host.key")]
    return [*certificate, f"https://127.0.0.1:{port}/healthz"]


def program_file(settings: Settings, site: Topology, runners: dict[str, dict[str, str]], name: str, port: int) -> str:
    """The content of ``hub.json``, validated by the hub's own model."""
    directory = settings.platform_root / name
    files = directory / "tls"
    certificate = {"certificate": files / "host.crt", "key": files / "host.key", "ca": files / "proxy-ca.crt"}
    program = HubProgram.model_validate(
        {
            "name": site.hub_label(settings, name),
            "version": __version__,
            "http": {"host": settings.listen, "port": port} | ({"tls": certificate} if settings.platform_tls else {}),
            "nats": {"urls": site.nats_urls_for(settings)}
            | ({"ca_file": files / "ca.crt"} if settings.platform_tls else {}),
            "creds": {account.lower(): directory / f"{account.lower()}.creds" for account in CREDS},
            "keys": directory / "keys.json",
            "state_folder": directory / STATE,
            "allowed_origins": [site.url],
            "cookie": cookie_name(site.url),
            "session": {
                "sliding_seconds": settings.hub_session_sliding,
                "absolute_seconds": settings.hub_session_absolute,
            },
            "authorization_ttl_seconds": settings.hub_authorization_ttl,
            "password": {
                "argon2_concurrency": settings.hub_password_concurrency,
                "memory_kib": settings.hub_password_memory,
                "time_cost": settings.hub_password_iterations,
            },
            "backends": {name: backend.model_dump() for name, backend in settings.hub_backends.items()},
            "oidc": _oidc(settings, site, directory),
            "administrators": settings.hub_administrators,
            "api_packages": settings.hub_api_packages,
            "metrics": exporter.access(settings, site, settings.hub_names.index(name) + 1, files),
            "runners": runners,
            "max_projects_per_account": settings.hub_max_projects_per_account,
            "share_changes_per_minute": settings.hub_share_changes,
            "caller_share": settings.hub_caller_share,
        }
    )
    return json.dumps(program.model_dump(mode="json"), indent=2) + "\n"
