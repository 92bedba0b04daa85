"""A nats-server and hubs of the tests' own, as real processes on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import nats.errors

from natskit.connection import Connection, NatsServers, connect
from natskit.identity import Identity
from natskit.identity.claims import COOKIE
from natskit.permissions import inbox_prefix
from natskit.rpc import decode_response, encode_request
from natskit.wait import client_context

T = TypeVar("T")
ORIGIN = "https://localhost:4043"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For plain HTTP: httpx would read all the CAs of the machine for each client, which takes longer than the request."""
FAST_PASSWORDS = {"argon2_concurrency": 1, "time_cost": 1, "memory_kib": 1024}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def eventually(check: Callable[[], Awaitable[T]], what: str, seconds: float = 10) -> T:
    """Poll until ``check`` returns something true; a test never sleeps for a fixed time."""
    deadline, caught = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if found := await check():
                return found
        except Exception as error:
            caught = error
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds} s ({caught!r})")


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
        self.python_path = ""
        self.shows: tuple[Path, Path, Path] | None = None
        """CA, certificate and key for hubs that speak TLS."""
        self._server: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []

    # ---- nats-server

    @classmethod
    @contextlib.asynccontextmanager
    async def without_hubs(cls, root: Path) -> AsyncIterator[Self]:
        """A nats-server that is up, until it is not needed any more."""
        site = cls(root)
        site.start_server()
        yield site
        await site.close()

    def start_server(self) -> None:
        accounts = {
            self.identity.account_public_key(n): self.identity.account_jwt(n) for n in ("SYS", "AUTH", "PLATFORM")
        }
        config = f"""
        server_name: test
        host: 127.0.0.1
        port: {self.nats_port}
        http: 127.0.0.1:{self.monitor_port}
        operator: {self.identity.operator_jwt}
        system_account: {self.identity.account_public_key("SYS")}
        resolver: MEMORY
        resolver_preload: {{ {", ".join(f"{k}: {v}" for k, v in accounts.items())} }}
        jetstream: {{ store_dir: "{self.root}/jetstream", sync_interval: always }}
        authorization: {{ timeout: 2 }}
        max_payload: {self.max_payload}
        websocket: {{ host: 127.0.0.1, port: {self.websocket_port}, no_tls: true, jwt_cookie: "{COOKIE}" }}
        """
        path = self.root / "nats.conf"
        path.write_text(config)
        with (self.root / "nats.log").open("ab") as log:
            self._server = subprocess.Popen(
                [str(Path(sys.executable).with_name("nats-server")), "-c", str(path)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.nats_port), 0.2).close()
                return self.make_streams()
            except OSError:
                time.sleep(0.02)
        raise AssertionError((self.root / "nats.log").read_text())

    def make_streams(self, **settings: int) -> None:
        """What a deploy does between the nats-servers and the hubs."""
        command = [sys.executable, "-m", "natskit.streams", "--settings", json.dumps(settings)]
        creds = self.identity.creds("PLATFORM", "admin")
        subprocess.run([*command, f"nats://127.0.0.1:{self.nats_port}"], input=creds, text=True, check=True)

    def stop_server(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(10)
            self._server = None

    # ---- hubs

    def start_hub(self, name: str, tls: dict[str, str] | None = None, **settings: Any) -> None:
        """Start a hub as a process of its own; again, on the same port, if it ran before."""
        folder = self.root / name
        folder.mkdir(mode=0o700, exist_ok=True)
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

    async def healthy(self, name: str, seconds: float = 15) -> dict[str, Any]:
        """Wait until a hub says that it is well."""

        async def check() -> dict[str, Any] | None:
            answer = await self.http(name, "GET", "/healthz")
            return answer.json() if answer.status_code == 200 else None

        found = await eventually(check, f"{name} healthy\n{self.log(name)}", seconds)
        assert found is not None
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
        """An HTTP client of a hub; it shows the certificate of ``self.shows`` to one that speaks TLS."""
        scheme = "http" if self.shows is None else "https"
        verify = NO_TLS if self.shows is None else client_context(*self.shows)
        return httpx.AsyncClient(base_url=f"{scheme}://127.0.0.1:{self.hubs[name][1]}", timeout=20, verify=verify)

    async def sign_in(self, name: str, email: str, password: str) -> tuple[str, str]:
        """The account's id and the cookie."""
        answer = await self.http(name, "POST", "/api/sign-in", {"email": email, "password": password})
        assert answer.status_code == 200, answer.text
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
        for process, _ in self.hubs.values():
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
