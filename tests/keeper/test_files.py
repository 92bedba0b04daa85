"""Documents and files that are kept the same: a hub, two keepers, a runner and a project's agent, all real."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import stat
import subprocess
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from pycrdt import Doc, Text

from natskit.bus.connection import Connection
from natskit.document import Document
from natskit.project.bound import record
from natskit.project.bound.text_merge import MIDDLE, MINE, THEIRS
from natskit.rpc import RpcError, encode_request
from tests.hub.site import Site, call
from tests.keeper.running import Place
from tests.keeper.writer import encoded, opened, person, project_of
from tests.kit.wait import eventually


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def sed(file: Path, script: str) -> None:
    subprocess.run(["sed", "-i", script, str(file)], check=True)


async def test_a_file_gets_a_document(place: Place) -> None:
    """Its text is the first edit by the disk; later the disk and a person change it in turn."""
    place.file("first.md").write_text("one\ntwo\nthree\n")
    async with place.client.document(place.project, "first.md", create=True) as doc:
        await eventually(lambda: str(doc.text) == "one\ntwo\nthree\n", "the text of the file arrives", 30)
        sed(place.file("first.md"), "s/two/2/")
        await eventually(lambda: str(doc.text) == "one\n2\nthree\n", "what sed did arrives", 30)
        doc.edit("one\n2\nthree\nfour\n")
        await place.reads("first.md", "one\n2\nthree\nfour\n")
        rows = await place.rows(doc.document_id)
        assert [row[2] for row in rows] == ["admin", "disk", "disk", "admin"]
        assert rows[2][4] < 60, "a small change is a small edit"


async def test_a_new_document_gets_a_file(place: Place) -> None:
    async with place.client.document(place.project, "new/folder/second.md", create=True, text="text\n") as doc:
        await place.reads("new/folder/second.md", "text\n")
        doc.edit("text\nmore\n")
        await place.reads("new/folder/second.md", "text\nmore\n")
        sed(place.file("new/folder/second.md"), "s/text/sed/")
        await eventually(lambda: str(doc.text) == "sed\nmore\n", "what sed did arrives", 30)


async def test_sed_while_somebody_types(place: Place) -> None:
    """Nothing of either is lost, and what sed did is a small edit by the disk, however long the text is."""
    lines = [f"line {number} of the text\n" for number in range(500)]
    async with place.client.document(place.project, "busy.md", create=True, text="".join(lines)) as doc:
        await place.reads("busy.md", "".join(lines))
        done = asyncio.Event()

        async def type_on() -> None:
            for number in range(40):
                doc.text.insert(0, f"{number} ")
                await asyncio.sleep(0.03)
            done.set()

        typing = asyncio.create_task(type_on())
        for number in (100, 200, 300):
            before = [row[2] for row in await place.rows(doc.document_id)].count("disk")
            sed(place.file("busy.md"), f"s/line {number} of/LINE {number} OF/")

            async def came(before: int = before) -> bool:
                return [row[2] for row in await place.rows(doc.document_id)].count("disk") > before

            await eventually(came, "the disk's edit", 30)
        await typing
        await doc.saved(20)
        wanted = "".join(f"{number} " for number in reversed(range(40))) + "".join(lines)
        for number in (100, 200, 300):
            wanted = wanted.replace(f"line {number} of", f"LINE {number} OF")
        await place.reads("busy.md", wanted)
        await eventually(lambda: str(doc.text) == wanted, "the document has everything", 30)
        rows = [row for row in await place.rows(doc.document_id) if row[2] == "disk"]
        assert len(rows) == 3
        assert all(row[4] < 200 for row in rows), rows


async def test_a_program_writes_where_somebody_typed(place: Place) -> None:
    """It had read the file before that, and writes something alike into the same line: both are there."""
    file = place.file("alike.md")
    async with place.client.document(place.project, "alike.md", create=True, text="one\ntwo\nthree\n") as doc:
        await place.reads("alike.md", "one\ntwo\nthree\n")
        doc.edit("one\ntwo<p6>\nthree\n")
        await place.reads("alike.md", "one\ntwo<p6>\nthree\n")
        other = place.file("alike.md.new")
        other.write_text("one\ntwo<s10>\nthree\n")
        other.rename(file)
        await eventually(lambda: "<s10>" in str(doc.text), "what the program wrote arrives", 30)
        await place.reads("alike.md", str(doc.text))
        assert str(doc.text) in ("one\ntwo<p6><s10>\nthree\n", "one\ntwo<s10><p6>\nthree\n")


async def test_the_file_keeps_what_is_no_text(place: Place) -> None:
    """Its mode, its line endings, its byte order mark, and that it has no newline at its end."""
    file = place.file("windows.txt")
    file.write_bytes("\ufeffone\r\ntwo 😀\r\nthree".encode())
    file.chmod(0o640)
    async with place.client.document(place.project, "windows.txt", create=True) as doc:
        await eventually(lambda: str(doc.text) == "one\ntwo 😀\nthree", "the text arrives", 30)
        doc.edit("one\nzwei 😀\n2½\nthree")
        await place.reads("windows.txt", "\ufeffone\r\nzwei 😀\r\n2½\r\nthree")
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        sed(file, "s/😀/👍/")
        await eventually(lambda: str(doc.text) == "one\nzwei 👍\n2½\nthree", "what sed did arrives", 30)
        assert [path.name for path in place.home.glob(".natskit-*")] == []


async def test_both_were_changed_while_the_project_was_stopped(place: Place) -> None:
    """What one of them changed is there; where both changed the same lines, both are, with marks around them."""
    old = "one\ntwo\nthree\nfour\nfive\n"
    async with (
        place.client.document(place.project, "apart.md", create=True, text=old) as apart,
        place.client.document(place.project, "clash.md", create=True, text=old) as clash,
    ):
        await place.reads("apart.md", old)
        await place.reads("clash.md", old)
        await eventually(lambda: clash.document_id in (place.home / record.PATH).read_text(), "it is remembered", 30)
        await place.stop()
        apart.edit("one\ntwo\nthree\nfour\n5\n")
        clash.edit("one\n2 by people\nthree\nfour\nfive\n")
        await apart.saved(20)
        await clash.saved(20)
        sed(place.file("apart.md"), "s/one/1/")
        sed(place.file("clash.md"), "s/two/2 by the disk/")
        await place.start()
        await place.reads("apart.md", "1\ntwo\nthree\nfour\n5\n")
        both = f"one\n{MINE}2 by people\n{MIDDLE}2 by the disk\n{THEIRS}three\nfour\nfive\n"
        await place.reads("clash.md", both)
        await eventually(lambda: str(clash.text) == both, "the document has both", 30)
        await eventually(lambda: str(apart.text) == "1\ntwo\nthree\nfour\n5\n", "the document has both", 30)
        rows = [row for row in await place.rows(clash.document_id) if row[2] == "disk"]
        assert len(rows) == 1
        assert rows[0][4] < 250, "the merge is a small edit"


async def test_a_file_that_is_removed(place: Place) -> None:
    """Who has the document open is told, and the document stays. The file comes back as an edit; so does it by one."""
    file = place.file("removed.md")
    async with place.client.document(place.project, "removed.md", create=True, text="text\n") as doc:
        await place.reads("removed.md", "text\n")
        file.rename(place.file("elsewhere.md"))
        await eventually(lambda: "was removed or renamed" in doc.file_problem, "it is told", 30)
        assert str(doc.text) == "text\n"
        place.file("elsewhere.md").write_text("text and more\n")
        place.file("elsewhere.md").rename(file)
        await eventually(lambda: str(doc.text) == "text and more\n", "it comes back", 30)
        await eventually(lambda: not doc.file_problem, "and that is told", 30)
        file.unlink()
        await eventually(lambda: "was removed or renamed" in doc.file_problem, "it is told", 30)
        doc.edit("typed\n")
        await place.reads("removed.md", "typed\n")
        assert {row[2] for row in await place.rows(doc.document_id)} == {"admin", "disk"}


async def test_what_is_no_text_is_refused(place: Place) -> None:
    """The file stays as it is, whatever people type, and they are told why."""
    async with place.client.document(place.project, "picture.png", create=True, text="typed\n") as doc:
        await place.reads("picture.png", "typed\n")
        place.file("picture.png").write_bytes(b"\x89PNG\0")
        await eventually(lambda: "is binary" in doc.file_problem, "the reason", 30)
        doc.edit("typed again\n")
        await doc.saved(20)
        place.file("picture.png").write_bytes(b"caf\xe9")
        await eventually(lambda: "is not text in UTF-8 (byte 3)" in doc.file_problem, "the next reason", 30)
        assert place.file("picture.png").read_bytes() == b"caf\xe9"
        place.file("picture.png").write_text("mended\n")
        await eventually(lambda: not doc.file_problem and "mended" in str(doc.text), "all is well again", 30)
        assert "typed again" in str(doc.text)
    async with place.client.document(place.project, "long.txt", create=True, text="x" * 300_000) as doc:
        await place.reads("long.txt", "x" * 300_000)
        doc.edit("x" * 600_000)
        await doc.saved(20)
        reason = "600,000 bytes, more than the 524,288 of one with a file"
        await eventually(lambda: reason in doc.file_problem, "the reason", 30)
        assert place.file("long.txt").stat().st_size == 300_000
        doc.edit("short\n")
        await place.reads("long.txt", "short\n")


async def test_a_document_that_is_renamed_or_deleted(place: Place) -> None:
    async with place.client.document(place.project, "old name.md", create=True, text="text\n") as doc:
        await place.reads("old name.md", "text\n")
        await place.owner.ask(place.project, doc.document_id, "rename", path="deep/new name.md")
        await place.reads("deep/new name.md", "text\n")
        assert not place.file("old name.md").exists()
        doc.edit("more\n")
        await place.reads("deep/new name.md", "more\n")
        await doc.saved(20)
    await place.owner.ask(place.project, doc.document_id, "delete")
    sed(place.file("deep/new name.md"), "s/more/less/")
    async with place.client.document(place.project, "deep/new name.md", create=True) as again:
        await eventually(lambda: str(again.text) == "less\n", "the file stayed", 30)


async def agent_of(site: Site, place: Place, project: str) -> Connection:
    """A connection with a copy of the creds of the place's agent, as a program in the project may make one."""
    creds = place.home.parent / "project.creds"
    return await site.connect("project", creds.read_text(), project)


async def test_what_an_agent_may_do(site: Site, place: Place) -> None:
    """A program in the project that has the agent's key writes as the disk, to its own project, and nothing else."""
    stranger = await person(site)
    foreign = await project_of(stranger)
    secret = await opened(stranger, foreign, "secret.md", "secret")
    own = await opened(place.owner, place.project, "own.md", "text\n")
    await place.reads("own.md", "text\n")
    agent = await agent_of(site, place, place.project)
    disk = f"docs.disk.{place.project}.{own.document}"
    found = await call(agent, disk, "text")
    assert found["text"] == "text\n"
    digest = hashlib.sha256(b"text\n").hexdigest()
    edit = {"sequence": found["sequence"], "sha256": digest, "changes": [[0, 4, "TEXT"]], "client": 77, "number": 1}
    stored = await call(agent, disk, "edit", **edit)
    assert await call(agent, disk, "edit", **edit) == stored | {"time": stored["time"]}, "repeated, and stored once"
    assert [row[2] for row in await place.rows(own.document)][-1] == "disk"
    await own.pull()
    assert str(own.text) == "TEXT\n"
    update = {"update": encoded(Doc({"text": Text("x")}).get_update()), "client": 7, "number": 1}
    for method, params in (
        ("update", update),
        ("open", {}),
        ("updates", {}),
        ("restore", {"sequence": found["sequence"]}),
        ("rename", {"path": "x"}),
        ("delete", {}),
        ("history", {}),
        ("name_version", {"sequence": found["sequence"], "name": "x"}),
    ):
        with pytest.raises(RpcError, match="for people alone"):
            await call(agent, disk, method, **params)
    with pytest.raises(RpcError, match="for the project's agent alone"):
        await place.owner.ask(place.project, own.document, "edit", **edit | {"number": 2})
    with pytest.raises(RpcError, match="for the project's agent alone"):
        await place.owner.ask(place.project, own.document, "text")
    with pytest.raises(RpcError, match="has no document"):
        await call(agent, f"docs.disk.{place.project}.{secret.document}", "text")
    typed = await own.type(0, "x")
    later = edit | {"sequence": typed["sequence"], "sha256": hashlib.sha256(b"xTEXT\n").hexdigest()}
    for wrong, why in (
        (edit | {"number": 3, "sha256": "0" * 64}, "read it again"),
        (edit | {"number": 3, "sequence": 10**9}, "has no update"),
        (edit | {"number": 3, "sequence": stored["sequence"]}, "read it again"),
        (edit | {"number": 3, "changes": [[0, 1, ""], [2, 3, ""]]}, "let none overlap"),
        (edit | {"number": 3, "changes": [[0, 6, ""]]}, "let none overlap"),
        (edit | {"number": 3, "changes": [[0, 0, "\ud800"]]}, "half a surrogate pair"),
        (later | {"number": 3, "client": own.doc.client_id}, "another account's"),
        (later | {"number": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(RpcError, match=why):
            await call(agent, disk, "edit", **wrong)
    count = len(await place.rows(own.document))
    for subject in (
        f"docs.{place.owner.account}.{place.project}.{own.document}",
        f"docs.admin.{place.project}.{own.document}",
        f"docs.disk.{foreign}.{secret.document}",
    ):
        with pytest.raises(nats.errors.Error):
            await agent.request(subject, encode_request("text", {}), timeout=1)
    heard: list[Any] = []

    async def hear(message: Any) -> None:
        heard.append(message)

    await place.owner.connection.subscribe(f"_INBOX.account.{place.owner.account}.>", cb=hear)
    inbox = f"_INBOX.account.{place.owner.account}.{place.project}.1"
    await agent.publish(disk, encode_request("text", {}), reply=inbox)
    assert (await call(agent, disk, "text"))["text"] == "xTEXT\n"
    assert len(await place.rows(own.document)) == count
    assert not [message for message in heard if b"TEXT" in message.data], "answers go to the one who asks"


def word(step: int) -> str:
    """A word that is like no other. A program that replaced one by another of nearly the same letters cannot be told
    from one that had not seen the first."""
    return f"<{hashlib.sha256(str(step).encode()).hexdigest()[:8]}>"


@pytest.mark.parametrize(("seed", "kills"), [(0, False), (1, True)])
async def test_random_changes_on_both_sides(site: Site, place: Place, seed: int, kills: bool) -> None:
    """People type, programs change files at once or slowly, keepers die; then the project stops, and both go on.

    In the end file, document and history agree, and every word that somebody wrote is there; once, until both changed
    the same lines while the project was stopped. A keeper that dies in the middle of an edit leaves it open whether it
    was stored. Then the agent merges, and shows both texts where they contradict.
    """
    chance = random.Random(seed)
    async with contextlib.AsyncExitStack() as stack:
        both = [await Both.opened(place, stack, f"random-{seed}-{number}.txt", chance) for number in range(3)]
        slow: list[asyncio.Task[None]] = []
        for step in range(80):
            one = chance.choice(both)
            match chance.randrange(9):
                case 0 | 1 | 2:
                    one.type(word(step))
                case 3 | 4:
                    one.run_sed(word(step))
                case 5:
                    slow.append(asyncio.create_task(one.replace_slowly(word(step))))
                case 6:
                    await asyncio.sleep(chance.uniform(0, 0.5))
                case _:
                    if kills and step % 3 == 0:
                        name = f"keeper-{chance.randrange(2) + 1}"
                        site.kill_keeper(name)
                        site.start_keeper(name)
                        await site.keeper_ready(name)
            await asyncio.sleep(chance.uniform(0, 0.15))
        await asyncio.gather(*slow)
        for one in both:
            await one.agree(most=100 if kills else 1)
        await place.stop()
        for step in range(80, 110):
            one = chance.choice(both)
            if chance.random() < 0.5:
                one.type(word(step))
            else:
                one.run_sed(word(step))
        for one in both:
            await one.doc.saved(60)
        await place.start()
        for one in both:
            await one.agree(most=100 if kills else 2)


@dataclass
class Both:
    """A document and its file, and the words that somebody wrote into them."""

    place: Place
    doc: Document
    file: Path
    chance: random.Random
    busy: asyncio.Lock
    """Held while a program changes the file: two of them would lose words without natskit, too."""
    words: set[str]

    @classmethod
    async def opened(
        cls, place: Place, stack: contextlib.AsyncExitStack[Any], name: str, chance: random.Random
    ) -> Both:
        start = "".join(f"line {number}\n" for number in range(30))
        doc = place.client.document(place.project, name, create=True, text=start)
        await stack.enter_async_context(doc)
        await place.reads(name, start)
        return cls(place, doc, place.file(name), chance, asyncio.Lock(), set())

    def type(self, word: str) -> None:
        lines = str(self.doc.text).split("\n")
        lines[self.chance.randrange(len(lines))] += word
        self.doc.edit("\n".join(lines))
        self.words.add(word)

    def run_sed(self, word: str) -> None:
        if not self.busy.locked():
            sed(self.file, f"{self.chance.randrange(1, 30)}s/$/{word}/")
            self.words.add(word)

    async def replace_slowly(self, word: str) -> None:
        """As a formatter that thinks between reading and writing."""
        if self.busy.locked():
            return
        async with self.busy:
            new = self.file.with_name(f"{self.file.name}.new")
            script = f'sed "$3" "$1" > "$2"; sleep {self.chance.uniform(0.1, 0.8)}; mv "$2" "$1"'
            edit = f"{self.chance.randrange(1, 30)}s/$/{word}/"
            program = await asyncio.create_subprocess_exec("sh", "-euc", script, "sh", str(self.file), str(new), edit)
            assert await program.wait() == 0
            self.words.add(word)

    async def agree(self, most: int) -> None:
        """Wait until document, file and history agree, and look for the words: each is there at most so often."""
        await self.doc.saved(60)

        async def agree() -> bool:
            check = await self.place.owner.ask(self.place.project, self.doc.document_id, "check")
            digest = hashlib.sha256(str(self.doc.text).encode()).hexdigest()
            return bool(check["sha256"] == digest_of(self.file) == digest)

        await eventually(agree, f"{self.file.name} and its document agree", 60)
        text = str(self.doc.text)
        for word in self.words:
            assert 1 <= text.count(word) <= most, (word, text)
        updates = (await self.place.owner.ask(self.place.project, self.doc.document_id, "updates"))["updates"]
        replayed: Doc[Any] = Doc()
        for update in updates:
            replayed.apply_update(b64decode(update["update"]))
        assert str(replayed.get("text", type=Text)) == text
        assert {update["author"] for update in updates} == {"admin", "disk"}
        assert sum(len(b64decode(update["update"])) for update in updates) < 60_000
