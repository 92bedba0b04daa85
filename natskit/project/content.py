"""The content of one file: new content replaces the old at once, and the file keeps everything else."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from natskit.project.paths import FOLDER, Place, shown
from natskit.rpc import RpcError

ABSENT = "absent"
"""The ``expected_version`` of a file that must not exist yet."""
BLOCK_BYTES = 1024 * 1024
MOST_AT_ONCE = 64 * 1024 * 1024
"""Bytes of one call that copies in the kernel, which cannot be interrupted."""
NEW_FILE_MODE = 0o644
_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None)


def version_of(data: bytes) -> str:
    """The version of a file with this content."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Stamp:
    """The mode and the time that a file gets with its content; ``None`` keeps the mode, or takes the present time."""

    mode: int | None = None
    mtime: float | None = None
    """Seconds since 1970."""

    def put_on(self, fd: int) -> None:
        """Give an open file this mode and time."""
        if self.mode is not None:
            os.fchmod(fd, self.mode)
        if self.mtime is not None:
            now = os.fstat(fd).st_atime_ns
            os.utime(fd, ns=(now, round(self.mtime * 1e9)))


PLAIN = Stamp()


def status_of_file(path: str, place: Place) -> os.stat_result:
    """The status of a regular file. Raises :class:`RpcError` for anything else."""
    status = place.status()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise RpcError("invalid_params", f"{shown(path)} is not a regular file")
    return status


def check_writable(path: str, place: Place, status: os.stat_result) -> None:
    """Refuse a file that its owner has made read-only. A rename alone would replace it nevertheless."""
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid == os.geteuid() and not mode & stat.S_IWUSR:
        raise RpcError("forbidden", f"{shown(path)} is read-only (mode {mode:03o}): chmod u+w makes it writable")
    if not os.access(place.link, os.W_OK, effective_ids=True):
        raise RpcError("forbidden", f"{shown(path)}: permission denied (mode {mode:03o})")


def check_absence(path: str, expected_version: str | None) -> None:
    """Refuse to make a file in the place of one that the caller expects. Raises :class:`RpcError`."""
    if expected_version not in (None, "", ABSENT):
        raise RpcError("conflict", f"{shown(path)} does not exist any more", actual_version=ABSENT)


def is_version(path: str, place: Place, new_version: str, expected_version: str | None) -> bool:
    """Whether the file has the new content already. Raises :class:`RpcError` if it has neither that nor the expected
    version."""
    if expected_version is None:
        return False
    with place.opened(os.O_RDONLY) as fd:
        actual = version_of_file(fd)
    if actual not in (new_version, expected_version):
        raise RpcError(
            "conflict",
            f"{shown(path)} was changed by somebody else: read it again before you write it",
            actual_version=actual,
        )
    return actual == new_version


def create(place: Place, data: bytes, stamp: Stamp) -> None:
    """Make a file with this content."""
    with beside(place) as (fd, temporary):
        write_all(fd, data)
        os.fchmod(fd, NEW_FILE_MODE)
        stamp.put_on(fd)
        rename_durably(place, temporary, fd)


def replace(place: Place, status: os.stat_result, data: bytes, stamp: Stamp) -> None:
    """Replace the file by a new one if that loses nothing (such as hard links), or else write into the file."""
    if status.st_nlink > 1:
        _write_in_place(place, data, stamp)
        return
    try:
        with beside(place) as (fd, temporary):
            write_all(fd, data)
            make_alike(fd, place, status)
            stamp.put_on(fd)
            rename_durably(place, temporary, fd)
    except PermissionError:  # the user may not change the folder, or does not own the file
        _write_in_place(place, data, stamp)


@contextlib.contextmanager
def beside(place: Place) -> Iterator[tuple[int, str]]:
    """A new file in the same folder. At the end its own name is free again."""
    temporary = temporary_name()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=place.folder)
    try:
        yield fd, temporary
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):  # it has got the name it was made for
            os.unlink(temporary, dir_fd=place.folder)


def temporary_name() -> str:
    """A new name for an unfinished file."""
    return f".natskit-{secrets.token_hex(8)}.tmp"


def make_alike(fd: int, place: Place, status: os.stat_result) -> None:
    """Give a new file the owner, the mode and the attributes (access lists among them) of another one."""
    own = os.fstat(fd)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode) & 0o777)
    wanted = {name: os.getxattr(place.link, name) for name in _attributes(place.link)}
    for name in set(_attributes(fd)) - wanted.keys():  # the folder's default access list
        os.removexattr(fd, name)
    for name, value in wanted.items():
        os.setxattr(fd, name, value)


def _attributes(file: int | str) -> list[str]:
    try:
        return os.listxattr(file)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []  # this file system has none


def rename_durably(place: Place, temporary: str, fd: int) -> None:
    """Write the content to the disk, rename the file, and write the folder to the disk."""
    os.fsync(fd)
    os.rename(temporary, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
    with contextlib.suppress(PermissionError):  # a user may be allowed to change a folder and not to list it
        folder = os.open(".", FOLDER, dir_fd=place.folder)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_in_place(place: Place, data: bytes, stamp: Stamp) -> None:
    """Write into a file, which keeps everything else. If that fails, as on a full disk, restore the old content."""
    with place.opened(os.O_RDWR) as fd:
        size = os.fstat(fd).st_size
        before = read_at_most(fd, len(data))
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            write_all(fd, data)
            os.ftruncate(fd, len(data))
            stamp.put_on(fd)
            os.fsync(fd)
        except BaseException:
            os.lseek(fd, 0, os.SEEK_SET)
            write_all(fd, before)
            os.ftruncate(fd, size)
            raise


def pour(place: Place, source: int, size: int, stamp: Stamp) -> None:
    """Write an open file's content into the file that was found, which keeps its other names.

    Its blocks are reserved first: if the disk is full, nothing has changed yet.
    """
    with place.opened(os.O_RDWR) as fd:
        before = os.fstat(fd).st_size
        if size > before:
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError:
                os.ftruncate(fd, before)
                raise
        copy_data(source, fd)
        os.ftruncate(fd, size)
        stamp.put_on(fd)
        os.fsync(fd)


class StoppedError(OSError):
    """The agent is ending, and long operations end with it."""

    def __init__(self) -> None:
        super().__init__(errno.ECANCELED, "the project is being stopped")


def copy_data(source: int, target: int, stop: threading.Event | None = None) -> None:
    """Copy an open file's content into another from their beginnings on, in the kernel where the file system can.

    Raises :class:`StoppedError` after ``stop`` is set.
    """
    position = 0
    try:
        while done := os.copy_file_range(source, target, MOST_AT_ONCE, position, position):
            position += done
            if stop is not None and stop.is_set():
                raise StoppedError
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            raise
    while block := os.pread(source, BLOCK_BYTES, position):
        write_at(target, block, position)
        position += len(block)
        if stop is not None and stop.is_set():
            raise StoppedError


def write_at(fd: int, data: bytes | memoryview, position: int) -> None:
    """Write all of the data from a position on."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, position)
        view, position = view[done:], position + done


def begin_write_back(fd: int, begin: int, end: int) -> None:
    """Have the kernel write a part of a file to the disk, without waiting for it: an fsync at the end is quick then.

    Where sync_file_range(2) is missing or refused, that fsync takes longer."""
    if hasattr(_libc, "sync_file_range"):
        size = ctypes.c_int64(end - begin)
        _libc.sync_file_range(fd, ctypes.c_int64(begin), size, _SYNC_FILE_RANGE_WRITE)


def write_all(fd: int, data: bytes) -> None:
    """Write all of the data from the file's position on."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_at_most(fd: int, limit: int) -> bytes:
    """The file from its position on: ``limit`` bytes, or fewer if it ends before."""
    chunks = bytearray()
    while len(chunks) < limit:
        chunk = os.read(fd, min(limit - len(chunks), BLOCK_BYTES))
        if not chunk:
            break
        chunks += chunk
    return bytes(chunks)


def version_of_file(fd: int) -> str:
    """The version of an open file, which is read to its end."""
    digest = hashlib.sha256()
    while chunk := os.read(fd, BLOCK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
