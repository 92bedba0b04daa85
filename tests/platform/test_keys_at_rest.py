"""A platform whose identity is encrypted from the beginning works, and leaks no key and no passphrase."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.identity import passphrase
from natskit.identity.identity import Identity
from natskit.identity.vault import Vault
from tests.platform.site import LocalSite, own_ports

pytestmark = pytest.mark.platform

PASSPHRASE = "correct horse battery staple"  # noqa: S105
DEPLOYED = ("nats", "hub-1", "hub-2", "keeper-1", "keeper-2", "proxy", "runner")
"""The folders of the programs, who need their keys; on hosts they are not on the control machine at all."""


class Encrypted(LocalSite):
    """The platform on this machine, with the passphrase in the environment."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {passphrase.VARIABLE: PASSPHRASE}


class Watch:
    """Records the command lines and environments of all descendants of this process."""

    def __init__(self) -> None:
        self.environments: dict[int, bytes] = {}
        self.command_lines: set[bytes] = set()
        self.parents: dict[int, int] = {}
        self._over = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self._look(os.getpid())

    def _look(self, parent: int) -> None:
        for task in Path(f"/proc/{parent}/task").glob("*"):
            with contextlib.suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    line, of_parent = (Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (child, parent))
                    # Until it runs a program of its own, a child is its parent's copy, and shows what that has.
                    if line != of_parent:
                        self.parents[child] = parent
                        self.command_lines.add(line)
                        self.environments[child] = Path(f"/proc/{child}/environ").read_bytes()
                    self._look(child)


def processes() -> Iterator[tuple[int, bytes]]:
    """The command line and environment of every process."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(place.name), (place / "cmdline").read_bytes() + (place / "environ").read_bytes()


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, watch: Watch) -> Iterator[LocalSite]:
    """The identity is encrypted before the first deploy, which is watched."""
    root = Path(tmp_path_factory.mktemp("encrypted")) / "local"
    root.mkdir(mode=0o700)
    site = Encrypted(root, own_ports())
    try:
        site.natskit("identity", "encrypt")
        with watch.watching():
            done = site.deploy()
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{site.logs()}"
        assert PASSPHRASE not in done.stdout + done.stderr
        site.natskit("ready")
        yield site
    finally:
        site.stop()


@pytest.fixture(scope="module")
def secrets(site: LocalSite) -> Iterator[list[bytes]]:
    """Every seed of the identity, and the body of every private key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(passphrase.VARIABLE, PASSPHRASE)
        found = [seed.encode() for seed in Identity.load(site.root / "identity")._seeds.values()]
        files = Vault(site.root / "identity")
        keys = list((site.root / "identity").rglob("*.key.age"))
        assert len(keys) == 2  # the CA's and the site's
        found += [files.read(path.with_suffix("")).splitlines()[1] for path in keys]
        passphrase.withdraw()
        yield found
        passphrase._given.clear()


def test_a_second_deploy_reads_the_keys_and_changes_nothing(site: LocalSite) -> None:
    assert site.deploy("--json").changes == {}


def test_no_secret_of_the_identity_lies_readable_on_the_control_machine(site: LocalSite, secrets: list[bytes]) -> None:
    assert len(secrets) > 15
    files = [path for path in site.root.rglob("*") if path.is_file()]
    ours = [path for path in files if path.relative_to(site.root).parts[0] not in DEPLOYED]
    assert len([path for path in ours if path.suffix == ".age"]) > 20
    assert [path for path in ours if any(secret in path.read_bytes() for secret in secrets)] == []
    # The search finds what there is to find: a hub has its signing keys.
    assert any(secret in (site.root / "hub-1" / "keys.json").read_bytes() for secret in secrets)


def test_nobody_that_a_deploy_starts_gets_the_passphrase_and_no_secret_is_in_a_command_line(
    site: LocalSite, watch: Watch, secrets: list[bytes]
) -> None:
    assert site
    assert len(watch.environments) > 20
    own = os.getpid()
    told = {pid for pid, environment in watch.environments.items() if PASSPHRASE.encode() in environment}
    # Only pyinfra itself, whom it was given to; what the kernel shows of that is what it was started with.
    assert {watch.parents[pid] for pid in told} == {own}
    for line in watch.command_lines:
        assert not any(secret in line for secret in [PASSPHRASE.encode(), *secrets])
    # What it has left running has another parent by now.
    running = {pid: environment for pid, environment in processes() if str(site.root).encode() in environment}
    assert len(running) >= len(DEPLOYED)
    assert not [pid for pid, environment in running.items() if PASSPHRASE.encode() in environment]


def test_all_that_it_has_is_in_use_and_good(site: LocalSite) -> None:
    """According to the report, which needs no passphrase."""
    states = {entry["name"]: entry["state"] for entry in site.natskit_json("identity", "list")}
    assert {"operator", "CA", "site (proxy)"} <= set(states)
    assert set(states.values()) == {"good"}


def test_a_wrong_passphrase_ends_a_deploy_before_anything_is_touched(site: LocalSite) -> None:
    site.data["nats_max_connections"] = "1000"
    wrong = LocalSite(site.root, site.data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(passphrase.VARIABLE, "the wrong one")
        done = wrong.deploy()
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "the passphrase does not open" in said
    assert "the wrong one," not in said.replace("it is the wrong one,", "")
    assert "Starting operation" not in said
