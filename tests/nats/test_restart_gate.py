"""The gate of a rolling upgrade, on three real nats-servers with JetStream, one of which has a problem."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client

from natskit.bus.connection import Connection, connect
from natskit.bus.credentials import CredsText
from natskit.bus.jetstream import api
from natskit.bus.permissions import BUCKETS, DOCUMENT_STREAMS, PROBE_BUCKET, NatsAccount, Permissions
from natskit.bus.servers import NatsServers
from natskit.errors import StateError
from natskit.identity import tls
from natskit.identity.identity import Identity
from natskit.ops.stream_provisioning import StreamSettings, wanted
from natskit.process.lifecycle import cancel
from roles.nats import probe_in_platform
from tests.kit.nats import NatsServer, operator_mode
from tests.kit.ports import free_port
from tests.kit.wait import eventually

NAMES = ("nats-1", "nats-2", "nats-3")


@dataclass
class Cluster:
    """nats-servers as processes on free ports, in operator mode, so that the gate has to manage with its own user."""

    root: Path
    identity: Identity
    names: tuple[str, ...]
    secure: bool = False
    servers: dict[str, NatsServer] = field(default_factory=dict)
    ports: dict[tuple[str, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = {(name, kind): free_port() for name in self.names for kind in ("client", "cluster", "monitor")}

    def start(self, name: str) -> None:
        routes = [f'"nats://127.0.0.1:{self.ports[other, "cluster"]}"' for other in self.names]
        cluster = f"""
            cluster {{ name: test, listen: "127.0.0.1:{self.ports[name, "cluster"]}", routes: [{", ".join(routes)}] }}
        """
        encrypted = f'tls {{ cert_file: "{self.root}/tls.crt", key_file: "{self.root}/tls.key" }}'
        config = f"""
            server_name: {name}
            listen: "127.0.0.1:{self.ports[name, "client"]}"
            http: "127.0.0.1:{self.ports[name, "monitor"]}"
            {operator_mode(self.identity)}
            jetstream {{ store_dir: "{self.root / name}", sync_interval: always }}
            {cluster if len(self.names) > 1 else ""}
            {encrypted if self.secure else ""}
        """
        self.servers.setdefault(name, NatsServer(self.root, name=name)).start(config)

    def url(self, name: str) -> str:
        return f"{'tls' if self.secure else 'nats'}://127.0.0.1:{self.ports[name, 'client']}"

    def arguments(self, name: str, *more: str) -> list[str]:
        urls = [self.url(name), *(self.url(other) for other in self.names if other != name)]
        creds = self.identity.creds_path("STATE", "probe")
        monitor = f"http://127.0.0.1:{self.ports[name, 'monitor']}"
        documents = self.identity.creds_path("DOCS", "probe")
        given = ["--creds", str(creds), "--documents-creds", str(documents), "--urls", ",".join(urls)]
        given += ["--server", name, "--monitor", monitor]
        return [sys.executable, "-m", "natskit.ops.restart_gate", *given, *more]

    def gate(self, name: str, *more: str) -> str:
        """The gate's message; empty when the gate opens."""
        done = subprocess.run(self.arguments(name, *more), capture_output=True, text=True, timeout=90)
        assert done.stdout == ""
        assert (done.returncode == 0) == (done.stderr == ""), done
        assert done.stderr.count("\n") <= 1, done.stderr
        return done.stderr.strip()

    async def connect(self, role: str, name: str, account: NatsAccount = "STATE") -> Connection:
        creds = self.identity.creds_path(account, role)
        servers = NatsServers(urls=[self.url(name)])
        return await connect(servers, name=role, inbox_prefix=f"_INBOX.{role}", creds=creds, timeout=10)

    async def admin(self, account: NatsAccount = "STATE") -> Connection:
        """Connect the control machine to one of the servers."""
        ca = self.root / "tls" / "tls" / "ca.crt" if self.secure else None
        servers = NatsServers(urls=[self.url(name) for name in self.names], ca_file=ca)
        creds = self.identity.creds_path(account, "admin")
        return await connect(servers, name="admin", inbox_prefix="_INBOX.admin", creds=creds, timeout=20)

    async def make_bucket(self) -> None:
        """Make the gate's bucket, as a deploy does before the hubs start."""
        connection = await self.admin()
        streams = {config["name"]: config for config in wanted(StreamSettings(replicas=min(3, len(self.names))))}
        bucket = f"KV_{PROBE_BUCKET}"

        async def made() -> bool:
            with contextlib.suppress(StateError, nats.errors.Error):  # the servers have yet to find each other
                await api(connection, f"STREAM.CREATE.{bucket}", streams[bucket])
                return True
            return False

        await eventually(made, "the bucket", 20)
        await connection.close()

    def log(self) -> str:
        return "\n".join((self.root / f"{name}.log").read_text()[-3000:] for name in self.names)


async def ask(client: Client, subject: str, **body: Any) -> dict[str, Any]:
    answer = json.loads((await client.request(subject, json.dumps(body).encode(), timeout=5)).data)
    return dict(answer)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from running(tmp_path_factory.mktemp("gate"), NAMES)


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Cluster]:
    yield from running(tmp_path, ("nats-1",))


@contextmanager
def started(root: Path, names: tuple[str, ...] = NAMES, secure: bool = False) -> Iterator[Cluster]:
    """A cluster whose servers have been started, but may not have found each other yet."""
    cluster = Cluster(root, Identity.ensure(root / "identity", now=int(time.time())), names, secure)
    try:
        for name in names:
            cluster.start(name)
        yield cluster
    finally:
        for server in cluster.servers.values():
            server.kill()


def running(root: Path, names: tuple[str, ...], secure: bool = False) -> Iterator[Cluster]:
    with started(root, names, secure) as cluster:
        asyncio.run(cluster.make_bucket())
        yield cluster


@pytest.fixture
def well(cluster: Cluster) -> Cluster:
    """The cluster with all servers healthy."""
    for name in NAMES:
        if not cluster.servers[name].is_running:
            cluster.start(name)
    for name in NAMES:
        assert cluster.gate(name) == "", cluster.log()
    return cluster


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_when_all_is_well(well: Cluster, name: str) -> None:
    assert well.gate(name, "--before", "--seconds", "10") == ""
    assert well.gate(name, "--seconds", "10") == ""


async def test_it_writes_for_real(well: Cluster) -> None:
    admin = await well.connect("hub", "nats-3", "AUTH")
    try:
        # The bucket is not the hub's: what the gate did is seen in the monitor's numbers.
        before = await asyncio.to_thread(probe_stream, well)
        assert well.gate("nats-2") == ""
        after = await asyncio.to_thread(probe_stream, well)
    finally:
        await admin.close()
    assert after["state"]["last_seq"] == before["state"]["last_seq"] + 1
    assert after["state"]["messages"] <= len(NAMES) ** 2
    assert len(after["cluster"]["replicas"]) == 2


def probe_stream(cluster: Cluster) -> dict[str, Any]:
    url = f"http://127.0.0.1:{cluster.ports['nats-1', 'monitor']}/jsz?streams=1&config=1&accounts=1"
    with urllib.request.urlopen(url, timeout=5) as answer:
        accounts = json.load(answer)["account_details"]
    streams = [stream for account in accounts for stream in account.get("stream_detail", [])]
    return next(dict(stream) for stream in streams if stream["name"] == "KV_probe")


def test_no_second_server_goes_down(well: Cluster) -> None:
    well.servers["nats-3"].kill()
    # Longer than it takes to elect new leaders where that server led.
    said = well.gate("nats-1", "--before", "--seconds", "15")
    assert said.startswith("nats-1 must not go down now: ")
    assert f"{well.url('nats-3')} does not answer" in said
    # Offline, once the others have missed it for long enough.
    assert "; KV_probe: nats-3 is " in said


def test_the_server_that_is_down_may_be_started(well: Cluster) -> None:
    well.servers["nats-3"].kill()
    assert well.gate("nats-3", "--before", "--seconds", "10") == ""


def test_a_wedged_server_is_no_other_to_rely_on(well: Cluster) -> None:
    with well.servers["nats-2"].frozen():
        said = well.gate("nats-1", "--before", "--seconds", "6")
    assert f"{well.url('nats-2')} does not answer: nothing within 3 s" in said


def test_a_wedged_server_is_not_back(well: Cluster) -> None:
    with well.servers["nats-2"].frozen():
        assert well.servers["nats-2"].is_running
        said = well.gate("nats-2", "--seconds", "4")
    assert said.startswith("nats-2 is not back: nats-2 does not answer at ")


@contextmanager
def always_healthy() -> Iterator[str]:
    """The URL of a monitor that answers like a healthy nats-server."""

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status":"ok"}')

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_its_word_alone_is_not_enough(well: Cluster) -> None:
    """A server that reports health and does nothing, as in nats-server #8519."""
    with well.servers["nats-2"].frozen(), always_healthy() as monitor:
        said = well.gate("nats-2", "--seconds", "4", "--monitor", monitor)
    assert said == f"nats-2 is not back: {well.url('nats-2')} does not answer: nothing within 3 s"


def test_a_wedged_server_may_be_restarted(well: Cluster) -> None:
    """The gate checks only the others, and a restart may help this one."""
    with well.servers["nats-2"].frozen():
        assert well.gate("nats-2", "--before", "--seconds", "30") == ""


async def test_it_waits_for_a_server_to_catch_up(well: Cluster) -> None:
    """The server was stopped during many writes. It counts as back when its replicas have all of them."""
    hub, admin = await well.connect("hub", "nats-1", "AUTH"), await well.connect("admin", "nats-1")
    try:
        config = {"name": "KV_accounts", "subjects": ["$KV.accounts.>"], "num_replicas": 3, "max_msgs_per_subject": 1}
        assert "error" not in await ask(admin, "$JS.API.STREAM.CREATE.KV_accounts", **config)
        well.servers["nats-2"].kill()
        for _ in range(20):
            await asyncio.gather(*(write(hub, f"$KV.accounts.{n}", os.urandom(8000)) for n in range(100)))
        waiting = await asyncio.create_subprocess_exec(*well.arguments("nats-2"), stderr=asyncio.subprocess.PIPE)
        await asyncio.sleep(2)
        assert waiting.returncode is None
        well.start("nats-2")
        _, said = await asyncio.wait_for(waiting.communicate(), 60)
        assert waiting.returncode == 0, said
        info = await ask(admin, "$JS.API.STREAM.INFO.KV_accounts")
        assert [r.get("lag", 0) <= 100 and r["current"] for r in info["cluster"]["replicas"]] == [True, True]
        assert {r["name"] for r in info["cluster"]["replicas"]} | {info["cluster"]["leader"]} == set(NAMES)
    finally:
        await hub.close()
        await admin.close()


async def write(hub: Client, subject: str, value: bytes) -> None:
    async def acknowledged() -> bool:
        return "error" not in json.loads((await hub.request(subject, value, timeout=5)).data)

    await eventually(acknowledged, f"{subject} is written", 20)


async def test_it_opens_under_load(well: Cluster) -> None:
    """The replicas of a stream under constant writes never have exactly the same state."""
    hub, admin = await well.connect("hub", "nats-1", "AUTH"), await well.connect("admin", "nats-1")
    config = {"name": "KV_sessions", "subjects": ["$KV.sessions.>"], "num_replicas": 3, "max_msgs_per_subject": 1}
    written = 0

    async def keep_writing(key: int) -> None:
        nonlocal written
        while True:
            await write(hub, f"$KV.sessions.{key}", os.urandom(200))
            written += 1

    try:
        assert "error" not in await ask(admin, "$JS.API.STREAM.CREATE.KV_sessions", **config)
        writers = [asyncio.create_task(keep_writing(key)) for key in range(20)]
        for name in NAMES:
            for when in ("--before", "--seconds=15"):
                assert await asyncio.to_thread(well.gate, name, when, "--seconds", "15") == ""
        await cancel(writers)
        assert written > 100
    finally:
        await hub.close()
        await admin.close()


@pytest.mark.parametrize(
    ("account", "stream", "subject"),
    [
        ("STATE", f"KV_{BUCKETS[-1]}", f"$KV.{BUCKETS[-1]}.>"),
        ("DOCS", DOCUMENT_STREAMS[-1], f"doc.{len(DOCUMENT_STREAMS) - 1}.>"),
    ],
)
async def test_the_only_replica_does_not_go_down(
    well: Cluster, account: NatsAccount, stream: str, subject: str
) -> None:
    admin = await well.connect("admin", "nats-1", account)
    try:
        config = {"name": stream, "subjects": [subject], "num_replicas": 1}
        assert "error" not in await ask(admin, f"$JS.API.STREAM.CREATE.{stream}", **config)
        leader = (await ask(admin, f"$JS.API.STREAM.INFO.{stream}"))["cluster"]["leader"]
        said = well.gate(leader, "--before", "--seconds", "1")
        assert said == f"{leader} must not go down now: {stream}: {leader} has the only replica"
        other = next(name for name in NAMES if name != leader)
        assert well.gate(other, "--before", "--seconds", "10") == ""
        assert "error" not in await ask(admin, f"$JS.API.STREAM.UPDATE.{stream}", **config | {"num_replicas": 3})
        assert well.gate(leader, "--before", "--seconds", "20") == ""
    finally:
        await admin.close()


def test_the_first_url_is_this_servers_own(well: Cluster) -> None:
    arguments = well.arguments("nats-1", "--seconds", "1")
    arguments[arguments.index("--server") + 1] = "nats-2"
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"nats-2 is not back: {well.url('nats-1')} is nats-1, not nats-2: the first of --urls must be this server's own"
    )


def test_another_user_is_not_enough(well: Cluster) -> None:
    arguments = well.arguments("nats-1", "--seconds", "1")
    arguments[arguments.index("--creds") + 1] = str(well.identity.creds_path("STATE", "admin"))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "ermissions" in done.stderr


def test_the_deploy_that_moves_the_state_needs_no_creds_of_an_older_version(tmp_path: Path) -> None:
    """A new host has none, and those of others may have ended: their user is not in the identity any more."""
    with started(tmp_path, ("nats-1",)) as cluster:
        cluster.servers["nats-1"].kill()
        now = int(time.time())
        cluster.identity.note_state("PLATFORM", now=now)
        cluster.start("nats-1")
        creds = tmp_path / "probe.creds"
        creds.write_text(probe_in_platform(cluster.identity, now))
        arguments = cluster.arguments("nats-1", "--seconds", "10")
        arguments[arguments.index("--creds") + 1] = str(creds)

        async def in_platform(make: bool) -> int:
            """Make the streams there. How often the gate has written."""
            rights = Permissions(("$JS.API.STREAM.CREATE.*", "$JS.API.STREAM.INFO.*"), ("_INBOX.admin.>",))
            admin = CredsText(cluster.identity.temporary_creds("PLATFORM", "admin", rights, now=now, seconds=600))
            servers = NatsServers(urls=[cluster.url("nats-1")])
            connection = await connect(servers, name="a", inbox_prefix="_INBOX.admin", creds=admin, timeout=10)
            for config in wanted(StreamSettings()) if make else []:
                await api(connection, f"STREAM.CREATE.{config['name']}", config)
            info = await api(connection, f"STREAM.INFO.KV_{PROBE_BUCKET}", {})
            await connection.close()
            return int(info["state"]["last_seq"])

        assert asyncio.run(in_platform(make=True)) == 0
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=90)
        assert (done.returncode, done.stderr) == (0, "")
        assert asyncio.run(in_platform(make=False)) > 0


def test_a_single_server(single: Cluster) -> None:
    assert single.gate("nats-1") == ""
    assert single.gate("nats-1", "--before") == ""
    with single.servers["nats-1"].frozen():
        assert "does not answer" in single.gate("nats-1", "--before", "--seconds", "1")
    single.servers["nats-1"].kill()
    assert single.gate("nats-1", "--before") == ""
    assert "does not answer" in single.gate("nats-1", "--seconds", "1")


def test_with_tls(tmp_path: Path) -> None:
    now = int(time.time())
    certificate, key = tls.ensure_server_certificate(tmp_path / "tls", "nats", ["127.0.0.1"], now=now)
    (tmp_path / "tls.crt").write_text(certificate)
    (tmp_path / "tls.key").write_text(key)
    ca, foreign = tls.ensure_ca(tmp_path / "tls", now=now), tls.ensure_ca(tmp_path / "foreign", now=now)
    for server in running(tmp_path, ("nats-1",), secure=True):
        assert server.gate("nats-1", "--ca", str(ca)) == ""
        for more in (["--ca", str(foreign)], []):
            assert "CERTIFICATE_VERIFY_FAILED" in server.gate("nats-1", *more, "--seconds", "1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--server", "a b", "--urls", "nats://x"], "--server 'a b' is not valid in a subject"),
        (["--server", "a", "--urls", ","], "--urls is empty"),
        (["--server", "a", "--urls", "nats://x", "--creds", "/missing"], "there is no file /missing"),
    ],
)
def test_a_wrong_argument_is_said_at_once(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "natskit.ops.restart_gate", "--monitor", "http://127.0.0.1:1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert done.returncode == 1
    assert said in done.stderr
