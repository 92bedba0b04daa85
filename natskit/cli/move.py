"""``natskit project move``: a project with its files to another runner.

The files pass through this machine in parts, so that runners need not reach each other. This command keeps no state:
repeated, it compares what has arrived with the source and goes on. ``natskit/hub/services/project_moves.py`` says which
copy is the project at each moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from natskit.bus.project_move import Entry, Piece, Written, readable
from natskit.errors import ConnectionLostError, NatskitError
from natskit.validation.names import shown

if TYPE_CHECKING:
    from natskit.client import Client

T = TypeVar("T")

ATTEMPTS = 3
"""How often the files are compared and copied, if they change meanwhile."""
AT_ONCE = 4
"""Requests in flight. Each has less than a MiB of content."""
PART_BYTES = 768 * 1024
SMALL_BYTES = 128 * 1024
"""Smaller files travel together."""
HASHED_BYTES = 32 * 1024 * 1024
"""Content that a runner hashes for one request: well under a second."""
ROOM = 160
"""Bytes that a file takes in a request besides its path and its content."""
MOST_SAID = 2000
"""Characters of a runner's error that are shown."""
WAIT_SECONDS = 60.0
PATIENCE_SECONDS = 120.0
"""How long the command waits for a runner or a hub that does not answer, such as one that restarts."""
PAUSE_SECONDS = 0.5
MOST_FILES = 2_000_000
MOST_LIST_BYTES = 512 * 1024 * 1024
"""Files, folders and links of a project that moves, and the bytes of their paths and targets. This command holds three
lists of them. A runner that somebody has taken over might never end its list."""

Report = Callable[[str, int, int], None]
"""Is called with what is done, how much of it is done, and how much there is."""


class ChangedError(NatskitError):
    """The files changed while they were moved."""


@dataclass
class Plan:
    """What makes the copy like the source."""

    discard: list[str] = field(default_factory=list)
    folders: list[Entry] = field(default_factory=list)
    others: list[Entry] = field(default_factory=list)
    """Links and pipes."""
    files: list[tuple[Entry, int]] = field(default_factory=list)
    """Files, and how many bytes of each have arrived."""
    links: list[tuple[str, str]] = field(default_factory=list)
    """Further names of files, and the first name of each."""
    arrived: int = 0
    """Bytes on the disk that need not be copied again."""
    left: list[str] = field(default_factory=list)
    """Sockets and devices, which cannot be moved."""


def plan(source: Iterable[Entry], target: Iterable[Entry]) -> Plan:
    """Compare the source with what has arrived. Both lists have folders before their content."""
    found, there = Plan(), {entry.path: entry for entry in target}
    wanted = {entry.path: entry for entry in source}
    first: dict[int, Entry] = {}
    for path, entry in there.items():
        other = wanted.get(path)
        below = bool(found.discard) and path.startswith(f"{found.discard[-1]}/")
        # A file that shares its content here and not there would change with another one.
        if path and not below and (other is None or other.kind != entry.kind or bool(entry.inode) > bool(other.inode)):
            found.discard.append(path)
    gone = set(found.discard)
    for path, entry in wanted.items():
        old = None if path in gone else there.get(path)
        if entry.kind == "directory":
            found.folders += [entry] if path else []
        elif entry.kind == "other":
            found.left.append(path)
        elif entry.kind != "file":
            if old is None or (old.target, old.mtime, old.mode) != (entry.target, entry.mtime, entry.mode):
                found.others.append(entry)
        elif entry.inode and entry.inode in first:
            main = there.get(first[entry.inode].path)
            if old is None or main is None or old.inode != main.inode or not _is_complete(first[entry.inode], main):
                found.links.append((path, first[entry.inode].path))
        else:
            if entry.inode:
                first[entry.inode] = entry
            if old is not None and _is_complete(entry, old):
                found.arrived += old.used
            else:
                # A complete file with another time is an older state of the file, or one that lacks its last step.
                size = old.size if old is not None and entry.size > SMALL_BYTES and old.size <= entry.size else 0
                found.arrived += min(size, entry.used)
                found.files.append((entry, size))
    return found


def _is_complete(entry: Entry, there: Entry) -> bool:
    return (entry.size, entry.mtime, entry.mode) == (there.size, there.mtime, there.mode)


def difference(source: list[Entry], target: list[Entry]) -> str | None:
    """The first path at which a copy is not like its source; ``None`` if it is."""
    mine = {entry.path: _seen(entry) for entry in source if entry.kind != "other"}
    theirs = {entry.path: _seen(entry) for entry in target}
    return next((path for path in {**mine, **theirs} if mine.get(path) != theirs.get(path)), None)


def _seen(entry: Entry) -> tuple[Any, ...]:
    mode = 0 if entry.kind == "symlink" else entry.mode  # a link has no mode of its own
    return entry.path, entry.kind, mode, entry.mtime, entry.size, entry.target


@dataclass
class Outcome:
    """What a move has done."""

    sha256: str = ""
    """Of names, kinds, modes, times and contents of everything, as read from both disks; empty if nothing was left to
    copy."""
    files: int = 0
    size: int = 0
    left: list[str] = field(default_factory=list)
    """Sockets and devices, which do not move."""


class Move:
    """One move, or the rest of one."""

    def __init__(self, client: Client, project_id: str, report: Report, patience: float = PATIENCE_SECONDS) -> None:
        self._client, self._project_id, self._report, self._patience = client, project_id, report, patience
        self._move_id = ""
        self._part = min(PART_BYTES, client.connection.max_payload * 3 // 4)
        self._names: dict[str, str] = {}
        self._heard: dict[str, float] = {}
        self.hint = ""
        """What the operator should know if the move breaks off now."""
        self.outcome = Outcome()

    async def run(self, runner: str) -> dict[str, Any]:
        """Move the project, or continue. Returns what the hub says of it in the end.

        Raises :class:`NatskitError`; until the copy is the project, the source is untouched.
        """
        state = await self._hub("project_move_begin", runner=runner)
        self._move_id = state["move_id"]
        if state["moving_to"]:
            target = self._known(state["moving_to"])
            if state["runner"]["runner_id"] != target:
                self.hint = (
                    f"The project is on {state['runner']['name']} as before, and cannot be started until you repeat "
                    "the command, which goes on, or give the move up with --cancel."
                )
                await self._copy(self._known(state["runner"]), target)
                await self._hub("project_move_switch", move_id=self._move_id)
            self.hint = f"The project is on {state['moving_to']['name']} now. Repeat the command to end the move."
            await self._ask(target, "settle")
            await self._hub("project_move_end", move_id=self._move_id)
            self.hint = "The project can be started. Repeat the command to remove the old copy."
        return await self.clean()

    async def cancel(self) -> dict[str, Any]:
        """Give the move up, and remove what has arrived."""
        await self._hub("project_move_cancel")
        return await self.clean()

    async def clean(self) -> dict[str, Any]:
        """Remove old copies."""
        self._report("Removing the old copy", 0, 1)
        state: dict[str, Any] = await self._hub("project_remove_old_copies")
        self._report("Removing the old copy", 1, 1)
        return state

    # ----

    async def _copy(self, source: str, target: str) -> None:
        said = ""
        for _ in range(ATTEMPTS):
            try:
                await self._attempt(source, target)
            except ChangedError as error:
                said = str(error)
            else:
                return
        raise NatskitError(
            f"{said}: something changes the project's files, although it is stopped. Find out what, and repeat the "
            "command"
        )

    async def _attempt(self, source: str, target: str) -> None:
        """Make the copy like the source, and verify that it is. Raises :class:`ChangedError` if it is not."""
        files = await self._list(source, target=False)
        there = await self._list(target, target=True)
        todo = plan(files, there)
        size = sum(entry.used for entry in files)
        await self._ask(target, "prepare", size=size, files=len(files), arrived=todo.arrived)
        if not files:  # the project was never started
            return
        await self._batches(target, "discard", "paths", todo.discard)
        await self._batches(target, "make", "entries", todo.folders)
        await self._batches(target, "make", "entries", todo.others)
        await self._contents(source, target, todo)
        await self._batches(target, "link", "pairs", todo.links)
        # A folder's time changes with what is made in it, so the innermost comes first.
        folders = [entry for entry in reversed(files) if entry.kind == "directory"]
        await self._batches(target, "stamp", "entries", folders)
        await self._ask(target, "sync")
        await self._verify(source, target, files)
        self.outcome.left = todo.left

    async def _contents(self, source: str, target: str, todo: Plan) -> None:
        total, done = sum(entry.size for entry, _ in todo.files), 0
        small = [entry for entry, _ in todo.files if entry.size <= SMALL_BYTES]

        def arrived(size: int) -> None:
            nonlocal done
            done += size
            self._report("Copying files", done, total)

        async def copy(batch: list[Entry]) -> None:
            pieces = [Piece(entry.path, 0, entry.size) for entry in batch]
            sizes, data = await self._exchange(source, "read", {"pieces": pieces})
            for entry, got in zip(batch, sizes, strict=True):
                if got != entry.size:
                    raise ChangedError(f"{_named(entry.path)} changed while it was moved")
            parts = [Written(e.path, 0, e.size, True, e.size, e.mode, e.mtime) for e in batch]
            await self._exchange(target, "write", {"parts": parts}, bytes(data))
            arrived(len(data))

        await _each(copy, _batched(small, lambda entry: entry.size + ROOM + 6 * len(entry.path), self._part))
        for entry, begin in todo.files:
            if entry.size > SMALL_BYTES:
                await self._large(source, target, entry, begin, arrived)

    async def _large(self, source: str, target: str, entry: Entry, begin: int, arrived: Callable[[int], None]) -> None:
        """Copy a file in parts, without its holes. No more than the last :data:`AT_ONCE` parts of an earlier run may be
        missing before the end of what has arrived."""
        room = self._part - ROOM - 6 * len(entry.path)
        begin = max(0, begin - AT_ONCE * self._part)
        arrived(begin)

        async def copy(begin: int, end: int) -> None:
            while begin < end:  # a runner may give less than it was asked for
                _, data = await self._exchange(source, "read", {"pieces": [Piece(entry.path, begin, end - begin)]})
                if not data:
                    raise ChangedError(f"{_named(entry.path)} changed while it was moved")
                part = Written(entry.path, begin, len(data), False, entry.size, entry.mode, entry.mtime)
                await self._exchange(target, "write", {"parts": [part]}, bytes(data))
                begin += len(data)
                arrived(len(data))

        flying: list[asyncio.Task[None]] = []
        try:
            async for start, end in self._parts(source, entry, begin, room):
                if len(flying) == AT_ONCE:
                    await flying.pop(0)
                flying.append(asyncio.ensure_future(copy(start, end)))
            while flying:
                await flying.pop(0)
        finally:
            await _cancel(flying)
        last = Written(entry.path, 0, 0, True, entry.size, entry.mode, entry.mtime)
        await self._exchange(target, "write", {"parts": [last]})

    async def _parts(self, source: str, entry: Entry, begin: int, room: int) -> AsyncIterator[tuple[int, int]]:
        """The parts of a file from ``begin`` on that are no holes."""
        if entry.used >= entry.size:
            for start in range(begin, entry.size, room):
                yield start, min(entry.size, start + room)
            return
        while begin < entry.size:
            extents = await self._ask(source, "extents", path=entry.path, offset=begin)
            if not extents:
                return
            for first, last in extents:
                for start in range(first, min(last, entry.size), room):
                    yield start, min(last, entry.size, start + room)
            begin = extents[-1][1]

    async def _verify(self, source: str, target: str, files: list[Entry]) -> None:
        """Compare the copy with the source by kinds, modes, times and hashes, read from both disks."""
        there = await self._list(target, target=True)
        if (path := difference(files, there)) is not None:
            await self._ask(target, "discard", paths=[path] if path else [])
            raise ChangedError(f"{_named(path)} is not like its source")
        wholes = [hashlib.sha256(), hashlib.sha256()]
        for whole, entries in zip(wholes, (files, there), strict=True):
            for entry in entries:
                if entry.kind != "other":
                    whole.update(json.dumps(_seen(entry)).encode())
        done, total, bad = 0, sum(entry.size for entry in files), set[str]()
        pieces = (
            Piece(entry.path, start, min(HASHED_BYTES, entry.size - start))
            for entry in files
            for start in range(0, entry.size, HASHED_BYTES)
        )

        def weigh(piece: Piece) -> int:
            return max(piece.length, HASHED_BYTES * (ROOM + 6 * len(piece.path)) // self._part)

        for batch in _batched(pieces, weigh, HASHED_BYTES):
            mine, theirs = await asyncio.gather(
                self._ask(source, "hash", target=False, pieces=batch),
                self._ask(target, "hash", target=True, pieces=batch),
            )
            for whole, hashes in zip(wholes, (mine, theirs), strict=True):
                whole.update(json.dumps(hashes).encode())
            bad |= {piece.path for piece, a, b in zip(batch, mine, theirs, strict=True) if a != b or not a}
            done += sum(piece.length for piece in batch)
            self._report("Verifying by hash", done, total)
        if bad:
            await self._batches(target, "discard", "paths", sorted(bad))
            raise ChangedError(f"{_named(min(bad))} has another hash than its source")
        # Not the space that it takes: some file systems change that by themselves.
        before, now = (
            {entry._replace(used=0) for entry in each} for each in (files, await self._list(source, target=False))
        )
        if now != before:
            path = next((e.path for e in sorted(now ^ before)), "")
            raise ChangedError(f"{_named(path)} changed while it was moved")
        if wholes[0].digest() != wholes[1].digest():
            raise ChangedError("the copy as a whole has another hash than its source")
        count = sum(entry.kind == "file" for entry in files)
        self.outcome = Outcome(wholes[0].hexdigest(), count, total)

    async def _list(self, runner: str, *, target: bool) -> list[Entry]:
        found: list[Entry] = []
        after: str | None = None
        size = 0
        while True:
            page = await self._ask(runner, "list", target=target, after=after)
            entries = [Entry(*entry) for entry in page["entries"]]
            size += sum(len(entry.path) + len(entry.target) for entry in entries)
            if len(found) + len(entries) > MOST_FILES:
                raise NatskitError(
                    f"runner {self._names[runner]} lists more than {MOST_FILES:,} files: remove some, or pack them "
                    "into archives, and repeat the command"
                )
            if size > MOST_LIST_BYTES:
                raise NatskitError(
                    f"runner {self._names[runner]} lists paths of more than {MOST_LIST_BYTES:,} bytes together: "
                    "shorten them, or pack files into archives, and repeat the command"
                )
            found += entries
            before, after = after, page["next"]
            if after is None:
                return found
            if not page["entries"] or after == before:
                raise NatskitError(f"runner {self._names[runner]} does not go on with the list of files")

    async def _batches(self, runner: str, method: str, name: str, items: list[Any]) -> None:
        """Send items in as many requests as they need, one after the other: their order matters."""
        for batch in _batched(items, lambda item: len(json.dumps(item)) + 2, self._part):
            await self._ask(runner, method, **{name: batch})

    async def _ask(self, runner: str, method: str, **params: Any) -> Any:
        return (await self._exchange(runner, method, params))[0]

    async def _exchange(
        self, runner: str, method: str, params: dict[str, Any], data: bytes = b""
    ) -> tuple[Any, memoryview]:
        """Ask a runner. Repeats a request until it is answered, or nothing was heard for a while."""
        params = {"project_id": self._project_id, "move_id": self._move_id, **params}

        async def ask() -> tuple[Any, memoryview]:
            return await self._client.call_runner(runner, method, params, data, wait=WAIT_SECONDS)

        return await self._insist(f"runner {self._names[runner]}", ask)

    async def _hub(self, method: str, **params: Any) -> Any:
        async def ask() -> Any:
            return await self._client.call_hub(method, wait=WAIT_SECONDS, project_id=self._project_id, **params)

        return await self._insist("hub", ask)

    async def _insist(self, who: str, ask: Callable[[], Awaitable[T]]) -> T:
        from natskit.rpc import RpcError

        clock = asyncio.get_running_loop().time
        begun = clock()
        while True:
            try:
                answer = await ask()
            except ConnectionLostError as error:
                said: NatskitError = error
            except RpcError as error:
                if error.kind not in ("unavailable", "timeout"):
                    self._heard[who] = clock()
                    said_by = f"{who}: " if who != "hub" else ""
                    # A host that was taken over must not write to the operator's terminal.
                    raise RpcError(error.kind, said_by + shown(error.message[:MOST_SAID])) from None
                said = error
            else:
                self._heard[who] = clock()
                return answer
            if clock() - max(begun, self._heard.get(who, begun)) > self._patience:
                raise ConnectionLostError(f"{who} does not answer: {shown(str(said)[:MOST_SAID])}") from None
            await asyncio.sleep(PAUSE_SECONDS)

    def _known(self, runner: dict[str, Any]) -> str:
        self._names[runner["runner_id"]] = runner["name"]
        return str(runner["runner_id"])


def _named(path: str) -> str:
    return shown(readable(path))


def _batched(items: Iterable[T], weigh: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Items in lists of at most ``most`` weight, and at least one item."""
    batch: list[T] = []
    weight = 0
    for item in items:
        more = weigh(item)
        if batch and weight + more > most:
            yield batch
            batch, weight = [], 0
        batch.append(item)
        weight += more
    if batch:
        yield batch


async def _each(work: Callable[[list[T]], Awaitable[None]], batches: Iterator[list[T]]) -> None:
    """Work on some batches at a time, until all are done or one fails."""

    async def worker() -> None:
        for batch in batches:
            await work(batch)

    tasks = [asyncio.ensure_future(worker()) for _ in range(AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[Report]:
    """Shows each step: with a bar on a terminal, with a line elsewhere."""
    if quiet:
        yield lambda *_: None
        return
    if not sys.stderr.isatty():
        known = set[str]()

        def say(what: str, _done: int, _total: int) -> None:
            if what not in known:
                known.add(what)
                click.echo(f"{what} …", err=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show
