"""The trash of a project, as desktops and ``gio trash`` keep it: the FreeDesktop.org Trash specification 1.0.

It is in ``.local/share/Trash`` of the home. The folder ``files`` has the things themselves, ``info`` where each one was
and since when it is there. The *id* of a thing is its name in ``files``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import datetime
from typing import Literal, TypedDict

from natskit.project.content import write_all
from natskit.project.files import Home, entry_of, names_in, page_of
from natskit.project.paths import FOLDER, Place, decoded, encoded, explained, shown
from natskit.project.tree import Removal, rename_new
from natskit.rpc import RpcError

TRASH = ".local/share/Trash"
LONGEST_INFO = 256 * 1024
"""Bytes. A path may have 65,536, each of which takes three in the file."""
LONGEST_ID = 200
"""Bytes of the name that an id begins with. The rest of a file name's 255 is for a suffix and ``.trashinfo``."""


class Trashed(TypedDict):
    """One thing in the trash."""

    id: str
    path: str
    """Where it was, relative to the home. Empty if that is not known, or was elsewhere."""
    deleted: str
    """When it was removed, in the local time of the project's host: ``2026-11-29T13:21:01``."""
    type: Literal["file", "directory", "symlink", "other"]
    size: int


class TrashPage(TypedDict):
    """A part of the list. The next part is after the id ``next``, which is ``None`` at the end."""

    entries: list[Trashed]
    next: str | None


def throw_away(home: Home, path: str) -> str:
    """Move a file, a folder or a link (the link itself) into the trash. Returns its id there."""
    with explained(path), home.named(path) as place, _folders(home) as (files, info):
        place.status()
        if place.inside == TRASH.encode() or place.inside.startswith(f"{TRASH}/".encode()):
            raise RpcError("invalid_params", f"{shown(path)} is in the trash: empty_trash removes it")
        where = os.fsencode(home.path) + b"/" + place.inside
        identifier = _note(files, info, place.name, where)
        try:
            rename_new(place.folder, place.name, files, identifier)
        except OSError as error:
            os.unlink(identifier + b".trashinfo", dir_fd=info)
            if error.errno == errno.EXDEV:
                raise RpcError(
                    "invalid_state", f"{shown(path)} is on another file system than the trash: remove it instead"
                ) from None
            if error.errno == errno.EINVAL:
                raise RpcError("invalid_params", f"{shown(path)} contains the trash") from None
            raise
    return decoded(identifier)


def contents(home: Home, after: str, most: int, room: int) -> TrashPage:
    """A part of the list: at most ``most`` ids that come after ``after``, in ``room`` bytes of JSON."""
    with explained(TRASH), _folders(home) as (files, info):
        entries, following = page_of(files, after, most, room, lambda name: _describe(home, files, info, name))
    return {"entries": entries, "next": following}


def _describe(home: Home, files: int, info: int, name: bytes) -> Trashed | None:
    try:
        entry = entry_of(name, os.stat(name, dir_fd=files, follow_symlinks=False), None)
        where, deleted = _read_note(home, info, name)
    except FileNotFoundError:
        return None  # gone since it was listed
    return Trashed(id=entry["name"], path=where, deleted=deleted, type=entry["type"], size=entry["size"])


def restore(home: Home, identifier: str, to: str | None) -> str:
    """Move a thing out of the trash, to where it was or to another path. Returns that path."""
    name = _name_of(identifier)
    with explained(identifier), _folders(home) as (files, info):
        os.stat(name, dir_fd=files, follow_symlinks=False)
        path = to or _read_note(home, info, name)[0]
        if not path:
            raise RpcError("invalid_state", f"{shown(identifier)}: where it was is not known; say where to put it")
        with explained(path), home.named(path, may_be_absent=True, make_folders=True) as place:
            rename_new(files, name, place.folder, place.name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name + b".trashinfo", dir_fd=info)
    return path


def empty(home: Home, identifiers: list[str] | None, stop: threading.Event) -> int:
    """Remove things in the trash, or all of them. Returns how many files and folders were removed."""
    removal = Removal(stop)
    with explained(TRASH), _folders(home) as (files, info):
        names = list(names_in(files)) if identifiers is None else [_name_of(one) for one in identifiers]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                removal.remove(files, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + b".trashinfo", dir_fd=info)
    return removal.removed


def _name_of(identifier: str) -> bytes:
    name = encoded(identifier)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise RpcError("invalid_params", f"{shown(identifier)} is not an id of the trash")
    return name


@contextlib.contextmanager
def _folders(home: Home) -> Iterator[tuple[int, int]]:
    """The folders ``files`` and ``info``, which nobody else may read."""
    with contextlib.ExitStack() as stack:
        top = stack.enter_context(home.at(TRASH, make_folders=True))
        os.chmod(top.link, 0o700)
        yield tuple(_open_folder(stack, home, name) for name in ("files", "info"))  # type: ignore[misc]


def _open_folder(stack: contextlib.ExitStack, home: Home, name: str) -> int:
    place: Place = stack.enter_context(home.at(f"{TRASH}/{name}", make_folders=True))
    return stack.enter_context(place.opened(FOLDER))


def _note(files: int, info: int, name: bytes, where: bytes) -> bytes:
    """Write down where a thing was, under an id that no other has. Returns the id."""
    deleted = datetime.now().replace(microsecond=0).isoformat()
    text = f"[Trash Info]\nPath={urllib.parse.quote_from_bytes(where)}\nDeletionDate={deleted}\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    taken = set(names_in(files)) | {one.removesuffix(b".trashinfo") for one in names_in(info)}
    identifier = name[:LONGEST_ID]
    while identifier in taken:
        identifier = name[:LONGEST_ID] + b"." + secrets.token_hex(4).encode()
    fd = os.open(identifier + b".trashinfo", flags, 0o600, dir_fd=info)
    try:
        write_all(fd, text.encode())
    finally:
        os.close(fd)
    return identifier


def _read_note(home: Home, info: int, name: bytes) -> tuple[str, str]:
    """The original path of a thing, relative to the home, and when it was removed; empty if the note does not say."""
    try:
        fd = os.open(name + b".trashinfo", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=info)
    except OSError:
        return "", ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "", ""
        text = os.read(fd, LONGEST_INFO)
    finally:
        os.close(fd)
    said = dict(line.split(b"=", 1) for line in text.splitlines() if b"=" in line)
    where, top = urllib.parse.unquote_to_bytes(said.get(b"Path", b"")), os.fsencode(home.path) + b"/"
    path = decoded(where.removeprefix(top)) if where.startswith(top) else ""
    return path, decoded(said.get(b"DeletionDate", b""))[:40]
