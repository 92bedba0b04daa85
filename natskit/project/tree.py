"""The tree of a project's files: make, remove, move and copy folders and files, links and modes.

Every name is changed in an open folder (``unlinkat``, ``renameat2`` and so on), never by its path, so that no operation
reaches anything outside the home, however the tree changes meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import stat
import threading

from natskit.project.content import StoppedError, beside, copy_data, temporary_name
from natskit.project.files import Entry, Home, entry_of, names_in
from natskit.project.paths import FOLDER, LOOK, Place, explained, identity, shown
from natskit.rpc import RpcError

LONGEST_TARGET = 4095
"""Bytes of the target of a link: ``PATH_MAX`` without the NUL (symlink(2))."""
MOST_LEVELS = 200
"""Folders within folders that one operation holds open at a time."""
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def describe(home: Home, path: str) -> Entry:
    """Describe the file, folder or link at a path. Follows a link only if a slash comes after its name."""
    is_folder = path.rpartition("/")[2] in ("", ".", "..")
    with explained(path), home.at(path) if is_folder else home.named(path) as place:
        status = place.status()
        target = os.readlink(b"", dir_fd=place.fd) if stat.S_ISLNK(status.st_mode) else None
        return entry_of(place.inside.rpartition(b"/")[2], status, target)


def make_directory(home: Home, path: str) -> None:
    """Make a folder and the missing folders above it. Does nothing if the folder exists."""
    with explained(path), home.at(path, make_folders=True) as place:
        if not stat.S_ISDIR(place.status().st_mode):
            raise RpcError("conflict", f"{shown(path)} exists already, and is not a directory")


def make_link(home: Home, path: str, target: bytes) -> None:
    """Make a symbolic link. Its target need not exist. The agent never follows a link out of the home."""
    if not target or b"\0" in target or len(target) > LONGEST_TARGET:
        raise RpcError("invalid_params", f"the target of a link has 1 to {LONGEST_TARGET} bytes, and no NUL character")
    with explained(path), home.named(path, may_be_absent=True) as place:
        os.symlink(target, place.name, dir_fd=place.folder)


def change_mode(home: Home, path: str, mode: int) -> None:
    """Set the permission bits of a file or a folder."""
    with explained(path), home.at(path) as place:
        kind = stat.S_IFMT(place.status().st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise RpcError("invalid_params", f"{shown(path)} is neither a file nor a directory")
        if not place.inside:
            raise RpcError("forbidden", "the mode of the project's home cannot be changed")
        os.chmod(place.link, mode)


def move(home: Home, path: str, to: str, *, replace: bool) -> None:
    """Rename a file, a folder or a link (the link itself, not its target).

    With ``replace``, a file may replace a file at the new name, and a folder an empty folder.
    """
    with explained(path), home.named(path) as source:
        source.status()
        with explained(to), home.named(to, may_be_absent=True) as target:
            _rename(path, source, to, target, replace=replace)
            for place in (source, target):
                _sync_folder(place)


class Removal:
    """Removes a file, or a folder and everything in it. ``removed`` counts the names removed so far."""

    def __init__(self, stop: threading.Event) -> None:
        self.removed = 0
        self._stop = stop

    def run(self, home: Home, path: str) -> int:
        """Remove a file, a folder or a link (the link itself). Returns the number of names removed."""
        with explained(path), home.named(path) as place:
            try:
                self.remove(place.folder, place.name)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                raise RpcError("conflict", f"{shown(path)} was written into while it was removed") from None
        return self.removed

    def remove(self, folder: int, name: bytes) -> None:
        """Remove a name in an open folder, and everything below it."""
        if not self._is_folder(folder, name):
            return
        top = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        try:
            while self._clear(top):
                pass
        finally:
            os.close(top)
        os.rmdir(name, dir_fd=folder)
        self.removed += 1

    def _clear(self, top: int) -> bool:
        """Remove everything in a folder. Folders more than :data:`MOST_LEVELS` below it are moved up into it instead.
        Returns whether there were any: then the caller calls again."""
        levels: list[tuple[int, bytes, list[bytes]]] = [(os.dup(top), b"", list(names_in(top)))]
        too_deep = False
        try:
            while levels:
                here, name, names = levels[-1]
                if not names:
                    levels.pop()
                    os.close(here)
                    if levels:
                        os.rmdir(name, dir_fd=levels[-1][0])
                        self.removed += 1
                    continue
                inner = names.pop()
                with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
                    if not self._is_folder(here, inner):
                        continue
                    if len(levels) >= MOST_LEVELS:
                        os.rename(inner, temporary_name(), src_dir_fd=here, dst_dir_fd=top)
                        too_deep = True
                        continue
                    fd = os.open(inner, FOLDER | os.O_NOFOLLOW, dir_fd=here)
                    levels.append((fd, inner, []))
                    levels[-1][2].extend(names_in(fd))
        finally:
            for here, _, _ in levels:
                os.close(here)
        return too_deep

    def _is_folder(self, folder: int, name: bytes) -> bool:
        """Whether a name is a folder. Removes anything else."""
        if self._stop.is_set():
            raise StoppedError
        try:
            os.unlink(name, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise
            return True
        self.removed += 1
        return False


class Copy:
    """Copies a file, or a folder and everything in it, under a hidden name beside the target, then renames the copy."""

    def __init__(self, stop: threading.Event) -> None:
        self.copied = 0
        self.skipped = 0
        """Pipes, sockets and devices."""
        self._stop = stop

    def run(self, home: Home, path: str, to: str, *, replace: bool) -> None:
        """Copy a file or a folder. Links below it stay links, and files keep their modes and times."""
        with explained(path), home.at(path) as source:
            status = source.status()
            with explained(to), home.named(to, may_be_absent=True) as target:
                if target.fd is not None and not replace:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                if stat.S_ISDIR(status.st_mode):
                    self._folder(path, source, to, target, replace=replace)
                elif stat.S_ISREG(status.st_mode):
                    self._file(source, to, target, replace=replace)
                else:
                    raise RpcError("invalid_params", f"{shown(path)} is neither a file nor a directory")

    def _file(self, source: Place, to: str, target: Place, *, replace: bool) -> None:
        with source.opened(os.O_RDONLY) as content, beside(target) as (fd, temporary):
            self._content(content, fd)
            os.fsync(fd)
            _rename(to, dataclasses.replace(target, name=temporary.encode()), to, target, replace=replace)
            _sync_folder(target)
        self.copied += 1

    def _folder(self, path: str, source: Place, to: str, target: Place, *, replace: bool) -> None:
        if _is_inside(target.folder, source):
            raise RpcError("invalid_params", f"{shown(to)} is inside of {shown(path)}, which it would be a copy of")
        temporary = temporary_name().encode()
        try:
            with source.opened(FOLDER) as folder:
                self._tree(folder, target.folder, temporary)
            _rename(to, dataclasses.replace(target, name=temporary), to, target, replace=replace)
        except BaseException:
            with contextlib.suppress(OSError):
                Removal(threading.Event()).remove(target.folder, temporary)
            raise

    def _tree(self, source: int, into: int, name: bytes, level: int = 0) -> None:
        """Copy an open folder. Sets the mode last, because it may forbid writing into the copy."""
        if level > MOST_LEVELS:
            raise RpcError("limit", f"there are more than {MOST_LEVELS} folders within each other")
        os.mkdir(name, 0o700, dir_fd=into)
        self.copied += 1
        copy = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=into)
        try:
            for inner in names_in(source):
                if self._stop.is_set():
                    raise StoppedError
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    self._name(source, inner, copy, level)
            status = os.fstat(source)
            os.fchmod(copy, stat.S_IMODE(status.st_mode) & 0o777)
            os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(copy)

    def _name(self, folder: int, name: bytes, into: int, level: int) -> None:
        found = os.open(name, LOOK, dir_fd=folder)
        try:
            kind = stat.S_IFMT(os.fstat(found).st_mode)
            if kind == stat.S_IFLNK:
                os.symlink(os.readlink(b"", dir_fd=found), name, dir_fd=into)
                self.copied += 1
            elif kind == stat.S_IFDIR:
                inner = os.open(b".", FOLDER, dir_fd=found)
                try:
                    self._tree(inner, into, name, level + 1)
                finally:
                    os.close(inner)
            elif kind == stat.S_IFREG:
                self._inner_file(found, into, name)
                self.copied += 1
            else:
                self.skipped += 1
        finally:
            os.close(found)

    def _inner_file(self, found: int, into: int, name: bytes) -> None:
        content = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            copy = os.open(name, flags, 0o600, dir_fd=into)
            try:
                self._content(content, copy)
            finally:
                os.close(copy)
        finally:
            os.close(content)

    def _content(self, source: int, copy: int) -> None:
        copy_data(source, copy, self._stop)
        status = os.fstat(source)
        os.fchmod(copy, stat.S_IMODE(status.st_mode) & 0o777)
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))


def rename_new(folder: int, name: bytes, to_folder: int, to: bytes) -> None:
    """Rename without replacing. Raises :class:`FileExistsError` if the new name is taken (renameat2(2))."""
    if not _libc.renameat2(folder, name, to_folder, to, RENAME_NOREPLACE):
        return
    number = ctypes.get_errno()
    if number != errno.EINVAL:
        raise OSError(number, os.strerror(number))
    # This file system cannot do it, such as one over the network; or a folder would move into itself, which rename
    # refuses too. A file that somebody else makes in between would be replaced.
    with contextlib.suppress(FileNotFoundError):
        os.stat(to, dir_fd=to_folder, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.rename(name, to, src_dir_fd=folder, dst_dir_fd=to_folder)


def exchange(folder: int, name: bytes, to_folder: int, to: bytes) -> bool:
    """Give each of two files the other's name at once (renameat2(2)). Returns whether this file system can do it.
    Raises :class:`OSError`."""
    if not _libc.renameat2(folder, name, to_folder, to, RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number))


def _rename(path: str, source: Place, to: str, target: Place, *, replace: bool) -> None:
    try:
        if replace:
            os.rename(source.name, target.name, src_dir_fd=source.folder, dst_dir_fd=target.folder)
        else:
            rename_new(source.folder, source.name, target.folder, target.name)
    except OSError as error:
        raise _explain_rename(path, to, error) from error


def _is_inside(folder: int, top: Place) -> bool:
    """Whether an open folder is the folder ``top``, or below it."""
    assert top.fd is not None
    wanted, here, last = identity(top.fd), os.dup(folder), None
    try:
        while (now := identity(here)) != last:
            if now == wanted:
                return True
            last = now
            above = os.open(b"..", LOOK, dir_fd=here)
            os.close(here)
            here = above
        return False
    finally:
        os.close(here)


def _sync_folder(place: Place) -> None:
    """Write a folder to the disk, so that a rename survives a power cut once the caller gets its answer."""
    with contextlib.suppress(PermissionError):  # a user may be allowed to change a folder and not to list it
        fd = os.open(b".", FOLDER, dir_fd=place.folder)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _explain_rename(path: str, to: str, error: OSError) -> Exception:
    """The caller's error for a failed rename. Errors that mean the same everywhere are returned unchanged."""
    match error.errno:
        case errno.EXDEV:
            return RpcError(
                "invalid_state", f"{shown(to)} is on another file system than {shown(path)}: copy it, and remove it"
            )
        case errno.EINVAL:
            return RpcError("invalid_params", f"{shown(to)} is inside of {shown(path)}")
        case errno.EEXIST | errno.ENOTEMPTY:
            return RpcError("conflict", f"{shown(to)} exists already")
        case errno.EISDIR:
            return RpcError("conflict", f"{shown(to)} is a directory")
        case errno.ENOTDIR:
            return RpcError("conflict", f"{shown(to)} is not a directory, and {shown(path)} is one")
        case _:
            return error
