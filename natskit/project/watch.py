"""Watched folders: changes of what is in them become events on ``events.project.{id}.files``.

A folder is watched by itself, not with what is below it: it costs the kernel one inotify watch however many files it
has, and a tree of 50,000 files cannot be watched by accident. A watch is a lease, which its callers renew. So a browser
that disappears leaves nothing behind, and the events need no rights but those of the project's other events.

inotify is called through ctypes, as renameat2 is in ``tree.py``: it takes the folder that a walk has opened, and not a
path that may lead elsewhere by then, which is all that watchfiles and asyncinotify take.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re
import secrets
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from natskit.project.files import Home
from natskit.project.paths import decoded, explained
from natskit.rpc import RpcError

LEASE_SECONDS = 60.0
"""How long a folder is watched after somebody has asked for it."""
MOST_WATCHES, MOST_WATCHES_EACH = 128, 64
"""Folders that a project watches, and those for one account."""
GATHER_SECONDS = 0.02
"""How long the first change waits for others, such as those of an editor that saves a file in four steps."""
REST_SECONDS = 0.25
"""Between two events of a folder: a log that is written all the time costs four messages a second."""
MOST_NAMES, MOST_NAME_BYTES = 256, 32 * 1024
"""Of the names in one event. If more have changed, the event says so, and names none."""

_FOLDER_CHANGES = {
    "IN_MODIFY": 0x2,
    "IN_ATTRIB": 0x4,
    "IN_CLOSE_WRITE": 0x8,
    "IN_MOVED_FROM": 0x40,
    "IN_MOVED_TO": 0x80,
    "IN_CREATE": 0x100,
    "IN_DELETE": 0x200,
}
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_UNMOUNT, _OVERFLOW, _IGNORED = 0x2000, 0x4000, 0x8000
_ONLYDIR, _EXCL_UNLINK = 0x1000000, 0x4000000
_WANTED = sum(_FOLDER_CHANGES.values()) | _DELETE_SELF | _MOVE_SELF | _ONLYDIR | _EXCL_UNLINK
_GONE = _DELETE_SELF | _MOVE_SELF | _UNMOUNT | _IGNORED
_HEAD = struct.Struct("iIII")
_READ_BYTES = 64 * 1024
_OWN = re.compile(rb"\.natskit-")
"""Names of files that are not complete yet: uploads and new contents grow in them."""

_libc = ctypes.CDLL(None, use_errno=True)


class WatchState(TypedDict):
    """A watched folder."""

    watch: str
    """Its name in events. Another one is another folder, or comes from another agent."""
    seq: int
    """The number of its last event."""
    seconds: float
    """How long it is watched unless somebody asks again."""


class WatchEvent(TypedDict):
    """Something has changed in a watched folder, or it is gone and not watched any more."""

    type: Literal["changed", "gone"]
    watch: str
    seq: int
    names: list[str] | None
    """What has changed; ``None`` if that is too much, or not known."""


@dataclass
class _Watch:
    watch: str
    leases: dict[str, float]
    """When each caller's lease ends."""
    seq: int = 0
    names: set[bytes] | None = field(default_factory=set)
    """What has changed since the last event; ``None`` if that is too much, or not known."""
    size: int = 0
    due: asyncio.TimerHandle | None = None
    """Sends the next event."""
    end: asyncio.TimerHandle | None = None
    """Ends the watch."""
    rested: float = 0.0
    """When the next event may be sent."""

    def add(self, name: bytes) -> None:
        """Note a change."""
        if self.names is not None and name not in self.names:
            self.names.add(name)
            self.size += len(name)
            if len(self.names) > MOST_NAMES or self.size > MOST_NAME_BYTES:
                self.names = None

    def take(self) -> list[str] | None:
        """What has changed since the last call."""
        names = None if self.names is None else [decoded(name) for name in sorted(self.names)]
        self.names, self.size = set(), 0
        return names


class Watches:
    """The watched folders of a project."""

    def __init__(self, publish: Callable[[WatchEvent], Awaitable[None]], lease: float = LEASE_SECONDS) -> None:
        """``publish`` sends an event."""
        self._publish = publish
        self._lease = lease
        self._inotify: int | None = None
        self._watches: dict[int, _Watch] = {}
        """By the kernel's number of each."""
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._sending: set[asyncio.Task[None]] = set()

    async def renew(self, home: Home, path: str, caller: str) -> WatchState:
        """Watch a folder from now on, or for longer. Raises :class:`RpcError`."""
        async with self._turn:
            if self._inotify is None:
                self._open()
            try:
                number = await asyncio.to_thread(self._add, home, path)
                watch = self._watches.get(number)
                if watch is None or caller not in watch.leases:
                    self._check_room(number, caller)
                if watch is None:
                    watch = self._watches[number] = _Watch(secrets.token_hex(8), {})
                watch.leases[caller] = self._loop.time() + self._lease
                self._end_later(number, watch)
            finally:
                self._close_if_idle()
        return {"watch": watch.watch, "seq": watch.seq, "seconds": self._lease}

    async def leave(self, watch: str) -> None:
        """Watch a folder no more, for nobody."""
        async with self._turn:
            for number, known in list(self._watches.items()):
                if known.watch == watch:
                    self._drop(number)
                    _libc.inotify_rm_watch(self._inotify, number)
            self._close_if_idle()

    def close(self) -> None:
        """Watch nothing any more."""
        for watch in self._watches.values():
            _cancel(watch)
        self._watches.clear()
        for task in self._sending:
            task.cancel()
        self._close_if_idle()

    def _open(self) -> None:
        fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise RpcError(
                "limit",
                f"this host watches no more folders: {os.strerror(ctypes.get_errno())} "
                "(fs.inotify.max_user_instances limits how many programs of a user watch at a time)",
            )
        self._inotify = fd
        self._loop.add_reader(fd, self._read)

    def _close_if_idle(self) -> None:
        if self._inotify is not None and not self._watches:
            self._loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = None

    def _add(self, home: Home, path: str) -> int:
        """The kernel's number of a folder, which is watched from now on."""
        with explained(path), home.at(path) as place:
            place.status()
            number = int(_libc.inotify_add_watch(self._inotify, os.fsencode(place.link), _WANTED))
            if number >= 0:
                return number
            failed = ctypes.get_errno()
            if failed == errno.ENOSPC:
                raise RpcError(
                    "limit",
                    "this host watches no more folders (fs.inotify.max_user_watches limits how many those of a user "
                    "are): list the folder again instead",
                )
            raise OSError(failed, os.strerror(failed))

    def _check_room(self, number: int, caller: str) -> None:
        """Raises :class:`RpcError` if too many folders are watched; then this one is not, unless it was before."""
        mine = sum(caller in watch.leases for watch in self._watches.values())
        for count, most, whose in ((mine, MOST_WATCHES_EACH, " for you"), (len(self._watches), MOST_WATCHES, "")):
            if count < most or (not whose and number in self._watches):
                continue
            if number not in self._watches:
                _libc.inotify_rm_watch(self._inotify, number)
            raise RpcError(
                "limit",
                f"{count} folders are watched{whose}, which is the limit: leave some, which takes up to "
                f"{self._lease:g} s, or list this folder again instead",
            )

    def _end_later(self, number: int, watch: _Watch) -> None:
        if watch.end is not None:
            watch.end.cancel()
        watch.end = self._loop.call_at(min(watch.leases.values()), self._expire, number, watch)

    def _expire(self, number: int, watch: _Watch) -> None:
        """End the leases that nobody has renewed, and the watch with the last one."""
        now = self._loop.time()
        watch.leases = {caller: end for caller, end in watch.leases.items() if end > now}
        if watch.leases:
            self._end_later(number, watch)
            return
        if self._turn.locked():  # somebody may be about to renew it
            watch.end = self._loop.call_later(REST_SECONDS, self._expire, number, watch)
            return
        self._drop(number)
        _libc.inotify_rm_watch(self._inotify, number)
        self._close_if_idle()

    def _drop(self, number: int) -> None:
        watch = self._watches.pop(number, None)
        if watch is not None:
            _cancel(watch)

    def _read(self) -> None:
        assert self._inotify is not None
        try:
            data = os.read(self._inotify, _READ_BYTES)
        except BlockingIOError:
            return
        for number, mask, name in _events(data):
            if mask & _OVERFLOW:  # the kernel has dropped events, nobody knows of which folders
                for watch in self._watches.values():
                    watch.names = None
                    self._send_soon(watch)
            elif (changed := self._watches.get(number)) is not None:
                self._take(number, changed, mask, name)

    def _take(self, number: int, watch: _Watch, mask: int, name: bytes) -> None:
        if mask & _GONE:
            self._drop(number)
            if mask & _MOVE_SELF:  # the kernel goes on with it under its new name
                _libc.inotify_rm_watch(self._inotify, number)
            self._send(watch, "gone", None)
            if not self._turn.locked():
                self._close_if_idle()
        elif name and not _OWN.match(name):
            watch.add(name)
            self._send_soon(watch)

    def _send_soon(self, watch: _Watch) -> None:
        if watch.due is None:
            when = max(self._loop.time() + GATHER_SECONDS, watch.rested)
            watch.due = self._loop.call_at(when, self._send_changes, watch)

    def _send_changes(self, watch: _Watch) -> None:
        watch.due = None
        watch.rested = self._loop.time() + REST_SECONDS
        self._send(watch, "changed", watch.take())

    def _send(self, watch: _Watch, kind: Literal["changed", "gone"], names: list[str] | None) -> None:
        watch.seq += 1
        event: WatchEvent = {"type": kind, "watch": watch.watch, "seq": watch.seq, "names": names}
        task = self._loop.create_task(self._send_now(event))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send_now(self, event: WatchEvent) -> None:
        await self._publish(event)


def _cancel(watch: _Watch) -> None:
    for timer in (watch.due, watch.end):
        if timer is not None:
            timer.cancel()


def _events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The folder, the mask and the name of each event (inotify(7))."""
    position = 0
    while position < len(data):
        number, mask, _, length = _HEAD.unpack_from(data, position)
        position += _HEAD.size
        yield number, mask, data[position : position + length].rstrip(b"\0")
        position += length
