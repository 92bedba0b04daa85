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
from typing import Any

from pycrdt import Doc, Text, TransactionEvent

from natskit import json_text
from natskit.bus import yjs_format
from natskit.bus.document_record import SEVERAL, Update
from natskit.errors import StateError
from natskit.keeper import paths, thinned
from natskit.keeper.document import RECORD_OVERHEAD, TEXT
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
        first = await self._store.first_update(place)
        if first is None or first.time >= before:
            return done
        fence, page = await self._store.newest(place, place.pages)
        until = thinned.bounds(page)[1] if page else 0
        if first.sequence <= until:  # a keeper died before it purged them
            await self._store.purge_until(place, until)
        merger = Merger(await self._document(place, until))
        pending: list[Update] = []
        async for group in self._groups(place, until, before, span):
            # An update has to fit into an answer.
            entries = list(merger.merged(group, self._store.answer_bytes))
            done.updates += len(group)
            done.entries += len(entries)
            for entry in entries:
                if pending and sum(map(thinned.size_of, [*pending, entry])) > self._page_bytes:
                    fence, until = await self._keep(place, fence, until, pending, done)
                    pending = []
                pending.append(entry)
            done.freed += sum(len(update.update) + RECORD_OVERHEAD for update in group)
            await asyncio.sleep(0)
        if pending:
            await self._keep(place, fence, until, pending, done)
        if done.updates:
            await self._account(place, done.freed)
        return done

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
        self, place: Place, fence: int, after: int, updates: list[Update], done: Thinned
    ) -> tuple[int, int]:
        """Store a page and purge what it has. Returns its own sequence and the last in it."""
        page = thinned.write(after, updates)
        fence = await self._store.put(place.pages, page, fence)
        done.freed -= len(page) + RECORD_OVERHEAD
        until = updates[-1].sequence
        await self._store.purge_until(place, until)
        return fence, until

    async def _account(self, place: Place, freed: int) -> None:
        """What became free is the project's again."""

        def give_back(all_: paths.Paths) -> bool:
            if (entry := all_.documents.get(place.document)) is not None:
                entry.reserved = max(paths.FIRST_BYTES, entry.reserved - max(0, freed))
            return entry is not None

        if await paths.change(self._store, place.project, give_back):
            await self._documents.was_thinned(place, max(0, freed))
        else:
            await self._documents.remove(place)  # it was deleted meanwhile, and a page came too late


class Merger:
    """A document that updates are applied to, one group after the other."""

    def __init__(self, doc: Doc[Any]) -> None:
        self._doc = doc
        self._made: list[bytes] = []
        doc.observe(self._note)

    def _note(self, event: TransactionEvent) -> None:
        self._made.append(event.update)

    def merged(self, group: list[Update], most: int) -> Iterator[Update]:
        """The updates of a group as one, or as several if that has more than ``most`` bytes in a page.

        Raises :class:`StateError` if the result is not what the updates make: then nothing must be purged.
        """
        if len(group) == 1:
            self._apply(group)
            yield group[0]
            return
        before = self._doc.get_update()
        one = self._one(group, self._apply(group))
        if thinned.size_of(one) <= most:
            self._check(before, one)
            yield one
            return
        self._doc = Doc()
        self._doc.apply_update(before)
        self._doc.observe(self._note)
        half = len(group) // 2
        yield from self.merged(group[:half], most)
        yield from self.merged(group[half:], most)

    def _apply(self, group: list[Update]) -> bytes:
        """Apply updates in one transaction; returns what it did."""
        self._made = []
        with self._doc.transaction():
            for update in group:
                self._doc.apply_update(update.update)
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

    def _check(self, before: bytes, one: Update) -> None:
        try:
            yjs_format.read(one.update)
        except yjs_format.BadUpdateError as error:
            raise StateError(f"the updates until {one.sequence} cannot be merged: {error}") from None
        again: Doc[Any] = Doc()
        again.apply_update(before)
        again.apply_update(one.update)
        same_vector = yjs_format.read_vector(again.get_state()) == yjs_format.read_vector(self._doc.get_state())
        if not same_vector or _text(again) != _text(self._doc):
            raise StateError(f"the updates until {one.sequence} cannot be merged: the result differs")


def _text(doc: Doc[Any]) -> str:
    return str(doc.get(TEXT, type=Text))
