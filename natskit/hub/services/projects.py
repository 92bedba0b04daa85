"""Projects: create, share, start, stop and delete them. The methods in ``natskit.hub.api`` call these."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from msgspec.structs import replace

from natskit.bus.connection import Connection
from natskit.bus.payload import to_json
from natskit.bus.permissions import check_id, projects_that_fit
from natskit.errors import ConnectionLostError, NatskitError
from natskit.hub.services.project_keys import NO_KEYS, ProjectKeys, each
from natskit.hub.services.project_moves import NOT_WHILE_MOVING, ProjectMoves
from natskit.hub.state.records import Account, Desired, Membership, Project, ProjectState
from natskit.hub.state.view import State
from natskit.hub.timestamp import iso
from natskit.rpc import RpcError, decode_response, encode_request
from natskit.validation.names import NameRefusedError, checked_title, is_seen

Ask = Callable[[str, bytes, float], Awaitable[bytes]]

NO_TITLE = "(no title)"
"""Shown instead of an invisible title, which older hubs accepted."""
RUNNER_SECONDS = 30.0
"""A runner answers when it has started or ended the project's process."""
READY_SECONDS = 20.0
PROJECT_SECONDS = 15.0
TRIAL_SECONDS = 300.0
"""A trial takes a few seconds. An older one was left behind by an interrupted command."""


class Projects:
    """Works on projects. Access rules of methods use :meth:`require` to check the caller."""

    def __init__(
        self,
        state: State,
        connection: Connection,
        ask: Ask,
        is_connected: Callable[[str], Awaitable[bool]],
        most: int,
    ) -> None:
        self.keys = ProjectKeys(state, self._runner, is_connected)
        self.moves = ProjectMoves(state, self._runner, self._announce)
        self._state = state
        self._connection = connection
        self._ask = ask
        self._most = most

    async def require(self, account_id: str, project_id: str, *, owner: bool = False) -> Project:
        """The project, if the account may use it (or owns it). Raises :class:`RpcError`, the same if there is none."""
        if self.get_or_none(project_id) is None or self._state.membership(account_id, project_id) is None:
            await self._state.memberships.find(f"{account_id}.{project_id}")
            await self._state.projects.find(project_id)
        project, membership = self.get_or_none(project_id), self._state.membership(account_id, project_id)
        if project is None or membership is None:
            raise RpcError("not_found", "there is no such project, or it is not shared with you")
        if owner and membership.role != "owner":
            raise RpcError("forbidden", "only the owner of a project may do that")
        return project

    def get(self, project_id: str) -> Project:
        """A project by its id. Raises :class:`RpcError`."""
        project = self.get_or_none(project_id)
        if project is None:
            raise RpcError("not_found", "there is no such project")
        return project

    async def find(self, project_id: str) -> Project:
        """A project that may have been made through another hub a moment ago. Raises :class:`RpcError`."""
        if self.get_or_none(project_id) is None:
            await self._state.projects.find(project_id)
        return self.get(project_id)

    def get_or_none(self, project_id: str) -> Project | None:
        """A project by its id. Raises :class:`RpcError` for what is no id."""
        try:
            return self._state.projects.get(check_id(project_id, "project_id"))
        except NatskitError as error:
            raise RpcError("invalid_params", str(error)) from None

    def check_sharing_rate(self, owner: str, project_id: str, account_id: str) -> None:
        """Raises :class:`RpcError` if an owner changes another account's rights too often: each change disconnects
        it."""
        what = "what this account may do was changed"
        self._state.membership_changes.check(f"{account_id}.{project_id}", what)
        self._state.sharing_changes.check(f"{owner}.{account_id}", what)

    def check_unsharing_rate(self, owner: str, account_id: str) -> None:
        """The same for removing another account from projects."""
        self._state.unshared_projects.check(f"{owner}.{account_id}", "projects were taken from this account")

    def check_deleting_rate(self, owner: str) -> None:
        """Raises :class:`RpcError` if an owner deletes projects too often: each time, all members are disconnected."""
        self._state.deleted_projects.check(owner, "you deleted projects")

    def check_renaming_rate(self, project_id: str) -> None:
        """Raises :class:`RpcError` if a project is renamed too often: each time, all members are notified."""
        self._state.renamed_projects.check(project_id, "this project was renamed")

    def describe(self, project_id: str, account_id: str | None = None) -> dict[str, Any]:
        """A project as the API shows it."""
        project = self.get(project_id)
        membership = self._state.membership(account_id, project_id) if account_id else None
        lost = project.state == "running" and not self._state.is_alive(project.runner_id)
        detail = "its runner is not alive" if lost else project.detail
        return {
            "project_id": project_id,
            "title": project.title if is_seen(project.title) else NO_TITLE,
            "role": membership.role if membership else None,
            "state": "failed" if lost else project.state,
            "desired": project.desired,
            "detail": "its files are being moved to another runner" if project.moving_to else detail,
            "collaborators": self.collaborators(project_id),
            "created_at": iso(project.created_at),
        }

    def collaborators(self, project_id: str) -> list[dict[str, Any]]:
        """The members of a project, the owner first."""
        out = []
        for account_id in self._state.members_of(project_id):
            account, membership = self._state.account(account_id), self._state.membership(account_id, project_id)
            if account and membership:
                out.append({"account_id": account_id, "email": account.email, "role": membership.role})
        return sorted(out, key=lambda member: (member["role"] != "owner", member["email"]))

    def list(self, account_id: str, offset: int = 0, limit: int = 4000) -> list[dict[str, Any]]:
        """The projects an account may use, oldest first."""
        projects = self._state.projects_in_order(account_id)[offset : offset + limit]
        return [self.describe(project_id, account_id) for project_id in projects]

    async def create(self, account_id: str, title: str, key: str | None = None) -> dict[str, Any]:
        """Create a stopped project. With a ``key`` that was used before, return that project, whichever hub made it.

        Raises :class:`RpcError` at the limit of projects an account may use.
        """
        title = _title(title)
        # The account is the namespace: the same key of another account is another project.
        project_id = str(uuid.uuid5(uuid.UUID(account_id), key) if key else uuid.uuid4())
        if self._state.membership(account_id, project_id) is None:
            self._check_room(account_id)
        project = Project(title=title, created_at=time.time(), runner_id=self._place_or_none())
        await self._state.projects.change(project_id, lambda old: old or project)
        owner = Membership(role="owner", since=time.time())
        await self._state.memberships.change(f"{account_id}.{project_id}", lambda old: old or owner)
        await self._announce({account_id})
        return self.describe(project_id, account_id)

    async def create_trial(self, runner_id: str) -> str:
        """Create a stopped trial project without an owner, to check that this runner can start one. The caller deletes
        it.

        Deletes what an interrupted trial of the same runner has left. Returns the project's id.
        """
        old = time.time() - TRIAL_SECONDS
        for project_id, project in self._state.projects_on(runner_id).items():
            if project.trial and project.created_at < old:
                await self.delete(project_id)
        project_id = str(uuid.uuid4())
        trial = Project(title="Trial", created_at=time.time(), runner_id=runner_id, trial=True)
        await self._state.projects.change(project_id, lambda _: trial)
        return project_id

    async def rename(self, project_id: str, title: str) -> None:
        """Change the title."""
        title = _title(title)
        await self._update(project_id, title=title)
        await self._announce(self._state.members_of(project_id))

    async def share(self, project_id: str, account_id: str) -> None:
        """Let another account use the project."""
        new = Membership(role="collaborator", since=time.time())

        def add(old: Membership | None) -> Membership:
            if old is None:
                self._check_room(account_id)
            return old or new

        await self._state.memberships.change(f"{account_id}.{project_id}", add)
        # Not to the new member: it is about to reconnect with the new right, which tells it.
        await self._announce(member for member in self._state.members_of(project_id) if member != account_id)

    async def unshare(self, project_id: str, account_id: str) -> None:
        """Remove a collaborator, end its connections, and refuse the project key that it may have copied."""
        membership = self._state.membership(account_id, project_id)
        if membership is None:  # or it was shared a moment ago, through another hub
            await self._state.memberships.confirm(f"{account_id}.{project_id}")
            membership = self._state.membership(account_id, project_id)
        if membership is None:
            account = self._state.account(account_id)
            who = account.email if account else account_id[:80]
            raise RpcError("not_found", f"{who} is no collaborator of the project {self.get(project_id).title!r}")
        if membership.role == "owner":
            raise RpcError("invalid_state", "the owner cannot leave a project; delete it instead")
        await self._part(account_id, project_id)
        await self._announce(self._state.members_of(project_id) | {account_id})
        await self.keys.renew([project_id])

    async def delete(self, project_id: str) -> None:
        """Stop a project and delete it with its files. If its runner is refused, the files stay on the host."""
        project = await self._update_unmoved(project_id, desired="stopped")
        if self._state.runner_key(project.runner_id) is not None:
            await self._runner(str(project.runner_id), "delete_project", project_id)
        await self.moves.remove_old_copies(project_id)
        members = self._state.members_of(project_id)
        owners = self._state.owners_of(project_id)
        for account_id in members - owners:
            await self._drop(account_id, project_id)
        # This disconnects the owner, who waits for the answer and may have to ask again: until now it is still listed.
        await self._state.projects.change(project_id, lambda _: None)
        for account_id in owners:
            await self._drop(account_id, project_id)
        await self._announce(members)

    def check_fate(self, account_id: str, heir: str | None, delete: bool) -> None:
        """Raises :class:`RpcError` if the caller does not say what becomes of an account's projects, or if that cannot
        be."""
        owned = [p for p in self._state.projects_of(account_id) if self._is_owner(account_id, p)]
        if owned and heir is None and not delete:
            raise RpcError(
                "invalid_state",
                f"the account owns {len(owned)} projects, {self.get(owned[0]).title!r} is one: give them to another "
                "account (--give-projects-to), or have them deleted (--delete-projects)",
            )
        if heir is not None:
            self._check_room(heir, len(set(owned) - self._state.projects_of(heir)))

    async def leave_all(self, account_id: str, heir: str | None) -> set[str]:
        """Remove an account from all projects. The heir gets those it owns, or they are deleted. Returns those it
        owned."""
        owned = set[str]()

        async def leave(project_id: str) -> None:
            if not self._is_owner(account_id, project_id) or self.get_or_none(project_id) is None:
                members = self._state.members_of(project_id)
                await self._part(account_id, project_id)
                await self._announce(members)
                return
            owned.add(project_id)
            if heir is None:
                await self.delete(project_id)
            else:
                await self._hand_over(project_id, account_id, heir)

        left = list(self._state.memberships_of(account_id))
        await each(left, leave)
        await self.keys.renew(left)
        return owned

    async def refuse_keys(self, account_id: str) -> None:
        """Replace the keys of all projects an account may use, which it may have copied. The projects go on running."""
        used = list(self._state.projects_of(account_id))
        await each(used, self.keys.refuse)
        await self.keys.renew(used)

    async def start(self, project_id: str) -> None:
        """Start a project. Returns when its agent answers. Raises :class:`RpcError` that says what failed."""
        project = self.get(project_id)
        runner_id = project.runner_id or self._place()
        if not self._state.is_alive(runner_id):
            raise RpcError("unavailable", "the runner that has the project's files is not alive at this moment")
        if project.state == "running" and project.desired == "running":
            await self._state.projects.confirm(project_id)  # it may have been stopped a moment ago
            project = self.get(project_id)
            if project.state == "running" and project.desired == "running":
                return
        started = await self._update_unmoved(
            project_id, desired="running", state="starting", detail="", runner_id=runner_id
        )
        runner_id = str(started.runner_id)
        await self._announce(self._state.members_of(project_id))
        try:
            await self._runner(runner_id, "start_project", project_id)
            project = await self._wait_state(project_id, ("running", "failed"))
        except RpcError as error:
            await self.report(project_id, "failed", error.message)
            raise
        if project.state != "running":
            raise RpcError("invalid_state", f"the project did not start: {project.detail or 'see the runner log'}")

    async def stop(self, project_id: str) -> None:
        """Stop a project. Returns when its processes have ended. If its runner is refused, they cannot be ended, but
        the agent is refused too."""
        project = await self._update(project_id, desired="stopped")
        # A late report may say "stopped" of a project that has been started since: it has a key then.
        if project.runner_id is not None and (project.state != "stopped" or project.public_key):
            if self._state.runner_key(project.runner_id) is not None:
                await self._runner(project.runner_id, "stop_project", project_id)
            await self._set_state(project_id, "stopped", "", only_if="stopped")

    async def report(self, project_id: str, state: ProjectState, detail: str) -> None:
        """Store the state that a runner reports."""
        self.get(project_id)
        await self._set_state(project_id, state, detail[:500])

    async def call(self, project_id: str, method: str, params: dict[str, Any]) -> Any:
        """Call a method of a running project's agent."""
        if self.get(project_id).state != "running":
            raise RpcError("invalid_state", "the project is not running; start it first")
        return await self._request(f"projects.{project_id}.api", method, params, PROJECT_SECONDS)

    # ----

    async def _set_state(
        self, project_id: str, state: ProjectState, detail: str, only_if: Desired | None = None
    ) -> None:
        """Store a project's state, ``only_if`` this is still wanted of it. A project that is stopped loses its keys.

        The stream's record decides, and not this hub's view: another hub may have started the project a moment ago,
        and its new key has to stay.
        """
        before: Project | None = None

        def mutate(old: Project) -> Project:
            nonlocal before
            before = old
            if only_if not in (None, old.desired):
                return old
            ended = state == "stopped" == old.desired
            # Not earlier: a stopping agent still tells the readers of its output.
            return replace(old, state=state, detail=detail, **NO_KEYS if ended else {})

        if await self._state.change_project(project_id, mutate) != before:
            await self._announce(self._state.members_of(project_id))

    async def _runner(self, runner_id: str, method: str, project_id: str) -> Any:
        return await self._request(f"runners.{runner_id}.api", method, {"project_id": project_id}, RUNNER_SECONDS)

    async def _request(self, subject: str, method: str, params: dict[str, Any], seconds: float) -> Any:
        try:
            return decode_response(await self._ask(subject, encode_request(method, params), seconds))
        except ConnectionLostError as error:
            kind = "timeout" if "within" in str(error) else "unavailable"
            what = "the project's runner" if subject.startswith("runners") else "the project"
            raise RpcError(kind, f"{what} does not answer: {error}") from None

    async def _wait_state(self, project_id: str, states: Iterable[ProjectState]) -> Project:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_SECONDS
        while (project := self.get(project_id)).state not in states:
            left = deadline - loop.time()
            if left <= 0:
                raise RpcError("timeout", f"the project is still {project.state} after {READY_SECONDS:g} s")
            await self._state.projects.changed(left)
        return project

    async def _update(self, project_id: str, **fields: Any) -> Project:
        self.get(project_id)
        return await self._state.update_project(project_id, **fields)

    async def _update_unmoved(self, project_id: str, **fields: Any) -> Project:
        """Change fields of a project, unless its files are being moved: then raises :class:`RpcError`."""
        self.get(project_id)

        def mutate(old: Project) -> Project:
            if old.moving_to:
                raise RpcError("invalid_state", NOT_WHILE_MOVING)
            if old.runner_id and "runner_id" in fields:  # a move may have ended since this hub chose one
                return replace(old, **fields | {"runner_id": old.runner_id})
            return replace(old, **fields)

        return await self._state.change_project(project_id, mutate)

    async def _announce(self, accounts: Iterable[str]) -> None:
        """Notify accounts that their projects have changed."""
        body = to_json({"type": "projects_changed"})
        for account_id in accounts:
            await self._connection.publish(f"events.account.{account_id}.projects", body)

    async def _drop(self, account_id: str, project_id: str) -> None:
        await self._state.memberships.change(f"{account_id}.{project_id}", lambda _: None)

    async def _part(self, account_id: str, project_id: str) -> None:
        """Remove an account from a project that others go on using.

        Refuses the key first: if this hub dies in between, a repeated call does the rest. Refuses it again afterwards,
        in case the project was given a new key in between.
        """
        await self.keys.refuse(project_id)
        await self._drop(account_id, project_id)
        await self.keys.refuse(project_id)

    async def _hand_over(self, project_id: str, account_id: str, heir: str) -> None:
        owner = Membership(role="owner", since=time.time())
        await self._state.memberships.change(
            f"{heir}.{project_id}", lambda old: old if old is not None and old.role == "owner" else owner
        )
        await self._part(account_id, project_id)
        await self._announce(self._state.members_of(project_id))

    def _is_owner(self, account_id: str, project_id: str) -> bool:
        membership = self._state.membership(account_id, project_id)
        return membership is not None and membership.role == "owner"

    def _check_room(self, account_id: str, more: int = 1) -> None:
        most = min(self._most, projects_that_fit(self._connection.max_payload))
        if len(self._state.projects_of(account_id)) + more > most:
            account = self._state.account(account_id)
            who = account.email if isinstance(account, Account) else account_id
            raise RpcError("limit", f"{who} already uses {most} projects, the most an account may", limit=most)

    def _place(self) -> str:
        runner_id = self._place_or_none()
        if runner_id is None:
            raise RpcError("unavailable", "no runner is alive at this moment; try again when one is back")
        return runner_id

    def _place_or_none(self) -> str | None:
        """The runner with the fewest projects, running or not, among those alive.

        Trials do not count: they are gone in a moment, or were left on a machine that was switched off.
        """
        projects = (entry.value for entry in self._state.projects.entries.values())
        count = Counter(project.runner_id for project in projects if not project.trial)
        alive = [runner_id for runner_id in self._state.runners.entries if self._state.is_alive(runner_id)]
        return min(alive, key=lambda runner_id: (count[runner_id], runner_id), default=None)


def _title(title: str) -> str:
    try:
        return checked_title(title)
    except NameRefusedError as error:
        raise RpcError("invalid_params", str(error)) from None
