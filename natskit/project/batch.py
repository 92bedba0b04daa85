"""Many small files in one request, and the names in a whole tree: what makes `natskit sync` quick.

One file in each request takes a round trip, and two waits for the disk. Here all files of a request are written first,
then the disk is waited for once, then each file gets its name.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import threading
from collections.abc import Iterator
from typing import Annotated, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from natskit.project.content import (
    NEW_FILE_MODE,
    Stamp,
    StoppedError,
    check_writable,
    make_alike,
    pour,
    status_of_file,
    temporary_name,
    version_of_file,
    write_at,
)
from natskit.project.files import Entry, Home, entry_of, names_in
from natskit.project.paths import FOLDER, LOOK, Place, check_name, decoded, encoded, explained
from natskit.project.transfer import FileState, read_part
from natskit.rpc import RpcError, size_of

MOST_FILES = 256
"""Files that one request writes. Each takes three descriptors."""
MOST_LEVELS = 200

_libc = ctypes.CDLL(None, use_errno=True)


class TreePage(TypedDict):
    """A part of a tree's list. The next part begins after the path ``next``, which is ``None`` at the end."""

    entries: list[Entry]
    """Their names are paths from the top of the tree."""
    next: str | None


class NewFile(BaseModel):
    """One of the files that a request carries: its bytes follow those of the file before it."""

    model_config = ConfigDict(extra="forbid")

    path: str
    size: Annotated[int, Field(ge=0)]
    mode: Annotated[int, Field(ge=0, le=0o777)] | None = None
    mtime: Annotated[float, Field(ge=0, le=2**33)] | None = None


def list_tree(home: Home, path: str, after: str, most: int, room: int, stop: threading.Event) -> TreePage:
    """List a folder and all folders below it, in parts of at most ``most`` names and ``room`` bytes of JSON.

    A folder comes before its content. Links are not followed.
    """
    begin = encoded(after).split(b"/") if after else []
    entries: list[Entry] = []
    with explained(path), home.at(path) as place, place.opened(FOLDER) as top:
        for entry in _below(top, b"", begin, stop, 0):
            room -= size_of(entry) + 1
            if len(entries) == most or (room < 0 and entries):
                return {"entries": entries, "next": entries[-1]["name"]}
            entries.append(entry)
    return {"entries": entries, "next": None}


def _below(folder: int, above: bytes, begin: list[bytes], stop: threading.Event, level: int) -> Iterator[Entry]:
    """The entries of an open folder and of all folders below it that come after the path ``begin``."""
    if level > MOST_LEVELS:
        raise RpcError("limit", f"there are more than {MOST_LEVELS} folders within each other")
    for name in sorted(names_in(folder)):
        if stop.is_set():
            raise StoppedError
        if begin and name < begin[0]:
            continue
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            found = os.open(name, LOOK, dir_fd=folder)
            try:
                status = os.fstat(found)
                target = os.readlink(b"", dir_fd=found) if stat.S_ISLNK(status.st_mode) else None
                is_passed = bool(begin) and name == begin[0]
                if not is_passed:
                    yield {**entry_of(name, status, target), "name": decoded(above + name)}
                if stat.S_ISDIR(status.st_mode):
                    inner = os.open(b".", FOLDER, dir_fd=found)
                    try:
                        yield from _below(inner, above + name + b"/", begin[1:] if is_passed else [], stop, level + 1)
                    finally:
                        os.close(inner)
            finally:
                os.close(found)


def hash_files(home: Home, paths: list[str], stop: threading.Event) -> list[str | None]:
    """The version of each file; ``None`` for anything else, and for files that cannot be read."""
    versions: list[str | None] = []
    for path in paths:
        if stop.is_set():
            raise RpcError("unavailable", "the project is being stopped")
        try:
            with explained(path), home.at(path) as place:
                status_of_file(path, place)
                with place.opened(os.O_RDONLY) as fd:
                    versions.append(version_of_file(fd))
        except RpcError:
            versions.append(None)
    return versions


def read_files(home: Home, paths: list[str], room: int) -> tuple[list[FileState], bytes]:
    """As many of the first files as fit into ``room`` bytes, but at least the beginning of the first one."""
    states: list[FileState] = []
    parts: list[bytes] = []
    for path in paths:
        with explained(path), home.at(path) as place:
            if states and status_of_file(path, place).st_size > room:
                break
        state, data = read_part(home, path, 0, room, None)
        if states and len(data) < state["size"]:
            break
        states.append(state)
        parts.append(data)
        room -= len(data)
    return states, b"".join(parts)


def write_files(home: Home, files: list[NewFile], data: memoryview) -> int:
    """Write files, and replace those that exist. Returns the number of files.

    All new contents are on the disk before the first file is replaced, so a full disk changes nothing.
    """
    if sum(file.size for file in files) != len(data):
        raise RpcError("invalid_params", f"the files have other sizes than the {len(data):,} bytes that came with them")
    with contextlib.ExitStack() as stack:
        written: list[tuple[NewFile, Place, int, bytes]] = []
        position = 0
        for file in files:
            check_name(file.path)
            stack.enter_context(explained(file.path))
            place = stack.enter_context(home.at(file.path, may_be_absent=True, make_folders=True))
            written.append((file, place, *_written(stack, place, file, data[position : position + file.size])))
            position += file.size
        _sync(home)
        for file, place, fd, temporary in written:
            with explained(file.path):
                _put(file, place, fd, temporary)
        _sync(home)
    return len(files)


def _written(stack: contextlib.ExitStack, place: Place, file: NewFile, data: memoryview) -> tuple[int, bytes]:
    """A hidden file with this content beside its place. It is removed at the end unless it was renamed."""
    if place.fd is not None:
        check_writable(file.path, place, status_of_file(file.path, place))
    temporary = temporary_name().encode()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=place.folder)
    stack.callback(_end, fd, place.folder, temporary)
    write_at(fd, data, 0)
    if place.fd is None:
        os.fchmod(fd, NEW_FILE_MODE)
    else:
        make_alike(fd, place, place.status())
    Stamp(file.mode, file.mtime).put_on(fd)
    return fd, temporary


def _end(fd: int, folder: int, temporary: bytes) -> None:
    os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=folder)


def _put(file: NewFile, place: Place, fd: int, temporary: bytes) -> None:
    if place.fd is not None and place.status().st_nlink > 1:
        pour(place, fd, file.size, Stamp(file.mode, file.mtime))
    else:
        os.rename(temporary, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)


def _sync(home: Home) -> None:
    """Wait until all written data is on the disk (syncfs(2)): one wait for all files."""
    with home.at(".") as place, place.opened(FOLDER) as fd:
        if _libc.syncfs(fd):
            raise RpcError("invalid_state", f"the disk did not take the files: {os.strerror(ctypes.get_errno())}")
