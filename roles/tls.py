"""The certificate of a host, by which the other hosts know it."""

from __future__ import annotations

import time
from pathlib import Path

from natskit.identity import Identity
from natskit.identity.tls import PROXY, ROUTES, ensure_ca, ensure_host_certificate
from natskit.identity.vault import Vault
from natskit.settings import Settings
from natskit.topology import Topology
from roles.files import WrittenFile, checked_file, private_directory

CERTIFICATES = {"nats": {"host": "", "route": ROUTES}, "hub": {"host": ""}, "proxy": {"host": PROXY}}
"""The certificates of each role, by the names of their files on the host, and which folder's CA signs them."""


def install(settings: Settings, identity: Identity, role: str, directory: Path, owner: str) -> list[WrittenFile]:
    """Give a role's folder a certificate of its host and role, its key and the CA; what changed is in the answer.

    Two more CAs sign for one role alone. nats-servers know each other by that of routes. Hubs and the listener for
    WebSockets know the proxy by that of the proxy: they believe what it says of a browser's address.
    """
    private_directory(directory / "tls", owner)
    vault = identity.files
    files = {"ca.crt": _authority(vault)}
    for name, folder in CERTIFICATES[role].items():
        files |= _certificate(settings, vault.at(folder), role, name)
    if role == "nats":
        files["route-ca.crt"] = _authority(vault.at(ROUTES))
    if role in ("nats", "hub"):
        files["proxy-ca.crt"] = _authority(vault.at(PROXY))
    return [
        checked_file(name=f"Give {directory.name} {file}", content=content, path=directory / "tls" / file, owner=owner)
        for file, content in files.items()
    ]


def _certificate(settings: Settings, vault: Vault, role: str, name: str) -> dict[str, str]:
    # By its role's name the proxy knows it, by loopback the deploy asks for its health.
    names = {settings.platform_address, settings.platform_name, f"{role}.natskit", "127.0.0.1"}
    certificate, key = ensure_host_certificate(vault, _host(settings, role), names, now=int(time.time()))
    return {f"{name}.key": key, f"{name}.crt": certificate}


def used(site: Topology) -> list[str]:
    """The certificates of the platform's CAs that programs use: their paths within the identity, without ``.crt``."""
    proxy = site.proxy[0]
    found = [] if proxy.proxy_certificate or proxy.proxy_certificate_on_host else ["tls/proxy"]
    for role, names in CERTIFICATES.items():
        for settings in getattr(site, role) if proxy.platform_tls else ():
            found += [str(Path(folder, "tls", "hosts", _host(settings, role))) for folder in names.values()]
    return found


def _host(settings: Settings, role: str) -> str:
    return f"{settings.platform_name}-{role}"


def _authority(vault: Vault) -> str:
    return vault.read(ensure_ca(vault, now=int(time.time()))).decode()
