"""A keeper: builds its parts, starts them in order and stops them in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Coroutine
from typing import Any

import nats.errors

from natskit.bus.connection import Connection, connect
from natskit.bus.permissions import inbox_prefix
from natskit.keeper.config import KeeperProgram
from natskit.keeper.deleted_projects import DeletedProjects
from natskit.keeper.dispatch import Dispatcher
from natskit.keeper.documents import Documents
from natskit.keeper.peers import Peers
from natskit.keeper.rights import Rights
from natskit.keeper.store import Store
from natskit.keeper.thinning import Thinning
from natskit.process.lifecycle import cancel, until_stopped
from natskit.rpc import set_program_name

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
RETURN_SECONDS = 0.25
"""The longest pause between two attempts to reach nats-server. Keepers are few, and people type meanwhile."""


class Keeper:
    """One keeper process. :meth:`start` makes its parts and connects them."""

    def __init__(self, program: KeeperProgram) -> None:
        self.program = program
        self._tasks: list[asyncio.Task[None]] = []
        self._nats: list[Connection] = []

    async def start(self) -> None:
        """Connect, read the state, and answer. Waits for nats-server as long as it takes."""
        # Apart, so that documents do not delay the state, and requests do not delay what keepers say to each other.
        state, docs = await self._connect("docs", "state"), await self._connect("docs")
        platform, services = await self._connect("platform"), await self._connect("platform", "services")
        self._documents = Documents(Store(docs), self.program)
        deleted = DeletedProjects(self._documents)
        rights = Rights(state, deleted.note)
        self._go_on(rights.follow())
        await rights.ready()
        self._go_on(deleted.purge(rights.is_deleted))
        self._go_on(Thinning(self._documents).run())
        peers = Peers(platform, is_well=lambda: docs.is_connected)
        await peers.start()
        self._dispatcher = Dispatcher(self.program, services, rights, self._documents, peers)
        await self._dispatcher.start()
        self._go_on(peers.beat())

    async def stop(self) -> None:
        """Hand over to the other keepers: take no more requests, finish those taken, and disconnect."""
        log.info("keeper %s stops", self.program.name)
        if hasattr(self, "_dispatcher"):
            await self._dispatcher.stop(DRAIN_SECONDS)
        if hasattr(self, "_documents"):
            await self._documents.close()
        await cancel(self._tasks)
        for connection in self._nats:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await asyncio.wait_for(connection.flush(), 1)
            await connection.close()

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_die_loudly)
        self._tasks.append(task)

    async def _connect(self, account: str, name: str = "") -> Connection:
        connection = await connect(
            self.program.nats,
            name=f"{self.program.name}-{name or account}",
            inbox_prefix=inbox_prefix("keeper"),
            creds=getattr(self.program.creds, account),
            longest_pause=RETURN_SECONDS,
        )
        self._nats.append(connection)
        return connection


async def serve(program: KeeperProgram) -> None:
    """Run a keeper until SIGTERM or SIGINT."""
    set_program_name(program.name)
    keeper = Keeper(program)
    await until_stopped(keeper.start(), keeper.stop, started=lambda: log.info("keeper %s is ready", program.name))


def _die_loudly(task: asyncio.Task[None]) -> None:
    """A failed part leaves a keeper that only seems alive: end the process, so that it is restarted."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("a part of the keeper failed", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)
