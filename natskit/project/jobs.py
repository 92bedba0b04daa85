"""Jobs: commands that need no reader. The end of their output is kept for readers that come later."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from natskit.bus.payload import to_json
from natskit.project.command import Command, Result
from natskit.project.sender import Kind, Sender
from natskit.rpc import RpcError

PIECE_BYTES = 4096
"""Small pieces are joined up to this size."""
MOST_PIECES = 4096
"""Pieces kept of each job: a program may print single bytes on its two outputs in turn."""
BURST_SECONDS = 0.05
"""Output above the rate that is read at once."""


class JobOutput:
    """The last ``most`` bytes that a job has printed, in pieces. A command writes into it as into a sender."""

    def __init__(self, most: int, rate: int) -> None:
        self.gone = asyncio.Event()
        """Never set: a job needs no reader."""
        self.why_gone = ""
        self.input_taken: Callable[[], int] = lambda: 0
        self.first = 0
        """The number of the first piece that is kept."""
        self.dropped = 0
        """Bytes that are kept no more."""
        self.size = 0
        self.arrived = asyncio.Event()
        self._pieces: deque[tuple[Kind, bytearray]] = deque()
        self._most, self._rate = most, rate
        self._due = 0.0
        self._loop = asyncio.get_running_loop()

    async def room(self) -> None:
        """Wait while the command prints more than it may."""
        if (ahead := self._due - self._loop.time() - BURST_SECONDS) > 0:
            await asyncio.sleep(ahead)

    async def send(self, kind: Kind, data: bytes) -> None:
        """Keep a piece of output, and drop the oldest if that is too much."""
        self._due = max(self._due, self._loop.time()) + len(data) / self._rate
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last[0] == kind and len(last[1]) + len(data) <= PIECE_BYTES:
            last[1].extend(data)
        else:
            self._pieces.append((kind, bytearray(data)))
        self.size += len(data)
        while self.size > self._most or len(self._pieces) > MOST_PIECES:
            _, oldest = self._pieces.popleft()
            self.first += 1
            self.size -= len(oldest)
            self.dropped += len(oldest)
        self.wake()

    async def heartbeat(self) -> None:
        """Does nothing: nobody waits for a job to take input."""

    def wake(self) -> None:
        """Tell those who follow that there is something new."""
        self.arrived.set()
        self.arrived = asyncio.Event()

    def piece(self, number: int, begin: int) -> tuple[Kind, bytes] | None:
        """A piece that is kept, from its byte ``begin`` on; ``None`` if it has not arrived yet. It may still grow if it
        is the last one."""
        place = number - self.first
        if place >= len(self._pieces):
            return None
        kind, data = self._pieces[place]
        return kind, bytes(data[begin:])

    def is_last(self, number: int) -> bool:
        """Whether no piece follows yet."""
        return number - self.first >= len(self._pieces) - 1


class Job:
    """A command and what it has printed."""

    def __init__(self, command: Command, says: str, output: JobOutput, timeout: float | None) -> None:
        self.job_id = secrets.token_hex(4)
        self.result: Result | None = None
        self.over = asyncio.Event()
        self._command, self._says = command, says
        self._output = output
        self._started = time.time()
        self._ended: float | None = None
        self._work = asyncio.get_running_loop().create_task(self._run(timeout))

    def describe(self) -> dict[str, Any]:
        """What ``job.list`` says of it."""
        return {
            "job": self.job_id,
            "command": self._says,
            "pid": self._command.pid,
            "started_at": self._started,
            "ended_at": self._ended,
            "output_bytes": self._output.size,
            "dropped_bytes": self._output.dropped,
            "result": self.result,
        }

    async def follow(self, sender: Sender) -> Result:
        """Send the kept output, and then new output until the job has ended or the reader is gone."""
        output, number, begin, position = self._output, 0, 0, 0
        while not sender.gone.is_set():
            await sender.room()
            if output.first > number:  # the reader was too slow, or came too late
                number, begin = output.first, 0
                lost, position = output.dropped - position, output.dropped
                if lost:
                    await sender.send("event", to_json({"type": "dropped", "bytes": lost}))
                continue
            arrived = output.arrived
            piece = output.piece(number, begin)
            if piece is not None and not piece[1] and not output.is_last(number):
                number, begin = number + 1, 0
            elif piece is not None and piece[1]:
                begin += len(piece[1])
                position += len(piece[1])
                await sender.send(*piece)
            elif self.result is not None:
                return self.result
            else:
                await _either(arrived, sender.gone)
        raise RpcError("not_found", sender.why_gone)

    def end(self) -> None:
        """Send SIGTERM to it, and SIGKILL two seconds later."""
        self._command.cancel()

    def kill(self) -> None:
        """Send SIGKILL to it."""
        self._command.kill()

    async def _run(self, timeout: float | None) -> None:  # noqa: ASYNC109 - the command's own
        self.result = await self._command.run(self._output, timeout)
        self._ended = time.time()
        self.over.set()
        self._output.wake()


class JobReader:
    """The reader of a job's output controls nothing: the job continues without it."""

    stdin_received = 0

    def feed(self, data: bytes) -> None:
        """Jobs have no input beyond that of their start."""

    def end_of_input(self) -> None:
        """Jobs have no input beyond that of their start."""

    def cancel(self) -> None:
        """The reader has left."""

    def kill(self) -> None:
        """The project stops, and ends its jobs itself."""


class Jobs:
    """The jobs of a project: those that run, and the last that have ended; ``most`` in all."""

    def __init__(self, most: int, output_bytes: int, rate: int) -> None:
        self._most, self._output_bytes, self._rate = most, output_bytes, rate
        self._jobs: dict[str, Job] = {}

    def check_room(self) -> None:
        """Raises :class:`RpcError` if too many jobs run."""
        if sum(job.result is None for job in self._jobs.values()) >= self._most:
            raise RpcError("limit", f"the project runs {self._most} jobs, which is the limit: end one, or wait for one")

    def start(self, command: Command, says: str, timeout: float | None) -> Job:
        """Keep a started command. Forgets the oldest job that has ended, if there are too many."""
        job = Job(command, says, JobOutput(self._output_bytes, self._rate), timeout)
        self._jobs[job.job_id] = job
        if len(self._jobs) > self._most:
            del self._jobs[next(job_id for job_id, old in self._jobs.items() if old.result is not None)]
        return job

    def get(self, job_id: str) -> Job:
        """A job. Raises :class:`RpcError` if there is none with that id."""
        if (job := self._jobs.get(job_id)) is None:
            raise RpcError(
                "not_found", f"there is no job {job_id[:64]!r}, or it was forgotten after it ended", what="job"
            )
        return job

    def list(self) -> list[dict[str, Any]]:
        """All of them, the oldest first."""
        return [job.describe() for job in self._jobs.values()]

    def forget(self, job_id: str) -> None:
        """Drop a job that has ended, with its output. Raises :class:`RpcError`."""
        if self.get(job_id).result is None:
            raise RpcError("invalid_state", f"the job {job_id} still runs: end it first")
        del self._jobs[job_id]

    def close(self) -> None:
        """Kill all of them."""
        for job in self._jobs.values():
            if job.result is None:
                job.kill()


async def _either(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
