"""Purges the documents of projects that were deleted.

It needs proof: the state must say that a project was deleted. That a project is not in the state is none, for a state
that was lost or is half restored says the same of all projects. The proof, the marker of a deleted key, is kept for an
hour (:data:`natskit.bus.jetstream.MARKER_SECONDS`): a keeper that starts within it makes up for what none heard of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from natskit.errors import StateError
from natskit.keeper.documents import Documents
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

PAUSE = 5.0
"""Seconds until a purge that failed is tried again."""


class DeletedProjects:
    """The projects whose documents are to be purged. Every keeper does it: a second purge finds nothing."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._waiting: asyncio.Queue[str] = asyncio.Queue()

    def note(self, projects: Iterable[str]) -> None:
        """These projects are in the state no more."""
        for project in projects:
            self._waiting.put_nowait(project)

    async def purge(self, is_deleted: Callable[[str], Awaitable[bool]]) -> None:
        """Purge what is noted and was deleted, until cancelled. ``is_deleted`` asks the state for the proof."""
        while True:
            project = await self._waiting.get()
            while True:
                try:
                    if await is_deleted(project) and await self._documents.remove_all(project):
                        log.info("the documents of project %s are purged, which was deleted", project)
                    break
                except (StateError, RpcError) as error:
                    log.warning("the documents of project %s are not purged yet: %s", project, error)
                    await asyncio.sleep(PAUSE)
