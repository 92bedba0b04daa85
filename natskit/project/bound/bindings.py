"""All documents of a project that are kept the same as their files, while its agent runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping
from functools import partial
from typing import Any

from nats.aio.msg import Msg

from natskit.bus.affinity import Affinity
from natskit.bus.connection import Connection
from natskit.bus.permissions import DISK
from natskit.bus.request import request
from natskit.errors import NatskitError
from natskit.process.lifecycle import cancel
from natskit.project.bound import record
from natskit.project.bound.document import Bound
from natskit.project.bound.record import Entry
from natskit.project.files import Home
from natskit.project.watch import Watches
from natskit.rpc import RpcError, decode_response, encode_request

log = logging.getLogger(__name__)

ASK_SECONDS = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Between two attempts to read the list of documents: a platform may have no keepers."""
POLL_SECONDS, SLOW_POLL_SECONDS = 1.0, 15.0
"""How often files are looked at in folders that cannot be watched, and all others: a link's target may have changed."""
REMEMBER_SHARE = 20
"""What document and file have in common is written down at once, and not again before so many times as long as that
took. What was not yet written when the agent is killed is merged as if it had been changed meanwhile."""
TELL_SECONDS = 10.0
"""How often a problem is told: who opens the document later hears of it too."""
MOST_TOLD = 32
MOST_AT_ONCE = 4
FOREVER = 10 * 365 * 86_400.0


class Bindings:
    """The bound documents of a project, by their ids."""

    def __init__(self, project_id: str, home: Home, writing: asyncio.Lock, most: int) -> None:
        """``writing`` is held while a file is compared and replaced; ``most`` limits the documents."""
        self.home, self.writing = home, writing
        self._project_id, self._most = project_id, most
        self._connection: Connection | None = None
        self._keepers = Affinity()
        self._bound: dict[str, Bound] = {}
        self._entries: dict[str, Entry] = {}
        self._news = asyncio.Event()
        """Something is to be remembered."""
        self._watches = Watches(self._on_files, FOREVER)
        self._folders: dict[str, str] = {}
        """The watched folders, by the watch."""
        self._list = asyncio.Event()
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        self._tasks: list[asyncio.Task[None]] = []
        self._client = random.SystemRandom().getrandbits(31) + 1

    async def start(self, connection: Connection) -> None:
        """Follow the documents and their files until closed."""
        self._connection = connection
        if not self._most:
            return
        self._entries = await asyncio.to_thread(record.load, self.home)
        events = f"events.project.{self._project_id}"
        await connection.subscribe(f"{events}.doc.*", cb=self._on_update)
        await connection.subscribe(f"{events}.documents.changed", cb=self._on_change)
        connection.on_reconnect(self._came_back)
        works = (self._follow_list(), self._poll(), self._remember(), self._repeat())
        self._tasks = [asyncio.create_task(work) for work in works]

    async def close(self) -> None:
        """Leave documents and files as they are."""
        working = [task for bound in self._bound.values() if (task := bound.close()) is not None]
        await cancel([*self._tasks, *working])
        self._watches.close()
        await self._save()

    # ---- what a bound document needs

    async def ask(self, document: str, method: str, **params: Any) -> Any:
        """Ask a keeper. Raises :class:`NatskitError`."""
        async with self._turns:
            return await self._keepers.ask(
                f"docs.{DISK}.{self._project_id}.{document}", partial(self._send, encode_request(method, params))
            )

    async def _send(self, body: bytes, subject: str) -> Any:
        assert self._connection is not None
        return decode_response(await request(self._connection, subject, body, ASK_SECONDS))

    def note(self, document: str, entry: Entry) -> None:
        """Remember what a document and its file have in common, soon on the disk too."""
        if document in self._bound and self._entries.get(document) != entry:
            self._entries[document] = entry
            self._news.set()

    async def tell(self, bound: Bound) -> None:
        """Tell who has the document open of its problem, or that it is over."""
        state = None if bound.problem is None else {"file": bound.problem}
        with contextlib.suppress(NatskitError):  # it is told again
            await self.ask(bound.document, "presence", client=self._client, state=state)

    # ---- the documents

    async def _follow_list(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._list.clear()
            try:
                await self._take_list(await self._listed())
            except NatskitError as error:
                log.debug("the documents of the project are not known yet: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._list.wait(), pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            await self._watch_folders()
            await self._list.wait()

    async def _listed(self) -> dict[str, str]:
        """The paths of all documents by their ids. They come in pages. Raises :class:`NatskitError`."""
        paths: dict[str, str] = {}
        while page := await self.ask("-", "list", after=max(paths, default="")):
            paths |= {each["document_id"]: each["path"] for each in page}
        return paths

    async def _take_list(self, paths: dict[str, str]) -> None:
        for document in self._bound.keys() - paths.keys():
            self._bound.pop(document).close()
        for document in self._entries.keys() - paths.keys():
            del self._entries[document]
            self._news.set()
        # Those that were bound before come first, so that a limit that is reached leaves out the new ones.
        left_out: list[str] = []
        for document in sorted(paths, key=lambda document: (document not in self._entries, paths[document])):
            if (bound := self._bound.get(document)) is not None:
                bound.was_moved(paths[document])
            elif len(self._bound) < self._most:
                entry = self._entries.get(document)
                bound = self._bound[document] = Bound(self, document, paths[document], entry)
                bound.look(0)
            else:
                left_out.append(document)
        if left_out:
            log.warning("%d documents are not kept in their files: the project has %d", len(left_out), self._most)
        await self.ask("-", "leave_out", documents=left_out)

    async def _on_change(self, _: Msg) -> None:
        self._list.set()

    async def _on_update(self, message: Msg) -> None:
        bound = self._bound.get(message.subject.rpartition(".")[2])
        sequence = (message.headers or {}).get("Nats-Sequence", "")
        if bound is not None and sequence.isdecimal():
            bound.was_edited(int(sequence))

    def _came_back(self) -> None:
        self._list.set()
        for bound in self._bound.values():
            bound.missed_something()

    # ---- the files

    async def _on_files(self, event: Mapping[str, Any]) -> None:
        folder = self._folders.get(event["watch"])
        if folder is None:
            return
        if event["type"] == "gone":
            del self._folders[event["watch"]]
        names = event["names"]
        for bound in self._bound.values():
            parent, _, name = bound.path.rpartition("/")
            if parent == folder and (names is None or name in names):
                bound.look(0)

    async def _watch_folders(self) -> None:
        """Watch the folders of all bound documents, as many as can be watched, and no others any more."""
        wanted = {bound.path.rpartition("/")[0] for bound in self._bound.values()}
        for watch, folder in list(self._folders.items()):
            if folder not in wanted:
                self._folders.pop(watch, None)
                await self._watches.leave(watch)
        for folder in sorted(wanted - {*self._folders.values()}):
            try:
                state = await self._watches.renew(self.home, folder or ".", DISK)
            except RpcError as error:
                log.debug("folder %s is not watched: %s", folder, error)
                if error.kind == "limit":
                    return
            else:
                self._folders[state["watch"]] = folder
                for bound in self._bound.values():
                    if bound.path.rpartition("/")[0] == folder:
                        bound.look(0)

    async def _poll(self) -> None:
        """Look at the files of folders that are not watched; now and then at all."""
        seconds = 0.0
        while True:
            await asyncio.sleep(POLL_SECONDS)
            seconds += POLL_SECONDS
            if not self._bound:
                continue
            watched = {*self._folders.values()}
            is_slow = seconds >= SLOW_POLL_SECONDS
            some = [b for b in self._bound.values() if is_slow or b.path.rpartition("/")[0] not in watched]
            if is_slow:
                seconds = 0.0
            if some:
                for bound, signature in await asyncio.to_thread(self._signatures, some):
                    if signature != bound.signature:
                        bound.signature = signature
                        bound.look(0)
                await self._watch_folders()

    def _signatures(self, some: list[Bound]) -> list[tuple[Bound, object]]:
        return [(bound, _signature(self.home, bound.path)) for bound in some]

    # ---- what is kept, and told

    async def _remember(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await self._news.wait()
            began = clock()
            await self._save()
            await asyncio.sleep(REMEMBER_SHARE * (clock() - began))

    async def _save(self) -> None:
        if not self._news.is_set():
            return
        self._news.clear()
        try:
            await asyncio.to_thread(record.save, self.home, dict(self._entries))
        except RpcError as error:
            log.warning("what documents and files have in common is not remembered: %s", error)

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            for bound in [bound for bound in self._bound.values() if bound.problem is not None][:MOST_TOLD]:
                await self.tell(bound)


def _signature(home: Home, path: str) -> object:
    try:
        with home.at(path) as place:
            status = place.status()
    except (RpcError, OSError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
