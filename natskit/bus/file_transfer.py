"""Files of a project in parts, over NATS: the caller's end (the agent's is ``natskit/project/transfer.py``).

Several parts are in flight at a time. Each is a request of its own, which may be repeated, and the file itself is the
only state. So a transfer continues when a connection, a server or the agent comes back. The first parts are small, and
a caller waits for a part about as long as the last ones took. So it notices a lost part within seconds on a fast
network, and gives no part up too early on a slow one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, Protocol

from natskit import rpc
from natskit.bus.payload import Pieces
from natskit.errors import AbsentError, ConnectionLostError

PART_BYTES = 1024 * 1024
"""The most bytes of a part. Larger ones would delay other messages of the same connection."""
FIRST_PART_BYTES = 64 * 1024
PARTS_IN_FLIGHT = 6
ROOM = 4096
"""Bytes of a message besides the part that it carries, and the path."""
PATIENCE_SECONDS = 120.0
"""How long a transfer waits for a project that does not answer, unless the caller says otherwise."""
SHORTEST_WAIT, LONGEST_WAIT = 3.0, 60.0
"""Seconds until a part counts as lost."""
PAUSE_SECONDS = 0.3


class Exchange(Protocol):
    """Calls a method of the project, with data after the request's JSON and after that of the answer.

    Raises :class:`RpcError` and :class:`ConnectionLostError`.
    """

    def __call__(
        self, method: str, params: dict[str, Any], data: bytes | Pieces, wait: float
    ) -> Awaitable[tuple[Any, memoryview]]: ...


class Transfer:
    """The part that reads and uploads share: repeats each request until it is answered or ``patience`` is over.

    ``max_payload`` is the size of the largest message.
    """

    def __init__(
        self,
        exchange: Exchange,
        max_payload: int,
        patience: float = PATIENCE_SECONDS,
        in_flight: Callable[[], int] = lambda: PARTS_IN_FLIGHT,
    ) -> None:
        self.in_flight = in_flight
        """How many parts may be in flight now."""
        self._exchange = exchange
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._begun = self._answered = self._loop.time()
        self._times: deque[float] = deque(maxlen=2 * PARTS_IN_FLIGHT)
        self.largest = min(PART_BYTES, max_payload - ROOM)
        self.part = min(FIRST_PART_BYTES, self.largest)
        """Bytes of the next part."""

    def grow(self) -> None:
        """Make the next parts larger: one has arrived."""
        self.part = min(4 * self.part, self.largest)

    async def ask(self, method: str, params: dict[str, Any], data: bytes | Pieces = b"") -> tuple[Any, memoryview]:
        """Send a request, and repeat it until it is answered.

        Raises :class:`RpcError`, and :class:`ConnectionLostError` if nothing is answered for ``patience`` seconds.
        """
        wait = max(SHORTEST_WAIT, *(4 * seconds for seconds in self._times)) if self._times else SHORTEST_WAIT
        while True:
            begun = self._loop.time()
            try:
                answer = await self._exchange(method, params, data, min(wait, LONGEST_WAIT))
            except ConnectionLostError as error:
                never = isinstance(error, AbsentError) and self._answered == self._begun  # it does not run at all
                if never or self._loop.time() - self._answered > self._patience:
                    raise
                wait *= 2
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                self._answered = self._loop.time()
                self._times.append(self._answered - begun)
                return answer


async def read(
    transfer: Transfer, path: str, offset: int = 0, end: int | None = None, tag: str | None = None
) -> AsyncGenerator[tuple[dict[str, Any], memoryview], None]:
    """Yield a file's state and its parts, from ``offset`` to its end or to ``end``; at least one, which may be empty.

    Raises the errors of :meth:`Transfer.ask`: a ``conflict`` if the file changes during the read, or has another
    ``tag``.
    """
    most = transfer.part if end is None else min(transfer.part, max(0, end - offset))
    state, data = await transfer.ask("read_file", {"path": path, "offset": offset, "size": most, "tag": tag})
    yield state, data
    offset, end, tag = offset + len(data), min(state["size"], state["size"] if end is None else end), state["tag"]
    flying: deque[tuple[int, int, asyncio.Task[tuple[Any, memoryview]]]] = deque()
    following = offset
    try:
        while offset < end:
            while following < end and len(flying) < transfer.in_flight():
                size = min(transfer.part, end - following)
                params = {"path": path, "offset": following, "size": size, "tag": tag}
                flying.append((following, size, asyncio.ensure_future(transfer.ask("read_file", params))))
                following += size
            _, size, task = flying.popleft()
            state, data = await task
            if not data:
                raise rpc.RpcError("internal_error", f"the project sends nothing of {path[:200]!r}")
            yield state, data
            offset += len(data)
            transfer.grow()
            if len(data) < size:  # the project sends smaller parts
                transfer.part = transfer.largest = len(data)
                await _end(task for _, _, task in flying)
                flying.clear()
                following = offset
    finally:
        await _end(task for _, _, task in flying)


class Upload:
    """An upload: :meth:`start`, :meth:`send` from the offset that it returns, then :meth:`finish` or :meth:`cancel`."""

    def __init__(
        self, transfer: Transfer, path: str, upload: str, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """``upload`` is the id by which a later call continues it. ``progress`` is called with the bytes that have
        arrived."""
        self._transfer = transfer
        self._where = {"path": path, "upload": upload}
        self._progress = progress
        self._flying: deque[tuple[int, bytes | Pieces, asyncio.Task[tuple[Any, memoryview]]]] = deque()
        self.offset = 0
        """Where the next part begins."""
        room = ROOM + len(rpc.encode_request("upload_part", self._where))
        self._largest = max(1, transfer.largest + ROOM - room)

    @property
    def part(self) -> int:
        """Bytes of the next part."""
        return min(self._transfer.part, self._largest)

    async def start(self, size: int, expected_version: str | None = None) -> int:
        """Begin or continue. Returns how many bytes have arrived before."""
        params = {**self._where, "size": size, "expected_version": expected_version}
        answer, _ = await self._transfer.ask("start_upload", params)
        self.offset = int(answer["offset"])
        self._progress(self.offset)
        return self.offset

    async def send(self, data: bytes | Pieces) -> None:
        """Send the next part, of at most :attr:`part` bytes, when not too many are in flight."""
        while len(self._flying) >= self._transfer.in_flight():
            await self._settle()
        self._flying.append((self.offset, data, asyncio.ensure_future(self._part(self.offset, data))))
        self.offset += len(data)

    async def finish(
        self,
        sha256: str | None,
        expected_version: str | None = None,
        mode: int | None = None,
        mtime: float | None = None,
    ) -> str:
        """Wait for all parts, and move the file to its place. Returns its version.

        Without ``sha256``, nobody compares what has arrived with what was sent."""
        while self._flying:
            await self._settle()
        more = {"size": self.offset, "sha256": sha256, "expected_version": expected_version}
        stamp = {"mode": mode, "mtime": mtime}
        answer, _ = await self._transfer.ask("finish_upload", {**self._where, **more, **stamp})
        return str(answer["version"])

    async def cancel(self) -> None:
        """Discard the upload."""
        await self.leave()
        await self._transfer.ask("cancel_upload", self._where)

    async def leave(self) -> None:
        """Stop sending. The project keeps what has arrived, so that a later call can continue."""
        await _end(task for _, _, task in self._flying)
        self._flying.clear()

    async def _settle(self) -> None:
        """Wait for the oldest part. If bytes before it are missing, send it and all later parts again."""
        offset, data, task = self._flying.popleft()
        answer, _ = await task
        if answer["offset"] >= offset + len(data):
            self._transfer.grow()
            self._progress(offset + len(data))
            return
        again = [(offset, data)]
        while self._flying:
            offset, data, task = self._flying.popleft()
            await task
            again.append((offset, data))
        for offset, data in again:
            answer, _ = await self._part(offset, data)
            if answer["offset"] < offset + len(data):
                raise rpc.RpcError("invalid_state", "what had arrived of the upload is gone: begin again")
            self._progress(offset + len(data))

    async def _part(self, offset: int, data: bytes | Pieces) -> tuple[Any, memoryview]:
        return await self._transfer.ask("upload_part", {**self._where, "offset": offset}, data)


async def _end(requests: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel requests, and wait for their ends."""
    tasks = list(requests)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # else asyncio reports that nobody asked
