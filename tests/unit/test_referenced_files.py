"""The check of the site's certificate before a deploy changes any host: one clear error for each kind of mistake."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from natskit.config.referenced_files import check_certificate
from natskit.config.topology import validate
from natskit.errors import SettingsError
from natskit.identity.tls import ensure_ca, ensure_server_certificate

NOW = int(time.time())
DAY = 86_400


@pytest.fixture
def given(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for two names and an address, and its key."""
    hosts = ["bus.example.org", "*.apps.example.org", "10.0.0.1"]
    certificate, key = ensure_server_certificate(tmp_path, "site", hosts, now=NOW)
    (tmp_path / "site.crt").write_text(certificate + (tmp_path / "tls" / "ca.crt").read_text())
    (tmp_path / "site.key").write_text(key)
    return tmp_path / "site.crt", tmp_path / "site.key"


@pytest.mark.parametrize("name", ["bus.example.org", "BUS.example.org", "a.apps.example.org", "10.0.0.1"])
def test_a_good_one(given: tuple[Path, Path], name: str) -> None:
    check_certificate(*given, name, NOW)


@pytest.mark.parametrize("name", ["example.org", "a.b.apps.example.org", "apps.example.org", "10.0.0.2", "x.org"])
def test_for_another_name(given: tuple[Path, Path], name: str) -> None:
    with pytest.raises(SettingsError, match=rf"is for .*bus\.example\.org.*, not for proxy_name = {name}$"):
        check_certificate(*given, name, NOW)


def test_out_of_its_time(given: tuple[Path, Path]) -> None:
    with pytest.raises(SettingsError, match=r"proxy_certificate = .* expired on \d{4}-\d\d-\d\d: renew it$"):
        check_certificate(*given, "bus.example.org", NOW + 400 * DAY)
    with pytest.raises(SettingsError, match=r"is not valid before \d{4}-\d\d-\d\d$"):
        check_certificate(*given, "bus.example.org", NOW - DAY)


def test_another_key(given: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, _ = given
    other = tmp_path / "other.key"
    other.write_text(ensure_server_certificate(tmp_path, "other", ["x.org"], now=NOW)[1])
    with pytest.raises(SettingsError, match=r"proxy_key = .*other.key is not the key of proxy_certificate = [^:]*$"):
        check_certificate(certificate, other, "bus.example.org", NOW)


def test_the_chain_in_the_wrong_order(given: tuple[Path, Path]) -> None:
    certificate, key = given
    parts = certificate.read_text().split("-----BEGIN")
    certificate.write_text("-----BEGIN" + parts[2] + "-----BEGIN" + parts[1])
    with pytest.raises(SettingsError, match="put the site's own certificate first in the file, then its chain"):
        check_certificate(certificate, key, "bus.example.org", NOW)


def test_what_is_no_certificate_and_no_key(given: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = given
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(SettingsError, match=r"proxy_certificate = .*/text is not a certificate in PEM"):
        check_certificate(tmp_path / "text", key, "bus.example.org", NOW)
    with pytest.raises(SettingsError, match=r"proxy_key = .*/text is not a private key in PEM"):
        check_certificate(certificate, tmp_path / "text", "bus.example.org", NOW)
    with pytest.raises(SettingsError, match=r"proxy_key = .*/none cannot be read on this machine: No such file"):
        check_certificate(certificate, tmp_path / "none", "bus.example.org", NOW)


def test_a_key_with_a_password(given: tuple[Path, Path]) -> None:
    certificate, key = given
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    locked = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(SettingsError, match="has a password, which nginx cannot ask for"):
        check_certificate(certificate, key, "bus.example.org", NOW)


def test_a_deploy_looks_at_it(given: tuple[Path, Path], tmp_path: Path) -> None:
    ensure_ca(tmp_path, now=NOW)
    common = {"platform_control": "/srv/control", "proxy_certificate": str(given[0]), "proxy_key": str(given[1])}
    for name, on_host, good in (("bus.example.org", False, True), ("x.org", False, False), ("x.org", True, True)):
        own = common | {"proxy_name": name, "proxy_certificate_on_host": on_host}
        hosts = [("nats-1", ["nats"], own), ("hub-1", ["hub", "proxy"], own)]
        if good:
            validate(hosts)
        else:
            with pytest.raises(
                SettingsError, match=r"^inventory, host hub-1: proxy_certificate = .* proxy_name = x.org$"
            ):
                validate(hosts)
