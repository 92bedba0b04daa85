"""Writes what restic prints of a project's files. A host that somebody has taken over may have written its repository.

restic prints a folder as a tar. Each name is made in the folder above it, which is opened without following a link
(:class:`natskit.runner.moved_tree.Tree`). So nothing outside of the new folder is written. All files belong to the user
of this command. There are no devices, no pipes, no second names of files, and no bits that let a program run as its
owner.
"""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from natskit.bus.project_move import Entry, Written, to_path
from natskit.errors import BackupError
from natskit.project.tree import Removal
from natskit.rpc import RpcError
from natskit.runner.moved_tree import Tree

PIECE_BYTES = 1024**2
MODE_BITS = 0o755
"""Of files and folders: others may not change them."""
MOST_LEFT_OUT = 10_000
"""Names that are left out. More come as empty files."""
LAST_MOMENT = 2**33
"""Unix seconds. File systems do not know later ones."""


@dataclass
class Listed:
    """What `restic ls` says of a file or a folder: its tar shows pipes and devices as empty files."""

    size: int = 0
    """Bytes of all files."""
    special: set[str] = field(default_factory=set)
    """Paths of all that is no file, folder or link, as JSON has them."""

    @classmethod
    def of(cls, first: dict[str, Any], others: Iterable[dict[str, Any]]) -> Listed:
        """Of a node, and of all below it."""
        found = cls()
        found._add(first)
        for node in others:
            found._add(node)
        return found

    def _add(self, node: dict[str, Any]) -> None:
        if node.get("type") == "file":
            self.size += int(node.get("size", 0))
        elif node.get("type") not in ("dir", "symlink") and len(self.special) < MOST_LEFT_OUT:
            self.special.add(str(node.get("path")))


@contextmanager
def arising(place: Path) -> Iterator[Path]:
    """A new path, which becomes ``place`` when the block ends, or is removed after an error. Raises
    :class:`BackupError`."""
    around = place.with_name(f".{place.name}.restored")
    try:
        _remove(around)
        around.mkdir(mode=0o700)
        try:
            made = around / "made"
            yield made
            made.chmod(0o700 if made.is_dir() else 0o600)
            made.rename(place)
        finally:
            _remove(around)
    except (OSError, OverflowError, tarfile.TarError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BackupError(f"{place} cannot be written: {why}") from None
    except RpcError as error:
        raise BackupError(f"{place} cannot be written: {error.message}") from None


def write(content: IO[bytes], made: Path, known: Listed) -> None:
    """Write a file. Raises :class:`BackupError` and :class:`OSError`."""
    left = known.size
    with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        while data := content.read(PIECE_BYTES):
            left -= len(data)
            _check_room(left)
            file.write(data)


def unpack(content: IO[bytes], made: Path, above: str, known: Listed) -> list[str]:
    """Make a folder out of a tar, whose names begin with ``above``. Returns the paths that were left out. Raises
    :class:`BackupError`, :class:`RpcError`, :class:`OSError`, :class:`ValueError` and :class:`tarfile.TarError`."""
    made.mkdir(mode=0o700)
    left_out, left, open_folders = list[str](), known.size, list[Entry]()
    with tarfile.open(fileobj=content, mode="r|", errors="surrogateescape") as archive, Tree(made) as tree:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
            path = _below(member.name, above)
            if not path:
                continue
            while open_folders and not path.startswith(f"{open_folders[-1].path}/"):
                tree.stamp([open_folders.pop()])
            moment = int(max(0, min(member.mtime, LAST_MOMENT)) * 1e9)
            if member.isdir():
                tree.make([entry := _entry(path, "directory", member.mode | 0o700, moment)])
                open_folders.append(entry)
            elif member.issym():
                target = to_path(os.fsencode(member.linkname))
                tree.make([_entry(path, "symlink", 0o777, moment)._replace(target=target)])
            elif member.isreg() and _as_in_json(member.name) not in known.special:
                left -= member.size
                _check_room(left)
                _write_member(archive, member, tree, path, moment)
            else:
                left_out.append(os.fsdecode(path.encode("latin-1")))
        for folder in reversed(open_folders):
            tree.stamp([folder])
    return left_out


def _write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, tree: Tree, path: str, moment: int) -> None:
    data, offset = archive.extractfile(member), 0
    assert data is not None
    while True:
        piece = data.read(min(PIECE_BYTES, member.size - offset))
        is_last = offset + len(piece) >= member.size
        if not piece and not is_last:
            raise tarfile.ReadError("unexpected end of data")
        mode = member.mode & MODE_BITS | 0o600
        tree.write([Written(path, offset, len(piece), is_last, member.size, mode, moment)], memoryview(piece))
        offset += len(piece)
        if is_last:
            return


def _entry(path: str, kind: Any, mode: int, moment: int) -> Entry:
    return Entry(path, kind, mode & MODE_BITS, moment, 0, 0, 0, 0, "")


def _below(name: str, above: str) -> str:
    """The path of a member below the folder that was asked for; empty for that folder. Raises :class:`ValueError`.

    :class:`Tree` refuses ``..`` in it.
    """
    whole = name.rstrip("/")
    if whole == above:
        return ""
    if not whole.startswith(f"{above}/"):
        raise ValueError(f"restic printed {name[:200]!r}, which is not in {above}")
    return to_path(os.fsencode(whole[len(above) + 1 :]))


def _as_in_json(name: str) -> str:
    """A name as restic writes it into JSON: each byte that is not UTF-8 becomes U+FFFD."""
    return "/" + "".join("\ufffd" if "\udc80" <= letter <= "\udcff" else letter for letter in name)


def _check_room(left: int) -> None:
    if left < 0:
        raise ValueError("the files have more bytes than their list says")


def _remove(path: Path) -> None:
    """Remove what is there, a folder of any depth too."""
    if os.path.lexists(path):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            Removal(threading.Event()).remove(folder, os.fsencode(path.name))
        finally:
            os.close(folder)
