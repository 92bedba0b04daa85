"""Check the local files that settings name: the site's certificate, JetStream's keys, leafnodes' creds.

They are looked at before any host is touched, since a host would refuse them half-way, or, worse, take them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from natskit.config.settings import Settings
from natskit.errors import SettingsError

_KEY = re.compile(r"[A-Za-z0-9+/=_-]{32,}")


class Site(Protocol):
    """The settings of the hosts that play each of these roles, as in :class:`natskit.config.topology.Topology`."""

    @property
    def nats(self) -> tuple[Settings, ...]: ...

    @property
    def hub(self) -> tuple[Settings, ...]: ...

    @property
    def proxy(self) -> tuple[Settings, ...]: ...

    @property
    def exporter(self) -> tuple[Settings, ...]: ...

    @property
    def monitoring(self) -> tuple[Settings, ...]: ...


def problems(site: Site, now: float) -> Iterator[str]:
    """One line for each file that its setting cannot use. ``now`` is in Unix seconds."""
    for settings in site.proxy:
        if settings.proxy_certificate and settings.proxy_key and not settings.proxy_certificate_on_host:
            try:
                check_certificate(settings.proxy_certificate, settings.proxy_key, settings.proxy_name, now)
            except SettingsError as error:
                yield f"inventory, host {settings.platform_name}: {error}"
    for settings in site.hub:
        try:
            oidc_secret(settings)
            if settings.hub_oidc_ca_file:
                _ca("hub_oidc_ca_file", settings.hub_oidc_ca_file)
        except SettingsError as error:
            yield f"inventory, host {settings.platform_name}: {error}"
    for settings in (*site.exporter, *site.monitoring):
        try:
            metrics_token(settings)
            alertmanager(settings)
        except SettingsError as error:
            yield f"inventory, host {settings.platform_name}: {error}"
    for settings in site.nats:
        try:
            jetstream_environment(settings)
            for remote in settings.nats_leafnode_remotes:
                if remote.credentials:
                    creds(remote.credentials)
        except SettingsError as error:
            yield f"inventory, host {settings.platform_name}: {error}"


def local(site: Site) -> list[str]:
    """The files of this machine that settings name: without them nobody can deploy again."""
    found: list[Path | None] = []
    for settings in site.proxy:
        if not settings.proxy_certificate_on_host:
            found += [settings.proxy_certificate, settings.proxy_key]
    for settings in site.hub:
        found += [settings.hub_oidc_client_secret_file, settings.hub_oidc_ca_file]
    for settings in site.nats:
        found += [settings.nats_jetstream_key_file, settings.nats_jetstream_previous_key_file]
        found += [remote.credentials for remote in settings.nats_leafnode_remotes]
    for settings in (*site.exporter, *site.monitoring):
        found += [settings.metrics_token_file, settings.monitoring_alertmanager_file]
    return sorted({str(path.expanduser().absolute()) for path in found if path is not None})


def outside(site: Site) -> list[dict[str, Any]]:
    """The files with an expiry date that settings name: certificates and creds, on this machine or on hosts."""
    found = []

    def add(
        settings: Settings, setting: str, path: Path | str | None, on_host: bool, served: str | None = None
    ) -> None:
        if path is not None:
            place = {"host": settings.platform_name, "path": str(path), "on_host": on_host, "served": served}
            found.append({"setting": setting} | place)

    for settings in site.proxy:
        on_host = settings.proxy_certificate_on_host
        default = settings.platform_root / "proxy" / "tls.crt" if on_host else None
        served = f"{settings.proxy_name}:{settings.proxy_port}" if on_host else None
        add(settings, "proxy_certificate", settings.proxy_certificate or default, on_host, served)
    for settings in site.nats:
        for listener in ("client", "websocket", "cluster", "leafnode", "gateway", "mqtt"):
            tls = getattr(settings, f"nats_{listener}_tls")
            add(settings, f"nats_{listener}_tls", tls.certificate if tls else None, True)
        for remote in settings.nats_leafnode_remotes:
            add(settings, "nats_leafnode_remotes", remote.credentials, False)
    return found


def check_certificate(certificate: Path, key: Path, name: str, now: float) -> None:
    """Raise :class:`SettingsError` unless the certificate is for the DNS name or address ``name``, is valid at ``now``
    (Unix seconds) and matches the key."""
    content = _read("proxy_certificate", certificate)
    try:
        chain = x509.load_pem_x509_certificates(content)
    except ValueError:
        raise SettingsError(f"proxy_certificate = {certificate} is not a certificate in PEM") from None
    try:
        public = serialization.load_pem_private_key(_read("proxy_key", key), password=None).public_key()
    except TypeError:
        raise SettingsError(
            f"proxy_key = {key} has a password, which nginx cannot ask for: remove the password"
        ) from None
    except ValueError:
        raise SettingsError(f"proxy_key = {key} is not a private key in PEM") from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    matching = [entry.public_key().public_bytes(*form) == public.public_bytes(*form) for entry in chain]
    if not matching[0]:
        hint = ": put the site's own certificate first in the file, then its chain" if any(matching) else ""
        raise SettingsError(f"proxy_key = {key} is not the key of proxy_certificate = {certificate}{hint}")
    at, first = datetime.fromtimestamp(now, UTC), chain[0]
    if at >= first.not_valid_after_utc:
        raise SettingsError(
            f"proxy_certificate = {certificate} expired on {first.not_valid_after_utc:%Y-%m-%d}: renew it"
        )
    if at < first.not_valid_before_utc:
        raise SettingsError(
            f"proxy_certificate = {certificate} is not valid before {first.not_valid_before_utc:%Y-%m-%d}"
        )
    covered = _names(first)
    if not any(_covers(pattern, name) for pattern in covered):
        known = ", ".join(covered) or "no name"
        raise SettingsError(f"proxy_certificate = {certificate} is for {known}, not for proxy_name = {name}")


def jetstream_environment(settings: Settings) -> dict[str, str]:
    """nats-server's environment variables for encryption at rest; empty without it.

    Raises :class:`SettingsError`, which never quotes a file's content.
    """
    files = {
        "NATS_JS_KEY": ("nats_jetstream_key_file", settings.nats_jetstream_key_file),
        "NATS_JS_PREVIOUS_KEY": ("nats_jetstream_previous_key_file", settings.nats_jetstream_previous_key_file),
    }
    return {variable: _key(setting, path) for variable, (setting, path) in files.items() if path is not None}


def environment_file(environment: dict[str, str]) -> str:
    """The variables in the format of systemd's ``EnvironmentFile``. nats-server parses a variable as a configuration
    value, so that a key such as ``12e4`` would be a number. systemd removes the outer quotes; nats-server sees the
    inner ones."""
    return "".join(f"{variable}='\"{key}\"'\n" for variable, key in environment.items())


def creds(path: Path) -> str:
    """The creds of a leafnode. Raises :class:`SettingsError`."""
    content = _read("nats_leafnode_remotes, credentials", path).decode(errors="replace")
    if "BEGIN NATS USER JWT" not in content or "BEGIN USER NKEY SEED" not in content:
        raise SettingsError(
            f"nats_leafnode_remotes, credentials = {path} is not a creds file, which has a JWT and a seed"
        )
    return content


def oidc_secret(settings: Settings) -> str:
    """The client secret for the OpenID provider; empty without one. Raises :class:`SettingsError`."""
    path = settings.hub_oidc_client_secret_file
    if path is None:
        return ""
    secret = _read("hub_oidc_client_secret_file", path).decode(errors="replace").strip()
    if not secret or "\n" in secret:
        raise SettingsError(f"hub_oidc_client_secret_file = {path} must contain one line: the client's secret")
    return secret + "\n"


def metrics_token(settings: Settings) -> str:
    """The token that a scraper of metrics shows; empty without one. Raises :class:`SettingsError`."""
    path = settings.metrics_token_file
    if path is None:
        return ""
    token = _read("metrics_token_file", path).decode(errors="replace").strip()
    if not _KEY.fullmatch(token):
        raise SettingsError(
            f"metrics_token_file = {path} must be one line of at least 32 letters, digits, +, /, =, _ and -: make it "
            "with openssl rand -base64 32"
        )
    if path.expanduser().stat().st_mode & 0o077:
        raise SettingsError(f"metrics_token_file = {path} can be read by others: run chmod go= {path}")
    return token


def alertmanager(settings: Settings) -> str:
    """Alertmanager's configuration; empty without one. Raises :class:`SettingsError`."""
    path = settings.monitoring_alertmanager_file
    return _read("monitoring_alertmanager_file", path).decode(errors="replace") if path else ""


def _ca(setting: str, path: Path) -> None:
    try:
        x509.load_pem_x509_certificates(_read(setting, path))
    except ValueError:
        raise SettingsError(f"{setting} = {path} is not a certificate in PEM") from None


def _key(setting: str, path: Path) -> str:
    key = _read(setting, path).decode(errors="replace").strip()
    if not _KEY.fullmatch(key):
        raise SettingsError(
            f"{setting} = {path} must be one line of at least 32 letters, digits, +, /, =, _ and -: make it with "
            "openssl rand -base64 32"
        )
    return key


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting} = {path} cannot be read on this machine: {error.strerror}") from None


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _covers(pattern: str, name: str) -> bool:
    """RFC 6125: a ``*`` replaces only the first label, and never a part of an IP address."""
    try:
        return str(ipaddress.ip_address(name)) == pattern
    except ValueError:
        pass
    pattern, name = pattern.lower(), name.lower()
    return pattern == name or (pattern.startswith("*.") and pattern[1:] == "." + name.partition(".")[2])
