"""The certificate of a host, by which the other hosts know it."""

from __future__ import annotations

import time
from pathlib import Path

from natskit.identity import Identity
from natskit.identity.tls import ensure_ca, ensure_host_certificate
from natskit.identity.vault import Vault
from natskit.settings import Settings
from roles.files import WrittenFile, checked_file, private_directory


def install(settings: Settings, identity: Identity, role: str, directory: Path, owner: str) -> list[WrittenFile]:
    """Give a role's folder a certificate of its host and role, its key and the CA; what changed is in the answer.

    nats-servers get another one for each other, of another CA, which nobody else has a certificate of.
    """
    private_directory(directory / "tls", owner)
    files = _files(settings, identity.files, role, "host", "ca")
    if role == "nats":
        files |= _files(settings, identity.files.at("routes"), role, "route", "route-ca")
    return [
        checked_file(name=f"Give {directory.name} {file}", content=content, path=directory / "tls" / file, owner=owner)
        for file, content in files.items()
    ]


def _files(settings: Settings, vault: Vault, role: str, name: str, authority: str) -> dict[str, str]:
    now = int(time.time())
    # By its role's name the proxy knows it, by loopback the deploy asks for its health.
    names = {settings.platform_address, settings.platform_name, f"{role}.natskit", "127.0.0.1"}
    certificate, key = ensure_host_certificate(vault, f"{settings.platform_name}-{role}", names, now=now)
    return {
        f"{name}.key": key,
        f"{name}.crt": certificate,
        f"{authority}.crt": vault.read(ensure_ca(vault, now=now)).decode(),
    }
