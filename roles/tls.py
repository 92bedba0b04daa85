"""The certificate of a host, by which the other hosts know it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from natskit.identity import Identity
from natskit.identity.tls import ensure_ca, ensure_host_certificate
from natskit.settings import Settings
from roles.files import WrittenFile, checked_file, private_directory
from roles.platform import is_dry


def install(settings: Settings, identity: Identity, role: str, directory: Path, owner: str) -> list[WrittenFile]:
    """Give a role's folder a certificate of its host and role, its key and the CA; what changed is in the answer.

    nats-servers get another one for each other, of another CA, which nobody else has a certificate of.
    """
    private_directory(directory / "tls", owner)
    with keys(identity) as folder:
        files = _files(settings, folder, role, "host", "ca")
        if role == "nats":
            files |= _files(settings, folder / "routes", role, "route", "route-ca")
    return [
        checked_file(name=f"Give {directory.name} {file}", content=content, path=directory / "tls" / file, owner=owner)
        for file, content in files.items()
    ]


def _files(settings: Settings, folder: Path, role: str, name: str, authority: str) -> dict[str, str]:
    now = int(time.time())
    # By its role's name the proxy knows it, by loopback the deploy asks for its health.
    names = {settings.platform_address, settings.platform_name, f"{role}.natskit", "127.0.0.1"}
    certificate, key = ensure_host_certificate(folder, f"{settings.platform_name}-{role}", names, now=now)
    return {
        f"{name}.key": key,
        f"{name}.crt": certificate,
        f"{authority}.crt": ensure_ca(folder, now=now).read_text(),
    }


@contextmanager
def keys(identity: Identity) -> Iterator[Path]:
    """The identity's folder, to make certificates in; in a dry run a copy of it, so that nothing is written."""
    if not is_dry():
        yield identity.directory
        return
    with tempfile.TemporaryDirectory() as scratch:
        for part in ("tls", "routes"):
            if (identity.directory / part).exists():
                shutil.copytree(identity.directory / part, Path(scratch) / part)
        yield Path(scratch)
