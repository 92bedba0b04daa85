"""A large platform: how long a hub reads its state, and what a changed right costs when many are connected."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import wire
from bench.stage import Row, Stage
from bench.wire import Target, processor_time
from natskit.bus.connection import Connection
from natskit.hub.state.records import Account, EmailClaim, Membership, Project, Record, Session, email_key
from natskit.identity.claims import COOKIE
from tests.hub.site import ORIGIN, Site, call
from tests.hub.test_hub_api import person
from tests.kit.wait import eventually

SIZES = tuple(int(size) for size in os.environ.get("NATSKIT_BENCH_ACCOUNTS", "1000 10000 50000").split())
"""Accounts; each has five records. NATSKIT_BENCH_ACCOUNTS=1000 for a quick run."""
IN_FLIGHT = 2000
FEW, MANY = 100, int(os.environ.get("NATSKIT_BENCH_BROWSERS", "6000"))
"""Browsers that are connected while rights change; 20,000 open files are allowed on many machines."""
CHANGES, WINDOW = 30, 65.0
"""Changes, and the seconds in which they are made: in each window, hubs compare all connections as often."""
PATIENCE = 600.0
"""Seconds for a hub to be well; only a bound."""


def rows(stage: Stage) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="natskit-scale-") as folder:
        yield from asyncio.run(_sizes(Path(folder), stage.rounds))
    with tempfile.TemporaryDirectory(prefix="natskit-scale-") as folder:
        yield asyncio.run(_one_change(Path(folder)))


async def fill(hub: Connection, count: int) -> None:
    """Write ``count`` accounts with a project and a session each: five records, as hubs store them."""
    now, room, stream = time.time(), asyncio.Semaphore(IN_FLIGHT), hub.jetstream()

    async def put(bucket: str, key: str, record: Record) -> None:
        async with room:
            await stream.publish(f"$KV.{bucket}.{key}", record.to_json(), timeout=60)

    for start in range(0, count, IN_FLIGHT):
        writes = []
        for number in range(start, min(start + IN_FLIGHT, count)):
            account, project, session = (str(uuid.uuid4()) for _ in range(3))
            email = f"person.{number}@example.org"
            hashed = "$argon2id$v=19$m=19456,t=2,p=1$" + "x" * 66
            writes += [
                put("accounts", account, Account(email=email, password_hash=hashed, created_at=now)),
                put("accounts", email_key(email), EmailClaim(account_id=account)),
                put("projects", project, Project(title=f"Project {number}", created_at=now)),
                put("memberships", f"{account}.{project}", Membership(role="owner", since=now)),
                put(
                    "sessions",
                    session,
                    Session(account_id=account, created_at=now, expires_at=now + 9e5, absolute_expires_at=now + 9e5),
                ),
            ]
        await asyncio.gather(*writes)


@dataclass
class _Measured:
    """What one size of platform costs: seconds, and MB of memory; a value for each round."""

    without: list[float] = field(default_factory=list)
    """A hub starts with nothing on its disk."""
    own_file: list[float] = field(default_factory=list)
    """It starts with the file of what it last had."""
    back: list[float] = field(default_factory=list)
    """It is well again after a restart of nats-server."""
    spent_without: list[float] = field(default_factory=list)
    spent_own_file: list[float] = field(default_factory=list)
    """Processor time of the hub in these starts, which other work on the machine does not lengthen much."""
    served_without: list[float] = field(default_factory=list)
    """Processor time of nats-server meanwhile."""
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)


async def _sizes(folder: Path, rounds: int) -> list[Row]:
    site = Site(folder)
    site.sync_interval = "2m"  # what is measured is reading
    site.start_server()
    hub = await site.state()
    found: list[Row] = []
    there = 0
    try:
        for size in SIZES:
            await fill(hub, size - there)
            there = size
            measured = _Measured()
            for _ in range(rounds):
                await _round(site, measured)
            found += _rows_of(site, size, measured)
    finally:
        await site.close()
    return found


async def _round(site: Site, measured: _Measured) -> None:
    """A hub starts with nothing, meets a restart of nats-server, stops, and starts with its file."""
    state = site.root / "hub-1" / "state"
    await asyncio.to_thread(shutil.rmtree, state, ignore_errors=True)
    served = processor_time(site.server.process.pid)
    measured.without.append(await _start(site))
    measured.served_without.append(processor_time(site.server.process.pid) - served)
    pid = site.hubs["hub-1"][0].pid
    measured.spent_without.append(processor_time(pid))
    measured.before.append(_resident(pid))
    site.stop_server()

    async def is_unwell() -> bool:
        return (await site.http("hub-1", "GET", "/healthz")).status_code != 200

    await eventually(is_unwell, "the hub notices", PATIENCE)
    starting = asyncio.create_task(asyncio.to_thread(site.start_server))
    await eventually(lambda: _takes_connections(site.nats_port), "nats-server", PATIENCE)
    started = time.perf_counter()
    await site.healthy("hub-1", PATIENCE)
    measured.back.append(time.perf_counter() - started)
    await starting
    measured.after.append(_resident(pid))
    await asyncio.to_thread(site.kill_hub, "hub-1", signal.SIGTERM)  # it writes its file
    measured.own_file.append(await _start(site))
    measured.spent_own_file.append(processor_time(site.hubs["hub-1"][0].pid))
    await asyncio.to_thread(site.kill_hub, "hub-1")


async def _start(site: Site) -> float:
    """Seconds until a hub that is started is well."""
    started = time.perf_counter()
    site.start_hub("hub-1", keep_state_seconds=3600)
    await site.healthy("hub-1", PATIENCE)
    return time.perf_counter() - started


def _rows_of(site: Site, size: int, measured: _Measured) -> Iterator[Row]:
    without, own, back = (statistics.median(each) for each in (measured.without, measured.own_file, measured.back))
    spent, spent_own = statistics.median(measured.spent_without), statistics.median(measured.spent_own_file)
    served = statistics.median(measured.served_without)
    file = sum(path.stat().st_size for path in (site.root / "hub-1" / "state").iterdir()) / 1e6
    stored = sum(path.stat().st_size for path in (site.root / "jetstream").rglob("*.blk")) / 1e6
    of = f"of {size:,} accounts ({5 * size:,} records)"
    largest = size >= 50_000
    yield Row(
        "13",
        f"a hub {of} starts with its own file, against with nothing on its disk",
        own / without,
        f"{own:.2f} s against {without:.2f} s; processor time {spent_own:.2f} s against {spent:.2f} s, and "
        f"{served:.2f} s of nats-server; the files have {file:.1f} MB, the streams {stored:.1f} MB",
        "≤ 2 s" if largest else "",
        own <= 2 if largest else None,
        "a nats-server and a hub of their own, until /healthz is 200, the start of Python included; medians",
    )
    yield Row(
        "13",
        f"a hub {of} is well after a restart of nats-server, against its start with nothing",
        back / without,
        f"{back:.2f} s after nats-server took connections again, against {without:.2f} s",
        "≤ 0.5 s" if largest else "",
        back <= 0.5 if largest else None,
        "the same hub reads what was stored since; medians",
    )
    yield Row(
        "13",
        f"memory of a hub {of} after that restart, against before",
        max(measured.after) / max(measured.before),
        f"{max(measured.after):.0f} of {max(measured.before):.0f} MB; "
        f"nats-server has {_resident(site.server.process.pid):.0f} MB",
        "≤ 240 MiB, the same" if largest else "",
        max(measured.after) <= 252 and max(measured.after) / max(measured.before) < 1.1 if largest else None,
        "resident memory of the processes",
    )


async def _one_change(folder: Path) -> Row:
    """What nats-server spends on a changed right, with few and with many connected."""
    site = Site(folder)
    try:
        site.start_server()
        for name in ("hub-1", "hub-2"):
            site.start_hub(name)
            await site.healthy(name)
        admin = await site.admin()
        owner, _, _ = await person(site, admin)
        guest, guest_id, guest_cookie = await person(site, admin)
        _, _, crowd_cookie = await person(site, admin)
        project_id = (await call(admin, "hub.admin", "project_create", email=owner, title="P"))["project_id"]
        await site.browser(guest_id, guest_cookie)
        crowd = Target(f"ws://127.0.0.1:{site.websocket_port}/", cookie=f"{COOKIE}={crowd_cookie}", origin=ORIGIN)
        held: list[object] = []
        spent: dict[int, float] = {}
        for count in (FEW, MANY):
            room = asyncio.Semaphore(16)

            async def one(room: asyncio.Semaphore = room) -> object:
                async with room:
                    return await _let_in(crowd)

            held += await asyncio.gather(*(one() for _ in range(count - len(held))))
            idle = await _spent(site, 0.0, lambda: asyncio.sleep(0))
            changes = iter(range(CHANGES))

            async def change(changes: Iterator[int] = changes) -> None:
                method = "project_unshare" if next(changes) % 2 else "project_share"
                await call(admin, "hub.admin", method, project_id=project_id, email=guest)

            busy = await _spent(site, WINDOW / CHANGES, change)
            spent[count] = (busy - idle) / CHANGES
    finally:
        await site.close()
    return Row(
        "13",
        f"nats-server's processor time for one changed right, {MANY:,} browsers connected, against {FEW}",
        spent[MANY] / spent[FEW],
        f"{spent[MANY] * 1000:.1f} ms against {spent[FEW] * 1000:.1f} ms",
        "≤ 1.2",
        spent[MANY] <= 1.2 * spent[FEW],
        f"two hubs; {CHANGES} changes in {WINDOW:.0f} s, less what as long without changes takes; a project is shared "
        "with somebody who is connected, and taken away again",
    )


async def _let_in(crowd: Target) -> object:
    """A browser that is connected. A busy hub turns it away, and it tries again, as natskit's clients do."""

    async def attempt() -> object:
        return await wire.handshake(crowd, None)

    return await eventually(attempt, "a browser is let in", PATIENCE)


async def _spent(site: Site, every: float, work: Callable[[], Awaitable[None]]) -> float:
    """Seconds of processor time of nats-server in a window in which ``work`` is done; 0: never."""
    pid, ends = site.server.process.pid, time.monotonic() + WINDOW
    before = processor_time(pid)
    while every and time.monotonic() < ends - every / 2:
        begun = time.monotonic()
        await work()
        await asyncio.sleep(max(0.0, every - (time.monotonic() - begun)))
    await asyncio.sleep(max(0.0, ends - time.monotonic()))
    return processor_time(pid) - before


async def _takes_connections(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _resident(pid: int) -> float:
    """MB of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
