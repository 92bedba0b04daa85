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
"""Ends of the names of files with a secret in them: seeds, creds, private keys of certificates."""
_SEALED_SECRETS = tuple(name + SEALED for name in SECRETS)
PUBLIC = (".jwt", ".crt", ".json", ".lock")

LEAST_WORK = 18
"""As the command ``age`` takes: N = 2^18, a second for each guess, 256 MiB."""
ATTEMPTS = 8

_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
"""What :func:`write_private` leaves when it is killed."""

_unlocked: dict[bytes, Any] = {}
"""The age identities opened in this process, by the content of their files."""
_unlocking = threading.Lock()
"""A deploy prepares its hosts side by side, and asks once."""


class Vault:
    """The files of one identity folder. With ``write=False`` what is written is kept in memory, and read from there."""

    def __init__(self, directory: Path, *, write: bool = True) -> None:
        self.directory = directory
        self._root = directory
        self.writes = write
        self._written: dict[Path, bytes] = {}

    def at(self, folder: str) -> Vault:
        """A folder within this one, sealed by the same key."""
        inner = Vault(self.directory / folder, write=self.writes)
        inner._root, inner._written = self._root, self._written
        return inner

    @property
    def is_encrypted(self) -> bool:
        """Whether secrets are sealed here."""
        return (self._root / KEY).exists()

    def unlock(self) -> None:
        """Ask for the passphrase now, if there is one and it is not known yet. Raises :class:`IdentityError`."""
        if self.is_encrypted:
            self._key()

    def exists(self, path: Path) -> bool:
        """Whether the file is there, sealed or not."""
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
        """Write a file as :func:`write_private` does, sealed if it is a secret and this folder is encrypted."""
        data = content.encode()
        if not self.writes:
            self._written[path] = data
        elif not (is_secret(path) and self.is_encrypted):
            write_private(path, data)
        elif not (sealed(path).exists() and _open(sealed(path), self._key()) == data):
            write_private(sealed(path), _seal(data, self._key()))

    def remove(self, path: Path) -> None:
        """Remove a file, sealed or not, if it is there."""
        for found in (sealed(path), path) if is_secret(path) else (path,):
            if found.exists():
                _remove(found)

    def _key(self) -> Any:
        return _unlock(self._root / KEY)


def as_vault(place: Path | Vault) -> Vault:
    """A folder as a vault."""
    return place if isinstance(place, Vault) else Vault(place)


def is_secret(path: Path) -> bool:
    """Whether a file of this name, not sealed, has a secret in it."""
    return path.name.endswith(SECRETS)


def sealed(path: Path) -> Path:
    """Where a secret is when it is sealed."""
    return path.with_name(path.name + SEALED)


def plain_secrets(directory: Path) -> list[Path]:
    """The secrets that lie there readable."""
    return sorted(path for path in directory.rglob("*") if is_secret(path) and path.is_file())


def unknown_files(directory: Path) -> list[Path]:
    """Files of which natskit does not know whether they are secret, and which it therefore leaves alone."""
    known = (*SECRETS, *PUBLIC, *_SEALED_SECRETS)
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name != KEY and not path.name.endswith(known))


def encrypt(directory: Path) -> int:
    """Seal every secret of an identity, which may still be to be made; the number of those that were readable.

    May be interrupted at any moment, and completed by doing it again. Raises :class:`IdentityError`.
    """
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
    """The way back, in the same manner; the number of secrets that were sealed."""
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
    """Encrypt the key of an encrypted identity with another passphrase. Raises :class:`IdentityError`."""
    with locked(directory):
        path = directory / KEY
        if not path.exists():
            raise IdentityError(f"{directory} is not encrypted: natskit identity encrypt does that")
        key = _unlock(path)
        _write_key(path, key, passphrase.changed(str(directory)))


def unlock_with(directory: Path, text: str) -> None:
    """Open an encrypted identity with a passphrase that is known already. Raises :class:`IdentityError`."""
    with _unlocking:
        _open_key(directory / KEY, text)


def is_unlocked(directory: Path) -> bool:
    """Whether nobody needs to be asked to read what is there."""
    return not (directory / KEY).exists() or _read(directory / KEY) in _unlocked


def refuse_half_encrypted(directory: Path) -> None:
    """Raise :class:`IdentityError` if secrets lie readable in a folder that was to be encrypted, or decrypted."""
    if (directory / KEY).exists() and (found := plain_secrets(directory)):
        raise IdentityError(
            f"{directory} is encrypted in part: {found[0]} is not. `natskit identity encrypt {directory}` completes "
            f"it, `natskit identity decrypt {directory}` goes back"
        )


def seal_with(data: bytes, text: str) -> bytes:
    """Encrypt with a passphrase.

    The library chooses how much work that is by the time a very small piece takes. A busy machine looks like a slow
    one then, and anybody could guess a thousand times as fast: it is asked again, which is quick in that case.
    """
    found = [bytes(age().passphrase.encrypt(data, text))]
    while _work(found[-1]) < LEAST_WORK and len(found) < ATTEMPTS:
        found.append(bytes(age().passphrase.encrypt(data, text)))
    return max(found, key=_work)


def open_with(content: bytes, text: str, what: Path) -> bytes:
    """The opposite, of the content of the file ``what``. Raises :class:`IdentityError`."""
    for attempt in range(ATTEMPTS):
        try:
            return bytes(age().passphrase.decrypt(content, text))
        except age().DecryptError as error:
            # By the same measure: this machine would take too long for it.
            if "Excessive work" not in str(error) or attempt == ATTEMPTS - 1:
                break
    raise IdentityError(f"the passphrase does not open {what}: it is the wrong one, or the file is damaged")


def _work(content: bytes) -> int:
    """The logarithm of scrypt's N, in the header of what is encrypted with a passphrase."""
    match = re.match(rb"age-encryption\.org/v1\n-> scrypt \S+ (\d+)\n", content)
    return int(match[1]) if match else 0


def age() -> Any:
    """The library, which only the control machine has. Raises :class:`IdentityError`."""
    try:
        import pyrage
    except ImportError:
        raise IdentityError(
            "this Python has no pyrage, which encrypted identities need: scripts/environment python3 platform"
        ) from None
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
    """As ``age-keygen`` writes it, then encrypted."""
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
    """Halves of files that nobody will complete, since whoever wrote them is dead: this is under the lock."""
    for path in _temporaries(directory):
        _remove(path)


def _temporaries(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory):
        for name in names:
            match = _TEMPORARY.fullmatch(name)
            if match and (match[1] == KEY or match[1].removesuffix(SEALED).endswith(SECRETS)):
                yield Path(folder) / name
