"""Purges the documents of projects that were deleted.

It needs proof: the state must say that a project was deleted. That a project is not in the state is none, for a state
that was lost or is half restored says the same of all projects. The proof, the marker of a deleted key, is kept for an
hour (:data:`natskit.bus.jetstream.MARKER_SECONDS`): a keeper that starts within it makes up for what none heard of.

A request or a snapshot that was on its way may store something after the purge. So each project is purged once more,
when all that can have been on its way has ended.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Iterable

from natskit.errors import StateError
from natskit.keeper.documents import Documents
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

PAUSE = 5.0
"""Seconds until a purge that failed is tried again."""
LATE_SECONDS = 60.0
"""Seconds until the second purge: twice what a request or a snapshot may take, and more than another keeper may need to
hear that the project is deleted."""


class DeletedProjects:
    """The projects whose documents are to be purged. Every keeper does it: a second purge finds nothing."""

    def __init__(self, documents: Documents, late: float = LATE_SECONDS) -> None:
        self._documents = documents
        self._late = late
        self._waiting: list[tuple[float, bool, str]] = []
        """When to purge, whether that is the last time, and the project: a heap."""
        self._news = asyncio.Event()

    def note(self, projects: Iterable[str]) -> None:
        """These projects are in the state no more."""
        for project in projects:
            self._add(0.0, False, project)

    async def purge(self, is_deleted: Callable[[str], Awaitable[bool]]) -> None:
        """Purge what is noted and was deleted, until cancelled. ``is_deleted`` asks the state for the proof."""
        while True:
            project, is_last = await self._next()
            try:
                if not await is_deleted(project):
                    continue
                if await self._documents.remove_all(project):
                    log.info("the documents of project %s are purged, which was deleted", project)
                if not is_last:
                    self._add(self._late, True, project)
            except (StateError, RpcError) as error:
                log.warning("the documents of project %s are not purged yet: %s", project, error)
                self._add(PAUSE, is_last, project)

    def _add(self, seconds: float, is_last: bool, project: str) -> None:
        heapq.heappush(self._waiting, (_now() + seconds, is_last, project))
        self._news.set()

    async def _next(self) -> tuple[str, bool]:
        while not self._waiting or self._waiting[0][0] > _now():
            self._news.clear()
            timeout = self._waiting[0][0] - _now() if self._waiting else None
            try:
                await asyncio.wait_for(self._news.wait(), timeout)
            except TimeoutError:
                continue
        _, is_last, project = heapq.heappop(self._waiting)
        return project, is_last


def _now() -> float:
    return asyncio.get_running_loop().time()
