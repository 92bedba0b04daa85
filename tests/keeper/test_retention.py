"""Old history is thinned out: with a clock of the test, a real stream, and keepers that answer beside it."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Any

import pytest
from pycrdt import Doc, Text

from natskit.bus.document_record import SEVERAL, Update, encode
from natskit.bus.yjs_format import read_vector, write_vector
from natskit.errors import StateError
from natskit.keeper import paths, thinning
from natskit.keeper.config import KeeperProgram
from natskit.keeper.document import RECORD_OVERHEAD, Document
from natskit.keeper.documents import PAGE, Documents
from natskit.keeper.paths import Retention
from natskit.keeper.store import OvertakenError, Place, Store
from natskit.keeper.thinning import SPANS, Thinning
from natskit.rpc import RpcError
from tests.hub.site import Site
from tests.keeper.writer import Copy, Person, opened, person, project_of

START = 1_700_000_000_000 // SPANS["hour"] * SPANS["hour"]
DAY = 86_400_000
MINUTES = 90


class Clock:
    """Seconds since 1970, as the test says."""

    now = START / 1000

    def __call__(self) -> float:
        return self.now


@dataclass
class Past:
    """A document that two people wrote long ago, and what its text was after each update."""

    documents: Documents
    owner: Person
    other: str
    place: Place
    copies: list[Doc[Any]]
    times: dict[int, int] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=lambda: [0, 0])

    async def write(self, chance: random.Random, time: int) -> None:
        """One edit of one of the two, who are in step."""
        who = chance.randrange(2)
        mine, its = self.copies[who], self.copies[1 - who]
        before = mine.get_state()
        text = mine.get("text", type=Text)
        if len(text) > 20 and chance.random() < 0.3:
            start = chance.randrange(len(text) - 10)
            del text[start : start + chance.randrange(1, 10)]
        else:
            text.insert(chance.randrange(len(text) + 1) if chance.random() < 0.2 else len(text), f"word{time % 1000} ")
        update = mine.get_update(before)
        self.numbers[who] += 1
        author = (self.owner.account, self.other)[who]
        given = Update(author, mine.client_id, self.numbers[who], 0, time, update)
        stored = await self.documents.update(self.place, given)
        its.apply_update(update)
        self.times[stored.sequence], self.texts[stored.sequence] = time, str(text)

    async def ask(self, method: str, **params: Any) -> Any:
        return await self.owner.ask(self.place.project, self.place.document, method, **params)

    async def text_at(self, **moment: Any) -> str:
        answer = await self.ask("state_at", **moment)
        assert answer["parts"] == 1
        doc: Doc[Any] = Doc()
        doc.apply_update(b64decode(answer["update"]))
        return str(doc.get("text", type=Text))

    async def replayed(self) -> Doc[Any]:
        doc: Doc[Any] = Doc()
        after, more = 0, True
        while more:
            page = await self.ask("updates", after=after, limit=37)
            for each in page["updates"]:
                assert each["previous"] == after
                doc.apply_update(b64decode(each["update"]))
                after = each["sequence"]
            more = page["more"]
        return doc


async def keeper(site: Site) -> Documents:
    """What a keeper has of documents, without the keeper."""
    store = Store(await site.connect("keeper", site.identity.creds("DOCS", "keeper")))
    program = KeeperProgram.model_validate(
        {"name": "test", "nats": {"urls": ["nats://127.0.0.1:1"]}, "creds": {"platform": "/", "docs": "/"}}
    )
    return Documents(store, program, Clock())


async def past(site: Site, seed: int, each_minute: int = 8) -> Past:
    """A document with the edits of an hour and a half."""
    documents = await keeper(site)
    owner = await person(site)
    project = await project_of(owner)
    place = Place(project, str(uuid.uuid4()))
    await documents.create(place, owner.account, "")
    limits = documents.limits
    await paths.change(
        documents.store, project, lambda all_: all_.add(place.document, "old.md", owner.account, 1000, limits)
    )
    made = Past(documents, owner, str(uuid.uuid4()), place, [Doc(), Doc()])
    chance = random.Random(seed)
    for number in range(MINUTES * each_minute):
        await made.write(chance, START + number * SPANS["minute"] // each_minute)
    return made


@pytest.mark.parametrize("keep", ["minute", "hour"])
async def test_one_version_of_each_span_stays(site: Site, keep: str) -> None:
    """Each remaining moment reads as it did, also by its time; what is between is gone; names keep their moment."""
    old = await past(site, seed=1)
    sequences = list(old.texts)
    named = sequences[333]
    await old.ask("name_version", sequence=named, name="kept")
    clock = Clock()
    clock.now = (START + 30 * DAY + MINUTES * SPANS["minute"]) / 1000
    size = await _bytes(site, old.place)
    done = await Thinning(old.documents, clock).thin_out(old.place, Retention(30, keep))  # type: ignore[arg-type]
    spans = MINUTES if keep == "minute" else 1  # of the second hour, only half is old enough
    history = await old.ask("history")
    rows = {row[0]: row for row in history["rows"]}
    old_rows = [s for s in rows if s in old.times and old.times[s] < START + spans * SPANS[keep]]
    assert spans <= len(old_rows) <= spans + 2  # the named one ends a part of its span, and the newest is not merged
    assert named in rows
    assert [version["name"] for version in history["versions"]] == ["kept"]
    assert done.updates > 8 * spans / 2
    assert done.entries < done.updates / 5
    for sequence in old_rows:
        assert await old.text_at(sequence=sequence) == old.texts[sequence]
        if sequence != sequences[-1]:  # which is no old one for the stream, that has a clock of its own
            assert await old.text_at(time=rows[sequence][1]) == old.texts[sequence]
    gone = next(s for s in sequences if s not in rows)
    with pytest.raises(RpcError, match="has no update"):
        await old.text_at(sequence=gone)
    assert str((await old.replayed()).get("text", type=Text)) == old.texts[sequences[-1]]
    assert (await old.ask("check"))["sequence"] == sequences[-1]
    if keep == "minute":
        assert await _bytes(site, old.place) < size / 2


def later(days: float = 400) -> Clock:
    """The clock so long after the documents were begun."""
    clock = Clock()
    clock.now = (START + days * DAY) / 1000
    return clock


async def _bytes(site: Site, place: Place) -> int:
    keeper = await site.connect("keeper", site.identity.creds("DOCS", "keeper"))
    answer = await keeper.request(f"$JS.API.STREAM.INFO.{place.stream}", b"", timeout=5)
    return int(json.loads(answer.data)["state"]["bytes"])


async def test_a_client_that_was_away_merges_without_loss(site: Site) -> None:
    """It was in the middle of a minute that is one version now, and has typed meanwhile."""
    old = await past(site, seed=2)
    sequences = list(old.texts)
    middle = sequences[101]
    away = Copy(old.owner, old.place.project, old.place.document)
    answer = await old.ask("state_at", sequence=middle)
    away.doc.apply_update(b64decode(answer["update"]))
    away.text.insert(5, "<typed while away>")
    clock = Clock()
    clock.now = (START + 400 * DAY) / 1000
    await Thinning(old.documents, clock).thin_out(old.place, Retention(1, "hour"))
    page = await old.ask("updates", after=middle)
    assert page["updates"][0]["previous"] < middle < page["updates"][0]["sequence"]
    assert page["updates"][0]["author"] == SEVERAL
    assert {*page["updates"][0]["owners"].values()} == {old.owner.account, old.other}
    for update in page["updates"]:
        away.doc.apply_update(b64decode(update["update"]))
    await away.send(_own(away))
    others = await opened(old.owner, old.place.project, "old.md")
    assert str(others.text) == str(away.text)
    assert "<typed while away>" in str(others.text)
    assert str(others.text).replace("<typed while away>", "") == old.texts[sequences[-1]]


def _own(copy: Copy) -> bytes:
    """What the copy itself has typed."""
    others = {c: n for c, n in read_vector(copy.doc.get_state()).items() if c != copy.doc.client_id}
    return copy.doc.get_update(write_vector(others))


async def test_a_keeper_that_dies_between_page_and_purge(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything reads as before, and the next pass makes up for it."""
    old = await past(site, seed=3, each_minute=4)
    sequences = list(old.texts)
    clock = Clock()
    clock.now = (START + 400 * DAY) / 1000
    thinning = Thinning(old.documents, clock)

    async def die(*_: object) -> None:
        raise StateError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(old.documents.store, "purge_until", die)
        with pytest.raises(StateError, match="killed"):
            await thinning.thin_out(old.place, Retention(1, "minute"))
    assert str((await old.replayed()).get("text", type=Text)) == old.texts[sequences[-1]]
    assert await old.text_at(sequence=sequences[17]) == old.texts[sequences[17]]
    await thinning.thin_out(old.place, Retention(1, "minute"))
    assert str((await old.replayed()).get("text", type=Text)) == old.texts[sequences[-1]]
    assert len((await old.ask("history"))["rows"]) <= MINUTES + 2
    again = await thinning.thin_out(old.place, Retention(1, "minute"))
    assert again.updates == 0


async def test_a_history_that_goes_on_is_thinned_out_again(site: Site) -> None:
    """Pages are added to those before; a keeper that starts anew reads them all."""
    old = await past(site, seed=4, each_minute=3)
    clock = Clock()
    clock.now = (START + 10 * DAY) / 1000
    thinning = Thinning(old.documents, clock)
    await thinning.thin_out(old.place, Retention(1, "minute"))
    chance = random.Random(5)
    for number in range(400):
        await old.write(chance, START + 5 * DAY + number * 10_000)
    await thinning.thin_out(old.place, Retention(1, "minute"))
    for name in ("keeper-1", "keeper-2"):
        site.kill_keeper(name)
        site.start_keeper(name)
        await site.keeper_ready(name)
    rows = [row for row in (await old.ask("history"))["rows"] if row[0] in old.texts]
    assert len(rows) < 400 / 6 + MINUTES + 5
    for row in random.Random(6).sample(rows, 12):
        assert await old.text_at(sequence=row[0]) == old.texts[row[0]]
    assert str((await old.replayed()).get("text", type=Text)) == list(old.texts.values())[-1]


async def test_the_project_says_what_stays(site: Site) -> None:
    """Its setting goes before the platform's, which is forever here."""
    old = await past(site, seed=7, each_minute=2)
    clock = Clock()
    clock.now = (START + 400 * DAY) / 1000
    thinning = Thinning(old.documents, clock)
    rows = len((await old.ask("history"))["rows"])
    project = old.place.project
    assert await old.owner.ask(project, "-", "retention") == {"days": 0, "keep": "minute", "is_own": False}
    await thinning.go_over_all()
    assert len((await old.ask("history"))["rows"]) == rows
    with pytest.raises(RpcError, match="keep"):
        await old.owner.ask(project, "-", "set_retention", days=1, keep="year")
    with pytest.raises(RpcError, match="days"):
        await old.owner.ask(project, "-", "set_retention", days=-1)
    found = await old.owner.ask(project, "-", "set_retention", days=7, keep="hour")
    assert found == {"days": 7, "keep": "hour", "is_own": True}
    await thinning.go_over_all()
    assert len((await old.ask("history"))["rows"]) < 8
    stranger = await person(site)
    await project_of(stranger)  # so that she may ask at all
    with pytest.raises(RpcError, match="may not use"):
        await stranger.ask(project, "-", "set_retention", days=1)
    assert not (await old.owner.ask(project, "-", "set_retention", days=None))["is_own"]


async def stored(old: Past) -> int:
    """The bytes of the document's messages in the stream, as a keeper counts them."""
    store, place = old.documents.store, old.place
    total = 0
    for subject in (place.subject("doc"), place.pages, place.subject("snap") + ".*"):
        messages, more = await store._batch(place, subject, 0, 10_000)
        assert not more
        for message in messages:
            if subject == place.subject("doc"):
                total += len(message.data.partition(b"\n")[2]) + RECORD_OVERHEAD
            elif subject == place.pages:
                total += len(message.data) + RECORD_OVERHEAD
            else:
                total += len(message.data)
    return total


async def counted(documents: Documents, place: Place) -> int:
    async with documents.use(place) as document:
        return document.stored


async def reserved(old: Past) -> int:
    return (await paths.read(old.documents.store, old.place.project)).entry(old.place.document).reserved


async def has_snapshots(old: Past) -> None:
    """Wait for those that are being stored."""
    await asyncio.gather(*old.documents._snapshots.values())
    assert await old.documents.store.snapshot(old.place) is not None


async def test_a_document_that_cannot_be_merged_stops_no_other(site: Site) -> None:
    """Its bytes are no update: the others of its project are thinned out, before it and after it."""
    old = await past(site, seed=8, each_minute=2)
    store, project, bad = old.documents.store, old.place.project, Place(old.place.project, str(uuid.uuid4()))
    last = 0
    for number in range(3):
        spoilt = Update(old.owner.account, 7, number + 1, last, START + number, b"\x01\xff no update")
        last = await store.put(bad.subject("doc"), encode(spoilt), last)

    def add_before(all_: paths.Paths) -> None:
        all_.add(bad.document, "bad.md", old.owner.account, 1000, old.documents.limits)
        all_.documents[old.place.document] = all_.documents.pop(old.place.document)
        all_.retention = Retention(1, "hour")

    await paths.change(store, project, add_before)
    await Thinning(old.documents, later()).go_over_all()
    assert len((await old.ask("history"))["rows"]) < 8
    assert (await store.first_update(bad)) is not None


async def test_bytes_that_become_free_are_counted_once(site: Site) -> None:
    """By a keeper that has not opened the document, by the one that writes, and in the project's sum; also those of
    snapshots that are purged."""
    old = await past(site, seed=9)
    await has_snapshots(old)
    before, size = await reserved(old), await stored(old)
    assert await counted(old.documents, old.place) == size
    other = await keeper(site)
    done = await Thinning(other, later()).thin_out(old.place, Retention(1, "minute"))
    left = await stored(old)
    head = await other.store.snapshot(old.place)
    assert head is not None
    of_other = int(json.loads(head[1])["bytes"])
    assert done.freed > size / 3
    assert await counted(other, old.place) == left
    assert await reserved(old) == before - done.freed
    typed = Doc[Any]()
    typed.get("text", type=Text).insert(0, random.Random(10).randbytes(60_000).hex())
    update = Update(old.owner.account, typed.client_id, 1, 0, START, typed.get_update())
    await old.documents.update(old.place, update)
    await has_snapshots(old)
    assert await counted(old.documents, old.place) == await stored(old) - of_other  # which it does not know of
    await other.close()


async def test_a_snapshot_is_stored_only_if_it_takes_less(site: Site) -> None:
    """One that takes more than became free would make the history grow with each pass."""
    old = await past(site, seed=11, each_minute=1)
    typed = Doc[Any]()
    typed.get("text", type=Text).insert(0, random.Random(12).randbytes(100_000).hex())
    await old.documents.update(
        old.place, Update(old.owner.account, typed.client_id, 1, 0, START + 2 * DAY, typed.get_update())
    )
    await has_snapshots(old)
    newest = await old.documents.store.snapshot(old.place)
    done = await Thinning(old.documents, later()).thin_out(old.place, Retention(1, "hour"))
    assert 0 < done.freed < 200_000
    found = await old.documents.store.snapshot(old.place)
    assert newest is not None
    assert found is not None
    before, after = json.loads(newest[1]), json.loads(found[1])
    assert after == before | {"stored": before["stored"] - done.freed}, "the same snapshot, and what is stored now"
    assert await counted(await keeper(site), old.place) == await stored(old), "by a keeper that opens it later"
    small = await past(site, seed=13)
    await has_snapshots(small)
    newest = await small.documents.store.snapshot(small.place)
    await Thinning(small.documents, later()).thin_out(small.place, Retention(1, "hour"))
    assert await small.documents.store.snapshot(small.place) != newest
    assert await counted(small.documents, small.place) == await stored(small)


async def test_what_became_free_is_counted_though_the_keeper_dies(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page counts as it is stored, and one whose updates were not purged when the next pass purges them."""
    old = await past(site, seed=14)
    await has_snapshots(old)
    store, before = old.documents.store, await reserved(old)
    monkeypatch.setattr(thinning, "PAGE_BYTES", 6000)
    purge, purges = store.purge_until, list[int]()

    async def die_at_the_third(place: Place, until: int, size: int) -> int:
        purges.append(until)
        if len(purges) == 3:
            raise StateError("killed")
        return await purge(place, until, size)

    with monkeypatch.context() as patch:
        patch.setattr(store, "purge_until", die_at_the_third)
        with pytest.raises(StateError, match="killed"):
            await Thinning(old.documents, later()).thin_out(old.place, Retention(1, "minute"))
    freed = before - await reserved(old)
    assert freed > 0
    done = await Thinning(old.documents, later()).thin_out(old.place, Retention(1, "minute"))
    assert await counted(old.documents, old.place) == await stored(old)
    assert await reserved(old) == before - freed - done.freed


async def test_a_history_that_is_thinned_out_while_it_is_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out, although a reader's second batch begins behind a new page."""
    old = await past(site, seed=15, each_minute=16)
    other = await keeper(site)
    await Thinning(other, later(1 + 10 / 1440)).thin_out(old.place, Retention(1, "minute"))
    reader = Store(await site.connect("keeper", site.identity.creds("DOCS", "keeper")))
    read, batches = reader._read, list[int]()

    async def thinned_out_behind_the_first(place: Place, question: dict[str, Any]) -> Any:
        if question.get("next_by_subj") == place.subject("doc"):
            batches.append(question["seq"])
            if len(batches) == 2:
                await Thinning(other, later()).thin_out(place, Retention(1, "minute"))
        return await read(place, question)

    monkeypatch.setattr(reader, "_read", thinned_out_behind_the_first)
    document, more = Document(old.place), True
    while more:
        updates, more = await reader.updates(old.place, document.sequence, PAGE)
        document.take(updates)
    assert len(batches) > 2
    assert document.text == list(old.texts.values())[-1]
    first, after = updates[0], updates[-1]
    with pytest.raises(StateError, match="try again"):
        Document(old.place).take([first, after])
    await other.close()


async def test_merged_updates_fit_into_an_answer(site: Site) -> None:
    """There they are in base64. The three of a minute would fit into a page as one, but not into an answer."""
    old = await past(site, seed=16, each_minute=1)
    typed = Doc[Any]()
    text = typed.get("text", type=Text)
    typed.apply_update((await old.replayed()).get_update())
    for number in range(4):
        before = typed.get_state()
        text.insert(0, random.Random(number).randbytes(150_000).hex())
        time = START + DAY + number * (20_000 if number < 3 else DAY)
        await old.documents.update(
            old.place,
            Update(old.owner.account, typed.client_id, number + 1, 0, time, typed.get_update(before)),
        )
    done = await Thinning(old.documents, later()).thin_out(old.place, Retention(1, "minute"))
    assert done.updates > 3
    assert str((await old.replayed()).get("text", type=Text)) == str(text)
    for row in (await old.ask("history"))["rows"][-4:]:
        await old.ask("state_at", sequence=row[0])


async def test_nothing_stays_of_a_document_that_is_deleted_meanwhile(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that comes too late is removed; and a removal that a keeper did not end is ended by the next pass."""
    old = await past(site, seed=17, each_minute=3)
    store = old.documents.store
    put = store.put

    async def put_too_late(subject: str, payload: bytes, expected: int | None, **options: bool) -> int:
        if subject == old.place.pages:
            await old.ask("delete")
        return await put(subject, payload, expected, **options)

    async def die(*_: object) -> None:
        raise StateError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", put_too_late)
        patch.setattr(store, "purge_until", die)
        with pytest.raises(OvertakenError, match="deleted meanwhile"):
            await Thinning(old.documents, later()).thin_out(old.place, Retention(1, "minute"))
    assert await store.newest(old.place, old.place.pages) == (0, b"")
    left = await past(site, seed=18, each_minute=1)

    def begin(all_: paths.Paths) -> None:
        del all_.documents[left.place.document]
        all_.gone.append(left.place.document)

    await paths.change(store, left.place.project, begin)
    await Thinning(old.documents, later()).go_over_all()
    assert await store.newest(left.place, left.place.subject("doc")) == (0, b"")
    assert not (await paths.read(store, left.place.project)).gone


async def test_a_moment_that_is_named_meanwhile_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that does not know the name stores no page; and a name that comes too late is refused."""
    old = await past(site, seed=19, each_minute=4)
    store, sequences = old.documents.store, list(old.texts)
    named, late = sequences[101], sequences[102]
    marks, purge = store.marks, store.purge_until

    async def marks_before_the_name(place: Place) -> list[bytes]:
        found = await marks(place)
        await old.ask("name_version", sequence=named, name="kept")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(store, "marks", marks_before_the_name)
        with pytest.raises(OvertakenError, match="named meanwhile"):
            await Thinning(old.documents, later()).thin_out(old.place, Retention(1, "minute"))
    assert await old.text_at(sequence=late) == old.texts[late]

    async def named_before_the_purge(place: Place, until: int, size: int) -> int:
        with pytest.raises(RpcError, match="thinned out meanwhile"):
            await old.ask("name_version", sequence=late, name="late")
        return await purge(place, until, size)

    monkeypatch.setattr(store, "purge_until", named_before_the_purge)
    await Thinning(old.documents, later()).thin_out(old.place, Retention(1, "minute"))
    assert await old.text_at(sequence=named) == old.texts[named]
    assert [version["name"] for version in (await old.ask("history"))["versions"]] == ["kept"]


async def test_a_moment_that_is_named_while_a_page_is_on_its_way_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name was accepted before the page was there: nothing is purged while it has that name."""
    old = await past(site, seed=21, each_minute=4)
    store, sequences = old.documents.store, list(old.texts)
    named, put, thinning_ = sequences[101], store.put, Thinning(old.documents, later())

    async def named_first(subject: str, payload: bytes, expected: int | None, **options: bool) -> int:
        if subject == old.place.pages:
            await old.ask("name_version", sequence=named, name="kept")
        return await put(subject, payload, expected, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", named_first)
        with pytest.raises(StateError, match=f"update {named} got a name while it was merged"):
            await thinning_.thin_out(old.place, Retention(1, "minute"))
    with pytest.raises(StateError, match="remove its name"):
        await thinning_.thin_out(old.place, Retention(1, "minute"))
    assert await old.text_at(sequence=named) == old.texts[named]
    await old.ask("name_version", sequence=named, name="")
    assert (await thinning_.thin_out(old.place, Retention(1, "minute"))).freed > 0
    with pytest.raises(RpcError, match=f"no update {named}"):
        await old.text_at(sequence=named)


async def test_what_does_not_become_free_is_not_given_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One minute that has more than fits into a page: pages come before what they make free."""
    old = await past(site, seed=22, each_minute=1)
    typed = Doc[Any]()
    typed.apply_update((await old.replayed()).get_update())
    for number in range(12):
        before = typed.get_state()
        typed.get("text", type=Text).insert(0, random.Random(number).randbytes(20_000).hex())
        time = START + DAY + number + (DAY if number == 11 else 0)
        update = Update(old.owner.account, typed.client_id, number + 1, 0, time, typed.get_update(before))
        await old.documents.update(old.place, update)
    await has_snapshots(old)
    monkeypatch.setattr(thinning, "PAGE_BYTES", 50_000)
    monkeypatch.setattr(old.documents.store.connection, "_max_payload", 100_000)
    before_ = await reserved(old)
    done = await Thinning(old.documents, later()).thin_out(old.place, Retention(1, "minute"))
    assert await reserved(old) == before_ - done.freed
    assert await counted(old.documents, old.place) == await stored(old)


async def test_two_keepers_that_thin_out_count_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One goes on with what the other has stored and not yet purged."""
    old = await past(site, seed=23, each_minute=4)
    await has_snapshots(old)
    other = await keeper(site)
    store, before, purge = old.documents.store, await reserved(old), old.documents.store.purge_until
    freed: list[int] = []

    async def after_the_other(place: Place, until: int, size: int) -> int:
        freed.append((await Thinning(other, later()).thin_out(place, Retention(1, "minute"))).freed)
        return await purge(place, until, size)

    monkeypatch.setattr(store, "purge_until", after_the_other)
    freed.append((await Thinning(old.documents, later()).thin_out(old.place, Retention(1, "minute"))).freed)
    assert freed[0] > 0 > freed[1], "a page is charged by both, since neither knows of the other"
    assert await reserved(old) == before - sum(freed)
    await other.close()


async def test_a_moment_is_found_in_many_pages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pages: a moment is found by the places of pages that are known, by sequence and by time."""
    old = await past(site, seed=20)
    monkeypatch.setattr(thinning, "PAGE_BYTES", 3000)
    await Thinning(old.documents, later()).thin_out(old.place, Retention(1, "minute"))
    store = old.documents.store
    rows = [row for row in (await old.ask("history"))["rows"] if row[0] in old.texts][:-1]
    for known in (False, True):  # whether the places are
        for sequence, time, *_ in rows:
            if not known:
                store.forget_pages()
            assert await store.update_until(old.place, sequence=sequence) == sequence
            assert await store.update_until(old.place, time=time) == sequence
            assert await store.update_until(old.place, time=time + 1) == sequence
    read, batches = store._batch, list[str]()

    async def counting(place: Place, subject: str, after: int, limit: int) -> Any:
        batches.append(subject)
        return await read(place, subject, after, limit)

    monkeypatch.setattr(store, "_batch", counting)
    await store.update_until(old.place, sequence=rows[-1][0])
    assert batches == [old.place.pages]
