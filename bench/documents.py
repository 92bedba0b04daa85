"""Documents: keys, floods, a crowd, a long history and many documents, beside Hocuspocus and pycrdt-websocket.

The peers run without TLS and sign-in, and show a change before it is stored. Ours is signed in, goes through the proxy
with TLS, and is stored and ordered before anybody sees it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycrdt import Doc, Text

from bench.crowd import write
from bench.document_peers import HOCUSPOCUS, OURS, PYCRDT, Service, accounts, servers, services
from bench.rights import PASSWORD
from bench.stage import Row, Stage, percentiles
from bench.wire import processor_time, proportional_memory
from natskit.bus.connection import connect
from natskit.bus.document_record import Update, encode
from natskit.bus.servers import NatsServers
from natskit.client import Client
from natskit.hub.state.records import Project
from tests.kit.nats import running
from tests.kit.ports import free_port

ROOT = Path(__file__).parents[1]
SCALE = float(os.environ.get("NATSKIT_BENCH_DOCUMENTS", "1"))
"""A part of all counts and times: 0.02 for a quick try."""
NUMBER = "16"


def _part(whole: int) -> int:
    return max(1, round(whole * SCALE))


KEYS, REST = max(10, _part(100)), 30
"""Keys of each service in a round, and milliseconds between one that arrived and the next."""
FLOOD = max(100, _part(20_000))
PEOPLE, CROWD_SECONDS, CROWD_RATE, CROWD_BYTES = max(3, _part(35)), max(3, _part(60)), 5, 25_000
INSERTIONS, DELETIONS = max(500, _part(182_315)), max(200, _part(77_463))
"""As many as in the automerge-perf trace: a text that one person wrote in days."""
EDITS_EACH = 10
"""Edits of an update of the long history: what somebody types in two seconds."""
HISTORY_SECONDS = 180
"""The longest that the long history is written; only a bound, for a slow machine."""
MOMENTS = 20
DOCUMENTS, OWNERS, WRITE_SECONDS = max(20, _part(1000)), max(2, _part(40)), max(2.0, 15 * SCALE)
DAY_SECONDS, DAY_DOCUMENTS = max(4.0, 40 * SCALE), 20
DAY = 8 * 3600 // 2
"""Updates of one person in a day: one each two seconds, for eight hours."""
KEY_AIM, FLOOD_AIM, CROWD_AIM, OPEN_AIM, DISK_AIM, CORE_AIM, FLAT_AIM = 1.5, 0.25, 100, 300, 2.0, 0.5, 1.1


def rows(stage: Stage) -> Iterator[Row]:
    """What issue 14 asks for, in its order."""
    # First, while the streams are empty: what others have written is compressed when its block is full.
    long_history = list(_long_history(stage))
    with services(stage, PEOPLE) as all_:
        yield from _keys(stage, all_)
        yield from _flood(all_)
        yield from _crowd(all_)
    yield from long_history
    yield from asyncio.run(_many(stage))
    yield from asyncio.run(_day(stage))


# ---- beside the peers


def _keys(stage: Stage, all_: list[Service]) -> Iterator[Row]:
    times: dict[str, list[float]] = {service.name: [] for service in all_}
    for service in all_:
        service.ask("open", name="keys", copies=2)
        service.ask("echo", name="keys", count=5, rest=REST)
    for _ in range(stage.rounds):
        for service in all_:
            times[service.name] += service.ask("echo", name="keys", count=KEYS, rest=REST)["times"]
    for service in all_:
        service.ask("close", name="keys")
    found = {name: percentiles([each / 1000 for each in measured]) for name, measured in times.items()}
    for place, what in enumerate(("p50", "p99")):
        mine, theirs, other = (found[name][place] for name in (OURS, HOCUSPOCUS, PYCRDT))
        aim = KEY_AIM if what == "p50" else 1.0
        yield Row(
            NUMBER,
            f"a key until it is in another's document, {what}, against {HOCUSPOCUS}",
            mine / theirs,
            f"{mine:.2f} against {theirs:.2f} ms ({PYCRDT}: {other:.2f} ms)",
            f"≤ {aim:g}",
            mine <= aim * theirs,
            f"{len(times[OURS])} keys each, {REST} ms apart, in turn; two clients in one Node.js process; ours: the "
            f"browser module, signed in, through the proxy with TLS, and stored before it is shown; {HOCUSPOCUS} 4.7 "
            f"and {PYCRDT} 0.16 with their SQLite stores: their own clients, no TLS, no sign-in, stored later",
        )


def _flood(all_: list[Service]) -> Iterator[Row]:
    took: dict[str, float] = {}
    for service in all_:
        service.ask("open", name="flood", copies=2)
        took[service.name] = service.ask("flood", name="flood", count=FLOOD)["milliseconds"] / 1000
        service.ask("close", name="flood")
    mine, theirs, other = (took[name] for name in (OURS, HOCUSPOCUS, PYCRDT))
    yield Row(
        NUMBER,
        f"{FLOOD:,} updates of one character, of one client, against {HOCUSPOCUS}",
        mine / theirs,
        f"{mine:.2f} s against {theirs:.2f} s ({PYCRDT}: {other:.2f} s)",
        f"≤ {FLOOD_AIM:g}",
        mine <= FLOOD_AIM * theirs,
        "a transaction each, as fast as the event loop turns, until another client has them all; once each; ours "
        "sends what was typed within 25 ms as one update",
    )


@dataclass
class _Crowd:
    """What people typing at once cost."""

    answer: dict[str, Any]
    spent: float
    memory: int


def _crowd(all_: list[Service]) -> Iterator[Row]:
    text = ("Many people write this text at once. " * (CROWD_BYTES // 37 + 1))[:CROWD_BYTES]
    found: dict[str, _Crowd] = {}
    for service in all_:
        service.ask("open", name="crowd", copies=PEOPLE, text=text)
        before = service.processor_time()
        answer = service.ask("crowd", name="crowd", seconds=CROWD_SECONDS, rate=CROWD_RATE)
        found[service.name] = _Crowd(answer, service.processor_time() - before, service.memory())
        service.ask("close", name="crowd")
    mine, theirs, other = (found[name] for name in (OURS, HOCUSPOCUS, PYCRDT))
    method = (
        f"{mine.answer['keys']:,} keys in {CROWD_SECONDS} s, until each of the others has each; all clients in one "
        "Node.js process; the servers of ours: proxy, nats-server and two keepers, and not the hubs, which only sign in"
    )
    agree = all(each.answer["texts"] == 1 for each in found.values())
    yield Row(
        NUMBER,
        f"{PEOPLE} people type {CROWD_RATE} characters a second in one document of 25 KB, p99, against {HOCUSPOCUS}",
        mine.answer["p99"] / theirs.answer["p99"],
        f"{mine.answer['p99']:.0f} against {theirs.answer['p99']:.0f} ms ({PYCRDT}: {other.answer['p99']:.0f} ms); p50 "
        f"{mine.answer['p50']:.1f}, {theirs.answer['p50']:.1f} and {other.answer['p50']:.1f} ms; "
        f"{'all copies are equal' if agree else 'copies differ'}",
        f"≤ {CROWD_AIM} ms, all equal",
        mine.answer["p99"] <= CROWD_AIM and mine.answer["texts"] == 1,
        method,
    )
    yield Row(
        NUMBER,
        f"processor time of all servers for these {PEOPLE}, against {HOCUSPOCUS}",
        mine.spent / theirs.spent,
        f"{mine.spent:.1f} against {theirs.spent:.1f} s ({PYCRDT}: {other.spent:.1f} s)",
        "≤ 1",
        mine.spent <= theirs.spent,
        method,
    )
    yield Row(
        NUMBER,
        f"memory of all servers after these {PEOPLE}, against {HOCUSPOCUS}",
        mine.memory / theirs.memory,
        f"{mine.memory / 1e6:.0f} against {theirs.memory / 1e6:.0f} MB ({PYCRDT}: {other.memory / 1e6:.0f} MB)",
        "≤ 1",
        mine.memory <= theirs.memory,
        method + "; PSS",
    )


# ---- a long history


class Author:
    """Writes a text as a person does, the same each time: runs of typing, runs of backspace, and jumps."""

    def __init__(self) -> None:
        self.doc: Doc[Any] = Doc()
        self.text = self.doc.get("text", type=Text)
        self._pick = random.Random(14)
        self._insertions, self._deletions = INSERTIONS, DELETIONS
        self._at = self._length = 0

    def updates(self) -> Iterator[bytes]:
        """All edits, some in each update."""
        edits, made = self._edits(), list[bytes]()
        # What a transaction changed; the difference of two states has everything that was ever deleted.
        self.doc.observe(lambda event: made.append(event.update))
        while True:
            count = 0
            with self.doc.transaction():
                for at, letter in edits:
                    if letter:
                        self.text.insert(at, letter)
                    else:
                        del self.text[at]
                    count += 1
                    if count == EDITS_EACH:
                        break
            if not count:
                return
            yield made.pop()

    def _edits(self) -> Iterator[tuple[int, str]]:
        """Where a character is inserted, or, with an empty one, deleted."""
        while self._insertions or self._deletions:
            if self._pick.random() < 0.1:
                self._at = self._pick.randint(0, self._length)
            for _ in range(min(self._pick.randint(1, 40), self._insertions)):
                yield self._at, self._pick.choice("etaoin shrdlu\n")
                self._at, self._length, self._insertions = self._at + 1, self._length + 1, self._insertions - 1
            for _ in range(min(self._pick.randint(0, 17), self._deletions, self._at)):
                yield self._at - 1, ""
                self._at, self._length, self._deletions = self._at - 1, self._length - 1, self._deletions - 1
            if not self._insertions and not self._at:
                self._at = self._length


def _long_history(stage: Stage) -> Iterator[Row]:
    disk = stage.site.root / "nats"
    before = _stored(disk)
    sizes, seconds = asyncio.run(_write_history(stage))
    taken = _stored(disk) - before
    yield Row(
        NUMBER,
        f"disk of a document with {min(INSERTIONS + DELETIONS, EDITS_EACH * len(sizes)):,} edits, against the sum of "
        "its updates",
        taken / sum(sizes),
        f"{taken / 1e6:.2f} of {sum(sizes) / 1e6:.2f} MB, in {len(sizes):,} updates; written in {seconds:.0f} s",
        f"≤ {DISK_AIM:g}",
        taken <= DISK_AIM * sum(sizes),
        f"as many insertions and deletions as the automerge-perf trace, by one person, {EDITS_EACH} in an update; all "
        "that the streams' files grew by: updates, their authors and numbers, and snapshots",
    )
    opened, moments = _in_chromium(stage)
    yield Row(
        NUMBER,
        "opening this document in Chromium",
        None,
        f"p50 {statistics.median(opened):.0f} ms, the first time {opened[0]:.0f} ms",
        f"≤ {OPEN_AIM} ms",
        statistics.median(opened) <= OPEN_AIM,
        f"{len(opened)} times, until the copy in the page has the whole text, through the proxy",
    )
    yield Row(
        NUMBER,
        "a moment of its history in Chromium",
        None,
        f"p50 {statistics.median(moments):.0f} ms, the slowest {max(moments):.0f} ms",
        f"≤ {OPEN_AIM} ms",
        max(moments) <= OPEN_AIM,
        f"{len(moments)} moments, evenly spread, each asked for once",
    )


async def _write_history(stage: Stage) -> tuple[list[int], float]:
    """Sizes of the updates, and how long it took to store them, one after the other."""
    project, sizes, author = stage.world.names["p"], [], Author()
    began = time.perf_counter()
    client = await Client.sign_in(stage.site.url, stage.world.email_a, stage.world.password, ca_file=stage.site.ca_file)
    async with client:
        made = await client.call_documents(project, "open", path="long history", create=True)
        for number, update in enumerate(author.updates(), 1):
            if time.perf_counter() > began + HISTORY_SECONDS:
                break
            await _send(client, project, made["document_id"], author.doc, number, update)
            sizes.append(len(update))
    return sizes, time.perf_counter() - began


async def _send(client: Client, project: str, document: str, doc: Doc[Any], number: int, update: bytes) -> None:
    await client.call_documents(
        project,
        "update",
        document=document,
        update=b64encode(update).decode(),
        client=doc.client_id,
        number=number,
    )


def _stored(folder: Path) -> int:
    """Bytes of the messages in all streams."""
    return sum(path.stat().st_size for path in folder.rglob("*.blk"))


PAGE = """
import { connect, session } from "@natskit/client";
import { documentsOf } from "@natskit/client/document";

export async function measure(project, path, times, moments) {
  const documents = documentsOf(await connect(await session()), project);
  const opened = [];
  let copy;
  for (let time = 0; time < times; time++) {
    const began = performance.now();
    copy = await documents.open({ path }, { keep: false });
    if (copy.text.toString().length === 0) throw new Error("the document is empty");
    opened.push(performance.now() - began);
    await copy.close();
  }
  const { steps } = await documents.history(copy.documentId);
  const shown = [];
  for (let moment = 1; moment <= moments; moment++) {
    const { sequence } = steps[Math.floor((moment * (steps.length - 1)) / moments)];
    const began = performance.now();
    const then = await documents.stateAt(copy.documentId, sequence);
    then.getText("text").toString();
    shown.push(performance.now() - began);
  }
  return [opened, shown];
}
"""


def _in_chromium(stage: Stage) -> tuple[list[float], list[float]]:
    """Milliseconds in which the document opens, and in which moments of its history are there."""
    from playwright.sync_api import sync_playwright

    from tests.kit import chromium
    from tests.platform.test_console import open_project

    script = _bundled(PAGE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.__file__)
        page = browser.new_context(ignore_https_errors=True).new_page()
        page.route("**/measure.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
        open_project(page, stage.site, stage.world)
        opened, moments = page.evaluate(
            "async ([project, path, times, moments]) => "
            "(await import('/measure.js')).measure(project, path, times, moments)",
            [stage.world.names["p"], "long history", 2 * stage.rounds + 1, MOMENTS],
        )
        browser.close()
    return opened, moments


def _bundled(script: str) -> str:
    """A script with the modules it imports, in one file."""
    with tempfile.NamedTemporaryFile("w", suffix=".js", dir=ROOT / "web", prefix="bench-") as source:
        source.write(script)
        source.flush()
        run = (
            '. scripts/node && cd web && exec node_modules/.bin/esbuild "$1" --bundle --format=esm --log-level=warning'
        )
        return subprocess.check_output(["bash", "-euc", run, "bash", source.name], cwd=ROOT, text=True)


# ---- many documents


@dataclass
class Writer:
    """Somebody who writes one document, an update at a time."""

    client: Client
    project: str
    document: str
    doc: Doc[Any] = field(default_factory=Doc)
    sent: int = 0

    async def type(self) -> None:
        """A character more; or all of them less, when there are many."""
        text = self.doc.get("text", type=Text)
        state = self.doc.get_state()
        if len(text) > 500:
            text.clear()
        else:
            text += "x"
        self.sent += 1
        await _send(self.client, self.project, self.document, self.doc, self.sent, self.doc.get_update(state))

    async def until(self, end: float) -> None:
        """Type until a time."""
        while time.monotonic() < end:
            await self.type()


async def _writers(stage: Stage, stack: AsyncExitStack, count: int, owners: int) -> list[Writer]:
    """So many documents, each with a writer; of so many accounts, with a project each."""
    emails, found = await asyncio.to_thread(_owners, stage, owners), list[Writer]()

    async def open_all(email: str, project: str, documents: int) -> None:
        client = await Client.sign_in(stage.site.url, email, PASSWORD, ca_file=stage.site.ca_file)
        await stack.enter_async_context(client)
        for number in range(documents):
            made = await client.call_documents(project, "open", path=f"document {number}", create=True)
            found.append(Writer(client, project, made["document_id"]))

    await asyncio.gather(
        *(open_all(email, p, len(range(n, count, owners))) for n, (email, p) in enumerate(emails.items()))
    )
    return found


def _owners(stage: Stage, count: int) -> dict[str, str]:
    """New accounts by their e-mails, and a project of each."""
    projects = [str(uuid.uuid4()) for _ in range(count)]
    now = time.time()
    asyncio.run(write(stage, "projects", {p: Project(title="Documents", created_at=now) for p in projects}))
    return {email: project for (email, _), project in zip(accounts(stage, projects), projects, strict=True)}


async def _many(stage: Stage) -> Iterator[Row]:
    pids = servers(stage)
    async with AsyncExitStack() as stack:
        writers = await _writers(stage, stack, DOCUMENTS, OWNERS)
        begun, before = time.monotonic(), {name: sum(map(processor_time, some)) for name, some in pids.items()}
        end = begun + WRITE_SECONDS
        await asyncio.gather(*(writer.until(end) for writer in writers))
        seconds = time.monotonic() - begun
        spent = {name: sum(map(processor_time, some)) - before[name] for name, some in pids.items()}
        stored = sum(writer.sent for writer in writers)
    bare, with_client, rate = await _bare()
    mine = stored / (spent["nats"] + spent["keepers"])
    parts = ", ".join(f"{name} {used / stored * 1e6:.0f} µs" for name, used in spent.items())
    measured = f"{mine:,.0f} of {{:,.0f}} updates for a second of a core; {stored / seconds:,.0f}/s here; each: {parts}"
    method = (
        f"{DOCUMENTS:,} documents of {OWNERS} projects, one update at a time each, for {WRITE_SECONDS:g} s; processor "
        f"time of nats-server and the keepers; JetStream alone: records as large, 64 at once, to a bare nats-server "
        f"that syncs each as well ({rate:,.0f}/s)"
    )
    what = f"updates of {DOCUMENTS:,} documents with a writer each, stored, for each core, against JetStream alone"
    return iter(
        [
            Row(NUMBER, what, mine / bare, measured.format(bare), f"≥ {CORE_AIM:g}", mine >= CORE_AIM * bare, method),
            Row(
                NUMBER,
                f"{what} and the Python client that writes to it",
                mine / with_client,
                measured.format(with_client),
                "",
                None,
                method + "; with the processor time of that client",
            ),
        ]
    )


async def _bare() -> tuple[float, float, float]:
    """Writes for a second of a core of nats-server, the same with the client that writes, and writes a second."""
    update = Update("0" * 36, 2**31, 1000, 100_000, round(time.time() * 1000), b"x" * 24)
    record, port = encode(update), free_port()
    with tempfile.TemporaryDirectory(prefix="natskit-bare-", dir="/var/tmp") as folder:
        config = f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}", sync_interval: always }}\n'
        with running(Path(folder), config) as server:
            client = await connect(NatsServers(urls=[f"nats://127.0.0.1:{port}"]), name="bench", inbox_prefix="_INBOX")
            body = json.dumps({"name": "DOC", "subjects": ["doc.>"], "num_replicas": 1, "storage": "file"}).encode()
            made = await client.request("$JS.API.STREAM.CREATE.DOC", body, timeout=5)
            assert b"error" not in made.data, made.data
            done, end = 0, time.monotonic() + WRITE_SECONDS / 2

            async def put(number: int) -> None:
                nonlocal done
                while time.monotonic() < end:
                    answer = await client.request(f"doc.0.{'0' * 36}.{number:036d}", record, timeout=10)
                    assert b"error" not in answer.data, answer.data
                    done += 1

            before, own, begun = processor_time(server.process.pid), time.process_time(), time.monotonic()
            await asyncio.gather(*(put(number) for number in range(64)))
            seconds, own = time.monotonic() - begun, time.process_time() - own
            spent = processor_time(server.process.pid) - before
            await client.close()
    return done / spent, done / (spent + own), done / seconds


# ---- a day


async def _day(stage: Stage) -> Iterator[Row]:
    """Memory of the keepers after a first quarter of many updates, and after all of them."""
    keepers = servers(stage)["keepers"]
    async with AsyncExitStack() as stack:
        writers = await _writers(stage, stack, DAY_DOCUMENTS, 4)
        watched = writers[0]
        reader = await stack.enter_async_context(watched.client.document(watched.project, document_id=watched.document))
        begun, sizes = time.monotonic(), list[int]()
        for part in (0.25, 1.0):
            await asyncio.gather(*(writer.until(begun + part * DAY_SECONDS) for writer in writers))
            sizes.append(sum(map(proportional_memory, keepers)))
        stored = sum(writer.sent for writer in writers)
        state = len(reader.doc.get_update())
    return iter(
        [
            Row(
                NUMBER,
                f"memory of the keepers after {stored:,} updates of {DAY_DOCUMENTS} documents, against after a quarter",
                sizes[1] / sizes[0],
                f"{sizes[1] / 1e6:.1f} of {sizes[0] / 1e6:.1f} MB; each document has {state / 1e3:.1f} KB then",
                f"≤ {FLAT_AIM:g}",
                sizes[1] <= FLAT_AIM * sizes[0],
                f"what {stored / DAY:.1f} people write in a day of eight hours with an update each two seconds, in "
                f"{DAY_SECONDS:g} s; each text is cleared at 500 characters; PSS of both keepers",
            )
        ]
    )
