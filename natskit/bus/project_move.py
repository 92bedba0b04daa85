"""What the control machine and runners say to each other to move the files of a project.

The control machine asks ``runners.{runner_id}.move``: the old runner for lists, hashes and content, the new one to
write them. Runners need not reach each other, or trust each other. No runner keeps a state of a move but the files:
what has arrived has the size and the time of its source, so the next command goes on from there.

A path is the bytes of its names, each as the character of that number (ISO 8859-1): so any name can be said in JSON.
The home itself is the empty path.
"""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

Kind = Literal["file", "directory", "symlink", "pipe", "other"]


class Entry(NamedTuple):
    """A name below the home, and what it stands for."""

    path: str
    kind: Kind
    mode: int
    mtime: int
    """Nanoseconds."""
    size: int
    used: int
    """Bytes on the disk."""
    changed: int
    """The ctime in nanoseconds. Each change of a file changes it."""
    inode: int
    """Of a file with several names; otherwise 0."""
    target: str
    """Of a link."""


class Piece(NamedTuple):
    """A part of a file."""

    path: str
    offset: int
    length: int


class Written(NamedTuple):
    """A part of a file that is to be written, and what the file is like when it is complete."""

    path: str
    offset: int
    length: int
    is_last: bool
    """Whether the file is complete with it."""
    size: int
    mode: int
    mtime: int


def to_path(name: bytes) -> str:
    """A path as it is said in JSON."""
    return name.decode("latin-1")


def from_path(path: str) -> bytes:
    """The bytes of a path. Raises :class:`ValueError` for what is no path below the home."""
    name = path.encode("latin-1")
    parts = name.split(b"/") if name else []
    if b"\0" in name or any(part in (b"", b".", b"..") for part in parts):
        raise ValueError(f"{path[:200]!r} is no path below a home")
    return name


def readable(path: str) -> str:
    """A path for people."""
    return os.fsdecode(path.encode("latin-1")) or "the home"
