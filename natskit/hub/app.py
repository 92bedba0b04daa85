"""A hub: its parts put together, started in order and stopped in the reverse one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats.errors
import uvicorn

from natskit.connection import Connection, connect, request
from natskit.errors import IdentityError, SettingsError
from natskit.hub import https
from natskit.hub.accounts import Accounts
from natskit.hub.audit import Audit
from natskit.hub.backend import Backends
from natskit.hub.callout import Callout
from natskit.hub.connections import Connections
from natskit.hub.http import Pages
from natskit.hub.metrics import Metrics
from natskit.hub.passwords import Passwords
from natskit.hub.program import HubProgram
from natskit.hub.projects import Projects
from natskit.hub.runners import Runners
from natskit.hub.service import Services
from natskit.hub.sessions import Sessions
from natskit.hub.state import State
from natskit.hub.tokens import Tokens
from natskit.identity import HubKeys
from natskit.permissions import inbox_prefix
from natskit.program import cancel
from natskit.rpc import load_methods

if TYPE_CHECKING:
    from natskit.hub.oidc import Oidc

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
SWEEP_SECONDS = 60.0
RETURN_SECONDS = 0.25
"""The longest pause between two attempts to reach nats-server. Hubs are few, and whoever nats-server lets in before one
is back waits for the whole ``nats_auth_timeout``."""


class Hub:
    """One hub process. Made by :meth:`start`; its attributes are what methods of the API work with."""

    program: HubProgram
    ready: bool
    """Whether everything was started, and nothing was stopped yet."""
    metrics: Metrics
    audit: Audit
    state: State
    tokens: Tokens
    connections: Connections
    sessions: Sessions
    accounts: Accounts
    backends: Backends
    oidc: Oidc | None
    projects: Projects
    runners: Runners
    services: Services

    def __init__(self, program: HubProgram) -> None:
        self.program = program
        self.metrics = Metrics()
        self.audit = Audit(program.name, self.metrics)
        self._started = time.time()
        self.ready = False
        self._tasks: list[asyncio.Task[None]] = []
        self._nats: dict[str, Connection] = {}
        self._methods = load_methods("natskit.hub", "natskit_hub", program.api_packages)
        keys = HubKeys.read(program.keys)
        self.tokens = Tokens(keys, program.authorization_ttl_seconds)
        self._new_oidc = _oidc(program, keys)
        self._passwords = Passwords(program.password)

    async def start(self) -> None:
        """Connect, read the state, and begin to answer. Waits for nats-server as long as it takes."""
        for name, creds in self._creds().items():
            apart_from = self._nats["services"] if name == "services-2" else None
            self._nats[name] = await self._connect(name, creds, apart_from)
        if "services-2" in self._nats:
            self._nats["services"].apart_from = self._nats["services-2"]
        platform = self._nats["platform"]
        self.state = State(
            platform,
            self.program.runners,
            locked_out=lambda names: self.connections.cut_now(names),
            ended=lambda names: self.connections.cut_ended(names),
            changed=lambda names: self.connections.cut_soon(names),
            changes_per_minute=self.program.share_changes_per_minute,
        )
        self.connections = Connections(platform, self.state, self.tokens.platform_account, self.metrics)
        self.sessions = Sessions(
            self.state, self.tokens, self._passwords, self.program.session, self.connections.cut_now
        )
        self.projects = Projects(
            self.state, platform, self._ask, self.connections.is_connected, self.program.max_projects_per_account
        )
        self.runners = Runners(self.state)
        self.accounts = Accounts(self.state, self._passwords, self.sessions, self.projects, self.connections.cut_now)
        self.backends = Backends(self.program.backends, self.accounts, self.sessions, self.audit)
        parts = self.state, self.accounts, self.sessions, self.audit
        self.oidc = self._new_oidc(*parts) if self._new_oidc else None
        self.services = Services(self, self._methods, self.metrics)
        self.metrics.watch(self.gauges, self.services.pings)
        self._callout = Callout(self._nats["auth"], self.state, self.tokens, self.metrics, self.audit)
        self._spawn(self.audit.run(platform))
        self._spawn(self.state.follow())
        for bucket in self.state.buckets:
            await bucket.current.wait()
        self._spawn(self.connections.run())
        self._spawn(self._sweep())
        await self._callout.start()
        for name, connection in self._nats.items():
            if name.startswith("services"):
                await self.services.start(connection)
        self.ready = True
        log.info("hub %s is ready", self.program.name)

    async def stop(self) -> None:
        """Hand over to the other hubs: take nothing new, finish what was taken, then go."""
        self.ready = False
        log.info("hub %s stops", self.program.name)
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await asyncio.wait_for(self._callout.stop(), 1)
        await self.services.stop(DRAIN_SECONDS)
        await cancel(self._tasks)
        if "platform" in self._nats:
            await self.audit.finish(self._nats["platform"])
        for connection in self._nats.values():
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await asyncio.wait_for(connection.flush(), 1)
            await connection.close()
        self._passwords.close()

    def renew(self) -> None:
        """Use the signing keys that the deploy has written meanwhile. Raises :class:`IdentityError`, and keeps the old
        ones, if they cannot be read."""
        self.tokens.use(HubKeys.read(self.program.keys))
        log.info("signs with the signing keys of its file")

    def problems(self) -> list[str]:
        """What keeps this hub from doing its work, in words; empty when all is well."""
        problems = [f"not connected to nats-server ({name})" for name, c in self._nats.items() if not c.is_connected]
        if not self.ready:
            problems.append("starting, or stopping")
        elif not self.state.current:
            problems.append("the view of the state is not current")
        if hasattr(self, "state"):
            problems += [bucket.problem for bucket in self.state.buckets if bucket.problem]
        return problems

    def gauges(self) -> dict[str, float]:
        """The hub's metrics of this moment."""
        out = {"natskit_hub_healthy": float(not self.problems()), "natskit_hub_start_time_seconds": self._started}
        if hasattr(self, "state"):
            out |= self.audit.gauges()
            for bucket in self.state.buckets:
                out[f"natskit_hub_state_{bucket.name}_keys"] = float(len(bucket.entries))
                out[f"natskit_hub_state_{bucket.name}_sequence"] = float(bucket.applied)
        return out

    # ----

    def _creds(self) -> dict[str, Path]:
        """Requests have connections of their own: what somebody floods them with delays neither the state nor a cut.

        In a cluster there are two, to different servers: whichever host dies, somebody answers.
        """
        creds = self.program.creds
        names = ["platform", "services", *(["services-2"] if len(self.program.nats.urls) > 1 else [])]
        return {**dict.fromkeys(names, creds.platform), "auth": creds.auth}

    async def _connect(self, name: str, creds: Path, apart_from: Connection | None) -> Connection:
        return await connect(
            self.program.nats,
            name=f"{self.program.name}-{name}",
            inbox_prefix=inbox_prefix("hub"),
            creds=creds,
            longest_pause=RETURN_SECONDS,
            apart_from=apart_from,
        )

    async def _ask(self, subject: str, body: bytes, seconds: float) -> bytes:
        return await request(self._nats["platform"], subject, body, seconds)

    async def _sweep(self) -> None:
        """Forget sessions that are over: JetStream drops their records by itself, without a word.

        And take requests over two servers again, if there was only one for a while.
        """
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            if "services-2" in self._nats:
                await self._nats["services-2"].move_apart()
            now = time.time()
            for key, entry in list(self.state.sessions.entries.items()):
                if entry.value.expires_at + 2 * SWEEP_SECONDS < now:
                    self.state.sessions.forget(key)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_die_loudly)
        self._tasks.append(task)


def _oidc(program: HubProgram, keys: HubKeys) -> Callable[[State, Accounts, Sessions, Audit], Oidc] | None:
    """What makes the door of the OpenID provider, if there is one. Raises :class:`SettingsError`."""
    if program.oidc is None:
        return None
    from natskit.hub.oidc import Oidc, client_secret, cookie_key  # authlib: 10 MB that most hubs do not need

    return partial(Oidc, program.oidc, client_secret(program.oidc), cookie_key(keys.auth_signing_seed))


async def serve(program: HubProgram) -> None:
    """Run a hub until SIGTERM or SIGINT. HTTP answers from the first moment, so that health can be asked.

    SIGHUP brings other signing keys and a renewed certificate into use. Raises :class:`SettingsError` for files that
    cannot be used.
    """
    hub = Hub(program)
    config = uvicorn.Config(
        Pages(hub).app(),
        host=program.http.host,
        port=program.http.port,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=int(DRAIN_SECONDS),
    )
    loop = asyncio.get_running_loop()
    certificate: ssl.SSLContext | None = None
    if program.http.tls is not None:
        config.load()
        config.ssl = certificate = https.server_context(program.http.tls)
    loop.add_signal_handler(signal.SIGHUP, _renew, hub, certificate)
    server = _Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    web = asyncio.create_task(server.serve())
    starting = asyncio.create_task(hub.start())
    await asyncio.wait({web, starting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        await web
    else:
        await cancel([starting])
    await hub.stop()


def _renew(hub: Hub, context: ssl.SSLContext | None) -> None:
    try:
        hub.renew()
    except IdentityError as error:
        log.error("the signing keys stay as they were: %s", error)
    if context is None or hub.program.http.tls is None:
        return
    try:
        certificate = https.reload(context, hub.program.http.tls)
    except SettingsError as error:
        log.error("the certificate stays as it was: %s", error)
    else:
        log.info("certificate %x, good until %s", certificate.serial_number, certificate.not_valid_after_utc)


class _Server(uvicorn.Server):
    """uvicorn raises the signal again when HTTP has ended, which would end the hub before it has handed over."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _die_loudly(task: asyncio.Task[None]) -> None:
    """A part that ended although nobody stopped it leaves a hub that only seems alive: end, and be restarted."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("a part of the hub failed", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)
