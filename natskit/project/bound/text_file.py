"""The file of a document: its text, and what of it is not in the text."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from natskit import notebook_text
from natskit.project.bound.text_merge import merge
from natskit.project.content import (
    NEW_FILE_MODE,
    PLAIN,
    beside,
    check_writable,
    make_alike,
    read_at_most,
    replace,
    status_of_file,
    version_of,
    write_all,
)
from natskit.project.files import Home
from natskit.project.paths import FOLDER, Place, explained, shown
from natskit.project.tree import exchange, rename_new
from natskit.rpc import RpcError
from natskit.text_changes import MOST_LINES, matcher

MOST_BYTES = 512 * 1024
"""Of a file that is kept the same as a document: its text goes in one message."""
MARK = b"\xef\xbb\xbf"
"""A byte order mark, which some editors put at the beginning. It is no part of the text."""
MOST_TURNS = 20
"""How often a file is put back that somebody wrote in the moment when it was replaced."""
_END = re.compile(rb"\r*\n")


@dataclass(frozen=True)
class TextFile:
    """The content of a file."""

    data: bytes
    text: str
    """Its lines end with ``\\n``."""
    modified: float
    """When it was written or put at its path, in seconds since 1970. A program may set the time of the last write:
    ``mv`` and ``cp -p`` leave that of an older copy (``st_ctime`` of inode(7) is the kernel's own)."""

    @property
    def version(self) -> str:
        """What its content is recognized by."""
        return version_of(self.data)


def read(home: Home, path: str) -> TextFile | None:
    """The file of a document; ``None`` if there is none. Raises :class:`RpcError` if it is not text in UTF-8."""
    try:
        with explained(path), home.at(path) as place:
            status = status_of_file(path, place)
            with place.opened(os.O_RDONLY) as fd:
                data = read_at_most(fd, MOST_BYTES + 1)
    except RpcError as error:
        if error.kind == "not_found":
            return None
        raise
    if len(data) > MOST_BYTES:
        raise RpcError("limit", f"{shown(path)} has more than {MOST_BYTES:,} bytes, the most of a file with a document")
    return TextFile(data, text_of(path, data), status.st_ctime)


def is_notebook(path: str) -> bool:
    """Whether a file is a notebook, whose document has cells."""
    return path.endswith(".ipynb")


def text_of(path: str, data: bytes) -> str:
    """The text in the bytes of a file; of a notebook, that of its cells (:mod:`natskit.notebook_text`).

    Raises :class:`RpcError` if there is none.
    """
    if b"\0" in data:
        raise RpcError("invalid_state", f"{shown(path)} is binary: it has NUL bytes")
    try:
        if is_notebook(path):
            text = notebook_text.text_of(notebook_text.parse(data.removeprefix(MARK).decode(), shown(path)))
            size = len(text.encode())  # JSON may have half a surrogate pair
            if size > MOST_BYTES:
                raise RpcError(
                    "limit",
                    f"{shown(path)} has {size:,} bytes with each value in a line of its own, more than the "
                    f"{MOST_BYTES:,} of a notebook with a document: clear outputs, or split it",
                )
            return text
        return _END.sub(b"\n", data.removeprefix(MARK)).decode()
    except UnicodeDecodeError as error:
        raise RpcError("invalid_state", f"{shown(path)} is not text in UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise RpcError("invalid_state", f"{shown(path)} has half a surrogate pair, which has no UTF-8") from None


def merged(path: str, base: str | None, mine: str, theirs: str) -> str:
    """The texts of a document and of its file in one (:func:`natskit.project.bound.text_merge.merge`)."""
    if not is_notebook(path):
        return merge(base, mine, theirs)
    old, a, b = ((text and notebook_text.parse(text, shown(path))) or None for text in (base, mine, theirs))
    return notebook_text.text_of(notebook_text.merge(old, a or {}, b or {}, merge))


def bytes_of(path: str, text: str, before: bytes) -> bytes:
    """The bytes of a text, in a file that had other bytes: each line keeps its ending.

    A new line gets the ending that most lines have. A byte order mark stays. A notebook keeps, byte for byte, what is
    the same in its cells. Raises :class:`RpcError` if a notebook's text is none.
    """
    mark = MARK if before.startswith(MARK) else b""
    if is_notebook(path):
        old = before.removeprefix(MARK).decode()
        return mark + notebook_text.patched(old, notebook_text.parse(text, shown(path))).encode()
    ends = [found[0] for found in _END.finditer(before)]
    kinds = set(ends)
    if kinds <= {b"\n"}:
        return mark + text.encode()
    usual = max(sorted(kinds), key=ends.count)
    if len(kinds) == 1:
        return mark + text.encode().replace(b"\n", usual)
    lines = text.encode().split(b"\n")
    made = list(_with_ends(lines[:-1], _END.sub(b"\n", before.removeprefix(MARK)).split(b"\n")[:-1], ends, usual))
    return mark + b"".join(made) + lines[-1]


def _with_ends(lines: list[bytes], old: list[bytes], ends: list[bytes], usual: bytes) -> Iterator[bytes]:
    """The lines with the endings that they had, if they were there before."""
    if len(lines) + len(old) > MOST_LINES:
        yield from (line + usual for line in lines)
        return
    for tag, i, j, k, m in matcher(old, lines).get_opcodes():
        known = ends[i:j] if tag == "equal" or j - i == m - k else []
        for number, line in enumerate(lines[k:m]):
            yield line + (known[number] if known else usual)


def write(home: Home, path: str, data: bytes, before: bytes | None) -> bool:
    """Replace the content of a file, if it still is what it was ``before`` (``None``: no file).

    Returns whether it was. The file keeps its mode, its owner and its attributes; readers see the old or the new.
    """
    try:
        return _written(home, path, data, before)
    except RpcError as error:
        if error.kind == "not_found":  # removed in this moment, perhaps with its folder
            return False
        raise


def _written(home: Home, path: str, data: bytes, before: bytes | None) -> bool:
    with explained(path), home.at(path, may_be_absent=True, make_folders=before is None) as place:
        if place.fd is None or before is None:
            if place.fd is not None or before is not None:
                return False
            return _made(place, data)
        status = status_of_file(path, place)
        check_writable(path, place, status)
        if _content(place) != before:
            return False
        if status.st_nlink > 1 or (done := _exchange(place, status, data, before)) is None:
            if _content(place) != before:
                return False
            replace(place, status, data, PLAIN)
            return True
        return done


def _made(place: Place, data: bytes) -> bool:
    """Make the file; returns whether there still was none."""
    with beside(place) as (fd, temporary):
        write_all(fd, data)
        os.fchmod(fd, NEW_FILE_MODE)
        os.fsync(fd)
        try:
            rename_new(place.folder, temporary.encode(), place.folder, place.name)
        except FileExistsError:
            return False
    _sync_folder(place)
    return True


def _content(place: Place) -> bytes:
    with place.opened(os.O_RDONLY) as fd:
        return read_at_most(fd, MOST_BYTES + 1)


def _exchange(place: Place, status: os.stat_result, data: bytes, before: bytes) -> bool | None:
    """Exchange the file and a new one, and look at what came out: somebody may have written a moment before.

    Then that is put back. Returns whether the new content stays, and ``None`` if files cannot be exchanged here.
    """
    try:
        with beside(place) as (fd, temporary):
            write_all(fd, data)
            make_alike(fd, place, status)
            os.fsync(fd)
            standing, coming = before, data
            for _ in range(MOST_TURNS):
                if not exchange(place.folder, temporary.encode(), place.folder, place.name):
                    return None
                try:
                    out = _read_name(place.folder, temporary.encode())
                except OSError:  # a link, a folder, or a file that may not be read: it was not there before
                    exchange(place.folder, temporary.encode(), place.folder, place.name)
                    return False
                if out == standing:
                    _sync_folder(place)
                    return coming is data
                standing, coming = coming, out
    except PermissionError:  # the user may not change the folder, or does not own the file
        return None
    return False


def _read_name(folder: int, name: bytes) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        return read_at_most(fd, MOST_BYTES + 1)
    finally:
        os.close(fd)


def _sync_folder(place: Place) -> None:
    with contextlib.suppress(PermissionError):  # a user may be allowed to change a folder and not to list it
        folder = os.open(".", FOLDER, dir_fd=place.folder)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
