"""Certificates and JWTs: whether they end soon, and whether the site shows one that browsers accept."""

from __future__ import annotations

import shlex
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from natskit.doctor.finding import Finding
from natskit.identity import report

WARN_DAYS = 25
"""A deploy renews the platform's own certificates when 30 days are left."""
SECONDS = 3.0


def expiring(identity: Path, in_use: report.InUse | None, now: int, deploy: str) -> Iterator[Finding]:
    """Keys, JWTs and certificates that expire soon, have expired, or are missing or damaged.

    Raises :class:`IdentityError` if there is no identity.
    """
    found = report.entries(identity, in_use)
    for entry in report.due(found, now, WARN_DAYS):
        state = entry.state(now, WARN_DAYS)
        ends = f"ends on {entry.until}" if entry.expires else f"is {entry.until}"
        renews = entry.to_do.startswith("deploy")
        yield Finding(
            "soon" if state == "near" else "broken",
            f"{entry.kind} of {entry.name}: {ends}",
            f"{entry.file}, for {entry.used_by}, is {'near its end' if state == 'near' else state}",
            deploy if renews else entry.to_do,
        )


def readable(identity: Path) -> Iterator[Finding]:
    """Whether others may enter the folder of the keys. natskit refuses to work then."""
    mode = stat.S_IMODE(identity.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            "broken",
            "others may read the platform's keys",
            f"{identity} has mode {mode:04o}; natskit refuses it, and somebody may have copied the keys already",
            f"chmod go= {shlex.quote(str(identity))}; then docs/how-to/respond-to-a-compromise.md",
        )


def named(url: str) -> Iterator[Finding]:
    """Whether this machine can resolve the site's name."""
    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        yield Finding(
            "broken",
            f"{host} has no address",
            f"this machine cannot resolve the site's name: {error.strerror or error}",
            f"getent ahosts {shlex.quote(host)}; then correct its DNS entry, /etc/hosts or /etc/resolv.conf",
        )


def served(url: str, ca_file: Path, deploy: str) -> Iterator[Finding]:
    """Whether the site's certificate is for its name and comes from a CA that this machine or the platform trusts."""
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 443
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=ca_file)
    try:
        with socket.create_connection((host, port), timeout=SECONDS) as plain:
            context.wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        yield Finding(
            "broken",
            f"browsers refuse the certificate of {url}",
            f"{host}:{port} shows a certificate that is not valid for it: {error.verify_message}",
            deploy,
        )
    except OSError:
        return  # it does not listen: the check of the proxy says so
