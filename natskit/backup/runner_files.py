"""The files of projects on the hosts of runners: backed up and restored by restic there, through this machine.

restic runs where the files are, so a later backup reads only the times of files that have not changed, and sends what
is new, encrypted. It has no way to the target but the bytes that it gives to this machine over NATS, which needs
nothing but the connection that the platform has anyway. Here ``rclone serve restic --stdio --append-only`` takes them,
and writes to the target: a host that somebody has taken over can neither read the files of other hosts nor remove a
backup.

A file that changes while restic reads it is stored as a mixture of both states, and restic succeeds. So :meth:`take`
compares size and time of each file afterwards, takes another snapshot if some differ, and names those that changed each
time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from natskit.backup.manifest import SNAPSHOT, FilesEntry
from natskit.backup.project_files import Repository
from natskit.backup.sealing import BackupKey
from natskit.backup.target import Target
from natskit.client import Client
from natskit.config.settings import BACKUP_BYTES
from natskit.errors import BackupError, ConnectionLostError, NatskitError
from natskit.process.lifecycle import cancel, end_with_parent
from natskit.rpc import RpcError
from natskit.validation.names import shown

ATTEMPTS = 3
"""How often changing files are read."""
ROUNDS = 8
"""How often projects may turn up that are left out."""
PATIENCE_SECONDS = 60.0
"""How long a runner may not answer, such as one that restarts its connection."""
WAIT_SECONDS = 20.0
RESULT_SECONDS = 60.0
STAGE_SECONDS = 600.0
"""The longest request removes what an earlier restore has left."""
STALL_SECONDS = 3600.0
"""How long restic may give nothing, such as while it reads again what it has stored already."""
PAUSE_SECONDS = 0.5
ROOM_BYTES = 4096
"""Of a message, for all but the data."""
PIECE_BYTES = 768 * 1024


class HostAwayError(BackupError):
    """A runner does not answer."""


class Result(BaseModel):
    """What a run of restic on a runner's host has found. The host may be in somebody else's hands."""

    snapshot: Annotated[str, Field(pattern=SNAPSHOT)] = ""
    files: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=0)] = 0
    torn: list[str] = []
    unread: list[str] = []
    strange: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]] = []
    """Folders of projects with files of another user."""
    missing: list[str] = []
    """Files that restic could not restore."""


class _Begun(BaseModel):
    is_empty: bool = False


class _Read(BaseModel):
    ended: bool


@dataclass(frozen=True)
class Runner:
    """A runner whose files are backed up."""

    runner_id: str
    name: str
    most_bytes: int = BACKUP_BYTES
    """The most that its host may send during one backup."""


class RunnerFiles:
    """The files of one runner's projects, and their repository in a target."""

    def __init__(self, client: Client, target: Target, key: BackupKey, runner: Runner, rate: int = 0) -> None:
        """``rate`` is in KiB a second; 0 for no limit."""
        self._client, self._target, self.runner, self._rate = client, target, runner, rate
        self._password = key.repository_password(runner.runner_id)
        self.repository = Repository(target, key, runner.runner_id)
        self._sent = 0
        """Bytes that its host has sent to the target."""
        self._stage_id: str | None = None
        self._settled: list[str] = []
        self._part = min(PIECE_BYTES, client.connection.max_payload - ROOM_BYTES)

    async def size(self) -> int:
        """Bytes of all files."""
        size: int = self._parsed(Annotated[int, Field(ge=0)], (await self._ask("size", wait=STAGE_SECONDS))[0])
        return size

    async def take(self, name: str) -> FilesEntry:
        """Back up all projects, some of which may run. Raises :class:`BackupError`."""
        taken = datetime.now(UTC)
        await asyncio.to_thread(self.repository.ensure)
        before = await asyncio.to_thread(self.repository.snapshots)
        attempt, rounds, left_out = 1, 0, list[str]()
        while True:
            asked = {"runner_id": self.runner.runner_id, "name": name, "rate": self._rate, "left_out": left_out}
            made = await self._job("take", str(uuid.uuid4()), **asked)
            if made is None:
                return FilesEntry(
                    runner=self.runner.runner_id, name=self.runner.name, taken=taken, left_out=sorted(left_out)
                )
            if not made.snapshot:
                raise BackupError(f"runner {self.runner.name}: restic made no snapshot")
            if any(one.startswith(made.snapshot) for one in before):
                # It would be forgotten below, and with it the files of an earlier backup.
                raise BackupError(
                    f"runner {self.runner.name} names a snapshot of an earlier backup as a new one: see whether "
                    "somebody has taken over its host"
                )
            try:
                found = await self._job("compare", str(uuid.uuid4()), snapshot=made.snapshot) or Result()
            except BaseException:
                await asyncio.to_thread(self.repository.forget, made.snapshot)
                raise
            more = sorted({*found.strange} - {*left_out})
            if not more and (attempt == ATTEMPTS or not (made.unread or found.torn)):
                return FilesEntry(
                    runner=self.runner.runner_id,
                    name=self.runner.name,
                    taken=taken,
                    snapshot=made.snapshot,
                    files=found.files,
                    size=found.size,
                    torn=found.torn,
                    unread=made.unread,
                    left_out=sorted(left_out),
                )
            await asyncio.to_thread(self.repository.forget, made.snapshot)
            left_out += more
            rounds += bool(more)
            attempt += not more
            if rounds == ROUNDS:
                raise BackupError(
                    f"runner {self.runner.name} has found files of other users in {len(left_out)} projects, each time "
                    f"in others, the last in {left_out[-1]}: look at them, and at its host"
                )

    async def size_in(self, entry: FilesEntry, project_id: str | None) -> int | None:
        """Bytes of the files of a snapshot, or of one of its projects; ``None`` if it has none. Raises
        :class:`BackupError`."""
        if not entry.snapshot or project_id is None:
            return entry.size if entry.snapshot else None
        await asyncio.to_thread(self.repository.ensure)
        return await asyncio.to_thread(self.repository.size_of, entry, project_id)

    async def stage(self, entry: FilesEntry, size: int, project_id: str | None = None) -> list[str]:
        """Restore the projects of a snapshot, or one of them, beside those that are there; ``size`` is what they need
        in bytes. Returns the files that could not be restored. Raises :class:`BackupError`."""
        await asyncio.to_thread(self.repository.ensure)
        self._stage_id = str(uuid.uuid4())
        asked = {"snapshot": entry.snapshot, "size": size, "project_id": project_id}
        found = await self._job("stage", self._stage_id, **asked)
        return found.missing if found is not None else []

    async def holds(self, project_id: str) -> bool:
        """Whether the files of a project are on this host."""
        return self._parsed(bool, (await self._ask("holds", project_id=project_id))[0])  # type: ignore[no-any-return]

    async def running(self) -> list[str]:
        """Of the projects that are staged, those that run."""
        return self._parsed(list[str], (await self._ask("running", stage_id=self._stage_id))[0])  # type: ignore[no-any-return]

    async def settle(self) -> list[str]:
        """Exchange the projects that are staged with those that are there. Returns them. Raises :class:`BackupError` if
        one of them runs, and then has changed nothing."""
        answer, _ = await self._ask("settle", stage_id=self._stage_id, wait=STAGE_SECONDS)
        self._settled = self._parsed(list[str], answer)
        return self._settled

    async def undo(self) -> None:
        """Exchange them back, if they were exchanged. Raises :class:`BackupError`."""
        if self._stage_id is None:
            return
        answer, _ = await self._ask("undo", stage_id=self._stage_id, wait=STAGE_SECONDS)
        if kept := sorted({*self._settled} - {*self._parsed(list[str], answer)}):
            raise BackupError(f"runner {self.runner.name} was restarted meanwhile, and {', '.join(kept)} stay")

    async def discard(self) -> None:
        """Remove what is staged: the restored files, or the ones that they have replaced."""
        if self._stage_id is not None:
            await self._ask("discard", stage_id=self._stage_id, wait=STAGE_SECONDS)

    # ----

    def _parsed(self, kind: Any, answer: Any) -> Any:
        """An answer of the runner. Raises :class:`BackupError` if it is not what a runner answers."""
        try:
            return TypeAdapter(kind).validate_python(answer)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "all of it"
            raise BackupError(
                f"runner {self.runner.name} gives an impossible answer: {place}: {first['msg']}"
            ) from None

    async def _job(self, method: str, job_id: str, **params: Any) -> Result | None:
        """Run restic on the runner's host. Returns what it found; ``None`` if there is nothing to do. Raises
        :class:`BackupError`."""
        begun, _ = await self._ask(method, job_id=job_id, password=self._password, wait=STAGE_SECONDS, **params)
        if self._parsed(_Begun, begun).is_empty:
            return None
        try:
            async with self._serving() as rclone:
                await self._carry(rclone, job_id)
            found: Result = self._parsed(Result, (await self._ask("result", job_id=job_id, wait=RESULT_SECONDS))[0])
            return found
        except BaseException:
            with contextlib.suppress(NatskitError, TimeoutError):
                await self._client.call_runner(
                    self.runner.runner_id, "end", {"job_id": job_id}, wait=WAIT_SECONDS, service="backup"
                )
            raise

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[asyncio.subprocess.Process]:
        try:
            process = await asyncio.create_subprocess_exec(
                *("rclone", "serve", "restic", "--stdio", "--append-only"),
                self._target.served(self.runner.runner_id),
                env=os.environ | self._target.environment_of(self.runner.runner_id, self._password),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=self._part,
                umask=0o077,
                preexec_fn=end_with_parent,
            )
        except FileNotFoundError:
            raise BackupError(
                "rclone is not installed, and it writes the files of projects: run `apt-get install rclone`"
            ) from None
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _carry(self, rclone: asyncio.subprocess.Process, job_id: str) -> None:
        """Carry bytes between restic and rclone until restic ends. Raises :class:`BackupError` if rclone ends first."""
        assert rclone.stdin is not None
        assert rclone.stdout is not None
        assert rclone.stderr is not None
        said = asyncio.ensure_future(_tail(rclone.stderr))
        down = asyncio.ensure_future(self._downwards(rclone.stdin, job_id))
        up = asyncio.ensure_future(self._upwards(rclone.stdout, job_id))
        try:
            await asyncio.wait({down, up}, return_when=asyncio.FIRST_COMPLETED)
            if not down.done():
                up.result()  # raises what ended it
                raise BackupError(f"rclone in {self._target.place} ended: {await said}")
            try:
                down.result()
            except ConnectionError:
                raise BackupError(f"rclone in {self._target.place} ended: {await said}") from None
        finally:
            await cancel([down, up, said])

    async def _downwards(self, to: asyncio.StreamWriter, job_id: str) -> None:
        number, heard = 0, time.monotonic()
        while True:
            answer, data = await self._ask("read", job_id=job_id, number=number)
            number += 1
            if self._parsed(_Read, answer).ended:
                return
            if data:
                heard = time.monotonic()
                self._sent += len(data)
                if self._sent > self.runner.most_bytes:
                    raise BackupError(
                        f"runner {self.runner.name} has sent more than {self.runner.most_bytes // 1024**2} MiB for one "
                        "backup: look at what its projects keep, or raise runner_backup_max_bytes of its host and "
                        "deploy. `natskit backup prune` removes what it has sent"
                    )
                to.write(data)
                await to.drain()
            elif time.monotonic() - heard > STALL_SECONDS:
                raise BackupError(f"runner {self.runner.name}: restic has not gone on for {STALL_SECONDS / 60:g} min")

    async def _upwards(self, source: asyncio.StreamReader, job_id: str) -> None:
        number = 0
        while data := await source.read(self._part):
            await self._ask("write", data=data, job_id=job_id, number=number)
            number += 1

    async def _ask(
        self, method: str, *, wait: float = WAIT_SECONDS, data: bytes = b"", **params: Any
    ) -> tuple[Any, memoryview]:
        """Ask the runner, until it answers or was not heard for a while. Raises :class:`BackupError` with its name."""
        begun = time.monotonic()
        while True:
            try:
                return await self._client.call_runner(
                    self.runner.runner_id, method, params, data, wait=wait, service="backup"
                )
            except RpcError as error:
                if error.kind not in ("unavailable", "timeout"):
                    raise BackupError(f"runner {self.runner.name}: {shown(error.message[:500])}") from None
                said: NatskitError = error
            except ConnectionLostError as error:
                said = error
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise HostAwayError(f"runner {self.runner.name} does not answer: {said}") from None
            await asyncio.sleep(PAUSE_SECONDS)


async def _tail(stream: asyncio.StreamReader) -> str:
    """The last lines of a stream, once it has ended."""
    last: list[str] = []
    while data := await stream.read(4096):
        last = [*last, *data.decode(errors="replace").splitlines()][-3:]
    return " ".join(line.strip() for line in last)[-500:]
