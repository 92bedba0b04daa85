"""A user's own CA: an RSA key, signed by another CA, as companies have them. nats-server and OpenSSL accept it."""

from __future__ import annotations

import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from natskit.bus.tls_trust import client_context
from natskit.errors import IdentityError
from natskit.identity.identity import Identity
from natskit.identity.tls import ensure_host_certificate, ensure_server_certificate
from tests.kit.nats import running
from tests.kit.ports import free_port

NOW = int(time.time())
Signer = tuple[x509.Certificate, rsa.RSAPrivateKey]


def authority(name: str, days: int = 90, above: Signer | None = None, ca: bool = True) -> Signer:
    """A certificate as other tools make it, without the extensions that natskit's have."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = (above[0].subject, above[1]) if above else (subject, key)
    start = datetime.fromtimestamp(NOW, UTC) - timedelta(days=100)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=100 + days))
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    return builder.sign(signer, hashes.SHA256()), key


def give(directory: Path, signer: Signer, *above: Signer) -> None:
    """Follow docs/how-to/own-ca.md."""
    tls = directory / "tls"
    tls.mkdir(mode=0o700, parents=True)
    directory.chmod(0o700)
    pem = serialization.Encoding.PEM
    (tls / "ca.crt").write_bytes(b"".join(each[0].public_bytes(pem) for each in (signer, *above)))
    (tls / "ca.key").touch(mode=0o600)
    (tls / "ca.key").write_bytes(
        signer[1].private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )


def test_nats_server_and_its_clients_know_each_other_by_it(tmp_path: Path) -> None:
    root = authority("Root")
    give(tmp_path, authority("Below", above=root), root)
    Identity.ensure(tmp_path, now=NOW)
    for name in ("server", "client"):
        shown = ensure_host_certificate(tmp_path, name, ["127.0.0.1"], now=NOW)
        assert ensure_host_certificate(tmp_path, name, ["127.0.0.1"], now=NOW) == shown
        for suffix, text in zip(("crt", "key"), shown, strict=True):
            (tmp_path / f"{name}.{suffix}").write_text(text)
    port = free_port()
    config = (
        f'listen: "127.0.0.1:{port}"\ntls {{ cert_file: "{tmp_path}/server.crt", key_file: "{tmp_path}/server.key"\n'
        f'ca_file: "{tmp_path}/tls/ca.crt", verify: true, handshake_first: true }}'
    )
    with running(tmp_path, config):
        # One who knows the platform's file, and one who knows the root alone.
        (tmp_path / "root.crt").write_bytes(root[0].public_bytes(serialization.Encoding.PEM))
        for ca in (tmp_path / "tls" / "ca.crt", tmp_path / "root.crt"):
            context = client_context(ca, tmp_path / "client.crt", tmp_path / "client.key")
            with (
                socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
            ):
                assert connection.recv(5) == b"INFO "
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            client_context(ca, None, None).wrap_socket(plain, server_hostname="127.0.0.1") as connection,
            pytest.raises(ssl.SSLError),
        ):
            connection.recv(5)


def test_a_certificate_ends_with_its_ca_and_is_kept_until_then(tmp_path: Path) -> None:
    give(tmp_path, authority("Ends soon", days=20))
    certificate, key = ensure_server_certificate(tmp_path, "proxy", ["localhost"], now=NOW)
    ends = x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc
    assert ends == datetime.fromtimestamp(NOW, UTC) + timedelta(days=20)
    assert ensure_server_certificate(tmp_path, "proxy", ["localhost"], now=NOW) == (certificate, key)
    with pytest.raises(IdentityError, match=r"ca.crt: the CA has expired on "):
        ensure_server_certificate(tmp_path, "proxy", ["localhost"], now=NOW + 21 * 86_400)


def test_what_is_no_ca_is_refused(tmp_path: Path) -> None:
    give(tmp_path, authority("A server", ca=False))
    with pytest.raises(IdentityError, match="is not that of a CA"):
        ensure_server_certificate(tmp_path, "proxy", ["localhost"], now=NOW)
