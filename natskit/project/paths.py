"""Paths of a project: a walk from the home to the file that a path means, and never out of the home.

The agent never checks a path first and opens it later, since commands in the project can change the tree in between.
It walks a path name by name, opens each name from the folder before it without following a link, and walks the target
of a link in the same way. So a link may lead anywhere inside the home, by a relative or an absolute path, and never out
of it. (``openat2`` with ``RESOLVE_BENEATH`` walks in the kernel, and refuses every absolute link.)

Names are bytes on Linux. In paths and lists, bytes that are not UTF-8 become lone surrogates, as in Python (PEP 383):
``\\udcff`` in JSON is the byte 0xff. So each file has a name that opens this file and no other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from natskit.rpc import RpcError

MOST_LINKS = 40
"""The most links in one path, as in the kernel (path_resolution(7))."""
LONGEST_PATH = 65_536
"""Bytes. More than ``PATH_MAX``, which some 2,000 nested folders exceed: a walk does not need that limit."""

LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
"""Opens a name only to find out what it is: does not follow a link, and does not touch a pipe or a device."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True)
class Place:
    """The end of a path: a name in a folder, and the file it names. Both stay open until the walk is closed."""

    folder: int
    name: bytes
    fd: int | None
    """Opened with ``O_PATH``; ``None`` if the folder has no such name."""
    inside: bytes
    """The path from the home to the name, without links and ``..``, as it was walked."""

    @property
    def link(self) -> str:
        """A path that opens the file that was found, even if its name belongs to another file by now."""
        return f"/proc/self/fd/{self.fd}"

    def status(self) -> os.stat_result:
        """The file's status. Raises :class:`FileNotFoundError` if the path ends at no file."""
        if self.fd is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return os.fstat(self.fd)

    @contextlib.contextmanager
    def opened(self, flags: int) -> Iterator[int]:
        """A descriptor of the file."""
        fd = os.open(self.link, flags | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


class Walk:
    """One walk through the tree.

    Outside the home, where an absolute link begins, it opens nothing for reading or writing. It has to end inside.
    """

    def __init__(self, home: int) -> None:
        self._home = home
        self._home_is = identity(home)
        self._names: list[bytes] | None = []
        """The names from the home to here; ``None`` outside."""
        self._here = os.dup(home)
        self._end: int | None = None
        self._todo: list[bytes] = []
        """The names that are left of the path, the next one at the end."""
        self._links = 0
        self._follow_end = True
        self._make_folders = False

    def close(self) -> None:
        """Close all descriptors of the walk, including that of its end."""
        os.close(self._here)
        if self._end is not None:
            os.close(self._end)

    def to(
        self, path: bytes, *, may_be_absent: bool = False, follow_end: bool = True, make_folders: bool = False
    ) -> Place:
        """Follow a path to its end. Raises :class:`OSError`; its ``errno`` is ``EXDEV`` if the end is outside the home,
        or cannot be determined.

        Without ``follow_end``, a link at the end is not followed, and a folder at the end is a name in its parent. With
        ``make_folders``, missing folders are made, including the last name unless it ``may_be_absent``.
        """
        self._follow_end, self._make_folders = follow_end, make_folders
        self._push(path)
        try:
            place = self._go(may_be_absent)
        except OSError:
            if self._names is not None:
                raise
        else:
            if self._names is not None:
                return place
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def _go(self, may_be_absent: bool) -> Place:
        while self._todo:
            name = self._todo.pop()
            if name == b"..":
                self._up()
                continue
            try:
                found = os.open(name, LOOK, dir_fd=self._here)
            except FileNotFoundError:
                if may_be_absent and not self._todo:
                    return Place(self._here, name, None, self._inside(name))
                if not self._make_folders or self._names is None:
                    raise
                with contextlib.suppress(FileExistsError):  # somebody else has made it
                    os.mkdir(name, dir_fd=self._here)
                found = os.open(name, LOOK, dir_fd=self._here)
            mode = os.fstat(found).st_mode
            if stat.S_ISLNK(mode) and (self._todo or self._follow_end):
                self._follow(found)
            elif self._todo or (stat.S_ISDIR(mode) and self._follow_end):
                self._down(name, found)
            else:
                self._end = found
                return Place(self._here, name, found, self._inside(name))
        return Place(self._here, b".", self._here, self._inside(b""))

    def _inside(self, name: bytes) -> bytes:
        return b"/".join([*(self._names or []), *([name] if name else [])])

    def _push(self, path: bytes) -> None:
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if path.endswith((b"/", b"/.")):
            parts.append(b".")  # so that the name before it has to be a folder
        self._todo += reversed(parts)

    def _down(self, name: bytes, found: int) -> None:
        os.close(self._here)
        self._here = found
        if self._names is not None:
            if name != b".":
                self._names.append(name)
        elif identity(found) == self._home_is:
            self._names = []
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _up(self) -> None:
        """Go to the parent. Inside the home, walks the names again from the home: a command may have moved the current
        folder, even out of the home."""
        if not self._names:
            self._names = None
            self._down(b"..", os.open("..", LOOK, dir_fd=self._here))
            return
        names = self._names[:-1]
        self._names = []
        self._down(b".", os.dup(self._home))
        for name in names:
            self._down(name, os.open(name, LOOK, dir_fd=self._here))

    def _follow(self, found: int) -> None:
        try:
            target = os.readlink(b"", dir_fd=found)
        finally:
            os.close(found)
        self._links += 1
        if self._links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.startswith(b"/"):
            self._names = None
            self._down(b"/", os.open("/", LOOK))
        self._push(target)


def identity(fd: int) -> tuple[int, int]:
    """Identifies an open file: its device and inode."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def check_path(path: str) -> bytes:
    """The bytes of a path. Raises :class:`RpcError` if it cannot be walked."""
    if "\0" in path or not path:
        raise RpcError("invalid_params", "a path must not be empty or contain a NUL character")
    if path.startswith("/"):
        raise RpcError("invalid_params", f"{shown(path)} is absolute; paths are relative to the project's home")
    name = encoded(path)
    if len(name) > LONGEST_PATH:
        raise RpcError("invalid_params", f"{shown(path)}…: the path has {len(name)} bytes, more than {LONGEST_PATH}")
    return name


def check_name(path: str) -> None:
    """Raises :class:`RpcError` if a path does not end in a name."""
    if path and path.rpartition("/")[2] in ("", ".", ".."):
        raise RpcError("invalid_params", f"{shown(path)} does not name a file")


def encoded(name: str) -> bytes:
    """The bytes of a name. Not ``os.fsencode``: the locale of the agent is not the caller's business."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise RpcError("invalid_params", "a path must be valid Unicode") from None


def decoded(name: bytes) -> str:
    """A name as text, from which :func:`encoded` makes the same bytes again."""
    return name.decode("utf-8", "surrogateescape")


def shown(path: str) -> str:
    """A path in an error message."""
    return repr(path[:200])


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Turns an :class:`OSError` into the error for the caller."""
    try:
        yield
    except OSError as error:
        raise explain(path, error) from error


def explain(path: str, error: OSError) -> RpcError:
    """The caller's error. Walks and changes of the tree give some ``errno`` a meaning other than the kernel's."""
    path = shown(path)
    match error.errno:
        case errno.ENOENT:
            return RpcError("not_found", f"{path} does not exist")
        case errno.EEXIST | errno.ENOTEMPTY:
            return RpcError("conflict", f"{path} exists already")
        case errno.EXDEV:
            return RpcError("forbidden", f"{path} leads out of the project's home")
        case errno.ELOOP:
            return RpcError("invalid_params", f"{path} leads through more than {MOST_LINKS} links, or in a circle")
        case errno.ENOTDIR:
            return RpcError("invalid_params", f"{path}: a part of the path is not a directory")
        case errno.EISDIR:
            return RpcError("invalid_params", f"{path} is a directory")
        case errno.ENAMETOOLONG:
            return RpcError("invalid_params", f"{path}: the name is too long")
        case errno.EACCES | errno.EPERM:
            return RpcError("forbidden", f"{path}: permission denied")
        case errno.ECANCELED:
            return RpcError("unavailable", "the project is being stopped")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return RpcError("limit", f"{path}: {os.strerror(error.errno)}")
        case _:
            return RpcError("invalid_state", f"{path}: {error.strerror or error}")


def path_of(directory: int) -> str | None:
    """The absolute path of an open folder. ``None`` if it is longer than ``PATH_MAX``: the kernel does not return such
    a path, but a command can run in the folder."""
    try:
        return os.readlink(f"/proc/self/fd/{directory}")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None
