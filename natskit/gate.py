"""The gate of a rolling upgrade: whether a nats-server may be taken down, and whether it has come back.

    python -m natskit.gate --creds FILE --ca FILE --urls URL,URL… --server NAME --monitor URL [--before] [--seconds 60]

Runs on the host of a nats-server, on both sides of its restart. The first of ``--urls`` is this server's own, the
others are those of its cluster; ``--server`` is its ``server_name``. Exits 0, or 1 with one line that names what is
not well, after asking again for ``--seconds``.

With ``--before`` this server may go down when all of the cluster is well without it: a value written through each of
the *other* servers is read back there, and each stream has a replica beside this one, none of them behind. Nothing is
asked of a server that does not run already: there is nothing to take down. A single server has no others, and is asked
itself, so that a sick one is looked at before it is restarted.

Without it, this server has come back when it says so (``/healthz``), a value written through it is read back, and no
stream has a replica that is offline or behind. A nats-server may say that it is healthy and be wedged (nats-server
#8519), so its word alone is not enough.

The value goes into a bucket of the gate's own, as the user ``probe``, which may do nothing else (natskit/streams.py,
:data:`natskit.permissions.SCOPES`). Its JetStream API (ADR-1, ADR-31 for DIRECT, ADR-8 for the layout of a KV bucket;
docs.nats.io, "JetStream wire API Reference"):

====================================================  ================================================================
``$KV.probe.{server}``                                write; the answer is the PubAck of a majority
``$JS.API.DIRECT.GET.KV_probe.$KV.probe.{server}``    read, from this server's own replica if it has one
``$JS.API.STREAM.INFO.KV_{bucket}``                   leader and replicas, as the stream's leader sees them
====================================================  ================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import secrets
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import nats
import nats.errors
from nats.aio.client import Client

from natskit.errors import ConnectionLostError, NatskitError, StateError
from natskit.jetstream import STREAM_NOT_FOUND
from natskit.permissions import BUCKETS, PROBE_BUCKET, inbox_prefix

ANSWER_SECONDS = 3
"""How long anything may take to answer; a write that has to be synced on three disks takes milliseconds."""
PAUSE_SECONDS = 0.5
MAX_LAG = 100
"""Raft entries a replica may be behind although it is current, which is told by what its leader has applied so far."""
LOOKS = 10
"""How often a stream is looked at: while it is written to, a majority is now and then ahead of the last replica."""

_KEY = re.compile(r"[-_=/a-zA-Z0-9]+(\.[-_=/a-zA-Z0-9]+)*")


@dataclass(frozen=True)
class Gate:
    """What the gate is told; ``urls[0]`` is the server ``server`` itself. ``creds`` and ``ca`` may be missing."""

    urls: tuple[str, ...]
    server: str
    monitor: str
    creds: Path | None = None
    ca: Path | None = None

    async def before(self) -> None:
        """Raises :class:`NatskitError` unless this server may be taken down now."""
        if not await self._runs():
            return
        others = self.urls[1:]
        if not others:
            await self.after()
            return
        # All are asked, so that the error names every server that is not well.
        found = await asyncio.gather(*(_problem(self._written_through(url)) for url in others))
        problems = [problem for problem in found if problem]
        well = [url for url, problem in zip(others, found, strict=True) if not problem]
        if well:
            problem = await _problem(self._streams_well(well[0], leaving=self.server))
            problems += [problem] if problem else []
        if problems:
            raise StateError("; ".join(problems))

    async def after(self) -> None:
        """Raises :class:`NatskitError` unless this server has come back and all of the cluster is well."""
        await self._healthy()
        await self._written_through(self.urls[0], name=self.server)
        await self._streams_well(self.urls[0], leaving="")

    async def _runs(self) -> bool:
        """Whether anything listens where this server would. One that is stopped or wedged does, and hears nothing."""
        found = [_listens(self.monitor, 80), _listens(self.urls[0], 4222)]
        return any(await asyncio.gather(*found))

    async def _healthy(self) -> None:
        url = f"{self.monitor.rstrip('/')}/healthz"
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_SECONDS) as client:
                answer = await client.get(url)
            if answer.status_code == 200 and answer.json()["status"] == "ok":
                return
        except httpx.HTTPError as error:
            raise ConnectionLostError(f"{self.server} does not answer at {url}: {_reason(error)}") from None
        except (ValueError, KeyError, TypeError):
            raise StateError(f"{url} is not the monitor of a nats-server") from None
        raise StateError(f"{self.server} is not healthy: {answer.text[:200].strip()}")

    async def _written_through(self, url: str, name: str = "") -> None:
        """Write a random value through one server, and read it back there. ``name`` is what that server must be."""
        async with self._connect(url) as client:
            found = str(client._server_info.get("server_name", ""))  # nats-py tells it in no other way
            if name and found != name:
                raise StateError(f"{url} is {found}, not {name}: its own URL has to be the first")
            info = await _ask(client, f"$JS.API.STREAM.INFO.KV_{PROBE_BUCKET}", b"", url)
            if info.get("error", {}).get("err_code") == STREAM_NOT_FOUND:
                return  # it is made after the first nats-servers have been started: there is nothing to lose yet
            _check(info, f"stream KV_{PROBE_BUCKET}")
            value = secrets.token_hex(16)
            # Every server has its key, and so has every one who writes through it at the same time.
            key = found if url == self.urls[0] else f"{found}.{self.server}"
            written = await _ask(client, f"$KV.{PROBE_BUCKET}.{key}", value.encode(), url)
            _check(written, f"a write through {found}")
            if written.get("stream") != f"KV_{PROBE_BUCKET}":
                raise StateError(f"a write through {found} is acknowledged by {written.get('stream')}")
            await self._read_back(client, key, value, f"a value written through {found}")

    async def _read_back(self, client: Client, key: str, value: str, what: str) -> None:
        """The write was acknowledged by a majority; the replica that answers may still be waiting for it."""
        subject = f"$JS.API.DIRECT.GET.KV_{PROBE_BUCKET}.$KV.{PROBE_BUCKET}.{key}"
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            with _one_line(f"{what} is not read back"):
                if (await client.request(subject, b"", timeout=ANSWER_SECONDS)).data == value.encode():
                    return
            await asyncio.sleep(0.05)
        raise StateError(f"{what} is not read back within {ANSWER_SECONDS} s: the replica there does not follow")

    async def _streams_well(self, url: str, leaving: str) -> None:
        """Ask through one server how the streams are, the replica on the server ``leaving`` left out of account."""
        problems: dict[str, str] = {}
        async with self._connect(url) as client:
            for bucket in (PROBE_BUCKET, *BUCKETS):
                for problem in await self._stream(client, bucket, url, leaving):
                    # A server that is gone is missing in all of the streams: said once, with the first.
                    problems.setdefault(problem, f"KV_{bucket}: {problem}")
        if problems:
            raise StateError("; ".join(problems.values()))

    async def _stream(self, client: Client, bucket: str, url: str, leaving: str) -> list[str]:
        problems: list[str] = []
        for _ in range(LOOKS):
            info = await _ask(client, f"$JS.API.STREAM.INFO.KV_{bucket}", b"", url)
            if info.get("error", {}).get("err_code") == STREAM_NOT_FOUND:
                # The state's buckets are made after the first nats-servers have been started.
                return []
            _check(info, f"stream KV_{bucket}")
            problems = list(_problems(info.get("cluster") or {}, leaving))
            if not problems:
                return []
            await asyncio.sleep(0.05)
        return problems

    @asynccontextmanager
    async def _connect(self, url: str) -> AsyncIterator[Client]:
        """A connection to that server and to no other; nothing is tried again here."""
        complaints: list[str] = []

        async def complain(error: Exception) -> None:
            complaints.append(_reason(error))

        context = ssl.create_default_context(cafile=str(self.ca)) if self.ca else None
        client = Client()
        try:
            with _one_line(f"{url} does not answer"):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await client.connect(
                        url,
                        tls=context,
                        user_credentials=str(self.creds) if self.creds else None,
                        inbox_prefix=inbox_prefix("probe"),
                        name="gate",
                        allow_reconnect=False,
                        # nats-py tries each server once more than it is told to.
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        connect_timeout=ANSWER_SECONDS,
                        error_cb=complain,
                    )
            yield client
        except nats.errors.NoServersError:
            raise ConnectionLostError(f"{url} does not answer: {complaints[0]}") from None
        except NatskitError as error:
            # What nats-server refuses to be done it says on the side; the request for it only times out.
            refused = [text for text in complaints if "ermissions" in text]
            if refused:
                raise StateError(f"{url}: {refused[0]}") from None
            raise error
        finally:
            # Not close(): it waits for a server that is wedged.
            await _close(client)


def _problems(cluster: dict[str, Any], leaving: str) -> Iterator[str]:
    """What is not well with one stream, by ``cluster`` of its STREAM.INFO; a single server need not have it."""
    replicas = cluster.get("replicas") or []
    if replicas and not cluster.get("leader"):
        yield "no leader"
    for replica in replicas:
        name, lag = replica["name"], replica.get("lag", 0)
        if name == leaving:
            continue
        if replica.get("offline"):
            yield f"{name} is offline"
        elif not replica.get("current") or lag > MAX_LAG:
            yield f"{name} is behind" + (f" by {lag}" if lag else "")
    if leaving and {cluster.get("leader"), *(replica["name"] for replica in replicas)} <= {leaving, None}:
        yield f"{leaving} has the only replica"


async def _problem(check: Awaitable[None]) -> str:
    try:
        await check
    except NatskitError as error:
        return str(error)
    return ""


async def _ask(client: Client, subject: str, payload: bytes, whom: str) -> dict[str, Any]:
    with _one_line(f"no answer from {whom} to {subject}"):
        answer = json.loads((await client.request(subject, payload, timeout=ANSWER_SECONDS)).data)
        if isinstance(answer, dict):
            return answer
    raise StateError(f"{whom} answers {subject} with no JSON object")


def _check(answer: dict[str, Any], what: str) -> None:
    if "error" in answer:
        raise StateError(f"{what}: {answer['error'].get('description', 'failed')}")


async def _close(client: Client) -> None:
    try:
        async with asyncio.timeout(1):
            await client.close()
    except (nats.errors.Error, OSError, TimeoutError):
        pass


async def _listens(url: str, default_port: int) -> bool:
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or default_port)
    except ConnectionRefusedError:
        return False
    except (OSError, TimeoutError):
        return True
    writer.close()
    return True


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Make one line of whatever nats-py or the system says."""
    try:
        yield
    except nats.errors.NoServersError:
        raise
    except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
        raise ConnectionLostError(f"{what}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError | nats.errors.TimeoutError | httpx.TimeoutException):
        return f"nothing within {ANSWER_SECONDS} s"
    text = str(error).removeprefix("nats: ").splitlines()
    return text[0] if text else type(error).__name__


async def wait(check: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Ask until it is well, for at most ``seconds``. Raises the last :class:`NatskitError`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await check()
        except NatskitError:
            if time.monotonic() + PAUSE_SECONDS >= deadline:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


def main(arguments: list[str]) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="natskit.gate", description="May this nats-server go down; is it back?")
    parser.add_argument("--creds", type=Path, help="creds file of the user PLATFORM/probe")
    parser.add_argument("--ca", type=Path, help="certificate of the CA of the servers")
    parser.add_argument(
        "--urls", required=True, help="this server's URL, then those of the others, with commas between"
    )
    parser.add_argument("--server", required=True, help="this server's server_name")
    parser.add_argument("--monitor", required=True, help="this server's monitor, such as http://127.0.0.1:8222")
    parser.add_argument("--before", action="store_true", help="whether it may go down; without it, whether it is back")
    parser.add_argument("--seconds", type=float, default=60, help="how long to ask again")
    given = parser.parse_args(arguments)
    # What asyncio warns of whenever a TLS connection is closed is nothing to whoever reads the one line.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    gate = Gate(tuple(filter(None, given.urls.split(","))), given.server, given.monitor, given.creds, given.ca)
    try:
        _validate(gate)
        asyncio.run(wait(gate.before if given.before else gate.after, given.seconds))
    except NatskitError as error:
        when = f"{given.server} must not go down now" if given.before else f"{given.server} is not back"
        sys.exit(f"{when}: {error}")


def _validate(gate: Gate) -> None:
    if not gate.urls:
        raise NatskitError("--urls names no server")
    if not _KEY.fullmatch(gate.server):
        raise NatskitError(f"--server {gate.server!r} is no part of a subject: letters, digits and -_=/ only")
    for path in filter(None, (gate.creds, gate.ca)):
        if not path.is_file():
            raise NatskitError(f"there is no file {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
