"""The documents service by its bare protocol, with two keepers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import uuid
from base64 import b64decode
from typing import Any

import pytest
from pycrdt import Doc, Text

from natskit.bus.connection import Connection
from natskit.bus.credentials import CredsText
from natskit.bus.document_record import Update, decode
from natskit.bus.jetstream import ask
from natskit.bus.permissions import DOCUMENT_STREAMS
from natskit.bus.yjs_format import read_vector
from natskit.client import Client
from natskit.keeper.paths import Limits, Paths, change
from natskit.keeper.store import Store
from natskit.rpc import RpcError, encode_request
from tests.hub.site import Site, call
from tests.keeper.writer import Copy, Person, encoded, opened, person, project_of
from tests.kit.wait import eventually


async def test_two_people_edit_one_document(site: Site) -> None:
    """What one types the other hears once it is stored, with its author; the history has both."""
    alice, bob = await person(site), await person(site)
    project = await project_of(alice)
    await alice.hub("share_project", project_id=project, email=bob.email)
    hers = await opened(alice, project, "notes.md", "Hello, wörld 😀")
    heard: list[Update] = []

    async def on_event(message: Any) -> None:
        heard.append(decode(message.data, message.headers))

    await bob.connection.subscribe(f"events.project.{project}.doc.{hers.document}", cb=on_event)
    await eventually(lambda: _may_open(hers, bob, project), "bob may open it")
    his = await opened(bob, project, "notes.md", "ignored")
    assert his.document == hers.document
    assert str(his.text) == "Hello, wörld 😀"
    stored = await hers.type(0, "A")
    await eventually(lambda: [e for e in heard if e.sequence == stored["sequence"]], "bob hears it")
    his.doc.apply_update(heard[-1].update)
    assert str(his.text) == "AHello, wörld 😀"
    assert (heard[-1].author, heard[-1].previous) == (alice.account, stored["previous"])
    await his.type(0, "B")
    await hers.pull()
    assert str(hers.text) == str(his.text) == "BAHello, wörld 😀"
    history = (await bob.ask(project, hers.document, "history"))["rows"]
    assert [row[2] for row in history] == [alice.account] * 3 + [bob.account]
    assert (await bob.ask(project, hers.document, "check"))["sha256"] == _digest(str(his.text))


async def _may_open(copy: Copy, someone: Any, project: str) -> bool:
    return bool(await someone.ask(project, copy.document, "check"))


async def test_many_write_at_once_through_both_keepers(site: Site) -> None:
    """Everybody has the same in the end; each acknowledged update is in the history once, in the order of numbers."""
    alice = await person(site)
    project = await project_of(alice)
    first = await opened(alice, project, "busy.md", "start")
    copies = [first, *[await opened(alice, project, "busy.md") for _ in range(4)]]
    acknowledged: list[tuple[int, int, int]] = []

    async def write(copy: Copy) -> None:
        for number in range(1, 21):
            stored = await copy.type(len(copy.text), f"{number},")
            acknowledged.append((copy.doc.client_id, number, stored["sequence"]))

    await asyncio.gather(*map(write, copies))
    for copy in copies:
        await copy.pull()
    assert len({str(copy.text) for copy in copies}) == 1
    found = (await alice.ask(project, first.document, "updates"))["updates"]
    stored = [(each["client"], each["number"], each["sequence"]) for each in found[2:]]
    assert sorted(stored) == sorted(acknowledged)
    assert [each["previous"] for each in found] == [0, *(each["sequence"] for each in found[:-1])]
    replayed: Doc[Any] = Doc()
    for each in found:
        replayed.apply_update(b64decode(each["update"]))
    assert str(replayed.get("text", type=Text)) == str(first.text)


async def test_an_update_that_is_sent_again_is_stored_once(site: Site) -> None:
    alice = await person(site)
    project = await project_of(alice)
    copy = await opened(alice, project, "twice.md")
    before = copy.doc.get_state()
    copy.text.insert(0, "once")
    update = copy.doc.get_update(before)
    stored = await copy.send(update)
    for _ in range(4):  # whichever keeper answers
        assert await copy.send(update, number=1) == stored
    assert len((await alice.ask(project, copy.document, "updates"))["updates"]) == 2
    with pytest.raises(RpcError, match="has sent number 1 already, with other bytes"):
        await copy.send(b"\x00\x00", number=1)


@pytest.mark.parametrize("same_number", [True, False], ids=["the same number", "other numbers"])
async def test_the_same_elements_through_both_keepers_at_once_are_stored_once(site: Site, same_number: bool) -> None:
    """One of two updates that add other characters under the same client and clock is stored; the other is refused, and
    what the history says is what both keepers say."""
    alice = await person(site)
    project = await project_of(alice)
    for _ in range(30):
        first = await opened(alice, project, "twin.md", "text")
        second = Copy(alice, project, first.document, Doc(client_id=first.doc.client_id))
        await second.pull()
        results = await asyncio.gather(
            _try_to_send(first, "one", 1), _try_to_send(second, "three", 1 if same_number else 2)
        )
        assert sorted(map(str, results)) == ["None", "conflict"]
        found = (await alice.ask(project, first.document, "updates"))["updates"]
        assert len(found) == 3
        replayed: Doc[Any] = Doc()
        for each in found:
            replayed.apply_update(b64decode(each["update"]))
        text = _digest(str(replayed.get("text", type=Text)))
        assert {(await alice.ask(project, first.document, "check"))["sha256"] for _ in range(4)} == {text}
        await alice.ask(project, first.document, "delete")


async def _try_to_send(copy: Copy, text: str, number: int) -> str | None:
    """The kind of the refusal, if there is one."""
    before = copy.doc.get_state()
    copy.text.insert(0, text)
    try:
        await copy.send(copy.doc.get_update(before), number)
    except RpcError as error:
        return error.kind
    return None


async def test_bad_updates_are_refused_and_change_nothing(site: Site) -> None:
    """Malformed, incomplete, repeated, empty, and too deep: an error each, and nothing in the stream."""
    alice = await person(site)
    project = await project_of(alice)
    copy = await opened(alice, project, "bad.md", "good")
    other: Doc[Any] = Doc()
    other["text"] = text = Text("x")
    mine = other.get_update()
    between = other.get_state()
    text += "y"
    later = other.get_update(between)
    everything = copy.doc.get_update()
    refused = {
        b"": "invalid_params",
        b"\x00\x00": "invalid_params",
        b"\xff" * 40: "invalid_params",
        mine[:-1]: "invalid_params",
        mine + b"\x00": "invalid_params",
        later: "conflict",
        everything: "conflict",
        b"\x01\x01\x05\x00\x08\x01\x04text\x01" + b"\x75\x01" * 2000 + b"\x7e\x00": "invalid_params",
        # A kind that Yjs and yrs read in two ways: a browser could not open the document any more.
        b"\x01\x01\x05\x00\x07\x01\x04text\x05\x01\x78\x00": "invalid_params",
    }
    before = await alice.ask(project, copy.document, "check")
    for update, kind in refused.items():
        with pytest.raises(RpcError) as error:
            await copy.send(update)
        assert error.value.kind == kind, (update[:20], error.value)
    assert await alice.ask(project, copy.document, "check") == before
    with pytest.raises(RpcError) as error:
        await copy.send(later)
    missing = other.get_update(b64decode(error.value.data["state_vector"]))
    await copy.send(missing)
    assert read_vector(b64decode((await alice.ask(project, copy.document, "check"))["state_vector"])).items() >= {
        (other.client_id, 2)
    }


async def test_random_bytes_never_end_a_keeper(site: Site) -> None:
    """Updates with flipped bytes: each is stored or refused, and both keepers go on."""
    alice = await person(site)
    project = await project_of(alice)
    copy = await opened(alice, project, "noise.md", "The quick brown fox")
    chance, kinds = random.Random(7), set[str]()
    for number in range(1, 60):
        doc: Doc[Any] = Doc()
        doc.apply_update(copy.doc.get_update())
        before = doc.get_state()
        doc.get("text", type=Text).insert(chance.randrange(5), "ab")
        update = bytearray(doc.get_update(before))
        update[chance.randrange(len(update))] ^= 1 << chance.randrange(8)
        try:
            await copy.send(bytes(update), number)
        except RpcError as error:
            kinds.add(error.kind)
        await copy.pull()
    assert kinds == {"invalid_params", "conflict"}
    assert all(process.poll() is None for process in site.keepers.values())


async def test_who_may_not_use_the_project_gets_nothing(site: Site) -> None:
    """Neither by a request, nor by an event; and at once when a right is taken away."""
    alice, eve = await person(site), await person(site)
    project = await project_of(alice)
    await project_of(eve)  # so that she may ask at all
    copy = await opened(alice, project, "secret.md", "secret")
    with pytest.raises(RpcError) as refused:
        await eve.ask(project, copy.document, "open")
    assert refused.value.kind == "forbidden"
    await alice.hub("share_project", project_id=project, email=eve.email)
    hers = await eventually(lambda: _opened(eve, project), "eve may open it")
    heard: list[Any] = []

    async def on_event(message: Any) -> None:
        heard.append(message)

    await eve.connection.subscribe(f"events.project.{project}.>", cb=on_event)
    await alice.hub("unshare_project", project_id=project, account_id=eve.account)
    await eventually(lambda: _fails(hers), "eve may not read any more")
    with pytest.raises(RpcError) as refused:
        await hers.type(0, "still here")
    assert refused.value.kind == "forbidden"
    await eventually(lambda: _is_cut_off(eve, project), "nats-server refuses eve's subscription")
    heard.clear()
    await copy.type(0, "more ")
    assert heard == []


async def _opened(someone: Person, project: str) -> Copy:
    return await opened(someone, project, "secret.md")


async def _fails(copy: Copy) -> bool:
    try:
        await copy.person.ask(copy.project, copy.document, "check")
    except RpcError:
        return True
    return False


async def _is_cut_off(someone: Person, project: str) -> bool:
    rights = someone.connection._reason
    await someone.connection.subscribe(f"events.project.{project}.x")
    await someone.connection.flush()
    return project in (someone.connection._reason or rights)


async def test_ids_that_are_wildcards_or_of_others(site: Site) -> None:
    alice, bob = await person(site), await person(site)
    project, foreign = await project_of(alice), await project_of(bob)
    theirs = await opened(bob, foreign, "theirs.md", "theirs")
    for document in ("*", ">", "x", theirs.document.upper()):
        with pytest.raises(RpcError) as refused:
            await alice.ask(project, document, "open")
        assert refused.value.kind == "forbidden"
    with pytest.raises(RpcError) as refused:
        await alice.ask("*", theirs.document, "open")
    assert refused.value.kind == "forbidden"
    for document in (theirs.document, str(uuid.uuid4())):  # a document of another project is not in this one
        with pytest.raises(RpcError) as refused:
            await alice.ask(project, document, "check")
        assert refused.value.kind == "not_found"


async def test_nobody_writes_in_the_name_of_another(site: Site) -> None:
    """nats-server refuses the subject; and events that look stored can be published by no client and no project."""
    alice, bob = await person(site), await person(site)
    project = await project_of(alice)
    copy = await opened(alice, project, "own.md", "mine")
    subject = f"docs.{alice.account}.{project}.{copy.document}"
    await bob.connection.publish(subject, encode_request("check"))
    await eventually(lambda: f'publish to "{subject}"' in bob.connection._reason, "nats-server refuses it")
    heard: list[Any] = []

    async def on_event(message: Any) -> None:
        heard.append(message.subject)

    await alice.connection.subscribe(f"events.project.{project}.>", cb=on_event)
    await alice.connection.flush()
    forged = f"events.project.{project}.doc.{copy.document}"
    await alice.connection.publish(forged, b"{}\n")
    await alice.ask(project, copy.document, "presence", client=5, state={"at": 1})
    await eventually(lambda: heard, "alice hears of her presence")
    assert heard == [f"events.project.{project}.presence.{copy.document}"]


async def test_nobody_writes_under_the_client_id_of_another(site: Site) -> None:
    """What its owner types next would repeat what is stored, and be lost."""
    alice, bob = await person(site), await person(site)
    project = await project_of(alice)
    hers = await opened(alice, project, "ids.md", "start")
    await hers.type(0, "mine ")
    await alice.hub("share_project", project_id=project, email=bob.email)
    await eventually(lambda: _may_open(hers, bob, project), "bob may open it")
    forger = Copy(bob, project, hers.document, Doc(client_id=hers.doc.client_id))
    await forger.pull()
    with pytest.raises(RpcError, match="another account's") as refused:
        await forger.type(0, "forged ")
    assert refused.value.kind == "forbidden"
    await hers.type(0, "still ")
    checked = await bob.ask(project, hers.document, "check")
    assert checked["sha256"] == _digest("still mine start")


async def test_an_answer_goes_to_nobody_elses_inbox(site: Site) -> None:
    """A keeper may publish to every account's inbox: so it refuses to when a request asks for that."""
    alice, bob = await person(site), await person(site)
    project = await project_of(alice)
    copy = await opened(alice, project, "inbox.md", "x")
    heard: list[Any] = []

    async def on_message(message: Any) -> None:
        heard.append(message)

    await bob.connection.subscribe(f"_INBOX.account.{bob.account}.*", cb=on_message)
    await bob.connection.flush()
    subject = f"docs.{alice.account}.{project}.{copy.document}"
    await alice.connection.publish(subject, encode_request("check"), reply=f"_INBOX.account.{bob.account}.x")
    for _ in range(6):  # each keeper has answered something later
        await alice.ask(project, copy.document, "check")
    await bob.connection.flush()
    assert heard == []


async def test_history_moments_versions_and_restore(site: Site) -> None:
    alice = await person(site)
    project = await project_of(alice)
    copy = await opened(alice, project, "past.md", "first")
    one = await copy.type(5, " second")
    copy.doc.get("text", type=Text)
    two = await copy.type(0, "zero ")

    async def text_at(**moment: int) -> str:
        answer = await alice.ask(project, copy.document, "state_at", **moment)
        doc: Doc[Any] = Doc()
        doc.apply_update(b64decode(answer["update"]))
        return str(doc.get("text", type=Text))

    assert await text_at(sequence=one["sequence"]) == "first second"
    assert await text_at(sequence=two["sequence"]) == "zero first second"
    assert await text_at(time=two["time"] + 60_000) == "zero first second"
    with pytest.raises(RpcError, match="has no update"):
        await text_at(sequence=two["sequence"] + 1000)
    with pytest.raises(RpcError, match="did not exist at that time"):
        await text_at(time=1_000_000)
    await alice.ask(project, copy.document, "name_version", sequence=one["sequence"], name="a good one")
    restored = await alice.ask(project, copy.document, "restore", sequence=one["sequence"])
    await copy.pull()
    assert str(copy.text) == "first second"
    found = await alice.ask(project, copy.document, "history")
    assert found["rows"][-1][0] == restored["sequence"]
    assert [(v["sequence"], v["name"]) for v in found["versions"]] == [(one["sequence"], "a good one")]
    grouped = await alice.ask(project, copy.document, "history", group_seconds=3600)
    assert sum(row[4] for row in grouped["rows"]) == sum(row[4] for row in found["rows"])
    assert len(grouped["rows"]) < len(found["rows"])
    await alice.ask(project, copy.document, "name_version", sequence=one["sequence"], name="")
    assert (await alice.ask(project, copy.document, "history"))["versions"] == []


async def test_paths(site: Site) -> None:
    """An id stays when its document is renamed; two documents have two paths; strange paths are refused."""
    alice = await person(site)
    project = await project_of(alice)
    one, two = await opened(alice, project, "one.md", "1"), await opened(alice, project, "b/two.md", "2")
    assert {d["path"] for d in await alice.ask(project, "-", "list")} == {"b/two.md", "one.md"}
    await alice.ask(project, one.document, "rename", path="a/eins.md")
    assert (await alice.ask(project, "-", "open", path="a/eins.md"))["document_id"] == one.document
    with pytest.raises(RpcError, match=r"has a document 'a/eins\.md' already"):
        await alice.ask(project, two.document, "rename", path="a/eins.md")
    with pytest.raises(RpcError, match=r"has no document 'one\.md'"):
        await alice.ask(project, "-", "open", path="one.md")
    for path in ("", "/etc/passwd", "../x", "a//b", "a/./b", "a\n", "x" * 1025):
        with pytest.raises(RpcError) as refused:
            await alice.ask(project, "-", "open", path=path, create=True)
        assert refused.value.kind == "invalid_params"


async def test_a_list_that_is_larger_than_a_message_comes_in_pages(site: Site) -> None:
    """3,500 documents with long paths, also for who asks by the Python client."""
    alice = await person(site)
    project = await project_of(alice)
    store = Store(await site.connect("keeper", site.identity.creds("DOCS", "keeper")))
    made = {str(uuid.uuid4()): f"{number:04}/" + "long/" * 30 for number in range(3500)}

    def add(all_: Paths) -> None:
        for document, path in made.items():
            all_.add(document, f"{path}x.md", alice.account, 0, Limits(3500, 2**40))

    await change(store, project, add)
    found, pages = dict[str, str](), 0
    while page := await alice.ask(project, "-", "list", after=max(found, default="")):
        found |= {row["document_id"]: row["path"] for row in page}
        pages += 1
    assert pages > 1
    assert found == {document: f"{path}x.md" for document, path in made.items()}
    url = f"nats://127.0.0.1:{site.nats_port}"
    async with await Client.admin(url, CredsText(site.identity.creds("PLATFORM", "admin"))) as client:
        assert [row["path"] for row in await client.list_documents(project)] == sorted(found.values())


async def test_ten_make_the_same_document_at_once(site: Site) -> None:
    alice = await person(site)
    project = await project_of(alice)
    made = await asyncio.gather(*(opened(alice, project, "race.md", "seed") for _ in range(10)))
    assert len({copy.document for copy in made}) == 1
    assert {str(copy.text) for copy in made} == {"seed"}


async def test_a_deleted_document_is_gone_from_the_streams(site: Site) -> None:
    """Its updates, snapshots and names; and who has it open can store nothing more."""
    alice = await person(site)
    project = await project_of(alice)
    copy, kept = (
        await opened(alice, project, "gone.md", "secret words"),
        await opened(alice, project, "kept.md", "kept"),
    )
    await alice.ask(project, copy.document, "name_version", sequence=(await copy.type(0, "!"))["sequence"], name="n")
    await alice.ask(project, copy.document, "delete")
    with pytest.raises(RpcError) as refused:
        await copy.type(0, "more")
    assert refused.value.kind in ("not_found", "unavailable")
    assert [d["document_id"] for d in await alice.ask(project, "-", "list")] == [kept.document]
    keeper = await site.connect("keeper", site.identity.creds("DOCS", "keeper"))
    assert await _subjects(keeper, copy.document) == []
    assert len(await _subjects(keeper, kept.document)) == 1


async def test_the_documents_of_a_deleted_project_are_purged(site: Site) -> None:
    """At once; and also if the project was deleted while no keeper ran. Those of others stay, also if the state has
    something that keepers cannot read."""
    alice = await person(site)
    deleted, later, kept = [await project_of(alice) for _ in range(3)]
    for project in (deleted, later, kept):
        copy = await opened(alice, project, "a.md", "secret words")
        sequence = (await copy.type(0, "!"))["sequence"]
        await alice.ask(project, copy.document, "name_version", sequence=sequence, name="n")
    keeper = await site.connect("keeper", site.identity.creds("DOCS", "keeper"))
    hub = await site.state()
    subject = f"$KV.projects.{kept}"
    record = (await ask(hub, "find", "projects", {"last_by_subj": subject}))["message"]["data"]
    await hub.request(subject, b"{", timeout=5)
    await alice.hub("delete_project", project_id=deleted)  # keepers look at one after the other
    await eventually(lambda: _has_nothing(keeper, deleted), "the documents are purged")
    assert len(await _subjects(keeper, kept)) == 3
    await hub.request(subject, b64decode(record), timeout=5)
    site.kill_keeper("keeper-1")
    site.kill_keeper("keeper-2")
    await alice.hub("delete_project", project_id=later)
    assert len(await _subjects(keeper, later)) == 3
    for name in ("keeper-1", "keeper-2"):
        site.start_keeper(name)
        await site.keeper_ready(name)
    await eventually(lambda: _has_nothing(keeper, later), "the documents are purged by a keeper that starts")
    assert len(await _subjects(keeper, kept)) == 3
    assert str((await opened(alice, kept, "a.md")).text) == "!secret words"


async def _has_nothing(keeper: Connection, project: str) -> bool:
    return not await _subjects(keeper, project)


async def _subjects(keeper: Connection, some_id: str) -> list[str]:
    """The subjects with the id of a document or a project that have messages."""
    found: list[str] = []
    for stream in DOCUMENT_STREAMS:
        answer = await keeper.request(f"$JS.API.STREAM.INFO.{stream}", b'{"subjects_filter":">"}', timeout=5)
        found += [s for s in (json.loads(answer.data)["state"].get("subjects") or {}) if some_id in s]
    return found


async def test_snapshots_keep_opening_short(site: Site) -> None:
    """After 300 updates there is one; a keeper that starts anew opens by it, and every moment can still be rebuilt."""
    alice = await person(site)
    project = await project_of(alice)
    copy = await opened(alice, project, "long.md")
    moments = [await copy.type(number, "x") for number in range(310)]
    keeper = await site.connect("keeper", site.identity.creds("DOCS", "keeper"))
    await eventually(lambda: _has_snapshot(keeper, copy.document), "there is a snapshot")
    site.kill_keeper("keeper-1")
    site.kill_keeper("keeper-2")
    for name in ("keeper-1", "keeper-2"):
        site.start_keeper(name)
        await site.keeper_ready(name)
    again = await opened(alice, project, "long.md")
    assert str(again.text) == "x" * 310
    for number in (0, 150, 305, 309):
        answer = await alice.ask(project, copy.document, "state_at", sequence=moments[number]["sequence"])
        doc: Doc[Any] = Doc()
        doc.apply_update(b64decode(answer["update"]))
        assert str(doc.get("text", type=Text)) == "x" * (number + 1)
    update = copy.doc.get_update()
    with pytest.raises(RpcError):  # the number is remembered beyond the snapshot and the restart
        await copy.send(update, number=310)


async def _has_snapshot(keeper: Connection, document: str) -> bool:
    return any(subject.startswith("snap.") for subject in await _subjects(keeper, document))


async def test_the_operator_reads_every_projects_documents(site: Site) -> None:
    alice = await person(site)
    project = await project_of(alice)
    copy = await opened(alice, project, "seen.md", "seen")
    admin = await site.admin()
    found = await call(admin, f"docs.admin.{project}.{copy.document}", "open")
    assert found["path"] == "seen.md"
    with pytest.raises(RpcError) as refused:
        await call(admin, f"docs.admin.{uuid.uuid4()}.{copy.document}", "open")
    assert refused.value.kind == "not_found"


async def test_a_document_larger_than_a_message(site: Site) -> None:
    """It comes in parts, which are one update."""
    alice = await person(site)
    project = await project_of(alice)
    copy = await opened(alice, project, "large.md")
    for _ in range(4):
        await copy.type(0, random.Random(1).randbytes(150_000).hex())
    first = await alice.ask(project, copy.document, "open")
    assert first["parts"] == 3
    rest = [
        await alice.ask(project, copy.document, "open", part=part, sequence=first["sequence"])
        for part in range(1, first["parts"])
    ]
    update = b"".join(b64decode(each["update"]) for each in (first, *rest))
    assert hashlib.sha256(update).hexdigest() == first["sha256"]
    doc: Doc[Any] = Doc()
    doc.apply_update(update)
    assert str(doc.get("text", type=Text)) == str(copy.text)
    assert encoded(doc.get_state()) == first["state_vector"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
