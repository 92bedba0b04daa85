"""Load generators that cost next to nothing: frames encoded once, plain sockets, several processes.

The WebSocket mask is all zeros: legal (RFC 6455 leaves the choice to the client), and the server unmasks it like any
other, but the generator need not touch its bytes.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import resource
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.platform.raw import RawClient

BLOCK_BYTES = 256 * 1024
TIMEOUT = 120.0

Job = Callable[..., Any]


@dataclass(frozen=True)
class Target:
    """Where a generator connects: a URL (``nats:``, ``ws:``, ``wss:``) and what it shows at the door."""

    url: str
    creds: str | None = None
    cookie: str | None = None
    origin: str | None = None
    ca_file: str | None = None

    @property
    def is_websocket(self) -> bool:
        return self.url.startswith("ws")

    def connect(self) -> tuple[RawClient, socket.socket]:
        """A connection that has been let in, and its socket."""
        if self.is_websocket:
            client = RawClient.websocket(self.url, ca_file=self.ca_file, cookie=self.cookie, origin=self.origin)
        else:
            address = urlsplit(self.url)
            client = RawClient.tcp(str(address.hostname), int(address.port or 4222), self.creds)
        return client, client._transport._socket  # type: ignore[attr-defined]


def frame(target: Target, data: bytes) -> bytes:
    """What goes over the wire for these bytes of the NATS protocol."""
    if not target.is_websocket:
        return data
    if len(data) < 126:
        head = struct.pack("!BB", 0x82, 0x80 | len(data))
    elif len(data) < 1 << 16:
        head = struct.pack("!BBH", 0x82, 0x80 | 126, len(data))
    else:
        head = struct.pack("!BBQ", 0x82, 0x80 | 127, len(data))
    return head + b"\0\0\0\0" + data


def in_processes(job: Job, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Run ``job(barrier, *arguments)`` in a process each; all pass the barrier together."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(len(arguments)) as pool:
        barrier = manager.Barrier(len(arguments))
        return pool.starmap_async(job, [(barrier, *one) for one in arguments]).get(TIMEOUT)


def publish(barrier: Any, target: Target, subject: str, size: int, count: int) -> tuple[float, float, int]:
    """Publish ``count`` messages and wait for the PONG behind them: start, end, messages."""
    client, wire = target.connect()
    command = f"PUB {subject} {size}\r\n".encode() + b"x" * size + b"\r\n"
    each = max(1, BLOCK_BYTES // len(command))
    block = frame(target, command * each)
    blocks = max(1, count // each)
    ping = frame(target, b"PING\r\n")
    barrier.wait()
    started = time.monotonic()
    for _ in range(blocks):
        wire.sendall(block)
    wire.sendall(ping)
    received = b""
    while b"PONG" not in received[-64:]:
        received = received[-64:] + wire.recv(65536)
    ended = time.monotonic()
    client.close()
    return started, ended, blocks * each


def publish_rate(target: Target, subject: str, size: int, count: int, processes: int = 2) -> float:
    """Messages a second, from the first byte to the last PONG of all generators."""
    results = in_processes(publish, [(target, subject, size, count // processes)] * processes)
    started, ended = min(r[0] for r in results), max(r[1] for r in results)
    return float(sum(r[2] for r in results) / (ended - started))


def ask(
    barrier: Any, target: Target, subject: str, body: bytes, inbox: str, proof: bytes, callers: int, seconds: float
) -> tuple[float, list[float]]:
    """Requests a second with ``callers`` in flight, and (with one caller) the time of each request in seconds.

    Raises before it measures anything unless an answer has ``proof`` in it: errors are answered fast, too.
    """
    client, wire = target.connect()
    wire.settimeout(10)
    client.subscribe(inbox)
    request = frame(target, f"PUB {subject} {inbox} {len(body)}\r\n".encode() + body + b"\r\n")
    wire.sendall(request)
    answer = b""
    while proof not in answer:
        answer += wire.recv(1 << 16)
        if b"-ERR" in answer or b"NATS/1.0 503" in answer or b'"error"' in answer:
            raise AssertionError(f"{subject} gives no answer to measure: {answer!r}")
    times: list[float] = []
    answered = 0
    barrier.wait()
    started = time.perf_counter()
    wire.sendall(request * callers)
    sent = time.perf_counter()
    rest = b""
    while (now := time.perf_counter()) - started < seconds:
        data = rest + wire.recv(1 << 18)
        new = data.count(b"MSG _INBOX")
        if b'"error"' in data:
            raise AssertionError(f"{subject} answers with an error: {data[:400]!r}")
        rest = data[-9:]  # a marker may be cut in two; it has ten bytes, so it is never counted twice
        if new:
            answered += new
            if callers == 1:
                now = time.perf_counter()
                times.append(now - sent)
                sent = now
            wire.sendall(request * new)
    elapsed = time.perf_counter() - started
    client.close()
    return answered / elapsed, times


@dataclass(frozen=True)
class Storm:
    """What became of many connects: how long each took, in seconds, and the whole."""

    times: list[float]
    seconds: float
    failed: int


def connect_many(barrier: Any, target: Target, count: int, at_once: int, hold: float) -> Storm:
    """Connect ``count`` times through the callout, ``at_once`` at a time; each is done when PONG arrives."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    barrier.wait()
    return asyncio.run(_connect_many(barrier, target, count, at_once, hold))


async def _connect_many(barrier: Any, target: Target, count: int, at_once: int, hold: float) -> Storm:
    room = asyncio.Semaphore(at_once)
    open_ones: list[asyncio.StreamWriter] = []
    context = ssl.create_default_context(cafile=target.ca_file) if target.url.startswith("wss") else None

    async def one() -> float | None:
        async with room:
            started = time.perf_counter()
            try:
                _, writer = await asyncio.wait_for(handshake(target, context), 30)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                return None
            took = time.perf_counter() - started
            if hold:
                open_ones.append(writer)
            else:
                writer.transport.abort()
            return took

    began = time.perf_counter()
    times = await asyncio.gather(*(one() for _ in range(count)))
    seconds = time.perf_counter() - began
    if hold:
        await asyncio.to_thread(barrier.wait)
        await asyncio.to_thread(barrier.wait)
    for writer in open_ones:
        writer.transport.abort()
    good = [t for t in times if t is not None]
    return Storm(good, seconds, count - len(good))


async def handshake(
    target: Target, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket that has been let in. Raises :class:`ConnectionError` when it is not."""
    address = urlsplit(target.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, ssl=context)
    writer.write(
        f"GET {address.path or '/'} HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Origin: {target.origin}\r\nCookie: {target.cookie}\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    options = json.dumps({"verbose": False, "protocol": 1, "lang": "bench", "version": "1"}).encode()
    writer.write(frame(target, b"CONNECT " + options + b"\r\nPING\r\n"))
    seen = b""
    while b"PONG" not in seen:
        data = await reader.read(65536)
        if not data or b"-ERR" in data:
            writer.transport.abort()
            raise ConnectionError("refused")
        seen = seen[-8:] + data
    return reader, writer


def proportional_memory(pid: int) -> int:
    """Bytes of memory of a process, shared pages divided among those who share them (proc(5), PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
