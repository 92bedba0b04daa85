"""The files of a project that moves: lists, reads and hashes them, and writes them on another runner.

Each name is opened in the folder above it, and no link is followed. So nothing outside of the folder is read or
written, however the tree changes meanwhile. Paths may be longer than ``PATH_MAX``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from natskit.bus.project_move import Entry, Kind, Piece, Written, from_path, readable, to_path
from natskit.project.tree import Removal
from natskit.rpc import RpcError

OPEN_FOLDERS = 64
"""Folders that stay open for the next names in them."""
MODE_BITS = 0o1777
"""Without the bits that let a program run as its owner: no sandbox allows them."""
HASHED_BYTES = 1 << 20
MOST_ENTRIES = 10_000
"""Entries of one page, however large a message may be."""
ENTRY_BYTES = 120
"""Bytes of an entry in JSON besides its path and its target."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS: dict[int, Kind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "pipe",
}
_libc = ctypes.CDLL(None, use_errno=True)


class Tree:
    """A folder whose content is moved. Raises :class:`RpcError` with the path for whatever goes wrong."""

    def __init__(self, top: Path) -> None:
        """Raises :class:`OSError` if there is no such folder."""
        self._top = os.open(top, _FOLDER)
        self._device = os.fstat(self._top).st_dev
        self._chain: list[tuple[bytes, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._close_from(0)
        os.close(self._top)

    def page(self, after: str | None, room: int) -> tuple[list[Entry], str | None]:
        """The entries that come after a path, as many as fit into ``room`` bytes of JSON and at most
        :data:`MOST_ENTRIES`, and the path of the last if there may be more. A folder comes before its content; names
        are sorted as bytes."""
        found: list[Entry] = []
        if after is None:
            found.append(self._entry(b"", os.fstat(self._top)))
        for path in self._walk(None if after is None else from_path(after)):
            with _explained(path), contextlib.suppress(FileNotFoundError):
                entry = self._look(path)
                # A character of a path has up to six in JSON.
                room -= ENTRY_BYTES + 6 * (len(entry.path) + len(entry.target))
                if found and (room < 0 or len(found) == MOST_ENTRIES):
                    return found, found[-1].path
                found.append(entry)
        return found, None

    def hashes(self, pieces: Iterable[Piece]) -> list[str]:
        """The SHA-256 of parts of files; empty for one that is missing or shorter."""
        return [self._hash(piece) for piece in pieces]

    def read(self, pieces: Iterable[Piece], room: int) -> tuple[list[int], bytes]:
        """The content of parts of files one after the other, and how many bytes each has: fewer at the end of a
        file."""
        sizes, data = [], bytearray()
        for path, offset, length in pieces:
            name = from_path(path)
            with _explained(name), self._opened(name, _READ) as fd:
                part = os.pread(fd, min(length, room - len(data)), offset)
            sizes.append(len(part))
            data += part
        return sizes, bytes(data)

    def extents(self, path: str, offset: int, most: int) -> list[tuple[int, int]]:
        """The begin and the end of up to ``most`` parts of a file from ``offset`` on that are no holes."""
        name, found = from_path(path), list[tuple[int, int]]()
        with _explained(name), self._opened(name, _READ) as fd:
            while len(found) < most:
                try:
                    begin = os.lseek(fd, offset, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    break
                offset = os.lseek(fd, begin, os.SEEK_HOLE)
                found.append((begin, offset))
        return found

    def make(self, entries: Iterable[Entry]) -> None:
        """Make folders that can be written into, links and pipes. Replaces a link or a pipe that is there."""
        for entry in entries:
            name = from_path(entry.path)
            with _explained(name):
                self._make(name, entry)

    def link(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Give files a second name."""
        for path, other in pairs:
            name, known = from_path(path), from_path(other)
            with _explained(name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(_last(name), dir_fd=self._above(name))
                # The chain may close the one folder when it opens the other.
                source = os.dup(self._above(known))
                try:
                    os.link(
                        _last(known),
                        _last(name),
                        src_dir_fd=source,
                        dst_dir_fd=self._above(name),
                        follow_symlinks=False,
                    )
                finally:
                    os.close(source)

    def write(self, parts: Iterable[Written], data: memoryview) -> None:
        """Write parts of files, whose content is one after the other in ``data``."""
        for part in parts:
            name = from_path(part.path)
            with _explained(name):
                self._write(name, part, data[: part.length])
            data = data[part.length :]

    def stamp(self, entries: Iterable[Entry]) -> None:
        """Give folders, in this order, their modes and times."""
        for entry in entries:
            name = from_path(entry.path)
            with _explained(name):
                fd = self._open(name.split(b"/") if name else [])
                os.fchmod(fd, entry.mode & MODE_BITS)
                os.utime(fd, ns=(entry.mtime, entry.mtime))

    def is_folder(self, path: str) -> bool:
        """Whether a name is that of a folder."""
        name = from_path(path)
        with _explained(name):
            return self._is_folder(name)

    def discard(self, paths: Iterable[str]) -> None:
        """Remove files, and folders with what is in them."""
        for path in paths:
            name = from_path(path)
            with _explained(name), contextlib.suppress(FileNotFoundError):
                above = self._above(name)
                self._close_from(name.count(b"/"))
                Removal(threading.Event()).remove(above, _last(name))

    def sync(self) -> None:
        """Wait until all that was written is on the disk (syncfs(2))."""
        if _libc.syncfs(self._top):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    # ----

    def _walk(self, after: bytes | None) -> Iterator[bytes]:
        """The paths below the top that come after one of them."""
        begin = after.split(b"/") if after else []
        levels = [(b"", self._names(b"", begin[0] if begin else None))]
        for depth, name in enumerate(begin):
            above = b"/".join(begin[: depth + 1])
            is_there = levels[-1][1][-1:] == [name]
            if not is_there:
                break
            levels[-1][1].pop()
            if self._is_folder(above):
                levels.append((above, self._names(above, begin[depth + 1] if depth + 1 < len(begin) else None)))
            else:
                break
        while levels:
            above, names = levels[-1]
            if not names:
                levels.pop()
                continue
            name = names.pop()
            path = above + b"/" + name if above else name
            yield path
            if self._is_folder(path):
                levels.append((path, self._names(path, None)))

    def _names(self, path: bytes, begin: bytes | None) -> list[bytes]:
        """The names in a folder from ``begin`` on, the first one last."""
        with _explained(path):
            try:
                names = [os.fsencode(name) for name in os.listdir(self._open(path.split(b"/") if path else []))]
            except FileNotFoundError:
                return []
        return sorted((name for name in names if begin is None or name >= begin), reverse=True)

    def _is_folder(self, path: bytes) -> bool:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(_last(path), dir_fd=self._above(path), follow_symlinks=False)
            return stat.S_ISDIR(status.st_mode)
        return False

    def _look(self, path: bytes) -> Entry:
        above, name = self._above(path), _last(path)
        status = os.stat(name, dir_fd=above, follow_symlinks=False)
        if status.st_dev != self._device:
            raise RpcError("invalid_state", f"another file system is mounted on {_shown(path)}: unmount it")
        target = os.readlink(name, dir_fd=above) if stat.S_ISLNK(status.st_mode) else b""
        return self._entry(path, status, target)

    @staticmethod
    def _entry(path: bytes, status: os.stat_result, target: bytes = b"") -> Entry:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
        return Entry(
            to_path(path),
            kind,
            status.st_mode & MODE_BITS,
            status.st_mtime_ns,
            status.st_size if kind == "file" else 0,
            status.st_blocks * 512,
            status.st_ctime_ns,
            status.st_ino if kind == "file" and status.st_nlink > 1 else 0,
            to_path(target),
        )

    def _hash(self, piece: Piece) -> str:
        name, digest, left = from_path(piece.path), hashlib.sha256(), piece.length
        with _explained(name):
            try:
                with self._opened(name, _READ) as fd:
                    offset = piece.offset
                    if _is_hole(fd, offset, left):
                        return _hash_of_zeros(left)
                    while left and (data := os.pread(fd, min(left, HASHED_BYTES), offset)):
                        digest.update(data)
                        offset, left = offset + len(data), left - len(data)
            except FileNotFoundError:
                return ""
        return "" if left else digest.hexdigest()

    def _make(self, path: bytes, entry: Entry) -> None:
        above, name = self._above(path), _last(path)
        if entry.kind == "directory":
            try:
                os.mkdir(name, 0o700, dir_fd=above)
            except FileExistsError:
                os.fchmod(self._open(path.split(b"/")), 0o700)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=above)
        if entry.kind == "symlink":
            os.symlink(entry.target.encode("latin-1"), name, dir_fd=above)
        elif entry.kind == "pipe":
            os.mkfifo(name, 0o600, dir_fd=above)
            os.chmod(name, entry.mode & MODE_BITS, dir_fd=above)
        else:
            raise RpcError("invalid_params", f"{_shown(path)}: a {entry.kind} cannot be made")
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=above, follow_symlinks=False)

    def _write(self, path: bytes, part: Written, data: memoryview) -> None:
        above, name = self._above(path), _last(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        if part.is_last and part.length == part.size:  # all of it
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=above)
            flags |= os.O_EXCL
        fd = os.open(name, flags, 0o600, dir_fd=above)
        try:
            offset = part.offset
            while data:
                done = os.pwrite(fd, data, offset)
                data, offset = data[done:], offset + done
            if part.is_last:
                if os.fstat(fd).st_size != part.size:
                    os.ftruncate(fd, part.size)
                os.fchmod(fd, part.mode & MODE_BITS)
                # The last step: a file with the time of its source has arrived.
                os.utime(fd, ns=(part.mtime, part.mtime))
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _opened(self, path: bytes, flags: int) -> Iterator[int]:
        fd = os.open(_last(path), flags, dir_fd=self._above(path))
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise RpcError("conflict", f"{_shown(path)} is no file any more")
            yield fd
        finally:
            os.close(fd)

    def _above(self, path: bytes) -> int:
        """The folder that a name is in, open until the next call."""
        if not path:
            raise RpcError("invalid_params", "the home itself has no name")
        return self._open(path.split(b"/")[:-1])

    def _open(self, parts: list[bytes]) -> int:
        shared = 0
        while shared < min(len(parts), len(self._chain)) and self._chain[shared][0] == parts[shared]:
            shared += 1
        self._close_from(shared)
        for part in parts[len(self._chain) :]:
            self._chain.append((part, os.open(part, _FOLDER, dir_fd=self._chain[-1][1] if self._chain else self._top)))
            if len(self._chain) > OPEN_FOLDERS + 1:  # of a very deep path, only the last folder stays open
                name, fd = self._chain[-2]
                os.close(fd)
                self._chain[-2] = (name, -1)
        return self._chain[-1][1] if self._chain else self._top

    def _close_from(self, depth: int) -> None:
        while depth and depth <= len(self._chain) and self._chain[depth - 1][1] < 0:
            depth -= 1  # that folder was closed: walk to it again
        for _, fd in self._chain[depth:]:
            if fd >= 0:
                os.close(fd)
        del self._chain[depth:]


def _is_hole(fd: int, offset: int, length: int) -> bool:
    """Whether a part of a file is all in one hole, and not beyond the end of the file."""
    if not length or os.fstat(fd).st_size < offset + length:
        return False
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:
        return error.errno == errno.ENXIO  # there is no data up to the end


@functools.lru_cache(maxsize=4)
def _hash_of_zeros(length: int) -> str:
    digest = hashlib.sha256()
    for done in range(0, length, HASHED_BYTES):
        digest.update(bytes(min(HASHED_BYTES, length - done)))
    return digest.hexdigest()


def _last(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _shown(path: bytes) -> str:
    return repr(readable(to_path(path))[:300])


@contextlib.contextmanager
def _explained(path: bytes) -> Iterator[None]:
    """Turns an :class:`OSError` into an error that names the path, but for a missing file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        more = ": make room there, and repeat the command" if full else ""
        kind = "limit" if full else "invalid_state"
        raise RpcError(kind, f"{_shown(path)}: {error.strerror or error}{more}") from None
