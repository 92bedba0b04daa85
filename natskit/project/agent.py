"""The project agent: answers JSON-RPC on ``projects.{id}.api`` and streams the output of commands."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from natskit import rpc
from natskit.connection import Connection, connect, log_status, request, to_json
from natskit.errors import NatskitError
from natskit.permissions import account_of_inbox, inbox_prefix
from natskit.project.command import Command
from natskit.project.home import Home
from natskit.project.program import ProjectProgram
from natskit.project.sender import Sender
from natskit.stream import control_message

log = logging.getLogger(__name__)

PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ")
"""What commands get of the agent's own environment; the rest is written here, so nothing leaks by accident."""

REMEMBERED = 4096
"""Requests for a stream that are known again when they are repeated."""
HEADER_ROOM = 1024
"""Bytes of ``max_payload`` left for headers."""
HUB_SECONDS, HUB_PAUSE = 5.0, 0.5


@dataclass
class Caller:
    """Who asked, and the project that was asked: the first parameter of every method of the agent.

    The agent knows that nats-server let the caller publish to this project, and nothing more about who it is.
    """

    agent: Agent
    reply: str
    stream: Sender | None = field(default=None, repr=False)
    _stream_id: str = ""

    @property
    def project_id(self) -> str:
        """The project that runs this."""
        return self.agent.program.project_id

    @property
    def home(self) -> Home:
        """The project's files."""
        return self.agent.home

    @property
    def max_answer(self) -> int:
        """The bytes one answer may have."""
        return self.agent.max_answer

    async def open_stream(self, command: Command | None = None) -> Sender:
        """Answer with a stream of frames; what the method returns becomes its last one.

        A ``command`` also gets the caller's stdin and cancellation.
        """
        if not self.reply:
            raise rpc.RpcError("invalid_request", "a streamed answer needs a reply subject")
        self._stream_id, self.stream = self.agent.add_stream(self.reply, command)
        await self.stream.start()
        return self.stream


class Agent:
    """One project's agent, from connect to close."""

    def __init__(self, program: ProjectProgram, methods: rpc.Methods[Caller]) -> None:
        self.program = program
        self.home = Home(program.home)
        self._methods = methods
        self._connection: Connection | None = None
        self._streams: dict[str, tuple[Sender, Command | None]] = {}
        self._opened: dict[str, str] = {}
        """The stream that each reply subject got, the oldest first."""
        self._answers: set[asyncio.Task[None]] = set()
        self._closed = False
        self.writing = asyncio.Lock()
        """Held while a file is compared and replaced."""

    async def start(self) -> None:
        """Connect (trying until a server accepts) and answer."""
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
        await self._connection.subscribe(f"{prefix}.*", cb=self._on_inbox)
        self._connection.on_reconnect(self._came_back)
        await self._connection.flush()

    async def close(self) -> None:
        """End all commands, tell their readers, and close the connection. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        streams = list(self._streams.values())
        for _, command in streams:
            if command is not None:
                command.kill()
        for answer in list(self._answers):
            answer.cancel()
        if self._answers:
            await asyncio.wait(self._answers)
        stopped = rpc.RpcError("unavailable", "the project was stopped while the command was running")
        for sender, _ in streams:
            await sender.send("end", rpc.encode_error(None, stopped))
            sender.close()
        if self._connection is not None:
            await self._connection.close()
        self.home.close()

    def renew(self) -> None:
        """Come back with the creds that the runner has put down; commands go on. What it cannot read, it leaves."""
        creds = self.program.renewed_creds
        if creds is None or not os.access(creds, os.R_OK):
            log.warning("there are no new creds to be read in %s", creds)
        else:
            log.info("reconnecting with new creds")
            self._later(self.connection.use_creds(creds))

    @property
    def max_answer(self) -> int:
        """The bytes one answer may have."""
        assert self._connection is not None
        return self._connection.max_payload - HEADER_ROOM

    @property
    def connection(self) -> Connection:
        """The agent's connection to NATS."""
        assert self._connection is not None
        return self._connection

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        """The environment of a command: an allow-list, and what the caller asked for."""
        home = str(self.home.path)
        own = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        own.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
        own.setdefault("LANG", "C.UTF-8")
        return {
            **own,
            "HOME": home,
            "SHELL": "/bin/sh",
            "TERM": "dumb",
            "NATSKIT_PROJECT_ID": self.program.project_id,
            **extra,
        }

    def add_stream(self, reader: str, command: Command | None) -> tuple[str, Sender]:
        """A new stream to ``reader``."""
        project = self.program.project_id
        stream_id = secrets.token_hex(12)
        sender = Sender(
            self.connection,
            reader,
            control=f"projects.{project}.streams.{stream_id}",
            own_inbox=f"{inbox_prefix('project', project)}.{stream_id}",
            window=self.program.window_bytes,
        )
        self._streams[stream_id] = (sender, command)
        self._opened[reader] = stream_id
        if len(self._opened) > REMEMBERED:
            del self._opened[next(iter(self._opened))]
        return stream_id, sender

    def check_room_for_stream(self) -> None:
        """Raises :class:`RpcError` when as many commands run as may."""
        if len(self._streams) >= self.program.max_streams:
            raise rpc.RpcError("limit", f"{len(self._streams)} commands are running or being read, which is the limit")

    def _came_back(self) -> None:
        """What was on its way, requests included, was lost with the old connection: readers have to ask again."""
        subject = f"events.project.{self.program.project_id}.agent"
        self._later(self._reply(subject, to_json({"type": "reconnected"})))
        self._later(self._drop_readers())

    async def _drop_readers(self) -> None:
        """End the streams of those who lost the project, whose inboxes are still theirs. Each time somebody loses it
        the agent is cut, and comes back with another key."""
        readers = {account for sender, _ in self._streams.values() if (account := account_of_inbox(sender.reader))}
        if not readers:
            return
        gone = readers - await self._members()
        for sender, _ in self._streams.values():
            if account_of_inbox(sender.reader) in gone:
                sender.give_up()

    async def _members(self) -> set[str]:
        """The accounts that may use the project, as soon as a hub says so."""
        subject, body = f"hub.project.{self.program.project_id}", rpc.encode_request("list_collaborators", {})
        while True:
            try:
                answer = rpc.decode_response(await request(self.connection, subject, body, HUB_SECONDS))
            except NatskitError as error:
                log.info("who may read is not known yet: %s", error)
                await asyncio.sleep(HUB_PAUSE)
            else:
                return {member["account_id"] for member in answer}

    async def _on_request(self, message: Msg) -> None:
        self._later(self._answer(message))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, message: Msg) -> None:
        if message.reply in self._opened:
            again = self._streams.get(self._opened[message.reply])
            if again is not None:
                await again[0].on_control({"type": "resume", "seq": 0}, message.reply)
            return
        caller = Caller(self, message.reply)
        try:
            body = await self._methods.answer(caller, message.data)
            if body is not None and len(body) > self.max_answer:
                body = _too_large(message.data, len(body), self.max_answer)
            if caller.stream is not None:
                await caller.stream.end(body or b"")
            elif body is not None:
                await self._reply(message.reply, body)
        finally:
            if caller.stream is not None:
                caller.stream.close()
                self._streams.pop(caller._stream_id, None)

    async def _reply(self, subject: str, body: bytes) -> None:
        if subject:
            with contextlib.suppress(nats.errors.Error):
                await self.connection.publish(subject, body)

    async def _on_control(self, message: Msg) -> None:
        stream_id = message.subject.rpartition(".")[2]
        found, body = self._streams.get(stream_id), control_message(message.data)
        if body is None:
            return
        if found is None:
            error = rpc.RpcError("not_found", "this stream has ended, or its project was restarted")
            if body["type"] == "resume":
                await self._reply(message.reply, rpc.encode_error(None, error))
            return
        sender, command = found
        await sender.on_control(body, message.reply)
        if command is not None:
            await _steer(command, sender, body)

    async def _on_inbox(self, message: Msg) -> None:
        if (message.headers or {}).get("Status") == "503":
            found = self._streams.get(message.subject.rpartition(".")[2])
            if found is not None:
                found[0].on_nobody_listens()


async def _steer(command: Command, sender: Sender, body: dict[str, Any]) -> None:
    offset = body.get("offset")
    if isinstance(offset, int) and offset > command.stdin_received:  # something before it was lost
        await sender.heartbeat(missing_from=command.stdin_received)
        return
    match body["type"]:
        case "stdin":
            with contextlib.suppress(ValueError, TypeError):
                data = base64.b64decode(body.get("data", ""), validate=True)
                if isinstance(offset, int):
                    data = data[command.stdin_received - offset :]  # it came before
                command.feed(data)
        case "stdin_end":
            command.end_of_input()
        case "cancel":
            command.cancel()


def _too_large(request: bytes, size: int, limit: int) -> bytes:
    error = rpc.RpcError("limit", f"the answer has {size} bytes; at most {limit} fit into one message")
    return rpc.encode_error(json.loads(request).get("id"), error)
