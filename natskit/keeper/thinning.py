"""Thins out old history: one version a minute or an hour stays, if the platform or the project wants that.

The updates of such a time are merged into one, which adds and deletes what they did; no element of Yjs gets another id,
so a client that was away for longer merges as before. Merged updates are in pages (:mod:`natskit.keeper.thinned`) on a
subject of their own. Only when a page is stored are the updates purged that it has. A keeper that dies between the two
leaves both, and a reader takes the updates.

A library that merges updates without a document (``Y.mergeUpdates``) joins no neighbours, one struct a character. So
they are applied to the document as it was, in one transaction, which tells what it did.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pycrdt import Doc, Text, TransactionEvent

from natskit import json_text
from natskit.bus import yjs_format
from natskit.bus.document_record import SEVERAL, Update
from natskit.errors import StateError
from natskit.keeper import paths, thinned
from natskit.keeper.document import RECORD_OVERHEAD, TEXT, Document, apply_update
from natskit.keeper.documents import PAGE, Documents
from natskit.keeper.paths import Retention
from natskit.keeper.store import REST_BYTES, OvertakenError, Place
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

PASS_SECONDS = 3600.0
"""Between two passes over all documents. What a keeper thins out, the others find done."""
PAUSE = 0.05
"""Between two documents: people come first."""
DAY, SPANS = 86_400_000, {"minute": 60_000, "hour": 3_600_000}
"""In milliseconds."""
PAGE_BYTES = 512 * 1024
MOST_MERGED = 2000
"""Updates that are merged into one: the event loop waits meanwhile."""


@dataclass
class Thinned:
    """What was done with a document."""

    updates: int = 0
    """How many there were."""
    entries: int = 0
    """How many there are in their place."""
    freed: int = 0
    """Bytes of the disk that became free, about."""


class Thinning:
    """Goes over all documents now and then. Every keeper does it: the stream lets one of them store a page."""

    def __init__(self, documents: Documents, clock: Callable[[], float] = time.time) -> None:
        """``clock`` tells seconds since 1970."""
        self._documents, self._store = documents, documents.store
        self._clock = clock

    async def run(self) -> None:
        """Make passes until cancelled."""
        while True:
            await asyncio.sleep(PASS_SECONDS * random.SystemRandom().uniform(0.5, 1.0))
            await self.go_over_all()

    async def go_over_all(self) -> Thinned:
        """Thin out what is due, in all projects."""
        total = Thinned()
        try:
            projects = await self._store.projects()
        except StateError as error:
            log.warning("no history is thinned out now: %s", error)
            return total
        for project in projects:
            try:
                all_ = await paths.read(self._store, project)
                for document in all_.gone:  # a keeper died while it deleted them
                    await self._documents.remove(Place(project, document))
                    await paths.change(self._store, project, partial(paths.Paths.end_removal, document=document))
            except (StateError, RpcError) as error:
                log.warning("the histories of project %s are not thinned out now: %s", project, error)
                continue
            retention = all_.retention or self._documents.retention
            for document in all_.documents if retention.days else ():
                done = await self._thin_out_if_it_goes(Place(project, document), retention)
                total.updates += done.updates
                total.entries += done.entries
                total.freed += done.freed
                await asyncio.sleep(PAUSE)
        if total.updates:
            log.info("%d old updates of documents are %d now: %d bytes", total.updates, total.entries, total.freed)
        return total

    async def _thin_out_if_it_goes(self, place: Place, retention: Retention) -> Thinned:
        """A document that cannot be thinned out stops no other one, and no keeper."""
        try:
            return await self.thin_out(place, retention)
        except OvertakenError:
            pass  # another keeper does it
        except (StateError, RpcError) as error:
            log.warning("the history of document %s is not thinned out now: %s", place.document, error)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # pycrdt raises one when Yjs' Rust code panics
            log.exception("the history of document %s cannot be thinned out", place.document)
        return Thinned()

    async def thin_out(self, place: Place, retention: Retention) -> Thinned:
        """Thin out what is old enough of one document. Raises :class:`StateError` and :class:`RpcError`."""
        span = SPANS[retention.keep]
        before = (round(self._clock() * 1000) - retention.days * DAY) // span * span
        done = Thinned()
        try:
            await self._thin_out(place, before, span, done)
        finally:
            if done.freed:
                await self._documents.was_thinned(place, done.freed)
        return done

    async def _thin_out(self, place: Place, before: int, span: int, done: Thinned) -> None:
        first = await self._store.first_update(place)
        if first is None or first.time >= before:
            return
        fence, page = await self._store.newest(place, place.pages)
        until = thinned.bounds(page)[1] if page else 0
        if first.sequence <= until:  # a keeper died before it purged them
            await self._purge_left(place, page, until, done)
        merger = Merger(await self._document(place, until))
        pending: list[Update] = []
        merged = 0
        async for group in self._groups(place, until, before, span):
            began = time.monotonic()
            # An update has to fit into an answer.
            entries = list(merger.merged(group, self._store.answer_bytes))
            done.updates += len(group)
            done.entries += len(entries)
            for entry in entries:
                if pending and sum(map(thinned.size_of, [*pending, entry])) > self._page_bytes:
                    merger.check()
                    fence, until = await self._keep(place, fence, until, pending, merged, done)
                    pending, merged = [], 0
                pending.append(entry)
            merged += sum(len(update.update) + RECORD_OVERHEAD for update in group)
            await asyncio.sleep(time.monotonic() - began)  # people come first
        if pending:
            merger.check()
            await self._keep(place, fence, until, pending, merged, done)

    @property
    def _page_bytes(self) -> int:
        return min(PAGE_BYTES, self._store.max_payload - REST_BYTES)

    async def _document(self, place: Place, until: int) -> Doc[Any]:
        return (await self._documents.moment(place, until)).doc if until else Doc()

    async def _groups(self, place: Place, until: int, before: int, span: int) -> AsyncIterator[list[Update]]:
        """The updates to merge, those of each span of time together. A named version ends one."""
        named = {mark["sequence"] for mark in await self._marks(place) if mark["name"]}
        group: list[Update] = []
        async for update in self._but_newest(place, until):
            if update.time >= before:
                break
            last = group[-1] if group else update
            is_full = len(group) >= MOST_MERGED or last.sequence in named
            if group and (is_full or last.time // span != update.time // span):
                yield group
                group = []
            group.append(update)
        if group:
            yield group

    async def _but_newest(self, place: Place, until: int) -> AsyncIterator[Update]:
        """All updates but the newest, which keepers compare with when they store the next."""
        more, last = True, None
        while more:
            updates, more = await self._store.updates(place, until, PAGE)
            for update in updates:
                if last is not None:
                    yield last
                last, until = update, update.sequence

    async def _marks(self, place: Place) -> list[dict[str, Any]]:
        found = await self._store.marks(place)
        return list(json_text.read(found[-1])) if found else []

    async def _keep(
        self, place: Place, fence: int, after: int, updates: list[Update], merged: int, done: Thinned
    ) -> tuple[int, int]:
        """Store a page and purge what it has, ``merged`` bytes. Returns its own sequence and the last in it."""
        page = thinned.write(after, updates)
        until = updates[-1].sequence
        async with self._documents.use(place) as document:  # so that its bytes are known before any are purged
            if await self._named_within(place, page):
                raise OvertakenError("a moment was named meanwhile")
            fence = await self._store.put(place.pages, page, fence)
            if await self._documents.remove_if_gone(place):
                raise OvertakenError("the document was deleted meanwhile")
            # Who names a moment stores the name, and looks then whether a page has it. So one of both sees the other.
            await self._check_names(place, page)
            freed = await self._store.purge_until(place, until, merged) - len(page) - RECORD_OVERHEAD
            await self._account(document, freed, done)
        return fence, until

    async def _named_within(self, place: Place, page: bytes) -> list[int]:
        """The updates that have a name, and that a page has merged with later ones."""
        after, until = thinned.bounds(page)
        kept = {update.sequence for update in thinned.read(page)}
        marks = json_text.read((await self._store.newest(place, place.subject("mark")))[1] or b"[]")
        return [
            mark["sequence"] for mark in marks if after < mark["sequence"] <= until and mark["sequence"] not in kept
        ]

    async def _check_names(self, place: Place, page: bytes) -> None:
        """Raises :class:`StateError` if updates that a stored page has must stay, and so must all later ones."""
        if named := await self._named_within(place, page):
            raise StateError(f"update {named[0]} got a name while it was merged: remove its name")

    async def _purge_left(self, place: Place, page: bytes, until: int, done: Thinned) -> None:
        """Purge the updates that the newest page has."""
        async with self._documents.use(place) as document:
            await self._check_names(place, page)
            merged, after, more = 0, thinned.bounds(page)[0], True
            while more and after < until:
                updates, more = await self._store.stored(place, after, until)
                merged += sum(len(update.update) + RECORD_OVERHEAD for update in updates)
                after = updates[-1].sequence if updates else until
            freed = await self._store.purge_until(place, until, merged) - len(page) - RECORD_OVERHEAD
            await self._account(document, freed, done)

    async def _account(self, document: Document, freed: int, done: Thinned) -> None:
        """What became free is the project's again; what more is taken, below zero, is not."""
        place = document.place

        def give_back(all_: paths.Paths) -> bool:
            if (entry := all_.documents.get(place.document)) is not None:
                entry.reserved = max(paths.FIRST_BYTES, entry.reserved - freed)
            return entry is not None

        if not await paths.change(self._store, place.project, give_back):
            await self._documents.remove(place)
            raise OvertakenError("the document was deleted meanwhile")
        document.stored, document.reserved = max(0, document.stored - freed), 0
        done.freed += freed


class Merger:
    """A document that updates are applied to, one group after the other."""

    def __init__(self, doc: Doc[Any]) -> None:
        self._made: list[bytes] = []
        self._checked = doc.get_update()
        self._since: list[Update] = []
        """What was merged since."""
        self._become(doc)

    def _become(self, doc: Doc[Any]) -> None:
        self._doc = doc
        doc.observe(self._note)

    def _note(self, event: TransactionEvent) -> None:
        self._made.append(event.update)

    def merged(self, group: list[Update], most: int) -> Iterator[Update]:
        """The updates of a group as one, or as several if that has more than ``most`` bytes in a page.

        Raises :class:`StateError` if they cannot be merged, and :class:`BadUpdateError`.
        """
        content = self._apply(group)
        one = group[0] if len(group) == 1 else self._one(group, content)
        if len(group) == 1 or thinned.size_of(one) <= most:
            self._since.append(one)
            yield one
            return
        self._become(self._again())
        half = len(group) // 2
        yield from self.merged(group[:half], most)
        yield from self.merged(group[half:], most)

    def check(self) -> None:
        """Compare what the merged updates make with what the stored ones did. With a large document that takes long:
        once a page, before it is stored.

        Raises :class:`StateError` if it is something else: then nothing must be purged.
        """
        again = self._again()
        same_vector = yjs_format.read_vector(again.get_state()) == yjs_format.read_vector(self._doc.get_state())
        if not same_vector or _text(again) != _text(self._doc):
            last = self._since[-1].sequence if self._since else 0
            raise StateError(f"the updates until {last} cannot be merged: the result differs")
        self._checked, self._since = self._doc.get_update(), []

    def _again(self) -> Doc[Any]:
        doc: Doc[Any] = Doc()
        apply_update(doc, self._checked)
        for update in self._since:
            apply_update(doc, update.update)
        return doc

    def _apply(self, group: list[Update]) -> bytes:
        """Apply updates in one transaction; returns what it did."""
        self._made = []
        with self._doc.transaction():
            for update in group:
                apply_update(self._doc, update.update)
        return self._made[0] if self._made else b"\x00\x00"

    def _one(self, group: list[Update], content: bytes) -> Update:
        last = group[-1]
        authors = {update.author for update in group}
        owners: dict[str, str] | None = None
        if len(authors) > 1 or last.author == SEVERAL:
            owners = {}
            for update in group:
                for client in yjs_format.read(update.update).added:
                    owners.setdefault(str(client), (update.owners or {}).get(str(client), update.author))
        is_one = owners is None and len({update.client for update in group}) == 1
        try:
            yjs_format.read(content)
        except yjs_format.BadUpdateError as error:
            raise StateError(f"the updates until {last.sequence} cannot be merged: {error}") from None
        return Update(
            author=last.author if owners is None else SEVERAL,
            client=last.client if is_one else 0,
            number=last.number if is_one else 0,
            previous=group[0].previous,
            time=last.time,
            update=content,
            sequence=last.sequence,
            owners=owners,
        )


def _text(doc: Doc[Any]) -> str:
    return str(doc.get(TEXT, type=Text))
