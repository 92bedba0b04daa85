"""The platform's own CA, the proxy's default certificate, and the certificates that hosts present to each other.

Keys are P-256, which every browser supports. A certificate is valid for 397 days, the maximum that Apple and Chromium
accept from a public CA, and is renewed when 30 days are left.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from natskit.errors import IdentityError
from natskit.identity.vault import Vault, as_vault

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
"""natskit creates keys of the first kind; the key of a user's CA may be of the second."""

ROUTES, PROXY = "routes", "proxy"
"""Folders of the identity with a CA of their own."""

CA_DAYS = 3650
CERTIFICATE_DAYS = 397
RENEW_DAYS = 30

Usage = tuple[x509.ObjectIdentifier, ...]
_SERVER: Usage = (ExtendedKeyUsageOID.SERVER_AUTH,)
_HOST: Usage = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def ensure_ca(place: Path | Vault, *, now: int) -> Path:
    """The path of the CA's certificate (``tls/ca.crt``), created with its key at the first call.

    ``now`` is in Unix seconds. The user may provide both files (docs/how-to/own-ca.md). The certificate file then also
    contains the chain up to the root, and every program that must trust the CA gets the whole file. Raises
    :class:`IdentityError` if only one of the two files exists.
    """
    files = as_vault(place)
    certificate, key = files.directory / "tls" / "ca.crt", files.directory / "tls" / "ca.key"
    if files.exists(certificate) != files.exists(key):
        missing = key if files.exists(certificate) else certificate
        raise IdentityError(
            f"{missing} is missing: the CA needs both its certificate and its key. Restore it from a backup"
        )
    if not files.exists(certificate):
        private = ec.generate_private_key(ec.SECP256R1())
        # A server that refuses a client logs this name: it says which of the CAs the server trusts.
        part = files.directory.name if files.directory.name in (ROUTES, PROXY) else "local"
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"natskit {part} CA {_at(now):%Y-%m-%d}")])
        built = (
            _builder(name, name, private.public_key(), now, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .sign(private, hashes.SHA256())
        )
        files.write(key, _pem_key(private))
        files.write(certificate, _pem(built))
    return certificate


def ensure_server_certificate(
    place: Path | Vault, name: str, hosts: Iterable[str], *, now: int, renew_days: int = RENEW_DAYS
) -> tuple[str, str]:
    """The PEM of a server's certificate and key for these DNS names and IP addresses, signed by the local CA.

    They are stored in ``tls/{name}.crt`` and ``.key``, and renewed when the hosts or the CA change or at most
    ``renew_days`` are left. Raises :class:`IdentityError`.
    """
    return _ensure(as_vault(place), Path(name), hosts, _SERVER, now, renew_days)


def ensure_host_certificate(
    place: Path | Vault, name: str, hosts: Iterable[str], *, now: int, renew_days: int = RENEW_DAYS
) -> tuple[str, str]:
    """The PEM of a host's certificate and key for mutual TLS between hosts.

    As :func:`ensure_server_certificate`, but also valid for TLS clients, and stored in ``tls/hosts/``.
    """
    return _ensure(as_vault(place), Path("hosts") / name, hosts, _HOST, now, renew_days)


def _ensure(files: Vault, name: Path, hosts: Iterable[str], usage: Usage, now: int, renew_days: int) -> tuple[str, str]:
    hosts = sorted({_normal(host) for host in hosts})
    if not hosts:
        raise IdentityError(f"the certificate {name} has no host: name at least one")
    ca_path = ensure_ca(files, now=now)
    ca = _load_certificate(files, ca_path, "restore it from a backup")
    certificate, key = (files.directory / "tls" / f"{name}.{suffix}" for suffix in ("crt", "key"))
    _check_ca(ca, ca_path, now)
    there = files.exists(certificate) and files.exists(key)
    if not (there and _is_good(files, certificate, key, ca, hosts, now, renew_days)):
        private = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0] if len(hosts[0]) <= 64 else name.name)])
        built = (
            _builder(subject, ca.subject, private.public_key(), now, CERTIFICATE_DAYS, ca.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(_authority(ca), critical=False)
            .sign(_ca_key(files), hashes.SHA256())
        )
        files.write(key, _pem_key(private))
        files.write(certificate, _pem(built))
    return files.read(certificate).decode() + _between(files.read(ca_path)), files.read(key).decode()


def _ca_key(files: Vault) -> PrivateKey:
    return _load_key(files, files.directory / "tls" / "ca.key", "restore it from a backup")


def _load_key(files: Vault, path: Path, remedy: str) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(files.read(path), password=None)
    except (ValueError, TypeError):  # TypeError: it has a password
        raise IdentityError(f"{path} is not a private key: {remedy}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise IdentityError(f"{path} is neither an elliptic-curve nor an RSA key: {remedy}")
    return key


def _load_certificate(files: Vault, path: Path, remedy: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(files.read(path))
    except ValueError:
        raise IdentityError(f"{path} is not a certificate: {remedy}") from None


def _is_good(
    files: Vault, path: Path, key: Path, ca: x509.Certificate, hosts: list[str], now: int, renew_days: int
) -> bool:
    remedy = f"remove {path} and deploy again"
    certificate = _load_certificate(files, path, remedy)
    if certificate.public_key() != _load_key(files, key, remedy).public_key():
        return False  # they do not match: the process that wrote them was interrupted
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = sorted([*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))])
    ends = certificate.not_valid_after_utc
    long_enough = ends - _at(now) > timedelta(days=renew_days) or ends >= ca.not_valid_after_utc
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return long_enough and found == hosts and authority == _authority(ca)


def _check_ca(ca: x509.Certificate, path: Path, now: int) -> None:
    """Check a CA, which the user may have provided. Raises :class:`IdentityError` if clients would refuse its
    certificates."""
    try:
        can_sign = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        can_sign = False
    if not can_sign:
        raise IdentityError(f"{path}: its first certificate is not that of a CA (basicConstraints CA:TRUE)")
    if _at(now) >= ca.not_valid_after_utc:
        raise IdentityError(f"{path}: the CA has expired on {ca.not_valid_after_utc:%Y-%m-%d}")


def _between(chain: bytes) -> str:
    """The intermediate certificates that a client needs if it trusts only the root."""
    return "".join(_pem(each) for each in x509.load_pem_x509_certificates(chain) if each.issuer != each.subject)


def _authority(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        identifier = x509.SubjectKeyIdentifier.from_public_key(ca.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: int,
    days: int,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    ends = _at(now) + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_at(now) - timedelta(hours=1))
        .not_valid_after(min(ends, latest or ends))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _normal(host: str) -> str:
    """The canonical form of a host; an address has several forms. Raises :class:`IdentityError`."""
    if not host or not host.isascii() or "%" in host:
        raise IdentityError(f"{host!r} cannot be in a certificate: write a name in ASCII (xn--…), or an IP address")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _pem_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _at(now: int) -> datetime:
    return datetime.fromtimestamp(now, UTC)
