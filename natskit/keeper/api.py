"""The methods of documents (docs/reference/documents.md)."""

from __future__ import annotations

import binascii
import hashlib
import itertools
import re
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from natskit import json_text
from natskit.bus import yjs_format
from natskit.bus.document_record import LEFT_OUT, Update
from natskit.bus.permissions import DISK
from natskit.bus.yjs_format import MOST_CLIENT, BadUpdateError
from natskit.errors import StateError
from natskit.keeper import paths, thinned, work
from natskit.keeper.document import RECORD_OVERHEAD, Document
from natskit.keeper.documents import PAGE, Base, Documents
from natskit.keeper.store import REST_BYTES, OvertakenError, Place
from natskit.rpc import Declaration, Methods, RpcError, size_of
from natskit.text_changes import Change

PART_BYTES = 512 * 1024
PRESENCE_BYTES = 4096
MOST_ROWS = 10_000
MOST_MARK_BYTES = 64 * 1024
"""Of the names of versions, which are in each answer of ``history``, besides the rows."""
READ_ROWS = 20_000
"""Updates that one request for the history reads at most."""
MOST_CHANGES = 10_000
"""Of one edit of a text."""
MOST_TOLD = 100
"""Documents whose files events tell of at once: others hear of them when they list or open them."""


_SURROGATE = re.compile("[\ud800-\udfff]")


def _bytes(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("must be base64")
    try:
        return b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be base64 (RFC 4648)") from None


Base64 = Annotated[bytes, BeforeValidator(_bytes)]
Client = Annotated[int, Field(ge=1, le=MOST_CLIENT, strict=True)]
Number = Annotated[int, Field(ge=1, le=MOST_CLIENT, strict=True)]
Sequence = Annotated[int, Field(ge=0, le=MOST_CLIENT, strict=True)]
Time = Annotated[int, Field(ge=0, le=253_402_300_799_000, strict=True)]
"""Milliseconds since 1970, up to the year 9999."""
Position = Annotated[int, Field(ge=0, le=2**31, strict=True)]
Keep = Literal["minute", "hour"]
Part = Annotated[int, Field(ge=0, le=100_000, strict=True)]


@dataclass(frozen=True)
class Caller:
    """Who asks about what: an account, or ``admin``, that may use the project."""

    documents: Documents
    publish: Callable[[str, bytes], Awaitable[None]]
    author: str
    project: str
    document: str
    """A document's id, or ``-`` for the project."""

    @property
    def place(self) -> Place:
        """The document. Raises :class:`RpcError` if the request names none."""
        if self.document == paths.PROJECT:
            raise RpcError("invalid_params", "this method needs the id of a document as the last word of the subject")
        return Place(self.project, self.document)

    async def tell(self, document: str, path: str, change: str) -> None:
        """Tell the members of the project of a change of its documents."""
        body = json_text.write({"document_id": document, "path": path, "change": change})
        await self.publish(f"events.project.{self.project}.documents.changed", body)


documents: Methods[Caller] = Methods()

ANYBODY = "anybody"
"""The access rule of methods that a project's agent may call as well as people. Those with the rule :data:`DISK` are
for agents alone, and those without a rule for people alone."""


async def check_access(caller: Caller, declaration: Declaration, _: Mapping[str, Any]) -> None:
    """Raises :class:`RpcError` unless the caller may call a method."""
    if declaration.access == ANYBODY or (caller.author == DISK) == (declaration.access == DISK):
        return
    who = "people" if caller.author == DISK else "the project's agent"
    raise RpcError("forbidden", f"this method is for {who} alone")


@documents.method("open")
async def open_(
    caller: Caller,
    path: str | None = None,
    create: bool = False,
    text: str = "",
    state_vector: Base64 = b"",
    part: Part = 0,
    sequence: Sequence | None = None,
) -> dict[str, Any]:
    """What the caller lacks of a document, by its id or path. With ``create``, make one if there is none."""
    vector = _checked_vector(state_vector)
    found = await _found(caller, path, create, text)
    place = Place(caller.project, found["document_id"])
    async with caller.documents.use(place) as held:
        if sequence in (None, held.sequence):
            return found | _opened(caller, held, vector, part)
    return found | _opened(caller, await caller.documents.moment(place, sequence), vector, part)


async def _found(caller: Caller, path: str | None, create: bool, text: str) -> dict[str, Any]:
    """A document as the list of the project has it, and whether it was made for this request."""
    store = caller.documents.store
    all_ = await paths.read(store, caller.project)
    if caller.document != paths.PROJECT:
        if path is not None or create:
            raise RpcError("invalid_params", "name either an id, in the subject, or a path")
        return _named(all_, caller.document)
    if path is None:
        raise RpcError("invalid_params", "open needs the parameter 'path', or the id of a document in the subject")
    path = paths.checked(path)
    document = all_.find(path)
    if document is not None:
        return _named(all_, document)
    if not create:
        raise RpcError("not_found", f"the project has no document {path!r}")
    document, created = await _create(caller, path, text)
    return {"path": path, "created": created, "document_id": document, "left_out": False}


def _named(all_: paths.Paths, document: str) -> dict[str, Any]:
    path = all_.entry(document).path
    return {"path": path, "created": False, "document_id": document, "left_out": document in all_.left_out}


async def _create(caller: Caller, path: str, text: str) -> tuple[str, bool]:
    """Make a document. Its updates come first, so that nobody finds one by its path that has none."""
    made = str(uuid.uuid4())
    if _SURROGATE.search(text):
        raise RpcError("invalid_params", "text has half a surrogate pair, which has no UTF-8")

    def add(all_: paths.Paths) -> str:
        found = all_.find(path)
        if found is None:
            all_.add(made, path, caller.author, len(text.encode()) + 2 * RECORD_OVERHEAD, caller.documents.limits)
        return found or made

    document = ""
    try:
        await caller.documents.create(Place(caller.project, made), caller.author, text.replace("\r\n", "\n"))
        document = await paths.change(caller.documents.store, caller.project, add)
    finally:
        if document != made:  # another caller was first, or it does not fit
            await caller.documents.remove(Place(caller.project, made))
    if document == made:
        await caller.tell(document, path, "created")
    return document, document == made


def _opened(caller: Caller, held: Document, vector: bytes, part: int) -> dict[str, Any]:
    work.handled(held.size)
    update = held.doc.get_update(vector or None)
    size = min(PART_BYTES, caller.documents.store.answer_bytes)
    parts = max(1, -(-len(update) // size))
    if part >= parts:
        raise RpcError("invalid_params", f"part {part}: the document has {parts} parts")
    return {
        "sequence": held.sequence,
        "state_vector": _text(held.doc.get_state()),
        "update": _text(update[part * size : (part + 1) * size]),
        "part": part,
        "parts": parts,
        "sha256": hashlib.sha256(update).hexdigest(),
    }


@documents.method()
async def updates(
    caller: Caller, after: Sequence = 0, limit: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1000
) -> dict[str, Any]:
    """What was stored after a sequence, oldest first: as many updates as fit into one message."""
    store = caller.documents.store
    found, more = await store.updates(caller.place, after, limit)
    if not found and not after:
        raise RpcError("not_found", f"the project has no document {caller.document}")
    room, rows = store.max_payload - REST_BYTES, list[dict[str, Any]]()
    for update in found:
        room -= len(update.update) * 4 // 3 + 300 + thinned.OWNER_BYTES * len(update.owners or {})
        if room < 0 and rows:
            more = True
            break
        rows.append(
            {
                "sequence": update.sequence,
                "previous": update.previous,
                "author": update.author,
                "client": update.client,
                "number": update.number,
                "time": update.time,
                "update": _text(update.update),
            }
            | ({} if update.owners is None else {"owners": update.owners})
        )
    return {"updates": rows, "more": more}


@documents.method()
async def update(caller: Caller, update: Base64, client: Client, number: Number) -> dict[str, Any]:
    """Store an update of the caller."""
    given = Update(caller.author, client, number, 0, round(time.time() * 1000), update)
    return _stored(await caller.documents.update(caller.place, given))


@documents.method(access=DISK, idempotent=True)
async def text(
    caller: Caller, known: Sequence = 0, sequence: Sequence | None = None, notebook: bool = False
) -> dict[str, Any]:
    """The text of a document now, or at a sequence; ``null`` if the document is as it was at the one that is known.

    With ``notebook``, the text of its cells (:mod:`natskit.notebook_text`).
    """
    place, store = caller.place, caller.documents.store
    if sequence is not None:
        return _text_of(await caller.documents.moment(place, sequence), notebook)
    newest = await store.update_until(place)
    if known and newest == known:
        return {"sequence": known, "text": None}
    async with caller.documents.use(place, newest) as held:
        return _text_of(held, notebook) if held.sequence != known else {"sequence": known, "text": None}


def _text_of(held: Document, notebook: bool) -> dict[str, Any]:
    work.handled(held.size)
    return {"sequence": held.sequence, "text": held.file_text(notebook)}


@documents.method(access=DISK)
async def edit(
    caller: Caller,
    sequence: Sequence,
    sha256: str,
    changes: Annotated[list[tuple[Position, Position, str]], Field(min_length=1, max_length=MOST_CHANGES)],
    client: Client,
    number: Number,
    notebook: bool = False,
) -> dict[str, Any]:
    """Store changes of the text as it was at a sequence, merged with what came since.

    With ``notebook``, of the text of its cells.
    """
    made = [Change(*change) for change in changes]
    if any(_SURROGATE.search(change.text) for change in made):
        raise RpcError("invalid_params", "changes: a text has half a surrogate pair, which has no UTF-8")
    given = Update(caller.author, client, number, 0, round(time.time() * 1000), b"")
    return _stored(await caller.documents.edit(caller.place, given, Base(sequence, sha256, notebook), made))


@documents.method(access=ANYBODY)
async def presence(caller: Caller, client: Client, state: Any = None) -> dict[str, Any]:
    """Tell the members of the project where the caller is in the document, and who."""
    place = caller.place
    if len(json_text.write(state)) > PRESENCE_BYTES:
        raise RpcError("limit", f"state has more than {PRESENCE_BYTES} bytes of JSON", limit=PRESENCE_BYTES)
    body = {"author": caller.author, "client": client, "state": state, "time": round(time.time() * 1000)}
    await caller.publish(f"events.project.{place.project}.presence.{place.document}", json_text.write(body))
    return {}


@documents.method()
async def close(caller: Caller, client: Client) -> dict[str, Any]:
    """Tell the members of the project that the caller has left the document."""
    return await presence(caller, client)


@documents.method()
async def check(caller: Caller) -> dict[str, Any]:
    """What the caller can compare its own document with."""
    async with caller.documents.use(caller.place) as held:
        work.handled(held.size)
        digest = hashlib.sha256(held.text.encode()).hexdigest()
        return {"sequence": held.sequence, "state_vector": _text(held.doc.get_state()), "sha256": digest}


@documents.method()
async def history(
    caller: Caller,
    after: Sequence = 0,
    limit: Annotated[int, Field(ge=1, le=MOST_ROWS, strict=True)] = MOST_ROWS,
    group_seconds: Annotated[float, Field(ge=0, le=86_400)] = 0,
) -> dict[str, Any]:
    """Who changed the document when, oldest first."""
    rows: list[list[Any]] = []
    read, more, last = 0, True, after
    while more and len(rows) < limit and read < READ_ROWS:
        found, more = await caller.documents.store.updates(caller.place, last, PAGE if group_seconds else limit)
        read += len(found)
        for each in found:
            row = [each.sequence, each.time, each.author, each.client, len(each.update)]
            if group_seconds and rows and rows[-1][2:4] == row[2:4] and row[1] - rows[-1][1] <= group_seconds * 1000:
                rows[-1][:2], rows[-1][4] = row[:2], rows[-1][4] + row[4]
            elif len(rows) == limit:
                more = True
                break
            else:
                rows.append(row)
        last = rows[-1][0] if rows else last
    if not rows and not after:
        raise RpcError("not_found", f"the project has no document {caller.document}")
    return {"rows": rows, "more": more, "versions": await _versions(caller)}


async def _versions(caller: Caller) -> list[dict[str, Any]]:
    named: dict[int, dict[str, Any]] = {}
    for content in await caller.documents.store.marks(caller.place):
        named = {mark["sequence"]: mark for mark in json_text.read(content)}
    return [named[sequence] for sequence in sorted(named) if named[sequence]["name"]]


@documents.method()
async def state_at(
    caller: Caller, sequence: Sequence | None = None, time: Time | None = None, part: Part = 0
) -> dict[str, Any]:
    """The document as it was at a moment."""
    moment = await caller.documents.sequence_at(caller.place, sequence, time)
    found = _named(await paths.read(caller.documents.store, caller.project), caller.document)
    return found | _opened(caller, await caller.documents.moment(caller.place, moment), b"", part)


@documents.method()
async def restore(caller: Caller, sequence: Sequence | None = None, time: Time | None = None) -> dict[str, Any]:
    """Make the text or the cells of the document what they were at a moment, by a new edit of the caller."""
    moment = await caller.documents.sequence_at(caller.place, sequence, time)
    wanted = await caller.documents.moment(caller.place, moment)
    return _stored(await caller.documents.restore(caller.place, caller.author, wanted))


@documents.method()
async def name_version(
    caller: Caller, sequence: Sequence, name: Annotated[str, Field(max_length=200)]
) -> dict[str, Any]:
    """Give a moment of the history a name; an empty one removes it."""
    store, place = caller.documents.store, caller.place
    caller.documents.rate.check(caller.author)
    if await store.update_until(place, sequence=sequence) != sequence:
        raise RpcError("not_found", f"the document has no update {sequence}")
    mark = {"sequence": sequence, "name": name.strip(), "author": caller.author, "time": round(time.time() * 1000)}
    await _store_mark(caller, mark)
    if await caller.documents.remove_if_gone(place):
        return {}
    if mark["name"] and not await store.is_moment(place, sequence):
        await _store_mark(caller, mark | {"name": ""})
        raise RpcError("not_found", f"the document has no update {sequence}: it was thinned out meanwhile")
    await caller.tell(place.document, "", "named")
    return {}


async def _store_mark(caller: Caller, mark: dict[str, Any]) -> None:
    """Store the name of a moment, in the place of its last one."""
    store, place = caller.documents.store, caller.place
    for _ in range(paths.ATTEMPTS):
        last, content = await store.newest(place, place.subject("mark"))
        marks = {each["sequence"]: each for each in (json_text.read(content) if content else [])}
        marks[mark["sequence"]] = mark
        written = json_text.write([each for each in marks.values() if each["name"]])
        if len(written) > MOST_MARK_BYTES:
            raise RpcError("limit", "the document has too many named versions: remove some names")
        fits = partial(paths.Paths.name, document=place.document, size=len(written), limits=caller.documents.limits)
        await paths.change(store, caller.project, fits)
        try:
            await store.put(place.subject("mark"), written, last, replace=True)
        except OvertakenError:
            continue
        caller.documents.rate.charge(caller.author, len(written))
        return
    raise StateError("the names of versions are being changed by others; try again")


@documents.method()
async def rename(caller: Caller, path: str) -> dict[str, Any]:
    """Give the document another path. Its id and history stay."""
    place, path = caller.place, paths.checked(path)
    await paths.change(caller.documents.store, caller.project, lambda all_: all_.rename(place.document, path))
    await caller.tell(place.document, path, "renamed")
    return {"document_id": place.document, "path": path}


@documents.method("list", access=ANYBODY)
async def list_(caller: Caller, after: str = "") -> list[dict[str, Any]]:
    """The documents of the project whose ids come after one: as many as fit into one message. None is the end."""
    found = await paths.read(caller.documents.store, caller.project)
    room, rows = caller.documents.store.max_payload - REST_BYTES, list[dict[str, Any]]()
    for document, entry in sorted(found.documents.items()):
        if document <= after:
            continue
        row = {
            "document_id": document,
            "path": entry.path,
            "created": entry.created,
            "by": entry.by,
            "left_out": document in found.left_out,
        }
        room -= size_of(row) + 1
        if room < 0:
            break
        rows.append(row)
    return rows


@documents.method(access=DISK, idempotent=True)
async def leave_out(caller: Caller, documents: Annotated[list[str], Field(max_length=100_000)]) -> dict[str, Any]:
    """Say of which documents the agent keeps no file, because the project has as many as it may."""

    def note(all_: paths.Paths) -> dict[str, str]:
        before, all_.left_out = all_.left_out, {*documents} & all_.documents.keys()
        return {document: all_.documents[document].path for document in sorted(before ^ all_.left_out)}

    changed = await paths.change(caller.documents.store, caller.project, note)
    for document, path in itertools.islice(changed.items(), MOST_TOLD):
        is_out = document in documents
        await caller.tell(document, path, "left_out" if is_out else "taken_in")
        state = {"file": {"kind": "left_out", "message": LEFT_OUT}} if is_out else None
        await presence(replace(caller, document=document), 1, state)
    return {}


@documents.method()
async def retention(caller: Caller) -> dict[str, Any]:
    """How much of the histories of the project's documents stays, and whether that is the platform's setting."""
    own = (await paths.read(caller.documents.store, caller.project)).retention
    used = own or caller.documents.retention
    return {"days": used.days, "keep": used.keep, "is_own": own is not None}


@documents.method()
async def set_retention(
    caller: Caller, days: Annotated[int, Field(ge=0, le=36_500, strict=True)] | None, keep: Keep = "minute"
) -> dict[str, Any]:
    """Thin out the histories of the project's documents after so many days; 0: never; null: as the platform does."""
    wanted = None if days is None else paths.Retention(days, keep)

    def put(all_: paths.Paths) -> None:
        all_.retention = wanted

    await paths.change(caller.documents.store, caller.project, put)
    return await retention(caller)


@documents.method()
async def delete(caller: Caller) -> dict[str, Any]:
    """Remove the document and its history from the disks."""
    place, store = caller.place, caller.documents.store

    def begin(all_: paths.Paths) -> str:
        if place.document in all_.gone:  # a keeper died on the way
            return ""
        path = all_.entry(place.document).path
        del all_.documents[place.document]
        all_.gone.append(place.document)
        return path

    try:
        path = await paths.change(store, caller.project, begin)
    except RpcError as error:
        if error.kind != "limit":
            raise
        # A full stream takes no change of the paths before something has gone.
        (await paths.read(store, caller.project)).entry(place.document)
        await caller.documents.remove(place)
        path = await paths.change(store, caller.project, begin)
    await caller.documents.remove(place)
    # nats-server forgets the time of the newest message if that is purged and nothing is written after it.
    await paths.change(store, caller.project, partial(paths.Paths.end_removal, document=place.document))
    await caller.tell(place.document, path, "deleted")
    return {}


def _stored(stored: Update) -> dict[str, Any]:
    return {"sequence": stored.sequence, "previous": stored.previous, "time": stored.time}


def _checked_vector(vector: bytes) -> bytes:
    try:
        yjs_format.read_vector(vector)
    except BadUpdateError as error:
        raise RpcError("invalid_params", f"state_vector: {error}") from None
    return vector


def _text(data: bytes) -> str:
    return b64encode(data).decode()
