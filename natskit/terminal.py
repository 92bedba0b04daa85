"""A viewer of a project's terminal. :meth:`natskit.client.Client.terminal` makes one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Protocol, Self

from natskit import rpc
from natskit.bus.connection import Connection
from natskit.bus.output_stream import STDIN_CHUNK_BYTES, Reader
from natskit.errors import ConnectionLostError

MAX_PASTE_BYTES = 16 * 1024 * 1024
"""The most that :meth:`Terminal.write` takes at once: more is a file, and not something that somebody types."""
COME_BACK_SECONDS, COME_BACK_PAUSE = 30.0, 0.5
"""How long, and how often, a viewer whose stream has failed tries to come back."""


class Streams(Protocol):
    """What a viewer needs of a client."""

    @property
    def connection(self) -> Connection:
        """The connection to NATS."""

    async def call_project(self, project_id: str, method: str, **params: Any) -> Any:
        """Call a method of a project."""

    async def open_stream(self, project_id: str, reader: Reader, body: bytes) -> None:
        """Send a request whose answer is a stream."""

    async def close_stream(self, project_id: str, reader: Reader) -> None:
        """Stop reading."""


class Terminal:
    """A view of a terminal. Iterate over what it shows, then read how its program ended from the attributes.

    Yields pairs: ``("output", bytes)`` for what the terminal has to draw, and events with a dictionary. After
    ``"screen"``, which comes first, and again when this viewer was away or too slow, the output draws the whole screen
    anew, for a terminal with the event's ``columns`` and ``rows``. The other events are ``"size"`` (``columns``,
    ``rows``), ``"title"`` (``title``), ``"viewers"`` (all ``viewers``), ``"typing"`` (the ``viewer`` who types from
    then on) and ``"recording"`` (the ``path`` of the recording, or ``None``, and ``why`` one has ended by itself).

    Leaving the ``async with`` block does not end the program. A viewer whose stream fails, such as after hours with a
    closed lid, comes back by itself; what it typed arrives once.
    """

    def __init__(self, client: Streams, project_id: str, view: dict[str, Any]) -> None:
        self.exit_code: int | None = None
        self.signal: str | None = None
        """The signal that ended the program, such as ``SIGHUP``."""
        self.signal_number: int | None = None
        """The signal's number on the project's host."""
        self.viewer: str | None = None
        """How events name this viewer; ``None`` until ``"screen"`` has come."""
        self._client = client
        self._project_id = project_id
        self._view = {**view, "viewer": secrets.token_hex(16)}  # others never see it
        self._reader = Reader(client.connection)
        self._attached = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close_stream(self._project_id, self._reader)

    async def __aiter__(self) -> AsyncIterator[tuple[str, Any]]:
        while True:
            try:
                frame = await self._reader.frame()
            except (ConnectionLostError, rpc.RpcError) as error:
                await self._come_back(error)
                continue
            if frame is None:
                break
            kind, data = frame
            if kind == "event":
                event = json.loads(data)
                if event["type"] == "screen":
                    self.viewer = event["viewer"]
                yield event.pop("type"), event
            else:
                yield "output", data
        ended = self._reader.result
        self.exit_code, self.signal = ended["exit_code"], ended["signal"]
        self.signal_number = ended["signal_number"]

    async def write(self, data: bytes) -> None:
        """Type. Waits while the program reads nothing. Raises :class:`RpcError` for more than 16 MiB at once."""
        if len(data) > MAX_PASTE_BYTES:
            raise rpc.RpcError(
                "limit", f"{len(data):,} bytes are too many to type; the limit is {MAX_PASTE_BYTES:,}: write a file"
            )
        for start in range(0, len(data), STDIN_CHUNK_BYTES):
            await self._room()
            await self._reader.send(data[start : start + STDIN_CHUNK_BYTES])

    async def resize(self, columns: int, rows: int, *, visible: bool = True) -> None:
        """Tell the size of the viewer's window, and whether it is visible."""
        self._view |= {"columns": columns, "rows": rows, "visible": visible}
        params = {name: self._view[name] for name in ("terminal", "viewer", "columns", "rows", "visible")}
        try:
            await self._client.call_project(self._project_id, "terminal.resize", **params)
        except rpc.RpcError as error:
            if error.kind != "not_found":  # a viewer that comes back names its size
                raise

    async def end(self) -> None:
        """End the program and everything it has started."""
        with contextlib.suppress(rpc.RpcError):  # it has ended meanwhile
            await self._client.call_project(self._project_id, "terminal.close", terminal=self._view["terminal"])

    async def _attach(self) -> None:
        await self._client.open_stream(
            self._project_id, self._reader, rpc.encode_request("terminal.attach", self._view)
        )
        await self._reader.send_again()
        self._attached.set()

    async def _room(self) -> None:
        while True:
            await self._attached.wait()
            try:
                await self._reader.room()
            except (ConnectionLostError, rpc.RpcError):
                if self._client.connection.is_closed:
                    raise
                await asyncio.sleep(COME_BACK_PAUSE)  # the reader may come back meanwhile
            else:
                return

    async def _come_back(self, error: Exception) -> None:
        """Attach again, with a new stream. Raises the error if that does not help."""
        if isinstance(error, rpc.RpcError) and error.kind != "not_found":
            raise error
        self._attached.clear()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + COME_BACK_SECONDS
        while True:
            if self._client.connection.is_closed:
                raise error
            await self._client.close_stream(self._project_id, self._reader)
            self._reader = Reader(self._client.connection, self._reader)
            try:
                await self._attach()
                return
            except ConnectionLostError:
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(COME_BACK_PAUSE)
