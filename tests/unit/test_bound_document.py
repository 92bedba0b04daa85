"""A document and its file, where a keeper reads from a replica that is behind: no real one can be made to be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from natskit.project.bound import document as bound_document
from natskit.project.bound.document import Bound
from natskit.project.bound.record import Entry
from natskit.project.files import Home
from tests.kit.wait import eventually


class Replica:
    """Answers with the texts that it is given, one after the other, and with the last one from then on."""

    def __init__(self, home: Path, *texts: tuple[int, str]) -> None:
        self.home, self.writing = Home(home), asyncio.Lock()
        self.texts = list(texts)
        self.asked: Callable[[], None] = lambda: None
        self.edits: list[dict[str, Any]] = []
        self.edited = (0, "")
        """What the document is after an edit."""
        self.agreed: list[int] = []
        """The sequences at which document and file were the same."""

    async def ask(self, document: str, method: str, **params: Any) -> Any:
        assert document == "d"
        self.asked()
        if method == "edit":
            self.edits.append(params)
            self.texts = [self.edited]
            return {"sequence": self.edited[0]}
        if wanted := params.get("sequence"):
            return {"sequence": wanted, "text": dict(self.texts)[wanted]}
        sequence, text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        return {"sequence": sequence, "text": text if params.get("known") != sequence else None}

    def note(self, document: str, entry: Entry) -> None:
        assert document == "d"
        self.agreed.append(entry.sequence)

    async def tell(self, bound: Bound) -> None:
        pass


def _last_is(agreed: list[int], sequence: int) -> bool:
    return agreed[-1] == sequence


async def ended(bound: Bound) -> None:
    if (working := bound.close()) is not None:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


async def test_a_replica_that_is_behind_an_event(tmp_path: Path) -> None:
    """The file gets the text of the event, although no other event comes."""
    replica, file = Replica(tmp_path, (5, "one\n")), tmp_path / "f.md"
    bound = Bound(replica, "d", "f.md", None)
    bound.look(0)
    await eventually(lambda: replica.agreed == [5], "the file is made", 10)
    for texts in ([(6, "one two\n"), (7, "one two three\n")], [(7, "one two three\n"), (8, "four\n")]):
        replica.texts = [*texts]
        bound.was_edited(texts[-1][0])
        await eventually(partial(_last_is, replica.agreed, texts[-1][0]), "the file has the newest", 10)
        assert file.read_text() == texts[-1][1]
    await ended(bound)
    assert not bound.problem


async def test_streams_that_were_restored_are_behind_for_good(tmp_path: Path) -> None:
    """After some seconds the agent believes them, and what the file has in addition is merged."""
    replica, file = Replica(tmp_path, (5, "one\ntwo\n")), tmp_path / "f.md"
    bound = Bound(replica, "d", "f.md", None)
    bound.look(0)
    await eventually(lambda: replica.agreed == [5], "both are the same", 10)
    replica.texts, replica.edited = [(3, "one\n")], (4, "one\ntwo\n")
    bound.was_edited(7)
    await eventually(lambda: replica.edits, "the agent brings what the file has into the document", 60)
    assert replica.edits[0]["sequence"] == 3
    assert [change.text for change in replica.edits[0]["changes"]] == ["two\n"]
    await eventually(partial(_last_is, replica.agreed, 4), "both are the same again", 10)
    assert file.read_text() == "one\ntwo\n"
    await ended(bound)


async def test_a_document_that_is_always_busy_is_not_behind(tmp_path: Path, monkeypatch: Any) -> None:
    """An event while an answer is on its way says nothing of that answer."""
    monkeypatch.setattr(bound_document, "MOST_OLDER", 10**6)
    replica, file = Replica(tmp_path, (5, "5\n")), tmp_path / "f.md"
    bound = Bound(replica, "d", "f.md", None)
    newest = 5

    def typed() -> None:
        nonlocal newest
        replica.texts = [(newest, f"{newest}\n")]
        newest += 1
        bound.was_edited(newest)

    bound.look(0)
    await eventually(lambda: replica.agreed == [5], "both are the same", 10)
    replica.asked = typed
    bound.was_edited(6)
    await eventually(lambda: len(replica.agreed) > 6, "the file follows", 30)
    assert replica.agreed == sorted(replica.agreed)
    assert file.read_text() == f"{replica.agreed[-1]}\n"
    assert replica.edits == []
    await ended(bound)
