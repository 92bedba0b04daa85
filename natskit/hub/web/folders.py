"""A folder of a project as a zip, piece by piece: the hub keeps a few parts of files, and one line for each file."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import AsyncGenerator
from typing import Any

from natskit.bus.file_transfer import Transfer, read
from natskit.hub.web.zipping import Zip
from natskit.rpc import RpcError

MOST_ZIPPED = 100_000
"""Files and folders in a zip: the hub keeps some 100 bytes for each until its end."""
SMALL_BYTES, MOST_IN_BATCH = 64 * 1024, 256
"""Files up to this size are read together, so many at a time."""
BATCH_BYTES, PATH_BYTES = 512 * 1024, 128 * 1024
"""Of the content, and of the paths, of files that are read together."""
CHUNK_BYTES = 256 * 1024
"""Small pieces are sent together."""
ENTRY_BYTES, DIRECTORY_BYTES = 100, 64 * 1024**2
"""What the hub keeps for each file besides its name, and at most for all."""
MOST_LEFT_OUT, NAME_BYTES = 1000, 4096
"""Lines of the file that says what is not in the zip, and the longest name in one."""
LEFT_OUT = "NOT IN THIS ZIP.txt"


class FolderZip:
    """The zip of a folder. :meth:`open` it before its :meth:`parts` are read."""

    def __init__(self, transfer: Transfer, path: str, top: str) -> None:
        """``top`` is the name of the folder in the zip."""
        self._transfer = transfer
        self._path = path
        self._top = top
        self._zip = Zip()
        self._first: dict[str, Any] = {}
        self._left_out: list[str] = []
        self._missing = 0
        self._waiting = bytearray()

    async def open(self) -> None:
        """Raises :class:`RpcError` if the folder cannot be listed, or has too much in it."""
        page = self._first = await self._page("")
        count = len(page["entries"])
        while page["next"] is not None:
            page = await self._page(page["next"])
            count += max(1, len(page["entries"]))
            if count > MOST_ZIPPED:
                raise RpcError(
                    "limit",
                    f"{self._top!r} has more than {MOST_ZIPPED:,} files and folders, which is too much for a zip: "
                    "copy it with `natskit sync`",
                )

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The zip. Raises what :meth:`Transfer.ask` does: then it is not complete."""
        async with contextlib.aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                self._waiting += piece
                if len(self._waiting) >= CHUNK_BYTES:
                    yield bytes(self._waiting)
                    self._waiting.clear()
        yield bytes(self._waiting) + self._end()

    async def _pieces(self) -> AsyncGenerator[bytes | memoryview, None]:
        batch: list[dict[str, Any]] = []
        async with contextlib.aclosing(self._entries()) as entries:
            async for entry in entries:
                if entry["type"] == "directory":
                    yield self._zip.folder(self._name(entry["name"]), entry["mode"], entry["mtime"])
                elif _is_whole(batch, entry):
                    async with contextlib.aclosing(self._batch(batch)) as pieces:
                        async for piece in pieces:
                            yield piece
                    batch = [entry]
                else:
                    batch.append(entry)
        async with contextlib.aclosing(self._batch(batch)) as pieces:
            async for piece in pieces:
                yield piece

    async def _entries(self) -> AsyncGenerator[dict[str, Any], None]:
        """The files and folders, without what no zip should have."""
        page, size = self._first, 0
        while True:
            for entry in page["entries"]:
                size += ENTRY_BYTES + len(entry["name"])
                if size > DIRECTORY_BYTES:  # it has grown since it was counted
                    raise RpcError("limit", f"{self._top[:200]!r} has too many names for a zip")
                if entry["type"] not in ("file", "directory"):
                    self._leave_out(entry["name"], "is a link" if entry["type"] == "symlink" else "is no file")
                elif ".." in entry["name"].split("/"):
                    self._leave_out(entry["name"], "would lead out of the folder")
                elif "\\" in entry["name"]:
                    self._leave_out(entry["name"], "has a backslash, which Windows would take for a folder")
                else:
                    yield entry
            if page["next"] is None:
                return
            page = await self._page(page["next"])

    async def _batch(self, batch: list[dict[str, Any]]) -> AsyncGenerator[bytes | memoryview, None]:
        """Files that are read together as far as possible; one that cannot be read is left out."""
        while batch:
            states: list[dict[str, Any]] = []
            if len(batch) > 1:
                paths = [self._inside(entry["name"]) for entry in batch]
                with contextlib.suppress(RpcError):  # one of them cannot be read: it is looked for below
                    answer, data = await self._transfer.ask("read_files", {"paths": paths})
                    states = answer["files"] if answer["files"][0]["size"] <= len(data) else []
            if not states:
                async with contextlib.aclosing(self._file(batch[0]["name"])) as pieces:
                    async for piece in pieces:
                        yield piece
                batch = batch[1:]
                continue
            for entry, state in zip(batch, states, strict=False):
                yield self._begin(entry["name"], state)
                yield self._zip.content(data[: state["size"]])
                yield self._zip.finish()
                data = data[state["size"] :]
            batch = batch[len(states) :]

    async def _file(self, name: str) -> AsyncGenerator[bytes | memoryview, None]:
        """A file in parts. If it changes meanwhile, the zip ends there: a mixture of two files is none."""
        begun = False
        try:
            async with contextlib.aclosing(read(self._transfer, self._inside(name))) as parts:
                async for state, data in parts:
                    if not begun:
                        begun = True
                        yield self._begin(name, state)
                    yield self._zip.content(data)
        except RpcError as error:
            if begun or error.kind not in ("not_found", "forbidden", "conflict", "invalid_params", "invalid_state"):
                raise
            self._leave_out(name, error.message)
        else:
            yield self._zip.finish()

    def _begin(self, name: str, state: dict[str, Any]) -> bytes:
        return self._zip.begin(self._name(name), stat.S_IFREG | state["mode"], state["mtime"], state["size"])

    def _end(self) -> bytes:
        """What is left out, and the end of the zip."""
        text = b""
        if self._missing:
            more = self._missing - len(self._left_out)
            lines = [*self._left_out, *([f"and {more} more"] if more else [])]
            body = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
            text = self._zip.begin(self._name(LEFT_OUT), stat.S_IFREG | 0o644, 0, len(body))
            text += bytes(self._zip.content(body)) + self._zip.finish()
        return text + self._zip.end()

    def _leave_out(self, name: str, why: str) -> None:
        self._missing += 1
        if len(self._left_out) < MOST_LEFT_OUT:
            self._left_out.append(f"{name[:NAME_BYTES]}: {why[:NAME_BYTES]}")

    async def _page(self, after: str) -> dict[str, Any]:
        answer, _ = await self._transfer.ask("list_tree", {"path": self._path, "after": after})
        return dict(answer)

    def _inside(self, name: str) -> str:
        return name if self._path == "." else f"{self._path.rstrip('/')}/{name}"

    def _name(self, name: str) -> bytes:
        return f"{self._top}/{name}".encode("utf-8", "surrogateescape")


def _is_whole(batch: list[dict[str, Any]], entry: dict[str, Any]) -> bool:
    """Whether files that are read together have no room for one more."""
    together = [*batch, entry]
    return bool(batch) and (
        len(batch) >= MOST_IN_BATCH
        or max(entry["size"], batch[-1]["size"]) > SMALL_BYTES
        or sum(one["size"] for one in together) > BATCH_BYTES
        or sum(len(one["name"]) for one in together) > PATH_BYTES
    )
