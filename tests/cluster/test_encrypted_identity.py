"""The control machine encrypts its identity, and the hosts notice nothing: a deploy, a rotation, a deploy."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from natskit.identity import passphrase
from tests.cluster.machines import Machines
from tests.cluster.site import HUBS, Cluster

PASSPHRASE = "correct horse battery staple"  # noqa: S105


class Encrypted(Machines):
    """The cluster, with the passphrase in the environment."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {passphrase.VARIABLE: PASSPHRASE}


@pytest.fixture(scope="module")
def encrypted(cluster: Cluster) -> Iterator[Encrypted]:
    """The cluster with encrypted keys. Restored at the end."""
    found = Encrypted.of(cluster)
    found.natskit("identity", "encrypt")
    yield found
    found.natskit("identity", "decrypt")


def test_nobody_without_the_passphrase_deploys_and_who_has_it_changes_nothing(
    cluster: Cluster, encrypted: Encrypted
) -> None:
    assert passphrase.VARIABLE not in os.environ
    refused = cluster.deploy()
    assert refused.returncode != 0
    assert passphrase.VARIABLE in refused.stdout + refused.stderr
    assert encrypted.changes() == {}


def test_keys_are_exchanged_and_none_is_readable_here_after_it(encrypted: Encrypted) -> None:
    starts = encrypted.starts()
    encrypted.natskit("identity", "rotate", "nats-account", "--yes")
    now = encrypted.starts()
    assert {machine for machine in now if now[machine] != starts[machine]} == set(HUBS)
    assert list((encrypted.root / "identity").rglob("*.creds.age"))
    assert [path for kind in ("nk", "creds", "key") for path in (encrypted.root / "identity").rglob(f"*.{kind}")] == []
    assert encrypted.natskit("identity", "diff").returncode == 0
