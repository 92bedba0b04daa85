"""What the documents and the files of a project had in common the last time: on the disk, for the next start.

The file is in the home, so commands in the project may change it. A wrong record costs a merge, and no text.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass

from natskit.project.files import Home
from natskit.project.tree import make_directory
from natskit.rpc import RpcError

FOLDER = ".local/state/natskit"
"""By the XDG Base Directory Specification: data that stays between restarts, and is not worth a backup."""
PATH = f"{FOLDER}/documents.json"
MOST_BYTES = 16 * 1024 * 1024
MOST_SEQUENCE = 2**53 - 1
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """What a document and its file had in common."""

    path: str
    sequence: int
    """Of the document: 0 if no moment of it had just this text."""
    sha256: str
    """Of the text, in UTF-8."""
    version: str
    """Of the file: the digest of its bytes."""


def load(home: Home) -> dict[str, Entry]:
    """The entries by the documents' ids; none if there is no record that can be read."""
    try:
        raw = json.loads(home.read(PATH, MOST_BYTES))
        return {str(document): _checked(entry) for document, entry in raw.items()}
    except (RpcError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _checked(raw: list[object]) -> Entry:
    path, sequence, sha256, version = raw
    if not isinstance(path, str) or type(sequence) is not int or not 0 <= sequence <= MOST_SEQUENCE:
        raise ValueError
    for digest in (sha256, version):
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError
    return Entry(path, sequence, str(sha256), str(version))


def save(home: Home, entries: dict[str, Entry]) -> None:
    """Replace the record. Raises :class:`RpcError`."""
    body = json.dumps({key: [e.path, e.sequence, e.sha256, e.version] for key, e in entries.items()})
    try:
        home.write(PATH, body.encode())
    except RpcError as error:
        if error.kind != "not_found":
            raise
        folder = ""
        for name in FOLDER.split("/"):
            folder = f"{folder}/{name}" if folder else name
            with contextlib.suppress(RpcError):  # it is there
                make_directory(home, folder)
        home.write(PATH, body.encode())
