"""The hub's NATS services: JSON-RPC requests in, answers out, registered with the NATS micro framework.

nats-py runs one subscription's callbacks one after another, so only methods that never wait are answered on the spot;
all others run as tasks, a bounded number at a time, so that a slow one delays nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import nats.errors
from nats.aio.msg import Msg
from nats.micro import add_service
from nats.micro.service import Endpoint, EndpointConfig, ServiceConfig

from natskit.connection import Connection
from natskit.errors import NatskitError, StateError
from natskit.hub.admin import admin_methods
from natskit.hub.admission import ANSWER_BYTE_SECONDS, MOST_CALLERS, PING_SECONDS, REFUSAL_SECONDS, Admission
from natskit.hub.agents import project_methods, runner_methods
from natskit.hub.audited import record_call
from natskit.hub.caller import Caller
from natskit.hub.metrics import Metrics
from natskit.hub.projects import iso
from natskit.hub.state import Holder
from natskit.hub.turns import Beginnings, Turns
from natskit.permissions import check_id, inbox_prefix
from natskit.rpc import Methods, Request, RpcError, encode_error, encode_result, parse

if TYPE_CHECKING:
    from natskit.hub.app import Hub

log = logging.getLogger(__name__)

Kind = Literal["account", "project", "runner", "admin"]

QUEUE = "hub"
ON_THE_SPOT = frozenset({"ping", "whoami"})
"""Built-in methods that never wait."""
IN_A_ROW = 64
"""Requests that are looked at before others get their turn: a millisecond. nats-py goes on while there are any."""
PONG_SECONDS = 0.001
"""The precision of the time in the answer to a ping."""
METHOD_SECONDS = 90.0
"""No method takes longer; starting a project, the slowest, has its own, shorter limits."""


class Services:
    """All services of one hub, over NATS and HTTP."""

    def __init__(self, hub: Hub, methods: Methods[Caller], metrics: Metrics) -> None:
        self._hub = hub
        self._metrics = metrics
        self._tables: dict[Kind, Methods[Caller]] = {
            "account": methods,
            "project": project_methods,
            "runner": runner_methods,
            "admin": admin_methods,
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._admission = Admission(hub.program.caller_share)
        self._held_off: set[str] = set()
        self._looked_at = 0
        self._beginnings = Beginnings()
        self._rows: dict[Kind, _Rows] = {}
        self._endpoints: list[_Endpoint] = []
        self._pings: dict[Kind, int] = {"account": 0, "project": 0}
        self._pong_made = 0.0
        self._pong_tail = b""
        self._callers: dict[tuple[Kind, str], tuple[Caller, str]] = {}

    async def start(self, connection: Connection) -> None:
        """Register with the micro framework and begin to answer, over this connection too."""
        version = ".".join([*self._hub.program.version.split("+")[0].split("."), "0", "0"][:3])
        config = ServiceConfig(name="hub", version=version, description="natskit hub", queue_group=QUEUE)
        config.metadata = {"hub": self._hub.program.name}
        service = await add_service(connection, config)
        subjects: list[tuple[Kind, str]] = [
            ("account", "hub.api.*"),
            ("project", "hub.project.*"),
            ("runner", "hub.runner.*"),
            ("admin", "hub.admin"),
        ]
        for kind, subject in subjects:
            if kind not in self._rows:
                self._rows[kind] = _Rows(self._handler(kind), partial(self._charge, kind, seconds=REFUSAL_SECONDS))
            endpoint = _Endpoint(
                service, EndpointConfig(name=kind, subject=subject, handler=_unused, queue_group=QUEUE)
            )
            endpoint.rows = self._rows[kind]
            await endpoint._start()
            service._endpoints.append(endpoint)
            self._endpoints.append(endpoint)
        await connection.flush()

    async def stop(self, seconds: float) -> None:
        """Stop taking requests and finish those that were taken. One connection that says nothing holds up nobody."""
        end = asyncio.get_running_loop().time() + seconds
        drained = asyncio.gather(*(endpoint.drain() for endpoint in self._endpoints), return_exceptions=True)
        await asyncio.wait({drained}, timeout=seconds / 2)
        drained.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                for rows in self._rows.values():
                    await rows.finish()
                if self._tasks:
                    await asyncio.wait(self._tasks)

    def pings(self) -> dict[str, float]:
        """How many pings were answered without a detour."""
        return {f"natskit_hub_{kind}_pings": float(count) for kind, count in self._pings.items()}

    async def over_http(self, caller: Caller, body: bytes) -> bytes | None:
        """The answer to a request of a signed-in person; ``None`` for a notification."""
        started = time.perf_counter()
        refusal = self._enter("account", caller, body)
        if refusal is not None:
            return refusal
        try:
            request, failure = _parse(body)
            return failure if request is None else await self._call("account", caller, request, started)
        finally:
            self._admission.leave(caller.key)

    # ----

    def _handler(self, kind: Kind) -> Callable[[Msg], Coroutine[Any, Any, None]]:
        """The endpoint's callback. The common case, a method answered on the spot, is kept short."""
        on_the_spot = ON_THE_SPOT if kind in ("account", "project") else frozenset()
        known, pings, pong = self._callers, self._pings, self._pong

        async def handle(message: Msg) -> None:
            self._looked_at += 1
            if not self._looked_at % IN_A_ROW:
                # Pings are answered without being counted: whoever sends one in so many pays for all of them.
                self._charge(kind, message.subject, IN_A_ROW * PING_SECONDS)
                await asyncio.sleep(0)
            ping = _PING.fullmatch(message.data) if on_the_spot else None
            if ping is not None and message.reply:
                found = known.get((kind, message.subject))
                if found is not None and message.reply.startswith(found[1]):
                    pings[kind] += 1
                    await message._client.publish(message.reply, pong(ping[1]))
                    return
            started = time.perf_counter()
            try:
                caller, inbox = self._caller(kind, message.subject)
            except NatskitError as error:
                log.warning("a request was dropped: %s", error)
                return
            if caller.key in self._held_off:
                return
            if message.reply and not message.reply.startswith(inbox):
                # The hub may publish where the caller may not: to its buckets, to the inboxes of all others.
                self._charge(kind, message.subject, REFUSAL_SECONDS)
                log.debug("a request of %s %s was dropped: it wants its answer elsewhere", kind, caller.id)
                return
            refusal = self._enter(kind, caller, message.data)
            if refusal is not None:
                await _respond(message, refusal)
                return
            request, failure = _parse(message.data)
            if request is None or request.method in on_the_spot:
                self._admission.leave(caller.key)
                answer = failure if request is None else await self._call(kind, caller, request, started)
                await _respond(message, answer)
                return
            task = asyncio.create_task(self._work(kind, caller, request, message, started))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return handle

    async def _work(self, kind: Kind, caller: Caller, request: Request, message: Msg, started: float) -> None:
        try:
            answer = await self._call(kind, caller, request, started)
            if kind == "account":
                await self._hub.connections.wait_back(caller.id)
            most = message._client.max_payload
            if answer is not None and len(answer) > most:
                error = RpcError(
                    "limit", f"the answer has {len(answer)} bytes, more than the {most} that fit; ask for less"
                )
                answer = encode_error(request.id, error)
            await _respond(message, answer)
        finally:
            self._admission.leave(caller.key)

    async def _call(self, kind: Kind, caller: Caller, request: Request, started: float) -> bytes | None:
        """The answer to a request; never raises anything but cancellation."""
        outcome, answer, result = "ok", b"", None
        try:
            if request.method in ON_THE_SPOT:
                result = await self._tables[kind].call(caller, request)
                answer = encode_result(request.id, result)
            else:
                if kind == "account":
                    await caller.check_may_ask(request.method)
                asked = caller.key, request.method
                await self._beginnings.wait(asked)
                begun = time.perf_counter()
                try:
                    async with asyncio.timeout(METHOD_SECONDS):
                        result = await self._tables[kind].call(caller, request)
                    answer = encode_result(request.id, result)
                finally:
                    self._beginnings.note(asked, time.perf_counter() - begun, failed=not answer)
            self._admission.charge(caller.key, len(answer) * ANSWER_BYTE_SECONDS)
        except Exception as caught:
            error = _as_rpc_error(caught, request)
            outcome, answer = error.kind, encode_error(request.id, error)
        record_call(self._hub.audit, self._hub.state, caller, request, outcome, result)
        self._metrics.requests.labels(kind, outcome).observe(time.perf_counter() - started)
        return None if request.is_notification else answer

    def _caller(self, kind: Kind, subject: str) -> tuple[Caller, str]:
        """Who asks on a subject, and how every reply subject of theirs begins."""
        found = self._callers.get((kind, subject))
        if found is None:
            identifier = subject.rpartition(".")[2]
            if kind != "admin":
                check_id(identifier, f"the {kind} in {subject[:80]}")
            if len(self._callers) > MOST_CALLERS:
                self._callers.clear()
            inbox = inbox_prefix("browser" if kind == "account" else kind, identifier) + "."
            found = self._callers[kind, subject] = Caller(self._hub, kind, identifier), inbox
        return found

    def _pong(self, identifier: bytes) -> bytes:
        """The answer of the method ``ping``."""
        now = time.time()
        if now - self._pong_made > PONG_SECONDS:
            self._pong_made = now
            result = {"pong": True, "hub": self._hub.program.name, "time": iso(now)}
            self._pong_tail = b"," + encode_result(None, result).split(b",", 2)[2]
        return b'{"jsonrpc":"2.0","id":' + identifier + self._pong_tail

    def _enter(self, kind: Kind, caller: Caller, body: bytes) -> bytes | None:
        """Take a request, or the answer that refuses it. Its id is not known: it was not read."""
        refusal = self._admission.enter(caller.key, len(body))
        if refusal is None:
            return None
        self._hold_off_if_flooding(caller)
        self._metrics.requests.labels(kind, "shed").observe(0)
        return encode_error(None, refusal)

    def _charge(self, kind: Kind, subject: str, seconds: float) -> None:
        """Count time to whoever asks on a subject, for what is not taken as a request."""
        found = self._callers.get((kind, subject))
        if found is None or found[0].key in self._held_off:
            return
        self._admission.charge(found[0].key, seconds)
        self._hold_off_if_flooding(found[0])

    def _hold_off_if_flooding(self, caller: Caller) -> None:
        """Cut the connections of somebody who floods, and let them in again a little later; drop what is on its way."""
        if caller.kind == "admin" or caller.key in self._held_off or not self._admission.is_flooding(caller.key):
            return
        seconds = self._admission.hold_off_seconds(caller.key)
        log.warning("%s %s floods this hub: held off for %g s", caller.kind, caller.id, seconds)
        holder = Holder("browser" if caller.kind == "account" else caller.kind, caller.id)
        self._held_off.add(caller.key)
        self._hub.connections.cut_now(self._hub.state.hold_off(holder))
        self._hub.audit.record("held_off", account=caller.id if caller.kind == "account" else "-", by=caller.key)

        def over() -> None:
            self._held_off.discard(caller.key)
            self._hub.state.let_in(holder)

        asyncio.get_running_loop().call_later(seconds, over)


_PING = re.compile(
    rb'\{"jsonrpc":"2\.0","id":(-?[0-9]{1,15}|"[0-9A-Za-z_-]{1,64}"),"method":"ping"(?:,"params":\{\})?\}'
)
"""A ping as natskit's clients write it: answered without a detour, since this is what is measured and watched. Any
other way to write it gets the same answer from the method of that name."""


class _Rows:
    """The requests of one kind that wait, over whichever connection they came."""

    def __init__(self, answer: Callable[[Msg], Coroutine[Any, Any, None]], flooded: Callable[[str], None]) -> None:
        self._answer = answer
        self._flooded = flooded
        """Told of each request that is dropped, since too many of its caller wait."""
        self._turns = Turns()
        self._work = asyncio.create_task(self._answer_in_turn())

    async def take(self, message: Msg, behind: int) -> None:
        """Answer a request, or let it wait; ``behind`` are as many of its connection."""
        if self._turns.empty() and behind <= IN_A_ROW:
            await self._answer(message)  # as long as no row would be long, there is none: a ping costs half as much
        elif self._turns.has_room(message):
            self._turns.put_nowait(message)
        else:
            self._flooded(message.subject)

    async def finish(self) -> None:
        """Return when all that were taken had their turn."""
        await self._turns.join()
        self._work.cancel()

    async def _answer_in_turn(self) -> None:
        while True:
            message = await self._turns.get()
            try:
                await self._answer(message)
            except Exception:
                log.exception("a request on %s was not answered", message.subject[:80])
            finally:
                self._turns.task_done()


class _Endpoint(Endpoint):
    """An endpoint of the micro framework whose callback is ours: the framework's own costs as much as a ping."""

    rows: _Rows

    async def drain(self) -> None:
        """Take no more requests."""
        if self._subscription is not None:
            await self._subscription.drain()  # type: ignore[no-untyped-call]

    async def _handle_request(self, msg: Msg) -> None:
        self._num_requests += 1
        subscription = self._subscription  # none yet for what arrives while it is made
        await self.rows.take(msg, subscription.pending_msgs if subscription is not None else IN_A_ROW + 1)


async def _unused(_: Any) -> None:
    raise NotImplementedError


def _parse(body: bytes) -> tuple[Request, None] | tuple[None, bytes]:
    try:
        return parse(body), None
    except RpcError as error:
        return None, encode_error(None, error)


def _as_rpc_error(error: Exception, request: Request) -> RpcError:
    if isinstance(error, RpcError):
        return error
    if isinstance(error, StateError):
        return RpcError("unavailable", str(error))
    if isinstance(error, TimeoutError):
        return RpcError("timeout", f"{request.method} took longer than {METHOD_SECONDS:g} s")
    log.error("method %s failed", request.method[:64], exc_info=error)
    return RpcError("internal_error", "the method failed; the hub's log says why")


async def _respond(message: Msg, answer: bytes | None) -> None:
    if answer is None or not message.reply:
        return
    try:
        await message._client.publish(message.reply, answer)
    except nats.errors.Error as error:
        # The answer may be too large, or the connection gone for long: the caller's timeout tells it.
        log.warning("an answer was not sent: %s", type(error).__name__)
