"""What an update adds to a document, and what it needs: read from its bytes, before the document is touched.

A CRDT library takes what it is given: it keeps an update whose predecessors are missing until they arrive, skips what
it has already, and may crash on bytes that no library wrote. A keeper stores an update for ever, so it reads it first.

Source: Yjs, ``src/utils/encoding.js``, ``src/structs/*.js`` and ``lib0/encoding.js``, version 1 of the encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

MOST_CLOCK = 2**31 - 1
"""yrs counts in 32 bits."""
MOST_CLIENT = 2**53 - 1
MOST_DEPTH = 64
"""Of values within values, which a library reads by recursion."""
MOST_STRUCTS = 200_000
REMEMBERED, REMEMBERED_BYTES = 256, 4096
"""How many small updates, and up to which size, are read once: a keeper asks four times what is in one that it stores,
which took a sixth of its time."""

_GC, _SKIP = 0, 10
_XML_ELEMENT, _XML_HOOK, _LAST_TYPE = 3, 5, 6
_HAS_LEFT, _HAS_RIGHT, _HAS_KEY = 0x80, 0x40, 0x20

Vector = Mapping[int, int]
"""A state vector: how many elements of each client are there."""


class BadUpdateError(ValueError):
    """The bytes are no update."""


@dataclass
class Contents:
    """The contents of an update."""

    added: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By client: the clock of the first element, and the one after the last."""
    needed: dict[int, int] = field(default_factory=dict)
    """By client: how many of its elements must be there, before or with this update."""

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.added and not self.needed

    def missing(self, vector: Vector) -> bool:
        """Whether a document with this state vector lacks something that the update needs."""
        if any(first > vector.get(client, 0) for client, (first, _) in self.added.items()):
            return True
        return any(
            count > max(vector.get(client, 0), self.added.get(client, (0, 0))[1])
            for client, count in self.needed.items()
        )

    def repeats(self, vector: Vector) -> bool:
        """Whether a document with this state vector has some of the added elements already."""
        return any(first < vector.get(client, 0) for client, (first, _) in self.added.items())

    def after(self, vector: Vector) -> dict[int, int]:
        """The state vector of the document with this update."""
        return {**vector, **{client: end for client, (_, end) in self.added.items()}}


def read(update: bytes) -> Contents:
    """The contents of an update, which nobody changes. Raises :class:`BadUpdateError`."""
    return _read_once(update) if len(update) <= REMEMBERED_BYTES else _read(update)


def _read(update: bytes) -> Contents:
    reader = _Reader(update)
    try:
        contents = reader.update()
    except (IndexError, UnicodeDecodeError):
        raise BadUpdateError("the bytes are not a Yjs update") from None
    if reader.place != len(update):
        raise BadUpdateError(f"the update ends after {reader.place} of {len(update)} bytes")
    return contents


_read_once = lru_cache(maxsize=REMEMBERED)(_read)


def read_vector(vector: bytes) -> dict[int, int]:
    """A state vector. Raises :class:`BadUpdateError`."""
    if not vector:
        return {}
    reader = _Reader(vector)
    try:
        found = {reader.client(): reader.number() for _ in range(reader.count(2))}
    except IndexError:
        raise BadUpdateError("the bytes are not a state vector") from None
    if reader.place != len(vector):
        raise BadUpdateError("the bytes are not a state vector")
    return found


def write_vector(vector: Vector) -> bytes:
    """The bytes of a state vector."""
    numbers = [len(vector), *(number for item in vector.items() for number in item)]
    return b"".join(map(_number, numbers))


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0
        self.contents = Contents()

    def update(self) -> Contents:
        structs = 0
        for _ in range(self.count(3)):
            count = self.count(1)
            structs += count
            client, clock = self.client(), self.number()
            if structs > MOST_STRUCTS:
                raise BadUpdateError(f"an update has at most {MOST_STRUCTS:,} parts: send it in several")
            if client in self.contents.added or not count:
                raise BadUpdateError("the update names a client twice, or one without a part")
            first = clock
            for _ in range(count):
                clock += self.struct()
                if clock > MOST_CLOCK:
                    raise BadUpdateError("the update counts too far")
            self.contents.added[client] = first, clock
        self.deletions()
        return self.contents

    def deletions(self) -> None:
        for _ in range(self.count(2)):
            client = self.client()
            for _ in range(self.count(2)):
                end = self.number() + self.number()
                if end > MOST_CLOCK:
                    raise BadUpdateError("the update counts too far")
                self.need(client, end)

    def struct(self) -> int:
        """Read one struct; returns its length."""
        info = self.byte()
        kind = info & 31
        if kind == _GC:
            return self.length()
        if kind == _SKIP:
            raise BadUpdateError("the update has a gap")
        if info & _HAS_LEFT:
            self.identity()
        if info & _HAS_RIGHT:
            self.identity()
        if not info & (_HAS_LEFT | _HAS_RIGHT):
            if self.number() == 1:
                self.text()
            else:
                self.identity()
            if info & _HAS_KEY:
                self.text()
        return self.content(kind)

    def content(self, kind: int) -> int:
        match kind:
            case 1:
                return self.length()
            case 3:
                self.skip(self.number())
            case 4:
                return self.positive(len(self.text().encode("utf-16-le")) // 2)
            case 5:
                self.text()
            case 6:
                self.text()
                self.text()
            case 7:
                kind = self.number()
                if kind > _LAST_TYPE or kind == _XML_HOOK:  # yrs reads no name of a hook, Yjs does
                    raise BadUpdateError(f"the update has a shared type {kind} that keepers do not know")
                if kind == _XML_ELEMENT:
                    self.text()
            case 8:
                count = self.count(1)
                for _ in range(count):
                    self.any(0)
                return self.positive(count)
            case _:
                raise BadUpdateError(f"the update has content of a kind {kind} that keepers do not take")
        return 1

    def any(self, depth: int) -> None:
        if depth > MOST_DEPTH:
            raise BadUpdateError(f"the update has values within values, more than {MOST_DEPTH} deep")
        match self.byte():
            case 127 | 126 | 121 | 120:  # undefined, null, false, true
                pass
            case 125:
                self.signed()
            case 124:
                self.skip(4)
            case 123 | 122:
                self.skip(8)
            case 119:
                self.text()
            case 118:
                for _ in range(self.count(2)):
                    self.text()
                    self.any(depth + 1)
            case 117:
                for _ in range(self.count(1)):
                    self.any(depth + 1)
            case 116:
                self.skip(self.number())
            case other:
                raise BadUpdateError(f"the update has a value of the unknown kind {other}")

    def need(self, client: int, count: int) -> None:
        if count > self.contents.needed.get(client, 0):
            self.contents.needed[client] = count

    def identity(self) -> None:
        client, clock = self.client(), self.number()
        if clock >= MOST_CLOCK:
            raise BadUpdateError("the update counts too far")
        self.need(client, clock + 1)

    def client(self) -> int:
        client = self.number()
        if client > MOST_CLIENT:
            raise BadUpdateError("the update has a client id above 2^53")
        return client

    def length(self) -> int:
        return self.positive(self.number())

    def positive(self, length: int) -> int:
        if length < 1 or length > MOST_CLOCK:
            raise BadUpdateError("the update has an empty part, or one that is too long")
        return length

    def count(self, smallest: int) -> int:
        """A number of things that take at least ``smallest`` bytes each."""
        count = self.number()
        if count * smallest > len(self.data) - self.place:
            raise BadUpdateError("the update is cut off")
        return count

    def text(self) -> str:
        length, start = self.number(), self.place
        self.skip(length)
        return self.data[start : self.place].decode()

    def skip(self, length: int) -> None:
        self.place += length
        if self.place > len(self.data):
            raise BadUpdateError("the update is cut off")

    def byte(self) -> int:
        value = self.data[self.place]
        self.place += 1
        return value

    def number(self) -> int:
        """An unsigned number, seven bits a byte."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise BadUpdateError("the update has a number of more than 63 bits")

    def signed(self) -> None:
        for _ in range(8):
            if self.byte() < 128:
                return
        raise BadUpdateError("the update has a number of more than 55 bits, which lib0 refuses")
