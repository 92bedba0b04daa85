"""``runners.{runner_id}.move``: the methods by which the control machine moves the files of a project.

Only the control machine may publish there. That is not enough: a hub has to confirm that the project is being moved by
this command, from or to this runner (:mod:`natskit.hub.services.project_moves`). So these methods reach no project that
runs, and no copy that counts is ever changed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from natskit.bus.project_move import Entry, Piece, Written
from natskit.errors import NatskitError
from natskit.project.config import Id
from natskit.rpc import Methods, RpcError, encode_error
from natskit.runner.moved_tree import Tree
from natskit.runner.project_agent import ProjectAgent

T = TypeVar("T")

AT_ONCE = 4
"""Requests that are worked on. Each takes a few MiB of memory at most."""
MOST_WAITING = 64
"""Requests that wait for their turn."""
TRUST_SECONDS = 5.0
"""How long a hub's answer about a move is believed. When the move goes on, each command asks anew."""
MOST_EXTENTS = 4000


class NoFolderError(RpcError):
    """There is no home, or nothing has arrived yet."""


class Moves:
    """Answers the requests of moves."""

    def __init__(
        self,
        project: Callable[[str], ProjectAgent],
        call_hub: Callable[..., Awaitable[Any]],
        check_room: Callable[[Path, int, int, int], None],
    ) -> None:
        self.project, self.check_room = project, check_room
        self._call_hub = call_hub
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._parts: dict[str, tuple[str, str, float]] = {}
        """Of each project: the move, this runner's part of it, and when a hub said so."""

    async def answer(self, body: bytes, data: memoryview, most: int) -> tuple[bytes | None, bytes]:
        """The answer to a request, and the data after it."""
        if self._waiting >= MOST_WAITING:
            error = RpcError("unavailable", "the runner is busy with other moves", retry_after=1)
            return encode_error(None, error), b""
        self._waiting += 1
        try:
            async with self._turns:
                call = MoveCall(self, data, most)
                answer = await move_methods.answer(call, body, most)
                return answer, call.answer_data
        finally:
            self._waiting -= 1

    async def check(self, project_id: str, move_id: str, *parts: str, anew: bool = False) -> None:
        """Raises :class:`RpcError` unless this runner's part of this move is one of ``parts``."""
        move, part, since = self._parts.get(project_id, ("", "", 0.0))
        if anew or move != move_id or part not in parts or time.monotonic() - since > TRUST_SECONDS:
            self._parts.pop(project_id, None)
            began = time.monotonic()
            try:
                part = await self._call_hub("my_part_of_move", project_id=project_id, move_id=move_id)
            except RpcError:
                raise
            except NatskitError as error:
                raise RpcError("unavailable", f"no hub confirms the move: {error}", retry_after=1) from None
            self._parts[project_id] = (move_id, part, began)
        if part not in parts:
            raise RpcError("conflict", f"this runner is the {part} of the move at this moment")


@dataclass
class MoveCall:
    """One request: the first parameter of each method."""

    moves: Moves
    data: memoryview
    """What came after the JSON of the request."""
    most: int
    """Bytes of an answer."""
    answer_data: bytes = field(default=b"")

    async def tree(self, project_id: str, move_id: str, work: Callable[[Tree], T], *, target: bool) -> T:
        """Do some work in the home, or where it arrives. Raises :class:`RpcError`."""
        await self.moves.check(project_id, move_id, "target" if target else "source")
        project = self.moves.project(project_id)
        return await asyncio.to_thread(_work, project, work, target=target)


def _work(project: ProjectAgent, work: Callable[[Tree], T], *, target: bool) -> T:
    top = project.arriving if target else project.home
    try:
        tree = Tree(top)
    except FileNotFoundError:
        raise NoFolderError("not_found", f"{top} does not exist") from None
    except OSError as error:
        raise RpcError("invalid_state", f"{top} cannot be opened: {error.strerror}") from None
    try:
        with tree:
            return work(tree)
    except FileNotFoundError as error:
        raise RpcError("conflict", f"{error.filename!r} in {top} is not there (any more)") from None
    except (OSError, ValueError) as error:
        raise RpcError("invalid_state", f"the files cannot be moved: {error}") from None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


move_methods: Methods[MoveCall] = Methods()
Size = Annotated[int, Field(ge=0)]


@move_methods.method("list")
async def list_page(call: MoveCall, project_id: Id, move_id: Id, target: bool, after: str | None) -> dict[str, Any]:
    """A part of the list of all files. A project that was never started has none, not even a home."""
    try:
        work = partial(Tree.page, after=after, room=call.most - 1024)
        entries, more = await call.tree(project_id, move_id, work, target=target)
    except NoFolderError as error:
        if not target and call.moves.project(project_id).was_started:
            raise RpcError("invalid_state", f"{error.message}: is the disk with the homes mounted?") from None
        entries, more = [], None
    return {"entries": entries, "next": more}


@move_methods.method("hash")
async def hash_pieces(call: MoveCall, project_id: Id, move_id: Id, target: bool, pieces: list[Piece]) -> list[str]:
    """The SHA-256 of parts of files, read from the disk."""
    return await call.tree(project_id, move_id, partial(Tree.hashes, pieces=pieces), target=target)


@move_methods.method("read")
async def read_pieces(call: MoveCall, project_id: Id, move_id: Id, pieces: list[Piece]) -> list[int]:
    """The content of parts of files, after the JSON of the answer, which has their sizes."""
    room = max(0, call.most - 1024 - 12 * len(pieces))
    work = partial(Tree.read, pieces=pieces, room=room)
    sizes, call.answer_data = await call.tree(project_id, move_id, work, target=False)
    return sizes


@move_methods.method("extents")
async def list_extents(call: MoveCall, project_id: Id, move_id: Id, path: str, offset: Size) -> list[tuple[int, int]]:
    """The next parts of a file that are no holes."""
    work = partial(Tree.extents, path=path, offset=offset, most=MOST_EXTENTS)
    return await call.tree(project_id, move_id, work, target=False)


@move_methods.method("prepare")
async def prepare(
    call: MoveCall, project_id: Id, move_id: Id, size: Size, files: Size, arrived: Size
) -> dict[str, Any]:
    """Look whether the files fit here, and make the folder in which they arrive."""
    await call.moves.check(project_id, move_id, "target", anew=True)
    project = call.moves.project(project_id)
    try:
        if project.home.exists() and any(project.home.iterdir()):
            raise RpcError(
                "conflict",
                f"{project.home} has files of the project already, and nobody knows whether they are needed: move that "
                "folder away. To use it instead of the present files, give the move up with --cancel, and move with "
                "--without-files",
            )
        project.make_place()
        call.moves.check_room(project.home.parent, size, files, arrived)
        project.arriving.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RpcError("invalid_state", f"{project.arriving} cannot be made: {error}") from None
    return {}


@move_methods.method("make")
async def make(call: MoveCall, project_id: Id, move_id: Id, entries: list[Entry]) -> dict[str, Any]:
    """Make folders, links and pipes."""
    await call.tree(project_id, move_id, partial(Tree.make, entries=entries), target=True)
    return {}


@move_methods.method("link")
async def link(call: MoveCall, project_id: Id, move_id: Id, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Give files second names: the new name first."""
    await call.tree(project_id, move_id, partial(Tree.link, pairs=pairs), target=True)
    return {}


@move_methods.method("write")
async def write(call: MoveCall, project_id: Id, move_id: Id, parts: list[Written]) -> dict[str, Any]:
    """Write parts of files, whose content comes after the JSON of the request."""
    if sum(part.length for part in parts) != len(call.data):
        raise RpcError("invalid_params", "the data has not the length of its parts")
    # Others write on this disk too, after `prepare` has looked.
    call.moves.check_room(call.moves.project(project_id).home.parent, len(call.data), 0, 0)
    await call.tree(project_id, move_id, partial(Tree.write, parts=parts, data=call.data), target=True)
    return {}


@move_methods.method("stamp")
async def stamp(call: MoveCall, project_id: Id, move_id: Id, entries: list[Entry]) -> dict[str, Any]:
    """Give folders, in this order, their modes and times."""
    await call.tree(project_id, move_id, partial(Tree.stamp, entries=entries), target=True)
    return {}


@move_methods.method("discard")
async def discard(call: MoveCall, project_id: Id, move_id: Id, paths: list[str]) -> dict[str, Any]:
    """Remove what has arrived and should not be there."""
    await call.tree(project_id, move_id, partial(Tree.discard, paths=paths), target=True)
    return {}


@move_methods.method("sync")
async def sync(call: MoveCall, project_id: Id, move_id: Id) -> dict[str, Any]:
    """Wait until all that has arrived is on the disk."""
    await call.tree(project_id, move_id, Tree.sync, target=True)
    return {}


@move_methods.method("settle")
async def settle(call: MoveCall, project_id: Id, move_id: Id) -> dict[str, Any]:
    """Put what has arrived in its place. A hub has said that it is the project from now on."""
    await call.moves.check(project_id, move_id, "settle", anew=True)
    project = call.moves.project(project_id)
    async with project.lock:
        try:
            if project.arriving.exists():
                project.arriving.rename(project.home)
                # The old copy is removed next: a power cut must not undo this.
                await asyncio.to_thread(_sync_folder, project.home.parent)
            elif not project.home.exists():
                raise RpcError("not_found", f"{project.arriving} is gone: somebody has removed the files here")
        except OSError as error:
            raise RpcError("invalid_state", f"{project.arriving} cannot become {project.home}: {error}") from None
    return {}
