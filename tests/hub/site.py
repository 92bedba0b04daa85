"""A nats-server and hubs for tests, as real processes on their own ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import httpx
import nats.errors

from natskit.bus.connection import Connection, connect
from natskit.bus.permissions import inbox_prefix
from natskit.bus.servers import NatsServers
from natskit.bus.tls_trust import client_context
from natskit.identity.claims import COOKIE
from natskit.identity.identity import Identity
from natskit.ops.stream_provisioning import WITH_STREAMS
from natskit.rpc import decode_response, encode_request
from tests.kit.nats import NatsServer, operator_mode
from tests.kit.ports import free_port
from tests.kit.wait import eventually

ORIGIN = "https://localhost:4043"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For plain HTTP: httpx would read all the CAs of the machine for each client, which takes longer than the request."""
KEEP_STATE_SECONDS = 0.5
"""So that a hub that is killed has a file, which may lack what has just happened."""
FAST_PASSWORDS = {"argon2_concurrency": 1, "time_cost": 1, "memory_kib": 1024}


class Site:
    """One nats-server and any number of hubs that share an identity."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.identity = Identity.ensure(root / "identity", now=int(time.time()))
        self.nats_port, self.websocket_port, self.monitor_port = free_port(), free_port(), free_port()
        self.runner_id = str(uuid.uuid4())
        self.runner_creds, self.runner_key = self.identity.runner_creds(self.runner_id, now=int(time.time()))
        self.hubs: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        self.max_payload = 1024 * 1024
        """Of nats-server: its default."""
        self.max_pending = 64 * 1024 * 1024
        """The same."""
        self.sync_interval = "always"
        self.max_file = 1024**4
        """What JetStream may store."""
        self.python_path = ""
        self.shows: tuple[Path, Path, Path] | None = None
        """CA, certificate and key for hubs that speak TLS."""
        self.resolver: Path | None = None
        """The folder of a full resolver, to which NATS accounts can be pushed."""
        self.server = NatsServer(root)
        self.keepers: dict[str, subprocess.Popen[bytes]] = {}
        self._keeper_starts: Counter[str] = Counter()
        self._connections: list[Connection] = []
        self._streams_admin: Connection | None = None

    # ---- nats-server

    @classmethod
    @contextlib.asynccontextmanager
    async def without_hubs(cls, root: Path) -> AsyncIterator[Self]:
        """A running nats-server without hubs."""
        site = cls(root)
        site.start_server()
        yield site
        await site.close()

    def start_server(self) -> None:
        self.server.start(f"""
        server_name: test
        host: 127.0.0.1
        port: {self.nats_port}
        http: 127.0.0.1:{self.monitor_port}
        {operator_mode(self.identity, resolver=self.resolver)}
        jetstream: {{
            store_dir: "{self.root}/jetstream", sync_interval: {self.sync_interval}, max_file: {self.max_file}
        }}
        authorization: {{ timeout: 2 }}
        max_payload: {self.max_payload}
        max_pending: {self.max_pending}
        websocket: {{ host: 127.0.0.1, port: {self.websocket_port}, no_tls: true, jwt_cookie: "{COOKIE}" }}
        """).wait_until_ready()
        self.make_streams()

    def make_streams(self, **settings: int) -> None:
        """Make the streams, as a deploy does between the nats-servers and the hubs."""
        command = [sys.executable, "-m", "natskit.ops.stream_provisioning", "--settings", json.dumps(settings)]
        for account in WITH_STREAMS:
            words = [*command, f"nats://127.0.0.1:{self.nats_port}", account]
            subprocess.run(words, input=self.identity.creds(account, "admin"), text=True, check=True)

    def stop_server(self) -> None:
        self.server.stop()

    # ---- hubs

    def start_hub(self, name: str, tls: dict[str, str] | None = None, **settings: Any) -> None:
        """Start a hub as a separate process; a hub that ran before gets its old port."""
        folder = self.root / name
        for made in (folder, folder / "state"):
            made.mkdir(mode=0o700, exist_ok=True)
        port = self.hubs[name][1] if name in self.hubs else free_port()
        creds = {}
        for account in ("AUTH", "PLATFORM"):
            path = folder / f"{account.lower()}.creds"
            _write(path, self.identity.creds(account, "hub"))
            creds[account.lower()] = str(path)
        _write(folder / "keys.json", self.identity.hub_keys().to_json())
        program = {
            "name": name,
            "http": {"host": "127.0.0.1", "port": port, "tls": tls},
            "nats": {"urls": [f"nats://127.0.0.1:{self.nats_port}"]},
            "creds": creds,
            "keys": str(folder / "keys.json"),
            "state_folder": str(folder / "state"),
            "keep_state_seconds": KEEP_STATE_SECONDS,
            "allowed_origins": [ORIGIN],
            "password": FAST_PASSWORDS,
            "runners": {self.runner_id: {"name": "local", "public_key": self.runner_key}},
            **settings,
        }
        _write(folder / "hub.json", json.dumps(program))
        with (folder / "hub.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "natskit.hub", "--settings", str(folder / "hub.json")],
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": self.python_path},
            )
        self.hubs[name] = (process, port)

    # ---- keepers

    def start_keeper(self, name: str, **settings: Any) -> None:
        """Start a keeper as a process of its own."""
        self._keeper_starts[name] += 1
        folder = self.root / name
        folder.mkdir(mode=0o700, exist_ok=True)
        for account in ("PLATFORM", "DOCS"):
            _write(folder / f"{account.lower()}.creds", self.identity.creds(account, "keeper"))
        program = {
            "name": name,
            "nats": {"urls": [f"nats://127.0.0.1:{self.nats_port}"]},
            "creds": {name: str(folder / f"{name}.creds") for name in ("platform", "docs")},
            **settings,
        }
        _write(folder / "keeper.json", json.dumps(program))
        with (folder / "keeper.log").open("ab") as log:
            self.keepers[name] = subprocess.Popen(
                [sys.executable, "-m", "natskit.keeper", "--settings", str(folder / "keeper.json")],
                stdout=log,
                stderr=log,
            )

    async def keeper_ready(self, name: str) -> None:
        """Wait until a keeper has said, since it was started for the last time, that it is ready."""
        log = self.root / name / "keeper.log"
        started = self._keeper_starts[name]
        await eventually(
            lambda: log.read_text().count("is ready") >= started, f"{name} is ready\n{log.read_text()}", 120
        )

    def kill_keeper(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        self.keepers[name].send_signal(number)
        return self.keepers[name].wait(15)

    async def healthy(self, name: str, seconds: float = 60) -> dict[str, Any]:
        """Wait until a hub reports that it is healthy."""

        async def check() -> dict[str, Any]:
            answer = await self.http(name, "GET", "/healthz")
            return answer.json() if answer.status_code == 200 else {}

        found: dict[str, Any] = await eventually(check, f"{name} healthy\n{self.log(name)}", seconds)
        return found

    def kill_hub(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        process, _ = self.hubs[name]
        process.send_signal(number)
        return process.wait(15)

    def log(self, name: str) -> str:
        path = self.root / name / "hub.log"
        return path.read_text()[-4000:] if path.exists() else ""

    async def http(
        self, name: str, method: str, path: str, body: Any = None, cookie: str = "", origin: str | None = ORIGIN
    ) -> httpx.Response:
        headers = {"Origin": origin} if origin else {}
        if cookie:
            headers["Cookie"] = f"{COOKIE}={cookie}"
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self.client(name) as client:
            return await client.request(method, path, content=content, headers=headers)

    def client(self, name: str) -> httpx.AsyncClient:
        """An HTTP client of a hub. If the hub uses TLS, the client presents the certificate in ``self.shows``."""
        scheme = "http" if self.shows is None else "https"
        verify = NO_TLS if self.shows is None else client_context(*self.shows)
        return httpx.AsyncClient(base_url=f"{scheme}://127.0.0.1:{self.hubs[name][1]}", timeout=20, verify=verify)

    async def sign_in(self, name: str, email: str, password: str) -> tuple[str, str]:
        """The account's id and the cookie. Retries: another hub may have made the account a moment ago."""

        async def attempt() -> httpx.Response:
            answer = await self.http(name, "POST", "/api/sign-in", {"email": email, "password": password})
            assert answer.status_code == 200, answer.text
            return answer

        answer = await eventually(attempt, f"{email} signs in at {name}", 3)
        return answer.json()["account_id"], cookie_of(answer)

    # ---- clients

    async def connect(self, role: Any, creds: str, identifier: str = "") -> Connection:
        path = self.root / f"client-{uuid.uuid4()}.creds"
        _write(path, creds)
        servers = NatsServers(urls=[f"nats://127.0.0.1:{self.nats_port}"])
        connection = await connect(
            servers, name=role, inbox_prefix=inbox_prefix(role, identifier), creds=path, timeout=10
        )
        self._connections.append(connection)
        return connection

    async def admin(self) -> Connection:
        return await self.connect("admin", self.identity.creds("PLATFORM", "admin"))

    async def streams_admin(self) -> Connection:
        """The control machine in STATE, which makes the streams of the state."""
        if self._streams_admin is None:
            self._streams_admin = await self.connect("admin", self.identity.creds("STATE", "admin"))
        return self._streams_admin

    async def state(self) -> Connection:
        """A hub in AUTH, from where it uses the state."""
        return await self.connect("hub", self.identity.creds("AUTH", "hub"))

    async def runner(self) -> Connection:
        return await self.connect("runner", self.runner_creds, self.runner_id)

    async def browser(self, account_id: str, cookie: str, patience: float = 5) -> Connection:
        async def headers() -> dict[str, str]:
            return {"Cookie": f"{COOKIE}={cookie}"}

        connection = await connect(
            NatsServers(urls=[f"ws://127.0.0.1:{self.websocket_port}"]),
            name="browser",
            inbox_prefix=inbox_prefix("browser", account_id),
            before_connect=headers,
            timeout=patience,
        )
        self._connections.append(connection)
        return connection

    async def close(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(Exception):
                await connection.close()
        for process in (*self.keepers.values(), *(process for process, _ in self.hubs.values())):
            if process.poll() is None:
                process.kill()
            process.wait(10)
        self.stop_server()


def cookie_of(answer: httpx.Response) -> str:
    header = answer.headers["set-cookie"]
    return str(header.split(";")[0].partition("=")[2])


async def call(connection: Connection, subject: str, method: str, **params: Any) -> Any:
    """One JSON-RPC request over NATS."""
    for _ in range(5):
        with contextlib.suppress(nats.errors.ConnectionReconnectingError):  # its rights have just changed
            answer = await connection.request(subject, encode_request(method, params), timeout=10)
            return decode_response(answer.data)
        await asyncio.sleep(0.2)
    raise AssertionError(f"{method}: the connection does not come back")


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
