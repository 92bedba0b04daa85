"""Event to effect: how long after a request to the hub was sent a live connection has the right, or has lost it.

Each trial has a raw connection that tries its subject every two milliseconds, and an API request to one of two hubs.
Several trials happen at the same moment, each of other accounts. In every fifth round the other hub, which had
authorised about half of the connections, is killed right before.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.live import Live
from bench.stage import Row, Stage, percentiles
from bench.wire import Target
from natskit.bus.connection import Connection, connect
from natskit.bus.permissions import inbox_prefix
from natskit.bus.servers import NatsServers
from natskit.identity import nkey
from natskit.ops.orphans import command_of
from natskit.ops.supervisor import processes, socket_of
from natskit.rpc import decode_response, encode_request
from tests.kit.wait import eventually, wait_for

PASSWORD = "correct horse battery staple"  # noqa: S105
TRIALS_EACH = 40
"""Trials of an event for each round of ``make bench``: five make 200."""
KILL_EVERY = 5
PATIENCE = 20.0
"""Seconds after which the whole measurement fails: no event may take that long."""


@dataclass
class Times:
    """Of one event, in seconds: since the request was sent, and since it was answered (less than 0: before that)."""

    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    killed: list[float] = field(default_factory=list)
    """Those of ``sent`` where a hub had just been killed."""
    back: int = 0
    """How often a new connection had the lost right again."""


@dataclass
class Pair:
    """Somebody with a project, and somebody else, whose connection is ``live``."""

    owner_cookie: str
    email: str
    account_id: str
    cookie: str
    live: Live
    project_id: str = ""
    other_cookie: str = ""
    runner: str = ""

    @property
    def in_project(self) -> str:
        return f"projects.{self.project_id}.x"

    @property
    def own(self) -> str:
        return f"hub.api.{self.account_id}"


class Platform:
    """Both hubs over HTTP, the administrator and the runner over NATS, and how to kill a hub."""

    def __init__(self, stage: Stage, admin: Connection, runner: Connection, hubs: list[httpx.AsyncClient]) -> None:
        self._stage = stage
        self._admin, self._runner, self.hubs = admin, runner, hubs
        self._nats_url = str(stage.site.info["nats_urls"][0])
        self.runner_id = stage.world.names["r"]

    async def pair(self) -> Pair:
        """Two new accounts, signed in."""
        emails = [f"{uuid.uuid4()}@example.org" for _ in range(2)]
        for email in emails:
            await self.admin("account_add", email=email, password=PASSWORD)
        (_, owner), (account_id, cookie) = [await self.sign_in(email) for email in emails]
        return Pair(owner, emails[1], account_id, cookie, Live(self._browser(cookie)))

    async def sign_in(self, email: str) -> tuple[str, str]:
        """The account's id and the cookie."""
        while True:  # the other hub may not have heard of a change yet, and many sign in at once
            answer = await self.hubs[hash(email) % 2].post("/api/sign-in", json={"email": email, "password": PASSWORD})
            if answer.status_code == 200:
                return str(answer.json()["account_id"]), str(answer.headers["set-cookie"].split(";")[0])
            await asyncio.sleep(0.05)

    async def connect(self, pair: Pair) -> None:
        await pair.live.close()
        pair.live = Live(self._browser(pair.cookie))
        await pair.live.until_granted(pair.own)

    async def post(self, hub: int, path: str, cookie: str, body: bytes = b"") -> httpx.Response:
        answer = await self.hubs[hub].post(path, content=body, headers={"Cookie": cookie})
        assert answer.is_success, answer.text
        return answer

    async def rpc(self, hub: int, cookie: str, method: str, **params: Any) -> Any:
        return decode_response((await self.post(hub, "/api/rpc", cookie, encode_request(method, params))).content)

    async def admin(self, method: str, **params: Any) -> Any:
        answer = await self._admin.request("hub.admin", encode_request(method, params), timeout=PATIENCE)
        return decode_response(answer.data)

    async def new_agent(self, project_id: str) -> Live:
        """A connection with creds like those a runner gets for each start of a project's agent; older ones are void."""
        seed = nkey.create_seed("user")
        params = {"project_id": project_id, "public_key": nkey.public_key(seed)}
        subject = f"hub.runner.{self.runner_id}"
        answer = await self._runner.request(subject, encode_request("project_credentials", params), timeout=PATIENCE)
        jwt = decode_response(answer.data)["jwt"]
        creds = (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
        return Live(Target(self._nats_url, creds=creds))

    def as_runner(self) -> Live:
        """A connection with the creds of the platform's runner."""
        return Live(Target(self._nats_url, creds=self._stage.site.read("runner", "runner.creds")))

    async def kill(self, hub: int) -> None:
        """Kill a hub; returns when it is dead, 20 ms after its connections were closed."""
        socket = socket_of(self._stage.site.root)
        (pid,) = [process.pid for process in processes(socket) if process.name == f"hub-{hub + 1}"]
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(wait_for, lambda: not command_of(pid), "the end of a killed hub")
        await asyncio.sleep(0.02)

    async def well(self) -> None:
        """Wait until both hubs are."""
        for hub in self.hubs:
            await eventually(lambda hub=hub: _is_well(hub), "both hubs are well", 60)  # type: ignore[misc]

    def _browser(self, cookie: str) -> Target:
        url = f"ws://127.0.0.1:{self._stage.site.data['nats_websocket_port']}/"
        return Target(url, cookie=cookie, origin=self._stage.site.url)


async def _is_well(hub: httpx.AsyncClient) -> bool:
    try:
        return (await hub.get("/healthz")).status_code == 200
    except httpx.HTTPError:
        return False


@contextlib.asynccontextmanager
async def opened(stage: Stage) -> AsyncIterator[Platform]:
    """The platform's API, as all who use it."""
    site, runner = stage.site, stage.world.names["r"]
    servers = NatsServers(urls=site.info["nats_urls"])
    admin = await connect(
        servers, name="bench", inbox_prefix=inbox_prefix("admin"), creds=Path(site.info["creds"]["platform_admin"])
    )
    as_runner = await connect(
        servers,
        name="bench",
        inbox_prefix=inbox_prefix("runner", runner),
        creds=site.root / "runner" / "runner.creds",
    )
    port = int(site.data["hub_port"])
    # A connection of its own for each request: one that a killed hub has left would make it fail.
    limits = httpx.Limits(max_keepalive_connections=0)
    hubs = [
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port + n}", headers={"Origin": site.url}, limits=limits, timeout=PATIENCE
        )
        for n in range(2)
    ]
    try:
        yield Platform(stage, admin, as_runner, hubs)
    finally:
        for hub in hubs:
            await hub.aclose()
        await admin.close()
        await as_runner.close()


# ---- the events


async def share(p: Platform, pair: Pair, hub: int) -> None:
    await p.rpc(hub, pair.owner_cookie, "share_project", project_id=pair.project_id, email=pair.email)


async def unshare(p: Platform, pair: Pair, hub: int) -> None:
    await p.rpc(hub, pair.owner_cookie, "unshare_project", project_id=pair.project_id, email=pair.email)


async def delete(p: Platform, pair: Pair, hub: int) -> None:
    await p.rpc(hub, pair.owner_cookie, "delete_project", project_id=pair.project_id)


async def sign_out(p: Platform, pair: Pair, hub: int) -> None:
    await p.post(hub, "/api/sign-out", pair.cookie)


async def disable(p: Platform, pair: Pair, _: int) -> None:
    await p.admin("account_disable", email=pair.email)


async def change_password(p: Platform, pair: Pair, hub: int) -> None:
    passwords = {"current_password": PASSWORD, "new_password": PASSWORD}
    await p.rpc(hub, pair.other_cookie, "change_password", **passwords)


async def new_credentials(p: Platform, pair: Pair, _: int) -> None:
    await p.new_agent(pair.project_id)


async def end_session(p: Platform, pair: Pair, hub: int) -> None:
    body = pair.cookie.split(".")[1]
    tags = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["nats"]["tags"]
    (session_id,) = [tag.partition(":")[2] for tag in tags if tag.startswith("session:")]
    await p.rpc(hub, pair.other_cookie, "end_session", session_id=session_id)


async def revoke_runner(p: Platform, _: Pair, __: int) -> None:
    await p.admin("runner_revoke", name=p.runner_id)


async def with_project(p: Platform, pair: Pair) -> None:
    """A new one each time: how often one may be shared with the same person is limited."""
    pair.project_id = (await p.rpc(0, pair.owner_cookie, "create_project", title="P"))["project_id"]
    await p.connect(pair)


async def with_share(p: Platform, pair: Pair) -> None:
    await with_project(p, pair)
    await share(p, pair, 0)
    await pair.live.until_granted(pair.in_project)


async def signed_in(p: Platform, pair: Pair) -> None:
    _, pair.cookie = await p.sign_in(pair.email)
    await p.connect(pair)


async def enabled(p: Platform, pair: Pair) -> None:
    await p.admin("account_disable", email=pair.email, disabled=False)
    await signed_in(p, pair)


async def signed_in_twice(p: Platform, pair: Pair) -> None:
    if not pair.other_cookie:
        _, pair.other_cookie = await p.sign_in(pair.email)
    await signed_in(p, pair)


async def with_agent(p: Platform, pair: Pair) -> None:
    if not pair.project_id:
        pair.project_id = (await p.rpc(0, pair.owner_cookie, "create_project", title="P"))["project_id"]
        await p.admin("start_project", project_id=pair.project_id)
    await pair.live.close()
    pair.live = await p.new_agent(pair.project_id)
    await pair.live.until_granted(f"hub.project.{pair.project_id}")


async def allowed_runner(p: Platform, pair: Pair) -> None:
    await p.admin("runner_allow", name=p.runner_id)
    await pair.live.close()
    pair.live, pair.runner = p.as_runner(), f"hub.runner.{p.runner_id}"
    await pair.live.until_granted(pair.runner)


@dataclass(frozen=True)
class Event:
    """What is measured: ``before`` each trial brings about the state that ``act`` changes for ``subject``."""

    what: str
    before: Callable[[Platform, Pair], Awaitable[None]]
    act: Callable[[Platform, Pair, int], Awaitable[None]]
    subject: Callable[[Pair], str] = lambda pair: pair.own
    grants: bool = False
    at_once: int = 10
    from_answer: bool = False
    """Whether the aim counts from the answer: the request takes long before it changes anything."""
    method: str = "the person's WebSocket tries to publish to their `hub.api`"


IN_PROJECT = "the collaborator's WebSocket tries to publish to the project"
EVENTS = (
    Event("share a project", with_project, share, lambda p: p.in_project, grants=True, method=IN_PROJECT),
    Event("unshare it", with_share, unshare, lambda p: p.in_project, method=IN_PROJECT),
    Event("delete it", with_share, delete, lambda p: p.in_project, method=IN_PROJECT),
    Event("sign out", signed_in, sign_out),
    Event("end another of one's sessions", signed_in_twice, end_session),
    Event("disable an account", enabled, disable),
    Event(
        "change the password: another session",
        signed_in_twice,
        change_password,
        at_once=2,
        from_answer=True,
        method="as before; the request takes the time of two argon2 hashes before anything changes, so the aim counts "
        "from its answer",
    ),
    Event(
        "new credentials for a project: the old ones",
        with_agent,
        new_credentials,
        lambda p: f"hub.project.{p.project_id}",
        at_once=2,
        method="a TCP connection with the old credentials tries to publish to `hub.project`; asked for by the runner",
    ),
    Event(
        "revoke a runner",
        allowed_runner,
        revoke_runner,
        lambda p: p.runner,
        at_once=1,
        method="a TCP connection with the runner's credentials tries to publish to `hub.runner`",
    ),
)


# ---- measuring


def rows(stage: Stage) -> Iterator[Row]:
    for event in EVENTS:
        yield asyncio.run(_row(stage, event))


async def _row(stage: Stage, event: Event) -> Row:
    times = Times()
    async with opened(stage) as platform:
        pairs = [await platform.pair() for _ in range(event.at_once)]
        for number in range(stage.rounds * TRIALS_EACH // event.at_once):
            await asyncio.gather(*(event.before(platform, pair) for pair in pairs))
            killed, asked = number % KILL_EVERY == KILL_EVERY - 1, number // KILL_EVERY % 2
            if killed:
                await platform.kill(1 - asked)
            before = len(times.sent)
            await asyncio.gather(*(_trial(platform, event, pair, asked, times) for pair in pairs))
            if killed:
                times.killed += times.sent[before:]
                await platform.well()
        for pair in pairs:
            await pair.live.close()
        await platform.admin("runner_allow", name=platform.runner_id)
    (p50, p99), (k50, k99) = percentiles(times.sent), percentiles(times.killed or times.sent)
    a50, a99 = percentiles(times.answered)
    longest = max(times.answered if event.from_answer else times.sent)
    measured = f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, at most {max(times.sent) * 1000:.0f} ms of {len(times.sent)}"
    measured += f"; a hub killed: {k50:.0f} and {k99:.0f} ms of {len(times.killed)}"
    measured += f"; after the answer: {a50:.0f} and {a99:.0f}, at most {max(times.answered) * 1000:.0f} ms"
    return Row(
        "9",
        f"{event.what}, until it holds for live connections",
        None,
        measured + (f"; {times.back} GOT IT BACK" if times.back else ""),
        "≤ 1 s",
        longest <= 1 and not times.back,
        f"{event.method}; from the moment the API request is sent, {event.at_once} at the same moment",
    )


async def _trial(platform: Platform, event: Event, pair: Pair, hub: int, times: Times) -> None:
    subject = event.subject(pair)
    trying = pair.live.until_granted(subject) if event.grants else pair.live.until_lost(subject)

    async def effect() -> float:
        async with asyncio.timeout(PATIENCE):
            await trying
        return time.perf_counter()

    async def answer() -> float:
        await event.act(platform, pair, hub)
        return time.perf_counter()

    effective = asyncio.create_task(effect())
    await asyncio.sleep(0.01)
    sent = time.perf_counter()
    held, answered = await asyncio.gather(effective, answer())
    times.sent.append(held - sent)
    times.answered.append(held - answered)
    if not event.grants:
        times.back += await pair.live.gets_back(subject)
