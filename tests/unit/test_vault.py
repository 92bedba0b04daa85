"""Keys at rest: encrypted with age, complete after any interruption, and readable only with the passphrase."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyrage
import pytest

from natskit.bus.credentials import CredsText
from natskit.errors import IdentityError
from natskit.identity import passphrase, vault
from natskit.identity.identity import Identity
from natskit.identity.tls import ensure_ca, ensure_host_certificate
from natskit.identity.vault import KEY, Vault
from tests.kit.wait import wait_for
from tests.unit.conftest import PASSPHRASE

pytestmark = pytest.mark.usefixtures("given")

NOW = 1_800_000_000
RUNNER = "5f0c6f0e-7a3e-4c8e-9d5b-0c1f2e3d4a5b"
SECRETS = {"keys/a.nk": "SUA", "keys/creds/b.creds": "creds", "tls/c.key": "PRIVATE", "routes/tls/d.key": "KEY"}
STEPS = ("open", "fsync", "replace", "unlink")
"""What changes a disk: a process that is killed is killed before one of these, or after it."""


def small(directory: Path, key: Path | None = None) -> Path:
    """A folder with a few secrets, and a certificate, which is not secret."""
    for name, content in SECRETS.items():
        (directory / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / name).write_text(content)
        (directory / name).chmod(0o600)
    (directory / "tls" / "c.crt").write_text("certificate")
    directory.chmod(0o700)
    if key is not None:
        shutil.copy(key, directory / KEY)
    return directory


def contents(directory: Path) -> dict[str, str]:
    return {name: Vault(directory).read(directory / name).decode() for name in SECRETS}


def killed(step: int, work: Callable[[], Any]) -> bool:
    """Work in a process that is killed before its ``step``-th change of the disk. Returns whether it was killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads do not matter to a child that only does this
        child = os.fork()
    if not child:
        try:
            count = 0

            def before(real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **options: Any) -> Any:
                    nonlocal count
                    count += 1
                    if count == step:
                        os._exit(9)
                    return real(*arguments, **options)

                return call

            for name in STEPS:
                setattr(os, name, before(getattr(os, name)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 9


def test_killed_at_any_moment_nothing_is_lost_and_doing_it_again_completes_it(tmp_path: Path, key: Path) -> None:
    for work, sealed in ((vault.encrypt, True), (vault.decrypt, False)):
        step = 1
        while True:
            directory = small(tmp_path / f"{sealed}-{step}", key)
            if not sealed:
                vault.encrypt(directory)
            was_killed = killed(step, lambda work=work, directory=directory: work(directory))  # type: ignore[misc]
            if (directory / KEY).exists() or sealed:
                assert contents(directory) == SECRETS
                work(directory)
            assert contents(directory) == SECRETS
            left = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
            names = {f"{name}.age" for name in SECRETS} | {KEY} if sealed else set(SECRETS)
            assert left - {".lock"} == names | {"tls/c.crt"}
            assert all(path.stat().st_mode & 0o077 == 0 for path in directory.rglob("*.*") if path.name != "c.crt")
            if not was_killed:
                break
            step += 1
        assert step > 4 * len(SECRETS)


def test_what_a_killed_writer_left_of_a_secret_is_removed(tmp_path: Path, key: Path) -> None:
    directory = small(tmp_path, key)
    (directory / "keys" / ".a.nk.k3j2k_1z").write_text("SUA")
    (directory / f".{KEY}.abcdefgh").write_text("half of a key")
    (directory / "notes.txt").write_text("mine")
    vault.encrypt(directory)
    assert not [path for path in directory.rglob("*") if path.is_file() and b"SUA" in path.read_bytes()]
    assert vault.unknown_files(directory) == [directory / "notes.txt"]


def test_a_damaged_file_is_named_and_the_readable_one_is_kept(tmp_path: Path, key: Path) -> None:
    directory = small(tmp_path, key)
    (directory / "keys" / "a.nk.age").write_bytes(b"age-encryption.org/v1\n")
    with pytest.raises(IdentityError, match=r"a\.nk\.age is damaged"):
        vault.encrypt(directory)
    assert (directory / "keys" / "a.nk").read_text() == "SUA"


def test_an_encrypted_identity_is_used_as_any_other(tmp_path: Path, key: Path) -> None:
    """It is encrypted from the beginning, used, and changed. None of its secrets was ever in a file."""
    directory = tmp_path / "identity"
    directory.mkdir(mode=0o700)
    shutil.copy(key, directory / KEY)
    first = Identity.ensure(directory, now=NOW)
    creds = first.runner_creds(RUNNER, now=NOW)
    certificate = ensure_host_certificate(first.files, "nats-1", ["nats-1"], now=NOW)
    ensure_host_certificate(first.files.at("routes"), "nats-1", ["nats-1"], now=NOW)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    again = Identity.ensure(directory, now=NOW + 1)
    assert again.runner_creds(RUNNER, now=NOW) == creds
    assert again.hub_keys() == first.hub_keys()
    assert ensure_host_certificate(directory, "nats-1", ["nats-1"], now=NOW + 1) == certificate
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()} == before
    assert Vault(directory).read(first.creds_path("SYS", "admin")).decode() == first.creds("SYS", "admin")
    texts = [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
    assert len(first._seeds) > 15
    assert not [text for text in texts for seed in first._seeds.values() if seed.encode() in text]
    assert not [text for text in texts if b"PRIVATE KEY" in text]
    assert all(path.stat().st_mode & 0o077 == 0 for path in [directory, *directory.rglob("*")])


def test_a_dry_run_of_an_encrypted_identity_writes_nothing(tmp_path: Path, key: Path) -> None:
    directory = tmp_path / "identity"
    directory.mkdir(mode=0o700)
    shutil.copy(key, directory / KEY)
    identity = Identity.ensure(directory, now=NOW, write=False)
    certificate, _ = ensure_host_certificate(identity.files.at("routes"), "a", ["a"], now=NOW)
    assert ensure_host_certificate(identity.files.at("routes"), "a", ["a"], now=NOW)[0] == certificate
    assert identity.files.at("routes").read(ensure_ca(identity.files.at("routes"), now=NOW))
    assert [path.name for path in directory.iterdir()] == [KEY]


def test_a_deploy_refuses_what_is_encrypted_in_part(tmp_path: Path, key: Path) -> None:
    Identity.ensure(tmp_path, now=NOW)
    shutil.copy(key, tmp_path / KEY)
    with pytest.raises(IdentityError, match=r"encrypted in part.*natskit identity encrypt .* completes it"):
        Identity.ensure(tmp_path, now=NOW)
    vault.encrypt(tmp_path)
    Identity.ensure(tmp_path, now=NOW)


def test_it_is_the_format_of_age(tmp_path: Path, key: Path) -> None:
    """The command ``age`` can read it: an identity file encrypted by the passphrase, and files encrypted for it."""
    directory = small(tmp_path, key)
    vault.encrypt(directory)
    assert key.read_bytes().startswith(b"age-encryption.org/v1\n-> scrypt ")
    # The library first measures the machine, and refuses while that is too busy for the file's work factor.
    text = wait_for(lambda: pyrage.passphrase.decrypt(key.read_bytes(), PASSPHRASE), "age opens it", 60)
    lines = text.decode().splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["# created", "# public key"]
    opened = pyrage.x25519.Identity.from_str(lines[2])
    assert lines[1].endswith(str(opened.to_public()))
    sealed = (directory / "keys" / "a.nk.age").read_bytes()
    assert sealed.startswith(b"age-encryption.org/v1\n-> X25519 ")
    assert pyrage.decrypt(sealed, [opened]) == b"SUA"


def test_the_passphrase_is_changed_and_the_old_one_opens_nothing(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = small(tmp_path, key)
    vault.encrypt(directory)
    monkeypatch.setenv(passphrase.NEW_VARIABLE, "short")
    with pytest.raises(IdentityError, match="has 5 characters, and needs 8"):
        vault.change_passphrase(directory)
    monkeypatch.setenv(passphrase.NEW_VARIABLE, "another horse")
    vault.change_passphrase(directory)
    assert contents(directory) == SECRETS
    with pytest.raises(IdentityError, match=r"the passphrase does not open .*age-identity\.age"):
        vault.unlock_with(directory, PASSPHRASE)
    vault.unlock_with(directory, "another horse")


PRINT = """
import os, sys
from pathlib import Path
from natskit.errors import NatskitError
from natskit.identity.vault import Vault
try:
    print(Vault(Path(sys.argv[1])).read(Path(sys.argv[1]) / "keys" / "a.nk").decode())
except NatskitError as error:
    sys.exit(str(error))
print([name for name in os.environ if "PASSPHRASE" in name])
"""


def reader(directory: Path, command: str | None = None) -> subprocess.CompletedProcess[str]:
    """Another process, without a terminal, that reads a secret."""
    clean = {name: value for name, value in os.environ.items() if "PASSPHRASE" not in name}
    return subprocess.run(
        [sys.executable, "-c", PRINT, str(directory)],
        env=clean | ({passphrase.COMMAND: command} if command else {}),
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
    )


def test_where_the_passphrase_comes_from(tmp_path: Path, key: Path) -> None:
    directory = small(tmp_path / "identity", key)
    vault.encrypt(directory)
    word = tmp_path / "word"
    word.write_text(PASSPHRASE + "\n")
    by_command = reader(directory, f"cat {word}")
    assert by_command.stdout.splitlines() == ["SUA", "[]"], by_command.stderr
    nobody = reader(directory)
    assert nobody.returncode == 1
    assert "no terminal to ask on; set NATSKIT_IDENTITY_PASSPHRASE or" in nobody.stderr
    failing = reader(directory, "false secret-word")
    assert failing.stderr == "the command in NATSKIT_IDENTITY_PASSPHRASE_COMMAND ended with exit code 1\n"
    missing = reader(directory, "/nonexistent/secret-word")
    assert missing.stderr == "the command in NATSKIT_IDENTITY_PASSPHRASE_COMMAND cannot be run: FileNotFoundError\n"


def test_the_passphrase_is_asked_for_on_the_terminal(tmp_path: Path, key: Path) -> None:
    directory = small(tmp_path, key)
    vault.encrypt(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it becomes another program at once
        child, terminal = pty.fork()
    if not child:
        clean = {name: value for name, value in os.environ.items() if "PASSPHRASE" not in name}
        os.execve(sys.executable, [sys.executable, "-c", PRINT, str(directory)], clean)  # noqa: S606
    said = b""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as output:  # EIO at its end
        while part := output.read(1000):
            said += part
            if said.endswith(f"Passphrase of {directory}: ".encode()):
                os.write(terminal, f"{PASSPHRASE}\n".encode())
    assert os.waitpid(child, 0)[1] == 0, said
    assert said.decode().split() == f"Passphrase of {directory}: SUA []".split()


def test_a_child_may_be_handed_the_passphrase() -> None:
    with passphrase.handed_down() as (environment, descriptors):
        assert PASSPHRASE not in str(environment)
        code = "from natskit.identity import passphrase, nkey; print(passphrase.current('x'))"
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=os.environ | environment,
                pass_fds=descriptors,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.stdout == f"{PASSPHRASE}\n", done.stderr
    assert passphrase.VARIABLE not in os.environ
    passphrase._given.clear()
    with passphrase.handed_down() as nothing:
        assert nothing == ({}, ())


def test_creds_in_memory_are_not_shown() -> None:
    assert "SUA" not in repr(CredsText("SUA"))
