"""The project agent's methods for files. ``docs/reference/files.md`` describes them to callers."""

from __future__ import annotations

import asyncio
import functools
from typing import Annotated

from pydantic import Field

from natskit.project import batch, trash, tree
from natskit.project.agent import Caller
from natskit.project.batch import MOST_FILES, NewFile, TreePage
from natskit.project.content import Stamp, version_of
from natskit.project.files import Entry, Page
from natskit.project.paths import encoded
from natskit.project.transfer import FileState, UploadState, read_part
from natskit.project.trash import TrashPage
from natskit.project.watch import WatchState
from natskit.rpc import Methods, RpcError

file_methods: Methods[Caller] = Methods()

ENVELOPE = 2048
"""Bytes of an answer besides its list or its part of a file: a name may have 255 bytes, each of which may take six in
JSON."""
STATE_BYTES = 256
"""Bytes of the state of a file in an answer, at most."""
PART_BYTES = 1024 * 1024
"""The most bytes of a part, however large messages may be."""

Mode = Annotated[int, Field(ge=0, le=0o777)]
"""Permission bits. Those beyond them, such as set-user-ID, are not for callers to set."""
Time = Annotated[float, Field(ge=0, le=2**33)]
"""Seconds since 1970."""
Size = Annotated[int, Field(ge=0, le=2**62)]
Upload = Annotated[str, Field(pattern="^[0-9a-f]{16,64}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@file_methods.method("read_text_file", access="member", idempotent=True)
async def read_text_file(caller: Caller, path: str) -> dict[str, str]:
    """The text of a file and its version."""
    data = await asyncio.to_thread(caller.home.read, path, caller.max_answer)
    try:
        return {"text": data.decode(), "version": version_of(data)}
    except UnicodeDecodeError:
        raise RpcError("invalid_state", f"{path[:200]!r} is not text in UTF-8") from None


@file_methods.method("write_text_file", access="member", idempotent=True)
async def write_text_file(caller: Caller, path: str, text: str, expected_version: str | None = None) -> dict[str, str]:
    """Replace a file atomically, if it still has the version the caller expects."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise RpcError("invalid_params", "the text contains half a character (a lone surrogate)") from None
    async with caller.agent.writing:
        return {"version": await asyncio.to_thread(caller.home.write, path, data, expected_version)}


@file_methods.method("list_directory", access="member", idempotent=True)
async def list_directory(caller: Caller, path: str = ".") -> list[Entry]:
    """All names in a directory. Some 10,000 fit into one answer; beyond that, ask for parts."""
    return await asyncio.to_thread(caller.home.list, path, caller.max_answer - ENVELOPE)


@file_methods.method("list_directory_page", access="member", idempotent=True)
async def list_directory_page(
    caller: Caller, path: str = ".", after: str = "", limit: Annotated[int, Field(ge=1)] = 1000
) -> Page:
    """The names in a directory that come ``after`` one, in the order of their bytes: ``limit``, or as many as fit."""
    return await asyncio.to_thread(caller.home.list_page, path, after, limit, caller.max_answer - ENVELOPE)


@file_methods.method("watch_directory", access="member", idempotent=True)
async def watch_directory(caller: Caller, path: str = ".") -> WatchState:
    """Publish changes of a folder as events, for as long as the answer says; call it again before that.

    It is about the names in the folder, not about what is in the folders below it.
    """
    return await caller.agent.watches.renew(caller.home, path, caller.account)


@file_methods.method("stat", access="member", idempotent=True)
async def stat(caller: Caller, path: str) -> Entry:
    """The entry of one name, as in a list. Describes a link, not its target, unless a slash follows its name."""
    return await asyncio.to_thread(tree.describe, caller.home, path)


@file_methods.method("read_file", access="member", idempotent=True)
async def read_file(
    caller: Caller, path: str, offset: Size = 0, size: Size = PART_BYTES, tag: str | None = None
) -> FileState:
    """A part of a file, after the JSON of the answer: ``size`` bytes from ``offset`` on, or as many as fit.

    ``tag`` is the one in the answer with an earlier part: if the file has changed since, the answer is a ``conflict``.
    """
    most = min(size, PART_BYTES, caller.max_answer - ENVELOPE)
    await caller.take_turn()
    state, caller.answer_data = await asyncio.to_thread(read_part, caller.home, path, offset, most, tag)
    return state


@file_methods.method("write_file", access="member", idempotent=True)
async def write_file(
    caller: Caller, path: str, expected_version: str | None = None, mode: Mode | None = None, mtime: Time | None = None
) -> dict[str, str]:
    """Replace a file with the bytes after the request's JSON, as ``write_text_file`` does with text."""
    stamp = Stamp(mode, mtime)
    async with caller.agent.writing:
        version = await asyncio.to_thread(caller.home.write, path, bytes(caller.data), expected_version, stamp)
    return {"version": version}


@file_methods.method("start_upload", access="member", idempotent=True)
async def start_upload(
    caller: Caller, path: str, upload: Upload, size: Size, expected_version: str | None = None
) -> UploadState:
    """Begin to upload a file of ``size`` bytes, or continue the upload with this id, which the caller chose.

    The file appears at ``path`` with ``finish_upload``.
    """
    uploads = caller.agent.uploads
    async with uploads.turn(upload, caller.account):
        return await asyncio.to_thread(uploads.start, caller.home, path, upload, size, expected_version)


@file_methods.method("upload_part", access="member", idempotent=True)
async def upload_part(caller: Caller, path: str, upload: Upload, offset: Size) -> UploadState:
    """Take a part of the file: the bytes after the request's JSON, which begin at ``offset``.

    The answer says how much has arrived without a gap; the caller continues from there. So the caller may send parts
    before earlier ones are answered, and send them again after a lost answer. If the upload was finished within the
    last hour, the answer has its ``version``.
    """
    uploads = caller.agent.uploads
    async with uploads.turn(upload, caller.account):
        return await asyncio.to_thread(uploads.append, caller.home, path, upload, offset, caller.data)


@file_methods.method("finish_upload", access="member", idempotent=True)
async def finish_upload(
    caller: Caller,
    path: str,
    upload: Upload,
    size: Size,
    sha256: Digest | None = None,
    expected_version: str | None = None,
    mode: Mode | None = None,
    mtime: Time | None = None,
) -> dict[str, str]:
    """Put an upload in its place, if it is complete and ``path`` has the expected version, as ``write_text_file``
    does. Its version is its SHA-256, which has to be ``sha256`` unless the caller does not know it."""
    uploads, stamp = caller.agent.uploads, Stamp(mode, mtime)
    async with uploads.turn(upload, caller.account):
        received = functools.partial(uploads.received, caller.home, path, upload, size, sha256)
        version = await caller.agent.long_work(received)
        if version is not None:
            async with caller.agent.writing:
                await asyncio.to_thread(uploads.finish, caller.home, path, upload, version, expected_version, stamp)
    if version is None:  # the first answer was lost
        done = uploads.finished(path, upload)
        version = done.version if done else sha256 or ""
    return {"version": version}


@file_methods.method("cancel_upload", access="member", idempotent=True)
async def cancel_upload(caller: Caller, path: str, upload: Upload) -> dict[str, str]:
    """Discard an unfinished upload. It is no error if there is none."""
    uploads = caller.agent.uploads
    async with uploads.turn(upload, caller.account):
        await asyncio.to_thread(uploads.cancel, caller.home, path, upload)
    return {"upload": upload}


@file_methods.method("make_directory", access="member", idempotent=True)
async def make_directory(caller: Caller, path: str) -> dict[str, str]:
    """Make a folder, and those above it that are missing. One that exists is no error."""
    await asyncio.to_thread(tree.make_directory, caller.home, path)
    return {"path": path}


@file_methods.method("make_link", access="member")
async def make_link(caller: Caller, path: str, target: str) -> dict[str, str]:
    """Make a symbolic link at ``path`` that leads to ``target``, which is relative to the link's folder."""
    await asyncio.to_thread(tree.make_link, caller.home, path, encoded(target))
    return {"path": path}


@file_methods.method("chmod", access="member", idempotent=True)
async def chmod(caller: Caller, path: str, mode: Mode) -> dict[str, int]:
    """Set the permission bits of a file or a folder, such as 0o755, which is 493 in JSON."""
    await asyncio.to_thread(tree.change_mode, caller.home, path, mode)
    return {"mode": mode}


@file_methods.method("move", access="member")
async def move(caller: Caller, path: str, to: str, replace: bool = False) -> dict[str, str]:
    """Rename or move a file, a folder or a link. A taken name is a ``conflict``, unless a file may be replaced."""
    async with caller.agent.writing:
        await asyncio.to_thread(functools.partial(tree.move, caller.home, path, to, replace=replace))
    return {"path": to}


@file_methods.method("copy", access="member")
async def copy(caller: Caller, path: str, to: str, replace: bool = False) -> dict[str, int]:
    """Copy a file, or a folder and everything in it. The copy appears at ``to`` when it is complete.

    The answer counts what was ``copied``, and the pipes, sockets and devices that were ``skipped``.
    """
    work = tree.Copy(caller.agent.stopping)
    await caller.agent.long_work(functools.partial(work.run, caller.home, path, to, replace=replace))
    return {"copied": work.copied, "skipped": work.skipped}


@file_methods.method("remove", access="member")
async def remove(caller: Caller, path: str) -> dict[str, int]:
    """Remove a file, a link, or a folder and everything in it. The answer says how many names were ``removed``."""
    removal = tree.Removal(caller.agent.stopping)
    return {"removed": await caller.agent.long_work(functools.partial(removal.run, caller.home, path))}


@file_methods.method("move_to_trash", access="member")
async def move_to_trash(caller: Caller, path: str) -> dict[str, str]:
    """Move a file, a folder or a link into the trash. The answer has its ``id`` there."""
    return {"id": await asyncio.to_thread(trash.throw_away, caller.home, path)}


@file_methods.method("list_trash", access="member", idempotent=True)
async def list_trash(caller: Caller, after: str = "", limit: Annotated[int, Field(ge=1)] = 1000) -> TrashPage:
    """The things in the trash whose ids come ``after`` one, in the order of the ids: ``limit``, or as many as fit."""
    return await asyncio.to_thread(trash.contents, caller.home, after, limit, caller.max_answer - ENVELOPE)


@file_methods.method("restore_from_trash", access="member")
async def restore_from_trash(caller: Caller, id: str, to: str | None = None) -> dict[str, str]:
    """Move a thing out of the trash, to where it was or to another path. A taken name is a ``conflict``."""
    return {"path": await asyncio.to_thread(trash.restore, caller.home, id, to)}


@file_methods.method("empty_trash", access="member", idempotent=True)
async def empty_trash(caller: Caller, ids: list[str] | None = None) -> dict[str, int]:
    """Remove things in the trash, or all of them. The answer counts the files and folders that were ``removed``."""
    work = functools.partial(trash.empty, caller.home, ids, caller.agent.stopping)
    return {"removed": await caller.agent.long_work(work)}


@file_methods.method("list_tree", access="member", idempotent=True)
async def list_tree(
    caller: Caller, path: str = ".", after: str = "", limit: Annotated[int, Field(ge=1)] = 10_000
) -> TreePage:
    """The entries of a folder and of all folders below it that come ``after`` a path: ``limit``, or as many as fit.
    Each name is a path from the folder."""
    room, stopping = caller.max_answer - ENVELOPE, caller.agent.stopping
    work = functools.partial(batch.list_tree, caller.home, path, after, limit, room, stopping)
    return await caller.agent.long_work(work)


@file_methods.method("hash_files", access="member", idempotent=True)
async def hash_files(caller: Caller, paths: list[str]) -> dict[str, list[str | None]]:
    """The ``versions`` of files; null for anything else, and for files that cannot be read."""
    work = functools.partial(batch.hash_files, caller.home, paths, caller.agent.stopping)
    return {"versions": await caller.agent.long_work(work)}


@file_methods.method("read_files", access="member", idempotent=True)
async def read_files(caller: Caller, paths: Annotated[list[str], Field(min_length=1)]) -> dict[str, list[FileState]]:
    """The first of these files, after the JSON of the answer: as many as fit, or the beginning of the first one."""
    await caller.take_turn()
    room = min(PART_BYTES, caller.max_answer - ENVELOPE - STATE_BYTES * len(paths))
    if room <= 0:
        raise RpcError("limit", f"the states of {len(paths)} files do not fit into one answer")
    work = functools.partial(batch.read_files, caller.home, paths, room)
    files, caller.answer_data = await caller.agent.long_work(work)
    return {"files": files}


@file_methods.method("write_files", access="member", idempotent=True)
async def write_files(
    caller: Caller, files: Annotated[list[NewFile], Field(min_length=1, max_length=MOST_FILES)]
) -> dict[str, int]:
    """Write small files, whose bytes follow the request's JSON one after the other, and make missing folders. The
    answer says how many files were ``written``."""
    async with caller.agent.writing:
        work = functools.partial(batch.write_files, caller.home, files, caller.data)
        return {"written": await caller.agent.long_work(work)}
