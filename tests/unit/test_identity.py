"""The identity directory: made once, private, and never guessed at when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import natskit.identity
from natskit.errors import IdentityError, NatskitError
from natskit.identity import HubKeys, Identity, claims
from natskit.identity.tls import CERTIFICATE_DAYS, RENEW_DAYS, ensure_ca, ensure_server_certificate
from natskit.permissions import SCOPES, Permissions

NOW = 1_800_000_000
DAY = 86_400
RUNNER = "5f0c6f0e-7a3e-4c8e-9d5b-0c1f2e3d4a5b"


def snapshot(directory: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(directory)): (path.read_text(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "identity"
    first = Identity.ensure(directory, now=NOW)
    first.runner_creds(RUNNER, now=NOW)
    before = snapshot(directory)
    second = Identity.ensure(directory, now=NOW + 1000)
    assert second.runner_creds(RUNNER, now=NOW + 1000) == first.runner_creds(RUNNER, now=NOW)
    assert snapshot(directory) == before


def test_nobody_else_may_read_anything(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        Identity.ensure(tmp_path / "identity", now=NOW)
        ensure_server_certificate(tmp_path / "identity", "proxy", ["localhost"], now=NOW)
    finally:
        os.umask(previous)
    for path in [tmp_path / "identity", *(tmp_path / "identity").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_directory_others_may_read_is_refused(tmp_path: Path) -> None:
    Identity.ensure(tmp_path / "identity", now=NOW)
    (tmp_path / "identity").chmod(0o755)
    with pytest.raises(IdentityError, match=r"chmod go= .*identity"):
        Identity.ensure(tmp_path / "identity", now=NOW)


def test_a_missing_index_is_a_half_written_directory(tmp_path: Path) -> None:
    directory = tmp_path / "identity"
    Identity.ensure(directory, now=NOW)
    (directory / "natskit.json").unlink()
    before = snapshot(directory)
    with pytest.raises(IdentityError, match="half-written"):
        Identity.ensure(directory, now=NOW)
    assert snapshot(directory) == before


def test_a_missing_or_exchanged_seed_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "identity"
    Identity.ensure(directory, now=NOW)
    one, two, *_ = sorted((directory / "keys" / "keys" / "A").rglob("*.nk"))
    text = one.read_text()
    one.write_text(two.read_text())
    with pytest.raises(IdentityError, match=one.name):
        Identity.load(directory)
    one.unlink()
    with pytest.raises(IdentityError, match=r"missing.*backup"):
        Identity.load(directory)
    one.write_text("SAnonsense")
    one.chmod(0o600)
    with pytest.raises(IdentityError) as error:
        Identity.load(directory)
    assert "SAnonsense" not in str(error.value)
    one.write_text(text)
    Identity.load(directory)


def test_a_lost_jwt_is_signed_again_with_the_same_keys(tmp_path: Path) -> None:
    directory = tmp_path / "identity"
    before = Identity.ensure(directory, now=NOW)
    (directory / "stores" / "natskit" / "accounts" / "PLATFORM" / "PLATFORM.jwt").unlink()
    after = Identity.ensure(directory, now=NOW)
    assert after.account_jwt("PLATFORM") == before.account_jwt("PLATFORM")


def test_a_changed_matrix_signs_the_nats_account_anew_and_keeps_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "identity"
    before = Identity.ensure(directory, now=NOW)
    changed = dict(SCOPES) | {"admin": Permissions(("hub.admin",), ("_INBOX.admin.>",))}
    monkeypatch.setattr(natskit.identity, "SCOPES", changed)
    after = Identity.ensure(directory, now=NOW + 5)
    assert after.account_public_key("PLATFORM") == before.account_public_key("PLATFORM")
    assert claims.decode(after.account_jwt("PLATFORM"))["iat"] == NOW + 5
    assert after.account_jwt("SYS") == before.account_jwt("SYS")


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    identity = Identity.ensure(tmp_path / "identity", now=NOW, write=False)
    assert identity.runner_creds(RUNNER, now=NOW)
    assert claims.decode(identity.account_jwt("AUTH"))["name"] == "AUTH"
    assert not (tmp_path / "identity").exists()


def test_two_deploys_at_once_make_one_identity(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from natskit.identity import Identity;"
        "print(Identity.ensure(Path(sys.argv[1]), now=1).operator_public_key)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "identity")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    keys = {process.communicate(timeout=60)[0] for process in processes}
    assert len(keys) == 1


def test_a_hub_holds_no_key_that_mints_hubs(tmp_path: Path) -> None:
    identity = Identity.ensure(tmp_path / "identity", now=NOW)
    held = identity.hub_keys().to_json()
    for account, role in (("PLATFORM", "hub"), ("PLATFORM", "admin"), ("SYS", "hub"), ("SYS", "admin")):
        assert identity.signing_seed(account, role) not in held
    assert identity.signing_seed("AUTH", "hub") in held
    assert identity.signing_seed("AUTH", "hub") not in repr(identity.hub_keys())


def test_hub_keys_are_read_back_and_must_be_private(tmp_path: Path) -> None:
    keys = Identity.ensure(tmp_path / "identity", now=NOW).hub_keys()
    path = tmp_path / "keys.json"
    path.write_text(keys.to_json())
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod"):
        HubKeys.read(path)
    path.chmod(0o600)
    assert HubKeys.read(path) == keys


def test_a_runner_id_must_be_a_uuid(tmp_path: Path) -> None:
    identity = Identity.ensure(tmp_path / "identity", now=NOW)
    with pytest.raises(NatskitError, match="lower-case UUID"):
        identity.runner_creds("../../etc", now=NOW)


def test_a_certificate_is_kept_until_its_hosts_change_or_its_end_is_near(tmp_path: Path) -> None:
    def issue(hosts: list[str], now: int) -> str:
        return ensure_server_certificate(tmp_path, "proxy", hosts, now=now)[0]

    first = issue(["localhost", "127.0.0.1"], NOW)
    assert issue(["127.0.0.1", "localhost"], NOW + (CERTIFICATE_DAYS - RENEW_DAYS - 1) * DAY) == first
    assert issue(["localhost", "127.0.0.1"], NOW + (CERTIFICATE_DAYS - RENEW_DAYS) * DAY) != first
    other = issue(["example.org"], NOW)
    assert other != first


def test_half_a_ca_is_refused(tmp_path: Path) -> None:
    ensure_ca(tmp_path, now=NOW)
    (tmp_path / "tls" / "ca.key").unlink()
    with pytest.raises(IdentityError, match=r"ca\.key is missing"):
        ensure_ca(tmp_path, now=NOW)
