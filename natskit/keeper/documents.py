"""The documents that a keeper holds in memory, and what can be done with them.

Several keepers may hold the same document. What orders their updates is the stream: a keeper stores an update only
after the last one it knows (``Nats-Expected-Last-Subject-Sequence``), and applies first what others stored before.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from base64 import b64encode
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from natskit import json_text
from natskit.bus import yjs_format
from natskit.bus.document_record import OWN_BYTES, Update, decode, encode
from natskit.bus.permissions import DISK
from natskit.bus.yjs_format import BadUpdateError
from natskit.errors import StateError
from natskit.keeper import paths, work
from natskit.keeper.config import KeeperProgram
from natskit.keeper.document import EMPTY_UPDATE, RECORD_OVERHEAD, Document, digest_of
from natskit.keeper.rate import Rate
from natskit.keeper.store import OvertakenError, Place, Store
from natskit.process.lifecycle import cancel
from natskit.rpc import RpcError
from natskit.text_changes import Change

log = logging.getLogger(__name__)

CLASHES = 5
"""How often an update is looked at anew because another keeper stored a part of it, or its number, first."""
STORE_SECONDS = 8.0
"""How long a keeper tries to store an update."""
REPLICA_ATTEMPTS, REPLICA_PAUSE = 40, 0.05
"""How often, and after how many seconds, a replica that lags is asked again."""
SNAPSHOT_PART = 768 * 1024
SNAPSHOT_SECONDS = 30.0
"""The longest that a snapshot may be on its way: the documents of a deleted project are purged again after that."""
OVERHEAD = 32 * 1024
"""What an open document takes without any text: its subscription, its lock and what Yjs needs."""
MOST_ARRIVED_BYTES = 256 * 1024
MOST_ARRIVED = 300
"""Updates of others that a keeper remembers for a document that it is not asked about. It reads what is beyond that."""
MOST_CLIENTS = 10_000
"""Client ids in a document. Each update costs time by their number, and by more than its own bytes."""
PAGE = 2000
"""Updates read at a time where all of a history is read."""


class _ClashError(StateError):
    """Another keeper stored something first that this update does not go with."""


@dataclass(frozen=True)
class Base:
    """A text of a document that an agent changes."""

    sequence: int
    """When it was the document's."""
    sha256: str
    """Its digest, by which a caller proves that it knows it."""
    is_notebook: bool
    """Whether it is that of the document's cells."""


class Documents:
    """All documents, as this keeper sees them."""

    def __init__(self, store: Store, program: KeeperProgram, clock: Callable[[], float] = time.time) -> None:
        """``clock`` tells seconds since 1970."""
        self.store = store
        self._clock = clock
        self.limits = paths.Limits(program.max_documents, program.max_project_bytes)
        self.retention = paths.Retention(program.thin_after_days, program.thin_to)
        """Of projects that have none of their own."""
        self.rate = Rate(program.account_bytes)
        self._program = program
        self._open: OrderedDict[Place, Document] = OrderedDict()
        self._snapshots: dict[Place, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._ignore_reconnects = store.connection.on_reconnect(self._begin_anew)

    async def close(self) -> None:
        """Stop what goes on in the background."""
        self._ignore_reconnects()
        await cancel([*self._snapshots.values(), *self._leaving])

    @asynccontextmanager
    async def use(self, place: Place, newest: int = 0) -> AsyncIterator[Document]:
        """The document, up to date as far as this keeper can know, for the caller alone. ``newest`` is a sequence that
        the caller knows of.

        Raises :class:`RpcError` if there is none, and :class:`StateError`.
        """
        while True:
            document = self._open.setdefault(place, Document(place))
            async with document.lock:
                if self._open.get(place) is not document:
                    continue
                try:
                    if not document.is_loaded:
                        await self._load(document)
                        work.handled(document.snapshot_bytes + work.READ_FACTOR * document.bytes_since)
                    else:
                        await self._take_arrived(document)
                        if document.sequence < newest:  # an event was missed
                            await self._read_on(document)
                except BaseException:
                    await self._forget(document)
                    raise
                if self._open.get(place) is not document:  # the connection was lost meanwhile
                    await self._forget(document)
                    continue
                self._open.move_to_end(place)
                yield document
                return

    async def update(self, place: Place, update: Update) -> Update:
        """Store an update, and return it with its sequence. One that is stored already is not stored again.

        Raises :class:`RpcError` if it is no update, not complete, not new, or too large, and :class:`StateError` if it
        could not be stored.
        """
        for _ in range(CLASHES):
            with suppress(_ClashError):
                return await self._update(place, update)
        raise StateError("the document is being changed by others; try again")

    async def _update(self, place: Place, update: Update) -> Update:
        async with self.use(place) as document:
            if (sent := document.sent(update)) is not None and update.number <= sent.number:
                if update.number == sent.number and digest_of(update.update) == sent.digest:
                    return replace(update, sequence=sent.sequence, previous=sent.previous, time=sent.time)
                raise RpcError(
                    "conflict",
                    f"client {update.client} has sent number {sent.number} already, with other bytes: open the "
                    "document again, as a new client",
                    **_state(document),
                )
            await self._check(document, update.update)
            for client in (update.client, *yjs_format.read(update.update).added):
                if document.owners.get(client, update.author) != update.author:
                    raise RpcError("forbidden", f"client id {client} is another account's: open the document again")
            self.rate.check(payer(place, update.author))
            await self._reserve(document, update.update)
            try:
                document.try_update(update.update)
                self._check_size(document, update.update)
                return await self._store(document, update)
            except BadUpdateError as error:
                await self._forget(document)
                raise _not_an_update(error) from None
            except BaseException:
                await self._forget(document)  # it may hold what is not stored
                raise

    async def restore(self, place: Place, author: str, wanted: Document) -> Update:
        """Make the text or the cells of a document what they were, by an edit of the author."""
        self.rate.check(payer(place, author))
        async with self.use(place) as document:
            try:
                client = document.doc.client_id
                work.handled(2 * document.size)
                made = document.restore(wanted)
                update = Update(author, client, 1, document.sequence, self._now(), made or EMPTY_UPDATE)
                if (sent := document.sent(update)) is not None:
                    update = replace(update, number=sent.number + 1)
                self._check_size(document, update.update)
                await self._reserve(document, update.update)
                return await self._store(document, update)
            except BaseException:
                await self._forget(document)
                raise

    async def edit(self, place: Place, given: Update, base: Base, changes: list[Change]) -> Update:
        """Store changes of the text as it was at ``base``, merged with what came since. Raises :class:`RpcError` and
        :class:`StateError`, as :meth:`update`.
        """
        self.rate.check(payer(place, given.author))
        for _ in range(CLASHES):
            with suppress(_ClashError):
                return await self._edit(place, given, base, changes)
        raise StateError("the document is being changed by others; try again")

    async def _edit(self, place: Place, given: Update, base: Base, changes: list[Change]) -> Update:
        async with self.use(place) as document:
            document.check_fits_file()
            if (sent := document.sent(given)) is not None and given.number <= sent.number:
                if given.number == sent.number:
                    return replace(given, sequence=sent.sequence, previous=sent.previous, time=sent.time)
                raise RpcError("conflict", f"client {given.client} has sent number {sent.number} already")
            if document.owners.get(given.client, given.author) != given.author:
                raise RpcError("forbidden", f"client id {given.client} is another account's: use another one")
            before = document if document.sequence == base.sequence else await self.moment(place, base.sequence)
            before.check_fits_file()
            work.handled(2 * before.size)  # and a copy
            if hashlib.sha256(before.file_text(base.is_notebook).encode()).hexdigest() != base.sha256:
                raise RpcError("conflict", f"the text at sequence {base.sequence} is another one: read it again")
            update = replace(given, update=before.changed(given.client, changes, base.is_notebook))
            await self._check(document, update.update)
            await self._reserve(document, update.update)
            try:
                document.try_update(update.update)
                self._check_size(document, update.update)
                return await self._store(document, update)
            except BaseException:
                await self._forget(document)  # it may hold what is not stored
                raise

    async def create(self, place: Place, author: str, text: str) -> Update:
        """Store the first updates of a new document: an empty one, and its text."""
        self.rate.check(payer(place, author))
        document = Document(place)
        first = Update(author, document.doc.client_id, 1, 0, self._now(), EMPTY_UPDATE)
        stored = await self._store(document, first)
        if made := document.set_text(text):
            self._check_size(document, made)
            stored = await self._store(document, replace(first, number=2, update=made))
        return stored

    async def moment(self, place: Place, sequence: int) -> Document:
        """The document as it was when the update with a sequence had been stored. Raises :class:`RpcError`."""
        if await self.store.update_until(place, sequence=sequence) != sequence:
            raise RpcError("not_found", f"the document has no update {sequence}")
        document = Document(place)
        await self._begin_with_snapshot(document, sequence)
        while document.sequence < sequence:
            updates, more = await self.store.updates(place, document.sequence, PAGE)
            document.take(update for update in updates if update.sequence <= sequence)
            if not more:
                break
        work.handled(document.snapshot_bytes + work.READ_FACTOR * document.bytes_since)
        if document.sequence != sequence:
            raise StateError("the document's history could not be read up to this moment")
        return document

    async def sequence_at(self, place: Place, sequence: int | None, moment: int | None) -> int:
        """The sequence that a request names itself, or by a time. Raises :class:`RpcError`."""
        if (sequence is None) == (moment is None):
            raise RpcError("invalid_params", "name either a sequence or a time")
        if sequence is not None:
            return sequence
        found = await self.store.update_until(place, time=moment)
        if not found:
            raise RpcError("not_found", "the document did not exist at that time")
        return found

    async def was_thinned(self, place: Place, freed: int) -> None:
        """So many bytes of a document's old history became free, and are the project's again. The index of the newest
        snapshot says so to keepers that open the document later."""
        async with self.use(place) as document:
            if freed > document.size:
                await self._store_snapshot(document)
            elif (found := await self.store.snapshot(place)) is not None:
                own, head = found[0], json_text.read(found[1])
                head["stored"] = max(0, int(head.get("stored", 0)) - freed)
                with suppress(OvertakenError):  # another keeper has just stored one
                    document.snapshot_sequence = await self.store.put(place.subject("snap"), json_text.write(head), own)
        await self.remove_if_gone(place)

    async def remove_if_gone(self, place: Place) -> bool:
        """Remove what was stored of a document that was deleted meanwhile; returns whether it was."""
        if not (await self.store.newest(place, place.subject("doc")))[0]:
            await self.remove(place)
            return True
        return False

    async def remove(self, place: Place) -> None:
        """Remove a document and its history from the disks."""
        if (document := self._open.get(place)) is not None:
            await self._forget(document)
        await self.store.purge(place)

    async def remove_all(self, project: str) -> bool:
        """Remove all documents of a project with their history; returns whether there was anything."""
        for place, document in list(self._open.items()):
            if place.project == project:
                await self._forget(document)
        return await self.store.purge_project(project)

    def _now(self) -> int:
        return round(self._clock() * 1000)

    # ---- updates

    async def _check(self, document: Document, update: bytes) -> None:
        """Raises :class:`RpcError` unless an update is complete and new."""
        try:
            contents = yjs_format.read(update)
        except BadUpdateError as error:
            raise _not_an_update(error) from None
        if len(document.vector.keys() | contents.added.keys()) > MOST_CLIENTS:
            raise RpcError("limit", f"a document has at most {MOST_CLIENTS} client ids", limit=MOST_CLIENTS)
        if contents.is_empty:
            raise _not_an_update(BadUpdateError("it changes nothing"))
        if contents.missing(document.vector):
            document.is_behind = True  # it may refer to what another keeper has just stored
            await self._take_arrived(document)
        if contents.missing(document.vector) or contents.repeats(document.vector):
            what = "refers to what is not stored" if contents.missing(document.vector) else "repeats what is stored"
            raise RpcError(
                "conflict",
                f"the update {what}: send the difference to the state vector in this error",
                **_state(document),
            )

    def _check_size(self, document: Document, update: bytes) -> None:
        most = self._program.max_document_bytes
        if len(update) > self.store.max_payload - OWN_BYTES:
            raise RpcError("limit", f"the update has {len(update)} bytes: send it in several", size=len(update))
        if document.size + len(update) > most and len(document.doc.get_update()) > most:
            raise RpcError("limit", f"a document has at most {most} bytes (keeper_max_document_bytes)", limit=most)

    async def _reserve(self, document: Document, update: bytes) -> None:
        """Raises :class:`RpcError` if the project has no room for an update."""
        more = len(update) + RECORD_OVERHEAD
        if document.stored + more <= document.reserved:
            return

        def reserve(all_: paths.Paths) -> tuple[int, int]:
            name = document.place.document
            # If it may take less than this keeper knows, another one thinned out so much.
            stored = max(0, document.stored - max(0, document.reserved - all_.entry(name).reserved))
            return stored, all_.reserve(name, stored + more, self.limits)

        document.stored, document.reserved = await paths.change(self.store, document.place.project, reserve)

    async def _store(self, document: Document, update: Update) -> Update:
        """Store an update that the document in memory has already. Raises :class:`StateError`."""
        end = asyncio.get_running_loop().time() + STORE_SECONDS
        subject, pause = document.place.subject("doc"), 0.001
        others: list[Update] = []
        while True:
            record = replace(update, previous=document.sequence)
            try:
                sequence = await self.store.put(subject, encode(record), document.sequence)
            except OvertakenError:
                await self._read_on(document, others)
            except StateError:
                if asyncio.get_running_loop().time() > end:
                    raise
                with suppress(StateError):
                    await self._read_on(document, others)
            else:
                stored = replace(record, sequence=sequence)
                self.rate.charge(payer(document.place, update.author), len(update.update) + RECORD_OVERHEAD)
                document.note(stored)
                document.read_vector()
                self._plan_snapshot(document)
                return stored
            for other in others:
                if _is_same(other, update):  # only the answer was lost
                    return other
                if _clash(other, update):
                    raise _ClashError("another update with the same elements was stored first")
            if not document.sequence or asyncio.get_running_loop().time() > end:
                raise StateError("the document is being changed by others, or was deleted; try again")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)

    # ---- the view of a document

    async def _load(self, document: Document) -> None:
        await self._follow(document)
        await self._begin_with_snapshot(document, None)
        await self._read_on(document)
        if not document.sequence:
            await self._require(document)
        document.is_loaded, document.arrived = True, []
        await self._make_room()

    async def _require(self, document: Document) -> None:
        """Read a document of which a replica of the stream has nothing yet. Raises :class:`RpcError` if there is none.

        Raises :class:`StateError` if the replica does not have it soon.
        """
        place = document.place
        if not (await self.store.newest(place, place.subject("doc")))[0]:
            raise RpcError("not_found", f"the project has no document {place.document}")
        for _ in range(REPLICA_ATTEMPTS):
            await self._read_on(document)
            if document.sequence:
                return
            await asyncio.sleep(REPLICA_PAUSE)
        raise StateError("the document was not read in time; try again")

    async def _begin_with_snapshot(self, document: Document, until: int | None) -> None:
        found = await self.store.snapshot(document.place, until)
        if found is None:
            return
        own, content = found
        head: dict[str, Any] = json_text.read(content)
        parts = [await self.store.message(document.place, part) for part in head["parts"]]
        document.begin_with(own, head, b"".join(parts))

    async def _read_on(self, document: Document, seen: list[Update] | None = None) -> None:
        """Apply what the stream has after the last update, and add it to ``seen``."""
        more = True
        while more:
            updates, more = await self.store.updates(document.place, document.sequence, PAGE)
            if seen is not None:
                seen += updates
            document.take(updates)
        document.is_behind = False

    async def _take_arrived(self, document: Document) -> None:
        """Apply what events told of; if they left something out, read it."""
        arrived, document.arrived = document.arrived, []
        for update in arrived:
            if update.previous == document.sequence:
                document.take([update])
            elif update.sequence > document.sequence:
                document.is_behind = True
        if document.is_behind:
            await self._read_on(document)

    async def _follow(self, document: Document) -> None:
        place = document.place

        async def arrived(message: Msg) -> None:
            waiting = sum(len(update.update) for update in document.arrived)
            if len(document.arrived) >= MOST_ARRIVED or waiting > MOST_ARRIVED_BYTES:
                document.arrived, document.is_behind = [], True
            try:
                document.arrived.append(decode(message.data, message.headers))
            except ValueError:
                document.is_behind = True

        subject = f"events.project.{place.project}.doc.{place.document}"
        document.events = await self.store.connection.subscribe(subject, cb=arrived)
        await self.store.connection.flush()

    async def _forget(self, document: Document) -> None:
        if self._open.get(document.place) is document:
            del self._open[document.place]
        subscription, document.events = document.events, None
        if subscription is not None:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _make_room(self) -> None:
        """Forget the documents that were not used for the longest time, until the others fit."""
        total = sum(document.size + OVERHEAD for document in self._open.values())
        for document in list(self._open.values())[:-1]:
            if total <= self._program.memory_bytes:
                return
            if not document.lock.locked():
                total -= document.size + OVERHEAD
                await self._forget(document)

    def _begin_anew(self) -> None:
        """After a reconnect: events were missed, and the streams may have been restored from a backup."""

        self.store.forget_pages()

        async def forget_all() -> None:
            for document in list(self._open.values()):
                await self._forget(document)

        task = asyncio.create_task(forget_all())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    # ---- snapshots

    def _plan_snapshot(self, document: Document) -> None:
        place = document.place
        if not document.needs_snapshot or place in self._snapshots:
            return
        task = asyncio.create_task(self._take_snapshot(place))
        self._snapshots[place] = task
        task.add_done_callback(lambda _: self._snapshots.pop(place, None))

    async def _take_snapshot(self, place: Place) -> None:
        try:
            async with asyncio.timeout(SNAPSHOT_SECONDS), self.use(place) as document:
                if document.needs_snapshot:
                    await self._store_snapshot(document)
                    await self.remove_if_gone(place)
        except (StateError, RpcError, TimeoutError) as error:
            log.warning("no snapshot of document %s: %s", place.document, error)

    async def _store_snapshot(self, document: Document) -> None:
        """Store the parts first, and the index, which names them, last. Another keeper's index fences ours off."""
        place, state = document.place, document.doc.get_update()
        subject = place.subject("snap")
        size = min(SNAPSHOT_PART, self.store.max_payload - OWN_BYTES)
        parts = [
            await self.store.put(f"{subject}.{number}", state[start : start + size], None)
            for number, start in enumerate(range(0, len(state), size))
        ]
        document.stored += len(state)  # also if another keeper was first: the parts are stored
        try:
            own = await self.store.put(subject, document.snapshot_head(parts, len(state)), document.snapshot_sequence)
        except OvertakenError:
            found = await self.store.snapshot(place)
            own = found[0] if found else 0
        document.snapshot_sequence, document.snapshot_bytes = own, len(state)
        document.updates_since = document.bytes_since = 0


def payer(place: Place, author: str) -> str:
    """Whose limits count: those of an account, or of the project whose agent it is."""
    return place.project if author == DISK else author


def _is_same(stored: Update, update: Update) -> bool:
    one, other = ((each.author, each.client, each.number, each.update) for each in (stored, update))
    return one == other


def _clash(stored: Update, update: Update) -> bool:
    """Whether an update cannot come after one that was stored first: the same copy had sent the number already, or both
    add the same elements. A CRDT library would skip the second, each time that the history is read."""
    if (stored.author, stored.client) == (update.author, update.client) and stored.number >= update.number:
        return True
    added = yjs_format.read(stored.update).added
    return any(
        client in added and first < added[client][1] and added[client][0] < end
        for client, (first, end) in yjs_format.read(update.update).added.items()
    )


def _not_an_update(error: BadUpdateError) -> RpcError:
    return RpcError("invalid_params", f"update: {error}")


def _state(document: Document) -> dict[str, Any]:
    """What an error says of the document, so that its sender can send what fits."""
    return {"state_vector": b64encode(document.doc.get_state()).decode(), "sequence": document.sequence}
