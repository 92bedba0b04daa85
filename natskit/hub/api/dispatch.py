"""The dispatcher: takes JSON-RPC requests over NATS (as services of the NATS micro framework) and HTTP, and answers
them.

nats-py runs the callbacks of a subscription one after another. So only methods declared ``immediate``, which never
wait, are answered in the callback, and only if they were quick the last time. All others run as tasks, a bounded number
at a time: a slow one delays no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.micro import add_service
from nats.micro.service import Endpoint, EndpointConfig, ServiceConfig

from natskit.bus.connection import Connection
from natskit.bus.permissions import check_id, inbox_prefix
from natskit.errors import NatskitError, StateError
from natskit.hub.api import access
from natskit.hub.api.admin import admin_methods
from natskit.hub.api.agents import project_methods, runner_methods
from natskit.hub.api.call_audit import record_call
from natskit.hub.auth.disconnect import Connections
from natskit.hub.caller import Caller, Kind
from natskit.hub.context import HubContext
from natskit.hub.limits.admission import ANSWER_BYTE_SECONDS, MOST_CALLERS, REFUSAL_SECONDS, Admission
from natskit.hub.limits.fair_queue import FairQueue, StartScheduler
from natskit.hub.metrics import Metrics
from natskit.hub.state.view import Holder
from natskit.process.lifecycle import spawn
from natskit.rpc import (
    Declaration,
    Methods,
    NotCalledError,
    Request,
    RpcError,
    encode_error,
    encode_result,
    fitted,
    internal_error,
    parse,
)

log = logging.getLogger(__name__)

QUEUE = "hub"
YIELD_EVERY = 64
"""Requests handled before the event loop gets a turn: about a millisecond. nats-py goes on while there are any."""
METHOD_SECONDS = 90.0
"""The longest that a method may take. Starting a project, the slowest, has shorter limits of its own."""


class Dispatcher:
    """Answers all requests to one hub."""

    def __init__(self, hub: HubContext, methods: Methods[Caller], connections: Connections, metrics: Metrics) -> None:
        """``methods`` are those for accounts, with those of a platform's own packages."""
        self._hub = hub
        self._connections = connections
        self._metrics = metrics
        self._tables: dict[Kind, Methods[Caller]] = {
            "account": methods,
            "project": project_methods,
            "runner": runner_methods,
            "admin": admin_methods,
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._admission = Admission(hub.program.caller_share)
        self._blocked: set[str] = set()
        self._received = 0
        self._starts = StartScheduler()
        self._queues: dict[Kind, _RequestQueue] = {}
        self._endpoints: list[_Endpoint] = []
        self._callers: dict[tuple[Kind, str], tuple[Caller, str]] = {}

    async def start(self, connection: Connection) -> None:
        """Register with the micro framework and answer over this connection too."""
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
            if kind not in self._queues:
                self._queues[kind] = _RequestQueue(
                    self._handler(kind), partial(self._charge, kind, seconds=REFUSAL_SECONDS)
                )
            endpoint = _Endpoint(
                service, EndpointConfig(name=kind, subject=subject, handler=_unused, queue_group=QUEUE)
            )
            endpoint.queue = self._queues[kind]
            await endpoint._start()
            service._endpoints.append(endpoint)
            self._endpoints.append(endpoint)
        await connection.flush()

    async def stop(self, seconds: float) -> None:
        """Stop taking requests and finish the ones taken. An unresponsive connection does not hold up the others."""
        end = asyncio.get_running_loop().time() + seconds
        drained = asyncio.gather(*(endpoint.drain() for endpoint in self._endpoints), return_exceptions=True)
        await asyncio.wait({drained}, timeout=seconds / 2)
        drained.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                for queue in self._queues.values():
                    await queue.finish()
                if self._tasks:
                    await asyncio.wait(self._tasks)

    async def over_http(self, account_id: str, session_id: str, body: bytes) -> bytes | None:
        """The answer to a request of a signed-in account; ``None`` for a notification."""
        started = time.perf_counter()
        caller = Caller(self._hub, "account", account_id, session_id)
        refusal = self._enter("account", caller, body)
        if refusal is not None:
            return refusal
        try:
            request, failure = _parse(body)
            return failure if request is None else await self._call("account", caller, request, started)
        finally:
            self._admission.leave(caller.key)

    @property
    def admission(self) -> Admission:
        """What each caller has used of this hub."""
        return self._admission

    async def check_member(self, account_id: str, session_id: str, project_id: str) -> None:
        """Raises :class:`RpcError` unless the account may use the project, and the project runs."""
        caller = Caller(self._hub, "account", account_id, session_id)
        declaration = Declaration(access="member")
        await access.check_caller(caller, declaration)
        await access.check_parameters(caller, declaration, {access.PROJECT: project_id})
        if self._hub.projects.get(project_id).state != "running":
            raise RpcError("invalid_state", "the project is not running; start it first")

    # ----

    def _handler(self, kind: Kind) -> Callable[[Msg], Coroutine[Any, Any, None]]:
        """The endpoint's callback. The common case, an immediate method, is kept short."""

        async def handle(message: Msg) -> None:
            self._received += 1
            if not self._received % YIELD_EVERY:
                await asyncio.sleep(0)
            started = time.perf_counter()
            try:
                caller, inbox = self._caller(kind, message.subject)
            except NatskitError as error:
                log.warning("a request was dropped: %s", error)
                return
            if caller.key in self._blocked:
                return
            if message.reply and not message.reply.startswith(inbox):
                # The hub may publish where the caller may not, such as to buckets and to other inboxes.
                self._charge(kind, message.subject, REFUSAL_SECONDS)
                log.debug("a request of %s %s was dropped: its reply subject is not in its own inbox", kind, caller.id)
                return
            refusal = self._enter(kind, caller, message.data)
            if refusal is not None:
                await _respond(message, refusal)
                return
            request, failure = _parse(message.data)
            if request is None:
                self._admission.leave(caller.key)
                await _respond(message, failure)
                return
            if self._is_answered_here(kind, caller, request):
                self._admission.leave(caller.key)
                answer = await self._answer(kind, caller, request, started)
                if answer is not None:
                    await _respond(message, fitted(request.id, answer, message._client.max_payload))
                return
            spawn(self._tasks, self._work(kind, caller, request, message, started))

        return handle

    async def _work(self, kind: Kind, caller: Caller, request: Request, message: Msg, started: float) -> None:
        try:
            answer = await self._call(kind, caller, request, started)
            if kind == "account":
                await self._connections.wait_reconnected(caller.id)
            if answer is not None:
                answer = fitted(request.id, answer, message._client.max_payload)
            await _respond(message, answer)
        finally:
            self._admission.leave(caller.key)

    def _is_answered_here(self, kind: Kind, caller: Caller, request: Request) -> bool:
        """Whether a request can be answered in the callback: nothing in its way waits, and it does not take long."""
        if not self._declaration(kind, request).immediate or not self._starts.may_start((caller.key, request.method)):
            return False
        if kind != "account":
            return True
        # Another hub may have made the account a moment ago; or the caller is about to lose its connection.
        return self._hub.state.account(caller.id) is not None and not self._connections.is_reconnecting(caller.id)

    async def _call(self, kind: Kind, caller: Caller, request: Request, started: float) -> bytes | None:
        """The answer to a request, when it is its turn. Raises nothing but cancellation."""
        await self._starts.wait((caller.key, request.method))
        return await self._answer(kind, caller, request, started, METHOD_SECONDS)

    async def _answer(
        self, kind: Kind, caller: Caller, request: Request, started: float, most: float | None = None
    ) -> bytes | None:
        """The answer to a request, after ``most`` seconds an error. Raises nothing but cancellation."""
        outcome, answer, result, called = "ok", b"", None, True
        declaration, methods = self._declaration(kind, request), self._tables[kind]
        authorize = partial(access.check_parameters, caller)
        try:
            await access.check_caller(caller, declaration)
            begun = time.perf_counter()
            try:
                if most is None:
                    result = await methods.call(caller, request, authorize)
                else:
                    async with asyncio.timeout(most):
                        result = await methods.call(caller, request, authorize)
                answer = encode_result(request.id, result)
            finally:
                self._starts.note((caller.key, request.method), time.perf_counter() - begun, failed=not answer)
            self._admission.charge(caller.key, len(answer) * ANSWER_BYTE_SECONDS)
        except Exception as caught:
            error = _as_rpc_error(caught, request)
            outcome, answer = error.kind, encode_error(request.id, error)
            called = not isinstance(error, NotCalledError)
        if called:
            record_call(self._hub.audit, self._hub.state, caller, request, declaration, outcome, result)
        self._metrics.request(kind, outcome, time.perf_counter() - started)
        return None if request.is_notification else answer

    def _declaration(self, kind: Kind, request: Request) -> Declaration:
        """What the requested method declares; the defaults if there is no such method."""
        return self._tables[kind].declaration(request.method) or _UNDECLARED

    def _caller(self, kind: Kind, subject: str) -> tuple[Caller, str]:
        """The caller that publishes to a subject, and the prefix of its reply subjects."""
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

    def _enter(self, kind: Kind, caller: Caller, body: bytes) -> bytes | None:
        """Take a request, or return the answer that refuses it. That answer has no id: the request was not read."""
        refusal = self._admission.enter(caller.key, len(body))
        if refusal is None:
            return None
        self._block_if_flooding(caller)
        self._metrics.refused_requests.labels(kind).inc()
        return encode_error(None, refusal)

    def _charge(self, kind: Kind, subject: str, seconds: float) -> None:
        """Charge the caller of a subject for a request that was not taken."""
        found = self._callers.get((kind, subject))
        if found is None or found[0].key in self._blocked:
            return
        self._admission.charge(found[0].key, seconds)
        self._block_if_flooding(found[0])

    def _block_if_flooding(self, caller: Caller) -> None:
        """Disconnect a caller that ignores refusals and block it for a while. Its requests on the way are dropped."""
        if caller.kind == "admin" or caller.key in self._blocked or not self._admission.is_flooding(caller.key):
            return
        seconds = self._admission.block_seconds(caller.key)
        log.warning("%s %s ignores refusals: disconnected and blocked for %g s", caller.kind, caller.id, seconds)
        holder = Holder("browser" if caller.kind == "account" else caller.kind, caller.id)
        self._blocked.add(caller.key)
        self._connections.disconnect_now(self._hub.state.block(holder))
        self._hub.audit.record("held_off", account=caller.id if caller.kind == "account" else "-", by=caller.key)

        def over() -> None:
            self._blocked.discard(caller.key)
            self._hub.state.unblock(holder)

        asyncio.get_running_loop().call_later(seconds, over)


_UNDECLARED = Declaration()


class _RequestQueue:
    """The waiting requests of one kind of caller, from all connections."""

    def __init__(self, answer: Callable[[Msg], Coroutine[Any, Any, None]], dropped: Callable[[str], None]) -> None:
        self._answer = answer
        self._dropped = dropped
        """Called with the subject of each request that is dropped because too many of its caller wait."""
        self._waiting = FairQueue()
        self._work = asyncio.create_task(self._answer_in_turn())

    async def take(self, message: Msg, behind: int) -> None:
        """Answer a request, or queue it. ``behind``: how many more of the same connection have arrived."""
        if self._waiting.empty() and behind <= YIELD_EVERY:
            await self._answer(message)  # an empty queue would only cost time
        elif self._waiting.has_room(message):
            self._waiting.put_nowait(message)
        else:
            self._dropped(message.subject)

    async def finish(self) -> None:
        """Return when all queued requests are answered."""
        await self._waiting.join()
        self._work.cancel()

    async def _answer_in_turn(self) -> None:
        while True:
            message = await self._waiting.get()
            try:
                await self._answer(message)
            except Exception:
                log.exception("a request on %s was not answered", message.subject[:80])
            finally:
                self._waiting.task_done()


class _Endpoint(Endpoint):
    """An endpoint of the micro framework with a callback of our own: the framework's costs as much as a short
    method."""

    queue: _RequestQueue

    async def drain(self) -> None:
        """Take no more requests."""
        if self._subscription is not None:
            await self._subscription.drain()  # type: ignore[no-untyped-call]

    async def _handle_request(self, msg: Msg) -> None:
        self._num_requests += 1
        subscription = self._subscription  # none yet for messages that arrive while it is made
        await self.queue.take(msg, subscription.pending_msgs if subscription is not None else YIELD_EVERY + 1)


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
    return internal_error(f"method {request.method[:64]} failed", error)


async def _respond(message: Msg, answer: bytes | None) -> None:
    if answer is None or not message.reply:
        return
    try:
        await message._client.publish(message.reply, answer)
    except nats.errors.Error as error:
        # The answer is too large, or the connection was lost: the caller notices by its timeout.
        log.warning("an answer was not sent: %s", type(error).__name__)
