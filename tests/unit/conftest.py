"""Fixtures of tests with encrypted identities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.identity import passphrase, vault
from natskit.identity.vault import KEY

PASSPHRASE = "correct horse battery staple"  # noqa: S105


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The passphrase in the environment. Forgotten at the end."""
    monkeypatch.setenv(passphrase.VARIABLE, PASSPHRASE)
    yield
    passphrase._given.clear()


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unlocked key: scrypt takes a second or two."""
    directory = tmp_path_factory.mktemp("key")
    directory.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(passphrase.VARIABLE, PASSPHRASE)
        vault.encrypt(directory)
    return directory / KEY
