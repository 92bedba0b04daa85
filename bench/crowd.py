"""Many at once: a class that signs in, an account with as many projects as may be, everybody back after a restart."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import ssl
import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import argon2
import httpx

from bench import wire
from bench.live import Live
from bench.rights import PASSWORD, Platform, opened
from bench.stage import Row, Stage, percentiles
from bench.wire import Target
from natskit.bus.connection import LONGEST_PAUSE, connect
from natskit.bus.permissions import MAX_PROJECTS_PER_ACCOUNT, inbox_prefix
from natskit.bus.servers import NatsServers
from natskit.hub.config import PasswordSettings
from natskit.hub.state.records import Account, EmailClaim, Membership, Project, Record, email_key
from natskit.ops import supervisor
from natskit.rpc import RpcError, encode_request

CLASS = 500
STORM = 2000
PROBE_EVERY = 0.05
"""Seconds between the connects by which callouts are watched."""


def rows(stage: Stage) -> Iterator[Row]:
    yield class_signs_in(stage)
    yield from asyncio.run(many_projects(stage))
    yield back_after_a_restart(stage)


async def write(stage: Stage, bucket: str, records: dict[str, Record]) -> None:
    """Write records as a hub would, which is quicker than to ask for each of them."""
    hub = await connect(
        NatsServers(urls=stage.site.info["nats_urls"]),
        name="bench",
        inbox_prefix=inbox_prefix("hub"),
        creds=stage.site.root / "hub-1" / "auth.creds",
    )
    room = asyncio.Semaphore(200)
    stream = hub.jetstream()

    async def put(key: str, record: Record) -> None:
        async with room:
            await stream.publish(f"$KV.{bucket}.{key}", record.to_json(), timeout=30)

    try:
        await asyncio.gather(*(put(key, record) for key, record in records.items()))
    finally:
        await hub.close()


async def people(stage: Stage, count: int) -> list[str]:
    """New accounts, all with one password; their e-mails."""
    hashed = hasher().hash(PASSWORD)
    emails = [f"{uuid.uuid4()}@example.org" for _ in range(count)]
    ids = [str(uuid.uuid4()) for _ in emails]
    now = time.time()
    await write(
        stage,
        "accounts",
        {i: Account(email=e, password_hash=hashed, created_at=now) for i, e in zip(ids, emails, strict=True)}
        | {email_key(e): EmailClaim(account_id=i) for i, e in zip(ids, emails, strict=True)},
    )
    return emails


def hasher() -> argon2.PasswordHasher:
    """What a hub hashes passwords with."""
    cost = PasswordSettings()
    return argon2.PasswordHasher(time_cost=cost.time_cost, memory_cost=cost.memory_kib, parallelism=1)


# ---- a class


def class_signs_in(stage: Stage) -> Row:
    emails = asyncio.run(people(stage, CLASS))
    began = time.perf_counter()
    for _ in range(10):
        hasher().hash(PASSWORD)
    cost = (time.perf_counter() - began) / 10
    target = stage.browser(through_proxy=False)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(1) as pool:
        over = manager.Event()
        before = pool.apply(probe, (target, over, 2.0))
        probing = pool.apply_async(probe, (target, over, 300.0))
        times, turned_away = asyncio.run(_class(stage, emails))
        over.set()
        meanwhile = probing.get(30)
    (b50, b99), (m50, m99) = percentiles(before.times), percentiles(meanwhile.times)
    half, _ = percentiles(times)
    return Row(
        "10",
        f"a class of {CLASS} signs in at once, connects and asks the hub: the last one",
        None,
        f"{max(times):.1f} s (half of them {half / 1000:.1f} s); a hash costs {cost * 1000:.0f} ms, so {CLASS} take "
        f"two threads at least {CLASS * cost / 2:.0f} s; told to come back {turned_away} times; connects of others "
        f"meanwhile: p50 {m50:.0f} ms, p99 {m99:.0f} ms, {meanwhile.failed} failed of {len(meanwhile.times)} (before: "
        f"{b50:.0f} and {b99:.0f} ms)",
        f"all of {CLASS}",
        len(times) == CLASS and not meanwhile.failed,
        "all through the proxy with TLS from one process and one address, with the settings proxy_sign_in_rate and "
        "proxy_sign_in_burst raised; clients that get a 503 retry at the time that the hub names; argon2id with the "
        "defaults, one thread in each of two hubs",
    )


def probe(target: Target, over: Any, seconds: float) -> wire.Storm:
    """Connect again and again until told or the time is over: how long each took, in seconds."""
    times, failed = [], 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not over.is_set():
        started = time.perf_counter()
        try:
            client, _ = target.connect()
        except Exception:
            failed += 1
        else:
            times.append(time.perf_counter() - started)
            client.close()
        time.sleep(PROBE_EVERY)
    return wire.Storm(times, seconds, failed)


async def _class(stage: Stage, emails: list[str]) -> tuple[list[float], int]:
    """Seconds until each has the answer of a hub; and how many sign-ins were put off."""
    site, turned_away = stage.site, 0
    context = ssl.create_default_context(cafile=site.ca_file)
    limits = httpx.Limits(max_connections=len(emails))

    async def student(http: httpx.AsyncClient, email: str) -> float:
        nonlocal turned_away
        started = time.perf_counter()
        while True:
            answer = await http.post("/api/sign-in", json={"email": email, "password": PASSWORD})
            if answer.status_code != 503:
                break
            turned_away += 1
            await asyncio.sleep(int(answer.headers["retry-after"]))
        assert answer.status_code == 200, answer.text
        cookie = answer.headers["set-cookie"].split(";")[0]
        target = Target(site.websocket_url, cookie=cookie, origin=site.url, ca_file=site.ca_file)
        account = answer.json()["account_id"]
        reader, writer = await wire.handshake(target, context)
        inbox, body = f"_INBOX.account.{account}.1", encode_request("list_projects")
        request = f"SUB {inbox} 1\r\nPUB hub.api.{account} {inbox} {len(body)}\r\n".encode() + body + b"\r\n"
        writer.write(wire.frame(target, request))
        said = b""
        while b'"result"' not in said:
            data = await reader.read(65536)
            assert data, said
            said += data
        took = time.perf_counter() - started
        writer.transport.abort()
        return took

    async with httpx.AsyncClient(
        base_url=site.url, verify=context, headers={"Origin": site.url}, limits=limits, timeout=60
    ) as http:
        times = await asyncio.gather(*(student(http, email) for email in emails))
    return times, turned_away


# ---- an account with as many projects as may be


async def many_projects(stage: Stage) -> list[Row]:
    (email,) = await people(stage, 1)
    async with opened(stage) as platform:
        account_id, cookie = await platform.sign_in(email)
        now = time.time()
        ids = [str(uuid.uuid4()) for _ in range(MAX_PROJECTS_PER_ACCOUNT - 1)]
        await write(stage, "projects", {p: Project(title="P", created_at=now) for p in ids})
        await write(stage, "memberships", {f"{account_id}.{p}": Membership(role="owner", since=now) for p in ids})
        last = await platform.rpc(0, cookie, "create_project", title="the last one")
        refused = await _one_more(platform, cookie)
        sign_in, connecting = [], []
        for _ in range(4 * stage.rounds):
            started = time.perf_counter()
            _, cookie = await platform.sign_in(email)
            signed_in = time.perf_counter()
            live = Live(replace(stage.browser(through_proxy=False), cookie=cookie))
            await live.open()
            assert await live.may(f"projects.{last['project_id']}.x")
            connecting.append(time.perf_counter() - signed_in)
            sign_in.append(signed_in - started)
            await live.close()
    (s50, s99), (c50, c99) = percentiles(sign_in), percentiles(connecting)
    both = [a + b for a, b in zip(sign_in, connecting, strict=True)]
    return [
        Row(
            "10",
            f"an account with {MAX_PROJECTS_PER_ACCOUNT:,} projects signs in and connects",
            None,
            f"p50 {statistics.median(both) * 1000:.0f} ms: sign-in {s50:.0f} ms (p99 {s99:.0f}), connecting {c50:.0f} "
            f"ms (p99 {c99:.0f}); one more is refused: “{refused}”",
            "< 1 s",
            max(both) < 1,
            f"{len(both)} times, WebSocket past the proxy, until a publish to the last of the projects is taken",
        )
    ]


async def _one_more(platform: Platform, cookie: str) -> str:
    try:
        await platform.rpc(1, cookie, "create_project", title="one too many")
    except RpcError as error:
        return error.message
    raise AssertionError("a project more than the limit was made")


# ---- back after a restart


def back_after_a_restart(stage: Stage) -> Row:
    target = stage.browser(through_proxy=False)
    slowest, halves, attempts, lost = [], [], 0, 0
    for _ in range(stage.rounds):
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager, context.Pool(2) as pool:
            barrier = manager.Barrier(3)
            waiting = pool.starmap_async(come_back, [(barrier, target, STORM // 2)] * 2)
            barrier.wait(60)
            supervisor.restart(supervisor.socket_of(stage.site.root), "nats")
            results = waiting.get(120)
        times = [t for result in results for t in result[0]]
        attempts += sum(result[1] for result in results)
        lost += STORM - len(times)
        slowest.append(max(times))
        halves.append(statistics.median(times))
    return Row(
        "10",
        f"nats-server restarts with {STORM:,} browsers connected: the slowest is back",
        None,
        f"{max(slowest):.2f} s after it was cut (medians: slowest {statistics.median(slowest):.2f} s, of all "
        f"{statistics.median(halves):.2f} s), {attempts / (STORM * stage.rounds):.1f} attempts each, {lost} lost",
        "≤ 5 s",
        max(slowest) <= 5 and not lost,
        "WebSockets past the proxy from 2 processes, which try again as natskit's clients do, with pauses of 0.1 to 3 "
        "s, half of it random; the worst of all rounds; includes the restart itself",
    )


def come_back(barrier: Any, target: Target, count: int) -> tuple[list[float], int]:
    """Connect ``count`` times, wait until each connection is cut, and connect again: seconds from cut to back."""
    return asyncio.run(_come_back(barrier, target, count))


async def _come_back(barrier: Any, target: Target, count: int) -> tuple[list[float], int]:
    room, attempts = asyncio.Semaphore(16), 0

    async def first() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with room:
            return await wire.handshake(target, None)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float | None:
        nonlocal attempts
        with suppress(OSError):
            while await reader.read(65536):
                pass
        writer.transport.abort()
        cut = time.perf_counter()
        for number in range(50):
            attempts += 1
            pause = min(LONGEST_PAUSE, 0.1 * 2**number)
            await asyncio.sleep(random.uniform(pause / 2, pause))
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(10):
                    _, again = await wire.handshake(target, None)
                took = time.perf_counter() - cut
                held.append(again)
                return took
        return None

    held: list[asyncio.StreamWriter] = []
    connections = await asyncio.gather(*(first() for _ in range(count)))
    waiting = [asyncio.ensure_future(one(*connection)) for connection in connections]
    await asyncio.to_thread(barrier.wait)
    times = await asyncio.gather(*waiting)
    for writer in held:
        writer.transport.abort()
    return [t for t in times if t is not None], attempts
