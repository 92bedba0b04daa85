"""The hub's side of mutual TLS: what it serves with, whom it lets in, and how renewed files come into use.

A hub believes the address the proxy forwards (``X-Forwarded-For``), so nobody without a certificate of the platform's
CA may reach it.
"""

from __future__ import annotations

import ssl

from cryptography import x509

from natskit.errors import SettingsError
from natskit.hub.program import TlsFiles


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 or newer, and a client certificate for everyone. Raises :class:`SettingsError` naming the files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    _load(context, files)
    return context


def reload(context: ssl.SSLContext, files: TlsFiles) -> x509.Certificate:
    """Serve new connections with what is in the files now; the certificate. Those that are open are left alone.

    Raises :class:`SettingsError`, and goes on with the old files, when the new ones do not fit together. A CA that was
    taken out of its file is trusted until the hub is restarted.
    """
    server_context(files)  # OpenSSL takes a certificate before it sees that the key is another's
    _load(context, files)
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.ca)
    except OSError as error:  # ssl.SSLError is one
        names = f"{files.certificate}, {files.key}, {files.ca}"
        raise SettingsError(f"one of {names} is unreadable or does not fit the others: {error}") from None
