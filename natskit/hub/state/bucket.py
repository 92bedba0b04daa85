"""A view of one KV bucket, held in memory and updated as the bucket changes.

nats-server republishes each stored message (:mod:`natskit.ops.stream_provisioning`), and a hub follows that with an
ordinary subscription. Such a message may be lost. So each
sequence must be the next one, and the hub asks the stream's leader twice a second for its last sequence. When the view
becomes stale (after a reconnect, a gap, a stream that is ahead of the view, a leader that is silent for long), it
subscribes again and reads (:mod:`natskit.hub.state.bulk_read`) what was stored after the last message it has, up to
what the leader says is the last one. It reads the whole bucket if that message is not in the stream any more, or if
delete markers may be gone (:meth:`Bucket._good_up_to`). Meanwhile the old view goes on answering, marked as not
current.

A hub that starts takes what it last had from a file of its own (:mod:`natskit.hub.state.kept_file`), and goes on as
after a reconnect.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from natskit.bus.connection import Connection
from natskit.bus.jetstream import (
    MARKER_SECONDS,
    MESSAGE_NOT_FOUND,
    REQUEST_SECONDS,
    STREAM_NOT_FOUND,
    JetStreamError,
    NobodyError,
    SilenceError,
    ask,
)
from natskit.bus.permissions import state_subject
from natskit.errors import StateError
from natskit.hub.state import bulk_read, kept_file
from natskit.hub.state.kept_file import DoubtError, since_boot
from natskit.hub.state.records import Record
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

RecordT = TypeVar("RecordT", bound=Record)

CHECK_SECONDS = 0.5
"""How often the hub asks the stream's leader for its last sequence. By the next check the view must have reached it: a
lost message may say that an account was locked out."""
ANSWER_SECONDS = 1.0
"""How long the leader may take to answer. So a view notices within 1.5 s that it missed something."""
SILENT_SECONDS = 10.0
"""How long the view counts as current without an answer. Without a leader nothing can be written, and electing another
takes 4 to 9 s; only a leader on the other side of a network partition may write meanwhile."""
RECENT_SECONDS = SILENT_SECONDS
"""How long after the leader last said that the view had everything it may be used while the leader cannot be asked: as
long as a view counts as current without an answer."""
LONGEST_PAUSE = 0.5
LAG_SECONDS = 0.2
"""How far a view may lag behind another hub's writes; usually a millisecond or two."""
MARKERS = 4096
"""The newest delete markers, which a view remembers: creating such a key again then needs one request less.
nats-server refuses a write that expects no marker where there is one, and says its sequence (``_catch_up``)."""

MARKERS_KEPT = timedelta(seconds=MARKER_SECONDS / 2)
"""How long after it was last seen to be complete a view may be continued: the marker of each key deleted since is still
there. Half of what nats-server promises, for clocks that differ and for the time that reading takes."""

KEPT_ROOM = 1 / 8
"""The part of a bucket reserved for changing and deleting existing keys, which needs room too: in a full stream nobody
could be signed out or locked out."""

_EXPIRED = "Nats-Marker-Reason"
"""The header of a marker that nats-server stores in place of an expired value."""
_WRONG_LAST_SEQUENCE = (10071, 10164)
_NO_ROOM = 10077


class ConflictError(StateError):
    """Another hub wrote the key first."""


class Entry(msgspec.Struct, Generic[RecordT], frozen=True, gc=False):
    """A value and its revision."""

    value: RecordT
    revision: int


class _Place(NamedTuple):
    """A message: the place it has in its stream, the time at which nats-server stored it (RFC 3339, nanoseconds), and
    its content.

    A stream that was rolled back gives the same sequence to another message, at another time.
    """

    sequence: int
    time: str
    content: bytes


_NOWHERE = _Place(0, "", b"")


class _Complete(NamedTuple):
    """The moment at which the leader said that the view had everything: by its clock, and by this host's since boot."""

    by_leader: str
    since_boot: float


@dataclass
class _Snapshot(Generic[RecordT]):
    """A bulk read under way: the newest value of each key, the last message read, and those that arrived meanwhile."""

    newest: dict[str, Entry[Any]]
    last: _Place
    arrived: list[_Place]


class Bucket(Generic[RecordT]):
    """A view of one bucket. ``on_change(key, new)`` is called *before* the view takes the new value.

    ``on_expired(key)`` is called before that, at the moment when a value expires.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        parse: Callable[[str, bytes], RecordT],
        on_change: Callable[[str, RecordT | None], None],
        on_expired: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.entries: dict[str, Entry[RecordT]] = {}
        self.applied = 0
        self.current = asyncio.Event()
        self.problem = ""
        """Why the view is not current, in words. Empty when it is, or is about to be."""
        self._connection = connection
        self._parse = parse
        self._on_change = on_change
        self._on_expired = on_expired
        self._stream = f"KV_{name}"
        self._max_bytes = 0
        self._batch_bytes = bulk_read.MOST_BYTES
        self._is_full = False
        self._created = ""
        self._last = _NOWHERE
        self._complete: _Complete | None = None
        self._lacks = True
        """Whether this hub knows that the stream has what the view lacks."""
        self._markers: dict[str, int] = {}
        self._snapshot: _Snapshot[RecordT] | None = None
        self._stale = asyncio.Event()
        self._subscription: Subscription | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._changed: set[asyncio.Future[None]] = set()
        self._prefix = f"$KV.{name}."
        self._followed = state_subject(name)

    def get(self, key: str) -> RecordT | None:
        """The value of a key, as this hub sees it."""
        entry = self.entries.get(key)
        return entry.value if entry else None

    def is_recent(self) -> bool:
        """Whether the view is current, or was less than :data:`RECENT_SECONDS` ago and is not known to lack anything.

        So after a reconnect a view is good for as long as one whose leader is silent, and no longer than until the
        leader says that there is more.
        """
        if self.current.is_set():
            return True
        if self._lacks or self._complete is None:
            return False
        return 0 <= since_boot() - self._complete.since_boot <= RECENT_SECONDS

    async def follow(self) -> None:
        """Follow the bucket until cancelled."""
        undo = self._connection.on_reconnect(self._start_over)
        pause = 0.0
        try:
            while True:
                self._stale.clear()
                try:
                    await self._watch()
                    self.problem, pause = "", 0.0
                    await self._wait_stale()
                except (StateError, nats.errors.Error, OSError, ValueError) as error:
                    reason = str(error) or type(error).__name__
                    level = logging.DEBUG if reason == self.problem else logging.WARNING
                    log.log(level, "bucket %s: %s", self.name, reason)
                    self.current.clear()
                    self.problem, pause = reason, min(LONGEST_PAUSE, 2 * pause + 0.1)
                    with contextlib.suppress(TimeoutError):  # a new connection ends the pause
                        async with asyncio.timeout(pause):
                            await self._stale.wait()
                self.current.clear()
                await self._unsubscribe()
        finally:
            undo()

    async def wait_current(self, seconds: float) -> None:
        """Wait until the view is current. Raises :class:`StateError`."""
        if self.current.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await self.current.wait()
        except TimeoutError:
            raise StateError(f"the state ({self.name}) is not available") from None

    async def changed(self, seconds: float) -> None:
        """Wait for the next change, at most ``seconds``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.add(future)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await future
        finally:
            self._changed.discard(future)

    async def find(self, key: str) -> RecordT | None:
        """The value of a key. Waits a little for a missing key: another hub may have written it a moment ago."""
        deadline = asyncio.get_running_loop().time() + LAG_SECONDS
        while key not in self.entries and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await self.changed(left)
        return self.get(key)

    async def confirm(self, key: str) -> None:
        """Wait until this view has the stream's value of a key, whichever hub wrote it. Raises :class:`StateError`.

        For calls that find nothing to change, which no write would otherwise prove right.
        """
        try:
            found = await ask(self._connection, "find", self.name, {"last_by_subj": self._prefix + key})
        except JetStreamError as error:
            if error.code != MESSAGE_NOT_FOUND:
                raise
            return  # never written, or its marker has expired
        await self._reach(int(found["message"]["seq"]))

    async def is_deleted(self, key: str) -> bool:
        """Whether the newest message of a key says that it was deleted. Raises :class:`StateError`.

        That the view has no value is no proof: the stream may be empty, restored, or hold what cannot be read.
        """
        try:
            found = await ask(self._connection, "find", self.name, {"last_by_subj": self._prefix + key})
        except JetStreamError as error:
            if error.code != MESSAGE_NOT_FOUND:
                raise
            return False
        return b"KV-Operation:" in base64.b64decode(found["message"].get("hdrs", ""))

    async def change(
        self, key: str, mutate: Callable[[RecordT | None], RecordT | None], ttl: str | None = None
    ) -> RecordT | None:
        """Compare-and-set a value to the result of ``mutate``; ``None`` deletes. Retries if another hub was first.

        If nothing is to change, asks the stream whether that still holds. Returns when this hub's view has the new
        value. Errors of ``mutate`` go to the caller. Raises :class:`StateError`, and :class:`RpcError` if there is no
        room for another key.
        """
        deadline = asyncio.get_running_loop().time() + REQUEST_SECONDS
        confirmed = False
        while asyncio.get_running_loop().time() < deadline:
            await self.wait_current(REQUEST_SECONDS)
            entry = self.entries.get(key)
            value = mutate(entry.value if entry else None)
            if value == (entry.value if entry else None):
                if confirmed:
                    return value
                await self.confirm(key)
                confirmed = True
                continue
            if entry is None and self._is_full:
                raise self._no_room()
            expected = entry.revision if entry else self._markers.get(key, 0)
            try:
                revision = await self._write(key, value, expected, ttl)
            except ConflictError as error:
                await self._catch_up(key, expected, str(error))
                continue
            await self._reach(revision)
            return value
        raise StateError(f"{self.name}/{key} is being changed by others; try again")

    async def _catch_up(self, key: str, expected: int, conflict: str) -> None:
        """A write lost the race: wait until the view has the other write, or forget an expired marker."""
        found = re.search(r"(\d+)$", conflict)
        if found is None:
            # A cluster gives no number while another write to the key is on its way to the replicas.
            await self.changed(random.uniform(0.01, 0.1))
            return
        actual = int(found[1])
        if actual > self.applied:
            await self._reach(actual)
        elif actual < expected:
            self._markers.pop(key, None)
        elif key not in self.entries and actual:
            self._mark(key, actual)
        else:
            await self.changed(0.05)

    async def _write(self, key: str, value: RecordT | None, expected: int, ttl: str | None) -> int:
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        if value is None:
            headers |= {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": f"{MARKER_SECONDS}s"}
        elif ttl:
            headers["Nats-TTL"] = ttl
        body = value.to_json() if value is not None else b""
        try:
            answer = await self._connection.request(self._prefix + key, body, timeout=REQUEST_SECONDS, headers=headers)
        except nats.errors.Error as error:
            raise StateError(f"the state could not be written ({type(error).__name__})") from error
        ack = json.loads(answer.data)
        if "error" in ack:
            refusal = ack["error"]
            if refusal.get("err_code") in _WRONG_LAST_SEQUENCE:
                raise ConflictError(str(refusal.get("description", "")))
            if refusal.get("err_code") == _NO_ROOM:
                raise self._no_room()
            raise StateError(f"the state could not be written: {refusal.get('description')}")
        return int(ack["seq"])

    def _no_room(self) -> RpcError:
        return RpcError(
            "limit",
            f"the platform has no room for more {self.name} ({self._max_bytes} bytes): its operator has to raise "
            "hub_state_max_bytes",
        )

    async def _reach(self, revision: int) -> None:
        try:
            await self._applied(revision, REQUEST_SECONDS)
        except TimeoutError:
            self._lacks = True
            self._start_over()
            raise StateError(f"the write to {self.name} was stored, but this hub has not seen it yet") from None

    async def _applied(self, revision: int, seconds: float) -> None:
        """Wait until the view has reached ``revision``. Raises :class:`TimeoutError`."""
        if self.applied >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((revision, future))
        try:
            async with asyncio.timeout(seconds):
                await future
        finally:
            self._waiting = [item for item in self._waiting if item[1] is not future]

    # ---- the file of what this hub last had

    async def keep(self, folder: Path, owner: str) -> None:
        """Write what this hub has into a file in ``folder``. Raises :class:`OSError`.

        ``owner`` is the key of PLATFORM.
        """
        if self._complete is None or not self.applied or self._last.sequence != self.applied:
            return
        header = kept_file.Header(
            bucket=self.name,
            owner=owner,
            made_by=kept_file.made_by(),
            booted_at=kept_file.booted_at(),
            created=self._created,
            sequence=self.applied,
            stored_at=self._last.time,
            content=self._last.content,
            complete_by_leader=self._complete.by_leader,
            complete_since_boot=self._complete.since_boot,
            count=len(self.entries),
            markers=dict(self._markers),
        )
        # All at the same moment: the view may change while the file is written.
        entries = list(self.entries.items())
        items = ((key, entry.revision, entry.value.to_json()) for key, entry in entries)
        await kept_file.write(folder / self.name, header, items)

    async def load(self, folder: Path, owner: str) -> None:
        """Take what this hub last had from its file in ``folder``, before :meth:`follow`. Removes a doubtful file."""
        began = time.monotonic()
        try:
            async with kept_file.opened(folder / self.name) as (header, pieces):
                if (header.bucket, header.owner) != (self.name, owner):
                    raise DoubtError("it is of another bucket")
                found = {
                    sys.intern(key): Entry(self._parse(key, value), revision)
                    async for piece in pieces
                    for key, revision, value in piece
                }
                datetime.fromisoformat(header.complete_by_leader)
                if len(found) != header.count or any(entry.revision > header.sequence for entry in found.values()):
                    raise DoubtError("it contradicts itself")
        except FileNotFoundError:
            return
        except (DoubtError, OSError, ValueError) as error:
            log.warning("bucket %s: the file of an earlier hub is not used: %s", self.name, error)
            return
        for number, (key, entry) in enumerate(found.items()):
            self._on_change(key, entry.value)
            self.entries[key] = entry
            if not number % kept_file.PIECE:
                await asyncio.sleep(0)
        self.applied, self._created, self._markers = header.sequence, header.created, dict(header.markers)
        self._last = _Place(header.sequence, header.stored_at, header.content)
        self._complete = _Complete(header.complete_by_leader, header.complete_since_boot)
        log.info("bucket %s: %d keys from the file, in %.2f s", self.name, len(found), time.monotonic() - began)

    # ---- following

    async def _watch(self) -> None:
        """Subscribe, read what the view lacks, and become current."""
        self._snapshot = _Snapshot({}, _NOWHERE, [])
        self._subscription = await self._connection.subscribe(
            f"{self._followed}>", cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await self._connection.flush(int(REQUEST_SECONDS))
        info = await self._stream_info()
        first, last = int(info["state"]["first_seq"]), int(info["state"]["last_seq"])
        self._lacks = self._lacks or last != self.applied
        kept = await self._good_up_to(info)
        self._lacks = self._lacks or not kept
        first = max(kept + 1, first)
        try:
            await bulk_read.read(
                self._connection, self.name, f"{self._prefix}>", first, last, self._read, self._batch_bytes
            )
        except StateError:
            self._batch_bytes = max(bulk_read.LEAST_BYTES, self._batch_bytes // 2)
            raise
        self._batch_bytes = bulk_read.MOST_BYTES
        await self._refuse_other_stream()
        if not kept:
            await self._forget_deleted(last)
        self._apply_snapshot(kept, last)
        self._created = info["created"]
        # Messages written meanwhile must arrive: in a cluster, the leader's server learns of a subscription later.
        info = await self._stream_info()
        stored = int(info["state"]["last_seq"])
        try:
            await self._applied(stored, ANSWER_SECONDS)
        except TimeoutError:
            raise StateError(f"the stream is at {stored}, the view at {self.applied}: starting over") from None
        self._note_complete(info)
        if not self._stale.is_set():
            self._lacks = False
            self.current.set()

    async def _refuse_other_stream(self) -> None:
        """Raises :class:`StateError` unless the leader has the last message that was read, or a later one of its key.

        A copy that has yet to hear that its stream was replaced, as by a restore, answers with the old one's messages.
        """
        assert self._snapshot is not None
        last, newest = self._snapshot.last, self._snapshot.newest
        if not last.sequence:
            return
        try:
            found = (await ask(self._connection, "find", self.name, {"seq": last.sequence}))["message"]
        except JetStreamError as error:
            if error.code != MESSAGE_NOT_FOUND:
                raise
            is_same = all(entry.revision != last.sequence for entry in newest.values())
        else:
            is_same = found["time"] == last.time
        if not is_same:
            raise StateError(f"message {last.sequence} is another one at the leader: reading again")

    async def _forget_deleted(self, last: int) -> None:
        """Forget what only a copy that lags behind the leader has up to ``last``: its key was deleted, and the marker
        is gone.

        A view that is continued needs none of this: since it was complete, no marker has gone.
        """
        assert self._snapshot is not None
        newest, subjects = self._snapshot.newest, f"{self._prefix}>"
        read = [self._prefix + key for key, entry in newest.items() if entry.revision <= last]
        for subject in await bulk_read.not_there(self._connection, self.name, subjects, read):
            key = subject.removeprefix(self._prefix)
            if newest[key].revision <= last:  # otherwise it was made again while the leader was asked
                del newest[key]

    async def _good_up_to(self, info: dict[str, Any]) -> int:
        """The sequence up to which the view is what the stream holds: what came after it is all that is to be read.

        0 if the view has to be read anew: it is empty; it is of another stream; the last message it has is not in the
        stream any more, as after a rollback (or because its key was changed again); or so much time has passed that
        markers of deleted keys may be gone. Clocks that are set do not hide that: both the leader's and this host's
        must agree. Raises :class:`StateError`.
        """
        if not self.applied or self._complete is None:  # nats-server refuses to read sequence 0
            return 0
        if info["created"] != self._created or self._last.sequence != self.applied:
            return 0
        by_leader = datetime.fromisoformat(info["ts"]) - datetime.fromisoformat(self._complete.by_leader)
        here = timedelta(seconds=since_boot() - self._complete.since_boot)
        if abs(by_leader) > MARKERS_KEPT or not timedelta(0) <= here <= MARKERS_KEPT:
            return 0
        try:
            found = await ask(self._connection, "find", self.name, {"seq": self.applied})
        except JetStreamError as error:
            if error.code != MESSAGE_NOT_FOUND:
                raise
            return 0
        message = found["message"]
        place = _Place(self.applied, message["time"], base64.b64decode(message.get("data", "")))
        return self.applied if place == self._last else 0

    def _note_complete(self, info: dict[str, Any]) -> None:
        if int(info["state"]["last_seq"]) <= self.applied:
            self._complete = _Complete(info["ts"], since_boot())

    async def _wait_stale(self) -> None:
        """Return when the view is stale. Raises :class:`StateError` if the leader is silent for long."""
        loop, stored = asyncio.get_running_loop(), 0
        answered = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                # Not ``wait_for``: with Python 3.11 it would forget a cancellation that comes with the event.
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._stale.wait()
                return
            before = self.applied
            try:
                info = await self._stream_info()
            except NobodyError:
                # STATE is closed for a restore, after which the stream may be another one.
                return
            except SilenceError:
                if loop.time() - answered > SILENT_SECONDS:
                    raise
                continue
            answered = loop.time()
            was_stored, stored = stored, int(info["state"]["last_seq"])
            if self.applied < was_stored or stored < before or info["created"] != self._created:
                log.warning("bucket %s: the stream is at %d, the view at %d", self.name, stored, self.applied)
                self._lacks = True
                return
            self._note_complete(info)

    async def _stream_info(self) -> dict[str, Any]:
        """The stream's info, from its leader. Raises :class:`StateError` if its configuration is not what hubs need."""
        try:
            info = await ask(self._connection, "info", self.name, {}, ANSWER_SECONDS)
        except JetStreamError as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            raise StateError(f"there is no stream {self._stream}: a deploy makes it") from None
        config = info["config"]
        if not config.get("subject_delete_marker_ttl"):
            raise StateError(f"the stream {self._stream} stores no markers of expired values: deploy to change that")
        if (config.get("republish") or {}).get("dest") != f"{self._followed}>":
            raise StateError(
                f"the stream {self._stream} does not republish its changes on {self._followed}>: deploy to change that"
            )
        if not config.get("allow_direct"):
            raise StateError(f"the stream {self._stream} cannot be read in batches: deploy to change that")
        self._max_bytes = int(config["max_bytes"])
        self._is_full = 0 < self._max_bytes * (1 - KEPT_ROOM) < info["state"]["bytes"]
        return info

    def _start_over(self) -> None:
        self.current.clear()
        self._stale.set()

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        if self._subscription is None or message._sid != self._subscription._id:
            return
        try:
            self._follow_message(message)
        except Exception:
            log.exception("bucket %s: a message could not be processed, starting over", self.name)
            self._complete, self._lacks = None, True
            self._start_over()

    def _follow_message(self, message: Msg) -> None:
        headers = message.headers or {}
        key, sequence = sys.intern(message.subject[len(self._followed) :]), int(headers["Nats-Sequence"])
        place = _Place(sequence, headers["Nats-Time-Stamp"], message.data)
        value = self._value(key, message.data, "KV-Operation" in headers or _EXPIRED in headers)
        snapshot = self._snapshot
        if snapshot is not None:
            snapshot.arrived.append(place)
            self._note(snapshot, key, value, sequence)
        elif sequence == self.applied + 1:
            if _EXPIRED in headers:
                self._on_expired(key)
            self._take(key, value, sequence)
            self._last = place
        elif sequence > self.applied:
            log.warning("bucket %s: %d arrived after %d, starting over", self.name, sequence, self.applied)
            self._lacks = True
            self._start_over()

    def _read(self, subject: str, data: bytes, is_marker: bool, sequence: int, stored: str) -> None:
        assert self._snapshot is not None
        if sequence > self._snapshot.last.sequence:
            self._snapshot.last = _Place(sequence, stored, data)
        key = sys.intern(subject[len(self._prefix) :])
        self._note(self._snapshot, key, self._value(key, data, is_marker), sequence)

    def _value(self, key: str, data: bytes, is_marker: bool) -> RecordT | None:
        """The value in a message; ``None`` for a marker of a deleted or expired value, and for an unreadable one."""
        if is_marker:
            return None
        try:
            return self._parse(key, data)
        except ValueError as error:
            log.error("bucket %s: the value of %s is unreadable: %s", self.name, key, type(error).__name__)
            return None

    def _note(self, snapshot: _Snapshot[RecordT], key: str, value: RecordT | None, sequence: int) -> None:
        before = snapshot.newest.get(key)
        if before is None or before.revision < sequence:
            snapshot.newest[key] = Entry(value, sequence)

    def _take(self, key: str, value: RecordT | None, sequence: int) -> None:
        self._on_change(key, value)
        if value is None:
            self.entries.pop(key, None)
            self._mark(key, sequence)
        else:
            self.entries[key] = Entry(value, sequence)
            self._markers.pop(key, None)
        self._advance(sequence)

    @property
    def deleted(self) -> list[str]:
        """The keys of which the stream still has the marker that they were deleted; the newest :data:`MARKERS`."""
        return list(self._markers)

    def _mark(self, key: str, sequence: int) -> None:
        self._markers.pop(key, None)
        self._markers[key] = sequence
        if len(self._markers) > MARKERS:
            del self._markers[next(iter(self._markers))]

    def _apply_snapshot(self, kept: int, last: int) -> None:
        """Bring the view, which is good up to ``kept``, to what was read up to ``last``, and report the changes.

        Raises :class:`StateError` if messages that arrived since have a gap.
        """
        snapshot, self._snapshot = self._snapshot, None
        assert snapshot is not None
        later = [place for place in snapshot.arrived if place.sequence > last]
        if [place.sequence for place in later] != list(range(last + 1, last + 1 + len(later))):
            raise StateError(f"a message after {last} was lost while the bucket was read: starting over")
        newest = sorted(snapshot.newest.items(), key=lambda item: item[1].revision)
        stored = {key for key, entry in newest if entry.value is not None}
        gone = [key for key, entry in newest if entry.value is None] if kept else list(self.entries)
        for key in gone:
            if key in self.entries and key not in stored:
                self._on_change(key, None)
                del self.entries[key]
        if not kept:
            self._markers, self._last = {}, _NOWHERE
        for key, entry in newest:
            if entry.value is None:
                self._mark(key, entry.revision)
                continue
            if self.get(key) != entry.value:
                self._on_change(key, entry.value)
            self.entries[key] = entry
            self._markers.pop(key, None)
        self._last = max(self._last, snapshot.last, *later)
        self.applied = 0
        self._advance(last + len(later))

    def _advance(self, sequence: int) -> None:
        self.applied = max(self.applied, sequence)
        for revision, future in self._waiting:
            if revision <= self.applied and not future.done():
                future.set_result(None)
        for future in self._changed:
            if not future.done():
                future.set_result(None)
