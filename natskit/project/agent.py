"""The project agent: answers JSON-RPC on ``projects.{id}.api`` and streams the output of commands."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import nats.errors
from nats.aio.msg import Msg

from natskit import rpc
from natskit.bus.connection import Connection, connect, log_status
from natskit.bus.output_stream import HEADER_ROOM, MAX_WINDOW_BYTES, control_message
from natskit.bus.payload import Pieces, json_and_data, to_json, with_data
from natskit.bus.permissions import account_of_inbox, inbox_prefix, owner_of_inbox
from natskit.bus.request import request
from natskit.errors import NatskitError, SettingsError
from natskit.process.lifecycle import spawn
from natskit.project import environment
from natskit.project.background_output import Leftovers
from natskit.project.bound.bindings import Bindings
from natskit.project.config import ProjectProgram
from natskit.project.files import Home
from natskit.project.jobs import Jobs
from natskit.project.sender import Sender
from natskit.project.terminals.table import Terminals
from natskit.project.transfer import Uploads
from natskit.project.watch import Watches, WatchEvent

log = logging.getLogger(__name__)

ACCESS = "member"
"""The one access rule of a project's methods: nats-server enforces it (natskit/bus/permissions.py)."""
REMEMBERED = 4096
"""How many requests for a stream the agent recognises when they are repeated, and how many ended streams."""
HUB_SECONDS, HUB_PAUSE = 5.0, 0.5
ANSWERS_WITH_DATA = 8
"""How many parts of files are read and sent at a time, each of at most a message: memory stays bounded."""
MOST_RECEIVED_DATA = 32 * 1024 * 1024
"""Bytes of the parts of files that wait for the disk. What arrives beyond that is refused, and sent again."""
RETRY_SECONDS = 0.2
LONG_WORK = 4
"""How many copies and removals of whole folders run at a time."""

T = TypeVar("T")


class Steered(Protocol):
    """What the reader of a stream controls: a command, or its view of a terminal."""

    @property
    def stdin_received(self) -> int:
        """How many bytes of input have arrived."""

    def feed(self, data: bytes) -> None:
        """Take input."""

    def end_of_input(self) -> None:
        """Take the end of the input."""

    def cancel(self) -> None:
        """End it because the reader asked."""

    def kill(self) -> None:
        """End it because the project stops."""


@dataclass
class Caller:
    """The caller, and the project: the first parameter of every method of the agent.

    The agent knows that nats-server allowed the caller to publish to this project, and nothing else about it.
    """

    agent: Agent
    reply: str
    data: memoryview = field(default=memoryview(b""), repr=False)
    """The bytes after the request's JSON, such as a part of a file."""
    answer_data: bytes = field(default=b"", repr=False)
    """The bytes that a method answers with after its JSON. See :meth:`take_turn`."""
    stream: Sender | None = field(default=None, repr=False)
    _stream_id: str = ""
    _turns: asyncio.Semaphore | None = field(default=None, repr=False)

    @property
    def project_id(self) -> str:
        """The project's id."""
        return self.agent.program.project_id

    @property
    def home(self) -> Home:
        """The project's files."""
        return self.agent.home

    @property
    def max_answer(self) -> int:
        """The most bytes in one answer."""
        return self.agent.max_answer

    @property
    def account(self) -> str:
        """Who asks: the account that the answer goes to, or what else the inbox belongs to. The caller chose it."""
        return owner_of_inbox(self.reply)

    async def take_turn(self) -> None:
        """Wait until few others hold :attr:`answer_data`. The turn ends when the answer is on its way."""
        await self.agent.answering.acquire()
        self._turns = self.agent.answering

    async def open_stream(self, steered: Steered | None = None, *, window: int = MAX_WINDOW_BYTES) -> Sender:
        """Answer with a stream of frames; the result of the method becomes the last frame.

        What is ``steered`` also gets the caller's stdin and cancellation. ``window`` limits the unacknowledged bytes
        further than the settings do.
        """
        if not self.reply:
            raise rpc.RpcError("invalid_request", "a streamed answer needs a reply subject")
        self._stream_id, self.stream = self.agent.add_stream(self.reply, steered, window)
        await self.stream.start()
        return self.stream


def _check_access(methods: rpc.Methods[Caller]) -> None:
    """nats-server lets only the project's members publish requests, and the agent does not learn who of them it was."""
    for name, declaration in methods.declarations().items():
        if declaration.access not in (None, ACCESS):
            raise SettingsError(
                f"method {name!r}: a project cannot enforce the access rule {declaration.access!r}: every member may "
                "call its methods; remove access=, or make it a method of the hub"
            )


class Agent:
    """One project's agent, from connect to close."""

    def __init__(self, program: ProjectProgram, methods: rpc.Methods[Caller]) -> None:
        """Raises :class:`SettingsError` for a method with an access rule that the agent would not enforce."""
        _check_access(methods)
        self.program = program
        self.home = Home(program.home)
        self._methods = methods
        self._connection: Connection | None = None
        self._streams: dict[str, tuple[Sender, Steered | None]] = {}
        self._opened: dict[str, str] = {}
        """The stream of each reply subject, the oldest first."""
        self._given_up: dict[str, str] = {}
        """Why a stream ended before its reader had every frame, the oldest first."""
        self._answers: set[asyncio.Task[None]] = set()
        self._closed = False
        self.leftovers = Leftovers()
        """The pipes that background processes of ended commands still write to."""
        limits = program.unattended
        self.terminals = Terminals(limits)
        """The terminals whose programs run."""
        self.jobs = Jobs(limits.max_jobs, limits.job_output_bytes, limits.output_rate)
        """The commands that need no reader."""
        self.writing = asyncio.Lock()
        """Held while a file is compared and replaced."""
        self.uploads = Uploads()
        self.watches = Watches(self._publish_files_event)
        """The folders whose changes become events."""
        self.bindings = Bindings(program.project_id, self.home, self.writing, program.max_documents)
        """The documents that are kept the same as their files."""
        self.answering = asyncio.Semaphore(ANSWERS_WITH_DATA)
        self._received_data = 0
        """Bytes of the parts of files that are being written."""
        self._long_work = ThreadPoolExecutor(LONG_WORK, "long-work")
        self.stopping = threading.Event()
        """Set when the agent ends: long work in threads ends as well."""

    async def start(self) -> None:
        """Connect, trying until a server accepts, and answer requests."""
        project = self.program.project_id
        prefix = inbox_prefix("project", project)
        self._connection = await connect(
            self.program.nats,
            name=f"project {project}",
            inbox_prefix=prefix,
            creds=self.program.creds,
            on_status=log_status,
        )
        await self._connection.subscribe(f"projects.{project}.api", cb=self._on_request)
        await self._connection.subscribe(f"projects.{project}.streams.*", cb=self._on_control)
        self._connection.on_reconnect(self._came_back)
        await self.bindings.start(self._connection)
        await self._connection.flush()

    async def close(self) -> None:
        """End all commands, tell their readers, and close the connection. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.stopping.set()
        self.watches.close()
        await self.bindings.close()
        streams = list(self._streams.values())
        for _, steered in streams:
            if steered is not None:
                steered.kill()
        self.terminals.close()
        self.jobs.close()
        for answer in list(self._answers):
            answer.cancel()
        if self._answers:
            await asyncio.wait(self._answers)
        stopped = rpc.RpcError("unavailable", "the project was stopped while the command was running")
        for sender, _ in streams:
            await sender.send("end", rpc.encode_error(None, stopped))
            sender.close()
        self.leftovers.close()
        if self._connection is not None:
            await self._connection.close()
        self._long_work.shutdown()
        self.home.close()

    def renew(self) -> None:
        """Reconnect with the creds that the runner has written. Commands go on. Ignores creds that it cannot read."""
        creds = self.program.renewed_creds
        if creds is None or not os.access(creds, os.R_OK):
            log.warning("there are no new creds to read in %s", creds)
        else:
            log.info("reconnecting with new creds")
            self._later(self.connection.use_creds(creds))

    @property
    def max_answer(self) -> int:
        """The most bytes in one answer."""
        assert self._connection is not None
        return self._connection.max_payload - HEADER_ROOM

    @property
    def connection(self) -> Connection:
        """The agent's connection to NATS."""
        assert self._connection is not None
        return self._connection

    def environment(self, directory: str | None, extra: dict[str, str]) -> dict[str, str]:
        """The environment of a command: an allow-list, and the variables that the caller asked for.

        The command runs in ``directory``, which is ``None`` if its path is too long for the kernel to tell.
        """
        own = environment.of_command(
            os.environ,
            home=str(self.home.path),
            directory=directory,
            project_id=self.program.project_id,
            setting=self.program.environment,
        )
        return own | extra

    async def long_work(self, work: Callable[[], T]) -> T:
        """Run what may take minutes in a thread of its own, so that it delays no other work on files."""
        return await asyncio.get_running_loop().run_in_executor(self._long_work, work)

    def add_stream(self, reader: str, steered: Steered | None, window: int) -> tuple[str, Sender]:
        """Open a stream to ``reader``; returns its id and its sender."""
        project = self.program.project_id
        stream_id = secrets.token_hex(12)
        sender = Sender(
            self.connection,
            reader,
            control=f"projects.{project}.streams.{stream_id}",
            own_inbox=f"{inbox_prefix('project', project)}.{stream_id}",
            window=min(self.program.window_bytes, window),
            patience=self.program.reader_patience,
        )
        self._streams[stream_id] = (sender, steered)
        _remember(self._opened, reader, stream_id)
        return stream_id, sender

    def check_room_for_stream(self) -> None:
        """Raises :class:`RpcError` if too many commands run, or have left processes behind."""
        self.leftovers.check_room()
        senders = [sender for sender, _ in self._streams.values() if not sender.gone.is_set()]
        if len(senders) < self.program.max_streams:
            return
        most_silent = max(senders, key=lambda sender: sender.silence)
        if not most_silent.is_away:
            raise rpc.RpcError("limit", f"{len(senders)} commands are running or being read, which is the limit")
        most_silent.give_up("nobody was reading its output, and another command needed its place")

    def _came_back(self) -> None:
        """Tell readers to ask again: messages in transit, requests included, were lost with the old connection."""
        subject = f"events.project.{self.program.project_id}.agent"
        self._later(self._reply(subject, to_json({"type": "reconnected"})))
        self._later(self._drop_readers())

    async def _publish_files_event(self, event: WatchEvent) -> None:
        await self._reply(f"events.project.{self.program.project_id}.files", to_json(event))

    async def _drop_readers(self) -> None:
        """End the streams of accounts that lost access to the project: they can still read their inboxes.

        Whenever an account loses access, a hub disconnects the agent, which reconnects with another key.
        """
        readers = {account for sender, _ in self._streams.values() if (account := account_of_inbox(sender.reader))}
        if not readers:
            return
        gone = readers - await self._members()
        for sender, _ in self._streams.values():
            if account_of_inbox(sender.reader) in gone:
                sender.give_up("you may not use this project any more")

    async def _members(self) -> set[str]:
        """The accounts that may use the project; waits until a hub answers."""
        subject, body = f"hub.project.{self.program.project_id}", rpc.encode_request("list_collaborators", {})
        while True:
            try:
                answer = rpc.decode_response(await request(self.connection, subject, body, HUB_SECONDS))
            except NatskitError as error:
                log.info("the accounts that may use the project are not known yet: %s", error)
                await asyncio.sleep(HUB_PAUSE)
            else:
                return {member["account_id"] for member in answer}

    async def _on_request(self, message: Msg) -> None:
        self._later(self._answer(message))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        spawn(self._answers, work)

    async def _answer(self, message: Msg) -> None:
        if message.reply in self._opened:
            again = self._streams.get(self._opened[message.reply])
            if again is not None:
                await again[0].on_control({"type": "resume", "seq": 0}, message.reply)
            return
        request, data = json_and_data(message)
        if data and self._received_data + len(data) > MOST_RECEIVED_DATA:
            error = rpc.RpcError("unavailable", "too many parts of files arrive at once", retry_after=RETRY_SECONDS)
            await self._reply(message.reply, rpc.encode_error(None, error))
            return
        self._received_data += len(data)
        caller = Caller(self, message.reply, data)
        try:
            body = await self._methods.answer(caller, request, self.max_answer)
            if caller.stream is not None:
                await caller.stream.end(body or b"")
            elif body is not None:
                await self._reply(message.reply, *with_data(body, caller.answer_data))
        finally:
            self._received_data -= len(data)
            if caller._turns is not None:
                caller._turns.release()
            if caller.stream is not None:
                caller.stream.close()
                self._streams.pop(caller._stream_id, None)
                if caller.stream.why_gone:
                    _remember(self._given_up, caller._stream_id, caller.stream.why_gone)

    async def _reply(self, subject: str, body: bytes | Pieces, headers: dict[str, str] | None = None) -> None:
        if subject:
            with contextlib.suppress(nats.errors.Error):
                await self.connection.publish(subject, body, headers=headers)

    async def _on_control(self, message: Msg) -> None:
        stream_id = message.subject.rpartition(".")[2]
        found, body = self._streams.get(stream_id), control_message(message.data)
        if body is None:
            return
        if found is None:
            why = self._given_up.get(stream_id, "the command is over, or its project was restarted meanwhile")
            if body["type"] == "resume":
                error = rpc.RpcError("not_found", why)
                await self._reply(message.reply, rpc.encode_error(None, error))
            return
        sender, steered = found
        await sender.on_control(body, message.reply)
        if steered is not None:
            await _steer(steered, sender, body)


async def _steer(steered: Steered, sender: Sender, body: dict[str, Any]) -> None:
    offset = body.get("offset")
    if isinstance(offset, int) and offset > steered.stdin_received:  # input before it was lost
        await sender.heartbeat(missing_from=steered.stdin_received)
        return
    match body["type"]:
        case "stdin":
            with contextlib.suppress(ValueError, TypeError):
                data = base64.b64decode(body.get("data", ""), validate=True)
                if isinstance(offset, int):
                    data = data[steered.stdin_received - offset :]  # without the part that arrived before
                steered.feed(data)
        case "stdin_end":
            steered.end_of_input()
        case "cancel":
            steered.cancel()
            if body.get("leaving") is True:
                sender.leave_unread()


def _remember(known: dict[str, str], key: str, value: str) -> None:
    known[key] = value
    if len(known) > REMEMBERED:
        del known[next(iter(known))]
