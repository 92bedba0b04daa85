"""Where an identity's files are read and written: as they are, or sealed with age (c2sp.org/age).

A folder is encrypted when it holds ``age-identity.age``: an age X25519 identity, which is itself encrypted with a
passphrase. Opening that takes scrypt a second or two, and up to a GiB of memory, and is done once in a process. Every
file X with a secret in it is then ``X.age``, encrypted to that identity; JWTs, certificates and the index are no
secrets, and stay as they are. It is age's own format, so that the keys can be read without natskit too::

    age --decrypt --identity age-identity.age keys/keys/O/AB/….nk.age

Where both X and X.age are found, an encryption or a decryption was interrupted: X.age is written first or removed
last, so it is what counts, and the same command again completes it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from natskit.errors import IdentityError
from natskit.identity import passphrase
from natskit.identity.files import check_private, locked, sync_directory, write_private

KEY = "age-identity.age"
SEALED = ".age"
SECRETS = (".nk", ".creds", ".key")
"""Suffixes of files that contain a secret: seeds, creds, private keys of certificates."""
_SEALED_SECRETS = tuple(name + SEALED for name in SECRETS)
PUBLIC = (".jwt", ".crt", ".json", ".lock")

LEAST_WORK = 18
"""scrypt's work factor of the command ``age``: N = 2^18, which costs a second and 256 MiB per guess."""
ATTEMPTS = 8

_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
"""Temporary files that :func:`write_private` leaves if it is killed."""

_unlocked: dict[bytes, Any] = {}
"""The age identities that this process has opened, by the content of their files."""
_unlocking = threading.Lock()
"""A deploy prepares its hosts concurrently but must ask only once."""


class Vault:
    """The files of one identity folder. With ``write=False``, writes stay in memory and are read from there."""

    def __init__(self, directory: Path, *, write: bool = True) -> None:
        self.directory = directory
        self._root = directory
        self.writes = write
        self._written: dict[Path, bytes] = {}

    def at(self, folder: str) -> Vault:
        """A subfolder, encrypted with the same key."""
        inner = Vault(self.directory / folder, write=self.writes)
        inner._root, inner._written = self._root, self._written
        return inner

    @property
    def is_encrypted(self) -> bool:
        """Whether this folder's secrets are encrypted."""
        return (self._root / KEY).exists()

    def unlock(self) -> None:
        """Ask for the passphrase now, if one is needed and not known yet. Raises :class:`IdentityError`."""
        if self.is_encrypted:
            self._key()

    def exists(self, path: Path) -> bool:
        """Whether the file exists, encrypted or not."""
        return path in self._written or path.exists() or (is_secret(path) and sealed(path).exists())

    def read(self, path: Path) -> bytes:
        """The content of a file. Raises :class:`IdentityError`, also for a secret that others may read."""
        if path in self._written:
            return self._written[path]
        if not is_secret(path):
            return _read(path)
        found = sealed(path) if sealed(path).exists() else path
        check_private(found)
        return _open(found, self._key()) if found != path else _read(found)

    def write(self, path: Path, content: str) -> None:
        """Write a file as :func:`write_private` does. A secret in an encrypted folder is encrypted."""
        data = content.encode()
        if not self.writes:
            self._written[path] = data
        elif not (is_secret(path) and self.is_encrypted):
            write_private(path, data)
        elif not (sealed(path).exists() and _open(sealed(path), self._key()) == data):
            write_private(sealed(path), _seal(data, self._key()))

    def remove(self, path: Path) -> None:
        """Remove a file if it exists, encrypted or not."""
        for found in (sealed(path), path) if is_secret(path) else (path,):
            if found.exists():
                _remove(found)

    def _key(self) -> Any:
        return _unlock(self._root / KEY)


def as_vault(place: Path | Vault) -> Vault:
    """A folder as a vault."""
    return place if isinstance(place, Vault) else Vault(place)


def is_secret(path: Path) -> bool:
    """Whether an unencrypted file of this name contains a secret."""
    return path.name.endswith(SECRETS)


def sealed(path: Path) -> Path:
    """The path of a secret's encrypted file."""
    return path.with_name(path.name + SEALED)


def plain_secrets(directory: Path) -> list[Path]:
    """The unencrypted secrets."""
    return sorted(path for path in directory.rglob("*") if is_secret(path) and path.is_file())


def unknown_files(directory: Path) -> list[Path]:
    """Files unknown to natskit, which it does not encrypt because it cannot tell whether they are secret."""
    known = (*SECRETS, *PUBLIC, *_SEALED_SECRETS)
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name != KEY and not path.name.endswith(known))


def encrypt(directory: Path) -> int:
    """Encrypt every secret of an identity, which need not exist yet.

    Returns the number of secrets that were readable. After an interruption, call it again to complete it. Raises
    :class:`IdentityError`.
    """
    age()  # without it nothing is touched
    with locked(directory):
        check_private(directory)
        key = _unlock(directory / KEY) if (directory / KEY).exists() else _make_key(directory / KEY)
        _remove_temporaries(directory)
        secrets = plain_secrets(directory)
        for path in secrets:
            if not sealed(path).exists():
                write_private(sealed(path), _seal(path.read_bytes(), key))
            _open(sealed(path), key)
            _remove(path)
        return len(secrets)


def decrypt(directory: Path) -> int:
    """Decrypt every secret of an identity, as :func:`encrypt` encrypts them. Returns the number of decrypted
    secrets."""
    with locked(directory):
        check_private(directory)
        if not (directory / KEY).exists():
            raise IdentityError(f"{directory} is not encrypted: there is no {KEY} in it")
        key = _unlock(directory / KEY)
        _remove_temporaries(directory)
        files = sorted(path for path in directory.rglob("*") if path.name.endswith(_SEALED_SECRETS))
        for path in files:
            write_private(path.with_name(path.name.removesuffix(SEALED)), _open(path, key))
            _remove(path)
        _remove(directory / KEY)
        return len(files)


def change_passphrase(directory: Path) -> None:
    """Encrypt the key of an encrypted identity with a new passphrase. Raises :class:`IdentityError`."""
    with locked(directory):
        path = directory / KEY
        if not path.exists():
            raise IdentityError(f"{directory} is not encrypted: natskit identity encrypt does that")
        key = _unlock(path)
        _write_key(path, key, passphrase.changed(str(directory)))


def unlock_with(directory: Path, text: str) -> None:
    """Open an encrypted identity with the given passphrase. Raises :class:`IdentityError`."""
    with _unlocking:
        _open_key(directory / KEY, text)


def is_unlocked(directory: Path) -> bool:
    """Whether the folder can be read without asking for a passphrase."""
    return not (directory / KEY).exists() or _read(directory / KEY) in _unlocked


def refuse_half_encrypted(directory: Path) -> None:
    """Raise :class:`IdentityError` if the folder is only partly encrypted, after an interrupted encryption or
    decryption."""
    if (directory / KEY).exists() and (found := plain_secrets(directory)):
        raise IdentityError(
            f"{directory} is encrypted in part: {found[0]} is not. `natskit identity encrypt {directory}` completes "
            f"it, `natskit identity decrypt {directory}` goes back"
        )


def seal_with(data: bytes, text: str) -> bytes:
    """Encrypt with a passphrase.

    The library derives the work factor from a short time measurement. On a busy machine it chooses one so low that
    guessing becomes a thousand times faster. In that case, encrypt again, which is quick then.
    """
    found = [bytes(age().passphrase.encrypt(data, text))]
    while _work(found[-1]) < LEAST_WORK and len(found) < ATTEMPTS:
        found.append(bytes(age().passphrase.encrypt(data, text)))
    return max(found, key=_work)


def open_with(content: bytes, text: str, what: Path) -> bytes:
    """Decrypt the content of the file ``what``. Raises :class:`IdentityError`."""
    for attempt in range(ATTEMPTS):
        try:
            return bytes(age().passphrase.decrypt(content, text))
        except age().DecryptError as error:
            # By the same measure: this machine would take too long for it.
            if "Excessive work" not in str(error) or attempt == ATTEMPTS - 1:
                break
    raise IdentityError(f"the passphrase does not open {what}: it is the wrong one, or the file is damaged")


def _work(content: bytes) -> int:
    """The logarithm of scrypt's N, from the header of a passphrase-encrypted file."""
    match = re.match(rb"age-encryption\.org/v1\n-> scrypt \S+ (\d+)\n", content)
    return int(match[1]) if match else 0


def age() -> Any:
    """The library. Raises :class:`ModuleNotFoundError` without the extra ``deploy``, which the command explains."""
    import pyrage

    return pyrage


def _unlock(path: Path) -> Any:
    with _unlocking:
        content = _read(path)
        return _unlocked.get(content) or _open_key(path, passphrase.current(str(path.parent)))


def _open_key(path: Path, text: str) -> Any:
    content = _read(path)
    try:
        opened = open_with(content, text, path).decode()
        lines = [line for line in opened.splitlines() if line and not line.startswith("#")]
        _unlocked[content] = age().x25519.Identity.from_str(lines[0])
        passphrase.remember(text)
    except (age().IdentityError, ValueError, IndexError):
        raise IdentityError(f"{path} holds no key of age: restore it from a backup") from None
    return _unlocked[content]


def _make_key(path: Path) -> Any:
    key = age().x25519.Identity.generate()
    _write_key(path, key, passphrase.chosen(str(path.parent)))
    return key


def _write_key(path: Path, key: Any, text: str) -> None:
    """Write a key in the format of ``age-keygen``, encrypted."""
    lines = f"# created: {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n# public key: {key.to_public()}\n{key}\n"
    content = seal_with(lines.encode(), text)
    write_private(path, content)
    _unlocked[content] = key
    passphrase.remember(text)


def _seal(data: bytes, key: Any) -> bytes:
    return bytes(age().encrypt(data, [key.to_public()]))


def _open(path: Path, key: Any) -> bytes:
    try:
        return bytes(age().decrypt(_read(path), [key]))
    except age().DecryptError:
        raise IdentityError(
            f"{path} is damaged, or sealed by another key than {KEY}: restore it from a backup"
        ) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror}") from None


def _remove(path: Path) -> None:
    path.unlink()
    sync_directory(path.parent)


def _remove_temporaries(directory: Path) -> None:
    """Remove temporary files of killed processes. The caller must hold the lock."""
    for path in _temporaries(directory):
        _remove(path)


def _temporaries(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory):
        for name in names:
            match = _TEMPORARY.fullmatch(name)
            if match and (match[1] == KEY or match[1].removesuffix(SEALED).endswith(SECRETS)):
                yield Path(folder) / name
