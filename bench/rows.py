"""The rows of the table: each measures one claim against something bare, in alternating rounds."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import attack, command, crowd, documents, files, rights, scale, sync, terminals, wire
from bench.stage import Row, Stage, percentiles
from bench.wire import Target
from natskit import rpc
from natskit.bus.permissions import SCOPES, expand
from natskit.client import Client
from tests.kit.nats import running
from tests.kit.ports import free_port

BIN = Path(sys.executable).parent


def measure(stage: Stage, only: str | None) -> Iterator[Row]:
    """All rows, one after the other, or those of one number."""
    for number, rows in MEASUREMENTS:
        if only in {None, number}:
            yield from rows(stage)


def alternate(rounds: int, ours: Callable[[], float], bare: Callable[[], float]) -> tuple[float, float]:
    """Medians of both, measured in turn, so that a slow moment of the machine hits both."""
    pairs = [(ours(), bare()) for _ in range(rounds)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def tcp_publish(stage: Stage) -> Iterator[Row]:
    subject = stage.world.name("events.project.{p}.b")
    mine = stage.project()
    # What the platform lets a project publish: its scope, filled in as the server does.
    rights = json.dumps(expand(SCOPES["project"].publish, [stage.world.name("project:{p}")]))
    limited = (
        f'authorization {{ users: [ {{ user: "u", password: "p", permissions: {{ publish: {rights} }} }} ] }}\n'
        'no_auth_user: "u"\n'
    )
    with bare_server("") as bare, bare_server(limited) as same:
        rates: dict[str, list[float]] = {"ours": [], "bare": [], "same": []}
        for _ in range(3 * stage.rounds):
            for name, target in (("ours", mine), ("bare", Target(bare)), ("same", Target(same))):
                rates[name].append(wire.publish_rate(target, subject, 16, 4_000_000))
    ours = statistics.median(rates["ours"])
    for name, what in (("bare", "a bare nats-server"), ("same", "one with the same permissions")):
        theirs = statistics.median(rates[name])
        yield Row(
            "1",
            f"TCP publish, 16 B, our config against {what}",
            ours / theirs,
            f"{ours / 1e6:.2f} of {theirs / 1e6:.2f} M msg/s",
            "",
            None,
            "2 processes, 4 M messages encoded once, no subscriber, until both PONGs; ours: a project, whose right "
            "to publish is looked up for each message; three times the rounds, which differ by a third",
        )


def websocket_publish(stage: Stage, size: int, count: int) -> Row:
    subject = stage.world.name("projects.{p}.b")
    proxied, direct = stage.browser(through_proxy=True), stage.browser(through_proxy=False)
    ours, theirs = alternate(
        stage.rounds,
        lambda: wire.publish_rate(proxied, subject, size, count),
        lambda: wire.publish_rate(direct, subject, size, count),
    )
    label = f"{size // 1024} KB" if size >= 1024 else f"{size} B"
    return Row(
        "2",
        f"WebSocket publish, {label}, through the proxy with TLS against direct",
        ours / theirs,
        f"{ours / 1e6:.3f} of {theirs / 1e6:.3f} M msg/s ({ours * size / 1e6:.0f} of {theirs * size / 1e6:.0f} MB/s)",
        "",
        None,
        f"2 signed-in browsers, {count:,} messages in frames of 256 KB encoded once, no subscriber, until both PONGs",
    )


def million_messages(stage: Stage) -> Row:
    from playwright.sync_api import sync_playwright

    from tests.kit import chromium
    from tests.platform.test_console import open_project

    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.__file__)
        page = browser.new_context(ignore_https_errors=True).new_page()
        open_project(page, stage.site, stage.world)
        for _ in range(max(5, stage.rounds)):
            page.evaluate("document.querySelector('#bench-result').textContent = ''")
            page.click("#bench-button")
            page.wait_for_selector("#bench-result:not(:empty)", timeout=60_000)
            found = re.search(r"\(([\d.]+) s\)", page.inner_text("#bench-result"))
            assert found
            seconds.append(float(found[1]))
        browser.close()
    median = statistics.median(seconds)
    return Row(
        "3",
        "1 M messages of 5 B from Chromium, signed in, through the proxy",
        None,
        f"{median:.2f} s (from {min(seconds):.2f} to {max(seconds):.2f})",
        "< 1 s",
        median < 1,
        f"the console's button, {len(seconds)} times, median; drained: flush() has its PONG",
    )


PROOFS = {"whoami": b'"account_id"', "list_projects": b'"project_id"'}
"""What a right answer holds."""

HUB_WAYS = {
    "whoami": "parsed and checked, but answered on the spot, without a task and a place in the queue",
    "list_projects": "a method like any other, the whole way; its answer describes one project",
}


def hub_api(stage: Stage) -> Iterator[Row]:
    with echo_servers(stage):
        for callers, processes in ((1, 1), (50, 2)):
            for method in HUB_WAYS:
                yield hub_method(stage, method, callers, processes)


def hub_method(stage: Stage, method: str, callers: int, processes: int) -> Row:
    target = stage.browser(through_proxy=False)
    body = rpc.encode_request(method)
    inboxes = [stage.world.name(f"_INBOX.account.{{a}}.{{p}}.{n}") for n in range(processes)]
    subjects = {"hub": stage.world.name("hub.api.{a}"), "echo": stage.world.name("projects.{p}.echo")}
    proofs = {"hub": PROOFS[method], "echo": body}
    rates: dict[str, list[float]] = {"hub": [], "echo": []}
    times: dict[str, list[float]] = {"hub": [], "echo": []}
    for _ in range(stage.rounds):
        for name, subject in subjects.items():
            each = callers // processes
            results = wire.in_processes(
                wire.ask, [(target, subject, body, i, proofs[name], each, 2.0) for i in inboxes]
            )
            rates[name].append(sum(r[0] for r in results))
            times[name] += [t for r in results for t in r[1]]
    ours, theirs = statistics.median(rates["hub"]), statistics.median(rates["echo"])
    latency = ""
    if callers == 1:
        (p50, p99), (e50, e99) = percentiles(times["hub"]), percentiles(times["echo"])
        latency = f"; p50 {p50:.2f} ms, p99 {p99:.2f} ms (echo {e50:.2f} and {e99:.2f})"
    return Row(
        "4",
        f"hub.api {method}, {callers} caller{'s' if callers > 1 else ''}, against a bare nats-py echo",
        ours / theirs,
        f"{ours:,.0f} of {theirs:,.0f} requests/s{latency}",
        "",
        None,
        f"raw WebSocket of a signed-in browser, {processes} process(es), 2 s a round; two hubs against two processes "
        "with a stock nats-py client and a callback that answers with what came; " + HUB_WAYS[method],
    )


def connects(stage: Stage) -> Row:
    target = stage.browser(through_proxy=False)
    rates = []
    for _ in range(stage.rounds):
        results = wire.in_processes(wire.connect_many, [(target, 1000, 16, 0.0)] * 2)
        assert not any(r.failed for r in results)
        rates.append(2000 / max(r.seconds for r in results))
    median = statistics.median(rates)
    return Row(
        "5",
        "connects a second through the callout",
        None,
        f"{median:,.0f}/s",
        "1,000/s",
        median >= 1000,
        "2 processes, 16 at a time each, 2,000 in all: WebSocket upgrade, cookie, CONNECT, PONG; client included",
    )


def storm(stage: Stage) -> Row:
    target = stage.browser(through_proxy=False)
    slowest, failed = [], 0
    for _ in range(stage.rounds):
        results = wire.in_processes(wire.connect_many, [(target, 1000, 1000, 0.0)] * 2)
        slowest.append(max(max(r.times) for r in results))
        failed += sum(r.failed for r in results)
    worst = max(slowest)
    return Row(
        "5",
        "a storm of 2,000 connects at once: the slowest",
        None,
        f"{worst:.2f} s (median of rounds {statistics.median(slowest):.2f} s), {failed} failed",
        "≤ 2 s",
        worst <= 2 and not failed,
        "as above, all started together in 2 processes; the worst of all rounds",
    )


def exec_true(stage: Stage) -> Row:
    async def run() -> tuple[list[float], list[float]]:
        ours, bare = [], []
        info = stage.site.info
        async with await Client.admin(info["nats_urls"][0], info["creds"]["platform_admin"]) as client:
            for _ in range(100 * stage.rounds):
                started = time.perf_counter()
                async with client.exec(stage.world.names["p"], ["true"]) as execution:
                    async for _ in execution:
                        pass
                ours.append(time.perf_counter() - started)
                started = time.perf_counter()
                subprocess.run(["true"], check=True)  # noqa: ASYNC221 - nothing else runs meanwhile, on purpose
                bare.append(time.perf_counter() - started)
        return ours, bare

    ours, bare = asyncio.run(run())
    (p50, p99), (b50, _) = percentiles(ours), percentiles(bare)
    return Row(
        "6",
        "exec true, against spawning it here",
        p50 / b50,
        f"p50 {p50:.2f} ms against {b50:.2f} ms: +{p50 - b50:.2f} ms (p99 {p99:.2f} ms)",
        "+5 ms",
        p50 - b50 <= 5,
        f"{len(ours)} of each in turn, one at a time, by the Python client over TCP",
    )


def idle_memory(stage: Stage) -> Iterator[Row]:
    count = 3000
    target = stage.browser(through_proxy=True)
    pids = {p["name"]: p["pid"] for p in stage.site.natskit_json("status")["processes"]}
    proxies = [pids["proxy"], *wire.children(pids["proxy"])]

    def memory() -> tuple[int, int]:
        return sum(map(wire.proportional_memory, proxies)), wire.proportional_memory(pids["nats"])

    before = memory()
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(3)
        holding = pool.starmap_async(wire.connect_many, [(barrier, target, count // 2, 16, 1.0)] * 2)
        barrier.wait(60)
        barrier.wait(60)
        after = memory()
        barrier.wait(60)
        failed = sum(storm.failed for storm in holding.get(60))
    for name, grown in zip(("nginx", "nats-server"), (b - a for a, b in zip(before, after, strict=True)), strict=True):
        yield Row(
            "7",
            f"memory of an idle browser connection in {name}",
            None,
            f"{grown / (count - failed) / 1024:.0f} KB",
            "",
            None,
            f"growth of PSS over {count} connections through the proxy with TLS, each signed in and let in",
        )


def synced_writes(stage: Stage) -> Iterator[Row]:
    for (replicas, writers), (always, seldom) in sync.rates(stage.rounds).items():
        yield Row(
            "8",
            f"JetStream writes, R{replicas}, {writers} writer{'s' * (writers > 1)}, synced always against every 2 min",
            always / seldom,
            f"{always:,.0f} of {seldom:,.0f} writes/s",
            "",
            None,
            "256 B, acknowledged, each writer waits for its own; one nats-py client, three nats-servers on one disk, "
            "which a cluster has three of; 2 s a round",
        )


@contextmanager
def bare_server(configuration: str) -> Iterator[str]:
    """A nats-server with this configuration and nothing else."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="natskit-bare-") as folder,
        running(Path(folder), f'listen: "127.0.0.1:{port}"\n{configuration}'),
    ):
        yield f"nats://127.0.0.1:{port}"


@contextmanager
def echo_servers(stage: Stage) -> Iterator[None]:
    """Two processes that answer with what they got, as little as nats-py can do; on the platform's own server."""
    creds = str(stage.site.project_creds_file(stage.world.names["p"]))
    command = [sys.executable, "-m", "bench.echo", stage.site.info["nats_urls"][0], creds]
    command.append(stage.world.name("projects.{p}.echo"))
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _websocket_sizes(stage: Stage) -> Iterator[Row]:
    for size, count in ((16, 2_000_000), (1024, 400_000), (65536, 6_000)):
        yield websocket_publish(stage, size, count)


# Memory first: a server that has seen a storm has room to spare, and would seem to need none.
MEASUREMENTS: list[tuple[str, Callable[[Stage], Iterator[Row]]]] = [
    ("7", idle_memory),
    ("1", tcp_publish),
    ("2", _websocket_sizes),
    ("3", lambda stage: iter([million_messages(stage)])),
    ("4", hub_api),
    ("5", lambda stage: iter([connects(stage), storm(stage)])),
    ("6", lambda stage: iter([exec_true(stage)])),
    ("8", synced_writes),
    ("9", rights.rows),
    ("10", crowd.rows),
    ("11", attack.rows),
    ("12", command.rows),
    ("13", scale.rows),
    ("14", files.rows),
    ("15", terminals.rows),
    ("16", documents.rows),
]
