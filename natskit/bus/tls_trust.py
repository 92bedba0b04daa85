"""The CAs a TLS client trusts and the certificate it presents: one rule for HTTPS, WebSocket and NATS."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi

VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that name other CAs than the machine's, for OpenSSL, curl and most programs."""


def client_context(
    ca_file: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Trust the CAs in ``ca_file`` alone; without one, those of the machine and of :data:`VARIABLES`.

    The client presents ``certificate``, with its ``key``. Raises :class:`OSError` for a file that cannot be used.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if ca_file is None and not _machine_has_cas(context):
        context.load_verify_locations(certifi.where())  # a small container without the package ca-certificates
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def trusted(ca_file: Path | None) -> str:
    """The CAs that :func:`client_context` trusts, in words, for messages about a refused certificate."""
    if ca_file is not None:
        return str(ca_file)
    named = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
    return ", ".join(["the machine's list of CAs", *named])


def _machine_has_cas(context: ssl.SSLContext) -> bool:
    if any(os.environ.get(name) for name in VARIABLES) or context.get_ca_certs():
        return True
    folder = ssl.get_default_verify_paths().capath
    return folder is not None and any(Path(folder).iterdir())
