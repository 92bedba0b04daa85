"""What a hub last had of a bucket, in a file of its own, so that it need not read the whole bucket when it starts.

The file is a cache and nothing else: it is thrown away when anything about it is in doubt, and the bucket is read
instead. A view that comes from a file is used only after :mod:`natskit.hub.state.bucket` has found the last message of
the file in the stream, and has read what was stored since.

A file starts with a line that names its format. Pieces follow, each with its length in four bytes before it: a header
and lists of entries, in MessagePack. An empty piece ends them. The last 32 bytes are the SHA-256 of all before. The
file contains password hashes, as the stream does, so only its owner may read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import stat
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from natskit import __version__
from natskit.hub.state import records

T = TypeVar("T")

FORMAT = b"natskit view 1\n"
PIECE = 2000
"""Entries that are read or written before the event loop serves something else: a few milliseconds."""
LARGEST_PIECE = 1 << 28
"""A damaged length must not make a hub ask for more memory than any piece has: 2,000 values of 64 KiB."""
MOMENT_SECONDS = 10.0
"""The clock of a host may be corrected by as much while it runs. A greater difference means another start of the host,
or a clock that was set."""

Item = tuple[str, int, bytes]
"""A key, its revision, and its value as it is stored."""


class DoubtError(Exception):
    """The file is not used: it is damaged, of another time, or not this hub's."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Where the entries come from, and the last message among them: what a hub compares with the stream."""

    bucket: str
    owner: str
    """The key of PLATFORM: another platform may have the same bucket."""
    made_by: str
    """The version of natskit and the fields of its records. A newer one reads fields that an older one left out."""
    booted_at: float
    """The moment at which the host was started, by its clock."""
    created: str
    """When the stream was made, by nats-server."""
    sequence: int
    stored_at: str
    content: bytes
    complete_by_leader: str
    complete_since_boot: float
    count: int
    markers: dict[str, int]


def since_boot() -> float:
    """Seconds since this host was started, also those in which it was suspended (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def booted_at() -> float:
    """The moment at which this host was started. A hub in its sandbox cannot read the kernel's ``boot_id``."""
    return time.time() - since_boot()


def made_by() -> str:
    """This version of natskit, and a digest of all fields of the records."""
    models = (records.Account, records.EmailClaim, records.Project, records.Membership, records.Session, records.Runner)
    schema = msgspec.json.encode(msgspec.json.schema_components(models), order="deterministic")
    return f"{__version__} {hashlib.sha256(schema).hexdigest()[:16]}"


async def write(path: Path, header: Header, items: Iterable[Item]) -> None:
    """Write a file in pieces, and put it in the place of the old one. Raises :class:`OSError`.

    It is not synced to the disk: after a crash of the host it would be thrown away in any case.
    """
    new = _absent(path.with_suffix(".new"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
            digest = hashlib.sha256()
            for part in (FORMAT, *_framed(msgspec.msgpack.encode(header))):
                _put(file, digest, part)
            while piece := list(itertools.islice(items := iter(items), PIECE)):
                for part in _framed(msgspec.msgpack.encode(piece)):
                    _put(file, digest, part)
                await asyncio.sleep(0)
            _put(file, digest, _length(0))
            file.write(digest.digest())
        _rename(new, path)
    finally:
        _absent(new)


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[Header, AsyncIterator[list[Item]]]]:
    """The header of a file, and its entries in pieces. Only after the last piece is it known to be whole.

    The file is under another name meanwhile. So a hub that a file makes crash is not given it again. When the block
    ends without an error, the file has its name back; otherwise it is removed. Raises :class:`DoubtError`, and
    :class:`FileNotFoundError` if there is no file.
    """
    aside = _absent(path.with_suffix(".loading"))
    _rename(path, aside)
    try:
        with os.fdopen(os.open(aside, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            _check_owner(file)
            digest = hashlib.sha256(FORMAT)
            if file.read(len(FORMAT)) != FORMAT:
                raise DoubtError("it has another format")
            header = _decoded(_header, _piece(file, digest))
            _check_origin(header)
            yield header, _pieces(file, digest)
        _rename(aside, path)
    except OSError as error:
        raise DoubtError(error.strerror or type(error).__name__) from None
    finally:
        _absent(aside)


_header = msgspec.msgpack.Decoder(Header)
_items = msgspec.msgpack.Decoder(list[Item])


def _absent(path: Path) -> Path:
    """The path, with no file there."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    return path


def _rename(path: Path, new: Path) -> None:
    path.rename(new)


def _check_owner(file: BinaryIO) -> None:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise DoubtError("others than this hub may have written it")


def _check_origin(header: Header) -> None:
    if header.made_by != made_by():
        raise DoubtError("another version of natskit wrote it")
    if abs(header.booted_at - booted_at()) > MOMENT_SECONDS:
        raise DoubtError("the host was started since, or its clock was set")


async def _pieces(file: BinaryIO, digest: hashlib._Hash) -> AsyncIterator[list[Item]]:
    while piece := _piece(file, digest):
        yield _decoded(_items, piece)
        await asyncio.sleep(0)
    if file.read() != digest.digest():
        raise DoubtError("it is damaged")


def _piece(file: BinaryIO, digest: hashlib._Hash) -> bytes:
    prefix = file.read(4)
    length = int.from_bytes(prefix)
    piece = file.read(length) if length <= LARGEST_PIECE else b""
    if len(prefix) != 4 or len(piece) != length:
        raise DoubtError("it is damaged")
    digest.update(prefix)
    digest.update(piece)
    return piece


def _decoded(decoder: msgspec.msgpack.Decoder[T], piece: bytes) -> T:
    try:
        return decoder.decode(piece)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DoubtError(f"it is damaged: {error}") from None


def _framed(piece: bytes) -> tuple[bytes, bytes]:
    return _length(len(piece)), piece


def _length(length: int) -> bytes:
    return length.to_bytes(4)


def _put(file: BinaryIO, digest: hashlib._Hash, part: bytes) -> None:
    digest.update(part)
    file.write(part)
