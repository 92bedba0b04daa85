"""The hubs of a host: their keys, creds and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyinfra.operations import files as pyinfra_files

from natskit import __version__, named_files
from natskit.hub.program import HubProgram
from natskit.identity import Identity
from natskit.settings import Settings
from natskit.topology import Topology
from roles import build, service, tls
from roles.files import checked_file, private_directory
from roles.program import Program

CREDS = ("AUTH", "PLATFORM")
OIDC_SECRET = "oidc-secret.key"  # noqa: S105


def deploy(settings: Settings, site: Topology, identity: Identity, runners: dict[str, dict[str, str]]) -> None:
    """Install, configure, activate each hub. ``runners`` are those that may connect, by their ids."""
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
    private_directory(directory, owner)
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
    if settings.hub_oidc_issuer is None:
        pyinfra_files.file(name=f"Leave no client secret with {name}", path=str(directory / OIDC_SECRET), present=False)
    else:
        files += [
            checked_file(name=f"Give {name} the {what} of its OpenID provider", content=content, path=path, owner=owner)
            for what, content, path in _oidc_files(settings, directory)
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
        healthy=[python, "-m", "natskit.wait", *_url(settings, directory, port), service.HEALTHY_SECONDS],
        template="natskit-hub.service",
        # It takes a new certificate and other signing keys without a restart.
        unit={"user": owner, "directory": str(directory), "reload_command": "/bin/kill -HUP $MAINPID"},
    )
    service.run(settings, program, restart_on=files, reload_on=[keys, *certificate])
    # What hubs of an older version had.
    pyinfra_files.file(name=f"Leave {name} no creds for SYS", path=str(directory / "sys.creds"), present=False)


def _oidc_files(settings: Settings, directory: Path) -> list[tuple[str, str, Path]]:
    """What of OIDC lands in files of their own."""
    found = [("client secret", named_files.oidc_secret(settings), directory / OIDC_SECRET)]
    if settings.hub_oidc_ca_file:
        found.append(("CA", settings.hub_oidc_ca_file.expanduser().read_text(), directory / "oidc-ca.crt"))
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
        "domains": [domain.lower() for domain in settings.hub_oidc_domains],
        "ca_file": directory / "oidc-ca.crt" if settings.hub_oidc_ca_file else None,
    }


def _url(settings: Settings, directory: Path, port: int) -> list[str]:
    """Where a hub says that it is well, and by which certificate one may ask."""
    if not settings.platform_tls:
        return [f"http://127.0.0.1:{port}/healthz"]
    files = directory / "tls"
    certificate = ["--ca", str(files / "ca.crt"), "--cert", str(files / "host.crt"), "--key", str(files / "host.key")]
    return [*certificate, f"https://127.0.0.1:{port}/healthz"]


def program_file(settings: Settings, site: Topology, runners: dict[str, dict[str, str]], name: str, port: int) -> str:
    """The content of ``hub.json``, checked by the hub's own model."""
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
            "allowed_origins": [site.url],
            "session": {
                "sliding_seconds": settings.hub_session_sliding,
                "absolute_seconds": settings.hub_session_absolute,
            },
            "authorization_ttl_seconds": settings.hub_authorization_ttl,
            "password": {"argon2_concurrency": settings.hub_password_concurrency},
            "backends": {name: backend.model_dump() for name, backend in settings.hub_backends.items()},
            "oidc": _oidc(settings, site, directory),
            "api_packages": settings.hub_api_packages,
            "runners": runners,
            "max_projects_per_account": settings.hub_max_projects_per_account,
            "share_changes_per_minute": settings.hub_share_changes,
            "caller_share": settings.hub_caller_share,
        }
    )
    return json.dumps(program.model_dump(mode="json"), indent=2) + "\n"
