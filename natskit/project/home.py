"""The files of a project: everything is opened relative to a directory descriptor of the project's home.

No path is checked first and opened later, since whoever runs commands in the project can change the tree in between.
Linux does the confinement itself (``openat2`` with ``RESOLVE_BENEATH``); where the call is missing (before Linux 5.6,
or filtered by seccomp) each component is opened on its own and no symbolic link is followed at all.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Literal, TypedDict

from natskit.rpc import RpcError

ABSENT = "absent"
"""The ``expected_version`` of a file that must not exist yet."""

_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Entry(TypedDict):
    """One name in a directory; a symbolic link is described itself, not what it points to."""

    name: str
    type: Literal["file", "directory", "symlink", "other"]
    size: int
    mtime: float


class Home:
    """The home directory of a project. Every method raises :class:`RpcError` with a message for the caller."""

    def __init__(self, path: Path, *, kernel_confines: bool | None = None) -> None:
        self._fd = os.open(path, _DIRECTORY)
        self.path = path
        self._kernel_confines = has_openat2() if kernel_confines is None else kernel_confines

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    def read(self, path: str, limit: int) -> bytes:
        """The content of a regular file of at most ``limit`` bytes."""
        fd = self.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise RpcError("invalid_params", f"{path!r} is not a regular file")
            if status.st_size > limit:
                raise RpcError("limit", f"{path!r} has {status.st_size} bytes; at most {limit} fit into one answer")
            data = _read_at_most(fd, limit + 1)
        except OSError as error:
            raise _explain(path, error) from error
        finally:
            os.close(fd)
        if len(data) > limit:
            raise RpcError("limit", f"{path!r} has more than the {limit} bytes that fit into one answer")
        return data

    def write(self, path: str, data: bytes, expected_version: str | None = None) -> str:
        """Replace a file's content at once (readers see the old or the new) and return its new version.

        A file that has this content already is no conflict: whoever did not hear the answer may ask again.
        """
        parent, name = _split(path)
        new_version = version_of(data)
        directory = self.open(parent, _DIRECTORY)
        try:
            mode = self._check_version(directory, path, name, expected_version, new_version)
            _replace(directory, name, data, mode)
        except OSError as error:
            raise _explain(path, error) from error
        finally:
            os.close(directory)
        return new_version

    def list(self, path: str = ".") -> list[Entry]:
        """The names in a directory, sorted."""
        fd = self.open(path, _DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                return sorted((entry for entry in map(_describe, entries) if entry), key=lambda entry: entry["name"])
        finally:
            os.close(fd)

    def open(self, path: str, flags: int) -> int:
        """A descriptor of ``path``, which is relative to the home and cannot leave it; the caller closes it."""
        _check(path)
        flags |= os.O_CLOEXEC
        if not flags & os.O_PATH:  # openat2 refuses flags that do not go together
            flags |= os.O_NOCTTY
        try:
            if self._kernel_confines:
                return _openat2(self._fd, path, flags)
            return self._walk(path, flags)
        except OSError as error:
            raise _explain(path, error) from error

    def _walk(self, path: str, flags: int) -> int:
        stack = [os.dup(self._fd)]
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.endswith("/"):
            flags |= os.O_DIRECTORY
        try:
            for index, part in enumerate(parts):
                if part == "..":
                    if len(stack) == 1:
                        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                    os.close(stack.pop())
                    continue
                last = index == len(parts) - 1
                wanted = flags if last else os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                stack.append(_open_no_link(part, wanted, stack[-1]))
            if not parts or parts[-1] == "..":
                stack.append(os.open(".", flags, dir_fd=stack[-1]))
            return stack.pop()
        finally:
            for fd in stack:
                os.close(fd)

    def _check_version(self, directory: int, path: str, name: str, expected: str | None, new: str) -> int:
        """Refuse what is not a regular file or not the expected version; the mode the new file gets."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            if expected not in (None, "", ABSENT):
                raise RpcError("conflict", f"{path!r} does not exist any more", actual_version=ABSENT) from None
            return 0o644
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise RpcError("invalid_params", f"{path!r} exists and is not a regular file")
            if expected is not None:
                actual = _version_of_file(fd)
                if actual not in (expected, new):
                    raise RpcError(
                        "conflict",
                        f"{path!r} was changed by somebody else: read it again before you write it",
                        actual_version=actual,
                    )
            return stat.S_IMODE(status.st_mode) & 0o777
        finally:
            os.close(fd)


def version_of(data: bytes) -> str:
    """The version of a file with this content."""
    return hashlib.sha256(data).hexdigest()


def has_openat2() -> bool:
    """Whether this kernel, as this process may use it, confines paths."""
    try:
        os.close(_openat2(-100, ".", _DIRECTORY))  # AT_FDCWD
    except OSError:
        return False
    return True


def _openat2(directory: int, path: str, flags: int) -> int:
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path)
    for _ in range(100):
        fd = int(_libc.syscall(_OPENAT2, directory, name, ctypes.byref(how), ctypes.sizeof(how)))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        # EAGAIN: something was renamed during the walk and the kernel cannot tell whether ".." stayed beneath.
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code))


def _open_no_link(name: str, flags: int, directory: int) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
    except NotADirectoryError:
        # What O_DIRECTORY makes of a link; the answer only chooses between two errors.
        if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        raise


def _replace(directory: int, name: str, data: bytes, mode: int) -> None:
    temporary = f".natskit-{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def _read_at_most(fd: int, limit: int) -> bytes:
    chunks = bytearray()
    while len(chunks) < limit:
        chunk = os.read(fd, min(limit - len(chunks), 1 << 20))
        if not chunk:
            break
        chunks += chunk
    return bytes(chunks)


def _version_of_file(fd: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(fd, 1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _describe(entry: os.DirEntry[str]) -> Entry | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None  # gone since it was listed
    kinds: dict[int, Literal["file", "directory", "symlink"]] = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
    }
    return {
        "name": os.fsencode(entry.name).decode("utf-8", "replace"),
        "type": kinds.get(stat.S_IFMT(status.st_mode), "other"),
        "size": status.st_size,
        "mtime": status.st_mtime,
    }


def _check(path: str) -> None:
    if "\0" in path or not path:
        raise RpcError("invalid_params", "a path must not be empty or contain a NUL character")
    if path.startswith("/"):
        raise RpcError("invalid_params", f"{path[:200]!r} is absolute; paths are relative to the project's home")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise RpcError("invalid_params", "a path must be valid Unicode") from None


def _split(path: str) -> tuple[str, str]:
    _check(path)
    parent, _, name = path.rpartition("/")
    if name in ("", ".", ".."):
        raise RpcError("invalid_params", f"{path[:200]!r} does not name a file")
    return parent or ".", name


def _explain(path: str, error: OSError) -> RpcError:
    shown = repr(path[:200])
    match error.errno:
        case errno.ENOENT:
            return RpcError("not_found", f"{shown} does not exist")
        case errno.EXDEV | errno.ELOOP:
            return RpcError("forbidden", f"{shown} leads out of the project's home, or through a link that may")
        case errno.ENOTDIR:
            return RpcError("invalid_params", f"{shown}: a part of the path is not a directory")
        case errno.EISDIR:
            return RpcError("invalid_params", f"{shown} is a directory")
        case errno.ENAMETOOLONG:
            return RpcError("invalid_params", f"{shown}: the name is too long")
        case errno.EACCES | errno.EPERM:
            return RpcError("forbidden", f"{shown}: permission denied")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return RpcError("limit", f"{shown}: {os.strerror(error.errno)}")
        case _:
            return RpcError("invalid_state", f"{shown}: {error.strerror or error}")
