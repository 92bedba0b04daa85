"""Takes the requests for documents, and answers those of accounts that may use the project."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro import add_service
from nats.micro.service import ServiceConfig

from natskit.bus.affinity import named
from natskit.bus.connection import Connection
from natskit.bus.permissions import DISK, check_id, inbox_prefix
from natskit.errors import NatskitError, StateError
from natskit.hub.limits.admission import ANSWER_BYTE_SECONDS, REFUSAL_SECONDS, Admission
from natskit.keeper import work
from natskit.keeper.api import Caller, check_access, documents
from natskit.keeper.config import KeeperProgram
from natskit.keeper.documents import Documents
from natskit.keeper.paths import PROJECT
from natskit.keeper.peers import Peers
from natskit.keeper.rights import ADMIN, Rights
from natskit.rpc import RpcError, encode_error, encode_result, fitted, internal_error, parse

log = logging.getLogger(__name__)

QUEUE = "keeper"
YIELD_EVERY = 8
"""Requests taken before everything else gets a turn. nats-py goes on while there are any, and those of one client at
full speed would keep a keeper from hearing of changes of rights."""
METHOD_SECONDS = 30.0
"""The longest that a method may take."""


class Dispatcher:
    """Answers all requests to one keeper."""

    def __init__(
        self, program: KeeperProgram, connection: Connection, rights: Rights, kept: Documents, peers: Peers
    ) -> None:
        self._program = program
        self._connection = connection
        self._rights = rights
        self._documents = kept
        self._peers = peers
        self._admission = Admission(program.caller_share)
        self._received = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Register with the micro framework, and answer."""
        version = ".".join([*self._program.version.split("+")[0].split("."), "0", "0"][:3])
        config = ServiceConfig(name="keeper", version=version, description="natskit documents")
        config.metadata = {"keeper": self._program.name, "id": self._peers.own}
        await add_service(self._connection, config)
        # Requests to any keeper, and those to this one.
        for subject in ("docs.*.*.*", f"docs.*.*.*.{self._peers.own}"):
            self._subscriptions.append(await self._connection.subscribe(subject, queue=QUEUE, cb=self._take))
        await self._connection.flush()

    async def stop(self, seconds: float) -> None:
        """Take no more requests, and finish those taken."""
        await self._peers.leave()
        drains = [subscription.drain() for subscription in self._subscriptions]  # type: ignore[no-untyped-call]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds / 2):
                await asyncio.gather(*drains, return_exceptions=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def _take(self, message: Msg) -> None:
        self._received += 1
        if not self._received % YIELD_EVERY:
            await asyncio.sleep(0)
        _, account, project, document, *asked = message.subject.split(".")
        try:
            inbox = _inbox(account, project)
        except NatskitError:
            return
        payer = project if account == DISK else account
        if not message.reply.startswith(f"{inbox}."):
            # The keeper may publish to the inboxes of all accounts and projects.
            self._admission.charge(payer, REFUSAL_SECONDS)
            return
        if self._admission.is_flooding(payer):
            return  # it ignores refusals, which cost more than nothing
        refusal = self._admission.enter(payer, len(message.data))
        if refusal is not None:
            await self._respond(message, encode_error(None, refusal))
            return
        task = asyncio.create_task(self._work(message, payer, account, project, document, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(
        self, message: Msg, payer: str, account: str, project: str, document: str, asked: list[str]
    ) -> None:
        started, answer, handled = time.thread_time(), b"", work.begin()
        try:
            answer = await self._answer(message, account, project, document, asked)
            await self._respond(message, answer)
        finally:
            self._admission.leave(payer)
            # What others did meanwhile is in it too, so it counts no more than the bytes explain.
            spent = time.thread_time() - started
            most = 0.01 + len(message.data) * 2e-6 + sum(handled) * work.HANDLED_BYTE_SECONDS
            self._admission.charge(payer, min(spent, most) + len(answer) * ANSWER_BYTE_SECONDS)

    async def _answer(self, message: Msg, account: str, project: str, document: str, asked: list[str]) -> bytes:
        identifier: str | int | float | None = None
        try:
            request = parse(message.data)
            identifier = request.id
            _check_ids(project, document)
            async with asyncio.timeout(METHOD_SECONDS):
                await self._rights.check(account, project)
                caller = Caller(
                    documents=self._documents,
                    publish=self._connection.publish,
                    author=account,
                    project=project,
                    document=document,
                )
                result = await documents.call(caller, request, partial(check_access, caller))
            if document != PROJECT and [preferred := self._peers.preferred(document)] != asked:
                result = named(result, preferred)
            return fitted(identifier, encode_result(identifier, result), self._connection.max_payload)
        except RpcError as error:
            return encode_error(identifier, error)
        except StateError as error:
            return encode_error(identifier, RpcError("unavailable", str(error), retry_after=1))
        except TimeoutError:
            late = RpcError("unavailable", f"not done within {METHOD_SECONDS:g} s: ask again", retry_after=1)
            return encode_error(identifier, late)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of yrs is no Exception
            return encode_error(identifier, internal_error("a method of documents failed", error))

    async def _respond(self, message: Msg, answer: bytes) -> None:
        try:
            await self._connection.publish(message.reply, answer)
        except nats.errors.Error as error:
            log.debug("an answer was lost: %s", type(error).__name__)


def _inbox(account: str, project: str) -> str:
    """The inbox of who asks. Raises :class:`NatskitError` if that is nobody."""
    if account == ADMIN:
        return inbox_prefix("admin")
    if account == DISK:
        return inbox_prefix("project", check_id(project, "project"))
    return inbox_prefix("browser", check_id(account, "account"))


def _check_ids(project: str, document: str) -> None:
    """Raises :class:`RpcError` unless both are ids: a wildcard, or a subject of another kind, never gets further."""
    try:
        check_id(project, "project id")
        if document != PROJECT:
            check_id(document, "document id")
    except NatskitError as error:
        raise RpcError("forbidden", str(error)) from None
