"""Documents through the Python client, with two keepers; and what dies while people write."""

from __future__ import annotations

import asyncio
import contextlib
import random
from base64 import b64decode
from typing import Any

import pytest
import pytest_asyncio
from pycrdt import Doc, Text

from natskit.client import Client
from natskit.document import Document
from natskit.errors import NatskitError
from natskit.rpc import RpcError
from tests.hub.site import Site
from tests.keeper.writer import encoded, opened, person, project_of
from tests.kit.wait import eventually


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def project(site: Site) -> str:
    return await project_of(await person(site))


async def test_two_stay_in_step(client: Client, project: str) -> None:
    async with (
        client.document(project, "notes.md", create=True, text="one\ntwo\nthree\n") as mine,
        client.document(project, "notes.md") as theirs,
    ):
        mine.edit("one\n2 😀\nthree\n")
        theirs.edit("zero\none\ntwo\nthree\n")
        await mine.saved(20)
        await theirs.saved(20)
        await eventually(lambda: str(mine.text) == str(theirs.text) == "zero\none\n2 😀\nthree\n", "both agree")
        rows = [row async for row in mine.history()]
        assert {row[2] for row in rows} == {"admin"}
        async for _ in theirs.changes():
            break
        moment = rows[1][0]
        assert str((await mine.state_at(sequence=moment)).get("text", type=Text)) == "one\ntwo\nthree\n"
        await mine.restore(sequence=moment)
        await eventually(lambda: str(theirs.text) == "one\ntwo\nthree\n", "the other sees what was restored")


async def test_an_edit_of_a_copy_is_merged(client: Client, project: str) -> None:
    """As in an editor: what others wrote while it was open stays."""
    async with client.document(project, "merge.md", create=True, text="a\nb\nc\n") as mine:
        before = mine.copy()
        mine.edit("a\nB\nc\n")
        mine.edit_since(before, "a\nb\nC\n")
        await mine.saved(20)
        assert str(mine.text) == "a\nB\nC\n"


async def test_what_is_typed_quickly_is_sent_in_few_updates(client: Client, project: str) -> None:
    async with client.document(project, "quick.md", create=True) as mine:
        for _ in range(500):
            mine.text.insert(0, "x")
        await mine.saved(20)
        rows = [row async for row in mine.history()]
        assert len(rows) < 20
    async with client.document(project, "quick.md") as again:
        assert str(again.text) == "x" * 500


async def test_who_names_the_client_id_of_another_copy_is_heard_there(site: Site, client: Client) -> None:
    """Its updates are not taken for those of the copy itself."""
    eve = await person(site)
    project = await project_of(eve)
    async with client.document(project, "named.md", create=True, text="text") as mine:
        hers = await opened(eve, project, "named.md")
        before = hers.doc.get_state()
        hers.text.insert(0, "hers ")
        update = encoded(hers.doc.get_update(before))
        await eve.ask(project, hers.document, "update", update=update, client=mine.doc.client_id, number=1)
        await eventually(lambda: str(mine.text) == "hers text", "the update is in the copy")
        mine.edit("hers text, mine")
        await mine.saved(20)
        await hers.pull()
        assert str(hers.text) == "hers text, mine"


async def test_what_is_typed_after_a_pause_is_sent_at_once(
    client: Client, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collecting begins with the first update, and does not delay it."""
    monkeypatch.setattr("natskit.document.BATCH_SECONDS", 3600.0)
    async with client.document(project, "pause.md", create=True) as mine:
        mine.edit("the first key")
        await mine.saved(20)


async def test_what_a_keeper_refuses_is_said(client: Client, project: str) -> None:
    with pytest.raises(RpcError, match="has no document"):
        async with client.document(project, "missing.md"):
            pass
    with pytest.raises(NatskitError, match="either by its path or"):
        client.document(project)


async def test_whatever_dies_nothing_acknowledged_is_lost(site: Site, client: Client) -> None:
    """Three write while keepers and nats-server are killed, and one types offline: all agree in the end, and each
    update is in the history once, with its author."""
    alice = await person(site)
    project = await project_of(alice)
    other = await opened(alice, project, "chaos.md", "start ")
    chance, acknowledged = random.Random(3), list[tuple[int, int, int]]()
    done = asyncio.Event()

    async def write(document: Document, name: str) -> None:
        number = 0
        while not done.is_set():
            number += 1
            document.text.insert(chance.randrange(len(document.text) + 1), f"{name}{number} ")
            await asyncio.sleep(chance.uniform(0.01, 0.1))

    async def write_bare() -> None:
        """By the bare protocol: sends the same update again until it is stored."""
        number = 1
        while not done.is_set():
            before = other.doc.get_state()
            other.text.insert(0, f"c{number} ")
            update = other.doc.get_update(before)
            while True:
                with contextlib.suppress(Exception):
                    stored = await other.send(update, number)
                    break
                await asyncio.sleep(0.05)
            acknowledged.append((other.doc.client_id, number, stored["sequence"]))
            number += 1

    async with client.document(project, "chaos.md") as one, client.document(project, "chaos.md") as two:
        writers = [asyncio.create_task(work) for work in (write(one, "a"), write(two, "b"), write_bare())]
        for turn in range(3):
            name = f"keeper-{turn % 2 + 1}"
            site.kill_keeper(name)
            await asyncio.sleep(0.3)
            site.start_keeper(name)
            await site.keeper_ready(name)
        site.server.kill()
        await asyncio.sleep(0.5)
        site.server.start_as_configured().wait_until_ready()
        count = len(acknowledged)
        await eventually(lambda: len(acknowledged) > count + 3, "writing goes on", 60)
        done.set()
        await asyncio.gather(*writers)
        await one.saved(60)
        await two.saved(60)
        await eventually(lambda: str(one.text) == str(two.text), "both agree", 60)
        await other.pull()
        assert str(other.text) == str(one.text)
        found: list[dict[str, Any]] = []
        after, more = 0, True
        while more:
            page = await alice.ask(project, other.document, "updates", after=after)
            found, more = found + page["updates"], page["more"]
            after = found[-1]["sequence"]
    by_sequence = {each["sequence"]: each for each in found}
    for client_id, number, sequence in acknowledged:
        update = by_sequence[sequence]
        assert (update["client"], update["number"], update["author"]) == (client_id, number, alice.account)
    sent = [(each["client"], each["number"]) for each in found]
    assert len(sent) == len(set(sent))
    assert [each["previous"] for each in found] == [0, *(each["sequence"] for each in found[:-1])]
    replayed: Doc[Any] = Doc()
    for each in found:
        replayed.apply_update(b64decode(each["update"]))
    assert str(replayed.get("text", type=Text)) == str(one.text)
    print(f"{len(found)} updates, {len(acknowledged)} of them by the bare protocol")
