"""A document and its file, where a keeper reads from a replica that is behind: no real one can be made to be."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from natskit.project.bound.document import Bound
from natskit.project.bound.record import Entry
from natskit.project.files import Home
from tests.kit.wait import eventually


class Replica:
    """Answers with the texts that it is given, one after the other, and with the last one from then on."""

    def __init__(self, home: Path) -> None:
        self.home, self.writing = Home(home), asyncio.Lock()
        self.texts: list[tuple[int, str]] = []

    async def ask(self, document: str, method: str, **params: Any) -> Any:
        assert (document, method) == ("d", "text")
        sequence, text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        return {"sequence": sequence, "text": text if params.get("known") != sequence else None}

    def note(self, document: str, entry: Entry) -> None:
        pass

    async def tell(self, bound: Bound) -> None:
        pass


async def test_a_replica_that_is_behind_an_event(tmp_path: Path) -> None:
    """The file gets the text of the event, although no other event comes."""
    replica, file = Replica(tmp_path), tmp_path / "f.md"
    replica.texts = [(5, "one\n")]
    bound = Bound(replica, "d", "f.md", None)
    bound.look(0)
    await eventually(lambda: file.exists() and file.read_text() == "one\n", "the file is made", 10)
    for texts in ([(6, "one two\n"), (7, "one two three\n")], [(7, "one two three\n"), (8, "four\n")]):
        replica.texts = texts
        bound.was_edited(texts[-1][0])
        await eventually(partial(_reads, file, texts[-1][1]), "the file has the newest", 10)
    assert bound.close() is None
    assert not bound.problem


async def test_streams_that_were_restored_are_behind_for_good(tmp_path: Path) -> None:
    """After some seconds the agent believes them, and loses nothing that the file has."""
    replica, file = Replica(tmp_path), tmp_path / "f.md"
    file.write_text("one\n")
    replica.texts = [(5, "one\n")]
    bound = Bound(replica, "d", "f.md", None)
    bound.look(0)
    await asyncio.sleep(0)
    replica.texts = [(3, "one\n")]
    bound.was_edited(7)
    await eventually(lambda: bound.sequence == 0, "the agent takes what it is told for the newest", 30)
    replica.texts = [(4, "one\ntwo\n")]
    bound.was_edited(4)
    await eventually(lambda: file.read_text() == "one\ntwo\n", "the file follows again", 10)
    bound.close()


def _reads(file: Path, text: str) -> bool:
    return file.read_text() == text
