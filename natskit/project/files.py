"""The files of a project: whole text files, lists of folders, and the code that all operations on files share.

Every operation opens what it works on through :class:`natskit.project.paths.Walk`, from a descriptor of the home.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

from natskit.project.content import (
    PLAIN,
    Stamp,
    check_absence,
    check_writable,
    create,
    is_version,
    read_at_most,
    replace,
    status_of_file,
    version_of,
)
from natskit.project.paths import (
    FOLDER,
    Place,
    Walk,
    check_name,
    check_path,
    decoded,
    encoded,
    explained,
    shown,
)
from natskit.rpc import RpcError, size_of

EntryT = TypeVar("EntryT")


class Entry(TypedDict):
    """One name in a directory. For a symbolic link, it describes the link and not its target."""

    name: str
    type: Literal["file", "directory", "symlink", "other"]
    size: int
    mtime: float
    """Seconds since 1970."""
    mode: int
    """The permission bits, such as 0o644."""
    target: str | None
    """A link's target, as stored in the link; ``None`` for everything else."""


class Page(TypedDict):
    """A part of a list. The next part is after the name ``next``, which is ``None`` at the end."""

    entries: list[Entry]
    next: str | None


class Home:
    """The home directory of a project. Every method raises :class:`RpcError` with a message for the caller."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, FOLDER)
        self.path = path

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    def read(self, path: str, limit: int) -> bytes:
        """The content of a regular file of at most ``limit`` bytes."""
        with explained(path), self.at(path) as place:
            size = status_of_file(path, place).st_size
            if size > limit:
                raise RpcError("limit", f"{shown(path)} has {size} bytes; at most {limit} fit into one answer")
            with place.opened(os.O_RDONLY) as fd:
                data = read_at_most(fd, limit + 1)
        if len(data) > limit:
            raise RpcError("limit", f"{shown(path)} has more than the {limit} bytes that fit into one answer")
        return data

    def write(self, path: str, data: bytes, expected_version: str | None = None, stamp: Stamp = PLAIN) -> str:
        """Replace a file's content atomically (readers see the old or the new) and return its new version.

        The file keeps its mode, its owner, its attributes and its other names, and a link to it stays a link. If that
        is impossible by replacing the file, the content is written into the existing one. A file that has this content
        already is not a conflict: a caller that missed the answer may repeat the request.
        """
        check_name(path)
        new_version = version_of(data)
        with explained(path), self.at(path, may_be_absent=True) as place:
            if place.fd is None:
                check_absence(path, expected_version)
                create(place, data, stamp)
                return new_version
            status = status_of_file(path, place)
            if is_version(path, place, new_version, expected_version):
                return new_version
            check_writable(path, place, status)
            replace(place, status, data, stamp)
        return new_version

    def list(self, path: str, room: int) -> list[Entry]:
        """The names in a directory, sorted as bytes. Refused if they take more than ``room`` bytes of JSON."""
        page = self.list_page(path, "", sys.maxsize - 1, room)
        if page["next"] is not None:
            raise RpcError(
                "limit",
                f"{shown(path)} has more than the {len(page['entries'])} names that fit into one answer: "
                "ask for one part after the other with list_directory_page",
            )
        return page["entries"]

    def list_page(self, path: str, after: str, most: int, room: int) -> Page:
        """A part of the list: at most ``most`` names that come after ``after``, in ``room`` bytes of JSON."""
        with explained(path), self.at(path) as place, place.opened(FOLDER) as fd:
            entries, following = page_of(fd, after, most, room, lambda name: _describe(fd, name))
        return {"entries": entries, "next": following}

    def open(self, path: str, flags: int) -> int:
        """A descriptor of a file or directory, which ``path`` names relative to the home; the caller closes it."""
        with explained(path), self.at(path) as place:
            kind = stat.S_IFMT(place.status().st_mode)
            if flags & os.O_DIRECTORY and kind != stat.S_IFDIR:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if kind not in (stat.S_IFREG, stat.S_IFDIR):  # to open a pipe may block, and a device does something
                raise RpcError("invalid_params", f"{shown(path)} is neither a file nor a directory")
            return os.open(place.link, flags | os.O_CLOEXEC)

    @contextlib.contextmanager
    def at(self, path: str, *, may_be_absent: bool = False, make_folders: bool = False) -> Iterator[Place]:
        """The end of a path, through all links. See :meth:`natskit.project.paths.Walk.to`."""
        with self._walk() as walk:
            yield walk.to(check_path(path), may_be_absent=may_be_absent, make_folders=make_folders)

    @contextlib.contextmanager
    def named(self, path: str, *, may_be_absent: bool = False, make_folders: bool = False) -> Iterator[Place]:
        """The name at the end of a path, in its folder: a link there is not followed."""
        name = path.rstrip("/") or path
        check_name(name)
        with self._walk() as walk:
            yield walk.to(check_path(name), may_be_absent=may_be_absent, follow_end=False, make_folders=make_folders)

    @contextlib.contextmanager
    def _walk(self) -> Iterator[Walk]:
        walk = Walk(self._fd)
        try:
            yield walk
        finally:
            walk.close()


def names_in(directory: int) -> Iterator[bytes]:
    """The names in an open folder, in no order."""
    with os.scandir(directory) as entries:
        for entry in entries:
            yield os.fsencode(entry.name)


def page_of(
    directory: int, after: str, most: int, room: int, describe: Callable[[bytes], EntryT | None]
) -> tuple[list[EntryT], str | None]:
    """The entries of at most ``most`` names in an open folder that come after ``after``, sorted as bytes.

    Leaves out names that ``describe`` no longer finds (``None``). Ends early when the entries fill ``room`` bytes of
    JSON, but has at least one of them. Returns the last name as well, or ``None`` if no name comes after it.
    """
    begin = encoded(after)
    names = heapq.nsmallest(most + 1, (name for name in names_in(directory) if name > begin))
    entries: list[EntryT] = []
    last: bytes | None = None
    for name in names[:most]:
        entry = describe(name)
        if entry is not None:
            room -= size_of(entry) + 1
            if room < 0 and entries:
                break
            entries.append(entry)
        last = name
    return entries, decoded(last) if last is not None and last != names[-1] else None


def _describe(directory: int, name: bytes) -> Entry | None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else None
    except OSError:
        return None  # gone since it was listed
    return entry_of(name, status, target)


def entry_of(name: bytes, status: os.stat_result, target: bytes | None) -> Entry:
    """The description of a name."""
    kinds: dict[int, Literal["file", "directory", "symlink"]] = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
    }
    return {
        "name": decoded(name),
        "type": kinds.get(stat.S_IFMT(status.st_mode), "other"),
        "size": status.st_size,
        "mtime": status.st_mtime,
        "mode": stat.S_IMODE(status.st_mode),
        "target": decoded(target) if target is not None else None,
    }
