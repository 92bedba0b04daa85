"""One account asks as much as it can: what the others notice, with and without a bound on what one may use."""

from __future__ import annotations

import asyncio
import multiprocessing
import ssl
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from bench import wire
from bench.crowd import people, probe, write
from bench.rights import opened
from bench.stage import Row, Stage, percentiles
from bench.wire import Target
from natskit.hub.state.records import Membership, Project
from natskit.rpc import encode_request

PROJECTS = 1500
AT_ONCE = 100
SECONDS = 8.0
BRACKETS = b"[" * 450_000 + b"]" * 450_000
"""Slow to read, of all JSON, and nearly as long as a message may be."""


def rows(stage: Stage) -> Iterator[Row]:
    attacker, account = asyncio.run(somebody_with_projects(stage))
    target = stage.browser(through_proxy=False)
    context = multiprocessing.get_context("spawn")
    found: dict[str, wire.Storm] = {}
    try:
        with context.Manager() as manager, context.Pool(2) as pool:
            over = manager.Event()
            found["quiet"] = pool.apply(probe, (target, over, SECONDS))
            for name, share in (("bounded", "0.25"), ("unbounded", "100")):
                deployed = stage.site.deploy(hub_caller_share=share)
                assert deployed.returncode == 0, deployed.stderr
                attacking = pool.apply_async(attack, (attacker, account, SECONDS + 2))
                found[name] = pool.apply(probe, (target, over, SECONDS))
                attacking.get(60)
    finally:
        stage.site.deploy()
    quiet, bounded, unbounded = (percentiles(found[name].times) for name in ("quiet", "bounded", "unbounded"))
    failed = {name: f"{storm.failed} of {storm.failed + len(storm.times)}" for name, storm in found.items()}
    yield Row(
        "11",
        "one account asks as much as it can: connects of others",
        bounded[0] / quiet[0],
        f"p50 {bounded[0]:.0f} ms, p99 {bounded[1]:.0f} ms, {failed['bounded']} failed (nobody attacks: "
        f"{quiet[0]:.0f} and {quiet[1]:.0f} ms, {failed['quiet']}; with hub_caller_share = 100: {unbounded[0]:.0f} and "
        f"{unbounded[1]:.0f} ms, {failed['unbounded']})",
        "none fails",
        not found["bounded"].failed,
        f"a connect every 50 ms; the attacker has {PROJECTS:,} projects, and sends {AT_ONCE} times list_projects and "
        f"{len(BRACKETS) / 1e6:.1f} MB of brackets, again and again, as fast as it gets rid of them, from the same two "
        "cores; the ratio is of the medians, attacked over not attacked",
    )


async def somebody_with_projects(stage: Stage) -> tuple[Target, str]:
    """A browser's target, and its account."""
    (email,) = await people(stage, 1)
    async with opened(stage) as platform:
        account_id, cookie = await platform.sign_in(email)
    ids, now = [str(uuid.uuid4()) for _ in range(PROJECTS)], time.time()
    await write(stage, "projects", {p: Project(title="P", created_at=now) for p in ids})
    await write(stage, "memberships", {f"{account_id}.{p}": Membership(role="owner", since=now) for p in ids})
    return replace(stage.browser(through_proxy=False), cookie=cookie), account_id


def attack(target: Target, account: str, seconds: float) -> None:
    """Send as fast as it is taken; what is answered is thrown away. Cut, it comes back."""
    asyncio.run(_attack(target, account, seconds))


async def _attack(target: Target, account: str, seconds: float) -> None:
    context = ssl.create_default_context(cafile=target.ca_file) if target.url.startswith("wss") else None
    inbox = f"_INBOX.account.{account}.1"
    commands = [wire.frame(target, f"SUB {inbox} 1\r\n".encode())]
    for body in [*[encode_request("list_projects")] * AT_ONCE, BRACKETS]:
        head = f"PUB hub.api.{account} {inbox} {len(body)}\r\n".encode()
        commands.append(wire.frame(target, head + body + b"\r\n"))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(deadline - time.monotonic()):
                reader, writer = await wire.handshake(target, context)
                listening = asyncio.create_task(_throw_away(reader))
                try:
                    while not listening.done():
                        for command in commands:
                            writer.write(command)
                        await writer.drain()
                finally:
                    listening.cancel()
                    writer.transport.abort()


async def _throw_away(reader: Any) -> None:
    while await reader.read(1 << 20):
        pass
