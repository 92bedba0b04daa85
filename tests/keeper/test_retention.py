"""Old history is thinned out: with a clock of the test, a real stream, and keepers that answer beside it."""

from __future__ import annotations

import json
import random
import uuid
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Any

import pytest
from pycrdt import Doc, Text

from natskit.bus.document_record import SEVERAL, Update
from natskit.bus.yjs_format import read_vector, write_vector
from natskit.errors import StateError
from natskit.keeper import paths
from natskit.keeper.config import KeeperProgram
from natskit.keeper.documents import Documents
from natskit.keeper.paths import Retention
from natskit.keeper.store import Place, Store
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


async def past(site: Site, seed: int, each_minute: int = 8) -> Past:
    """A document with the edits of an hour and a half."""
    store = Store(await site.connect("keeper", site.identity.creds("DOCS", "keeper")))
    program = KeeperProgram.model_validate(
        {"name": "test", "nats": {"urls": ["nats://127.0.0.1:1"]}, "creds": {"platform": "/", "docs": "/"}}
    )
    documents = Documents(store, program, Clock())
    owner = await person(site)
    project = await project_of(owner)
    place = Place(project, str(uuid.uuid4()))
    await documents.create(place, owner.account, "")
    limits = documents.limits
    await paths.change(store, project, lambda all_: all_.add(place.document, "old.md", owner.account, 1000, limits))
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
