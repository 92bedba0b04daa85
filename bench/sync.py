"""What it costs to have every write on disk before it is acknowledged (``nats_sync_interval = "always"``)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from natskit.bus.connection import Connection, connect
from natskit.bus.servers import NatsServers
from tests.kit.nats import NatsServer
from tests.kit.ports import free_ports
from tests.kit.wait import wait_for

SECONDS = 2.0
SERVERS = 3


@contextlib.contextmanager
def servers(sync_interval: str) -> Iterator[str]:
    """A cluster of nats-servers with JetStream, on this machine's disk; the URL of one."""
    with tempfile.TemporaryDirectory(prefix="natskit-sync-") as folder, contextlib.ExitStack() as stack:
        ports = free_ports(3 * SERVERS)
        clients, routes, monitors = ports[:SERVERS], ports[SERVERS : 2 * SERVERS], ports[2 * SERVERS :]
        others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        for number in range(SERVERS):
            config = (
                f'server_name: s{number}\nlisten: "127.0.0.1:{clients[number]}"\n'
                f'http: "127.0.0.1:{monitors[number]}"\n'
                f'cluster {{ name: sync, listen: "127.0.0.1:{routes[number]}", routes: [{others}] }}\n'
                f'jetstream {{ store_dir: "{folder}/{number}", sync_interval: "{sync_interval}" }}\n'
            )
            server = NatsServer(Path(folder), config, name=str(number))
            stack.callback(server.stop)
            server.start()
        url = f"nats://127.0.0.1:{clients[0]}"
        wait_for(lambda: asyncio.run(_make_streams(url)), "the nats-servers", 60)
        yield url


async def _make_streams(url: str) -> bool:
    client = await _connected(url, 1)
    try:
        for replicas in (1, SERVERS):
            wanted = {"name": f"R{replicas}", "subjects": [f"R{replicas}.>"], "num_replicas": replicas}
            body = json.dumps(wanted | {"storage": "file", "max_msgs_per_subject": 1}).encode()
            answer = await client.request(f"$JS.API.STREAM.CREATE.R{replicas}", body, timeout=5)
            if "error" in json.loads(answer.data):
                return False
    finally:
        await client.close()
    return True


async def _connected(url: str, seconds: float) -> Connection:
    return await connect(NatsServers(urls=[url]), name="sync", inbox_prefix="_INBOX", timeout=seconds)


async def _rate(url: str, replicas: int, writers: int) -> float:
    """Acknowledged writes a second of so many writers, each waiting for its own."""
    client = await _connected(url, 10)
    deadline, done = time.monotonic() + SECONDS, 0

    async def write(number: int) -> None:
        nonlocal done
        while time.monotonic() < deadline:
            answer = await client.request(f"R{replicas}.{number}", b"x" * 256, timeout=10)
            assert b"error" not in answer.data, answer.data
            done += 1

    started = time.monotonic()
    await asyncio.gather(*(write(number) for number in range(writers)))
    seconds = time.monotonic() - started
    await client.close()
    return done / seconds


def rates(rounds: int) -> dict[tuple[int, int], tuple[float, float]]:
    """Writes per second by replicas and writers: always synced, and with the server's default. Medians, alternating."""
    found: dict[tuple[int, int], tuple[list[float], list[float]]] = {}
    with servers("always") as always, servers("2m") as seldom:
        for _ in range(rounds):
            for replicas in (1, SERVERS):
                for writers in (1, 50):
                    ours, theirs = found.setdefault((replicas, writers), ([], []))
                    ours.append(asyncio.run(_rate(always, replicas, writers)))
                    theirs.append(asyncio.run(_rate(seldom, replicas, writers)))
    return {key: (statistics.median(ours), statistics.median(theirs)) for key, (ours, theirs) in found.items()}
