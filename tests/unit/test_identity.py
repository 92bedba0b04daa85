"""The identity directory: made once, private, and never guessed at when something is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

import natskit.identity.identity
import natskit.identity.vault
from natskit.bus.permissions import SCOPES, SCOPES_OF, Permissions
from natskit.errors import IdentityError, NatskitError
from natskit.identity import claims, nkey
from natskit.identity.files import write_private
from natskit.identity.identity import HubKeys, Identity
from natskit.identity.tls import (
    CERTIFICATE_DAYS,
    RENEW_DAYS,
    ensure_ca,
    ensure_host_certificate,
    ensure_server_certificate,
)

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
    with pytest.raises(IdentityError, match="is incomplete"):
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
    """A role keeps a removed right until the deploy is complete, even if the deploy has to start again."""
    directory = tmp_path / "identity"
    before = Identity.ensure(directory, now=NOW)
    assert not before.has_earlier_rights
    changed = dict(SCOPES) | {"admin": Permissions(("hub.admin", "new"), ("_INBOX.admin.>",))}
    monkeypatch.setattr(natskit.identity.identity, "SCOPES_OF", {**SCOPES_OF, "PLATFORM": changed})
    for seconds in (5, 10):
        after = Identity.ensure(directory, now=NOW + seconds)
        assert after.account_public_key("PLATFORM") == before.account_public_key("PLATFORM")
        assert claims.decode(after.account_jwt("PLATFORM"))["iat"] == NOW + 5
        assert after.account_jwt("SYS") == before.account_jwt("SYS")
        assert after.has_earlier_rights
        assert set(_may_publish(after, "admin")) == {*SCOPES["admin"].publish, "new"}
        assert set(_may_publish(after, "hub")) == set(SCOPES["hub"].publish)
    after.end_earlier_rights(now=NOW + 5)
    assert not after.has_earlier_rights
    assert claims.decode(after.account_jwt("PLATFORM"))["iat"] == NOW + 6
    assert _may_publish(after, "admin") == ["hub.admin", "new"]
    again = Identity.ensure(directory, now=NOW + 20)
    assert again.account_jwt("PLATFORM") == after.account_jwt("PLATFORM")


def _may_publish(identity: Identity, role: str) -> list[str]:
    scopes = claims.decode(identity.account_jwt("PLATFORM"))["nats"]["signing_keys"]
    (found,) = (scope["template"]["pub"]["allow"] for scope in scopes if scope["role"] == role)
    return list(found)


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
    for account, role in (("PLATFORM", "hub"), ("PLATFORM", "admin"), ("SYS", "admin")):
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


def test_a_host_shows_one_certificate_as_server_and_as_client(tmp_path: Path) -> None:
    pem, key = ensure_host_certificate(tmp_path, "nats-1", ["nats-1", "10.0.0.1"], now=NOW)
    assert (tmp_path / "tls" / "hosts" / "nats-1.crt").read_text() == pem
    assert (tmp_path / "tls" / "hosts" / "nats-1.key").read_text() == key
    host, server = (
        x509.load_pem_x509_certificate(text.encode())
        for text in (pem, ensure_server_certificate(tmp_path, "nats-1", ["nats-1"], now=NOW)[0])
    )
    usages = [set(c.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) for c in (host, server)]
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert usages == [both, {ExtendedKeyUsageOID.SERVER_AUTH}]
    host.verify_directly_issued_by(x509.load_pem_x509_certificate(ensure_ca(tmp_path, now=NOW).read_bytes()))


def test_a_host_certificate_is_kept_as_long_as_wished(tmp_path: Path) -> None:
    def issue(hosts: list[str], now: int, renew_days: int = RENEW_DAYS) -> str:
        return ensure_host_certificate(tmp_path, "hub-1", hosts, now=now, renew_days=renew_days)[0]

    first = issue(["hub-1", "10.0.0.2"], NOW)
    later = NOW + (CERTIFICATE_DAYS - 90) * DAY
    assert issue(["10.0.0.2", "hub-1"], later) == first
    assert issue(["10.0.0.2", "hub-1"], later - DAY, 90) == first
    renewed = issue(["10.0.0.2", "hub-1"], later, 90)
    assert renewed != first
    assert issue(["10.0.0.2", "hub-1"], later, 90) == renewed
    assert issue(["10.0.0.3", "hub-1"], later, 90) != renewed
    shutil.rmtree(tmp_path / "tls")
    assert issue(["10.0.0.3", "hub-1"], later) != renewed


def test_half_a_ca_is_refused(tmp_path: Path) -> None:
    ensure_ca(tmp_path, now=NOW)
    (tmp_path / "tls" / "ca.key").unlink()
    with pytest.raises(IdentityError, match=r"ca\.key is missing"):
        ensure_ca(tmp_path, now=NOW)


def test_a_first_run_into_a_directory_others_may_read_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "identity"
    directory.mkdir(mode=0o700)
    directory.chmod(0o755)
    with pytest.raises(IdentityError, match=r"chmod go= .*identity"):
        Identity.ensure(directory, now=NOW)
    assert not list(directory.iterdir())
    directory.chmod(0o700)
    Identity.ensure(directory, now=NOW)


def test_two_deploys_keep_each_others_runner(tmp_path: Path) -> None:
    one, two = (Identity.ensure(tmp_path / "identity", now=NOW) for _ in range(2))
    other = RUNNER.replace("5", "6")
    first, second = one.runner_creds(RUNNER, now=NOW), two.runner_creds(other, now=NOW)
    assert two.runner_creds(RUNNER, now=NOW) == first
    loaded = Identity.load(tmp_path / "identity")
    assert (loaded.runner_creds(RUNNER, now=NOW), loaded.runner_creds(other, now=NOW)) == (first, second)


def test_a_loaded_identity_makes_no_keys(tmp_path: Path) -> None:
    Identity.ensure(tmp_path / "identity", now=NOW)
    before = snapshot(tmp_path)
    with pytest.raises(IdentityError, match=f"no runner {RUNNER}"):
        Identity.load(tmp_path / "identity").runner_creds(RUNNER, now=NOW)
    assert snapshot(tmp_path) == before


def test_an_identity_of_an_older_version_gets_the_accounts_of_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them, everything else works, and says what is missing; a deploy adds them and changes no key."""
    directory = tmp_path / "identity"
    with monkeypatch.context() as older:
        users = [
            (account, user)
            for account, user in natskit.identity.identity.STATIC_USERS
            if account not in ("STATE", "DOCS")
        ]
        older.setattr(natskit.identity.identity, "NATS_ACCOUNTS", ("SYS", "AUTH", "PLATFORM"))
        older.setattr(natskit.identity.identity, "STATIC_USERS", users)
        before = Identity.ensure(directory, now=NOW)
    loaded = Identity.load(directory)
    assert loaded.accounts == ["SYS", "AUTH", "PLATFORM"]
    assert len(loaded.account_jwts()) == 3
    for ask in (loaded.account_public_key, lambda name: loaded.creds(name, "admin")):
        for missing in ("STATE", "DOCS"):
            with pytest.raises(IdentityError, match="deploy to create it"):
                ask(missing)
    after = Identity.ensure(directory, now=NOW + 5)
    assert after.account_public_key("PLATFORM") == before.account_public_key("PLATFORM")
    imported = claims.decode(after.account_jwt("PLATFORM"))["nats"]["imports"]
    documents = after.account_public_key("DOCS")
    assert [each["subject"] for each in imported if each["account"] == documents] == ["events.project.*.doc.*"]
    for name in ("STATE", "DOCS"):
        assert claims.decode(after.account_jwt(name))["nats"]["limits"]["disk_storage"] == -1
    # Its streams are in PLATFORM until a deploy has moved them, and somebody has confirmed that.
    assert (after.state_in_platform, after.state_can_go_back) == (True, False)
    assert claims.decode(after.account_jwt("PLATFORM"))["nats"]["limits"]["disk_storage"] == -1
    after.note_state("moved", now=NOW + 6)
    again = Identity.ensure(directory, now=NOW + 7)
    assert (again.state_in_platform, again.state_can_go_back) == (False, True)
    imported = claims.decode(again.account_jwt("PLATFORM"))["nats"]["imports"]
    assert "audit.>" in [each["subject"] for each in imported], "older hubs have events to write"
    again.note_state("confirmed", now=NOW + 8)
    again = Identity.load(directory)
    assert (again.state_in_platform, again.state_can_go_back) == (False, False)
    assert "disk_storage" not in claims.decode(again.account_jwt("PLATFORM"))["nats"]["limits"]
    imported = claims.decode(after.account_jwt("AUTH"))["nats"]["imports"]
    assert {each["account"] for each in imported} == {after.account_public_key("STATE")}
    assert after.creds("STATE", "admin")
    assert after.creds("DOCS", "keeper")


def test_only_nats_accounts_without_clients_have_jetstream(tmp_path: Path) -> None:
    identity = Identity.ensure(tmp_path / "identity", now=NOW)
    assert (identity.state_in_platform, identity.state_can_go_back) == (False, False)
    bodies = {name: claims.decode(identity.account_jwt(name))["nats"] for name in identity.accounts}
    assert {name for name, body in bodies.items() if "disk_storage" in body["limits"]} == {"STATE", "DOCS"}
    state = identity.account_public_key("STATE")
    users = {name for name, body in bodies.items() if state in {one["account"] for one in body.get("imports", [])}}
    assert users == {"AUTH", "DOCS"}
    written = [one["subject"] for one in bodies["DOCS"]["imports"] if one["subject"].startswith("$KV.")]
    assert written == [], "keepers only read"


def test_a_new_role_and_a_new_user_get_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "identity"
    before = Identity.ensure(directory, now=NOW)
    more = dict(SCOPES_OF["PLATFORM"]) | {"auditor": Permissions((), ("events.>",))}
    monkeypatch.setattr(natskit.identity.identity, "SCOPES_OF", {**SCOPES_OF, "PLATFORM": more})
    users = (*natskit.identity.identity.STATIC_USERS, ("PLATFORM", "auditor"))
    monkeypatch.setattr(natskit.identity.identity, "STATIC_USERS", users)
    for ask in (before.signing_seed, before.creds):
        with pytest.raises(IdentityError, match="deploy to create it"):
            ask("PLATFORM", "auditor")
    after = Identity.ensure(directory, now=NOW)
    assert after.signing_seed("PLATFORM", "hub") == before.signing_seed("PLATFORM", "hub")
    loaded = Identity.load(directory)
    assert loaded.creds("PLATFORM", "auditor") == after.creds("PLATFORM", "auditor")
    signer = nkey.public_key(loaded.signing_seed("PLATFORM", "auditor"))
    keys = claims.decode(loaded.account_jwt("PLATFORM"))["nats"]["signing_keys"]
    assert signer in [key["key"] for key in keys]
    index = json.loads((directory / "natskit.json").read_text())
    assert nkey.is_public_key(index["users"]["PLATFORM/auditor"], "user")


def test_a_seed_file_of_other_bytes_is_named(tmp_path: Path) -> None:
    Identity.ensure(tmp_path, now=NOW)
    seed = next((tmp_path / "keys" / "keys" / "U").rglob("*.nk"))
    seed.write_bytes(b"\xff\xfe")
    with pytest.raises(IdentityError, match=seed.name):
        Identity.load(tmp_path)


def test_an_interruption_between_key_and_certificate_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def issue(now: int) -> tuple[str, str]:
        return ensure_server_certificate(tmp_path, "proxy", ["localhost"], now=now)

    def interrupted(path: Path, content: bytes) -> None:
        write_private(path, content)
        if path.suffix == ".key":
            raise KeyboardInterrupt

    issue(NOW)
    with monkeypatch.context() as patch:
        patch.setattr(natskit.identity.vault, "write_private", interrupted)
        with pytest.raises(KeyboardInterrupt):
            issue(NOW + CERTIFICATE_DAYS * DAY)
    certificate, key = issue(NOW)
    public = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    assert public == serialization.load_pem_private_key(key.encode(), password=None).public_key()
    assert issue(NOW) == (certificate, key)


def test_every_way_to_write_an_address_is_the_same_host(tmp_path: Path) -> None:
    ways = (["2001:0db8:0:0:0:0:0:0001"], ["2001:db8::1"], ["2001:DB8::1", "2001:db8:0::1"])
    assert len({ensure_server_certificate(tmp_path, "proxy", hosts, now=NOW)[0] for hosts in ways}) == 1


@pytest.mark.parametrize("host", ["", "bücher.example", "fe80::1%eth0"])
def test_a_host_no_certificate_can_name(tmp_path: Path, host: str) -> None:
    with pytest.raises(IdentityError, match=re.escape(repr(host))):
        ensure_server_certificate(tmp_path, "proxy", ["localhost", host], now=NOW)


def test_a_certificate_for_nobody_and_one_with_a_long_name(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="proxy has no host"):
        ensure_server_certificate(tmp_path, "proxy", [], now=NOW)
    assert ensure_server_certificate(tmp_path, "proxy", [f"{'a' * 63}.example.org"], now=NOW)


@pytest.mark.parametrize("name", ["proxy.crt", "proxy.key", "ca.crt", "ca.key"])
def test_an_empty_tls_file_is_named(tmp_path: Path, name: str) -> None:
    ensure_server_certificate(tmp_path, "proxy", ["localhost"], now=NOW)
    (tmp_path / "tls" / name).write_text("")
    with pytest.raises(IdentityError, match=re.escape(name)):
        ensure_server_certificate(tmp_path, "proxy", ["localhost", "example.org"], now=NOW)
