"""The paths of a project's documents: one message, which a compare-and-set replaces as a whole.

A document keeps its id when it is renamed, so its history stays.

The message also says how many bytes of the project each document may use. A keeper that stores an update counts only
the document's own bytes, and takes more for it here when these do not suffice. So the sum is exact, whatever the number
of keepers, and costs a look at one message now and then.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from natskit import json_text
from natskit.errors import StateError
from natskit.keeper.store import OvertakenError, Place, Store
from natskit.rpc import RpcError

MOST_BYTES = 1024
"""Of a path."""
ATTEMPTS = 20
FIRST_BYTES = 4096
"""What a new document takes of its project's bytes, at least."""
MORE_BYTES = 32 * 1024
"""The least by which a document's part of them grows. Each time, this message is written."""
PROJECT = "-"
"""In the place of a document's id: the project as a whole."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a project's documents may take."""

    documents: int
    bytes: int
    """With their histories and the names of versions."""


@dataclass(frozen=True)
class Retention:
    """How much of the history of documents stays."""

    days: int = 0
    """After so many days it is thinned out; 0: never."""
    keep: Literal["minute", "hour"] = "minute"
    """Of each of these, one version stays."""


@dataclass
class Entry:
    """A document of a project."""

    path: str
    created: int
    """Milliseconds since 1970."""
    by: str
    """Its first author."""
    reserved: int = 0
    """Bytes of its project that the document may use, with its history, before a keeper takes more for it."""
    names: int = 0
    """Bytes of the names of its versions."""


@dataclass
class Paths:
    """The documents of a project by their ids, and those that are being removed."""

    documents: dict[str, Entry] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    retention: Retention | None = None
    """``None``: that of the platform."""
    left_out: set[str] = field(default_factory=set)
    """Those that the project's agent does not keep the same as a file, because it has as many as it may."""

    @classmethod
    def read(cls, content: bytes) -> Paths:
        """The paths in a message."""
        raw: Any = json_text.read(content) if content else {}
        entries = {document: Entry(*entry) for document, entry in raw.get("documents", {}).items()}
        retention = Retention(*raw["retention"]) if raw.get("retention") else None
        return cls(entries, list(raw.get("gone", [])), retention, set(raw.get("left_out", [])) & entries.keys())

    def write(self) -> bytes:
        """The message."""
        entries = {d: [e.path, e.created, e.by, e.reserved, e.names] for d, e in self.documents.items()}
        left_out = {"left_out": sorted(self.left_out & entries.keys())} if self.left_out else {}
        retention = {"retention": [self.retention.days, self.retention.keep]} if self.retention else {}
        return json_text.write({"documents": entries, "gone": self.gone} | retention | left_out)

    def find(self, path: str) -> str | None:
        """The id of the document with a path."""
        return next((document for document, entry in self.documents.items() if entry.path == path), None)

    def entry(self, document: str) -> Entry:
        """A document by its id. Raises :class:`RpcError`."""
        found = self.documents.get(document)
        if found is None:
            raise RpcError("not_found", f"the project has no document {document}")
        return found

    @property
    def used(self) -> int:
        """The bytes of all documents of the project, with their histories."""
        return sum(entry.reserved + entry.names for entry in self.documents.values())

    def add(self, document: str, path: str, by: str, size: int, limits: Limits) -> None:
        """Add a document of ``size`` bytes. Raises :class:`RpcError` if the project has as much as it may."""
        if len(self.documents) >= limits.documents:
            raise RpcError(
                "limit",
                f"the project has {len(self.documents)} documents, and a project has at most {limits.documents} "
                "(keeper_max_documents): delete some, or ask the operator to raise it",
                limit=limits.documents,
            )
        size = max(size, FIRST_BYTES)
        self._require(size, limits)
        self.documents[document] = Entry(path, round(time.time() * 1000), by, size)

    def reserve(self, document: str, size: int, limits: Limits) -> int:
        """Let a document take ``size`` bytes with its history; returns how many it may take without asking again.

        Raises :class:`RpcError` if the project has no room for that.
        """
        entry = self.entry(document)
        if size > entry.reserved:
            self._require(size - entry.reserved, limits)
            room = limits.bytes - self.used + entry.reserved
            entry.reserved = min(size + max(MORE_BYTES, size // 8), room)
        return entry.reserved

    def name(self, document: str, size: int, limits: Limits) -> None:
        """Let the names of a document's versions take ``size`` bytes. Raises :class:`RpcError`."""
        entry = self.entry(document)
        self._require(size - entry.names, limits)
        entry.names = size

    def _require(self, more: int, limits: Limits) -> None:
        if more > 0 and self.used + more > limits.bytes:
            raise RpcError(
                "limit",
                f"the project's documents take {self.used} bytes with their history, and this needs {more} more; a "
                f"project has at most {limits.bytes} (keeper_max_project_bytes): delete documents, or ask the operator "
                "to raise it",
                used=self.used,
                limit=limits.bytes,
            )

    def end_removal(self, document: str) -> None:
        """A document that was being removed is gone."""
        if document in self.gone:
            self.gone.remove(document)

    def rename(self, document: str, path: str) -> None:
        """Give a document another path. Raises :class:`RpcError` if another one has it."""
        entry = self.entry(document)
        if self.find(path) not in (None, document):
            raise RpcError("conflict", f"the project has a document {path!r} already: rename or delete that one first")
        entry.path = path


def checked(path: str) -> str:
    """The path, if a document may have it. Raises :class:`RpcError`."""
    parts = path.split("/")
    if not path or _CONTROL.search(path) or any(part in ("", ".", "..") for part in parts):
        raise RpcError(
            "invalid_params",
            f"path {path[:80]!r}: write a path relative to the project's home, without '.', '..', empty parts and "
            "control characters, such as notes/todo.md",
        )
    if len(path.encode()) > MOST_BYTES:
        raise RpcError("invalid_params", f"path {path[:40]!r}… has more than {MOST_BYTES} bytes: shorten it")
    return path


async def read(store: Store, project: str) -> Paths:
    """The paths of a project, as the stream's leader has them. Raises :class:`StateError`."""
    place = Place(project, PROJECT)
    return Paths.read((await store.newest(place, place.paths))[1])


async def change(store: Store, project: str, mutate: Callable[[Paths], T]) -> T:
    """Change the paths of a project. ``mutate`` is called again if another keeper was first.

    Its errors go to the caller. Raises :class:`StateError`, and :class:`RpcError` if they do not fit into a message.
    """
    place = Place(project, PROJECT)
    for _ in range(ATTEMPTS):
        sequence, content = await store.newest(place, place.paths)
        paths = Paths.read(content)
        result = mutate(paths)
        changed = paths.write()
        if changed == Paths.read(content).write():
            return result
        if len(changed) > store.max_payload - 1024:
            raise RpcError("limit", "the paths of the project's documents do not fit into one message: delete some")
        try:
            await store.put(place.paths, changed, sequence, replace=True)
        except OvertakenError:
            continue
        return result
    raise StateError("the project's documents are being changed by others; try again")
