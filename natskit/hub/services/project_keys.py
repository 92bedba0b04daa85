"""The keys of project agents: made by runners, replaced while agents run, refused at once when needed.

Members of a project can read its agent's creds: their commands and the agent run as the same user. So a former member
may have a copy, and hubs refuse the key as soon as a member leaves, before the runner has made another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from msgspec.structs import replace

from natskit.hub.state.records import Project
from natskit.hub.state.view import Holder, State
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

NEW_KEY_SECONDS, NEW_KEY_PAUSE = 4.0, 0.05
"""An agent with a new key reconnects within a second. Less than the runner waits for the hub."""
DISCONNECT_SECONDS = 0.25
"""By then a former member is disconnected (:mod:`natskit.hub.auth.disconnect`) and cannot read the new key."""
CONCURRENCY = 8
"""Projects of a locked-out account that are worked on at the same time."""
NO_KEYS = {"public_key": "", "next_key": "", "runner_key": ""}

Order = Callable[[str, str, str], Awaitable[Any]]
"""Sends an order to a runner: runner, method, project."""


class ProjectKeys:
    """Changes the keys of projects. :class:`State` decides which keys are accepted."""

    def __init__(self, state: State, order: Order, is_connected: Callable[[str], Awaitable[bool]]) -> None:
        self._state = state
        self._order = order
        self._is_connected = is_connected

    async def use(self, project_id: str, public_key: str) -> None:
        """Accept only this key for a project's agent. A connection with the previous key is ended.

        Raises :class:`RpcError` if the project should not run.
        """
        runner_key = self._key_of_runner(project_id)
        await self._accept(project_id, public_key=public_key, next_key="", runner_key=runner_key)

    async def use_as_well(self, project_id: str, public_key: str) -> None:
        """Accept a second key for the agent, until :meth:`use_alone`. Raises :class:`RpcError` as :meth:`use` does."""
        project = self._state.projects.get(project_id)
        if project is not None and project.public_key and not self._state.rights(Holder("project", project_id)):
            await self.use(project_id, public_key)  # its key is from another runner: not worth keeping
        else:
            await self._accept(project_id, next_key=public_key)

    async def use_alone(self, project_id: str, public_key: str) -> None:
        """Once an agent has connected with the next key, refuse the previous key and end its connection.

        Raises :class:`RpcError` if no agent connects; both keys stay accepted then. If the previous key is refused
        already, this waits for the agent too, but does not raise.
        """
        project = self._state.projects.get(project_id)
        alone = project is not None and project.public_key == public_key
        rights = self._state.rights(Holder("project", project_id), public_key)
        if rights is None or rights.public_key != public_key:
            raise RpcError("conflict", "the project was given another key meanwhile")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + NEW_KEY_SECONDS
        while not await self._is_connected(rights.name):
            if loop.time() > deadline:
                if alone:
                    return
                raise RpcError("timeout", f"the agent did not reconnect with its new key within {NEW_KEY_SECONDS:g} s")
            await asyncio.sleep(NEW_KEY_PAUSE)
        if alone:
            return

        def promote(old: Project | None) -> Project:
            if old is None or public_key not in (old.public_key, old.next_key):
                raise RpcError("conflict", "the project was given another key meanwhile")
            made_by = self._key_of_runner(project_id)
            return replace(old, public_key=public_key, next_key="", runner_key=made_by)

        await self._state.projects.change(project_id, promote)

    async def rotate(self, project_id: str) -> bool:
        """Give a running agent a new key without stopping it. Returns false if the project does not run: it gets a new
        key when it starts. Raises :class:`RpcError`."""
        project = self._state.projects.get(project_id)
        if project is None or project.desired != "running" or project.runner_id is None:
            return False
        await self._order(project.runner_id, "rotate_project_keys", project_id)
        return True

    async def refuse(self, project_id: str) -> None:
        """Refuse a project's keys on every hub. Its agent stays disconnected until :meth:`renew`."""
        await self._state.projects.change(project_id, lambda old: replace(old, **NO_KEYS) if old else None)

    async def renew(self, project_ids: Iterable[str]) -> None:
        """Have the runners give new keys to running agents whose keys are refused.

        Runners do by themselves what is not done within a few seconds: the answer to each heartbeat has
        :meth:`missing`.
        """

        async def renew(project_id: str) -> None:
            try:
                await self.rotate(project_id)
            except RpcError as error:
                log.warning("project %s gets its new key later: %s", project_id, error)

        await asyncio.sleep(DISCONNECT_SECONDS)
        try:
            async with asyncio.timeout(NEW_KEY_SECONDS):
                await each(project_ids, renew)
        except TimeoutError:
            log.warning("some projects get their new keys later, from the next heartbeats of their runners")

    def missing(self, runner_id: str) -> list[str]:
        """The projects that should run on a runner and whose agents have no accepted key."""
        mine = self._state.projects_on(runner_id).items()
        wanted = [(p, project.public_key) for p, project in mine if project.desired == "running"]
        return [p for p, key in wanted if not key or self._state.rights(Holder("project", p)) is None]

    # ----

    async def _accept(self, project_id: str, **keys: str) -> None:
        """Store keys of a project that should run. The stream's record decides: a stopped project has no keys, and
        another hub may have stopped this one a moment ago."""

        def mutate(old: Project) -> Project:
            if old.desired != "running":
                raise RpcError("invalid_state", "the project should not run")
            return replace(old, **keys)

        await self._state.change_project(project_id, mutate)

    def _key_of_runner(self, project_id: str) -> str:
        project = self._state.projects.get(project_id)
        return (self._state.runner_key(project.runner_id) or "") if project else ""


async def each(project_ids: Iterable[str], work: Callable[[str], Awaitable[None]]) -> None:
    """Do some work for each project, for :data:`CONCURRENCY` projects at the same time.

    A failure does not stop the others. The first error is raised when all are done.
    """
    room = asyncio.Semaphore(CONCURRENCY)

    async def one(project_id: str) -> None:
        async with room:
            await work(project_id)

    done = await asyncio.gather(*(one(project_id) for project_id in project_ids), return_exceptions=True)
    for error in done:
        if error is not None:
            raise error
