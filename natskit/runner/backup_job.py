"""One run of restic on a runner's host, whose repository is where the control machine keeps its backups.

restic believes that it speaks with ``rclone serve restic --stdio``: HTTP/2 over standard input and output. In its place
it starts :mod:`natskit.runner.backup_relay`, and this module gives these bytes to the control machine, which starts the
real rclone. So this host has no way to the target but through that rclone, which only adds and reads, and no
credentials of it. The control machine numbers what it reads and writes: a repeated request changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from natskit.process.lifecycle import cancel, end_with_parent
from natskit.rpc import RpcError

POLL_SECONDS = 1.0
"""How long a read waits for bytes."""
IDLE_SECONDS = 120.0
"""Without a request of the control machine for so long, restic is ended."""
LINE_BYTES = 4 * 1024 * 1024
"""Of restic's output: a line about a file has its whole path."""
MOST_LINES = 1000
"""Lines of its messages that are kept."""
REPOSITORY = "rclone:backup"
_ABOUT_A_FILE = re.compile(r"ignoring error for (/.*?): (.*)")
OOM_SCORE = 500
"""restic is killed before the platform's programs when memory runs out."""

Read = Callable[[dict[str, Any]], None]
"""Is called with each JSON object of restic's output."""


class BackupJob:
    """restic, its relay, and what the control machine has not read yet."""

    def __init__(self, folder: Path, read: Read) -> None:
        """``folder`` is made, and removed at the end."""
        self._folder, self._read = folder, read
        self._process: asyncio.subprocess.Process | None = None
        self._server: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self._streams: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )
        self._tasks: list[asyncio.Task[Any]] = []
        self._sent = (-1, b"", False)
        """The last read: its number, and what it gave."""
        self._written = -1
        self._lock, self._writes = asyncio.Lock(), asyncio.Lock()
        self.asked_at = time.monotonic()
        self.errors: list[dict[str, Any]] = []
        """What restic said of single files."""
        self.said: list[str] = []
        """Its other messages."""
        self.failure = ""
        """Why restic was ended, if its output could not be read."""

    @property
    def is_running(self) -> bool:
        """Whether restic runs. It is ended when the control machine has not asked for :data:`IDLE_SECONDS`."""
        return self._process is not None and self._process.returncode is None

    async def start(self, python: Path, password: str, words: Sequence[str], cwd: Path) -> None:
        """Start restic. Raises :class:`RpcError`."""
        if shutil.which("restic") is None:
            raise RpcError("invalid_state", "restic is not installed on this host: run `apt-get install restic` there")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True)
        await self._listen()
        relay = shlex.join([str(python), "-P", "-m", "natskit.runner.backup_relay", str(self._folder / "socket")])
        secret = os.memfd_create("password")
        try:
            os.write(secret, password.encode())
            self._process = await asyncio.create_subprocess_exec(
                *("nice", "-n", "19", "restic", "--repo", REPOSITORY, "--json", "--no-cache"),
                *("-o", f"rclone.program={relay}", "-o", "rclone.args=", "--password-file", f"/dev/fd/{secret}"),
                *words,
                cwd=cwd,
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_BYTES,
                pass_fds=[secret],
                preexec_fn=_become_restic,
            )
        finally:
            os.close(secret)
        self._tasks = [asyncio.ensure_future(self._guarded(one)) for one in (self._follow(), self._follow_errors())]
        self._watch = asyncio.ensure_future(self._end_if_left())

    async def read(self, number: int, most: int) -> tuple[bytes, bool]:
        """What restic has written, up to ``most`` bytes, and whether there will be no more."""
        self.asked_at = time.monotonic()
        async with self._lock:
            if number != self._sent[0]:
                if number != self._sent[0] + 1:
                    raise RpcError("conflict", "another command has read of this backup")
                data = await self._next(most)
                self._sent = (number, data, not data and not self.is_running)
            return self._sent[1], self._sent[2]

    async def write(self, number: int, data: memoryview) -> None:
        """Give bytes to restic."""
        self.asked_at = time.monotonic()
        async with self._writes:
            if number == self._written:
                return
            if number != self._written + 1:
                raise RpcError("conflict", "another command has written to this backup")
            _, writer = await asyncio.shield(self._streams)
            self._written = number
            with contextlib.suppress(ConnectionError):  # restic has ended, which a read says
                writer.write(bytes(data))
                await writer.drain()

    async def result(self) -> int:
        """restic's exit code."""
        assert self._process is not None
        await asyncio.gather(*self._tasks)
        return await self._process.wait()

    async def end(self) -> None:
        """End restic, and remove the folder."""
        if self._process is not None:
            self._kill()
            await self._process.wait()
        await cancel([*self._tasks, *([self._watch] if self._watch is not None else [])])
        if self._streams.done() and not self._streams.cancelled():
            self._streams.result()[1].close()
        self._streams.cancel()
        if self._server is not None:
            self._server.close()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    # ----

    async def _end_if_left(self) -> None:
        """End restic if the control machine has died, or does not reach this host any more."""
        while True:
            left = self.asked_at + IDLE_SECONDS - time.monotonic()
            if left <= 0:
                break
            await asyncio.sleep(left)
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _next(self, most: int) -> bytes:
        assert self._process is not None
        ended = asyncio.ensure_future(self._process.wait())
        try:
            if not self._streams.done():
                either: set[asyncio.Future[Any]] = {self._streams, ended}
                await asyncio.wait(either, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not self._streams.done():
                return b""
            reader, _ = self._streams.result()
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(POLL_SECONDS):
                    if data := await reader.read(most):
                        return data
            if reader.at_eof():  # it closes the connection a little before it ends
                await asyncio.wait({ended}, timeout=POLL_SECONDS)
            return b""
        finally:
            await cancel([ended])

    async def _listen(self) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._streams.done():
                writer.close()
            else:
                self._streams.set_result((reader, writer))

        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = f"/proc/self/fd/{fd}/socket"
            self._server = await asyncio.start_unix_server(connected, path, limit=1024 * 1024)
        finally:
            os.close(fd)

    def _environment(self) -> dict[str, str]:
        found = {name: value for name, value in os.environ.items() if not name.startswith("RESTIC_")}
        # It writes packs of files before it sends them, and the unit's /tmp is read-only.
        return found | {"TMPDIR": str(self._folder), "RESTIC_PROGRESS_FPS": "1"}

    async def _guarded(self, reading: Coroutine[Any, Any, None]) -> None:
        """Read on. What cannot be read ends restic, which would wait for its reader without end."""
        try:
            await reading
        except Exception as error:
            self.failure = self.failure or f"{type(error).__name__}: {error}"[:300]
            self._kill()

    async def _follow(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in _lines(self._process.stdout):
            if line.startswith("{"):
                self._read(json.loads(line))

    async def _follow_errors(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in _lines(self._process.stderr):
            found = json.loads(line) if line.startswith("{") else {}
            if found.get("message_type") == "error":
                self.errors = [*self.errors, found][:MOST_LINES]
            elif about := _ABOUT_A_FILE.match(line):  # restic before 0.17 restores so, in spite of --json
                self.errors = [*self.errors, {"item": about[1], "error": about[2]}][:MOST_LINES]
            elif line.strip():
                self.said = [*self.said, line.strip()[:500]][-3:]


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    while line := await reader.readline():
        yield line.decode(errors="surrogateescape")


def _become_restic() -> None:
    os.setsid()
    end_with_parent()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(str(OOM_SCORE))
