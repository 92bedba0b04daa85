"""An identity becomes one file or nsc's format, and an identity again."""

from __future__ import annotations

import io
import json
import re
import shutil
import stat
import tarfile
from pathlib import Path
from typing import Literal

import nkeys
import pyrage
import pytest

from natskit.errors import IdentityError
from natskit.identity import claims, nsc, vault
from natskit.identity.backup import backup, restore
from natskit.identity.identity import Identity
from natskit.identity.tls import ensure_host_certificate
from natskit.identity.vault import KEY

pytestmark = pytest.mark.usefixtures("given")

NOW = 1_800_000_000
RUNNER = "5f0c6f0e-7a3e-4c8e-9d5b-0c1f2e3d4a5b"
USER_CONFIG = re.compile(r"\s*(?:(?:[-]{3,}.*[-]{3,}\r?\n)([\w\-.=]+)(?:\r?\n[-]{3,}.*[-]{3,}(\r?\n|\Z)))")
"""How NATS clients find the JWT and the seed in a creds file: ``userConfigRE`` of jwt v2, creds_utils.go."""


def complete(directory: Path) -> Path:
    """An identity with a runner and certificates."""
    identity = Identity.ensure(directory, now=NOW)
    identity.runner_creds(RUNNER, now=NOW)
    ensure_host_certificate(identity.files, "nats-1-nats", ["nats-1"], now=NOW)
    ensure_host_certificate(identity.files.at("routes"), "nats-1-nats", ["nats-1"], now=NOW)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_a_backup_of_a_plain_identity_is_encrypted_and_restores_it(tmp_path: Path) -> None:
    directory, file = complete(tmp_path / "identity"), tmp_path / "backup.age"
    backup(directory, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes().startswith(b"age-encryption.org/v1\n-> scrypt ")
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("identity", "backup.age")] == []
    with pytest.raises(IdentityError, match=r"backup\.age exists already"):
        backup(directory, file)
    restored = tmp_path / "other" / "identity"
    restore(file, restored)
    assert contents(restored) == contents(directory)
    assert all(path.stat().st_mode & 0o077 == 0 for path in [restored, *restored.rglob("*")])
    with pytest.raises(IdentityError, match="is not empty"):
        restore(file, restored)


def test_an_encrypted_identity_stays_encrypted_in_its_backup(tmp_path: Path, key: Path) -> None:
    directory, file, restored = tmp_path / "identity", tmp_path / "backup.age", tmp_path / "restored"
    directory.mkdir(mode=0o700)
    shutil.copy(key, directory / KEY)
    complete(directory)
    backup(directory, file)
    restored.mkdir(mode=0o755)  # an empty folder, which others may read
    restore(file, restored)
    assert contents(restored) == contents(directory)
    assert vault.plain_secrets(restored) == []
    assert restored.stat().st_mode & 0o077 == 0
    assert Identity.load(restored).hub_keys() == Identity.load(directory).hub_keys()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda files: files.pop("natskit.json"), "is incomplete"),
        (lambda files: files.pop(next(name for name in files if name.endswith(".nk"))), "is missing"),
        (lambda files: files.update({"../outside": b""}), r"it holds '\.\./outside'"),
        (lambda files: files.update({"/outside": b""}), "it holds '/outside'"),
    ],
)
def test_a_backup_that_is_not_whole_restores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: object, said: str
) -> None:
    """The test skips scrypt, which would take a second for each case."""
    files = contents(complete(tmp_path / "identity"))
    assert callable(spoil)
    spoil(files)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(pyrage.passphrase, "decrypt", lambda *_: packed.getvalue())
    (tmp_path / "backup.age").write_bytes(b"")
    with pytest.raises(IdentityError, match=said):
        restore(tmp_path / "backup.age", tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.age", "identity"]


def test_what_is_exported_is_nscs_format_and_imports_as_the_same_identity(tmp_path: Path) -> None:
    directory, target, again = complete(tmp_path / "identity"), tmp_path / "nsc", tmp_path / "again"
    nsc.export(directory, target)
    store = target / "stores" / "natskit"
    assert json.loads((store / ".nsc").read_text()) == {
        "managed": False,
        "name": "natskit",
        "kind": "operator",
        "version": "1",
    }
    tokens = {path: claims.decode(path.read_text()) for path in store.rglob("*.jwt")}
    assert len(tokens) == 6 + 11
    for path, body in tokens.items():
        assert path.name == f"{body['name']}.jwt"
        seed = target / "keys" / "keys" / body["sub"][0] / body["sub"][1:3] / f"{body['sub']}.nk"
        assert nkeys.from_seed(seed.read_bytes()).public_key.decode() == body["sub"]
        if body["nats"]["type"] == "user":
            account = path.parents[1].name
            text = (target / "keys" / "creds" / "natskit" / account / f"{body['name']}.creds").read_text()
            (token, _), (found, _) = USER_CONFIG.findall(text)
            assert (token, found) == (path.read_text(), seed.read_text())
    assert all(path.stat().st_mode & 0o077 == 0 for path in [target, *target.rglob("*")])
    nsc.import_(target, again)
    assert contents(again) == contents(directory)
    before = contents(again)
    Identity.ensure(again, now=NOW + 5)
    assert contents(again) == before
    with pytest.raises(IdentityError, match="is not empty"):
        nsc.export(directory, target)


def test_an_operator_that_natskit_has_not_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stores" / "ACME").mkdir(parents=True)
    with pytest.raises(IdentityError, match=r"has the operator ACME, not natskit: .* names another system account"):
        nsc.import_(tmp_path, tmp_path / "identity")
    assert not (tmp_path / "identity").exists()


def test_an_export_that_is_not_whole_imports_nothing(tmp_path: Path) -> None:
    target = tmp_path / "nsc"
    nsc.export(complete(tmp_path / "identity"), target)
    (account,) = target.rglob("AUTH.jwt")
    account.rename(tmp_path / "AUTH.jwt")
    with pytest.raises(IdentityError, match=r"AUTH\.jwt is missing"):
        nsc.import_(target, tmp_path / "again")
    shutil.move(tmp_path / "AUTH.jwt", account)
    next(target.rglob("SYS.jwt")).write_text(account.read_text())
    with pytest.raises(IdentityError, match=r"SYS\.jwt: the name in it differs from the file's"):
        nsc.import_(target, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_identity_in_the_middle_of_a_rotation_is_not_exported(tmp_path: Path) -> None:
    directory = complete(tmp_path / "identity")
    index = json.loads((directory / "natskit.json").read_text())
    index["operator"]["signing"], index["operator"]["identity"] = index["operator"].values()
    (directory / "natskit.json").write_text(json.dumps(index))
    with pytest.raises(IdentityError, match=r"a rotation of .* is not finished"):
        nsc.export(directory, tmp_path / "nsc")
    assert not (tmp_path / "nsc").exists()
    assert not (directory / KEY).exists()


@pytest.mark.parametrize(("state", "said"), [("PLATFORM", "deploy"), ("moved", "natskit state confirm")])
def test_an_identity_whose_state_is_being_moved_is_not_exported(
    tmp_path: Path, state: Literal["PLATFORM", "moved"], said: str
) -> None:
    """nsc cannot store where the state is: the next deploy would make empty streams."""
    directory = complete(tmp_path / "identity")
    identity = Identity.load(directory, write=True)
    identity.note_state(state, now=NOW)
    with pytest.raises(IdentityError, match=said):
        nsc.export(directory, tmp_path / "nsc")
    assert not (tmp_path / "nsc").exists()
    identity.note_state("confirmed", now=NOW)
    nsc.export(directory, tmp_path / "nsc")
