"""Random sequences of everything that gives or takes a right, against a model of who may do what.

After each step every principal there is, and some that were, try all subjects of all others with raw clients: what the
model allows must work, everything else must be refused by nats-server, and a holder of nothing must not get in. Both
the connections that were open before the step and those opened while it happened have to come to that.

The sequences follow from their seed, so a failure names what brings it back. NATSKIT_RIGHTS_SEEDS=1000:1200 runs those
seeds instead of the usual few; NATSKIT_RIGHTS_STEPS makes them longer.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import nats.errors
import pytest

from natskit.connection import Connection
from natskit.identity import nkey
from natskit.identity.claims import COOKIE
from natskit.rpc import RpcError, decode_response, encode_request
from tests.hub.conftest import PASSWORD
from tests.hub.site import Site, call, cookie_of, eventually
from tests.platform.raw import ClosedError, RawClient, _Tcp

SEEDS = "1:2"
"""From, to: what continuous integration runs."""
STEPS = 22
PATIENCE = 20.0
"""Seconds for everybody to have exactly the rights of the model. Only a bound: it is over when they have."""
REMEMBERED = 4
"""Of the principals that are no more, the last ones are tried again after each step."""


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
    """What somebody may publish to and subscribe to, of all that is tried."""

    publish: frozenset[str] = frozenset()
    subscribe: frozenset[str] = frozenset()


@dataclass(eq=False)
class Principal:
    """Somebody with credentials; ``rights`` is asked anew after each step, ``None`` for who may not even connect."""

    name: str
    connect: Callable[[], RawClient]
    rights: Callable[[], Rights | None]
    clients: list[RawClient] = field(default_factory=list)

    def allowed(self, tried: Rights) -> Iterator[Rights]:
        """What each of its connections may do of this; those that were cut are forgotten."""
        for client in list(self.clients):
            try:
                now = allowed(client, tried)
            except (ClosedError, OSError):
                self.clients.remove(client)
            else:
                yield now


@dataclass
class Model:
    """Who may do what, said once more and in other words than in natskit/permissions.py."""

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
                {f"_INBOX.account.{account}.>", f"events.account.{account}.>", *(f"events.project.{p}.>" for p in mine)}
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
                    *(f"_INBOX.account.{account}.{project_id}.x" for account in self.people),
                }
            ),
            frozenset({f"projects.{project_id}.>", f"_INBOX.project.{project_id}.>"}),
        )

    def runner(self) -> Rights | None:
        if self.revoked:
            return None
        r = self.runner_id
        return Rights(
            frozenset({f"hub.runner.{r}", f"_INBOX.hub.{r}.x"}), frozenset({f"runners.{r}.>", f"_INBOX.runner.{r}.>"})
        )

    def everything(self) -> Rights:
        """All that anybody in here may do, and what nobody may."""
        r = self.runner_id
        publish = {
            f"hub.runner.{r}",
            f"runners.{r}.api",
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
            subscribe |= {f"projects.{p}.>", f"events.project.{p}.>", f"hub.project.{p}"}
        return Rights(frozenset(publish), frozenset(subscribe))


# ---- what the server lets a client do

_REFUSED = re.compile(r'Permissions Violation for (Publish|Subscription) to "([^"]+)"')


def allowed(client: RawClient, tried: Rights) -> Rights:
    """Which of these subjects the server lets a connection use. Raises :class:`ClosedError` when it is cut."""
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


class World:
    """The people, projects and runner of one sequence, and the steps that may happen to them."""

    def __init__(self, site: Site, admin: Connection, runner: Connection, seed: int) -> None:
        self.site = site
        self.random = random.Random(seed)
        self._doors = random.Random(seed)
        """Which hub is asked; on its own, since it may be asked more than once, and the steps stay the same."""
        self.model = Model(site.runner_id)
        self.dead: list[Principal] = []
        self.live: list[Principal] = []
        self.history: list[str] = []
        self._admin = admin
        self._runner = runner
        self._down: str | None = None
        self._left: list[str] = []

    async def begin(self) -> None:
        """Three people, and the runner."""
        self.live.append(self._tcp("runner", lambda: self.site.runner_creds, self.model.runner))
        for _ in range(3):
            await self._add()
        for account_id in [*self.model.people, *list(self.model.people)[:2]]:
            await self._sign_in(account_id)
        await self._create(next(iter(self.model.people)))

    async def step(self) -> None:
        """Something that is possible now; each kind comes up before one comes up twice."""
        while True:
            if not self._left:
                self._left = [name.removeprefix("do_") for name in dir(self) if name.startswith("do_")]
                self.random.shuffle(self._left)
            for name in self._left:
                action: Callable[[], Awaitable[str] | None] = getattr(self, f"do_{name}")
                if (doing := action()) is not None:
                    self._left.remove(name)
                    self.history.append(name)
                    break
            else:
                self._left = []
                continue
            break
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
            await eventually(all_right, "everybody has the rights of the model", PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{wrong}\nafter {' → '.join(self.history)}\n{error}") from None

    def still(self) -> None:
        """Nobody who was denied something has got it back behind our back."""
        tried = self.model.everything()
        for principal in [*self.live, *self.dead]:
            expected = principal.rights() or Rights()
            for now in principal.allowed(tried):
                extra = (now.publish - expected.publish) | (now.subscribe - expected.subscribe)
                assert not extra, f"{principal.name} has {extra} again, after {' → '.join(self.history)}"

    # ---- steps: None when there is nobody it could happen to

    def do_sign_in(self) -> Awaitable[str] | None:
        if len(self.model.sessions) >= 6:
            return None
        people = [a for a, person in self.model.people.items() if not person.disabled]
        return self._sign_in(self.random.choice(people)) if people else None

    do_sign_in_again = do_sign_in_once_more = do_sign_in

    def do_sign_out(self) -> Awaitable[str] | None:
        if len(self.model.sessions) < 2:
            return None
        return self._sign_out(self.random.choice(list(self.model.sessions)))

    def do_end_session(self) -> Awaitable[str] | None:
        """Somebody ends another of their sessions."""
        pairs = [(c, d) for c, a in self.model.sessions.items() for d in self._sessions_of(a) if c != d]
        return self._end_session(*self.random.choice(pairs)) if pairs else None

    def do_end_other_sessions(self) -> Awaitable[str] | None:
        return self._end_other_sessions(self.random.choice(list(self.model.sessions))) if self.model.sessions else None

    def do_sign_out_everywhere(self) -> Awaitable[str] | None:
        return self._sign_out_everywhere(self._somebody()) if len(self.model.sessions) > 2 else None

    def do_remove_account(self) -> Awaitable[str] | None:
        return self._remove(*self.random.sample(list(self.model.people), 2))

    def do_revoke_runner(self) -> Awaitable[str] | None:
        return None if self.model.revoked else self._revoke_runner()

    def do_allow_runner(self) -> Awaitable[str] | None:
        return self._allow_runner() if self.model.revoked else None

    def do_create(self) -> Awaitable[str] | None:
        return self._create(self._somebody()) if len(self.model.projects) < 4 else None

    def do_share(self) -> Awaitable[str] | None:
        pairs = [(p, a) for p in self.model.projects.values() for a in self.model.people if a not in p.members]
        return self._share(*self.random.choice(pairs)) if pairs else None

    do_share_again = do_share

    def do_unshare(self) -> Awaitable[str] | None:
        pairs = [(p, a) for p in self.model.projects.values() for a in p.members if a != p.owner]
        return self._unshare(*self.random.choice(pairs)) if pairs else None

    do_unshare_again = do_unshare

    def do_share_or_unshare_amid_a_kill(self) -> Awaitable[str] | None:
        shareable = [(p, a) for p in self.model.projects.values() for a in self.model.people if a != p.owner]
        pairs = [(p, a) for p, a in shareable if self._sessions_of(p.owner)]
        return self._amid_a_kill(*self.random.choice(pairs)) if pairs and self._down is None else None

    def do_disable(self) -> Awaitable[str] | None:
        people = [a for a, person in self.model.people.items() if not person.disabled]
        return self._disable(self._somebody()) if len(people) > 1 and self.model.sessions else None

    def do_enable(self) -> Awaitable[str] | None:
        people = [a for a, person in self.model.people.items() if person.disabled]
        return self._enable(self.random.choice(people)) if people else None

    def do_change_password(self) -> Awaitable[str] | None:
        more_than_one = [c for c, account in self.model.sessions.items() if len(self._sessions_of(account)) > 1]
        cookies = more_than_one or list(self.model.sessions)
        return self._change_password(self.random.choice(cookies)) if cookies else None

    def do_set_password(self) -> Awaitable[str] | None:
        return self._set_password(self._somebody())

    def do_start(self) -> Awaitable[str] | None:
        stopped = [p for p in self.model.projects.values() if not p.running and not self.model.revoked]
        return self._start(self.random.choice(stopped)) if stopped else None

    def do_stop(self) -> Awaitable[str] | None:
        running = [p for p in self.model.projects.values() if p.running and not self.model.revoked]
        return self._stop(self.random.choice(running)) if running else None

    def do_rotate_project(self) -> Awaitable[str] | None:
        running = [p for p in self.model.projects.values() if p.running and not self.model.revoked]
        return self._new_key(self.random.choice(running).project_id) if running else None

    def do_delete(self) -> Awaitable[str] | None:
        if len(self.model.projects) < 2 or self.model.revoked:
            return None
        return self._delete(self.random.choice(list(self.model.projects.values())))

    def do_kill_hub(self) -> Awaitable[str] | None:
        return self._kill_hub(self.random.choice(sorted(self.site.hubs))) if self._down is None else None

    def do_start_hub(self) -> Awaitable[str] | None:
        return self._start_hub(self._down) if self._down is not None else None

    def do_restart_server(self) -> Awaitable[str] | None:
        return self._restart_server()

    # ---- how they are done

    async def _sign_in(self, account_id: str) -> str:
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

    async def _sign_out(self, cookie: str) -> str:
        answer = await self.site.http(self._hub(), "POST", "/api/sign-out", cookie=cookie)
        assert answer.status_code == 204, answer.text
        return self._end([cookie])

    async def _add(self) -> None:
        email = f"{uuid.uuid4()}@example.org"
        made = await self.admin("account_add", email=email, password=PASSWORD)
        self.model.people[made["account_id"]] = Person(email, made["account_id"])

    async def _end_session(self, cookie: str, other: str) -> str:
        await self._rpc(cookie, "end_session", {"session_id": _session_of(other)})
        return self._end([other])

    async def _end_other_sessions(self, cookie: str) -> str:
        await self._rpc(cookie, "end_all_sessions", {"keep_this": True})
        return self._end([c for c in self._sessions_of(self.model.sessions[cookie]) if c != cookie])

    async def _sign_out_everywhere(self, account_id: str) -> str:
        await self.admin("account_sign_out", email=self.model.people[account_id].email)
        return self._end(self._sessions_of(account_id))

    async def _remove(self, account_id: str, heir: str) -> str:
        """An account goes, its projects to an heir; somebody new comes."""
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

    async def _revoke_runner(self) -> str:
        await self.admin("runner_revoke", name=self.site.runner_id)
        self.model.revoked = True
        return "the runner"

    async def _allow_runner(self) -> str:
        await self.admin("runner_allow", name=self.site.runner_id)
        self.model.revoked = False
        # It is refused until then, and comes back by itself.
        await eventually(self._beat, "the runner is back")
        self._bury()
        return "the runner"

    async def _beat(self) -> bool:
        """What a runner says every few seconds, and what it does about the answer."""
        with suppress(nats.errors.Error, RpcError):
            answer = await call(self._runner, f"hub.runner.{self.site.runner_id}", "heartbeat", running=[])
            for project_id in answer["need_keys"]:
                await self._new_key(project_id)
            return True
        return False

    async def _create(self, account_id: str) -> str:
        made = await self.admin("project_create", email=self.model.people[account_id].email, title="P")
        project_id = str(made["project_id"])
        self.model.projects[project_id] = Project(project_id, account_id, [account_id])
        self.model.known.add(project_id)
        return project_id[:8]

    async def _share(self, project: Project, account_id: str) -> str:
        who = {"project_id": project.project_id, "email": self.model.people[account_id].email}
        await self._as_owner(project, "share_project", "project_share", who)
        project.members.append(account_id)
        return f"{project.project_id[:8]} with {who['email'][:8]}"

    async def _unshare(self, project: Project, account_id: str) -> str:
        who = {"project_id": project.project_id, "email": self.model.people[account_id].email}
        await self._as_owner(project, "unshare_project", "project_unshare", who)
        project.members.remove(account_id)
        return f"{project.project_id[:8]} from {who['email'][:8]}"

    async def _disable(self, account_id: str) -> str:
        person = self.model.people[account_id]
        await self.admin("account_disable", email=person.email)
        person.disabled = True
        return self._end(self._sessions_of(account_id))

    async def _enable(self, account_id: str) -> str:
        person = self.model.people[account_id]
        await self.admin("account_disable", email=person.email, disabled=False)
        person.disabled = False
        return person.email[:8]

    async def _change_password(self, cookie: str) -> str:
        person = self.model.people[self.model.sessions[cookie]]
        new = f"password {self.random.random()}"
        await self._rpc(cookie, "change_password", {"current_password": person.password, "new_password": new})
        person.password = new
        return self._end([c for c in self._sessions_of(person.account_id) if c != cookie])

    async def _set_password(self, account_id: str) -> str:
        person = self.model.people[account_id]
        person.password = f"password {self.random.random()}"
        await self.admin("account_set_password", email=person.email, password=person.password)
        return self._end(self._sessions_of(account_id))

    async def _start(self, project: Project) -> str:
        await self.admin("start_project", project_id=project.project_id)
        project.running = True
        return project.project_id[:8]

    async def _stop(self, project: Project) -> str:
        await self.admin("stop_project", project_id=project.project_id)
        project.running = False
        self.model.keys.pop(project.project_id, None)
        self._bury()
        return project.project_id[:8]

    async def _delete(self, project: Project) -> str:
        await self._as_owner(project, "delete_project", "project_delete", {"project_id": project.project_id})
        del self.model.projects[project.project_id]
        self.model.keys.pop(project.project_id, None)
        self._bury()
        return project.project_id[:8]

    async def _kill_hub(self, name: str) -> str:
        self.site.kill_hub(name)
        self._down = name
        return name

    async def _amid_a_kill(self, project: Project, account_id: str) -> str:
        """Ask a hub for a change, kill it before it can have answered, and ask the other one for the same."""
        hub, cookie = self._hub(), self._sessions_of(project.owner)[0]
        what = "unshare_project" if account_id in project.members else "share_project"
        body = encode_request(what, {"project_id": project.project_id, "email": self.model.people[account_id].email})
        asked = asyncio.create_task(self.site.http(hub, "POST", "/api/rpc", body, cookie=cookie))
        await asyncio.sleep(self._doors.uniform(0, 0.05))  # it may have begun, written, or be done
        await self._kill_hub(hub)
        await asyncio.gather(asked, return_exceptions=True)
        again = await self.site.http(self._hub(), "POST", "/api/rpc", body, cookie=cookie)
        with suppress(RpcError):  # nothing is left to unshare
            decode_response(again.content)
        if what == "share_project":
            project.members.append(account_id)
        else:
            project.members.remove(account_id)
            # The hub that refused the key may have died before it had the runner make another.
            if not self.model.revoked:
                await eventually(self._beat, "the runner was told whose key is missing")
        return f"{what} {project.project_id[:8]} {account_id[:8]}, {hub}"

    async def _start_hub(self, name: str) -> str:
        self.site.start_hub(name)
        await self.site.healthy(name)
        self._down = None
        return name

    async def _restart_server(self) -> str:
        await asyncio.to_thread(self.site.stop_server)
        await asyncio.to_thread(self.site.start_server)
        for name in self.site.hubs:
            if name != self._down:
                await self.site.healthy(name)
        return "nats-server"

    async def on_runner_request(self, message: Any) -> None:
        """The runner that starts no process: what it is told, it says has happened."""
        request = json.loads(message.data)
        project_id = request["params"]["project_id"]
        if request["method"] in ("start_project", "rotate_project_keys"):
            await self._new_key(project_id)
        if request["method"] == "start_project":
            mine = f"hub.runner.{self.site.runner_id}"
            await call(self._runner, mine, "project_state", project_id=project_id, state="running")
        await message.respond(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {}}).encode())

    async def _new_key(self, project_id: str) -> str:
        """What a runner does at each start of an agent: a new key, and the hub's JWT for it; the old one is void."""
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
        """A request that goes to a hub that has just been killed is lost; everything asked here may be asked twice."""
        for _ in range(5):
            try:
                return await ask()
            except (nats.errors.Error, RpcError) as error:
                if isinstance(error, RpcError) and error.kind != "unavailable":
                    raise
                await asyncio.sleep(0.05)
        raise AssertionError("no hub answers")

    async def _as_owner(self, project: Project, method: str, admin_method: str, params: dict[str, Any]) -> None:
        """By its owner, through a hub of their choice, or by an administrator."""
        cookies = self._sessions_of(project.owner)
        if cookies and self.random.random() < 0.7:
            await self._rpc(self.random.choice(cookies), method, params)
        else:
            await self.admin(admin_method, **params)

    async def _rpc(self, cookie: str, method: str, params: dict[str, Any]) -> Any:
        answer = await self.site.http(self._hub(), "POST", "/api/rpc", encode_request(method, params), cookie=cookie)
        assert answer.status_code == 200, answer.text
        return decode_response(answer.content)

    def _hub(self) -> str:
        return self._doors.choice([name for name in sorted(self.site.hubs) if name != self._down])

    def _somebody(self) -> str:
        """Rather one who is signed in."""
        return self.random.choice(list(self.model.sessions.values()) or list(self.model.people))

    def _sessions_of(self, account_id: str) -> list[str]:
        return [cookie for cookie, holder in self.model.sessions.items() if holder == account_id]

    def _end(self, cookies: list[str]) -> str:
        for cookie in cookies:
            del self.model.sessions[cookie]
        self._bury()
        return f"{len(cookies)} sessions"

    def _bury(self) -> None:
        """Those who lost all their rights for good are still tried, the last ones again and again."""
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
        """What a principal may do and should not, or the other way round; empty when all is as it should be."""
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
    """The session that a cookie names."""
    body = cookie.split(".")[1]
    tags = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["nats"]["tags"]
    return str(next(tag for tag in tags if tag.startswith("session:")).partition(":")[2])


def seeds() -> list[int]:
    first, _, last = os.environ.get("NATSKIT_RIGHTS_SEEDS", SEEDS).partition(":")
    return list(range(int(first), int(last or first) + 1))


@pytest.mark.parametrize("seed", seeds())
async def test_everybody_has_the_rights_of_the_model(site: Site, seed: int) -> None:
    admin, runner = await site.admin(), await site.runner()
    world = World(site, admin, runner, seed)
    await call(runner, f"hub.runner.{site.runner_id}", "register", version="1")
    subscription = await runner.subscribe(f"runners.{site.runner_id}.api", cb=world.on_runner_request)
    began = time.monotonic()
    try:
        await world.begin()
        await world.check()
        for _ in range(int(os.environ.get("NATSKIT_RIGHTS_STEPS", STEPS))):
            world.still()
            await world.step()
            await world.check()
        world.still()
    finally:
        if world._down:
            site.start_hub(world._down)
            await site.healthy(world._down)
        await call(admin, "hub.admin", "runner_allow", name=site.runner_id)
        await subscription.unsubscribe()
        print(f"seed {seed}, {time.monotonic() - began:.1f} s: {' → '.join(world.history)}")
