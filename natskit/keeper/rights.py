"""Who may use which project: a keeper's view of the state, which it can only read."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from natskit.bus.connection import Connection
from natskit.bus.permissions import DISK
from natskit.errors import StateError
from natskit.hub.state.bucket import Bucket
from natskit.hub.state.records import Membership, Project
from natskit.process.lifecycle import run_all
from natskit.rpc import RpcError

ADMIN = "admin"
"""The operator, in the place of an account."""
CURRENT_SECONDS = 2.0


class Rights:
    """Answers from memory, from the same buckets of the state as the hubs."""

    def __init__(self, connection: Connection, on_deleted: Callable[[Iterable[str]], None]) -> None:
        """``on_deleted`` is told of projects that may have been deleted: of each at once, and of those of the last hour
        at the start. :meth:`is_deleted` knows."""
        self._on_deleted = on_deleted
        self._memberships: Bucket[Membership] = Bucket(
            connection, "memberships", lambda _, data: Membership.from_json(data), _ignore
        )
        self._projects: Bucket[Project] = Bucket(
            connection, "projects", lambda _, data: Project.from_json(data), self._project_changed
        )
        self.buckets = (self._memberships, self._projects)

    async def follow(self) -> None:
        """Follow the state until cancelled."""
        await run_all(bucket.follow() for bucket in self.buckets)

    async def ready(self) -> None:
        """Wait until the state is known."""
        for bucket in self.buckets:
            await bucket.current.wait()
        self._on_deleted(self._projects.deleted)

    async def is_deleted(self, project: str) -> bool:
        """Whether the state itself says that a project was deleted. Raises :class:`StateError`."""
        return await self._projects.is_deleted(project)

    async def check(self, account: str, project: str) -> None:
        """Raises :class:`RpcError` unless an account may use a project, or if nobody can know that now.

        A project's agent may use the documents of its own: nats-server lets it ask for no others.
        """
        try:
            for bucket in self.buckets:
                await bucket.wait_current(CURRENT_SECONDS)
        except StateError as error:
            raise RpcError("unavailable", f"{error}; try again", retry_after=1) from None
        if account == ADMIN:
            return
        if account != DISK and self._memberships.get(f"{account}.{project}") is None:
            raise RpcError("forbidden", f"you may not use project {project}")
        if self._projects.get(project) is None:
            raise RpcError("not_found", f"there is no project {project}")

    def _project_changed(self, project: str, new: Project | None) -> None:
        if new is None:
            self._on_deleted([project])


def _ignore(*_: object) -> None:
    """Nothing is derived from the view: each request asks it."""
