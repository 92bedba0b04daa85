"""The files of a backup, encrypted with age (c2sp.org/age) while they are written, and the key that opens them.

The key is a file of the identity: ``backup/backup.key``, encrypted if the identity is. The identity in a backup is
encrypted with its passphrase, and all other files to this key. So only the passphrase opens a backup::

    age --decrypt identity.age | tar -x
    age --decrypt --identity backup/backup.key streams/STATE/KV_accounts.age
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from pydantic import BaseModel, ConfigDict

from natskit.errors import BackupError
from natskit.identity.backup import BACKUP_KEY
from natskit.identity.files import locked, make_private, sync_directory
from natskit.identity.vault import Vault, age

PIECE_BYTES = 128 * 1024


class Sealed(BaseModel):
    """An encrypted file of a backup."""

    model_config = ConfigDict(extra="forbid")

    file: str
    """Its path within the backup."""
    size: int
    """Bytes."""
    sha256: str


class BackupKey:
    """The key of a platform's backups."""

    def __init__(self, secret: str) -> None:
        try:
            self.identity = age().x25519.Identity.from_str(secret)
        except age().IdentityError:
            raise BackupError("the key of the backups is damaged: restore backup/backup.key of the identity") from None
        self._secret = secret.encode()

    def __repr__(self) -> str:
        return "BackupKey()"

    @classmethod
    def ensure(cls, identity: Path) -> BackupKey:
        """The key in an identity, which the first backup creates."""
        vault, path = Vault(identity), _path(identity)
        with locked(identity):
            if not vault.exists(path):
                vault.write(path, str(age().x25519.Identity.generate()))
        return cls.load(identity)

    @classmethod
    def load(cls, identity: Path) -> BackupKey:
        """The key in an identity. Raises :class:`BackupError` if it has none."""
        vault, path = Vault(identity), _path(identity)
        if not vault.exists(path):
            raise BackupError(f"{identity} has no key of backups: this platform has made none yet")
        return cls(vault.read(path).decode().strip())

    def repository_password(self, runner: str) -> str:
        """The password of the repository with the files of a runner. That runner's host learns it, and no other's."""
        return self._derived(b"repository " + runner.encode()).hex()

    def mac(self, content: bytes) -> str:
        """The authentication code of a manifest: age alone does not say who encrypted a file."""
        return hmac.new(self._derived(b"manifest"), content, hashlib.sha256).hexdigest()

    def _derived(self, purpose: bytes) -> bytes:
        return hmac.new(self._secret, b"natskit backup " + purpose, hashlib.sha256).digest()


def _path(identity: Path) -> Path:
    return identity / BACKUP_KEY


class Writer(Protocol):
    """Takes the content of a file that is being encrypted."""

    async def write(self, data: bytes) -> None:
        """Returns when the data is on its way to the disk, so that a slow disk slows the writer down."""

    def sealed(self) -> Sealed:
        """The file, once its context has ended."""


@asynccontextmanager
async def writing(folder: Path, file: str, key: BackupKey) -> AsyncIterator[Writer]:
    """Encrypt a new file of a backup while it is written. Raises :class:`OSError`, for example on a full disk."""
    path = folder / file
    make_private(path.parent)
    reading, writing = os.pipe()
    with _Hashed(path) as output, os.fdopen(writing, "wb", buffering=0) as pipe:
        encrypting = asyncio.ensure_future(asyncio.to_thread(_encrypt, reading, output, key))
        writer = _PipeWriter(pipe, encrypting, output, file)
        try:
            yield writer
        finally:
            pipe.close()
            await encrypting
        output.sync()
    sync_directory(path.parent)


async def seal(folder: Path, file: str, content: bytes, key: BackupKey) -> Sealed:
    """Encrypt a new file of a backup. Raises :class:`OSError`."""
    async with writing(folder, file, key) as writer:
        await writer.write(content)
    return writer.sealed()


def measured(folder: Path, file: str) -> Sealed:
    """A file as it is now. Raises :class:`OSError`."""
    with (folder / file).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return Sealed(file=file, size=content.tell(), sha256=digest)


def check(folder: Path, sealed: Sealed) -> None:
    """Raises :class:`BackupError` if a file has changed since it was written."""
    path = folder / sealed.file
    try:
        now = measured(folder, sealed.file)
    except OSError as error:
        raise BackupError(f"{path}: {error.strerror}: use another backup") from None
    if now != sealed:
        raise BackupError(f"{path} is damaged: its SHA-256 is not that of the manifest; use another backup")


async def pieces(folder: Path, sealed: Sealed, key: BackupKey) -> AsyncIterator[bytes]:
    """The content of a file, in pieces of :data:`PIECE_BYTES`; only the last one is shorter.

    Raises :class:`BackupError`.
    """
    reading, writing = os.pipe()
    decrypting = asyncio.ensure_future(asyncio.to_thread(_decrypt, folder / sealed.file, writing, key))
    with os.fdopen(reading, "rb") as pipe:
        try:
            while piece := await asyncio.to_thread(pipe.read, PIECE_BYTES):
                yield piece
        except GeneratorExit:
            pipe.close()
            await asyncio.wait([decrypting])
            raise
    await decrypting


async def opened(folder: Path, sealed: Sealed, key: BackupKey) -> bytes:
    """The content of a small file. Raises :class:`BackupError`."""
    return b"".join([piece async for piece in pieces(folder, sealed, key)])


class _PipeWriter:
    def __init__(self, pipe: IO[bytes], encrypting: asyncio.Future[None], output: _Hashed, file: str) -> None:
        self._pipe, self._encrypting, self._output, self._file = pipe, encrypting, output, file

    async def write(self, data: bytes) -> None:
        try:
            await asyncio.to_thread(_write_all, self._pipe, data)
        except BrokenPipeError:
            await self._encrypting  # raises what ended it
            raise

    def sealed(self) -> Sealed:
        return Sealed(file=self._file, size=self._output.size, sha256=self._output.digest.hexdigest())


class _Hashed:
    """A new private file that hashes the written data, and keeps the error of a failed write."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size, self.digest = 0, hashlib.sha256()
        self.failure: OSError | None = None

    def __enter__(self) -> _Hashed:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.failure = error
            raise
        self.size += len(data)
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        """For the encryption, which expects a stream."""

    def sync(self) -> None:
        os.fsync(self._fd)


def _write_all(pipe: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]


def _encrypt(reading: int, output: _Hashed, key: BackupKey) -> None:
    with os.fdopen(reading, "rb") as pipe:
        try:
            age().encrypt_io(pipe, output, [key.identity.to_public()])
        except Exception:
            if output.failure is not None:
                raise output.failure from None
            raise


def _decrypt(path: Path, writing: int, key: BackupKey) -> None:
    with os.fdopen(writing, "wb") as pipe:
        try:
            with path.open("rb") as sealed:
                age().decrypt_io(sealed, pipe, [key.identity])
        except BrokenPipeError:  # the reader has enough
            return
        except Exception as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Any) -> BackupError:
    return BackupError(f"{path} cannot be decrypted ({type(error).__name__}): it is damaged, or of another platform")
