"""One KV bucket, held in memory and followed as it changes.

nats-server publishes each message that it has stored once more (:mod:`natskit.streams`), and a hub follows that with an
ordinary subscription: a hub may make no consumer (natskit/permissions.py). Such a message may be lost, so its sequence
has to be the next one, and the stream's leader is asked twice a second for its last. Whenever anything is amiss (a
reconnect, a gap, a stream whose last sequence is ahead of the view, a leader that is silent for long) the view starts
over: it subscribes, then reads the whole bucket, message by message, from the leader. Meanwhile the old view goes on
answering, marked as not current.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from natskit.connection import Connection
from natskit.errors import StateError
from natskit.hub import filling
from natskit.hub.records import Record
from natskit.jetstream import MESSAGE_NOT_FOUND, REQUEST_SECONDS, STREAM_NOT_FOUND, JetStreamError, SilenceError, api
from natskit.permissions import state_subject
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

RecordT = TypeVar("RecordT", bound=Record)

CHECK_SECONDS = 0.5
"""How often the stream's leader is asked for its last sequence. What it had then has to be in the view at the next
look: a lost message may say that somebody was locked out."""
ANSWER_SECONDS = 1.0
"""How long the leader may take for that. Its answer tells a view that missed something within a second and a half."""
SILENT_SECONDS = 10.0
"""How long the view counts without an answer. Where there is no leader nothing can be written that it could miss, and
electing another takes 4 to 9 s; only a leader on the other side of a cut network may write meanwhile."""
LONGEST_PAUSE = 0.5
LAG_SECONDS = 0.2
"""How far behind another hub's writes a view may be; usually it is a millisecond or two."""
MARKER_TTL = "1h"
"""Delete markers go away by themselves; a hub that was away for longer reads the bucket anew anyhow."""

MARKERS = 4096
"""Delete markers that a view keeps, the newest: they spare whoever makes such a key again one question. nats-server
refuses a write that expects no marker where there is one, and says its sequence (``_catch_up``)."""

KEPT_ROOM = 1 / 8
"""The part of a bucket that is for changing and deleting what there is already, for which nats-server needs room too:
in a full stream nobody could be signed out or locked out."""

_WRONG_LAST_SEQUENCE = (10071, 10164)
_NO_ROOM = 10077


class ConflictError(StateError):
    """Somebody else wrote the key first."""


@dataclass(frozen=True)
class Entry(Generic[RecordT]):
    """A value and the revision it was written as."""

    value: RecordT
    revision: int


@dataclass
class _Fill(Generic[RecordT]):
    """The newest of each key while the bucket is read, and what arrived meanwhile, by its sequence."""

    newest: dict[str, tuple[int, RecordT | None]]
    arrived: list[int]


class Bucket(Generic[RecordT]):
    """A view of one bucket. ``on_change(key, new)`` is called *before* the view takes the new value."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        parse: Callable[[str, bytes], RecordT],
        on_change: Callable[[str, RecordT | None], None],
    ) -> None:
        self.name = name
        self.entries: dict[str, Entry[RecordT]] = {}
        self.applied = 0
        self.current = asyncio.Event()
        self.problem = ""
        """Why the view is not current, in words; empty when it is, or is about to be."""
        self._connection = connection
        self._parse = parse
        self._on_change = on_change
        self._stream = f"KV_{name}"
        self._max_bytes = 0
        self._is_full = False
        self._markers: dict[str, int] = {}
        self._fill: _Fill[RecordT] | None = None
        self._amiss = asyncio.Event()
        self._subscription: Subscription | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._changed: set[asyncio.Future[None]] = set()
        self._prefix = f"$KV.{name}."
        self._followed = state_subject(name)

    def get(self, key: str) -> RecordT | None:
        """The value of a key, as this hub sees it."""
        entry = self.entries.get(key)
        return entry.value if entry else None

    def forget(self, key: str) -> None:
        """Drop a key that the server has dropped by itself."""
        if key in self.entries:
            self._on_change(key, None)
            del self.entries[key]

    async def follow(self) -> None:
        """Follow the bucket until cancelled."""
        undo = self._connection.on_reconnect(self._start_over)
        pause = 0.0
        try:
            while True:
                self._amiss.clear()
                try:
                    created = await self._watch()
                    self.problem, pause = "", 0.0
                    await self._guard(created)
                except (StateError, nats.errors.Error, OSError, ValueError) as error:
                    reason = str(error) or type(error).__name__
                    level = logging.DEBUG if reason == self.problem else logging.WARNING
                    log.log(level, "bucket %s: %s", self.name, reason)
                    self.current.clear()
                    self.problem, pause = reason, min(LONGEST_PAUSE, 2 * pause + 0.1)
                    with contextlib.suppress(TimeoutError):  # no pause for a connection that is back
                        async with asyncio.timeout(pause):
                            await self._amiss.wait()
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
        """The value of a key that another hub may have written a moment ago: a missing one is given a little time."""
        deadline = asyncio.get_running_loop().time() + LAG_SECONDS
        while key not in self.entries and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await self.changed(left)
        return self.get(key)

    async def confirm(self, key: str) -> None:
        """Wait until this view has what the stream has for a key, whichever hub wrote it. Raises :class:`StateError`.

        For an answer that says "it is so already", which no write would otherwise prove true.
        """
        try:
            found = await api(self._connection, f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": self._prefix + key})
        except JetStreamError as error:
            if error.code != MESSAGE_NOT_FOUND:
                raise
            return  # never written, or deleted an hour ago
        await self._reach(int(found["message"]["seq"]))

    async def change(
        self, key: str, mutate: Callable[[RecordT | None], RecordT | None], ttl: str | None = None
    ) -> RecordT | None:
        """Compare-and-set with what ``mutate`` makes of the value; ``None`` deletes. Retries when others were first.

        Where nothing is to change, the stream is asked whether that is still so. Returns when this hub's view has the
        new value. What ``mutate`` raises goes to the caller. Raises :class:`StateError`, and :class:`RpcError` when
        there is no room for another key.
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
        """A write lost: wait until the view has what won, or forget a marker that expired."""
        found = re.search(r"(\d+)$", conflict)
        if found is None:
            # A cluster says so without a number while another write to the key is on its way to the replicas.
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
            headers |= {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": MARKER_TTL}
        elif ttl:
            headers["Nats-TTL"] = ttl
        body = value.model_dump_json().encode() if value is not None else b""
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
            f"the platform has no room for more {self.name} ({self._max_bytes} bytes): whoever runs it has to raise "
            "hub_state_max_bytes",
        )

    async def _reach(self, revision: int) -> None:
        try:
            await self._applied(revision, REQUEST_SECONDS)
        except TimeoutError:
            self._start_over()
            raise StateError(f"the write to {self.name} was stored, but this hub has not seen it yet") from None

    async def _applied(self, revision: int, seconds: float) -> None:
        """Wait until the view has what was written as ``revision``. Raises :class:`TimeoutError`."""
        if self.applied >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((revision, future))
        try:
            async with asyncio.timeout(seconds):
                await future
        finally:
            self._waiting = [item for item in self._waiting if item[1] is not future]

    # ---- following

    async def _watch(self) -> str:
        """Subscribe, read the whole bucket, and be current; when the stream was made, which tells it from another."""
        self._fill = _Fill({}, [])
        self._subscription = await self._connection.subscribe(
            f"{self._followed}>", cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await self._connection.flush(int(REQUEST_SECONDS))
        info = await self._look()
        first, last = int(info["state"]["first_seq"]), int(info["state"]["last_seq"])
        await filling.read(self._connection, self._stream, f"{self._prefix}>", max(1, first), last, self._read)
        self._filled(last)
        # What was written meanwhile has to arrive: on a cluster, the leader's server hears of a subscription later.
        stored = int((await self._look())["state"]["last_seq"])
        try:
            await self._applied(stored, ANSWER_SECONDS)
        except TimeoutError:
            raise StateError(f"the stream is at {stored}, the view at {self.applied}: starting over") from None
        if not self._amiss.is_set():
            self.current.set()
        return str(info["created"])

    async def _guard(self, created: str) -> None:
        """Return when the view has to start over. Raises :class:`StateError` when the leader is silent for long."""
        loop, stored = asyncio.get_running_loop(), 0
        answered = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                # Not ``wait_for``: with Python 3.11 it would forget a cancellation that comes with the event.
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._amiss.wait()
                return
            before = self.applied
            try:
                info = await self._look()
            except SilenceError:
                if loop.time() - answered > SILENT_SECONDS:
                    raise
                continue
            answered = loop.time()
            was_stored, stored = stored, int(info["state"]["last_seq"])
            if self.applied < was_stored or stored < before or info["created"] != created:
                log.warning("bucket %s: the stream is at %d, the view at %d", self.name, stored, self.applied)
                return

    async def _look(self) -> dict[str, Any]:
        """The stream, as its leader says. Raises :class:`StateError` when it is not as hubs need it."""
        try:
            info = await api(self._connection, f"STREAM.INFO.{self._stream}", {}, ANSWER_SECONDS)
        except JetStreamError as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            raise StateError(f"there is no stream {self._stream}: a deploy makes it") from None
        config = info["config"]
        if (config.get("republish") or {}).get("dest") != f"{self._followed}>":
            raise StateError(
                f"the stream {self._stream} does not publish its changes on {self._followed}>: a deploy sees to that"
            )
        self._max_bytes = int(config["max_bytes"])
        self._is_full = 0 < self._max_bytes * (1 - KEPT_ROOM) < info["state"]["bytes"]
        return info

    def _start_over(self) -> None:
        self.current.clear()
        self._amiss.set()

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
            log.exception("bucket %s: a message was not understood, starting over", self.name)
            self._start_over()

    def _follow_message(self, message: Msg) -> None:
        headers = message.headers or {}
        key, sequence = message.subject[len(self._followed) :], int(headers["Nats-Sequence"])
        fill = self._fill
        if fill is not None:
            fill.arrived.append(sequence)
            self._note(fill, key, self._value(key, message.data, headers), sequence)
        elif sequence == self.applied + 1:
            self._take(key, self._value(key, message.data, headers), sequence)
        elif sequence > self.applied:
            log.warning("bucket %s: %d arrived after %d, starting over", self.name, sequence, self.applied)
            self._start_over()

    def _read(self, subject: str, data: bytes, headers: dict[str, str], sequence: int) -> None:
        assert self._fill is not None
        key = subject[len(self._prefix) :]
        self._note(self._fill, key, self._value(key, data, headers), sequence)

    def _value(self, key: str, data: bytes, headers: dict[str, str]) -> RecordT | None:
        """What a message says; ``None`` if it is a delete marker, or unreadable."""
        if "KV-Operation" in headers:
            return None
        try:
            return self._parse(key, data)
        except ValueError as error:
            log.error("bucket %s: the value of %s is unreadable: %s", self.name, key, type(error).__name__)
            return None

    def _note(self, fill: _Fill[RecordT], key: str, value: RecordT | None, sequence: int) -> None:
        if key not in fill.newest or fill.newest[key][0] < sequence:
            fill.newest[key] = sequence, value

    def _take(self, key: str, value: RecordT | None, sequence: int) -> None:
        self._on_change(key, value)
        if value is None:
            self.entries.pop(key, None)
            self._mark(key, sequence)
        else:
            self.entries[key] = Entry(value, sequence)
            self._markers.pop(key, None)
        self._advance(sequence)

    def _mark(self, key: str, sequence: int) -> None:
        self._markers.pop(key, None)
        self._markers[key] = sequence
        if len(self._markers) > MARKERS:
            del self._markers[next(iter(self._markers))]

    def _filled(self, last: int) -> None:
        """The whole bucket was read, up to ``last``: compare with the old view, then replace it.

        Raises :class:`StateError` when what was written since has a gap.
        """
        fill, self._fill = self._fill, None
        assert fill is not None
        later = [sequence for sequence in fill.arrived if sequence > last]
        if later != list(range(last + 1, last + 1 + len(later))):
            raise StateError(f"a message after {last} was lost while the bucket was read: starting over")
        entries = {key: Entry(value, seq) for key, (seq, value) in fill.newest.items() if value is not None}
        for key in [key for key in self.entries if key not in entries]:
            self._on_change(key, None)
            del self.entries[key]
        for key, entry in entries.items():
            if self.get(key) != entry.value:
                self._on_change(key, entry.value)
            self.entries[key] = entry
        self._markers = {}
        for sequence, key in sorted((seq, key) for key, (seq, value) in fill.newest.items() if value is None):
            self._mark(key, sequence)
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
