"""One KV bucket, held in memory and followed as it changes.

nats-py's watcher does not survive a restart of nats-server (its consumer is in the server's memory), so this follows
the bucket with a push consumer of its own and starts over whenever anything is amiss: after a reconnect, a gap in the
consumer's sequence, a missed heartbeat, or a stream whose last sequence is ahead of the view. While it starts over
the old view goes on answering, marked as not current.
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
from natskit.hub.program import StateSettings
from natskit.hub.records import Record
from natskit.jetstream import MESSAGE_NOT_FOUND, NAME_IN_USE, REQUEST_SECONDS, STREAM_NOT_FOUND, JetStreamError, api
from natskit.permissions import PROBE_BUCKET
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

RecordT = TypeVar("RecordT", bound=Record)

HEARTBEAT_SECONDS = 0.5
"""How often the server says that the consumer is alive; three missed ones start the watch over. A consumer lives on one
server of a cluster and dies with it, and until that is noticed the view may miss that somebody was locked out."""
CHECK_SECONDS = 5.0
LAG_SECONDS = 0.2
"""How far behind another hub's writes a view may be; usually it is a millisecond or two."""
MARKER_TTL = "1h"
"""Delete markers go away by themselves; a hub that was away for longer reads the bucket anew anyhow."""

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
    entries: dict[str, Entry[RecordT]]
    markers: dict[str, int]


async def ensure_probe_bucket(connection: Connection, replicas: int) -> None:
    """Make the bucket of :mod:`natskit.gate`, which may not do that itself, or give it another number of replicas.

    Raises :class:`StateError`.
    """
    # Values of servers that are gone must not stand in the way: the oldest makes room.
    await _stream(
        connection,
        PROBE_BUCKET,
        {"num_replicas": replicas, "max_bytes": 1 << 20, "max_msg_size": 256, "discard": "old"},
    )


async def _stream(connection: Connection, bucket: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """The stream of a bucket: made, if it is not there, and with the replicas and the room it should have.

    Raises :class:`StateError`.
    """
    stream = f"KV_{bucket}"
    config = {
        "name": stream,
        "subjects": [f"$KV.{bucket}.>"],
        # A full or read-only disk has to be noticed, by the probe as well.
        "storage": "file",
        "max_msgs_per_subject": 1,
        "allow_direct": True,
    } | wanted
    try:
        info = await api(connection, f"STREAM.INFO.{stream}", {})
    except JetStreamError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
        try:
            return await api(connection, f"STREAM.CREATE.{stream}", config)
        except JetStreamError as refused:
            if refused.code != NAME_IN_USE:  # another hub made it at the same moment
                raise
            info = await api(connection, f"STREAM.INFO.{stream}", {})
    # The platform has become a cluster, or has shrunk: what there is already is copied, or given up.
    changed = {key: config[key] for key in ("num_replicas", "max_bytes") if info["config"].get(key) != config[key]}
    return await api(connection, f"STREAM.UPDATE.{stream}", info["config"] | changed) if changed else info


class Bucket(Generic[RecordT]):
    """A view of one bucket. ``on_change(key, new)`` is called *before* the view takes the new value."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        parse: Callable[[str, bytes], RecordT],
        on_change: Callable[[str, RecordT | None], None],
        stored: StateSettings,
    ) -> None:
        self.name = name
        self.entries: dict[str, Entry[RecordT]] = {}
        self.applied = 0
        self.current = asyncio.Event()
        self._connection = connection
        self._parse = parse
        self._on_change = on_change
        self._stored = stored
        self._is_full = False
        self._markers: dict[str, int] = {}
        self._fill: _Fill[RecordT] | None = None
        self._fill_floor = 0
        self._delivered = 0
        self._heard = 0.0
        self._amiss = asyncio.Event()
        self._subscription: Subscription | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._changed: set[asyncio.Future[None]] = set()
        self._prefix = f"$KV.{name}."

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
        try:
            while True:
                self._amiss.clear()
                try:
                    await self._watch()
                    await self._guard()
                except (StateError, nats.errors.Error, OSError, ValueError) as error:
                    log.warning("bucket %s: %s", self.name, str(error) or type(error).__name__)
                    await asyncio.sleep(0.2)
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
        stream = f"KV_{self.name}"
        try:
            found = await api(self._connection, f"STREAM.MSG.GET.{stream}", {"last_by_subj": self._prefix + key})
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
            self._markers[key] = actual
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

    def _note_room(self, info: dict[str, Any]) -> None:
        self._is_full = info["state"]["bytes"] > info["config"]["max_bytes"] * (1 - KEPT_ROOM)

    def _no_room(self) -> RpcError:
        return RpcError(
            "limit",
            f"the platform has no room for more {self.name} ({self._stored.max_bytes} bytes): whoever runs it has to "
            "raise hub_state_max_bytes",
        )

    async def _reach(self, revision: int) -> None:
        if self.applied >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((revision, future))
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await future
        except TimeoutError:
            self._start_over()
            raise StateError(f"the write to {self.name} was stored, but this hub has not seen it yet") from None
        finally:
            self._waiting = [item for item in self._waiting if item[1] is not future]

    # ---- following

    async def _watch(self) -> None:
        wanted = {
            "num_replicas": self._stored.replicas,
            "max_bytes": self._stored.max_bytes,
            "max_msg_size": 64 * 1024,
            "discard": "new",
            "deny_delete": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
        }
        info = await _stream(self._connection, self.name, wanted)
        self._note_room(info)
        deliver = self._connection.new_inbox()
        self._fill, self._delivered = _Fill({}, {}), 0
        self._fill_floor = int(info["state"]["last_seq"])
        self._subscription = await self._connection.subscribe(
            deliver, cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        config = {
            "deliver_subject": deliver,
            "deliver_policy": "last_per_subject",
            "filter_subject": f"{self._prefix}>",
            "ack_policy": "none",
            "replay_policy": "instant",
            "max_deliver": 1,
            "flow_control": True,
            "idle_heartbeat": int(HEARTBEAT_SECONDS * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
        }
        self._heard = asyncio.get_running_loop().time()
        created = await api(
            self._connection, f"CONSUMER.CREATE.KV_{self.name}", {"stream_name": f"KV_{self.name}", "config": config}
        )
        if created.get("num_pending", 0) == 0 and self._delivered == 0:
            self._filled()

    async def _guard(self) -> None:
        """Return when the watch has to start over."""
        loop = asyncio.get_running_loop()
        ahead = False
        checked = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                # Not ``wait_for``: with Python 3.11 it would forget a cancellation that comes with the event.
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._amiss.wait()
                return
            if loop.time() - self._heard > 3 * HEARTBEAT_SECONDS:
                log.warning("bucket %s: no heartbeat, starting over", self.name)
                return
            if loop.time() - checked >= CHECK_SECONDS and self._fill is None:
                checked = loop.time()
                info = await api(self._connection, f"STREAM.INFO.KV_{self.name}", {})
                self._note_room(info)
                state = info["state"]
                was_ahead, ahead = ahead, int(state["last_seq"]) != self.applied
                if was_ahead and ahead:
                    log.warning("bucket %s: the stream is at %s, the view at %s", self.name, state, self.applied)
                    return

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
            await self._follow_message(message)
        except Exception:
            log.exception("bucket %s: a message was not understood, starting over", self.name)
            self._start_over()

    async def _follow_message(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        headers = message.headers or {}
        if headers.get("Status") == "100":
            answer = message.reply or headers.get("Nats-Consumer-Stalled")
            if answer:
                await self._connection.publish(answer, b"")
            elif headers.get("Nats-Last-Consumer", str(self._delivered)) != str(self._delivered):
                self._start_over()
            return
        # $JS.ACK.{stream}.{consumer}.{deliveries}.{stream seq}.{consumer seq}.{time}.{pending}, or with a domain.
        tokens = message.reply.split(".")
        sequence, delivered, pending = int(tokens[-4]), int(tokens[-3]), int(tokens[-1])
        if delivered != self._delivered + 1:
            self._start_over()
            return
        self._delivered = delivered
        self._take(message.subject[len(self._prefix) :], message.data, headers, sequence)
        if pending == 0 and self._fill is not None:
            self._filled()

    def _take(self, key: str, data: bytes, headers: dict[str, str], sequence: int) -> None:
        value: RecordT | None = None
        if "KV-Operation" not in headers and "Nats-Marker-Reason" not in headers:
            try:
                value = self._parse(key, data)
            except ValueError as error:
                log.error("bucket %s: the value of %s is unreadable: %s", self.name, key, type(error).__name__)
        fill = self._fill
        if fill is not None:
            if value is None:
                fill.markers[key] = sequence
            else:
                fill.entries[key] = Entry(value, sequence)
            return
        self._on_change(key, value)
        if value is None:
            self.entries.pop(key, None)
            self._markers[key] = sequence
        else:
            self.entries[key] = Entry(value, sequence)
            self._markers.pop(key, None)
        self._advance(sequence)

    def _filled(self) -> None:
        """The whole bucket was read: compare with the old view, then replace it."""
        fill, self._fill = self._fill, None
        assert fill is not None
        for key in [key for key in self.entries if key not in fill.entries]:
            self._on_change(key, None)
            del self.entries[key]
        for key, entry in fill.entries.items():
            if self.get(key) != entry.value:
                self._on_change(key, entry.value)
            self.entries[key] = entry
        self._markers = fill.markers
        newest = max((e.revision for e in fill.entries.values()), default=0)
        self.applied = 0
        self.current.set()
        self._advance(max(self._fill_floor, newest, max(fill.markers.values(), default=0)))

    def _advance(self, sequence: int) -> None:
        self.applied = max(self.applied, sequence)
        for revision, future in self._waiting:
            if revision <= self.applied and not future.done():
                future.set_result(None)
        for future in self._changed:
            if not future.done():
                future.set_result(None)
