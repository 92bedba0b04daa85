"""The hub's side of mutual TLS: its certificate, the clients it accepts, and loading renewed files.

A hub trusts the address that the proxy forwards (``X-Forwarded-For``). So only the proxy may reach it, whose
certificate is signed by a CA of its own. The hub also accepts its own certificate: a deploy checks its health with
that, on the hub's host, where nobody else can read the key.
"""

from __future__ import annotations

import ssl

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from natskit.errors import SettingsError
from natskit.hub.config import TlsFiles


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 or newer, with client certificates required. Raises :class:`SettingsError` that names the files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    # Trusts the hub's own certificate, which no CA signed.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load(context, files)
    return context


def reload(context: ssl.SSLContext, files: TlsFiles) -> x509.Certificate:
    """Serve new connections with the present files. Returns the certificate. Open connections are left alone.

    Raises :class:`SettingsError`, and keeps the old files, if the new ones do not fit together. A CA that was removed
    from its file, and the hub's old certificate, are trusted until the hub is restarted.
    """
    server_context(files)  # OpenSSL takes a certificate before it notices that the key does not fit
    _load(context, files)
    return _own(files)


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.ca)
        context.load_verify_locations(cadata=_own(files).public_bytes(Encoding.DER))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = f"{files.certificate}, {files.key}, {files.ca}"
        raise SettingsError(f"one of {names} is unreadable or does not fit the others: {error}") from None


def _own(files: TlsFiles) -> x509.Certificate:
    """The hub's own certificate alone: a CA's may follow in the file, which signs for others."""
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())
