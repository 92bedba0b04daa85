"""The gate of a rolling restart: checks that a nats-server may stop, and later that it is back.

    python -m natskit.ops.restart_gate --creds FILE --documents-creds FILE --ca FILE --urls URL,URL… --server NAME
    --monitor URL [--before] [--seconds 60]

Runs on the host of a nats-server, before and after its restart. The first of ``--urls`` is the URL of this server, the
others are the URLs of the rest of its cluster. ``--server`` is its ``server_name``. Retries for ``--seconds``. Exits 0
on success, or 1 with one line that names every problem.

With ``--before``, this server may stop if the cluster is healthy without it: a value written through each of the
*other* servers can be read back there, and each stream has another replica and none that lags. A server that is not
running may always be restarted. A single server has no others and is checked itself, so that an administrator looks at
an unhealthy server before it restarts.

Without ``--before``, this server is back if ``/healthz`` says so, a value written through it can be read back, and no
stream has a replica that is offline or lags. ``/healthz`` alone is not enough: a wedged nats-server may report that it
is healthy (nats-server #8519).

The value is written to the gate's own bucket, as the user ``probe`` of the NATS account STATE, who may do nothing else
(natskit/ops/stream_provisioning.py, :data:`natskit.bus.permissions.STATE_SCOPES`). The streams of documents are in
another NATS account, where the gate is another user, ``probe`` of DOCS. Its JetStream API (ADR-1, ADR-31 for
DIRECT, ADR-8 for the layout of a KV bucket; docs.nats.io, "JetStream wire API Reference"):

====================================================  ================================================================
``$KV.probe.{server}``                                write; the answer is the PubAck of a majority
``$JS.API.DIRECT.GET.KV_probe.$KV.probe.{server}``    read, from this server's own replica if it has one
``$JS.API.STREAM.INFO.{stream}``                      leader and replicas, reported by the stream's leader
====================================================  ================================================================
"""

from __future__ import annotations

import natskit.process.httpx_without_rich  # noqa: F401 - must come first

# isort: split
import argparse
import asyncio
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import nats
import nats.errors
from nats.aio.client import Client

from natskit.bus.jetstream import STREAM_NOT_FOUND
from natskit.bus.permissions import BUCKETS, DOCUMENT_STREAMS, PROBE_BUCKET, inbox_prefix
from natskit.bus.tls_trust import client_context
from natskit.errors import ConnectionLostError, NatskitError, StateError

ANSWER_SECONDS = 3
"""Maximum time for one answer. A write that is synced to three disks takes milliseconds."""
PAUSE_SECONDS = 0.5
MAX_LAG = 100
"""Raft entries that a current replica may lag behind; the leader counts them from what it has applied itself."""
STREAM_CHECKS = 10
"""Checks of a stream before a lagging replica is a problem. During writes, a majority is sometimes ahead of the rest.
"""

STATE_STREAMS = tuple(f"KV_{bucket}" for bucket in (PROBE_BUCKET, *BUCKETS))

_KEY = re.compile(r"[-_=/a-zA-Z0-9]+(\.[-_=/a-zA-Z0-9]+)*")


class RefusedError(StateError):
    """A nats-server does not know the gate's user."""


@dataclass(frozen=True)
class Gate:
    """The gate of one server. ``urls[0]`` is the URL of ``server`` itself; the creds and ``ca`` are optional."""

    urls: tuple[str, ...]
    server: str
    monitor: str
    creds: Path | None = None
    ca: Path | None = None
    documents_creds: Path | None = None

    async def before(self) -> None:
        """Raises :class:`NatskitError` unless this server may stop now."""
        if not await self._runs():
            return
        others = self.urls[1:]
        if not others:
            await self.after()
            return
        # Check all of them, so that the error names every unhealthy server.
        found = await asyncio.gather(*(_problem(self._write_and_read(url)) for url in others))
        problems = [problem for problem in found if problem]
        healthy = [url for url, problem in zip(others, found, strict=True) if not problem]
        if healthy:
            problem = await _problem(self._check_streams(healthy[0], leaving=self.server))
            problems += [problem] if problem else []
        if problems:
            raise StateError("; ".join(problems))

    async def after(self) -> None:
        """Raises :class:`NatskitError` unless this server is back and the whole cluster is healthy."""
        await self._check_health()
        await self._write_and_read(self.urls[0], name=self.server)
        await self._check_streams(self.urls[0], leaving="")

    async def _runs(self) -> bool:
        """Whether a program listens on this server's ports. True also for a suspended or wedged server."""
        found = [_listens(self.monitor, 80), _listens(self.urls[0], 4222)]
        return any(await asyncio.gather(*found))

    async def _check_health(self) -> None:
        url = f"{self.monitor.rstrip('/')}/healthz"
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_SECONDS) as client:
                answer = await client.get(url)
            if answer.status_code == 200 and answer.json()["status"] == "ok":
                return
        except httpx.HTTPError as error:
            raise ConnectionLostError(f"{self.server} does not answer at {url}: {_reason(error)}") from None
        except (ValueError, KeyError, TypeError):
            raise StateError(f"{url} is not a nats-server's monitoring endpoint") from None
        raise StateError(f"{self.server} is not healthy: {answer.text[:200].strip()}")

    async def _write_and_read(self, url: str, name: str = "") -> None:
        """Write a random value through one server and read it back there. With ``name``, check the server's name."""
        async with self._connect(url) as client:
            found = str(client._server_info.get("server_name", ""))  # nats-py has no public attribute for it
            if name and found != name:
                raise StateError(f"{url} is {found}, not {name}: the first of --urls must be this server's own")
            info = await _ask(client, f"$JS.API.STREAM.INFO.KV_{PROBE_BUCKET}", b"", url)
            if info.get("error", {}).get("err_code") == STREAM_NOT_FOUND:
                return  # the first deploy creates the bucket after it started nats-server: there is no data to lose yet
            _check(info, f"stream KV_{PROBE_BUCKET}")
            value = secrets.token_hex(16)
            # One key per server and writer: several gates may write through a server at the same time.
            key = found if url == self.urls[0] else f"{found}.{self.server}"
            written = await _ask(client, f"$KV.{PROBE_BUCKET}.{key}", value.encode(), url)
            _check(written, f"a write through {found}")
            if written.get("stream") != f"KV_{PROBE_BUCKET}":
                raise StateError(f"a write through {found} is acknowledged by {written.get('stream')}")
            await self._read_back(client, key, value, f"a value written through {found}")

    async def _read_back(self, client: Client, key: str, value: str, what: str) -> None:
        """Retries, because only a majority has acknowledged the write: the replica that answers may not have it yet."""
        subject = f"$JS.API.DIRECT.GET.KV_{PROBE_BUCKET}.$KV.{PROBE_BUCKET}.{key}"
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            with _one_line(f"{what} is not read back"):
                if (await client.request(subject, b"", timeout=ANSWER_SECONDS)).data == value.encode():
                    return
            await asyncio.sleep(0.05)
        raise StateError(f"{what} is not read back within {ANSWER_SECONDS} s: the replica there lags")

    async def _check_streams(self, url: str, leaving: str) -> None:
        """Check all streams through one server. Ignores the replicas on the server ``leaving``."""
        problems: dict[str, str] = {}
        async with self._connect(url) as client:
            await self._look(client, STATE_STREAMS, url, leaving, problems)
        if self.documents_creds is not None:
            # A server that knows no documents' probe yet was started by an earlier natskit: its NATS accounts are
            # renewed after its restart.
            with suppress(RefusedError):
                async with self._connect(url, self.documents_creds) as client:
                    await self._look(client, DOCUMENT_STREAMS, url, leaving, problems)
        if problems:
            raise StateError("; ".join(problems.values()))

    async def _look(
        self, client: Client, streams: tuple[str, ...], url: str, leaving: str, problems: dict[str, str]
    ) -> None:
        for stream in streams:
            for problem in await self._stream(client, stream, url, leaving):
                # A server that is down is missing in every stream. Report it once, with the first stream.
                problems.setdefault(problem, f"{stream}: {problem}")

    async def _stream(self, client: Client, stream: str, url: str, leaving: str) -> list[str]:
        problems: list[str] = []
        for _ in range(STREAM_CHECKS):
            info = await _ask(client, f"$JS.API.STREAM.INFO.{stream}", b"", url)
            if info.get("error", {}).get("err_code") == STREAM_NOT_FOUND:
                # The first deploy creates the streams after it started nats-server.
                return []
            _check(info, f"stream {stream}")
            problems = list(_problems(info.get("cluster") or {}, leaving))
            if not problems:
                return []
            await asyncio.sleep(0.05)
        return problems

    @asynccontextmanager
    async def _connect(self, url: str, creds: Path | None = None) -> AsyncIterator[Client]:
        """Connect to this server and no other, without retries."""
        creds = creds or self.creds
        complaints: list[str] = []

        async def complain(error: Exception) -> None:
            complaints.append(_reason(error))

        context = client_context(self.ca) if self.ca else None
        client = Client()
        try:
            with _one_line(f"{url} does not answer"):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await client.connect(
                        url,
                        tls=context,
                        user_credentials=str(creds) if creds else None,
                        inbox_prefix=inbox_prefix("probe"),
                        name="gate",
                        allow_reconnect=False,
                        # nats-py makes one attempt more than this number.
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        connect_timeout=ANSWER_SECONDS,
                        error_cb=complain,
                    )
            yield client
        except nats.errors.NoServersError:
            if "uthorization" in complaints[0]:
                raise RefusedError(f"{url} does not answer: {complaints[0]}") from None
            raise ConnectionLostError(f"{url} does not answer: {complaints[0]}") from None
        except NatskitError as error:
            # nats-server reports a permission violation separately; the request itself only times out.
            refused = [text for text in complaints if "ermissions" in text]
            if refused:
                raise StateError(f"{url}: {refused[0]}") from None
            raise error
        finally:
            # Not client.close() alone: it waits for a wedged server.
            await _close(client)


def _problems(cluster: dict[str, Any], leaving: str) -> Iterator[str]:
    """The problems of one stream, from the ``cluster`` of its STREAM.INFO, which a single server may omit."""
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
    raise StateError(f"{whom} answers {subject} without a JSON object")


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
    """Turn any error of nats-py or the operating system into one line."""
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
    """Retry a check until it succeeds, for at most ``seconds``. Raises the last :class:`NatskitError`."""
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
    parser = argparse.ArgumentParser(
        prog="natskit.ops.restart_gate", description="Check that this nats-server may stop, or that it is back."
    )
    parser.add_argument("--creds", type=Path, help="creds file of the user STATE/probe")
    parser.add_argument("--documents-creds", type=Path, help="creds file of the user DOCS/probe")
    parser.add_argument("--ca", type=Path, help="certificate of the CA of the servers")
    parser.add_argument(
        "--urls", required=True, help="this server's URL, then those of the others, separated by commas"
    )
    parser.add_argument("--server", required=True, help="this server's server_name")
    parser.add_argument("--monitor", required=True, help="this server's monitoring URL, such as http://127.0.0.1:8222")
    parser.add_argument("--before", action="store_true", help="check that it may stop, instead of that it is back")
    parser.add_argument("--seconds", type=float, default=60, help="how long to retry")
    given = parser.parse_args(arguments)
    # asyncio warns whenever a TLS connection closes. The output must stay one line.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    urls = tuple(filter(None, given.urls.split(",")))
    gate = Gate(urls, given.server, given.monitor, given.creds, given.ca, given.documents_creds)
    try:
        _validate(gate)
        asyncio.run(wait(gate.before if given.before else gate.after, given.seconds))
    except NatskitError as error:
        when = f"{given.server} must not go down now" if given.before else f"{given.server} is not back"
        sys.exit(f"{when}: {error}")


def _validate(gate: Gate) -> None:
    if not gate.urls:
        raise NatskitError("--urls is empty: give this server's URL first")
    if not _KEY.fullmatch(gate.server):
        raise NatskitError(f"--server {gate.server!r} is not valid in a subject: use only letters, digits and -_=/")
    for path in filter(None, (gate.creds, gate.documents_creds, gate.ca)):
        if not path.is_file():
            raise NatskitError(f"there is no file {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
