"""One document and the file at its path. When one of them changes, the other follows.

The *base* is what both had in common the last time. What differs from it was changed: the document by people, the file
by the project's programs.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from natskit.errors import AnswerLostError, ConnectionLostError
from natskit.project import tree
from natskit.project.bound import record, text_file
from natskit.project.bound.pace import SHOWN_SECONDS, Pace, again
from natskit.project.bound.record import Entry
from natskit.project.bound.text_file import TextFile
from natskit.project.content import version_of
from natskit.project.files import Home
from natskit.rpc import RpcError
from natskit.text_changes import changes

log = logging.getLogger(__name__)

QUIET_SECONDS, LATEST_SECONDS = 0.4, 1.0
"""A file is written when nobody has typed for that long, and at the latest so long after the first change."""
SETTLE_SECONDS, EMPTY_SECONDS = 0.1, 0.7
"""How long a file must not have been written before it is read; longer if it is empty: a program that writes a file
anew empties it first."""
GONE_SECONDS = 0.5
"""How long a file may be missing: some editors remove it before they write it anew."""
MOST_WAITS = 8
"""A file that is written all the time is read nevertheless."""
MOST_OLDER = 8
"""How often to look again at a document that is older than its file."""
MOST_TURNS = 8
AGAIN_SECONDS = 2.0
"""After how long to look again at what changes all the time, or at a replica that lags."""
ATTEMPTS = 3
RECENT_SECONDS = 5.0
"""How long a program may take from reading a file to replacing it, so that what was written meanwhile is not lost."""
MOST_RECENT, FORGET_SECONDS = 8, 60.0
"""How many versions of a file are remembered for that, and how long."""

PASSING = ("unavailable", "internal_error", "timeout")
"""Errors after which to try again."""

Problem = dict[str, str]
"""Why document and file are not the same: ``kind`` (``removed``, ``refused`` or ``slow``) and ``message``."""


class Project(Protocol):
    """What a bound document needs of its project."""

    home: Home
    writing: asyncio.Lock

    async def ask(self, document: str, method: str, **params: Any) -> Any:
        """Ask a keeper."""

    def note(self, document: str, entry: Entry) -> None:
        """Remember what a document and its file have in common."""

    async def tell(self, bound: Bound) -> None:
        """Tell the members of the project of the problem of a document, or that it is over."""


@dataclass(frozen=True)
class Base:
    """What document and file had in common."""

    text: str | None
    """``None`` if only its digest is known."""
    sequence: int
    sha256: str
    version: str
    is_fresh: bool = True
    """Whether everything since then was noticed at once. Then what both changed is merged as if two people typed."""


class Bound:
    """A document that is kept the same as its file."""

    def __init__(self, project: Project, document: str, path: str, entry: Entry | None) -> None:
        self.document, self.path = document, path
        self.problem: Problem | None = None
        self.sequence = 0
        """The newest of the document that an event told of."""
        self.signature: object = None
        """Of the file, when it was looked at the last time."""
        self._project = project
        self._moved_from = entry.path if entry is not None and entry.path != path else ""
        self._base: Base | None = None
        self._recent: list[tuple[float, Base]] = []
        """Bases that others have replaced, and when, in seconds since 1970."""
        if entry is not None:
            self._base = Base(None, entry.sequence, entry.sha256, entry.version, is_fresh=False)
        self._client, self._number = _new_client(), 0
        self._missing_since = 0.0
        self._waits = self._older = self._failures = 0
        self._pace = Pace()
        self._first = 0.0
        """When the first change came that is not in the file yet."""
        self._due: asyncio.TimerHandle | None = None
        self._working: asyncio.Task[None] | None = None
        self._again = False
        self._closed = False

    # ---- what happens

    def was_edited(self, sequence: int) -> None:
        """An update of the document was stored."""
        self.sequence = max(self.sequence, sequence)
        if self._base is not None and self.sequence <= self._base.sequence:
            return
        now = asyncio.get_running_loop().time()
        self._first = self._first or now
        self.look(max(0.0, min(QUIET_SECONDS, self._first + LATEST_SECONDS - now)))

    def was_moved(self, path: str) -> None:
        """The document has another path."""
        if path != self.path:
            self._moved_from, self.path = self._moved_from or self.path, path
            self.look(0)

    def missed_something(self) -> None:
        """Events may have been lost."""
        if self._base is not None:
            self._base = replace(self._base, is_fresh=False)
        self.look(0)

    def look(self, seconds: float) -> None:
        """Compare document and file after so many seconds, at the earliest."""
        if self._closed:
            return
        if self._due is not None:
            self._due.cancel()
        self._due = asyncio.get_running_loop().call_later(seconds, self._begin)

    def close(self) -> asyncio.Task[None] | None:
        """Compare no more. Returns what is still going on."""
        self._closed = True
        if self._due is not None:
            self._due.cancel()
        return self._working

    def _begin(self) -> None:
        self._due = None
        if self._working is not None:
            self._again = True
            return
        self._first = 0.0
        self._working = asyncio.get_running_loop().create_task(self._work())
        self._working.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working = None
        if not task.cancelled() and task.exception() is not None:
            log.error("document %s and its file", self.document, exc_info=task.exception())
            self._look_again()
        if self._again:
            self._again = False
            self.look(0)

    @property
    def _kind(self) -> dict[str, Any]:
        """What keepers have to know of the text that is asked for."""
        return {"notebook": True} if text_file.is_notebook(self.path) else {}

    # ---- the comparison

    async def _work(self) -> None:
        try:
            await self._follow_path()
            for _ in range(MOST_TURNS):
                if await self._turn():
                    self._failures = 0
                    return
            self.look(AGAIN_SECONDS)
        except ConnectionLostError as error:
            log.debug("document %s: %s", self.document, error)
            self._look_again()
        except RpcError as error:
            if error.kind in PASSING or "retry_after" in error.data:
                self._look_again(float(error.data.get("retry_after", 0)))
            elif error.kind == "not_found":  # the document was deleted, and the event comes
                log.debug("document %s: %s", self.document, error)
            else:
                await self._say("refused", str(error))

    def _look_again(self, asked: float = 0.0) -> None:
        """Look again after a pause that grows while no keeper answers."""
        self._failures += 1
        self.look(again(self._failures, asked))

    async def _turn(self) -> bool:
        """Compare once. Returns whether there is nothing more to do now."""
        _check_kind(self.path)
        file = await asyncio.to_thread(text_file.read, self._project.home, self.path)
        if file is not None and not self._is_settled(file):
            return True
        base = self._base
        is_old = base is not None and file is not None and file.version == base.version
        if file is not None and not is_old:
            self._check_not_emptied(file)
        if base is not None and file is not None and not is_old and (pause := self._pace.wait(time.time())):
            await self._say_how_slow(pause)
            self.look(pause)
            return True
        # Not what is heard of while the answer is on its way: a document that is busy is not one that lags.
        newest = max(self.sequence, base.sequence if base is not None and is_old else 0)
        found = await self._project.ask(
            self.document, "text", known=base.sequence if base and is_old else 0, **self._kind
        )
        if found["sequence"] < newest and self._is_lagging(found["sequence"]):
            return True
        self._older = 0
        if found["text"] is None:
            await self._say_in_step()
            return True
        if file is None:
            return await self._without_file(found["text"], found["sequence"])
        self._missing_since = 0.0
        if file.text == found["text"]:
            return await self._agree(found["text"], found["sequence"], file.version)
        if is_old and self._base is not None:
            return await self._to_file(file, found["text"], found["sequence"])
        await self._to_document(file, found["text"], found["sequence"])
        return False

    def _check_not_emptied(self, file: TextFile) -> None:
        """Raises :class:`RpcError` for a notebook that is empty: no cells are deleted for that, with what is typed."""
        base = self._base
        if base is None or file.text or not text_file.is_notebook(self.path) or base.sha256 == _digest(""):
            return
        raise RpcError(
            "invalid_state",
            f"the file {self.path} is empty, and the document has a notebook: write the file again, or remove it",
        )

    def _is_lagging(self, sequence: int) -> bool:
        """Whether to wait for a document that is at a ``sequence``, older than its file or than an event: a replica may
        be behind.

        If it stays so, the streams were restored from a backup. What was written since, the file may have. If it has,
        nobody knows what both have in common, and they are merged.
        """
        self._older += 1
        if self._older > MOST_OLDER:
            self.sequence = sequence
            if self._base is not None and not 0 < self._base.sequence <= sequence:
                self._base = None
            return False
        self.look(min(SETTLE_SECONDS * 2**self._older, AGAIN_SECONDS))
        return True

    def _is_settled(self, file: TextFile) -> bool:
        age = time.time() - file.modified
        wanted = EMPTY_SECONDS if not file.data and self._base is not None else SETTLE_SECONDS
        if 0 <= age < wanted and self._waits < MOST_WAITS:
            self._waits += 1
            self.look(wanted - age)
            return False
        self._waits = 0
        return True

    async def _agree(self, text: str, sequence: int, version: str) -> bool:
        """Document and file are the same."""
        self._replace_base(Base(text, sequence, _digest(text), version))
        self._project.note(self.document, Entry(self.path, sequence, _digest(text), version))
        await self._say_in_step()
        return True

    async def _without_file(self, text: str, sequence: int) -> bool:
        """The file is not there. The next edit of the document makes it again, and nothing else does."""
        now = asyncio.get_running_loop().time()
        if self._base is not None:
            self._missing_since = self._missing_since or now
            if now < self._missing_since + GONE_SECONDS:
                self.look(self._missing_since + GONE_SECONDS - now)
                return True
            if _digest(text) == self._base.sha256:
                await self._say(
                    "removed",
                    f"the file {self.path} was removed or renamed: the document stays, and its next edit makes the "
                    "file again",
                )
                return True
        return await self._write(text, sequence, None)

    async def _to_file(self, file: TextFile, text: str, sequence: int) -> bool:
        return await self._write(text, sequence, file.data)

    async def _write(self, text: str, sequence: int, before: bytes | None) -> bool:
        data = text_file.bytes_of(self.path, text, before or b"")
        if len(data) > text_file.MOST_BYTES:
            raise RpcError(
                "limit",
                f"the document has {len(data):,} bytes, more than the {text_file.MOST_BYTES:,} of one with a file",
            )
        if "\0" in text:
            raise RpcError("invalid_state", "the document has a NUL character, which no text file has")
        if data == before:  # what differs is in no file, such as ids that the document alone has
            return await self._agree(text, sequence, version_of(data))
        async with self._project.writing:
            is_done = await asyncio.to_thread(text_file.write, self._project.home, self.path, data, before)
        if not is_done:  # it may have been there for a moment, in which a program read it
            self._remember(Base(text, sequence, _digest(text), version_of(data)))
            return False
        return await self._agree(text, sequence, version_of(data))

    async def _to_document(self, file: TextFile, mine: str, sequence: int) -> None:
        """The file was changed: bring that into the document."""
        old, base = await self._text_of_base(), self._base
        try:
            if base is not None and old is not None:
                read = self._read_by_program(base, file)
                if read is not base:  # what this client wrote since is not in it
                    self._client, self._number = _new_client(), 0
                if base.is_fresh and read.is_fresh and read.sequence:
                    await self._edit(read.sequence, read.text or "", file.text)
                else:
                    await self._edit(sequence, mine, text_file.merged(self.path, read.text, mine, file.text))
            else:
                await self._edit(sequence, mine, text_file.merged(self.path, None, mine, file.text))
        except (RpcError, ConnectionLostError) as error:
            # It may be stored: the same by a new client would be there twice, and a merge finds it.
            self._client, self._number = _new_client(), 0
            self._base = base and replace(base, is_fresh=False)
            if isinstance(error, RpcError) and error.kind == "conflict":
                return
            raise
        self._replace_base(Base(file.text, 0, _digest(file.text), file.version))
        if base is not None:  # the first time is no change
            self._pace.took(time.time(), _sizes_of_changes(mine, file.text)[0])

    def _replace_base(self, base: Base) -> None:
        if self._base is not None and self._base.text not in (None, base.text):
            self._remember(self._base)
        self._base = base

    def _remember(self, base: Base) -> None:
        """A program may have read this, and not yet replaced it."""
        now = time.time()
        recent = [(when, old) for when, old in self._recent if now - when < FORGET_SECONDS]
        self._recent = [*recent, (now, base)][-MOST_RECENT:]

    def _read_by_program(self, base: Base, file: TextFile) -> Base:
        """What the program had read that wrote a file: one such as ``sed`` reads it, and replaces it later.

        What people wrote meanwhile, and the agent put into the file, is not in its text, and it did not remove it.
        The least that a program may have done is taken for what it did; of two that are as small, the one that removes
        less.
        """
        known = [old for when, old in reversed(self._recent) if when > file.modified - RECENT_SECONDS]
        return min([base, *known], key=lambda each: _sizes_of_changes(each.text or "", file.text))

    async def _text_of_base(self) -> str | None:
        """What document and file had in common; ``None`` if nobody knows any more."""
        base = self._base
        if base is None or base.text is not None or not base.sequence:
            return base.text if base is not None else None
        try:
            found = await self._project.ask(self.document, "text", sequence=base.sequence, **self._kind)
        except RpcError as error:
            if error.kind in PASSING:
                raise
            return None
        text = str(found["text"])
        if _digest(text) != base.sha256:
            return None
        self._base = replace(base, text=text)
        return text

    async def _edit(self, sequence: int, old: str, new: str) -> None:
        made = changes(old, new)
        if not made:
            return
        self._number += 1
        params = {"sequence": sequence, "sha256": _digest(old), "changes": made, **self._kind}
        for attempt in range(ATTEMPTS):
            try:
                stored = await self._project.ask(
                    self.document, "edit", **params, client=self._client, number=self._number
                )
            except (AnswerLostError, ConnectionLostError):
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(SETTLE_SECONDS)
            else:
                self.sequence = max(self.sequence, stored["sequence"])
                return

    async def _follow_path(self) -> None:
        """The document has a new path: the file gets it too, unless there is one."""
        old, self._moved_from = self._moved_from, ""
        if not old or self._base is None:  # a file that never was the same is not the document's
            return
        try:
            await asyncio.to_thread(_move, self._project.home, old, self.path)
        except RpcError as error:
            if error.kind == "conflict":
                self._base = None  # of another file
            log.debug("the file of document %s stays: %s", self.document, error)

    async def _say_in_step(self) -> None:
        """Document and file are the same, perhaps only until the program writes again that never ends."""
        pause = self._pace.wait(time.time())
        if pause > SHOWN_SECONDS:
            await self._say_how_slow(pause)
            self.look(pause)
        else:
            await self._say()

    async def _say_how_slow(self, pause: float) -> None:
        if pause > SHOWN_SECONDS:
            await self._say(
                "slow",
                f"a program writes the file {self.path} again and again: its changes come into the document after "
                "pauses, and so does what is typed come into the file",
            )

    async def _say(self, kind: str = "", message: str = "") -> None:
        problem = {"kind": kind, "message": message} if kind else None
        if problem is not None and kind != "slow" and self._base is not None:
            self._base = replace(self._base, is_fresh=False)  # from now on they go different ways
        if problem != self.problem:
            self.problem = problem
            await self._project.tell(self)


def _move(home: Home, old: str, new: str) -> None:
    folder = ""
    for name in new.split("/")[:-1]:
        folder = f"{folder}/{name}" if folder else name
        with suppress(RpcError):  # it is there
            tree.make_directory(home, folder)
    tree.move(home, old, new, replace=False)


def _check_kind(path: str) -> None:
    """Raises :class:`RpcError` for files that no document is kept the same as."""
    if path.startswith(f"{record.FOLDER}/"):
        raise RpcError("invalid_state", f"{path[:200]} is natskit's own")


def _sizes_of_changes(old: str, new: str) -> tuple[int, int]:
    """How many characters were added or removed, and how many of them were removed."""
    made = changes(old, new)
    removed = sum(change.end - change.start for change in made)
    return removed + sum(len(change.text) for change in made), removed


def _new_client() -> int:
    return random.SystemRandom().getrandbits(31) + 1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
