"""The keepers of a host, which keep documents: their creds and settings."""

from __future__ import annotations

import json
import time

from natskit import __version__
from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.identity.identity import Identity
from natskit.identity.tls import ensure_ca
from natskit.keeper.config import KeeperProgram
from roles import service
from roles.files import checked_file, private_directory
from roles.managed_program import Program

CREDS = ("PLATFORM", "DOCS")


def deploy(settings: Settings, site: Topology, identity: Identity) -> None:
    """Install, configure, activate each keeper."""
    for name in settings.keeper_names:
        _deploy_one(settings, site, identity, name)
    service.retire(settings, prefix="keeper-", keep=settings.keeper_names)


def _deploy_one(settings: Settings, site: Topology, identity: Identity, name: str) -> None:
    directory, owner = settings.platform_root / name, service.owner(settings, "keeper")
    python = str(service.python(settings))
    private_directory(directory, owner)
    contents = {
        f"{account.lower()}.creds": (f"creds for NATS account {account}", identity.creds(account, "keeper"))
        for account in CREDS
    }
    if settings.platform_tls:
        authority = identity.files.read(ensure_ca(identity.files, now=int(time.time()))).decode()
        contents["ca.crt"] = "CA", authority
    files = [
        checked_file(name=f"Give {name} its {what}", content=content, path=directory / file, owner=owner)
        for file, (what, content) in contents.items()
    ]
    files.append(
        checked_file(
            name=f"Render keeper.json of {name}",
            content=program_file(settings, site, name),
            path=directory / "keeper.json",
            owner=owner,
        )
    )
    program = Program(
        name=name,
        command=[python, "-m", "natskit.keeper", "--settings", str(directory / "keeper.json")],
        priority=20,
        template="natskit-keeper.service",
        unit={"user": owner, "directory": str(directory)},
    )
    service.run(settings, program, restart_on=files)


def program_file(settings: Settings, site: Topology, name: str) -> str:
    """The content of ``keeper.json``, validated by the keeper's own model."""
    directory = settings.platform_root / name
    program = KeeperProgram.model_validate(
        {
            "name": site.keeper_label(settings, name),
            "version": __version__,
            "nats": {"urls": site.nats_urls_for(settings)}
            | ({"ca_file": directory / "ca.crt"} if settings.platform_tls else {}),
            "creds": {account.lower(): directory / f"{account.lower()}.creds" for account in CREDS},
            "max_document_bytes": settings.keeper_max_document_bytes,
            "max_documents": settings.keeper_max_documents,
            "max_project_bytes": settings.project_bytes,
            "account_bytes": settings.keeper_account_bytes,
            "thin_after_days": settings.keeper_thin_after_days,
            "thin_to": settings.keeper_thin_to,
            "memory_bytes": settings.keeper_memory,
            "caller_share": settings.keeper_caller_share,
        }
    )
    return json.dumps(program.model_dump(mode="json"), indent=2) + "\n"
