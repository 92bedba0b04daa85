"""The hub's side of mutual TLS: what it serves with, whom it lets in, and how renewed files come into use.

A hub believes the address the proxy forwards (``X-Forwarded-For``), so nobody may reach it but the proxy, whose
certificate is of a CA of its own. And whoever has the hub's own key, which is nobody else's: a deploy asks for its
health with that, on the hub's host.
"""

from __future__ import annotations

import ssl

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from natskit.errors import SettingsError
from natskit.hub.program import TlsFiles


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.2 or newer, and a client certificate for everyone. Raises :class:`SettingsError` naming the files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    # The hub's own certificate, which is no CA's, is to be trusted as it is; without this only what a CA signs is.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load(context, files)
    return context


def reload(context: ssl.SSLContext, files: TlsFiles) -> x509.Certificate:
    """Serve new connections with what is in the files now; the certificate. Those that are open are left alone.

    Raises :class:`SettingsError`, and goes on with the old files, when the new ones do not fit together. A CA that was
    taken out of its file, and the hub's old certificate, are trusted until the hub is restarted.
    """
    server_context(files)  # OpenSSL takes a certificate before it sees that the key is another's
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
    """The hub's own alone: behind it in the file may be that of a CA, which signs for others."""
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())
