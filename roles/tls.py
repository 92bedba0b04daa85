"""The certificate by which other hosts recognise a host."""

from __future__ import annotations

import time
from pathlib import Path

from natskit.config.settings import Settings
from natskit.config.topology import Topology
from natskit.identity.identity import Identity
from natskit.identity.tls import PROXY, ROUTES, ensure_ca, ensure_host_certificate
from natskit.identity.vault import Vault
from roles.files import WrittenFile, checked_file, private_directory

CERTIFICATES = {
    "nats": {"host": "", "route": ROUTES},
    "hub": {"host": ""},
    "proxy": {"host": PROXY},
    "exporter": {"host": ""},
}
"""The certificates of each role: the name of the file on the host, and the folder of the CA that signs it."""


def install(settings: Settings, identity: Identity, role: str, directory: Path, owner: str) -> list[WrittenFile]:
    """Write a certificate for its host and role, with its key and CA, into a role's folder; returns the files.

    Two more CAs sign for one role alone. nats-servers recognise each other by the CA of routes. Hubs and the WebSocket
    listener recognise the proxy by the CA of the proxy: they trust what it says about a browser's address.
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
    # The proxy connects by the name of the role; the deploy checks its health over loopback.
    names = {settings.platform_address, settings.platform_name, f"{role}.natskit", "127.0.0.1"}
    certificate, key = ensure_host_certificate(vault, _host(settings, role), names, now=int(time.time()))
    return {f"{name}.key": key, f"{name}.crt": certificate}


def ensure_all(site: Topology, identity: Identity) -> None:
    """Make the certificates of all hosts that are missing or near their end, as each host's own part of a deploy
    does."""
    for role, names in CERTIFICATES.items():
        for settings in getattr(site, role):
            for name, folder in names.items():
                _certificate(settings, identity.files.at(folder), role, name)


def used(site: Topology) -> list[str]:
    """The certificates of the platform's CAs that programs use, as paths within the identity without ``.crt``."""
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
