"""The streams of documents: put a message, read many, purge. Nobody else reads or writes them.

The subjects are ``{kind}.{shard}.{project_id}[.{document_id}]`` (:data:`natskit.bus.permissions.DOCUMENT_KINDS`).
"""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from natskit.bus.connection import Connection
from natskit.bus.document_record import Update, decode
from natskit.bus.jetstream import MESSAGE_NOT_FOUND, JetStreamError, api
from natskit.bus.permissions import DOCUMENT_SHARDS, DOCUMENT_STREAMS
from natskit.bus.request_many import request_many
from natskit.errors import StateError
from natskit.keeper import thinned, work
from natskit.rpc import RpcError

PUT_SECONDS = 5.0
READ_SECONDS = 10.0
STALL_SECONDS = 2.0
BATCH = 1000
BATCH_BYTES = 8 * 1024**2
REST_BYTES = 8192
"""Of a message, besides the documents and updates in it."""
PAGES = 8
"""Pages of thinned history read at a time."""
MOST_INDEXES = 1000
"""Documents whose pages a keeper knows the places of."""
_WRONG_LAST_SEQUENCE = (10071, 10164)
_NO_ROOM = (10047, 10077, 10023)
_NONE, _END = "404", "204"


class OvertakenError(StateError):
    """Another keeper stored something on this subject first."""


@dataclass(frozen=True)
class Place:
    """Where a document's messages are."""

    project: str
    document: str

    @property
    def shard(self) -> int:
        """The number of the stream, which is the same for all documents of a project."""
        return zlib.crc32(self.project.encode()) % DOCUMENT_SHARDS

    @property
    def stream(self) -> str:
        """The name of the stream."""
        return DOCUMENT_STREAMS[self.shard]

    def subject(self, kind: str) -> str:
        """The subject of its ``doc`` (updates), ``snap`` (snapshots) or ``mark`` (names of versions)."""
        return f"{kind}.{self.shard}.{self.project}.{self.document}"

    @property
    def pages(self) -> str:
        """The subject of its thinned history."""
        return f"{self.subject('snap')}.thin.pages"

    @property
    def paths(self) -> str:
        """The subject of the paths of the project's documents."""
        return f"map.{self.shard}.{self.project}"


class Store:
    """The documents' streams, through a connection as the user ``keeper`` of DOCS."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._pages: OrderedDict[Place, list[tuple[int, int, int]]] = OrderedDict()
        """Of documents whose history was thinned out: after which sequence each page goes on, its own, and the time of
        its first row."""

    @property
    def max_payload(self) -> int:
        """The most bytes of one message."""
        return self.connection.max_payload

    async def put(self, subject: str, payload: bytes, expected: int | None, *, replace: bool = False) -> int:
        """Store a message if the last of its subject has the sequence ``expected``. Returns its sequence.

        With ``replace``, the earlier messages of the subject go. Raises :class:`OvertakenError`, :class:`RpcError` if
        there is no room, and :class:`StateError` if nobody knows whether it is stored.
        """
        headers = {} if expected is None else {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        if replace:
            headers["Nats-Rollup"] = "sub"
        try:
            answer = await self.connection.request(subject, payload, timeout=PUT_SECONDS, headers=headers)
        except nats.errors.Error as error:
            raise StateError(f"the document could not be written ({type(error).__name__})") from error
        ack = json.loads(answer.data)
        if "error" not in ack:
            return int(ack["seq"])
        refusal = ack["error"]
        if refusal.get("err_code") in _WRONG_LAST_SEQUENCE:
            raise OvertakenError(str(refusal.get("description", "")))
        if refusal.get("err_code") in _NO_ROOM:
            raise RpcError(
                "limit",
                "the platform has no room for more in its documents: its operator has to raise keeper_max_bytes",
            )
        raise StateError(f"the document could not be written: {refusal.get('description')}")

    @property
    def answer_bytes(self) -> int:
        """How many bytes of a document fit into an answer, where they are in base64."""
        return (self.max_payload - REST_BYTES) * 3 // 4

    async def updates(self, place: Place, after: int, limit: int = BATCH) -> tuple[list[Update], bool]:
        """At most ``limit`` updates after a sequence, oldest first, and whether there are more."""
        messages, more = await self._batch(place, place.subject("doc"), after, limit)
        found = [decode(message.data, message.headers) for message in messages]
        last = after
        for number, update in enumerate(found):
            if update.previous > last:  # what is between was thinned out
                old = await self._thinned(place, last, update.previous, limit - number)
                if not old:
                    raise StateError("the document's history could not be read; try again")
                if old[-1].sequence < update.previous:
                    return [*found[:number], *old], True
                rest = found[number:]
                pairs = enumerate(itertools.pairwise(rest), 1)
                end = next((at for at, (one, other) in pairs if other.previous > one.sequence), len(rest))
                found = [*found[:number], *old, *rest[:end]]
                return found[:limit], more or end < len(rest) or len(found) > limit
            last = update.sequence
        return found, more

    async def stored(self, place: Place, after: int, until: int) -> tuple[list[Update], bool]:
        """Some updates after a sequence and up to another one that are not purged, and whether there are more."""
        messages, more = await self._batch(place, place.subject("doc"), after, BATCH)
        found = [decode(message.data, message.headers) for message in messages if _sequence(message) <= until]
        return found, more and len(found) == len(messages)

    async def first_update(self, place: Place) -> Update | None:
        """The oldest update that was not thinned out."""
        messages, _ = await self._batch(place, place.subject("doc"), 0, 1)
        return decode(messages[0].data, messages[0].headers) if messages else None

    async def _thinned(self, place: Place, after: int, until: int, limit: int) -> list[Update]:
        """At most ``limit`` merged updates after a sequence, up to another one, oldest first; not all if they are
        large."""
        found: list[Update] = []
        read = 0
        async for update in self._all_thinned(place, after):
            if update.sequence > until or len(found) >= limit or read >= BATCH_BYTES // 2:
                break
            found.append(update)
            read += len(update.update)
        return found

    async def _all_thinned(self, place: Place, after: int) -> AsyncIterator[Update]:
        known = self._pages.setdefault(place, [])
        self._pages.move_to_end(place)
        while len(self._pages) > MOST_INDEXES:
            self._pages.popitem(last=False)
        own = max((own for begin, own, _ in known if begin <= after), default=1) - 1
        more = True
        while more:
            pages, more = await self._batch(place, place.pages, own, PAGES)
            for page in pages:
                own = _sequence(page)
                work.handled(len(page.data))
                begin, end = thinned.bounds(page.data)
                rows = list(thinned.read(page.data)) if end > after or not known or begin > known[-1][0] else []
                if rows and (not known or begin > known[-1][0]):
                    known.append((begin, own, rows[0].time))
                for update in rows:
                    if update.sequence > after:
                        yield update

    def forget_pages(self) -> None:
        """The streams may have been restored from a backup."""
        self._pages.clear()

    async def purge_until(self, place: Place, until: int, size: int) -> int:
        """Remove the updates up to a sequence from the disks, ``size`` bytes that are in pages, and all but the newest
        snapshot of that time. Returns how many bytes became free; nothing for what another keeper has just removed.
        Raises :class:`StateError`."""
        free = size if await self._purge_before(place, place.subject("doc"), until + 1) else 0
        if (found := await self.snapshot(place, until)) is None:
            return free
        own, head = found
        parts: list[int] = json.loads(head)["parts"]
        freed, last, more = 0, 0, True
        while more:
            heads, more = await self._batch(place, place.subject("snap"), last, PAGES)
            for message in heads:
                last = _sequence(message)
                freed += int(json.loads(message.data)["bytes"]) if last < own else 0
            more = more and last < own
        await self._purge_before(place, place.subject("snap"), own)
        removed = await self._purge_before(place, f"{place.subject('snap')}.*", min([own, *parts]))
        return free + (freed if removed else 0)

    async def _purge_before(self, place: Place, subject: str, sequence: int) -> int:
        """Returns how many messages this has removed."""
        answer = await api(self.connection, f"STREAM.PURGE.{place.stream}", {"filter": subject, "seq": sequence})
        return int(answer.get("purged", 0))

    async def projects(self) -> list[str]:
        """The projects that have documents. Raises :class:`StateError`."""
        found: set[str] = set()
        for shard, stream in enumerate(DOCUMENT_STREAMS):
            offset, total = 0, 1
            while offset < total:
                question = {"subjects_filter": f"map.{shard}.*", "offset": offset}
                answer = await api(self.connection, f"STREAM.INFO.{stream}", question)
                subjects = answer["state"].get("subjects") or {}
                found |= {subject.split(".")[2] for subject in subjects}
                total, offset = int(answer.get("total", 0)), offset + len(subjects)
                if not subjects:
                    break
        return sorted(found - {"-"})

    async def marks(self, place: Place) -> list[bytes]:
        """The names of versions, as they were stored."""
        found: list[bytes] = []
        after, more = 0, True
        while more:
            messages, more = await self._batch(place, place.subject("mark"), after, BATCH)
            found += [message.data for message in messages]
            after = _sequence(messages[-1]) if messages else 0
        return found

    async def snapshot(self, place: Place, until: int | None = None) -> tuple[int, bytes] | None:
        """The index of the newest snapshot that was stored up to a sequence, and the index' own sequence."""
        question: dict[str, Any] = {"multi_last": [place.subject("snap")]}
        found = await self._ask(place, question | ({} if until is None else {"up_to_seq": until}))
        return (_sequence(found[-1]), found[-1].data) if found else None

    async def message(self, place: Place, sequence: int) -> bytes:
        """The message with a sequence. Raises :class:`StateError` if there is none."""
        found = await self._ask(place, {"seq": sequence, "batch": 1, "next_by_subj": ">"})
        if not found or _sequence(found[0]) != sequence:
            raise StateError(f"there is no message {sequence} in {place.stream}")
        return bytes(found[0].data)

    async def update_until(self, place: Place, *, sequence: int | None = None, time: int | None = None) -> int:
        """The sequence of the last update up to a sequence or a time (milliseconds since 1970); 0 if there is none."""
        question: dict[str, Any] = {"multi_last": [place.subject("doc")]}
        if sequence is not None:
            question["up_to_seq"] = sequence
        if time is not None:
            question["up_to_time"] = datetime.fromtimestamp(time / 1000, UTC).isoformat().replace("+00:00", "Z")
        found = await self._ask(place, question)
        if found or (sequence is None and time is None):
            return _sequence(found[-1]) if found else 0
        # The rows of the page that has it, as far as the places of pages are known.
        known, after, last = self._pages.get(place, []), 0, 0
        for begin, _, first in known:
            if (sequence is not None and begin < sequence) or (time is not None and first <= time):
                after = begin
        async for update in self._all_thinned(place, after):
            if (sequence is not None and update.sequence > sequence) or (time is not None and update.time > time):
                break
            last = update.sequence
        return last

    async def is_moment(self, place: Place, sequence: int) -> bool:
        """Whether an update that was stored is one still, and was not merged with later ones: by the stream's leader,
        also while a page is stored and the updates in it are not purged yet."""
        _, page = await self.newest(place, place.pages)
        begin, until = thinned.bounds(page) if page else (0, 0)
        if not begin < sequence <= until:
            return sequence > until or await self.update_until(place, sequence=sequence) == sequence
        return any(update.sequence == sequence for update in thinned.read(page))

    async def newest(self, place: Place, subject: str) -> tuple[int, bytes]:
        """The sequence and the content of a subject's newest message, by the stream's leader; ``(0, b"")`` if none."""
        try:
            answer = await api(self.connection, f"STREAM.MSG.GET.{place.stream}", {"last_by_subj": subject})
        except JetStreamError as error:
            if error.code != MESSAGE_NOT_FOUND:
                raise
            return 0, b""
        message = answer["message"]
        return int(message["seq"]), base64.b64decode(message.get("data", ""))

    async def purge(self, place: Place) -> None:
        """Remove all messages of a document from the disks. Raises :class:`StateError`.

        The updates first: who stores a snapshot or a name meanwhile looks afterwards whether there still are any.
        """
        for subject in (*(place.subject(kind) for kind in ("doc", "mark", "snap")), place.subject("snap") + ".>"):
            await api(self.connection, f"STREAM.PURGE.{place.stream}", {"filter": subject})

    async def purge_project(self, project: str) -> bool:
        """Remove all messages of a project from the disks, its paths last; returns whether there were any.

        Raises :class:`StateError`.
        """
        place = Place(project, "-")
        subjects = [f"{kind}.{place.shard}.{project}.>" for kind in ("doc", "mark", "snap")]
        purged = 0
        for subject in (*subjects, place.paths):
            answer = await api(self.connection, f"STREAM.PURGE.{place.stream}", {"filter": subject})
            purged += int(answer.get("purged", 0))
        if not purged:
            return False
        # nats-server forgets the time of the newest message if that is purged and nothing is written after it. One
        # message a stream stays, of no project.
        await self.put(f"map.{place.shard}.-", b"", None, replace=True)
        return True

    async def _batch(self, place: Place, subject: str, after: int, limit: int) -> tuple[list[Msg], bool]:
        messages: list[Msg] = []
        read = 0
        while True:
            size = min(BATCH, limit - len(messages))
            question = {"seq": after + 1, "batch": size, "max_bytes": BATCH_BYTES, "next_by_subj": subject}
            found, pending = await self._read(place, question)
            messages += found
            read += sum(len(message.data) for message in found)
            if not found or not pending or len(messages) >= limit or read >= BATCH_BYTES // 2:
                return messages, bool(pending)
            after = _sequence(found[-1])

    async def _ask(self, place: Place, question: dict[str, Any]) -> list[Msg]:
        return (await self._read(place, question))[0]

    async def _read(self, place: Place, question: dict[str, Any]) -> tuple[list[Msg], int]:
        """The messages of one batch (ADR-31), and how many more there are. Raises :class:`StateError`."""

        def is_last(message: Msg) -> bool:
            return "Status" in (message.headers or {})

        try:
            answers = await request_many(
                self.connection,
                f"$JS.API.DIRECT.GET.{place.stream}",
                json.dumps(question).encode(),
                seconds=READ_SECONDS,
                stall=STALL_SECONDS,
                is_last=is_last,
            )
        except nats.errors.Error as error:
            raise StateError(f"the document could not be read ({type(error).__name__})") from error
        headers: dict[Any, str] = (answers[-1].headers or {}) if answers else {}
        if headers.get("Status") == _NONE:
            return [], 0
        if headers.get("Status") != _END:
            raise StateError(f"the document could not be read ({headers.get('Status', 'no answer')})")
        return answers[:-1], int(headers.get("Nats-Num-Pending", 0))


def _sequence(message: Msg) -> int:
    return int((message.headers or {})["Nats-Sequence"])
