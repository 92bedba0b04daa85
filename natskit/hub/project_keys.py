"""The keys with which projects' agents come: given by their runners, exchanged while they run, refused at once.

Who may use a project can read its agent's creds: both are the same user on the project's host. So whoever loses a
project may have a copy of them, and the key is refused from then on, before the runner has made another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from natskit.hub.records import Project
from natskit.hub.state import Holder, State
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

NEW_KEY_SECONDS, NEW_KEY_PAUSE = 4.0, 0.05
"""An agent that was told of its new key comes back within a second; less than the runner waits for the hub."""
CUT_SECONDS = 0.25
"""By then whoever lost a project is cut (:mod:`natskit.hub.connections`), and cannot have its new key read."""
AT_ONCE = 8
"""Projects of an account that is locked out, worked on at the same time."""
NO_KEYS = {"public_key": "", "next_key": "", "runner_key": ""}

Order = Callable[[str, str, str], Awaitable[Any]]
"""Runner, method and project: an order to a runner."""


class ProjectKeys:
    """What may be done to the keys of projects; which of them count is said by :class:`State`."""

    def __init__(self, state: State, order: Order, is_connected: Callable[[str], Awaitable[bool]]) -> None:
        self._state = state
        self._order = order
        self._is_connected = is_connected

    async def use(self, project_id: str, public_key: str) -> None:
        """The key of the agent that may speak as the project; the one before is cut."""
        runner_key = self._key_of_runner(project_id)
        await self._state.update_project(project_id, public_key=public_key, next_key="", runner_key=runner_key)

    async def use_as_well(self, project_id: str, public_key: str) -> None:
        """A key that the agent may come with as well, until :meth:`use_alone`."""
        project = self._state.projects.get(project_id)
        if project is not None and project.public_key and not self._state.rights(Holder("project", project_id)):
            await self.use(project_id, public_key)  # it has that of another runner: there is nothing to keep
        else:
            await self._state.update_project(project_id, next_key=public_key)

    async def use_alone(self, project_id: str, public_key: str) -> None:
        """Once an agent is connected with the next key, the one before it is cut, and refused.

        Raises :class:`RpcError` if none comes; both keys are good then. Where the one before is refused already, this
        waits for the agent as well, but no longer.
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
                raise RpcError("timeout", f"the agent did not come back with its new key within {NEW_KEY_SECONDS:g} s")
            await asyncio.sleep(NEW_KEY_PAUSE)
        if alone:
            return

        def promote(old: Project | None) -> Project:
            if old is None or public_key not in (old.public_key, old.next_key):
                raise RpcError("conflict", "the project was given another key meanwhile")
            made_by = self._key_of_runner(project_id)
            return old.model_copy(update={"public_key": public_key, "next_key": "", "runner_key": made_by})

        await self._state.projects.change(project_id, promote)

    async def rotate(self, project_id: str) -> bool:
        """Give the agent of a project that runs a new key; it goes on. Returns false if it does not run: a project
        that is started gets a new key anyway. Raises :class:`RpcError`."""
        project = self._state.projects.get(project_id)
        if project is None or project.desired != "running" or project.runner_id is None:
            return False
        await self._order(project.runner_id, "rotate_project_keys", project_id)
        return True

    async def refuse(self, project_id: str) -> None:
        """Refuse the keys a project has, from now on and on every hub; its agent is cut until :meth:`renew`."""
        await self._state.projects.change(project_id, lambda old: old.model_copy(update=NO_KEYS) if old else None)

    async def renew(self, project_ids: Iterable[str]) -> None:
        """Have the runners give new keys to agents whose keys are refused; they go on.

        What is not done within a few seconds, the runners do by themselves: each heartbeat is answered with
        :meth:`missing`.
        """

        async def renew(project_id: str) -> None:
            try:
                await self.rotate(project_id)
            except RpcError as error:
                log.warning("project %s gets its new key later: %s", project_id, error)

        await asyncio.sleep(CUT_SECONDS)
        try:
            async with asyncio.timeout(NEW_KEY_SECONDS):
                await each(project_ids, renew)
        except TimeoutError:
            log.warning("some projects get their new keys later, when their runners have time for it")

    def missing(self, runner_id: str) -> list[str]:
        """The projects that should run on a runner, and whose agents have yet to come with a key that counts."""
        mine = self._state.projects_on(runner_id).items()
        wanted = [(p, project.public_key) for p, project in mine if project.desired == "running"]
        return [p for p, key in wanted if not key or self._state.rights(Holder("project", p)) is None]

    # ----

    def _key_of_runner(self, project_id: str) -> str:
        project = self._state.projects.get(project_id)
        return (self._state.runner_key(project.runner_id) or "") if project else ""


async def each(project_ids: Iterable[str], work: Callable[[str], Awaitable[None]]) -> None:
    """Do something with each project, with :data:`AT_ONCE` at the same time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(project_id: str) -> None:
        async with room:
            await work(project_id)

    await asyncio.gather(*(one(project_id) for project_id in project_ids))
