"""A watched folder of a project. :meth:`natskit.client.Client.watch_directory` uses it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol

from nats.aio.msg import Msg

from natskit.bus.connection import Connection
from natskit.errors import ConnectionLostError, NatskitError
from natskit.rpc import RpcError

RENEW_AFTER = 1 / 3
"""How much of the time that a watch lasts may pass before it is renewed."""
RETRY_SECONDS = 2.0
"""How soon a renewal that nobody answered is tried again."""


class Subscriber(Protocol):
    """What watching needs of a client."""

    @property
    def connection(self) -> Connection:
        """The connection to NATS."""

    async def call_project(self, project_id: str, method: str, **params: Any) -> Any:
        """Call a method of a project."""

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Await the callback for each message."""


class _Watch:
    """The events of a folder, in their order. An event that was lost becomes ``None``: list the folder."""

    def __init__(self) -> None:
        self.changed: asyncio.Queue[frozenset[str] | NatskitError | None] = asyncio.Queue()
        self.renew = asyncio.Event()
        self._watch = ""
        self._seq = 0

    async def on_event(self, message: Msg) -> None:
        """An event of the project's files."""
        event = json.loads(message.data)
        if event["watch"] != self._watch:
            return
        if event["type"] == "gone":
            self.changed.put_nowait(RpcError("not_found", "the folder is not there any more"))
            return
        missed, self._seq = event["seq"] != self._seq + 1, event["seq"]
        names = event["names"]
        self.changed.put_nowait(None if missed or names is None else frozenset(names))

    async def on_agent(self, _message: Msg) -> None:
        """The project was away: events may be lost."""
        self.renew.set()

    def take(self, state: dict[str, Any]) -> None:
        """The answer to a renewal, which the project sends after all events before it."""
        missed = (state["watch"], state["seq"]) != (self._watch, self._seq)
        self._watch, self._seq = state["watch"], state["seq"]
        if missed:
            self.changed.put_nowait(None)


async def watch(client: Subscriber, project_id: str, path: str) -> AsyncGenerator[frozenset[str] | None, None]:
    """Yield what has changed in a folder. See :meth:`natskit.client.Client.watch_directory`."""
    found = _Watch()
    async with contextlib.AsyncExitStack() as stack:
        for what, callback in (("files", found.on_event), ("agent", found.on_agent)):
            stack.push_async_callback(await client.subscribe(f"events.project.{project_id}.{what}", callback))
        renewing = asyncio.ensure_future(_renew(client, project_id, path, found))
        stack.push_async_callback(_end, renewing)
        while True:
            change = await found.changed.get()
            if isinstance(change, NatskitError):
                raise change
            yield change


async def _renew(client: Subscriber, project_id: str, path: str, found: _Watch) -> None:
    while True:
        found.renew.clear()
        seconds = RETRY_SECONDS
        try:
            state = await client.call_project(project_id, "watch_directory", path=path)
        except NatskitError as error:
            away = isinstance(error, ConnectionLostError) or (
                isinstance(error, RpcError) and error.kind == "unavailable"
            )
            if client.connection.is_closed or not away:
                found.changed.put_nowait(error)
                return
        else:
            found.take(state)
            seconds = state["seconds"] * RENEW_AFTER
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(found.renew.wait(), seconds)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
