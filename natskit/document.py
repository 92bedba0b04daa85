"""A document that several people edit at once. :meth:`natskit.client.Client.document` opens one.

The protocol is described in docs/reference/documents.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pycrdt import Doc, Text, TransactionEvent, merge_updates

from natskit import json_text
from natskit.bus.connection import Connection
from natskit.bus.document_record import LEFT_OUT, Update, decode
from natskit.bus.permissions import DISK
from natskit.bus.yjs_format import read, read_vector, write_vector
from natskit.errors import AnswerLostError, ConnectionLostError, NatskitError
from natskit.process.lifecycle import cancel
from natskit.rpc import RpcError
from natskit.text_changes import Change, changes

log = logging.getLogger(__name__)

BATCH_SECONDS = 0.03
"""How long after an update the next one is sent, and edits are collected. An edit after a pause is sent at once."""
MOST_MERGED = 32
"""Updates that are merged at a time. Merging takes time by their square."""
LONGEST_PAUSE = 2.0
"""Between two attempts to send or fetch, in seconds."""
CHECK_SECONDS = 30.0
"""How often a document asks whether it has everything: the event of the last update may be lost."""
QUIET_SECONDS = 2.0
"""How long after the last update it asks, too, and at most ``JITTER_SECONDS`` more: not all copies at once."""
JITTER_SECONDS = 1.0
ANSWERS_LOST = 5
"""How often a request is sent whose answer was lost with the connection."""
PRESENCE_SECONDS = 30.0
"""How long what was told of a document's file counts, unless it is told again."""
SAVE_SECONDS = 20.0
"""How long leaving the ``async with`` block waits until every edit is stored."""


class Requests(Protocol):
    """What a document needs of a client."""

    account_id: str | None
    """Whose client it is; ``None`` for the operator's."""

    @property
    def connection(self) -> Connection:
        """The connection to NATS."""

    async def call_documents(self, project_id: str, method: str, *, document: str = "-", **params: Any) -> Any:
        """Call a method of documents."""


class Document:
    """A document in step with everybody else's. Edit :attr:`text`, or any shared type of :attr:`doc`.

    Edits are sent by themselves, a few a second at most, each stored before anybody else sees it; :meth:`saved` waits
    for that, and so does leaving the ``async with`` block. Others' edits arrive by themselves. After a lost connection
    both continue.
    """

    def __init__(
        self,
        client: Requests,
        project_id: str,
        *,
        path: str | None = None,
        document_id: str | None = None,
        create: bool = False,
        text: str = "",
    ) -> None:
        self.project_id = project_id
        self.document_id = document_id or ""
        self.path = path or ""
        self.doc: Doc[Any] = Doc()
        """The pycrdt document. Its ``Text`` counts bytes of UTF-8: :meth:`edit` takes whole texts instead."""
        self.sequence = 0
        """The last stored update in it."""
        self.problem = ""
        """Why the last update could not be sent, in words; empty when all is well."""
        self._client = client
        self._wanted = {"path": path, "create": create, "text": text} if path is not None else {}
        self._number = 0
        self._stored_clock = 0
        """How many elements of this copy are stored."""
        self._edits: list[bytes] = []
        self._on_their_way = 0
        self._edited = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self._stirred = asyncio.Event()
        """Something was stored, by this copy or another."""
        self._arrived: list[Update] = []
        self._behind = False
        self._newest = 0
        """The newest sequence that an event told of."""
        self._failure: NatskitError | None = None
        self._is_applying = False
        self._undo: list[Callable[[], Any]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._subscriptions: list[Subscription] = []
        self._file_problem, self._file_problem_until = "", 0.0
        self._is_left_out = False

    async def __aenter__(self) -> Self:
        opened = await self._open(**self._wanted)
        self.document_id, self.path = opened["document_id"], opened["path"]
        self._is_left_out = opened.get("left_out", False)
        subject = f"events.project.{self.project_id}.doc.{self.document_id}"
        subscription = await self._client.connection.subscribe(subject, cb=self._on_event)
        self._undo = [self._client.connection.on_reconnect(self._note_behind)]
        self._note_behind()  # something may have been stored between the two
        self.doc.observe(self._on_edit)
        self._tasks = [asyncio.create_task(work) for work in (self._send(), self._follow(), self._look())]
        presence = f"events.project.{self.project_id}.presence.{self.document_id}"
        self._subscriptions = [subscription, await self._client.connection.subscribe(presence, cb=self._on_presence)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.saved(SAVE_SECONDS)
        finally:
            for undo in self._undo:
                undo()
            await cancel(self._tasks)
            for subscription in self._subscriptions:
                with contextlib.suppress(Exception):  # the connection may be closed
                    await subscription.unsubscribe()

    @property
    def text(self) -> Text:
        """The text of a text document."""
        found: Text = self.doc.get("text", type=Text)
        return found

    @property
    def file_problem(self) -> str:
        """Why the file at the document's path is not the same, as the project's agent says; empty if it is.

        Empty as well if the project is stopped. What the file has is not known before the agent has told of it, which
        it does every ten seconds.
        """
        if time.monotonic() < self._file_problem_until:
            return self._file_problem
        return LEFT_OUT if self._is_left_out else ""

    @property
    def unsaved(self) -> int:
        """How many edits are not stored yet."""
        return len(self._edits) + self._on_their_way

    def edit(self, wanted: str) -> None:
        """Make the text read ``wanted``, by small edits, which fit between those of others."""
        set_text(self.text, wanted)

    def copy(self) -> Doc[Any]:
        """The document as it is now, apart from what comes. :meth:`edit_since` brings an edit of it back."""
        made: Doc[Any] = Doc()
        made.apply_update(self.doc.get_update())
        made.get("text", type=Text)
        return made

    def edit_since(self, before: Doc[Any], wanted: str) -> None:
        """Make the text of a :meth:`copy` read ``wanted``, and merge that with what came since."""
        state = before.get_state()
        set_text(before.get("text", type=Text), wanted)
        self.doc.apply_update(before.get_update(state))

    async def saved(self, seconds: float | None = None) -> None:
        """Wait until every edit is stored.

        Raises :class:`RpcError` if a keeper refuses one for good, and :class:`ConnectionLostError` when it takes more
        than ``seconds``.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            raise ConnectionLostError(
                f"{self.unsaved} edits of {self.path} are not stored after {seconds:g} s: {self.problem or 'no answer'}"
            ) from None
        if self._failure is not None:
            raise self._failure

    async def changes(self) -> AsyncIterator[None]:
        """Yield after each change by others."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield

    async def history(self, group_seconds: float = 0) -> AsyncIterator[list[Any]]:
        """Yield ``[sequence, time, author, client, bytes]`` for each stored update, oldest first.

        With ``group_seconds``, updates of one author that are at most that far apart are one row.
        """
        after, more = 0, True
        while more:
            page = await self._ask("history", after=after, group_seconds=group_seconds)
            for row in page["rows"]:
                yield row
                after = row[0]
            more = page["more"] and bool(page["rows"])

    async def state_at(self, *, sequence: int | None = None, time: int | None = None) -> Doc[Any]:
        """The document as it was when the update with a sequence was stored, or at a time (milliseconds since 1970)."""
        moment = {"sequence": sequence} if sequence is not None else {"time": time}
        doc: Doc[Any] = Doc()
        _, update = await self._in_parts("state_at", moment)
        doc.apply_update(update)
        return doc

    async def restore(self, *, sequence: int | None = None, time: int | None = None) -> dict[str, Any]:
        """Make the text what it was at a moment, by a new edit."""
        await self.saved(SAVE_SECONDS)
        moment = {"sequence": sequence} if sequence is not None else {"time": time}
        return dict(await self._ask("restore", **moment))

    async def name_version(self, sequence: int, name: str) -> None:
        """Give a moment of the history a name; an empty one removes it."""
        await self._ask("name_version", sequence=sequence, name=name)

    # ---- requests

    async def _ask(self, method: str, **params: Any) -> Any:
        """Call a method; again if the answer was lost, but for ``restore``, which would restore twice."""
        for attempt in range(ANSWERS_LOST):
            try:
                return await self._ask_once(method, **params)
            except AnswerLostError:
                if method == "restore" or attempt == ANSWERS_LOST - 1:
                    raise
        raise AssertionError

    async def _ask_once(self, method: str, **params: Any) -> Any:
        return await self._client.call_documents(self.project_id, method, document=self.document_id or "-", **params)

    async def _open(self, **params: Any) -> dict[str, Any]:
        opened, update = await self._in_parts("open", params | {"state_vector": _base64(self.doc.get_state())})
        self._apply(update)
        self.sequence = opened["sequence"]
        return opened

    async def _in_parts(self, method: str, params: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """An answer whose update comes in parts, and the whole update."""
        while True:
            first: dict[str, Any] = await self._ask(method, **params)
            parts = [b64decode(first["update"])]
            params = {name: value for name, value in params.items() if name != "time"} | {"sequence": first["sequence"]}
            for part in range(1, first["parts"]):
                answer = await self._ask(method, **params, part=part)
                if answer["sha256"] != first["sha256"]:
                    break
                parts.append(b64decode(answer["update"]))
            update = b"".join(parts)
            if hashlib.sha256(update).hexdigest() == first["sha256"]:
                return first, update

    # ---- sending

    def _on_edit(self, event: TransactionEvent) -> None:
        if not self._is_applying:
            self._edits.append(event.update)
            self._idle.clear()
            self._edited.set()

    async def _send(self) -> None:
        """Send what was edited, one update at a time."""
        loop, sent = asyncio.get_running_loop(), -BATCH_SECONDS
        while True:
            await self._edited.wait()
            await asyncio.sleep(max(0.0, sent + BATCH_SECONDS - loop.time()))
            sent = loop.time()
            edits, self._edits = self._edits, []
            self._edited.clear()
            self._on_their_way = len(edits)
            try:
                await self._send_until_stored(self._joined(edits))
            except NatskitError as error:
                self._failure, self.problem = error, str(error)
            self._on_their_way = 0
            if not self._edits:
                self._idle.set()

    def _joined(self, edits: list[bytes]) -> bytes:
        """One update for several edits, the shorter of two: theirs merged, which has each character for itself, or the
        difference to what is stored, which repeats all that was ever deleted."""
        merged = edits
        while len(merged) > 1:
            parts = (merged[start : start + MOST_MERGED] for start in range(0, len(merged), MOST_MERGED))
            merged = [bytes(merge_updates(*part)) for part in parts]
        if len(edits) <= MOST_MERGED:
            return merged[0]
        # Everything of the others that is here came from keepers; of its own, what was stored.
        vector = read_vector(self.doc.get_state()) | {self.doc.client_id: self._stored_clock}
        return min(merged[0], self.doc.get_update(write_vector(vector)), key=len)

    async def _send_until_stored(self, update: bytes) -> None:
        """Send an update until it is stored. Raises :class:`RpcError` if it never will be."""
        self._number += 1
        pause = 0.05
        while True:
            try:
                await self._ask("update", update=_base64(update), client=self.doc.client_id, number=self._number)
                self.problem = ""
                _, self._stored_clock = read(update).added.get(self.doc.client_id, (0, self._stored_clock))
                self._stirred.set()
                return
            except RpcError as error:
                if error.kind == "conflict" and "state_vector" in error.data:
                    update = self.doc.get_update(b64decode(error.data["state_vector"]))
                    self._number += 1
                    self._edits = []  # they are in it
                    self._note_behind()
                    if read(update).is_empty:  # it was stored, and nobody heard of that
                        return
                elif error.kind not in ("unavailable", "internal_error", "timeout"):
                    raise
                self.problem = str(error)
            except ConnectionLostError as error:
                self.problem = str(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    # ---- following

    async def _on_event(self, message: Msg) -> None:
        try:
            self._arrived.append(decode(message.data, message.headers))
        except ValueError:
            self._behind = True
        self._news.set()
        self._stirred.set()

    def _note_behind(self) -> None:
        self._behind = True
        self._news.set()

    async def _on_presence(self, message: Msg) -> None:
        if b"disk" not in message.data:  # cursors of people come often
            return
        told = json_text.read(message.data)
        if told["author"] == DISK:
            found = (told["state"] or {}).get("file")
            self._is_left_out = isinstance(found, dict) and found.get("kind") == "left_out"
            self._file_problem = str(found.get("message", "")) if isinstance(found, dict) else ""
            self._file_problem_until = time.monotonic() + PRESENCE_SECONDS

    async def _follow(self) -> None:
        """Apply what others stored, in order; fetch what no event told of."""
        pause = 0.05
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._take_news()
                pause = 0.05
            except (ConnectionLostError, RpcError) as error:
                self.problem = str(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                self._note_behind()

    async def _take_news(self) -> None:
        arrived, self._arrived = self._arrived, []
        for update in arrived:
            self._newest = max(self._newest, update.sequence)
            if update.previous == self.sequence:
                self._take(update)
            elif update.sequence > self.sequence:
                self._behind = True
        while self._behind:
            page = await self._ask("updates", after=self.sequence)
            self._behind = page["more"]
            for raw in page["updates"]:
                self._take(Update(**raw | {"update": b64decode(raw["update"])}))
        if self.sequence < self._newest:
            raise ConnectionLostError("the keeper does not see the newest update yet")

    def _take(self, update: Update) -> None:
        if update.sequence > self.sequence:
            self.sequence = update.sequence
            # Others may name this copy's client id in an update of theirs.
            if (update.author, update.client) != (self._client.account_id or "admin", self.doc.client_id):
                self._apply(update.update)
                self._changed.set()

    async def _look(self) -> None:
        """Ask now and then whether a later update is stored than the last one here, and always when it gets quiet."""
        while True:
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._stirred.wait()
            while self._stirred.is_set():
                self._stirred.clear()
                await asyncio.sleep(QUIET_SECONDS + random.SystemRandom().uniform(0, JITTER_SECONDS))
            try:
                found = await self._ask("check")
                if found["sequence"] > self.sequence:
                    self._note_behind()
            except Exception as error:  # an answer that did not come from a keeper must not end the looking
                if not isinstance(error, NatskitError):
                    log.warning("document %s could not be compared: %r", self.document_id, error)

    def _apply(self, update: bytes) -> None:
        self._is_applying = True
        try:
            self.doc.apply_update(update)
        finally:
            self._is_applying = False


def set_text(text: Text, wanted: str) -> None:
    """Make a text read ``wanted``, by small edits in one transaction. What is embedded in it stays where it is.

    Raises :class:`RpcError` (``invalid_state``) if strings are embedded: nothing tells them from the text.
    """
    apply_changes(text, changes(str(text), wanted))


def apply_changes(text: Text, made: Iterable[Change]) -> None:
    """Make changes of a text, the last of the text first, in one transaction. What is embedded in it stays where it is.

    Raises :class:`RpcError` (``invalid_state``) if strings are embedded: nothing tells them from the text.
    """
    with text.doc.transaction():
        runs = _runs(text)
        for change in made:
            for run in reversed(runs):
                start, end = max(change.start, run.start), min(change.end, run.end)
                if start < end:
                    del text[run.place_of(start) : run.place_of(end)]
            if change.text:
                place = next((run.place_of(change.start) for run in runs if change.start <= run.end), 0)
                text.insert(place, change.text)


class _Run(NamedTuple):
    """What is between two embedded things: its first code point, and its index in pycrdt, which counts bytes of UTF-8
    and one for each embedded thing."""

    start: int
    first: int
    content: str

    @property
    def end(self) -> int:
        return self.start + len(self.content)

    def place_of(self, position: int) -> int:
        """The index of a code point of the text."""
        return self.first + len(self.content[: position - self.start].encode())


def _runs(text: Text) -> list[_Run]:
    runs: list[_Run] = []
    position = index = 0
    for content, _ in text.diff():
        if isinstance(content, str):
            runs.append(_Run(position, index, content))
            position, index = runs[-1].end, index + len(content.encode())
        else:
            index += 1
    if index != len(text):
        raise RpcError("invalid_state", "the text has embedded strings: edit it as what it is, Document.text")
    return runs


def _base64(data: bytes) -> str:
    return b64encode(data).decode()
