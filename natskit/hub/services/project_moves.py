"""Moves of projects with their files from one runner to another: what the state says, and in which order.

A hub copies nothing. It keeps the project stopped, tells each runner what it may do, and says which copy is the
project. A move goes through these states, each of them one write:

1. ``moving_to`` is the new runner, ``runner_id`` the old one: the files are being copied. The old copy is the project.
2. ``moving_to`` and ``runner_id`` are the new runner: the copy was verified, and is being put in its place. From here
   on it is the project, and the old one is in ``left_on``.
3. ``moving_to`` is empty: the project may start. Old copies in ``left_on`` are removed, now or later.

Whatever dies in between, ``begin`` finds out from the record what is left to do.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

from msgspec.structs import replace

from natskit.hub.services.project_keys import NO_KEYS
from natskit.hub.state.records import Left, Project
from natskit.hub.state.view import State, existing
from natskit.rpc import RpcError

Part = Literal["source", "target", "settle"]
NOT_WHILE_MOVING = (
    "the project's files are being moved to another runner: an administrator ends that with `natskit project move`, or "
    "gives it up with `natskit project move --cancel`"
)
OVERTAKEN = "another command has taken over this move, or it was given up"


class ProjectMoves:
    """Changes the records of projects that move."""

    def __init__(
        self,
        state: State,
        runner: Callable[[str, str, str], Awaitable[Any]],
        announce: Callable[[Iterable[str]], Awaitable[None]],
    ) -> None:
        self._state, self._runner, self._announce = state, runner, announce

    async def begin(self, project_id: str, runner_id: str) -> dict[str, Any]:
        """Begin a move, or continue it with a new ``move_id``. Raises :class:`RpcError`."""
        self._check_usable(runner_id)
        known = self._state.projects.get(project_id)
        if known is not None and not known.moving_to and known.runner_id != runner_id and runner_id in known.left_on:
            # What it has must not be taken for a part of the new copy.
            left = await self.remove_old_copies(project_id)
            if runner_id in (entry["runner_id"] for entry in left["left_on"]):
                raise RpcError("unavailable", f"an old copy is on {self._name(runner_id)}, which does not answer")
        if known is not None and known.runner_id not in (None, runner_id) and not known.moving_to:
            for one in (str(known.runner_id), runner_id):
                self._check_alive(one)
        move_id = str(uuid.uuid4())

        def mutate(old: Project) -> Project:
            if old.moving_to and old.moving_to != runner_id:
                name = self._name(old.moving_to)
                raise RpcError(
                    "invalid_state",
                    f"the project is being moved to {name}: end that first, with --runner {name}, or give it up, with "
                    "--cancel",
                )
            if old.moving_to:
                return replace(old, move_id=move_id)
            if old.runner_id == runner_id:
                return old
            _check_stopped(old)
            if runner_id in old.left_on:
                raise RpcError("conflict", "another command moves the project at this moment")
            if old.runner_id is None:  # it was never started, and has no files
                return replace(old, runner_id=runner_id)
            return replace(old, moving_to=runner_id, move_id=move_id, **NO_KEYS)

        project = await self._change(project_id, mutate)
        if project.moving_to and project.runner_id != runner_id:
            # The hub that stopped it may have died before it told the runner.
            for one in (str(project.runner_id), runner_id):
                self._check_alive(one)
                await self._runner(one, "stop_project", project_id)
        return self._describe(project_id, project)

    async def part_of(self, project_id: str, move_id: str, runner_id: str) -> Part:
        """What a runner may do for a move. Raises :class:`RpcError`, the same for whatever is not its business."""
        await self._state.projects.confirm(project_id)
        project = self._state.projects.get(project_id)
        if project is None or not project.moving_to or project.move_id != move_id:
            raise RpcError("conflict", OVERTAKEN)
        if project.runner_id == project.moving_to == runner_id:
            return "settle"
        if project.moving_to == runner_id:
            return "target"
        if project.runner_id == runner_id:
            return "source"
        raise RpcError("conflict", OVERTAKEN)

    async def left_with(self, project_id: str, runner_id: str) -> Left | None:
        """What this runner has of a project that is to be removed."""
        await self._state.projects.confirm(project_id)
        return _to_remove(self._state.projects.get(project_id), runner_id)

    async def switch(self, project_id: str, move_id: str) -> dict[str, Any]:
        """Make the copy on the new runner the project. Raises :class:`RpcError`."""

        def mutate(old: Project) -> Project:
            _check_current(old, move_id)
            _check_stopped(old)
            if old.runner_id == old.moving_to:
                return old
            left = {**old.left_on, str(old.runner_id): "copy"}
            left.pop(old.moving_to, None)
            return replace(old, runner_id=old.moving_to, left_on=left, **NO_KEYS)

        return self._describe(project_id, await self._change(project_id, mutate))

    async def end(self, project_id: str, move_id: str) -> dict[str, Any]:
        """Let the project start again. Raises :class:`RpcError`."""

        def mutate(old: Project) -> Project:
            if not old.moving_to and old.move_id == move_id:  # the answer was lost
                return old
            _check_current(old, move_id)
            if old.runner_id != old.moving_to:
                raise RpcError("invalid_state", "the files are still being copied")
            return replace(old, moving_to="")

        return self._describe(project_id, await self._change(project_id, mutate))

    async def cancel(self, project_id: str) -> dict[str, Any]:
        """Give up a move. Raises :class:`RpcError` if the copy is the project already."""

        def mutate(old: Project) -> Project:
            if not old.moving_to:
                return old
            if old.runner_id == old.moving_to and self._is_usable(old.moving_to):
                raise RpcError(
                    "invalid_state",
                    f"the files have arrived on {self._name(old.moving_to)}, and count: repeat the command without "
                    "--cancel to end the move",
                )
            if old.runner_id == old.moving_to:  # it was lost; nothing was started there, so the old copy is as good
                back = next((runner for runner, what in reversed(old.left_on.items()) if what == "copy"), None)
                if back is None:
                    raise RpcError("invalid_state", "no runner has another copy of the project's files")
                left = {runner: what for runner, what in old.left_on.items() if runner != back}
                return replace(
                    old, runner_id=back, moving_to="", move_id="", left_on={**left, old.moving_to: "copy"}, **NO_KEYS
                )
            return replace(old, moving_to="", move_id="", left_on={**old.left_on, old.moving_to: "part"})

        return self._describe(project_id, await self._change(project_id, mutate))

    async def assign(self, project_id: str, runner_id: str) -> dict[str, Any]:
        """Assign a stopped project to another runner without its files. Raises :class:`RpcError`."""
        self._check_usable(runner_id)

        def mutate(old: Project) -> Project:
            if old.moving_to:
                raise RpcError("invalid_state", NOT_WHILE_MOVING)
            _check_stopped(old)
            # A whole copy that was an old one may be the last one now: only somebody who looks at it may remove it.
            left = {one: what for one, what in old.left_on.items() if what != "copy"}
            return replace(old, runner_id=runner_id, left_on=left, **NO_KEYS)

        return self._describe(project_id, await self._change(project_id, mutate))

    async def remove_old_copies(self, project_id: str) -> dict[str, Any]:
        """Remove old copies where their runners answer. Raises :class:`RpcError`."""
        await self._state.projects.confirm(project_id)
        project = existing(self._state.projects.get(project_id))
        for runner_id in list(project.left_on):
            if _to_remove(project, runner_id) is None or not self._state.is_alive(runner_id):
                continue
            await self._runner(runner_id, "remove_old_copy", project_id)

            def mutate(old: Project, removed: str = runner_id) -> Project:
                return replace(old, left_on={one: what for one, what in old.left_on.items() if one != removed})

            project = await self._change(project_id, mutate)
        return self._describe(project_id, project)

    # ----

    async def _change(self, project_id: str, mutate: Callable[[Project], Project]) -> Project:
        project = await self._state.change_project(project_id, mutate)
        await self._announce(self._state.members_of(project_id))
        return project

    def _describe(self, project_id: str, project: Project) -> dict[str, Any]:
        return {
            "project_id": project_id,
            "title": project.title,
            "move_id": project.move_id,
            "runner": self._named(project.runner_id),
            "moving_to": self._named(project.moving_to),
            "left_on": [self._named(one) for one in project.left_on],
        }

    def _named(self, runner_id: str | None) -> dict[str, Any] | None:
        if not runner_id:
            return None
        return {"runner_id": runner_id, "name": self._name(runner_id), "alive": self._state.is_alive(runner_id)}

    def _name(self, runner_id: str) -> str:
        entry = self._state.known_runners.get(runner_id)
        return entry.name if entry is not None else runner_id

    def _check_usable(self, runner_id: str) -> None:
        if self._state.runner_key(runner_id) is None:
            raise RpcError("invalid_state", "that runner was revoked: allow it first, or name another")

    def _is_usable(self, runner_id: str) -> bool:
        return self._state.runner_key(runner_id) is not None and self._state.is_alive(runner_id)

    def _check_alive(self, runner_id: str) -> None:
        if not self._state.is_alive(runner_id):
            raise RpcError(
                "invalid_state",
                f"the runner {self._name(runner_id)} is not alive at this moment: start it and repeat the command. If "
                "it is lost, give up a move that has begun (--cancel), and then the files (--without-files)",
            )


def _to_remove(project: Project | None, runner_id: str) -> Left | None:
    if project is None or project.moving_to:  # until a move has ended, the old copy is the way back
        return None
    what = project.left_on.get(runner_id)
    return None if what == "copy" and runner_id == project.runner_id else what


def _check_stopped(project: Project) -> None:
    if project.desired != "stopped" or project.state not in ("stopped", "failed"):
        raise RpcError("invalid_state", f"the project is {project.state}: stop it first")


def _check_current(project: Project, move_id: str) -> None:
    if not project.moving_to or project.move_id != move_id:
        raise RpcError("conflict", OVERTAKEN)
