"""Files in parts: reads of a range, and uploads that go on after a restart of the agent or of the client.

A read names the state of the file that it continues with (its *tag*), so that it never mixes two states of a file that
changes during the read. An upload grows in a hidden file beside its target. The size of that file says how much has
arrived, so there is no other state to keep, or to lose. At the end the agent checks the content and renames the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, NotRequired, TypedDict

from natskit.project.content import (
    ABSENT,
    NEW_FILE_MODE,
    Stamp,
    begin_write_back,
    check_absence,
    check_writable,
    is_version,
    make_alike,
    pour,
    rename_durably,
    status_of_file,
    version_of_file,
    write_at,
)
from natskit.project.files import Home
from natskit.project.paths import FOLDER, Place, check_name, explained, identity, shown
from natskit.rpc import RpcError

MOST_UPLOADS, MOST_UPLOADS_EACH = 64, 16
"""Open uploads of a project, and of one account."""
MOST_FINISHED, FINISHED_SECONDS = 1024, 3600.0
"""How many finished uploads are remembered, and for how long, for callers whose answer was lost."""
WRITE_BACK_BYTES = 16 * 1024 * 1024
"""After so many bytes of an upload, the kernel begins to write them to the disk."""
IDLE_SECONDS = 60.0
"""An upload that has been silent for this long gives its place to another one, and may still continue later."""
LEFT_SECONDS = 7 * 86400.0
"""How long an unfinished upload is kept. After that, the next upload into the same folder removes it."""

_UPLOAD_ID = re.compile(r"[0-9a-f]{16,64}")
_LEFT_OVER = re.compile(rb"\.natskit-[0-9a-f]{16,64}\.upload")


class FileState(TypedDict):
    """A file, as it was when a part of it was read."""

    size: int
    mtime: float
    mode: int
    tag: str
    """Changes whenever the file does."""


class UploadState(TypedDict):
    """How much of an upload has arrived."""

    offset: int
    """Bytes. The next part begins here."""
    version: NotRequired[str]
    """Of an upload that is finished: the file's version then."""


class Finished(NamedTuple):
    """An upload whose file got its name."""

    size: int
    version: str
    until: float
    """When it is forgotten."""


def read_part(home: Home, path: str, offset: int, size: int, tag: str | None) -> tuple[FileState, bytes]:
    """At most ``size`` bytes of a file from ``offset`` on; fewer only at its end.

    Raises :class:`RpcError`: a ``conflict`` if the file is not in the state that ``tag`` stands for.
    """
    with explained(path), home.at(path) as place:
        status_of_file(path, place)
        with place.opened(os.O_RDONLY) as fd:
            before = os.fstat(fd)
            if tag is not None and tag_of(before) != tag:
                raise RpcError("conflict", f"{shown(path)} has changed since its first part was read: begin again")
            data = os.pread(fd, size, offset)
            while len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
                data += more
            if tag_of(os.fstat(fd)) != tag_of(before):
                raise RpcError("conflict", f"{shown(path)} changed while it was read: begin again")
    return {
        "size": before.st_size,
        "mtime": before.st_mtime,
        "mode": stat.S_IMODE(before.st_mode),
        "tag": tag_of(before),
    }, data


def tag_of(status: os.stat_result) -> str:
    """Identifies a file and its state. Each change of the content also changes the file's ctime."""
    parts = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return "-".join(f"{part:x}" for part in parts)


@dataclass
class _Open:
    caller: str
    used: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    digest: hashlib._Hash | None = None
    """The digest of the bytes that have arrived; ``None`` if an earlier agent received some of them."""
    known: tuple[tuple[int, int], int] | None = None
    """The hidden file that the digest is of, and its size."""


class Uploads:
    """The open uploads of a project. An upload's methods are called one after the other, in its :meth:`turn`."""

    def __init__(self, most: int = MOST_UPLOADS, most_each: int = MOST_UPLOADS_EACH) -> None:
        self._most, self._most_each = most, most_each
        self._open: dict[str, _Open] = {}
        self._finished: OrderedDict[tuple[str, str], Finished] = OrderedDict()
        """The uploads that were finished lately, the first one first, by path and id: an answer may be lost, and a page
        does not know the digest."""

    def turn(self, upload: str, caller: str) -> asyncio.Lock:
        """The lock of an upload. Raises :class:`RpcError` if too many others are open, or for a malformed id."""
        if not _UPLOAD_ID.fullmatch(upload):
            raise RpcError("invalid_params", f"{upload[:80]!r} is no upload: an id has 16 to 64 hexadecimal digits")
        now = time.monotonic()
        found = self._open.get(upload)
        if found is None:
            self._make_room(caller, now)
            found = self._open[upload] = _Open(caller, now)
        found.used = now
        return found.turn

    def start(self, home: Home, path: str, upload: str, size: int, expected_version: str | None) -> UploadState:
        """Begin an upload of ``size`` bytes, or find out how much of it has arrived."""
        check_name(path)
        with explained(path), home.at(path, may_be_absent=True) as place:
            if place.fd is None:
                check_absence(path, expected_version)
            else:
                check_writable(path, place, status_of_file(path, place))
                if expected_version == ABSENT:
                    raise RpcError("conflict", f"{shown(path)} exists already")
            _remove_left_over(place)
            fd = _opened(place, upload, os.O_CREAT)
            try:
                offset = os.fstat(fd).st_size
                if offset > size:
                    os.ftruncate(fd, 0)
                    offset = 0
                try:
                    _check_room(path, fd, size - offset)
                except RpcError:
                    if not offset:
                        self._forget(place, upload)
                    raise
                one = self._known(upload)
                if offset == 0:
                    one.digest, one.known = hashlib.sha256(), (identity(fd), 0)
                    self._finished.pop((path, upload), None)
            finally:
                os.close(fd)
        return {"offset": offset}

    def append(self, home: Home, path: str, upload: str, offset: int, data: bytes | memoryview) -> UploadState:
        """Append a part, unless bytes before it are missing. Skips bytes that have arrived before.

        A part that does not fit on the disk is dropped whole. A gap is no error: the answer says how much has arrived.
        """
        try:
            return self._append(home, path, upload, offset, data)
        except RpcError as error:
            if error.kind != "not_found":
                raise
            self._open.pop(upload, None)
            done = self.finished(path, upload)
            if done is None:
                raise
            return {"offset": done.size, "version": done.version}

    def _append(self, home: Home, path: str, upload: str, offset: int, data: bytes | memoryview) -> UploadState:
        with explained(path), self._existing(home, path, upload) as (_, fd):
            size = os.fstat(fd).st_size
            new = memoryview(data)[max(0, size - offset) :]
            if offset > size or not new:
                return {"offset": size}
            try:
                write_at(fd, new, size)
            except OSError:
                os.ftruncate(fd, size)
                raise
            now = size + len(new)
            if now // WRITE_BACK_BYTES > size // WRITE_BACK_BYTES:
                begin_write_back(fd, (size // WRITE_BACK_BYTES) * WRITE_BACK_BYTES, now)
            one, this = self._known(upload), identity(fd)
            if one.digest is not None and one.known == (this, size):
                one.digest.update(new)
                one.known = this, size + len(new)
            else:
                one.digest = None
            return {"offset": size + len(new)}

    def received(self, home: Home, path: str, upload: str, size: int, sha256: str | None) -> str | None:
        """Check that an upload is complete. Returns its version, or ``None`` if the file is in its place already, which
        happens when the first answer was lost."""
        try:
            with explained(path), self._existing(home, path, upload) as (place, fd):
                arrived = os.fstat(fd).st_size
                if arrived != size:
                    raise RpcError("invalid_state", f"{shown(path)}: {arrived} of {size} bytes have arrived")
                one = self._known(upload)
                if one.digest is not None and one.known == (identity(fd), size):
                    actual = one.digest.hexdigest()
                else:
                    actual = version_of_file(fd)
                if sha256 not in (None, actual):
                    self._forget(place, upload)
                    raise RpcError(
                        "invalid_state",
                        f"{shown(path)}: the bytes that arrived are not those that were sent; begin again",
                    )
                os.fsync(fd)
                return actual
        except RpcError as error:
            is_done = self.finished(path, upload) is not None or (
                sha256 is not None and self._is_there(home, path, sha256)
            )
            if error.kind != "not_found" or not is_done:
                raise
            return None

    def finished(self, path: str, upload: str) -> Finished | None:
        """What is known of an upload that was finished lately."""
        now = time.monotonic()
        while self._finished and next(iter(self._finished.values())).until <= now:
            self._finished.popitem(last=False)
        return self._finished.get((path, upload))

    def finish(
        self, home: Home, path: str, upload: str, version: str, expected_version: str | None, stamp: Stamp
    ) -> None:
        """Give an upload that was :meth:`received` the name of its target, if that has the expected version."""
        size = self._rename(home, path, upload, version, expected_version, stamp)
        self._finished.pop((path, upload), None)
        self._finished[path, upload] = Finished(size, version, time.monotonic() + FINISHED_SECONDS)
        while len(self._finished) > MOST_FINISHED:
            self._finished.popitem(last=False)

    def _rename(
        self, home: Home, path: str, upload: str, version: str, expected_version: str | None, stamp: Stamp
    ) -> int:
        """Returns the size of the file."""
        with explained(path), self._existing(home, path, upload) as (place, fd):
            size = os.fstat(fd).st_size
            if place.fd is None:
                check_absence(path, expected_version)
                os.fchmod(fd, NEW_FILE_MODE)
            else:
                status = status_of_file(path, place)
                if is_version(path, place, version, expected_version):
                    self._forget(place, upload)
                    return size
                check_writable(path, place, status)
                if status.st_nlink > 1:
                    pour(place, fd, size, stamp)
                    self._forget(place, upload)
                    return size
                make_alike(fd, place, status)
            stamp.put_on(fd)
            rename_durably(place, _name(upload), fd)
        self._open.pop(upload, None)
        return size

    def cancel(self, home: Home, path: str, upload: str) -> None:
        """Discard an unfinished upload."""
        with explained(path), home.at(path, may_be_absent=True) as place:
            self._forget(place, upload)

    def _forget(self, place: Place, upload: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_name(upload), dir_fd=place.folder)
        self._open.pop(upload, None)

    @contextlib.contextmanager
    def _existing(self, home: Home, path: str, upload: str) -> Iterator[tuple[Place, int]]:
        """The place of an upload, and its hidden file."""
        with home.at(path, may_be_absent=True) as place:
            try:
                fd = _opened(place, upload, 0)
            except FileNotFoundError:
                raise RpcError("not_found", f"{shown(path)}: nothing of this upload is here; begin again") from None
            try:
                yield place, fd
            finally:
                os.close(fd)

    def _is_there(self, home: Home, path: str, sha256: str) -> bool:
        try:
            with home.at(path) as place, place.opened(os.O_RDONLY) as fd:
                return version_of_file(fd) == sha256
        except OSError:
            return False

    def _known(self, upload: str) -> _Open:
        """The state of an upload; empty if the upload had to give its place to another one."""
        return self._open.get(upload) or _Open("", 0.0)

    def _make_room(self, caller: str, now: float) -> None:
        everything = dict(self._open)
        mine = {name: one for name, one in everything.items() if one.caller == caller}
        for some, most, whose in ((mine, self._most_each, " of yours"), (everything, self._most, "")):
            if len(some) < most:
                continue
            oldest = min(some, key=lambda name: some[name].used)
            if now - some[oldest].used < IDLE_SECONDS:
                raise RpcError("unavailable", f"{len(some)} uploads{whose} are open, which is the limit", retry_after=1)
            self._open.pop(oldest, None)


def _name(upload: str) -> str:
    return f".natskit-{upload}.upload"


def _opened(place: Place, upload: str, flags: int) -> int:
    """The hidden file of an upload."""
    flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(_name(upload), flags, 0o600, dir_fd=place.folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    return fd


def _check_room(path: str, fd: int, needed: int) -> None:
    """Refuse an upload for which the disk has no room. A quota shows only when the bytes are written."""
    disk = os.fstatvfs(fd)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise RpcError("limit", f"{shown(path)}: {needed:,} bytes more are needed, and the disk has {free:,} left")


def _remove_left_over(place: Place) -> None:
    """Remove unfinished uploads that nobody has continued for :data:`LEFT_SECONDS`."""
    with contextlib.suppress(PermissionError):
        fd = os.open(".", FOLDER, dir_fd=place.folder)
        try:
            with os.scandir(fd) as entries:
                names = [name for entry in entries if _LEFT_OVER.fullmatch(name := os.fsencode(entry.name))]
            for name in names:
                with contextlib.suppress(OSError):
                    if time.time() - os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime > LEFT_SECONDS:
                        os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)
