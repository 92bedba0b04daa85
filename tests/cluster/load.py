"""A load on a platform, and what became of it: nothing is counted that was not seen by a client.

Everybody works at a modest, steady pace, so that a gap is an outage and not a queue:

- writers put numbered values into a replicated stream, each value once (compare-and-set on its subject), through all
  nats-servers; a write that is not acknowledged is tried again until it is; in the end all is read back;
- signed-in browsers ask a hub through the proxy; a request that fails is tried once more;
- one browser only listens, to ticks that are published at each nats-server;
- a command in a project prints numbers, and its output must be whole.

``with running(target) as load`` starts it in a thread; ``load.seen(since)`` tells what happened since then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import nats.errors

from natskit import rpc
from natskit.bus.connection import Connection, Status, connect
from natskit.bus.permissions import Permissions
from natskit.bus.request import request
from natskit.bus.servers import NatsServers
from natskit.client import Client
from natskit.errors import NatskitError
from natskit.identity import claims, nkey
from natskit.identity.identity import Identity
from natskit.process.lifecycle import cancel
from tests.kit.wait import eventually, wait_for

STREAM = "load"
WRITERS, WRITES_A_SECOND = 6, 20
BROWSERS, REQUESTS_A_SECOND = 3, 10
TICKS_A_SECOND = 10
WRITE_SECONDS = 2.0
FIRST_SECONDS, RETRY_SECONDS = 3.0, 10.0
PATIENCE = 60.0
"""Seconds a write is tried again, and the longest that anything is waited for."""
_WRONG_SEQUENCE = 10071


@dataclass(frozen=True)
class Target:
    """The platform under load: ``info`` is ``platform.json``. The project runs and belongs to the account."""

    info: dict[str, Any]
    email: str
    password: str
    project_id: str


@dataclass(frozen=True)
class Attempt:
    """One write or request, from its first attempt to its end."""

    kind: str
    client: str
    started: float
    ended: float
    failed_first: bool
    failed: bool
    reason: str = ""


@dataclass
class Seen:
    """The clients' observations in a period."""

    seconds: float
    attempts: list[Attempt]
    silence: float
    """The longest time without a tick, in seconds."""
    reconnects: int
    output: str
    """Of the project's command: ``whole``, or how it ended."""

    def count(self, kind: str) -> int:
        return sum(a.kind == kind for a in self.attempts)

    def failed_first(self, kind: str) -> int:
        return sum(a.kind == kind and a.failed_first for a in self.attempts)

    def failed(self, kind: str) -> int:
        return sum(a.kind == kind and a.failed for a in self.attempts)

    def gap(self, kind: str) -> float:
        """The longest time without a success for any single client, in seconds."""
        ends: dict[str, list[float]] = {}
        for attempt in self.attempts:
            if attempt.kind == kind and not attempt.failed:
                ends.setdefault(attempt.client, []).append(attempt.ended)
        return max((b - a for each in ends.values() for a, b in pairwise(sorted(each))), default=self.seconds)

    def reasons(self) -> dict[str, int]:
        """The errors of failed first attempts."""
        return dict(Counter(f"{a.kind}: {a.reason}" for a in self.attempts if a.failed_first))


@dataclass(frozen=True)
class Written:
    """The totals of the writers."""

    acknowledged: int
    found: int
    lost: list[str]


@dataclass
class Load:
    """A running load. Times are those of ``time.monotonic``."""

    target: Target
    attempts: list[Attempt] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    ends: list[tuple[float, str]] = field(default_factory=list)
    """How runs of the project's command ended; it is started again."""
    acknowledged: set[str] = field(default_factory=set)
    written: Written | None = None
    """Known when the load has ended."""
    _stopping: bool = False
    _ready: threading.Event = field(default_factory=threading.Event)
    _error: BaseException | None = None

    def seen(self, since: float, until: float | None = None) -> Seen:
        """The observations between two moments. An attempt counts when it ended."""
        until = time.monotonic() if until is None else until
        ticks = [since, *(t for t in list(self.ticks) if since <= t <= until), until]
        return Seen(
            until - since,
            [a for a in list(self.attempts) if since <= a.ended <= until],
            max(b - a for a, b in pairwise(ticks)),
            sum(since <= t <= until for t in list(self.returns)),
            "; ".join(how for t, how in list(self.ends) if since <= t <= until) or "whole",
        )

    def go_on(self, attempts: int = 60) -> None:
        """Wait until this many more writes and requests have ended, so that later effects are seen, too."""
        began = time.monotonic()
        wait_for(
            lambda: all(self.seen(began).count(kind) >= attempts for kind in ("write", "request")),
            f"{attempts} more writes and requests to end",
            PATIENCE,
        )

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _run(self) -> None:
        target = self.target
        async with contextlib.AsyncExitStack() as stack:
            administrator = await stack.enter_async_context(_open(_connection(target, 0, "STATE")))
            await _make_stream(administrator)
            writers = [await stack.enter_async_context(_open(_connection(target, n, "STATE"))) for n in range(WRITERS)]
            tickers = [
                await stack.enter_async_context(_open(_connection(target, n, "PLATFORM")))
                for n in range(_servers(target))
            ]
            browsers = [await stack.enter_async_context(await _sign_in(target)) for _ in range(BROWSERS)]
            listener = await stack.enter_async_context(await _sign_in(target))
            listener.on_status(self._on_status)
            await listener.subscribe(f"events.account.{listener.account_id}.load", self._on_tick)
            output = asyncio.create_task(self._follow(listener))
            work = [
                *(self._write(f"writer-{n}", connection) for n, connection in enumerate(writers)),
                *(self._ask(f"browser-{n}", browser) for n, browser in enumerate(browsers)),
                *(self._tick(ticker, str(listener.account_id)) for ticker in tickers),
            ]
            self._ready.set()
            await asyncio.gather(*work)
            await cancel([output])
            found = await _read_back(administrator)
            self.written = Written(len(self.acknowledged), len(found), sorted(self.acknowledged - found))
            await administrator.request(f"$JS.API.STREAM.DELETE.{STREAM}", b"", timeout=PATIENCE)

    async def _write(self, name: str, connection: Connection) -> None:
        number = 0
        async for _ in self._paced(WRITES_A_SECOND):
            key = f"{STREAM}.{name}.{number}"
            started, reason, done = time.monotonic(), "", False
            while not done and time.monotonic() - started < PATIENCE:
                try:
                    done = await _written(connection, key, again=bool(reason))
                except nats.errors.Error as error:
                    reason = reason or _short(error)
                    await asyncio.sleep(0.05)
            if done:
                self.acknowledged.add(key)
            self._note("write", name, started, reason, failed=not done)
            number += 1

    async def _ask(self, name: str, browser: Client) -> None:
        methods = ("list_projects", "whoami")
        number = 0
        async for _ in self._paced(REQUESTS_A_SECOND):
            subject, body = f"hub.api.{browser.account_id}", rpc.encode_request(methods[number % 2], {})
            started, reason, failed = time.monotonic(), "", False
            try:
                rpc.decode_response(await request(browser.connection, subject, body, FIRST_SECONDS))
            except (NatskitError, rpc.RpcError) as error:
                reason = _short(error)
                try:
                    rpc.decode_response(await request(browser.connection, subject, body, RETRY_SECONDS))
                except (NatskitError, rpc.RpcError) as again:
                    reason, failed = f"{reason}; then {_short(again)}", True
            self._note("request", name, started, reason, failed=failed)
            number += 1

    async def _tick(self, connection: Connection, account_id: str) -> None:
        async for _ in self._paced(TICKS_A_SECOND):
            if connection.is_connected:  # what is kept for later is no tick
                with contextlib.suppress(nats.errors.Error):
                    await connection.publish(f"events.account.{account_id}.load", b"")
                    await connection.flush(2)

    async def _follow(self, client: Client) -> None:
        while True:
            lines: list[int] = []
            how = await self._output(client, lines)
            if lines != list(range(len(lines))):
                how = f"{len(lines)} lines, not whole"
            if lines:
                self.ends.append((time.monotonic(), how))
            await asyncio.sleep(1)

    async def _output(self, client: Client, lines: list[int]) -> str:
        """Follow a command that never ends by itself. Reports how its output ended."""
        command, rest = "i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done", b""
        try:
            async with client.exec(self.target.project_id, command=command) as run:
                async for _, data in run:
                    *whole, rest = (rest + data).split(b"\n")
                    for number in map(int, whole):
                        if number != len(lines):
                            return f"line {number} came after {len(lines)} lines"
                        lines.append(number)
        except (NatskitError, rpc.RpcError) as error:
            return _short(error)
        return f"exit code {run.exit_code}, signal {run.signal}"

    async def _on_tick(self, _message: Any) -> None:
        self.ticks.append(time.monotonic())

    def _on_status(self, status: Status, _reason: str) -> None:
        if status == "connected":
            self.returns.append(time.monotonic())

    def _note(self, kind: str, client: str, started: float, reason: str, *, failed: bool) -> None:
        self.attempts.append(Attempt(kind, client, started, time.monotonic(), bool(reason), failed, reason))

    async def _paced(self, a_second: int) -> Any:
        while not self._stopping:
            turn = time.monotonic() + 1 / a_second
            yield
            await asyncio.sleep(max(0.0, turn - time.monotonic()))


@contextlib.contextmanager
def running(target: Target) -> Iterator[Load]:
    """Run a load during the block. ``written`` is known after it."""
    load = Load(target)
    thread = threading.Thread(target=load.run, name="load", daemon=True)
    thread.start()
    try:
        load._ready.wait(PATIENCE)
        if load._error is not None:
            raise load._error
        yield load
    finally:
        load._stopping = True
        thread.join(3 * PATIENCE)
    if load._error is not None:
        raise load._error
    assert load.written is not None, "the load did not end"


def table(rows: Iterable[tuple[str, Seen, Written | None]]) -> str:
    """The counters, a line for each period."""
    lines = [
        "| | writes acknowledged | found | lost | longest gap | requests | failed first | after retry | longest gap "
        "| silence of a browser | its reconnects | output |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, seen, written in rows:
        found = (f"{written.acknowledged}", f"{written.found}", f"{len(written.lost)}") if written else ("", "", "")
        acknowledged = found[0] or str(seen.count("write") - seen.failed("write"))
        lines.append(
            f"| {name} | {acknowledged} | {found[1]} | {found[2]} | {seen.gap('write'):.1f} s "
            f"| {seen.count('request')} | {seen.failed_first('request')} | {seen.failed('request')} "
            f"| {seen.gap('request'):.1f} s | {seen.silence:.1f} s | {seen.reconnects} | {seen.output} |"
        )
    return "\n".join(lines)


def user_creds(info: dict[str, Any], name: str) -> str:
    """Creds of a user with all rights in a NATS account, signed by that itself. natskit makes no such user."""
    identity = Identity.load(Path(info["identity"]))
    account = identity.account_public_key(name)
    seed = nkey.create_seed("user")
    everything = Permissions(publish=(">",), subscribe=(">",))
    wanted = claims.user_claims(
        subject=nkey.public_key(seed), name="load", issuer_account=account, permissions=everything, issued_at=1
    )
    # nats-server looks for a signing key when the account is named beside the issuer.
    del wanted["nats"]["issuer_account"]
    return claims.format_creds(claims.encode(wanted, nkey.key_pair(identity._seeds[account])), seed)


def _creds_file(info: dict[str, Any], account: str) -> Path:
    path = Path(info["identity"]).parent / f"load-{account}.creds"
    if not path.exists():
        path.touch(0o600)
        path.write_text(user_creds(info, account))
    return path


def _servers(target: Target) -> int:
    return len(target.info["nats_urls"])


async def _connection(target: Target, number: int, account: str) -> Connection:
    """A connection to a NATS account. It starts at the server with this number, and may move to any other."""
    urls = target.info["nats_urls"]
    first = number % len(urls)
    servers = NatsServers(urls=urls[first:] + urls[:first], ca_file=Path(target.info["nats_ca_file"]))
    return await connect(
        servers, name="load", inbox_prefix="_INBOX.load", creds=_creds_file(target.info, account), timeout=PATIENCE
    )


@contextlib.asynccontextmanager
async def _open(connecting: Any) -> Any:
    connection = await connecting
    try:
        yield connection
    finally:
        await connection.close()


async def _sign_in(target: Target) -> Client:
    return await Client.sign_in(target.info["url"], target.email, target.password, ca_file=Path(target.info["ca_file"]))


async def _make_stream(connection: Connection) -> None:
    await connection.request(f"$JS.API.STREAM.DELETE.{STREAM}", b"", timeout=10)
    wanted = {
        "name": STREAM,
        "subjects": [f"{STREAM}.>"],
        "num_replicas": 3,
        "storage": "file",
        "max_msgs_per_subject": 1,
        "allow_direct": True,
    }

    async def made() -> bool:
        answer = await connection.request(f"$JS.API.STREAM.CREATE.{STREAM}", json.dumps(wanted).encode(), timeout=10)
        created = json.loads(answer.data)
        assert "error" not in created, created
        return True

    await eventually(made, f"the stream {STREAM}")  # servers that were just restarted may still elect a leader


async def _written(connection: Connection, key: str, *, again: bool) -> bool:
    """Whether a value is acknowledged. A second attempt may find it stored, when only the acknowledgement was lost."""
    headers = {"Nats-Expected-Last-Subject-Sequence": "0"}
    answer = json.loads((await connection.request(key, key.encode(), timeout=WRITE_SECONDS, headers=headers)).data)
    error = answer.get("error")
    if error is None:
        return True
    if again and error.get("err_code") == _WRONG_SEQUENCE:
        return True
    raise nats.errors.Error(error.get("description", "refused"))


async def _read_back(connection: Connection) -> set[str]:
    """The keys in the stream whose values are those that were written."""
    found: set[str] = set()
    stream: Any = connection.jetstream()
    subscription = await stream.subscribe(f"{STREAM}.>", ordered_consumer=True)
    info = await stream.stream_info(STREAM)
    for _ in range(info.state.messages):
        message = await subscription.next_msg(timeout=30)
        if message.data.decode() == message.subject:
            found.add(message.subject)
    await subscription.unsubscribe()
    return found


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]
