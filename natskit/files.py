"""Files of a project, of any kind and size: read, upload and download them, show progress, and resume transfers.

    files = client.files(project_id)
    await files.upload(Path("data.bin"), "data/data.bin", progress=lambda done, size: print(done, "of", size))
    await files.download("results.tar", Path("results.tar"))
    async for part in files.read("log.txt", offset=1_000_000):
        sys.stdout.buffer.write(part)

The other methods for files are called with :meth:`natskit.client.Client.call_project`, such as
``await client.call_project(project_id, "move", path="a", to="b")``; ``docs/reference/files.md`` lists them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import io
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from natskit import rpc
from natskit.bus.file_transfer import PATIENCE_SECONDS, Exchange, Transfer, Upload, read
from natskit.errors import NatskitError
from natskit.rpc import RpcError

Progress = Callable[[int, int], None]
"""Is called with the bytes that have arrived, and the bytes of the whole file."""


ProgressOfMany = Callable[[str, int, int], None]
"""The same, with the file's name first."""
Job = Callable[[], Awaitable[object]]

SMALL_BYTES = 64 * 1024
"""Files up to this size go together in one request."""
MOST_IN_BATCH = 256
"""Files in one request. Source: natskit/project/batch.py."""
ROOM_OF_FILE = 320
"""Bytes that a file takes in a request or an answer, at most, besides its path and its content."""
AT_ONCE = 6
"""The most requests with many files, or transfers of large files, at the same time."""


def _silent(done: int, size: int) -> None:
    """No progress is reported."""


def _silent_of_many(name: str, done: int, size: int) -> None:
    """No progress is reported."""


class ProjectFiles:
    """The files of one project. Made by :meth:`natskit.client.Client.files`.

    All methods raise :class:`RpcError` if the project refuses a request, and :class:`ConnectionLostError` if it does
    not answer for ``patience`` seconds.
    """

    def __init__(self, exchange: Exchange, max_payload: int, patience: float = PATIENCE_SECONDS) -> None:
        self._exchange = exchange
        self._max_payload = max_payload
        self._patience = patience

    async def read(self, path: str, offset: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes of a file, or ``size`` of them, from ``offset`` on.

        All parts are from one state of the file: if the file changes during the read, this raises a ``conflict``.
        """
        end = None if size is None else offset + size
        async with contextlib.aclosing(read(self._transfer(), path, offset, end)) as parts:
            async for _, data in parts:
                yield bytes(data)

    async def download(self, path: str, local: Path, progress: Progress = _silent) -> None:
        """Copy a file of the project to ``local``, with its mode and time. Replaces ``local`` when all has arrived.

        After an interruption, the next call resumes the download if the project's file has not changed.
        """
        transfer = self._transfer()
        state, first = await transfer.ask("read_file", {"path": path, "offset": 0, "size": transfer.part})
        part = _part_file(local, state["tag"])
        with contextlib.suppress(FileNotFoundError):
            if os.stat(part).st_size > state["size"]:
                os.unlink(part)
        fd = _open_part(part, local)
        try:
            done = os.fstat(fd).st_size
            if not done:
                _write_all(fd, first)
                done = len(first)
            progress(done, state["size"])
            if done < state["size"]:
                async with contextlib.aclosing(read(transfer, path, done, None, state["tag"])) as parts:
                    async for _, data in parts:
                        await asyncio.to_thread(_write_all, fd, data)
                        done += len(data)
                        progress(done, state["size"])
            _finish(fd, part, local, state)
        except RpcError:
            os.unlink(part)
            raise
        finally:
            os.close(fd)

    async def upload(
        self, local: Path, path: str, expected_version: str | None = None, progress: Progress = _silent
    ) -> str:
        """Copy a local file into the project, with its mode and time. Returns its version.

        The file appears when the upload is complete. After an interruption, the next call resumes the upload if the
        local file has not changed. ``expected_version`` is that of ``write_text_file``.
        """
        with _opened(local) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise NatskitError(f"{local} is not a regular file")
            transfer = self._transfer()
            if status.st_size <= transfer.part:
                return await self._write(transfer, file.fileno(), path, status, expected_version, progress)
            upload = Upload(transfer, path, _upload_id(status, path), lambda done: progress(done, status.st_size))
            try:
                return await self._send(upload, file.fileno(), status, expected_version)
            except RpcError:
                with contextlib.suppress(NatskitError):
                    await upload.cancel()
                raise
            except BaseException:
                await upload.leave()
                raise

    async def upload_all(self, copies: Iterable[tuple[Path, str]], progress: ProgressOfMany = _silent_of_many) -> None:
        """:meth:`upload` many files, and make missing folders. Sends many small files in one request.

        Uploads the files in their order; the first error ends the call.
        """
        await _each(self._upload_jobs(copies, progress))

    async def download_all(
        self, copies: Iterable[tuple[str, int, Path]], progress: ProgressOfMany = _silent_of_many
    ) -> None:
        """:meth:`download` many files, each given with its size, into existing folders. Gets many small files in one
        request.

        Downloads the files in their order; the first error ends the call.
        """
        await _each(self._download_jobs(copies, progress))

    def _upload_jobs(self, copies: Iterable[tuple[Path, str]], progress: ProgressOfMany) -> Iterator[Job]:
        batch: list[tuple[Path, str]] = []
        left = room = self._batch_room()
        for local, path in copies:
            size = local.stat().st_size
            if size > SMALL_BYTES:
                yield partial(self._upload_one, local, path, progress)
                continue
            needed = size + len(rpc.encode_request("", {"path": path})) + ROOM_OF_FILE
            if batch and (needed > left or len(batch) == MOST_IN_BATCH):
                yield partial(self._upload_batch, batch, progress)
                batch, left = [], room
            batch.append((local, path))
            left -= needed
        if batch:
            yield partial(self._upload_batch, batch, progress)

    async def _upload_one(self, local: Path, path: str, progress: ProgressOfMany) -> None:
        above = path.rpartition("/")[0]
        if above:
            await self._transfer().ask("make_directory", {"path": above})
        await self.upload(local, path, progress=partial(progress, local.name))

    async def _upload_batch(self, batch: list[tuple[Path, str]], progress: ProgressOfMany) -> None:
        read = await asyncio.to_thread(_read_small, [local for local, _ in batch])
        files = [
            {"path": path, "size": len(data), **_stamp(status)}
            for (_, path), (status, data) in zip(batch, read, strict=True)
        ]
        await self._transfer().ask("write_files", {"files": files}, b"".join(data for _, data in read))
        for (local, _), (_, data) in zip(batch, read, strict=True):
            progress(local.name, len(data), len(data))

    def _download_jobs(self, copies: Iterable[tuple[str, int, Path]], progress: ProgressOfMany) -> Iterator[Job]:
        batch: list[tuple[str, Path]] = []
        left = room = self._batch_room()
        for path, size, local in copies:
            if size > SMALL_BYTES:
                yield partial(self.download, path, local, progress=partial(progress, local.name))
                continue
            needed = size + len(rpc.encode_request("", {"path": path})) + ROOM_OF_FILE
            if batch and (needed > left or len(batch) == MOST_IN_BATCH):
                yield partial(self._download_batch, batch, progress)
                batch, left = [], room
            batch.append((path, local))
            left -= needed
        if batch:
            yield partial(self._download_batch, batch, progress)

    async def _download_batch(self, batch: list[tuple[str, Path]], progress: ProgressOfMany) -> None:
        while batch:
            answer, data = await self._transfer().ask("read_files", {"paths": [path for path, _ in batch]})
            states = answer["files"]
            if states[0]["size"] > len(data):  # it has grown
                await self.download(*batch[0], progress=partial(progress, batch[0][1].name))
                states = states[:1]
            else:
                await asyncio.to_thread(_write_small, batch, states, data)
                for (_, local), state in zip(batch, states, strict=False):
                    progress(local.name, state["size"], state["size"])
            batch = batch[len(states) :]

    def _batch_room(self) -> int:
        return self._transfer().largest

    async def _write(
        self,
        transfer: Transfer,
        fd: int,
        path: str,
        status: os.stat_result,
        expected_version: str | None,
        progress: Progress,
    ) -> str:
        """Send a small file in one request."""
        data = os.pread(fd, status.st_size, 0)
        params = {"path": path, "expected_version": expected_version, **_stamp(status)}
        answer, _ = await transfer.ask("write_file", params, data)
        progress(len(data), status.st_size)
        return str(answer["version"])

    async def _send(self, upload: Upload, fd: int, status: os.stat_result, expected_version: str | None) -> str:
        offset = await upload.start(status.st_size, expected_version)
        digest = hashlib.sha256()
        await asyncio.to_thread(_hash_until, fd, offset, digest)
        gone: RpcError | None = None
        while data := await asyncio.to_thread(_read_and_hash, fd, upload.offset, upload.part, digest):
            try:
                await upload.send(data)
            except RpcError as error:
                gone = _if_gone(error)
                await asyncio.to_thread(_hash_until, fd, status.st_size, digest, upload.offset + len(data))
                break
        if _state(os.fstat(fd)) != _state(status):
            raise RpcError("conflict", "the local file changed while it was read: begin again")
        if gone is None:
            try:
                return await upload.finish(digest.hexdigest(), expected_version, **_stamp(status))
            except RpcError as error:
                gone = _if_gone(error)
        return await self._finished_by_another(upload, digest.hexdigest(), status.st_size, gone)

    async def _finished_by_another(self, upload: Upload, sha256: str, size: int, gone: RpcError) -> str:
        """Nothing is left of an upload: another one of the same file to the same place was under way, and has ended. So
        the file is there. Raises :class:`RpcError` if not."""
        await upload.leave()
        upload.offset = size
        try:
            return await upload.finish(sha256)
        except RpcError:
            raise RpcError(
                "conflict",
                f"{gone.message} (another upload of the same file may have been cancelled meanwhile)",
            ) from None

    def _transfer(self) -> Transfer:
        return Transfer(self._exchange, self._max_payload, self._patience)


def _part_file(local: Path, tag: str, *, look_for_others: bool = True) -> Path:
    """The hidden file beside the target in which a download of this state of the file grows. Removes downloads of
    earlier states."""
    name = hashlib.sha256(os.fsencode(local.name)).hexdigest()[:16]
    part = local.parent / f".natskit-{name}-{hashlib.sha256(tag.encode()).hexdigest()[:16]}.part"
    for other in os.scandir(local.parent) if look_for_others else ():
        if other.name.startswith(f".natskit-{name}-") and other.name != part.name:  # of an earlier state
            os.unlink(other.path)
    return part


def _open_part(part: Path, local: Path) -> int:
    """Open an unfinished download. Raises :class:`NatskitError` while another download appends to it."""
    while True:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.lstat(part)):  # nobody has finished it meanwhile
                    return fd
        except BaseException as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                raise NatskitError(f"another download to {local} is under way") from None
            raise
        os.close(fd)


def _upload_id(status: os.stat_result, path: str) -> str:
    """An upload's id: always the same for the same state of the same file and the same target."""
    return hashlib.sha256(repr((_state(status), path)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _state(status: os.stat_result) -> tuple[Any, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


async def _each(jobs: Iterator[Job]) -> None:
    """Run some jobs at a time, until all are done or one fails."""

    async def worker() -> None:
        for job in jobs:
            await job()

    tasks = [asyncio.ensure_future(worker()) for _ in range(AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _opened(local: Path) -> io.FileIO:
    """Open a file without blocking. A pipe that nobody writes to would block."""
    return io.FileIO(local, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))


def _read_small(paths: list[Path]) -> list[tuple[os.stat_result, bytes]]:
    """The states and the bytes of files. Raises :class:`NatskitError` for one that has grown since it was looked at."""
    found = []
    for path in paths:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            data = file.read(SMALL_BYTES + 1) or b""
        if len(data) > SMALL_BYTES:
            raise NatskitError(f"{path} changed while it was read: begin again")
        found.append((status, data))
    return found


def _write_small(batch: list[tuple[str, Path]], states: list[dict[str, Any]], data: memoryview) -> None:
    """Replace local files by those that came one after the other."""
    for (_, local), state in zip(batch, states, strict=False):
        part = _part_file(local, state["tag"], look_for_others=False)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data[: state["size"]])
            _finish(fd, part, local, state)
        finally:
            os.close(fd)
        data = data[state["size"] :]


def _finish(fd: int, part: Path, local: Path, state: dict[str, Any]) -> None:
    """Rename a complete download to its target."""
    os.fchmod(fd, state["mode"] & 0o777)
    os.utime(fd, (state["mtime"], state["mtime"]))
    os.replace(part, local)


def _stamp(status: os.stat_result) -> dict[str, Any]:
    """The mode and the time that the copy of a file gets."""
    return {"mode": stat.S_IMODE(status.st_mode) & 0o777, "mtime": min(max(0.0, status.st_mtime), 2.0**33)}


def _read_and_hash(fd: int, offset: int, size: int, digest: hashlib._Hash) -> bytes:
    data = os.pread(fd, size, offset)
    digest.update(data)
    return data


def _if_gone(error: RpcError) -> RpcError:
    """The error, if it says that nothing is left of an upload; else it is raised."""
    if error.kind != "not_found":
        raise error
    return error


def _hash_until(fd: int, end: int, digest: hashlib._Hash, position: int = 0) -> None:
    while position < end and (data := os.pread(fd, min(1 << 20, end - position), position)):
        digest.update(data)
        position += len(data)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
