"""The paths of a project's documents: one message, which a compare-and-set replaces as a whole.

A document keeps its id when it is renamed, so its history stays.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from natskit import json_text
from natskit.errors import StateError
from natskit.keeper.store import OvertakenError, Place, Store
from natskit.rpc import RpcError

MOST_BYTES = 1024
"""Of a path."""
ATTEMPTS = 20
PROJECT = "-"
"""In the place of a document's id: the project as a whole."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

T = TypeVar("T")


@dataclass
class Entry:
    """A document of a project."""

    path: str
    created: int
    """Milliseconds since 1970."""
    by: str
    """Its first author."""


@dataclass
class Paths:
    """The documents of a project by their ids, and those that are being removed."""

    documents: dict[str, Entry] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, content: bytes) -> Paths:
        """The paths in a message."""
        raw: Any = json_text.read(content) if content else {}
        entries = {document: Entry(*entry) for document, entry in raw.get("documents", {}).items()}
        return cls(entries, list(raw.get("gone", [])))

    def write(self) -> bytes:
        """The message."""
        entries = {document: [e.path, e.created, e.by] for document, e in self.documents.items()}
        return json_text.write({"documents": entries, "gone": self.gone})

    def find(self, path: str) -> str | None:
        """The id of the document with a path."""
        return next((document for document, entry in self.documents.items() if entry.path == path), None)

    def entry(self, document: str) -> Entry:
        """A document by its id. Raises :class:`RpcError`."""
        found = self.documents.get(document)
        if found is None:
            raise RpcError("not_found", f"the project has no document {document}")
        return found

    def add(self, document: str, path: str, by: str, most: int) -> None:
        """Add a document. Raises :class:`RpcError` if the project has as many as it may."""
        if len(self.documents) >= most:
            raise RpcError("limit", f"a project has at most {most} documents: delete some", limit=most)
        self.documents[document] = Entry(path, round(time.time() * 1000), by)

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
