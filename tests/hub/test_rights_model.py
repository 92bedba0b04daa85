"""Random sequences of everything that gives or takes a right, against a model of who may do what.

After each step every principal there is, and some that were, try all subjects of all others with raw clients: what the
model allows must work, everything else must be refused by nats-server, and a holder of nothing must not get in. Both
the connections that were open before the step and those opened while it happened have to come to that.

The steps are the rules of a hypothesis state machine. Of a sequence that fails it looks for the shortest part that
still does, for up to five minutes, and prints that as the calls that bring it back.

The sequences follow from their seed and the version of hypothesis. NATSKIT_RIGHTS_SEEDS=1000:1200 runs those seeds
instead of the usual one; NATSKIT_RIGHTS_STEPS makes them longer.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import signal
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import nats.errors
import pytest
from hypothesis import HealthCheck, Phase, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from natskit.identity import nkey
from natskit.identity.claims import COOKIE
from natskit.rpc import RpcError, decode_response, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call, cookie_of
from tests.kit.wait import eventually
from tests.platform.raw import ClosedError, RawClient, _Tcp

SEEDS = "1:1"
"""From, to: what continuous integration runs, beside one fixed sequence with each kind of step."""
STEPS = 14
PATIENCE = 20.0
"""Seconds for everybody to have exactly the rights of the model. Only a bound: it is over when they have."""
PATIENCE_WHEN_SHRINKING = 4.0
"""The same once a sequence has failed: each shorter one that fails as well takes all of it."""
OF_DOCUMENTS = ("doc.x", "documents.changed")
"""The events of a project that its agent may hear, besides the project's members."""
REMEMBERED = 4
"""Of the principals that are no more, the last ones are tried again after each step."""

T = TypeVar("T")


# ---- the model


@dataclass
class Person:
    email: str
    account_id: str
    password: str = PASSWORD
    disabled: bool = False


@dataclass
class Project:
    project_id: str
    owner: str
    members: list[str]
    running: bool = False


@dataclass(frozen=True)
class Rights:
    """The subjects, of all that the test tries, that somebody may publish and subscribe to."""

    publish: frozenset[str] = frozenset()
    subscribe: frozenset[str] = frozenset()


@dataclass(eq=False)
class Principal:
    """Somebody with credentials. After each step ``rights`` returns their rights; ``None`` if they may not connect."""

    name: str
    connect: Callable[[], RawClient]
    rights: Callable[[], Rights | None]
    clients: list[RawClient] = field(default_factory=list)

    def allowed(self, tried: Rights) -> Iterator[Rights]:
        """The subjects that each of its connections may use. Forgets connections that were closed."""
        for client in list(self.clients):
            try:
                now = allowed(client, tried)
            except (ClosedError, OSError):
                self.clients.remove(client)
            else:
                yield now


@dataclass
class Model:
    """The rights of all principals, written independently of natskit/bus/permissions.py."""

    runner_id: str
    people: dict[str, Person] = field(default_factory=dict)
    projects: dict[str, Project] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)
    """The account of each cookie that is good."""
    keys: dict[str, str] = field(default_factory=dict)
    """The key that may speak as a project."""
    revoked: bool = False
    """Whether the runner may do nothing, nor the agents it has started."""
    known: set[str] = field(default_factory=set)
    """Every project there ever was."""

    def browser(self, cookie: str) -> Rights | None:
        account = self.sessions.get(cookie)
        if account is None:
            return None
        mine = [p.project_id for p in self.projects.values() if account in p.members]
        return Rights(
            frozenset({f"hub.api.{account}", *(f"projects.{p}.x" for p in mine)}),
            frozenset(
                {
                    f"_INBOX.account.{account}.>",
                    f"events.account.{account}.>",
                    *(f"events.project.{p}.{rest}" for p in mine for rest in (">", *OF_DOCUMENTS)),
                }
            ),
        )

    def project(self, project_id: str, key: str) -> Rights | None:
        if self.keys.get(project_id) != key or self.revoked:
            return None
        return Rights(
            frozenset(
                {
                    f"hub.project.{project_id}",
                    f"events.project.{project_id}.x",
                    f"_INBOX.hub.{project_id}.x",
                    f"docs.disk.{project_id}.x",
                    *(f"_INBOX.account.{account}.{project_id}.x" for account in self.people),
                }
            ),
            frozenset(
                {
                    f"projects.{project_id}.>",
                    f"_INBOX.project.{project_id}.>",
                    *(f"events.project.{project_id}.{rest}" for rest in OF_DOCUMENTS),
                }
            ),
        )

    def runner(self) -> Rights | None:
        if self.revoked:
            return None
        r = self.runner_id
        return Rights(
            frozenset({f"hub.runner.{r}", f"_INBOX.hub.{r}.x", f"_INBOX.admin.{r}.x"}),
            frozenset({f"runners.{r}.>", f"_INBOX.runner.{r}.>"}),
        )

    def everything(self) -> Rights:
        """All subjects that anybody may use here, and some that nobody may use."""
        r = self.runner_id
        publish = {
            f"hub.runner.{r}",
            f"runners.{r}.api",
            f"runners.{r}.move",
            f"runners.{r}.backup",
            "hub.admin",
            "$JS.API.STREAM.INFO.KV_accounts",
            "$KV.accounts.x",
            "$SYS.REQ.SERVER.PING",
            "x",
        }
        subscribe = {
            f"runners.{r}.>",
            f"_INBOX.runner.{r}.>",
            ">",
            "hub.admin",
            "hub.api.*",
            "$KV.>",
            "$SYS.>",
            "_INBOX.>",
            "projects.>",
            "events.>",
        }
        holders = [
            self.runner(),
            *(Model.browser(self, cookie) for cookie in self.sessions),
            *(self.project(p, self.keys.get(p, "")) for p in self.known),
        ]
        for rights in holders:
            if rights is not None:
                publish |= rights.publish
                subscribe |= rights.subscribe
        for account in self.people:
            publish |= {f"hub.api.{account}", f"events.account.{account}.x", f"_INBOX.account.{account}.x"}
            subscribe |= {f"_INBOX.account.{account}.>", f"events.account.{account}.>", f"hub.api.{account}"}
        for p in self.known:
            publish |= {f"projects.{p}.x", f"events.project.{p}.x", f"hub.project.{p}", f"_INBOX.project.{p}.x"}
            publish |= {f"docs.disk.{p}.x"}
            subscribe |= {f"projects.{p}.>", f"events.project.{p}.>", f"hub.project.{p}"}
            subscribe |= {f"events.project.{p}.{rest}" for rest in OF_DOCUMENTS}
        return Rights(frozenset(publish), frozenset(subscribe))


# ---- what the server lets a client do

_REFUSED = re.compile(r'Permissions Violation for (Publish|Subscription) to "([^"]+)"')


def allowed(client: RawClient, tried: Rights) -> Rights:
    """The subjects of these that the server lets a connection use. Raises :class:`ClosedError` when it is closed."""
    subscriptions = dict(enumerate(sorted(tried.subscribe), 1000))
    lines = [f"PUB {subject} 0\r\n\r\n" for subject in sorted(tried.publish)]
    lines += [f"SUB {subject} {sid}\r\n" for sid, subject in subscriptions.items()]
    lines += [f"UNSUB {sid}\r\n" for sid in subscriptions]
    client.send("".join(lines).encode())
    refused: dict[str, set[str]] = {"Publish": set(), "Subscription": set()}
    for error in client.ping():
        found = _REFUSED.search(error)
        assert found, error
        refused[found[1]].add(found[2])
    client.messages.clear()
    return Rights(tried.publish - refused["Publish"], tried.subscribe - refused["Subscription"])


# ---- the platform, and what is done to it


class Platform:
    """The real servers of this module, which all sequences share, and the event loop of their connections."""

    def __init__(self, site: Site, loop: asyncio.Runner) -> None:
        self.site = site
        self.patience = PATIENCE
        self.world: World | None = None
        """Whose turn it is."""
        self._loop = loop

    async def begin(self) -> None:
        self.site.start_server()
        for name in ("hub-1", "hub-2"):
            self.site.start_hub(name)
        for name in self.site.hubs:
            await self.site.healthy(name)
        self.admin, self.runner = await self.site.admin(), await self.site.runner()
        await call(self.runner, f"hub.runner.{self.site.runner_id}", "register", version="1")
        await self.runner.subscribe(f"runners.{self.site.runner_id}.api", cb=self._on_runner_request)

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(doing)

    async def _on_runner_request(self, message: Any) -> None:
        assert self.world is not None
        await self.world.on_runner_request(message)


class World:
    """The people, projects and runner of one sequence, and the steps that can happen to them."""

    def __init__(self, platform: Platform) -> None:
        self.site = platform.site
        self.model = Model(self.site.runner_id)
        self.dead: list[Principal] = []
        self.live: list[Principal] = []
        self.history: list[str] = []
        self.down: str | None = None
        self._platform = platform
        self._admin = platform.admin
        self._runner = platform.runner
        self._asked = 0

    async def begin(self) -> None:
        """Make three people and the runner."""
        self.live.append(self._tcp("runner", lambda: self.site.runner_creds, self.model.runner))
        for _ in range(3):
            await self._add()
        for account_id in [*self.model.people, *list(self.model.people)[:2]]:
            await self.sign_in(account_id)
        await self.create_project(next(iter(self.model.people)))

    async def happen(self, name: str, doing: Awaitable[str], first_hub: int) -> None:
        """Do one step. The sequence chooses the hub; if that hub fails, asks the other one."""
        self.still()
        self._asked = first_hub
        self.history.append(name)
        # While it happens, everybody connects once more: one hub may not have heard of what the other one decided.
        _, *_ = await asyncio.gather(self._note(doing), *(self._open_one_more(p) for p in [*self.live, *self.dead]))
        if not self.model.revoked:
            await self._beat()

    async def check(self) -> None:
        """Wait until everybody has exactly the rights of the model."""
        tried = self.model.everything()
        wrong: dict[str, str] = {}

        async def all_right() -> bool:
            wrong.clear()
            for principal in [*self.live, *self.dead]:
                if difference := self._difference(principal, tried):
                    wrong[principal.name] = difference
            return not wrong

        try:
            await eventually(all_right, "everybody has the rights of the model", self._platform.patience)
        except AssertionError as error:
            self._platform.patience = PATIENCE_WHEN_SHRINKING
            raise AssertionError(f"{wrong}\nafter {' → '.join(self.history)}\n{error}") from None

    def still(self) -> None:
        """Check that nobody got a denied right back."""
        tried = self.model.everything()
        for principal in [*self.live, *self.dead]:
            expected = principal.rights() or Rights()
            for now in principal.allowed(tried):
                extra = (now.publish - expected.publish) | (now.subscribe - expected.subscribe)
                assert not extra, f"{principal.name} has {extra} again, after {' → '.join(self.history)}"

    async def end(self) -> None:
        """Restore the initial state of the platform for the next sequence."""
        for principal in [*self.live, *self.dead]:
            for client in principal.clients:
                client.close()
        if self.down is not None:
            await self.start_hub(self.down)
        await self.admin("runner_allow", name=self.site.runner_id)
        await eventually(self._beat, "the runner is back, without whom no project is deleted")
        for project_id in self.model.projects:
            with suppress(RpcError):  # after a failure the model may not be what is the case
                await self.admin("project_delete", project_id=project_id)
        for person in self.model.people.values():
            with suppress(RpcError):
                await self.admin("account_remove", email=person.email)

    # ---- to whom each step could happen now

    def enabled(self) -> list[str]:
        return [a for a, person in self.model.people.items() if not person.disabled]

    def who_may_be_disabled(self) -> list[str]:
        return self.signed_in() if len(self.enabled()) > 1 else []

    def disabled(self) -> list[str]:
        return [a for a, person in self.model.people.items() if person.disabled]

    def signed_in(self) -> list[str]:
        return list(dict.fromkeys(self.model.sessions.values()))

    def who_may_sign_in(self) -> list[str]:
        return self.enabled() if len(self.model.sessions) < 6 else []

    def sessions(self) -> list[str]:
        return list(self.model.sessions)

    def sessions_beside_another(self) -> list[str]:
        """A session; prefers accounts that have several."""
        several = [c for c, account in self.model.sessions.items() if len(self._sessions_of(account)) > 1]
        return several or self.sessions()

    def sessions_to_leave(self) -> list[str]:
        return self.sessions() if len(self.model.sessions) > 1 else []

    def sessions_of_one_person(self) -> list[tuple[str, str]]:
        return [(c, d) for c, a in self.model.sessions.items() for d in self._sessions_of(a) if c != d]

    def who_may_be_signed_out(self) -> list[str]:
        return self.signed_in() if len(self.model.sessions) > 2 else []

    def people_and_heirs(self) -> list[tuple[str, str]]:
        return list(itertools.permutations(self.model.people, 2))

    def somebody(self) -> list[str]:
        """A person; prefers those who are signed in."""
        return self.signed_in() or list(self.model.people)

    def who_may_create(self) -> list[str]:
        return self.somebody() if len(self.model.projects) < 4 else []

    def shareable(self) -> list[tuple[Project, str]]:
        return [(p, a) for p in self.model.projects.values() for a in self.model.people if a not in p.members]

    def shared(self) -> list[tuple[Project, str]]:
        return [(p, a) for p in self.model.projects.values() for a in p.members if a != p.owner]

    def shared_or_not_by_who_is_signed_in(self) -> list[tuple[Project, str]]:
        if self.down is not None:
            return []
        mine = [project for project in self.model.projects.values() if self._sessions_of(project.owner)]
        return [(project, account) for project in mine for account in self.model.people if account != project.owner]

    def stopped(self) -> list[Project]:
        return [p for p in self.model.projects.values() if not p.running and not self.model.revoked]

    def running(self) -> list[Project]:
        return [p for p in self.model.projects.values() if p.running and not self.model.revoked]

    def deletable(self) -> list[Project]:
        return list(self.model.projects.values()) if len(self.model.projects) > 1 and not self.model.revoked else []

    def runner_allowed(self) -> list[bool]:
        return [] if self.model.revoked else [True]

    def runner_revoked(self) -> list[bool]:
        return [True] if self.model.revoked else []

    def hubs_to_kill(self) -> list[str]:
        return sorted(self.site.hubs) if self.down is None else []

    def hubs_to_start(self) -> list[str]:
        return [self.down] if self.down is not None else []

    def servers(self) -> list[str]:
        return ["nats-server"]

    # ---- how they are done

    async def sign_in(self, account_id: str) -> str:
        person = self.model.people[account_id]

        async def signed_in() -> str | None:  # the other hub may not have heard of a new password yet
            answer = await self.site.http(
                self._hub(), "POST", "/api/sign-in", {"email": person.email, "password": person.password}
            )
            return cookie_of(answer) if answer.status_code == 200 else None

        cookie = await eventually(signed_in, "signed in")
        assert cookie is not None
        self.model.sessions[cookie] = account_id
        url = f"ws://127.0.0.1:{self.site.websocket_port}/"

        def connect() -> RawClient:
            return RawClient.websocket(url, cookie=f"{COOKIE}={cookie}")

        name = f"session {len(self.live)} of {person.email[:8]}"
        self.live.append(Principal(name, connect, lambda: self.model.browser(cookie)))
        return f"{person.email[:8]} in"

    async def sign_out(self, cookie: str) -> str:
        answer = await self.site.http(self._hub(), "POST", "/api/sign-out", cookie=cookie)
        assert answer.status_code == 204, answer.text
        return self._end([cookie])

    async def _add(self) -> None:
        email = f"{uuid.uuid4()}@example.org"
        made = await self.admin("account_add", email=email, password=PASSWORD)
        self.model.people[made["account_id"]] = Person(email, made["account_id"])

    async def end_session(self, pair: tuple[str, str]) -> str:
        """Have somebody end another of their sessions."""
        cookie, other = pair
        await self._rpc(cookie, "end_session", {"session_id": _session_of(other)})
        return self._end([other])

    async def end_other_sessions(self, cookie: str) -> str:
        await self._rpc(cookie, "end_all_sessions", {"keep_this": True})
        return self._end([c for c in self._sessions_of(self.model.sessions[cookie]) if c != cookie])

    async def sign_out_everywhere(self, account_id: str) -> str:
        await self.admin("account_sign_out", email=self.model.people[account_id].email)
        return self._end(self._sessions_of(account_id))

    async def remove_account(self, pair: tuple[str, str]) -> str:
        """Remove an account, give its projects to an heir, and add a new account."""
        account_id, heir = pair
        person = self.model.people[account_id]
        await self.admin("account_remove", email=person.email, give_projects_to=self.model.people[heir].email)
        for project in self.model.projects.values():
            if project.owner == account_id:
                project.owner = heir
                project.members += [heir] if heir not in project.members else []
            project.members = [member for member in project.members if member != account_id]
        ended = self._end(self._sessions_of(account_id))
        del self.model.people[account_id]
        await self._add()
        return f"{account_id[:8]} with {ended}, its heir is {heir[:8]}"

    async def revoke_runner(self, _: bool) -> str:
        await self.admin("runner_revoke", name=self.site.runner_id)
        self.model.revoked = True
        return "the runner"

    async def allow_runner(self, _: bool) -> str:
        await self.admin("runner_allow", name=self.site.runner_id)
        self.model.revoked = False
        # It is refused until then, and comes back by itself.
        await eventually(self._beat, "the runner is back")
        self._bury()
        return "the runner"

    async def _beat(self) -> bool:
        """Send a runner's regular report, and act on the answer."""
        with suppress(nats.errors.Error, RpcError):
            answer = await call(self._runner, f"hub.runner.{self.site.runner_id}", "heartbeat", running=[])
            for project_id in answer["need_keys"]:
                await self._new_key(project_id)
            return True
        return False

    async def create_project(self, account_id: str) -> str:
        made = await self.admin("project_create", email=self.model.people[account_id].email, title="P")
        project_id = str(made["project_id"])
        self.model.projects[project_id] = Project(project_id, account_id, [account_id])
        self.model.known.add(project_id)
        return project_id[:8]

    async def share(self, pair: tuple[Project, str], by_admin: bool = False) -> str:
        project, account_id = pair
        who = {"project_id": project.project_id, "email": self.model.people[account_id].email}
        await self._as_owner(project, "share_project", "project_share", who, by_admin)
        project.members.append(account_id)
        return f"{project.project_id[:8]} with {who['email'][:8]}"

    async def unshare(self, pair: tuple[Project, str], by_admin: bool = False) -> str:
        project, account_id = pair
        who = {"project_id": project.project_id, "email": self.model.people[account_id].email}
        await self._as_owner(project, "unshare_project", "project_unshare", who, by_admin)
        project.members.remove(account_id)
        return f"{project.project_id[:8]} from {who['email'][:8]}"

    async def disable(self, account_id: str) -> str:
        person = self.model.people[account_id]
        await self.admin("account_disable", email=person.email)
        person.disabled = True
        return self._end(self._sessions_of(account_id))

    async def enable(self, account_id: str) -> str:
        person = self.model.people[account_id]
        await self.admin("account_disable", email=person.email, disabled=False)
        person.disabled = False
        return person.email[:8]

    async def change_password(self, cookie: str) -> str:
        person = self.model.people[self.model.sessions[cookie]]
        new = f"password {uuid.uuid4()}"
        await self._rpc(cookie, "change_password", {"current_password": person.password, "new_password": new})
        person.password = new
        return self._end([c for c in self._sessions_of(person.account_id) if c != cookie])

    async def set_password(self, account_id: str) -> str:
        person = self.model.people[account_id]
        person.password = f"password {uuid.uuid4()}"
        await self.admin("account_set_password", email=person.email, password=person.password)
        return self._end(self._sessions_of(account_id))

    async def start_project(self, project: Project) -> str:
        await self.admin("start_project", project_id=project.project_id)
        project.running = True
        return project.project_id[:8]

    async def stop_project(self, project: Project) -> str:
        await self.admin("stop_project", project_id=project.project_id)
        project.running = False
        self.model.keys.pop(project.project_id, None)
        self._bury()
        return project.project_id[:8]

    async def delete_project(self, project: Project, by_admin: bool = False) -> str:
        await self._as_owner(project, "delete_project", "project_delete", {"project_id": project.project_id}, by_admin)
        del self.model.projects[project.project_id]
        self.model.keys.pop(project.project_id, None)
        self._bury()
        return project.project_id[:8]

    async def kill_hub(self, name: str) -> str:
        self.site.kill_hub(name)
        self.down = name
        return name

    async def share_or_unshare_amid_a_kill(self, pair: tuple[Project, str], milliseconds: int = 10) -> str:
        """Send a change to a hub, kill the hub before it can have answered, and send the change to the other hub."""
        hub, cookie, what, body = self._share_or_unshare(pair)
        asked = asyncio.create_task(self.site.http(hub, "POST", "/api/rpc", body, cookie=cookie))
        await asyncio.sleep(milliseconds / 1000)  # it may have begun, written, or be done
        await self.kill_hub(hub)
        await asyncio.gather(asked, return_exceptions=True)
        again = await self.site.http(self._hub(), "POST", "/api/rpc", body, cookie=cookie)
        with suppress(RpcError):  # nothing is left to unshare
            decode_response(again.content)
        # The hub that refused the key may have died before it had the runner make another.
        if self._note_sharing(pair) == "unshare_project" and not self.model.revoked:
            await eventually(self._beat, "the runner was told whose key is missing")
        return f"{what} {pair[0].project_id[:8]} {pair[1][:8]}, {hub}"

    async def share_or_unshare_while_a_hub_stands_still(self, pair: tuple[Project, str]) -> str:
        """The other hub goes on with the view that it had: who connects meanwhile may be let in by either."""
        hub, cookie, what, body = self._share_or_unshare(pair)
        (still,) = self.site.hubs.keys() - {hub}
        process, _ = self.site.hubs[still]
        process.send_signal(signal.SIGSTOP)
        try:
            answer = await self.site.http(hub, "POST", "/api/rpc", body, cookie=cookie)
        finally:
            process.send_signal(signal.SIGCONT)
        decode_response(answer.content)
        self._note_sharing(pair)
        return f"{what} {pair[0].project_id[:8]} {pair[1][:8]}, {still} stands still"

    def _share_or_unshare(self, pair: tuple[Project, str]) -> tuple[str, str, str, bytes]:
        """The hub to ask, the owner's cookie, the method and the request."""
        project, account_id = pair
        what = "unshare_project" if account_id in project.members else "share_project"
        params = {"project_id": project.project_id, "email": self.model.people[account_id].email}
        return self._hub(), self._sessions_of(project.owner)[0], what, encode_request(what, params)

    def _note_sharing(self, pair: tuple[Project, str]) -> str:
        project, account_id = pair
        if account_id in project.members:
            project.members.remove(account_id)
            return "unshare_project"
        project.members.append(account_id)
        return "share_project"

    async def start_hub(self, name: str) -> str:
        self.site.start_hub(name)
        await self.site.healthy(name)
        self.down = None
        return name

    async def restart_server(self, name: str) -> str:
        await asyncio.to_thread(self.site.stop_server)
        await asyncio.to_thread(self.site.start_server)
        for hub in self.site.hubs:
            if hub != self.down:
                await self.site.healthy(hub)
        return name

    async def on_runner_request(self, message: Any) -> None:
        """A runner that starts no process: it reports every order as done."""
        request = json.loads(message.data)
        project_id = request["params"]["project_id"]
        if request["method"] in ("start_project", "rotate_project_keys"):
            await self._new_key(project_id)
        if request["method"] == "start_project":
            mine = f"hub.runner.{self.site.runner_id}"
            await call(self._runner, mine, "project_state", project_id=project_id, state="running")
        await message.respond(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {}}).encode())

    async def rotate_project_key(self, project: Project) -> str:
        return await self._new_key(project.project_id)

    async def _new_key(self, project_id: str) -> str:
        """Make a new key and get the hub's JWT for it, as a runner does at each start of an agent. This voids the old
        key."""
        seed = nkey.create_seed("user")
        key = nkey.public_key(seed)
        mine = f"hub.runner.{self.site.runner_id}"
        ticket: dict[str, str] = await call(
            self._runner, mine, "project_credentials", project_id=project_id, public_key=key
        )
        self.model.keys[project_id] = key
        self._bury()

        def connect() -> RawClient:
            return RawClient(_Tcp("127.0.0.1", self.site.nats_port, None), ticket["jwt"], seed.encode())

        self.live.append(Principal(f"project {project_id[:8]}", connect, lambda: self.model.project(project_id, key)))
        return project_id[:8]

    async def admin(self, method: str, **params: Any) -> Any:
        return await self._again(lambda: call(self._admin, "hub.admin", method, **params))

    # ----

    async def _note(self, doing: Awaitable[str]) -> None:
        self.history[-1] += f" ({await doing})"

    async def _again(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Send a request twice if necessary: a hub that was just killed may have lost the first. All requests here
        allow it."""
        for _ in range(5):
            try:
                return await ask()
            except (nats.errors.Error, RpcError) as error:
                if isinstance(error, RpcError) and error.kind != "unavailable":
                    raise
                await asyncio.sleep(0.05)
        raise AssertionError("no hub answers")

    async def _as_owner(
        self, project: Project, method: str, admin_method: str, params: dict[str, Any], by_admin: bool
    ) -> None:
        """Act as the owner, through the hub of the step's choice, or as an administrator."""
        cookies = self._sessions_of(project.owner)
        if cookies and not by_admin:
            await self._rpc(cookies[0], method, params)
        else:
            await self.admin(admin_method, **params)

    async def _rpc(self, cookie: str, method: str, params: dict[str, Any]) -> Any:
        answer = await self.site.http(self._hub(), "POST", "/api/rpc", encode_request(method, params), cookie=cookie)
        assert answer.status_code == 200, answer.text
        return decode_response(answer.content)

    def _hub(self) -> str:
        """The running hubs, in turn."""
        up = [name for name in sorted(self.site.hubs) if name != self.down]
        self._asked += 1
        return up[self._asked % len(up)]

    def _sessions_of(self, account_id: str) -> list[str]:
        return [cookie for cookie, holder in self.model.sessions.items() if holder == account_id]

    def _end(self, cookies: list[str]) -> str:
        for cookie in cookies:
            del self.model.sessions[cookie]
        self._bury()
        return f"{len(cookies)} sessions"

    def _bury(self) -> None:
        """Keep trying principals that lost all rights for good, the most recent ones again and again."""
        gone = [p for p in self.live if p.rights() is None and not self.model.revoked]
        self.live = [p for p in self.live if p not in gone]
        self.dead += gone
        for principal in self.dead[:-REMEMBERED]:
            if not principal.clients:
                self.dead.remove(principal)

    def _tcp(self, name: str, creds: Callable[[], str], rights: Callable[[], Rights | None]) -> Principal:
        return Principal(name, lambda: RawClient.tcp("127.0.0.1", self.site.nats_port, creds()), rights)

    async def _open_one_more(self, principal: Principal) -> None:
        with suppress(ClosedError, OSError):
            principal.clients.append(await asyncio.to_thread(principal.connect))

    def _difference(self, principal: Principal, tried: Rights) -> str:
        """The subjects that a principal may use and should not, or the other way round; empty if all is right."""
        expected, difference = principal.rights(), ""
        for now in principal.allowed(tried):
            if expected is None:
                difference = "is still connected"
            elif now != expected:
                extra = sorted((now.publish - expected.publish) | (now.subscribe - expected.subscribe))
                missing = sorted((expected.publish - now.publish) | (expected.subscribe - now.subscribe))
                difference = f"may {extra}, may not {missing}"
        if difference:
            return difference
        if principal.clients:  # as it should be; one is enough for the next step
            for client in principal.clients[1:]:
                client.close()
            del principal.clients[1:]
            return ""
        try:
            client = principal.connect()
        except (ClosedError, OSError) as error:
            return "" if expected is None else f"cannot connect: {error!r}"
        principal.clients.append(client)
        return "was let in" if expected is None else self._difference(principal, tried)


def _session_of(cookie: str) -> str:
    """The session of a cookie."""
    body = cookie.split(".")[1]
    tags = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["nats"]["tags"]
    return str(next(tag for tag in tags if tag.startswith("session:")).partition(":")[2])


# ---- the state machine

WHICH = st.integers(0, 11)
"""Which of those to whom a step could happen: one of so many that each of two, three, four or six is as likely."""
KINDS: set[str] = set()
"""The names of all steps."""


def step(
    possible: Callable[[World], Sequence[Any]], **choices: st.SearchStrategy[Any]
) -> Callable[[Callable[..., Coroutine[Any, Any, str]]], Callable[..., None]]:
    """Make a rule for a step that needs one of those that ``possible`` returns. It runs only if there is one."""

    def decorate(action: Callable[..., Coroutine[Any, Any, str]]) -> Callable[..., None]:
        def happen(self: Rightful, which: int = 0, hub: int = 0, **chosen: Any) -> None:
            candidates = possible(self.world)
            doing = action(self.world, candidates[which % len(candidates)], **chosen)
            self.run(self.world.happen(action.__name__, doing, hub))

        happen.__name__ = happen.__qualname__ = action.__name__
        KINDS.add(action.__name__)
        everything = {"which": WHICH, "hub": st.integers(0, 1)} | choices
        return precondition(lambda self: bool(possible(self.world)))(rule(target=None, **everything)(happen))  # type: ignore[return-value]

    return decorate


class Rightful(RuleBasedStateMachine):
    """A state machine of all steps that give or take a right. After each step everybody has the rights of the model."""

    def __init__(self, platform: Platform) -> None:
        super().__init__()
        self.platform = platform
        self.world = platform.world = World(platform)
        self._begun = self._failed = False

    @initialize(simplest=st.booleans().map(lambda drawn: not drawn))
    def people_arrive(self, simplest: bool) -> None:
        # Hypothesis first tries the simplest value of every choice, which would be the same step again and again.
        assume(not simplest)
        self.begin()

    sign_in = step(World.who_may_sign_in)(World.sign_in)
    sign_out = step(World.sessions_to_leave)(World.sign_out)
    end_session = step(World.sessions_of_one_person)(World.end_session)
    end_other_sessions = step(World.sessions_beside_another)(World.end_other_sessions)
    sign_out_everywhere = step(World.who_may_be_signed_out)(World.sign_out_everywhere)
    remove_account = step(World.people_and_heirs)(World.remove_account)
    disable = step(World.who_may_be_disabled)(World.disable)
    enable = step(World.disabled)(World.enable)
    change_password = step(World.sessions_beside_another)(World.change_password)
    set_password = step(World.somebody)(World.set_password)

    create_project = step(World.who_may_create)(World.create_project)
    share = step(World.shareable, by_admin=st.booleans())(World.share)
    unshare = step(World.shared, by_admin=st.booleans())(World.unshare)
    start_project = step(World.stopped)(World.start_project)
    stop_project = step(World.running)(World.stop_project)
    rotate_project_key = step(World.running)(World.rotate_project_key)
    delete_project = step(World.deletable, by_admin=st.booleans())(World.delete_project)

    revoke_runner = step(World.runner_allowed)(World.revoke_runner)
    allow_runner = step(World.runner_revoked)(World.allow_runner)
    kill_hub = step(World.hubs_to_kill)(World.kill_hub)
    start_hub = step(World.hubs_to_start)(World.start_hub)
    restart_server = step(World.servers)(World.restart_server)
    share_or_unshare_amid_a_kill = step(
        World.shared_or_not_by_who_is_signed_in,
        milliseconds=st.integers(0, 50),  # it may have begun, written, or be done
    )(World.share_or_unshare_amid_a_kill)

    share_or_unshare_while_a_hub_stands_still = step(World.shared_or_not_by_who_is_signed_in)(
        World.share_or_unshare_while_a_hub_stands_still
    )

    @invariant()
    def everybody_has_the_rights_of_the_model(self) -> None:
        self.run(self.world.check())

    def begin(self) -> None:
        self._begun = True
        self.run(self.world.begin())

    def run(self, doing: Coroutine[Any, Any, None]) -> None:
        self._failed = True
        self.platform.run(doing)
        self._failed = False

    def teardown(self) -> None:
        if not self._begun:
            return
        try:
            if not self._failed:
                self.world.still()
        finally:
            self.platform.run(self.world.end())


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A nats-server and two hubs, in a separate event loop: the rules of a state machine are not coroutines."""
    with asyncio.Runner() as loop:
        site = Site(tmp_path_factory.mktemp("rights"))
        platform = Platform(site, loop)
        try:
            platform.run(platform.begin())
            yield platform
        finally:
            loop.run(site.close())
            for name in site.hubs:
                print(f"---- {name}\n{site.log(name)}")


def test_each_kind_of_step_leaves_everybody_the_rights_of_the_model(platform: Platform) -> None:
    machine, seen = Rightful(platform), set()

    def happen(*names: str, **choices: Any) -> None:
        for name in names:
            getattr(machine, name)(**choices)
            machine.everybody_has_the_rights_of_the_model()
            seen.add(name)

    try:
        machine.begin()
        machine.everybody_has_the_rights_of_the_model()
        happen("start_project", "share", "rotate_project_key", "sign_in", "change_password", "end_session", "sign_in")
        happen("end_other_sessions", "sign_out", "set_password", hub=1)
        happen("sign_in", "unshare", *2 * ["share_or_unshare_while_a_hub_stands_still"])
        happen("share_or_unshare_amid_a_kill", "revoke_runner", "start_hub", "sign_in")
        happen("create_project", "allow_runner", "disable", "kill_hub", "sign_in", "enable", "stop_project")
        happen("start_hub", "sign_in", "sign_in", "sign_out_everywhere", "remove_account", "restart_server")
        happen("delete_project", by_admin=True)
    finally:
        machine.teardown()
    assert seen == KINDS


def seeds() -> list[int]:
    first, _, last = os.environ.get("NATSKIT_RIGHTS_SEEDS", SEEDS).partition(":")
    return list(range(int(first), int(last or first) + 1))


@pytest.mark.parametrize("number", seeds())
def test_everybody_has_the_rights_of_the_model(platform: Platform, number: int) -> None:
    one_sequence = settings(
        max_examples=1,
        stateful_step_count=int(os.environ.get("NATSKIT_RIGHTS_STEPS", STEPS)) + 1,  # the first: people arrive
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    make = seed(number)(partial(Rightful, platform))
    run_state_machine_as_test(make, settings=one_sequence)  # type: ignore[arg-type]  # any factory will do
    assert platform.world is not None
    print(f"seed {number}: {' → '.join(platform.world.history)}")
