"""The report of expiry dates is complete, and names everything that expires soon."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from natskit.cli import cli
from natskit.config import referenced_files
from natskit.config.topology import assemble
from natskit.errors import IdentityError
from natskit.identity import claims, nkey, vault
from natskit.identity.identity import Identity
from natskit.identity.report import Entry, InUse, Named, due, entries
from natskit.identity.tls import CA_DAYS, CERTIFICATE_DAYS, ensure_host_certificate, ensure_server_certificate
from natskit.identity.vault import Vault
from roles import tls

NOW = 1_800_000_000
DAY = 86_400
RUNNER = "5f0c6f0e-7a3e-4c8e-9d5b-0c1f2e3d4a5b"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An identity with a runner, a site and a host. Tests do not change it."""
    directory = tmp_path_factory.mktemp("report") / "identity"
    identity = Identity.ensure(directory, now=NOW)
    identity.runner_creds(RUNNER, now=NOW)
    ensure_server_certificate(identity.files, "proxy", ["localhost"], now=NOW)
    ensure_host_certificate(identity.files, "a-hub", ["a"], now=NOW)
    ensure_host_certificate(identity.files.at("routes"), "b-nats", ["b"], now=NOW)
    return directory


def by_name(found: list[Entry]) -> dict[tuple[str, str], Entry]:
    names = [(entry.kind, entry.name) for entry in found]
    assert len(names) == len(set(names))
    return dict(zip(names, found, strict=True))


def test_every_file_of_an_identity_is_in_the_report(directory: Path) -> None:
    found = entries(directory)
    files = {
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.suffix in (".nk", ".jwt", ".crt")
    }
    assert {entry.file for entry in found} == files
    assert len(found) == len(files)
    assert all(entry.used_by for entry in found)
    assert all(entry.to_do for entry in found if entry.expires)
    assert by_name(found)["certificate", "host a-hub"].expires == NOW + CERTIFICATE_DAYS * DAY
    assert by_name(found)["certificate", "CA"].expires == NOW + CA_DAYS * DAY


def test_what_is_near_its_end_is_named(directory: Path) -> None:
    found = entries(directory)
    end = NOW + CERTIFICATE_DAYS * DAY
    assert due(found, end - 11 * DAY, 10) == []
    near = due(found, end - 10 * DAY, 10)
    assert {entry.name for entry in near} == {"site (proxy)", "host a-hub", "host b-nats of routes"}
    assert {entry.state(end, 0) for entry in near} == {"expired"}


def test_a_certificate_that_nobody_uses_any_more_is_no_worry(directory: Path) -> None:
    found = entries(directory, InUse(frozenset({"tls/proxy", "routes/tls/hosts/b-nats"})))
    left_over = by_name(found)["certificate", "host a-hub"]
    assert (left_over.problem, left_over.to_do) == ("left over", "remove tls/hosts/a-hub.crt")
    assert left_over not in due(found, NOW + CA_DAYS * DAY, 0)


def test_what_settings_name_is_in_the_report(directory: Path, tmp_path: Path) -> None:
    certificate, _ = ensure_server_certificate(tmp_path, "own", ["bus.example.org"], now=NOW)
    (tmp_path / "own.pem").write_text(certificate)
    seed, account = nkey.create_seed("user"), nkey.key_pair(nkey.create_seed("account"))
    body = claims.platform_user_claims(
        subject=nkey.public_key(seed), name="leaf", tags=[], platform_account="A", issued_at=NOW, expires_at=NOW + DAY
    )
    (tmp_path / "leaf.creds").write_text(claims.format_creds(claims.encode(body, account), seed))
    named = (
        Named("proxy_certificate", "c", str(tmp_path / "own.pem"), on_host=False),
        Named("nats_leafnode_remotes", "a", str(tmp_path / "leaf.creds"), on_host=False),
        Named("nats_client_tls", "a", "/etc/nats.crt", on_host=True),
        Named("proxy_certificate", "gone", str(tmp_path / "gone.pem"), on_host=False),
    )
    found = by_name(entries(directory, InUse(frozenset(), named)))
    assert found["certificate", "proxy_certificate of c"].expires == NOW + CERTIFICATE_DAYS * DAY
    assert found["JWT", "nats_leafnode_remotes of a"].expires == NOW + DAY
    assert found["certificate", "nats_client_tls of a"].problem == "unknown"
    assert found["certificate", "proxy_certificate of gone"].problem == "missing"
    assert seed not in str(found)


def test_a_deploy_says_what_is_in_use() -> None:
    """The record in platform.json, for a platform of two hosts."""
    shared: dict[str, Any] = {"platform_control": "/control", "proxy_name": "bus.example.org"}
    tls_of = {"certificate": "/etc/own.crt", "key": "/etc/own.key"}
    here = shared | {"nats_client_tls": tls_of, "hub_count": 2}
    site, _ = assemble([("a", ["nats", "hub"], here), ("c", ["proxy", "runner"], shared)])
    assert sorted(tls.used(site)) == [
        "proxy/tls/hosts/c-proxy",
        "routes/tls/hosts/a-nats",
        "tls/hosts/a-hub",
        "tls/hosts/a-nats",
        "tls/proxy",
    ]
    assert [Named(**one) for one in referenced_files.outside(site)] == [
        Named("nats_client_tls", "a", "/etc/own.crt", on_host=True)
    ]
    shared |= {"proxy_certificate_on_host": True}
    site, _ = assemble([("a", ["nats", "hub"], here | shared), ("c", ["proxy", "runner"], shared)])
    assert "tls/proxy" not in tls.used(site)
    served = Named("proxy_certificate", "c", "/var/lib/natskit/proxy/tls.crt", on_host=True)
    (found,) = (Named(**one) for one in referenced_files.outside(site) if one["host"] == "c")
    assert found == replace(served, served="bus.example.org:4043")


def test_a_certificate_on_its_host_is_looked_at_where_it_is_served(directory: Path, tmp_path: Path) -> None:
    identity = Vault(directory)
    for suffix in ("crt", "key"):
        (tmp_path / suffix).write_bytes(identity.read(directory / "tls" / f"proxy.{suffix}"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            connection, _ = listener.accept()
            context.wrap_socket(connection, server_side=True).close()

        serving = pool.submit(serve)
        named = Named("proxy_certificate", "c", "/var/tls.crt", on_host=True, served=address)
        found = by_name(entries(directory, InUse(frozenset(), (named,))))
        serving.result(10)
    assert found["certificate", "proxy_certificate of c"].expires == NOW + CERTIFICATE_DAYS * DAY
    gone = by_name(entries(directory, InUse(frozenset(), (named,))))
    assert gone["certificate", "proxy_certificate of c"].problem == "unknown"


def test_keys_of_a_rotation_are_in_the_report(directory: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "identity"))
    index = json.loads((copy / "natskit.json").read_text())
    old = [nkey.public_key(nkey.create_seed("account")) for _ in range(3)]
    index["accounts"]["PLATFORM"]["retiring"] = [{"key": old[0], "role": "browser", "since": NOW}]
    index["accounts"]["AUTH"]["next"] = {"hub": old[1]}
    index["operator_retiring"] = [old[2]]
    index["rotation"] = {"kind": "hub-keys"}
    (copy / "natskit.json").write_text(json.dumps(index))
    found = by_name(entries(copy))
    assert old[0] in found["key", "PLATFORM, retiring browser"].file
    assert old[1] in found["key", "AUTH, next hub"].file
    assert old[2] in found["key", "operator, retiring"].file
    assert due(found.values(), NOW, 10) == []


def test_the_command_exits_1_when_something_is_due(directory: Path) -> None:
    """By the real clock, since these certificates expire in some year; also with the index of an encrypted identity."""
    run = CliRunner().invoke(cli, ["identity", "list", str(directory), "--json"])
    assert run.exit_code == 0, run.output
    states = {entry["name"]: entry["state"] for entry in json.loads(run.output)}
    assert states["operator"] == "good"
    assert CliRunner().invoke(cli, ["identity", "list", str(directory), "--warn-days", "0"]).exit_code == 0
    warned = CliRunner().invoke(cli, ["identity", "list", str(directory), "--warn-days", "36500"])
    assert isinstance(warned.exception, IdentityError)
    assert "certificate of CA (" in str(warned.exception)
    assert "certificate of host a-hub (" in str(warned.exception)


def test_a_missing_seed_and_a_damaged_jwt_are_due(directory: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "identity"))
    seed = next((copy / "keys" / "keys" / "O").rglob("*.nk"))
    seed.unlink()
    (copy / "stores" / "natskit" / "accounts" / "SYS" / "SYS.jwt").write_text("x.y.z")
    problems = {(entry.kind, entry.problem) for entry in due(entries(copy), NOW, 0)}
    assert problems == {("key", "missing"), ("JWT", "damaged")}
    vault.sealed(seed).write_bytes(b"sealed")
    assert {entry.problem for entry in due(entries(copy), NOW, 0)} == {"damaged"}
