"""Files in parts through a real nats-server arrive intact, whatever dies in the middle."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from natskit.bus.file_transfer import PARTS_IN_FLIGHT
from natskit.client import Client
from natskit.errors import ConnectionLostError, NatskitError
from natskit.files import ProjectFiles
from natskit.project.transfer import MOST_UPLOADS_EACH
from natskit.rpc import RpcError

from .conftest import Project, Server, start_project

BIG = 64 * 1024 * 1024


def made(path: Path, size: int) -> str:
    """Write random bytes. Returns their SHA-256."""
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Once:
    """A progress callback that does something when the first part has arrived, and records all calls."""

    def __init__(self, act: Callable[[], object], at: int) -> None:
        self.told: list[int] = []
        self._act = act
        self._at = at
        self.task: asyncio.Task[object] | None = None

    def __call__(self, done: int, size: int) -> None:
        assert 0 <= done <= size
        self.told.append(done)
        if done >= self._at and self.task is None:
            self.task = asyncio.ensure_future(asyncio.to_thread(self._act))


@pytest.fixture
def files(client: Client, project: Project) -> ProjectFiles:
    return client.files(project.project_id)


async def refused(client: Client, project: Project, method: str, **params: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await client.call_project(project.project_id, method, **params)
    return caught.value


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 64 * 1024 + 1, 5_000_000])
async def test_a_file_of_any_size_goes_up_and_down(
    files: ProjectFiles, project: Project, tmp_path: Path, size: int
) -> None:
    sha256 = made(tmp_path / "up", size)
    (tmp_path / "up").chmod(0o750)
    os.utime(tmp_path / "up", (1, 1_234_567_890))
    told: list[tuple[int, int]] = []
    version = await files.upload(tmp_path / "up", "file", progress=lambda *now: told.append(now))
    assert version == sha256 == sha256_of(project.home / "file")
    assert told[-1] == (size, size)
    told.clear()
    await files.download("file", tmp_path / "down", progress=lambda *now: told.append(now))
    assert sha256_of(tmp_path / "down") == sha256
    assert told[-1] == (size, size)
    for path in (project.home / "file", tmp_path / "down"):
        assert (path.stat().st_mode & 0o777, path.stat().st_mtime) == (0o750, 1_234_567_890)
    assert sorted(os.listdir(tmp_path)) == ["down", "up"]
    assert os.listdir(project.home) == ["file"]
    (project.home / "file").unlink()


async def test_ranges(files: ProjectFiles, project: Project) -> None:
    made(project.home / "file", 3_000_000)
    whole = (project.home / "file").read_bytes()
    for offset, size in ((0, None), (2_999_999, None), (1_000_000, 1_500_000), (5, 1), (4_000_000, None), (0, 0)):
        read = b"".join([part async for part in files.read("file", offset, size)])
        assert read == whole[offset : None if size is None else offset + size]
    (project.home / "file").unlink()


async def test_two_uploads_of_one_file_at_once_both_succeed(
    files: ProjectFiles, project: Project, tmp_path: Path
) -> None:
    sha256 = made(tmp_path / "up", BIG // 2)
    both = await asyncio.gather(*(files.upload(tmp_path / "up", "twice") for _ in range(2)))
    assert both == [sha256, sha256]
    assert sha256_of(project.home / "twice") == sha256
    assert [name for name in os.listdir(project.home) if name.startswith(".natskit")] == []


async def test_an_upload_that_another_one_cancels_says_so(
    files: ProjectFiles, project: Project, tmp_path: Path
) -> None:
    made(tmp_path / "up", BIG // 2)

    def cancel() -> None:
        for hidden in project.home.glob(".natskit-*.upload"):
            hidden.unlink()

    with pytest.raises(RpcError, match="another upload of the same file may have been cancelled") as caught:
        await files.upload(tmp_path / "up", "lost", progress=Once(cancel, 5_000_000))
    assert caught.value.kind == "conflict"
    assert not (project.home / "lost").exists()


@pytest.mark.parametrize("way", ["up", "down"])
async def test_the_agent_is_killed_in_the_middle(
    client: Client, server: Server, directory: Path, tmp_path: Path, way: str
) -> None:
    project = start_project(server, directory)
    files = client.files(project.project_id)

    def kill() -> None:
        project.kill()
        project.start_again()

    try:
        sha256 = made(tmp_path / "up" if way == "up" else project.home / "file", BIG)
        once = Once(kill, BIG // 4)
        if way == "up":
            assert await files.upload(tmp_path / "up", "file", progress=once) == sha256
            assert sha256_of(project.home / "file") == sha256
        else:
            await files.download("file", tmp_path / "down", progress=once)
            assert sha256_of(tmp_path / "down") == sha256
        assert once.task is not None
        await once.task
        assert once.told == sorted(once.told), "it went on where it was"
        assert os.listdir(project.home) == ["file"]
    finally:
        project.stop()


async def test_nats_server_is_lost_in_the_middle(directory: Path, tmp_path: Path) -> None:
    own = Server(directory / "own")
    own.directory.mkdir()
    own.start()
    client = await Client.admin(own.url("admin"), None)
    project = start_project(own, directory / "own")

    def restart() -> None:
        own.stop()
        own.start()

    try:
        sha256 = made(tmp_path / "up", BIG)
        files = client.files(project.project_id)
        first, second = Once(restart, BIG // 3), Once(restart, BIG // 3)
        await files.upload(tmp_path / "up", "file", progress=first)
        assert first.task is not None
        await first.task
        await files.download("file", tmp_path / "down", progress=second)
        assert second.task is not None
        await second.task
        assert sha256_of(tmp_path / "down") == sha256_of(project.home / "file") == sha256
    finally:
        project.stop()
        await client.close()
        own.stop()


async def test_a_client_that_was_ended_goes_on_later(files: ProjectFiles, project: Project, tmp_path: Path) -> None:
    sha256 = made(tmp_path / "up", BIG // 4)

    class EndedError(Exception):
        pass

    def end(done: int, size: int) -> None:
        if done > size // 2:
            raise EndedError

    with pytest.raises(EndedError):
        await files.upload(tmp_path / "up", "file", progress=end)
    assert not (project.home / "file").exists()
    told: list[int] = []
    await files.upload(tmp_path / "up", "file", progress=lambda done, _: told.append(done))
    assert told[0] >= BIG // 8
    assert sha256_of(project.home / "file") == sha256
    with pytest.raises(EndedError):
        await files.download("file", tmp_path / "down", progress=end)
    assert not (tmp_path / "down").exists()
    told.clear()
    await files.download("file", tmp_path / "down", progress=lambda done, _: told.append(done))
    assert told[0] >= BIG // 8
    assert sha256_of(tmp_path / "down") == sha256
    assert sorted(os.listdir(tmp_path)) == ["down", "up"]
    (project.home / "file").unlink()


async def test_two_downloads_of_one_file_at_once(files: ProjectFiles, project: Project, tmp_path: Path) -> None:
    """A user starts the second one because the first seems to hang."""
    wanted, local = made(project.home / "twice", BIG), tmp_path / "twice"
    second: list[BaseException | None] = []

    async def once_more() -> None:
        second.append((await asyncio.gather(files.download("twice", local), return_exceptions=True))[0])

    begun = asyncio.Event()
    first = asyncio.create_task(files.download("twice", local, progress=lambda *_: begun.set()))
    await begun.wait()
    await once_more()
    await first
    assert "another download to" in str(second[0])
    assert sha256_of(local) == wanted
    (project.home / "twice").unlink()


async def test_a_pipe_is_not_waited_for(files: ProjectFiles, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    async with asyncio.timeout(10):
        with pytest.raises(NatskitError, match="is not a regular file"):
            await files.upload(tmp_path / "pipe", "pipe")


async def test_a_file_that_changes_meanwhile(files: ProjectFiles, project: Project, tmp_path: Path) -> None:
    made(project.home / "file", BIG // 4)
    made(tmp_path / "up", BIG // 4)

    def change(path: Path) -> Callable[[int, int], None]:
        def act(_done: int, _size: int) -> None:
            with path.open("r+b") as file:
                file.write(os.urandom(10))

        return act

    with pytest.raises(RpcError, match="changed") as caught:
        await files.download("file", tmp_path / "down", progress=change(project.home / "file"))
    assert caught.value.kind == "conflict"
    with pytest.raises(RpcError, match="changed") as caught:
        await files.upload(tmp_path / "up", "new", progress=change(tmp_path / "up"))
    assert caught.value.kind == "conflict"
    assert os.listdir(tmp_path) == ["up"]
    assert os.listdir(project.home) == ["file"]
    (project.home / "file").unlink()


async def test_what_the_target_has_become_meanwhile(files: ProjectFiles, project: Project, tmp_path: Path) -> None:
    made(tmp_path / "up", 2_000_000)

    def other(_done: int, _size: int) -> None:
        (project.home / "file").write_text("of somebody else")

    with pytest.raises(RpcError) as caught:
        await files.upload(tmp_path / "up", "file", expected_version="absent", progress=other)
    assert caught.value.kind == "conflict"
    assert (project.home / "file").read_text() == "of somebody else"
    assert os.listdir(project.home) == ["file"]
    version = hashlib.sha256(b"of somebody else").hexdigest()
    await files.upload(tmp_path / "up", "file", expected_version=version)
    assert (project.home / "file").stat().st_size == 2_000_000
    (project.home / "file").unlink()


async def test_many_at_once_in_bounded_memory(client: Client, server: Server, directory: Path, tmp_path: Path) -> None:
    project = start_project(server, directory)
    try:
        sha256 = made(tmp_path / "up", BIG // 2)
        before = project.peak()
        files = client.files(project.project_id)
        await asyncio.gather(*(files.upload(tmp_path / "up", f"file {number}") for number in range(6)))
        await asyncio.gather(*(files.download(f"file {number}", tmp_path / f"{number}") for number in range(6)))
        assert {sha256_of(tmp_path / f"{number}") for number in range(6)} == {sha256}
        assert project.peak() - before < 100 * 1024 * 1024
    finally:
        project.stop()


async def test_readers_that_do_not_read_take_no_memory(client: Client, server: Server, directory: Path) -> None:
    """Clients that request parts and do not read the answers."""
    project = start_project(server, directory)
    try:
        made(project.home / "file", 2_000_000)
        call = client.call_project(project.project_id, "read_file", path="file")
        await call
        before = project.peak()
        await asyncio.gather(
            *(client.call_project(project.project_id, "read_file", path="file", wait=120) for _ in range(200))
        )
        assert project.peak() - before < 100 * 1024 * 1024
    finally:
        project.stop()


async def test_a_project_that_is_not_there(client: Client, tmp_path: Path) -> None:
    made(tmp_path / "up", 100)
    files = client.files("00000000-0000-4000-8000-000000000000")
    with pytest.raises(ConnectionLostError):
        await files.upload(tmp_path / "up", "file")
    with pytest.raises(ConnectionLostError):
        await files.download("file", tmp_path / "down")
    assert os.listdir(tmp_path) == ["up"]


async def test_so_many_uploads_and_no_more(client: Client, project: Project) -> None:
    for number in range(MOST_UPLOADS_EACH):
        await client.call_project(project.project_id, "start_upload", path="x", upload=f"{number:016x}", size=1)
    assert (
        "uploads of yours are open"
        in (await refused(client, project, "start_upload", path="x", upload="f" * 16, size=1, wait=1)).message
    )
    for number in range(MOST_UPLOADS_EACH):
        await client.call_project(project.project_id, "cancel_upload", path="x", upload=f"{number:016x}")
    assert os.listdir(project.home) == []


async def test_the_tree_over_nats(client: Client, project: Project, files: ProjectFiles, tmp_path: Path) -> None:
    """Each method once. tests/unit/test_project_tree.py tests what they do."""

    async def call(method: str, **params: Any) -> object:
        return await client.call_project(project.project_id, method, **params)

    made(tmp_path / "up", 10)
    name = "a\udcff \n"
    assert await call("make_directory", path=f"{name}/b") == {"path": f"{name}/b"}
    await files.upload(tmp_path / "up", f"{name}/b/c")
    assert (project.home / os.fsdecode(b"a\xff \n/b/c")).exists()
    assert await call("chmod", path=f"{name}/b/c", mode=0o600) == {"mode": 0o600}
    assert await call("make_link", path="link", target=name) == {"path": "link"}
    listed = await client.call_project(project.project_id, "list_directory", path="link/b")
    assert [(one["name"], one["mode"], one["size"], one["target"]) for one in listed] == [("c", 0o600, 10, None)]
    assert (await client.call_project(project.project_id, "stat", path="link"))["target"] == name
    assert await call("copy", path=name, to="copy") == {"copied": 3, "skipped": 0}
    assert await call("move", path="copy", to="moved") == {"path": "moved"}
    assert (await refused(client, project, "move", path="moved", to=name)).kind == "conflict"
    thrown = await client.call_project(project.project_id, "move_to_trash", path="moved")
    page = await client.call_project(project.project_id, "list_trash")
    assert [(one["id"], one["path"], one["type"]) for one in page["entries"]] == [(thrown["id"], "moved", "directory")]
    assert await call("restore_from_trash", id=thrown["id"]) == {"path": "moved"}
    await call("move_to_trash", path="moved")
    assert await call("empty_trash") == {"removed": 3}
    assert await call("remove", path=name) == {"removed": 3}
    assert (await refused(client, project, "remove", path=name)).kind == "not_found"
    assert (await refused(client, project, "chmod", path="link", mode=0o4755)).kind == "invalid_params"
    await call("remove", path="link")
    shutil.rmtree(project.home / ".local")


async def test_the_smallest_messages(directory: Path, tmp_path: Path) -> None:
    small = Server(directory / "small")
    small.directory.mkdir()
    small.extra = "max_payload: 65536"
    small.start()
    client = await Client.admin(small.url("admin"), None)
    project = start_project(small, directory / "small")
    try:
        sha256 = made(tmp_path / "up", 64 * 1024 * (PARTS_IN_FLIGHT + 2))
        path = "/".join(["d" * 200] * 60)
        await client.call_project(project.project_id, "make_directory", path=path)
        files = client.files(project.project_id)
        assert await files.upload(tmp_path / "up", f"{path}/file") == sha256
        await files.download(f"{path}/file", tmp_path / "down")
        assert sha256_of(tmp_path / "down") == sha256
        copies = [(tmp_path / "many" / f"{number}", f"many/{number}") for number in range(300)]
        (tmp_path / "many").mkdir()
        (tmp_path / "back").mkdir()
        for number, (local, _) in enumerate(copies):
            local.write_bytes(b"x" * (number * 200))
        await files.upload_all(copies)
        await files.download_all((path, local.stat().st_size, tmp_path / "back" / local.name) for local, path in copies)
        for local, path in copies:
            assert local.read_bytes() == (project.home / path).read_bytes()
            assert local.read_bytes() == (tmp_path / "back" / local.name).read_bytes()
        assert "disconnected" not in project.log()
    finally:
        project.stop()
        await client.close()
        small.stop()


async def test_an_upload_is_finished_again_after_a_lost_answer(client: Client, project: Project) -> None:
    """Also by a caller that cannot know the digest, as a page."""
    where: dict[str, Any] = {"path": "finished", "upload": uuid.uuid4().hex}
    await client.call_project(project.project_id, "start_upload", size=0, **where)
    first = await client.call_project(project.project_id, "finish_upload", size=0, **where)
    again = await client.call_project(project.project_id, "finish_upload", size=0, **where)
    assert first == again == {"version": hashlib.sha256(b"").hexdigest()}
    with pytest.raises(RpcError, match="nothing of this upload is here"):
        await client.call_project(project.project_id, "finish_upload", size=0, path="other", upload=where["upload"])
