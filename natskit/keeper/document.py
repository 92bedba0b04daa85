"""A document in a keeper's memory: the Yjs document up to a sequence, and who sent what last.

It holds nothing that is not stored, except while an update is being stored, under :attr:`Document.lock`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from nats.aio.subscription import Subscription
from pycrdt import Doc, Text, TransactionEvent

from natskit import json_text, notebook, notebook_text
from natskit.bus import yjs_format
from natskit.bus.document_record import Update
from natskit.bus.yjs_format import BadUpdateError
from natskit.document import apply_changes, set_text
from natskit.errors import StateError
from natskit.keeper.store import Place
from natskit.rpc import RpcError
from natskit.text_changes import Change

MOST_FILE_BYTES = 512 * 1024
"""Of a document that is kept the same as a file; the limit of a file is in :mod:`natskit.project.bound.text_file`."""
TEXT = "text"
"""The root type of a text document."""
EMPTY_UPDATE = b"\x00\x00"
"""An update that changes nothing. A document begins with one, so that a keeper can tell it from a deleted one."""
MOST_SENDERS = 512
"""Copies of a document whose last number a keeper remembers. A copy repeats a number only until it is answered."""
SNAPSHOT_UPDATES, SNAPSHOT_BYTES = 300, 64 * 1024
MOST_UPDATES = 5000
"""Updates after which a snapshot is due, however large it is: reading them takes the longest when a document opens."""
UPDATE_OVERHEAD = 100
"""Bytes that a stored update takes in memory besides its own."""
RECORD_OVERHEAD = 250
"""Bytes that a stored update takes on the disk besides its own: who made it and when, the subject, and the stream's."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The last update of one copy of the document."""

    number: int
    sequence: int
    previous: int
    time: int
    digest: str

    @classmethod
    def of(cls, update: Update) -> Sent:
        """What is remembered of a stored update."""
        return cls(update.number, update.sequence, update.previous, update.time, digest_of(update.update))


def digest_of(update: bytes) -> str:
    """What an update is recognized by when it is sent again."""
    return hashlib.sha256(update).hexdigest()[:32]


@dataclass
class Document:
    """One document. Everybody who reads or changes it holds its lock."""

    place: Place
    doc: Doc[Any] = field(default_factory=Doc)
    sequence: int = 0
    """Of the last update in it."""
    vector: dict[int, int] = field(default_factory=dict)
    senders: OrderedDict[tuple[str, int], Sent] = field(default_factory=OrderedDict)
    """By author and client: nobody can use up the numbers of another."""
    owners: dict[int, str] = field(default_factory=dict)
    """Who began to write under each Yjs client id: nobody else may."""
    snapshot_sequence: int = 0
    """The sequence of the newest snapshot's own message."""
    snapshot_bytes: int = 0
    updates_since: int = 0
    bytes_since: int = 0
    stored: int = 0
    """Bytes of the history on the disks: all updates, and the snapshots that this keeper knows of."""
    reserved: int = 0
    """How many that may be before the project's limit is asked again (:mod:`natskit.keeper.paths`)."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    events: Subscription | None = None
    """Tells of stored updates."""
    is_loaded: bool = False
    is_behind: bool = False
    """Whether a stored update may be missing, of which no event told."""
    arrived: list[Update] = field(default_factory=list)
    """Stored updates that events told of, to be applied by the next who holds the lock."""

    @property
    def size(self) -> int:
        """An upper bound of the document's size in Yjs' encoding: the last snapshot and the updates since."""
        return self.snapshot_bytes + self.bytes_since

    @property
    def text(self) -> str:
        """The text of a text document."""
        return str(self.doc.get(TEXT, type=Text))

    def check_fits_file(self) -> None:
        """Raises :class:`RpcError` if the text is too long to be kept the same as a file.

        For requests of agents, before any copy is made of it: that takes far more time than they are charged.
        """
        size = len(self.doc.get(TEXT, type=Text))
        if size > MOST_FILE_BYTES:
            raise RpcError(
                "limit", f"the document has {size:,} bytes, more than the {MOST_FILE_BYTES:,} of one with a file"
            )

    def sent(self, update: Update) -> Sent | None:
        """The last update that is stored of the copy that made this one."""
        return self.senders.get((update.author, update.client))

    def try_update(self, update: bytes) -> None:
        """Apply an update that is not stored yet. Raises :class:`BadUpdateError`; the document is useless then."""
        wanted = yjs_format.read(update).after(self.vector)
        apply_update(self.doc, update)
        if yjs_format.read_vector(self.doc.get_state()) != {c: n for c, n in wanted.items() if n}:
            raise BadUpdateError("the update does not add what it says")

    def note(self, update: Update) -> None:
        """An update that is in the document is stored."""
        self.sequence = update.sequence
        for client in yjs_format.read(update.update).added:
            self.owners.setdefault(client, (update.owners or {}).get(str(client), update.author))
        if update.client:  # else it was merged of those of several copies
            sender = update.author, update.client
            self.senders[sender] = Sent.of(update)
            self.senders.move_to_end(sender)
            while len(self.senders) > MOST_SENDERS:
                self.senders.popitem(last=False)
        self.updates_since += 1
        self.bytes_since += len(update.update) + UPDATE_OVERHEAD
        self.stored += len(update.update) + RECORD_OVERHEAD

    def take(self, updates: Iterable[Update]) -> None:
        """Apply stored updates that follow the last one. Raises :class:`BadUpdateError`, and :class:`StateError` if
        some are missing between them, which were moved into a page meanwhile."""
        for update in updates:
            if update.sequence > self.sequence:
                if update.previous > self.sequence:
                    raise StateError("the document's history could not be read; try again")
                apply_update(self.doc, update.update)
                self.note(update)
        self.read_vector()

    def read_vector(self) -> None:
        """Know what is in the document. With many clients that takes long: once for many updates."""
        self.vector = yjs_format.read_vector(self.doc.get_state())

    def set_text(self, wanted: str) -> bytes:
        """Change the text by small edits; returns the update, which is not stored yet. Empty if nothing changes."""
        return self._made(lambda: set_text(self.doc.get(TEXT, type=Text), wanted))

    def restore(self, moment: Document) -> bytes:
        """Become what the document was, as :meth:`set_text`. Raises :class:`RpcError` if its cells make no notebook.

        Cells beside a text are left alone. If it had no cells then, and has some now, they are removed.
        """
        if moment.text or not (notebook.is_notebook(moment.doc) or notebook.is_notebook(self.doc)):
            return self.set_text(moment.text)
        cells = notebook.read(moment.doc) or notebook_text.EMPTY

        def change() -> None:
            with self.doc.transaction():
                set_text(self.doc.get(TEXT, type=Text), "")
                notebook.write(self.doc, cells)

        return self._made(change)

    def _made(self, change: Callable[[], None]) -> bytes:
        """The update that a change in one transaction makes."""
        updates: list[bytes] = []

        def changed(event: TransactionEvent) -> None:
            updates.append(event.update)

        subscription = self.doc.observe(changed)
        try:
            change()
        finally:
            self.doc.unobserve(subscription)
        return updates[0] if updates else b""

    def file_text(self, as_notebook: bool) -> str:
        """The text that is kept the same as a file. Raises :class:`RpcError` if there is none, or it is too long."""
        self.check_fits_file()
        if not as_notebook:
            if not self.text and set(self.doc.keys()) - {TEXT}:
                raise RpcError("invalid_state", "the document has no text, but other shared types")
            return self.text
        if self.text:
            raise RpcError(
                "invalid_state",
                "the document is plain text, and its file a notebook: delete the document, and make it anew",
            )
        made = notebook_text.text_of(notebook.read(self.doc))
        if len(made.encode()) > MOST_FILE_BYTES:
            raise RpcError(
                "limit", f"the notebook has {len(made):,} bytes, more than the {MOST_FILE_BYTES:,} of one with a file"
            )
        return made

    def changed(self, client: int, changes: list[Change], as_notebook: bool) -> bytes:
        """The update that makes changes of the text, the last of the text first, by a client; the document stays.

        Raises :class:`RpcError` if they do not fit.
        """
        old = self.file_text(as_notebook)
        end = len(old)
        for change in changes:
            if not change.start <= change.end <= end:
                raise RpcError("invalid_params", "changes: begin with the last of the text, and let none overlap")
            end = change.start
        copy: Doc[Any] = Doc(client_id=client)
        apply_update(copy, self.doc.get_update())
        made: list[bytes] = []
        copy.observe(lambda event: made.append(event.update))
        if as_notebook:
            notebook.write(copy, _edited(old, changes))
        else:
            text = copy.get(TEXT, type=Text)
            if len(text) != len(old.encode()):
                raise RpcError("invalid_state", "the text has embedded things: it is no plain text")
            apply_changes(text, changes)
        return made[0] if made else EMPTY_UPDATE

    @property
    def needs_snapshot(self) -> bool:
        """Whether opening the document would read too many updates.

        A large document waits until as much was written as a snapshot takes, so that snapshots never take more space
        than the updates.
        """
        if self.updates_since < SNAPSHOT_UPDATES and self.bytes_since < SNAPSHOT_BYTES:
            return False
        return self.bytes_since >= self.snapshot_bytes or self.updates_since >= MOST_UPDATES

    # ---- snapshots

    def snapshot_head(self, parts: list[int], size: int) -> bytes:
        """The index of a snapshot: its parts by their sequences, and what is not in the Yjs document."""
        senders = [
            [author, client, sent.number, sent.sequence, sent.previous, sent.time, sent.digest]
            for (author, client), sent in self.senders.items()
        ]
        owned: dict[str, list[int]] = {}
        for client, author in self.owners.items():
            owned.setdefault(author, []).append(client)
        return json_text.write(
            {
                "sequence": self.sequence,
                "parts": parts,
                "bytes": size,
                "stored": self.stored,
                "senders": senders,
                "owned": owned,
            }
        )

    def begin_with(self, own: int, head: dict[str, Any], state: bytes) -> None:
        """Become the document as it was when the snapshot was made, whose index has the sequence ``own``."""
        apply_update(self.doc, state)
        self.vector = yjs_format.read_vector(self.doc.get_state())
        self.sequence = int(head["sequence"])
        self.snapshot_sequence, self.snapshot_bytes = own, len(state)
        self.stored = int(head.get("stored", len(state)))
        self.owners = {client: author for author, owned in head.get("owned", {}).items() for client in owned}
        self.senders = OrderedDict(((author, client), Sent(*sent)) for author, client, *sent in head["senders"])


def _edited(text: str, changes: list[Change]) -> notebook_text.Notebook:
    """The notebook in a text after changes, the last of the text first."""
    for change in changes:
        text = text[: change.start] + change.text + text[change.end :]
    return notebook_text.parse(text, "the changed text") or notebook_text.EMPTY


def apply_update(doc: Doc[Any], update: bytes) -> None:
    """Apply an update. yrs panics, beyond every :class:`Exception`, on some of what it does not expect."""
    try:
        doc.apply_update(update)
    except (KeyboardInterrupt, SystemExit, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise BadUpdateError(f"the bytes are not a Yjs update that can be applied ({type(error).__name__})") from None
