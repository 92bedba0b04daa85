"""A hub: builds its parts, starts them in order and stops them in reverse order."""

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

from natskit.bus.connection import Connection, connect
from natskit.bus.permissions import inbox_prefix
from natskit.bus.request import request
from natskit.errors import IdentityError, SettingsError
from natskit.hub.api.access import check_declarations
from natskit.hub.api.dispatch import Dispatcher
from natskit.hub.audit.events import Audit
from natskit.hub.auth.callout import Callout
from natskit.hub.auth.disconnect import Connections
from natskit.hub.auth.passwords import Passwords, cost_of
from natskit.hub.auth.sessions import Sessions
from natskit.hub.auth.tokens import Tokens
from natskit.hub.config import HubProgram
from natskit.hub.context import HubContext
from natskit.hub.metrics import Metrics
from natskit.hub.services.accounts import Accounts
from natskit.hub.services.overview import Overview
from natskit.hub.services.projects import Projects
from natskit.hub.services.runners import Runners
from natskit.hub.sign_in.backend import Backends
from natskit.hub.state.view import State
from natskit.hub.web import tls
from natskit.hub.web.routes import HttpApi
from natskit.identity.identity import HubKeys
from natskit.process.lifecycle import cancel
from natskit.process.metrics_endpoint import MetricsEndpoint
from natskit.rpc import load_methods, set_program_name

if TYPE_CHECKING:
    from natskit.hub.sign_in.oidc import Oidc

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
APART_SECONDS = 60.0
KEEP_SECONDS, KEEP_SECONDS_AT_END = 120.0, 10.0
"""How long a hub writes its files at most; 50,000 accounts take a second. When it stops, its service manager waits for
20 s."""
KEEP_SHARE = 100
"""A hub spends a hundredth of its time on its files at most."""
HASHES_SECONDS, HASHES_AT_ONCE = 600.0, 1000
"""How often a hub looks which costs the hashes of passwords have, and at how many before it serves something else."""
RETURN_SECONDS = 0.25
"""The longest pause between two attempts to reach nats-server. Hubs are few, and a client that connects before a hub is
back waits for the whole ``nats_auth_timeout``."""


class Hub:
    """One hub process. :meth:`start` makes its parts and connects them."""

    program: HubProgram
    ready: bool
    """Whether all parts are started, and none is stopped yet."""
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
    dispatcher: Dispatcher

    def __init__(self, program: HubProgram) -> None:
        self.program = program
        self.metrics = Metrics()
        self.audit = Audit(program.name, self.metrics)
        self._started = time.time()
        self.ready = False
        self._tasks: list[asyncio.Task[None]] = []
        self._nats: dict[str, Connection] = {}
        self._methods = load_methods("natskit.hub", "natskit_hub", program.api_packages)
        check_declarations("account", self._methods)
        keys = HubKeys.read(program.keys)
        self.tokens = Tokens(keys, program.authorization_ttl_seconds)
        self._new_oidc = _oidc(program, keys)
        self._passwords = Passwords(program.password)

    async def start(self) -> None:
        """Connect, read the state, and answer. Waits for nats-server as long as it takes."""
        for name, creds in self._creds().items():
            apart_from = self._nats["services"] if name == "services-2" else None
            self._nats[name] = await self._connect(name, creds, apart_from)
        if "services-2" in self._nats:
            self._nats["services"].apart_from = self._nats["services-2"]
        platform, state = self._nats["platform"], self._nats["state"]
        self.state = State(
            state,
            self.program.runners,
            locked_out=lambda names: self.connections.disconnect_now(names),
            ended=lambda names: self.connections.disconnect_ended(names),
            changed=lambda names: self.connections.disconnect_soon(names),
            changes_per_minute=self.program.share_changes_per_minute,
        )
        self.connections = Connections(platform, self.state, self.tokens.platform_account, self.metrics)
        self.sessions = Sessions(
            self.state,
            self.tokens,
            self._passwords,
            self.program.session,
            self.connections.disconnect_now,
            self.connections.is_connected,
        )
        self.projects = Projects(
            self.state, platform, self._ask, self.connections.is_connected, self.program.max_projects_per_account
        )
        self.runners = Runners(self.state)
        self.accounts = Accounts(
            self.state, self._passwords, self.sessions, self.projects, self.connections.disconnect_now
        )
        self.backends = Backends(self.program.backends, self.accounts, self.sessions, self.audit)
        parts = self.state, self.accounts, self.sessions, self.audit
        self.oidc = self._new_oidc(*parts) if self._new_oidc else None
        overview = Overview(
            self.program.name,
            self.program.version,
            self.state,
            self.runners,
            platform,
            self._ask,
            self.metrics,
            self.problems,
            self.tokens.platform_account,
            len(self.program.nats.urls),
        )
        context = HubContext(
            program=self.program,
            state=self.state,
            accounts=self.accounts,
            projects=self.projects,
            runners=self.runners,
            overview=overview,
            sessions=self.sessions,
            tokens=self.tokens,
            audit=self.audit,
        )
        self.dispatcher = Dispatcher(context, self._methods, self.connections, self.metrics)
        self.metrics.watch(self.gauges)
        self._callout = Callout(
            self._nats["auth"], self.state, self.tokens, self.metrics, self.audit, self.connections.turn_away
        )
        self._spawn(self.audit.run(state))
        if (folder := self.program.state_folder) is not None:
            await self.state.load(folder, self.tokens.platform_account)
        self._spawn(self.state.follow())
        for bucket in self.state.buckets:
            await bucket.current.wait()
        await self._expect_hashes()
        self._spawn(self._keep_expecting_hashes())
        self._spawn(self.connections.run())
        self._spawn(self._keep_apart())
        self._spawn(self._keep_state_now_and_then())
        await self._callout.start()
        for name, connection in self._nats.items():
            if name.startswith("services"):
                await self.dispatcher.start(connection)
        self.ready = True
        log.info("hub %s is ready", self.program.name)

    async def stop(self) -> None:
        """Hand over to the other hubs: take no more requests, finish those taken, and disconnect."""
        self.ready = False
        log.info("hub %s stops", self.program.name)
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await asyncio.wait_for(self._callout.stop(), 1)
        await self.dispatcher.stop(DRAIN_SECONDS)
        await cancel(self._tasks)
        await self._keep_state(KEEP_SECONDS_AT_END)
        if "state" in self._nats:
            await self.audit.finish(self._nats["state"])
        for connection in self._nats.values():
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await asyncio.wait_for(connection.flush(), 1)
            await connection.close()
        self._passwords.close()

    def renew(self) -> None:
        """Load the signing keys again, which a deploy may have replaced. Raises :class:`IdentityError`, and keeps the
        old keys, if the file cannot be read."""
        self.tokens.use(HubKeys.read(self.program.keys))
        log.info("signing keys loaded again")

    @property
    def file_connection(self) -> Connection:
        """Carries the files that are passed on over HTTP, and nothing that they could delay."""
        return self._nats["files"]

    def problems(self) -> list[str]:
        """What keeps this hub from doing its work, in words. Empty when all is well."""
        problems = [f"not connected to nats-server ({name})" for name, c in self._nats.items() if not c.is_connected]
        if not self.ready:
            problems.append("starting, or stopping")
        elif not self.state.current:
            problems.append("the view of the state is not current")
        if hasattr(self, "state"):
            problems += [bucket.problem for bucket in self.state.buckets if bucket.problem]
        return problems

    async def metrics_text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return self.metrics.text()

    def gauges(self) -> dict[str, float]:
        """Metrics that are read when Prometheus asks."""
        out = {"natskit_hub_healthy": float(not self.problems()), "natskit_hub_start_time_seconds": self._started}
        if hasattr(self, "state"):
            out |= self.audit.gauges()
            for bucket in self.state.buckets:
                out[f"natskit_hub_state_{bucket.name}_keys"] = float(len(bucket.entries))
                out[f"natskit_hub_state_{bucket.name}_sequence"] = float(bucket.applied)
        return out

    # ----

    def _creds(self) -> dict[str, Path]:
        """The creds file of each connection, by its name.

        Requests have their own connections, so that a flood of them delays neither the state nor a disconnect. In a
        cluster there are two, to different servers: if one host dies, the hub still answers. So have files, whose parts
        are large, and the state, which is read in large parts and must not wait for the auth callout's answers.
        """
        creds = self.program.creds
        names = ["platform", "files", "services", *(["services-2"] if len(self.program.nats.urls) > 1 else [])]
        return {**dict.fromkeys(names, creds.platform), **dict.fromkeys(("auth", "state"), creds.auth)}

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

    async def _keep_apart(self) -> None:
        """Take requests over two servers again after only one was available."""
        while True:
            await asyncio.sleep(APART_SECONDS)
            await self._nats["services"].move_apart()

    async def _keep_state_now_and_then(self) -> None:
        pause = self.program.keep_state_seconds
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            await self._keep_state(KEEP_SECONDS)
            pause = max(self.program.keep_state_seconds, KEEP_SHARE * (time.monotonic() - began))

    async def _keep_state(self, seconds: float) -> None:
        """Write the files with which the next start is quicker, for ``seconds`` at most. Without them, nothing is
        lost."""
        if (folder := self.program.state_folder) is None or not hasattr(self, "state"):
            return
        try:
            async with asyncio.timeout(seconds):
                await self.state.keep(folder, self.tokens.platform_account)
        except OSError as error:  # a timeout is one, too
            log.warning(
                "%s: the state is not kept for the next start: %s", folder, error.strerror or "it takes too long"
            )

    async def _expect_hashes(self) -> None:
        """Tell the passwords what stored hashes cost."""
        stored = set[str]()
        for number, (_, account) in enumerate(self.state.all_accounts()):
            stored.add(cost_of(account.password_hash))
            if not number % HASHES_AT_ONCE:
                await asyncio.sleep(0)
        self._passwords.expect(stored)

    async def _keep_expecting_hashes(self) -> None:
        while True:
            await asyncio.sleep(HASHES_SECONDS)
            await self._expect_hashes()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_die_loudly)
        self._tasks.append(task)


def _oidc(program: HubProgram, keys: HubKeys) -> Callable[[State, Accounts, Sessions, Audit], Oidc] | None:
    """Makes the sign-in at the OpenID provider of the settings, if there is one. Raises :class:`SettingsError`."""
    if program.oidc is None:
        return None
    from natskit.hub.sign_in.oidc import Oidc, client_secret, cookie_key  # authlib: 10 MB that most hubs do not need

    return partial(Oidc, program.oidc, client_secret(program.oidc), cookie_key(keys.auth_signing_seed))


async def serve(program: HubProgram) -> None:
    """Run a hub until SIGTERM or SIGINT. HTTP answers from the start, so that the health can be checked.

    SIGHUP loads the signing keys and the certificate again. Raises :class:`SettingsError` for unusable files.
    """
    set_program_name(program.name)
    hub = Hub(program)
    config = uvicorn.Config(
        HttpApi(hub).app(),
        host=program.http.host,
        port=program.http.port,
        http="httptools",
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
        config.ssl = certificate = tls.server_context(program.http.tls)
    metrics = MetricsEndpoint(program.metrics, hub.metrics_text) if program.metrics else None
    loop.add_signal_handler(signal.SIGHUP, _renew, hub, certificate, metrics)
    server = _Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    if metrics is not None:
        await metrics.start()
    web = asyncio.create_task(server.serve())
    starting = asyncio.create_task(hub.start())
    await asyncio.wait({web, starting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        await web
    else:
        await cancel([starting])
    await hub.stop()
    if metrics is not None:
        await metrics.close()


def _renew(hub: Hub, context: ssl.SSLContext | None, metrics: MetricsEndpoint | None) -> None:
    try:
        hub.renew()
    except IdentityError as error:
        log.error("the old signing keys stay in use: %s", error)
    if context is None or hub.program.http.tls is None:
        return
    try:
        certificate = tls.reload(context, hub.program.http.tls)
        if metrics is not None:
            metrics.renew()
    except SettingsError as error:
        log.error("the old certificate stays in use: %s", error)
    else:
        log.info("certificate %x, good until %s", certificate.serial_number, certificate.not_valid_after_utc)


class _Server(uvicorn.Server):
    """uvicorn raises the signal again after HTTP has stopped, which would end the hub before it has handed over."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _die_loudly(task: asyncio.Task[None]) -> None:
    """A failed part leaves a hub that only seems alive: end the process, so that it is restarted."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("a part of the hub failed", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)
