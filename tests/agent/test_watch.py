"""Watched folders: a real agent, a real nats-server, real inotify."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from natskit.client import Client
from natskit.project.files import Home
from natskit.project.watch import MOST_NAMES, MOST_WATCHES, MOST_WATCHES_EACH, Watches, WatchEvent
from natskit.rpc import RpcError
from tests.kit.wait import eventually

from .conftest import Project, Server, start_project

SECONDS = 20.0


class Changes:
    """What a watched folder says."""

    def __init__(self, client: Client, project: Project, path: str) -> None:
        self._changes = client.watch_directory(project.project_id, path)

    async def next(self) -> frozenset[str] | None:
        return await asyncio.wait_for(anext(self._changes), SECONDS)

    async def until(self, name: str) -> set[str]:
        """Wait until a name has changed. Returns all that have."""
        seen: set[str] = set()
        while name not in seen:
            names = await self.next()
            assert names is not None
            seen |= names
        return seen

    async def close(self) -> None:
        await self._changes.aclose()


@contextlib.asynccontextmanager
async def watched(client: Client, project: Project, path: str) -> AsyncIterator[Changes]:
    changes = Changes(client, project, path)
    try:
        assert await changes.next() is None, "at the beginning, the folder has to be listed"
        yield changes
    finally:
        await changes.close()


def kernel_watches(project: Project) -> int:
    """How many inotify watches the agent has."""
    count = 0
    for info in Path(f"/proc/{project.process.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += len(re.findall(r"^inotify ", info.read_text(), re.MULTILINE))
    return count


async def watch(client: Client, project: Project, path: str) -> dict[str, Any]:
    return dict(await client.call_project(project.project_id, "watch_directory", path=path))


async def refused(client: Client, project: Project, path: str) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await watch(client, project, path)
    return caught.value


async def test_every_kind_of_change(client: Client, project: Project) -> None:
    folder = project.home / "kinds"
    (folder / "inner").mkdir(parents=True)
    odd = os.fsdecode(b"a\xff\nb")
    async with watched(client, project, "kinds") as changes:
        (folder / "made").touch()
        assert await changes.until("made") == {"made"}
        (folder / "made").write_text("written")
        assert await changes.until("made") == {"made"}
        (folder / "made").chmod(0o600)
        assert await changes.until("made") == {"made"}
        (folder / "made").rename(folder / "renamed")
        assert await changes.until("renamed") == {"made", "renamed"}
        (folder / odd).touch()
        assert await changes.until(odd) == {odd}
        (folder / odd).unlink()
        assert await changes.until(odd) == {odd}
        (folder / "inner" / "deep").touch()
        (folder / "last").symlink_to("nowhere")
        seen = await changes.until("last")
        assert "deep" not in seen, "what is below a folder is not watched"


async def test_it_is_what_the_methods_do_that_is_seen_not_what_they_use(client: Client, project: Project) -> None:
    (project.home / "saved").mkdir()
    async with watched(client, project, "saved") as changes:
        for number in range(3):
            await client.call_project(project.project_id, "write_text_file", path="saved/a.txt", text=str(number))
        await client.call_project(project.project_id, "make_directory", path="saved/z")
        assert await changes.until("z") == {"a.txt", "z"}, "a file that is not complete yet is no change"


async def test_many_changes_are_few_events(client: Client, project: Project) -> None:
    folder = project.home / "many"
    folder.mkdir()
    async with watched(client, project, "many") as changes:
        for number in range(20 * MOST_NAMES):
            (folder / f"{number:05}").touch()
        events = [await changes.next()]
        while not (events[-1] and any(name.startswith("~end") for name in events[-1])):
            # Among too many others, it is not named either.
            (folder / f"~end-{len(events)}").touch()
            events.append(await changes.next())
        assert None in events, "too many names are named no more"
        assert len(events) < 100
        assert max(len(names or ()) for names in events) <= MOST_NAMES


async def test_a_tree_of_50_000_files_takes_one_watch(client: Client, server: Server, directory: Path) -> None:
    project = start_project(server, directory)
    try:
        for number in range(2_000):
            folder = project.home / "tree" / f"{number}"
            folder.mkdir(parents=True)
            for name in range(25):
                os.close(os.open(folder / str(name), os.O_CREAT))
        async with watched(client, project, "tree") as changes:
            assert kernel_watches(project) == 1
            (project.home / "tree" / "1999" / "24").write_text("changed")
            (project.home / "tree" / "new").touch()
            assert await changes.until("new") == {"new"}
    finally:
        project.stop()


async def test_the_number_of_folders_is_bounded(client: Client, server: Server, directory: Path) -> None:
    project = start_project(server, directory)
    try:
        for number in range(MOST_WATCHES_EACH + 1):
            (project.home / f"{number}").mkdir()
        for number in range(MOST_WATCHES_EACH):
            await watch(client, project, f"{number}")
        error = await refused(client, project, f"{MOST_WATCHES_EACH}")
        assert error.kind == "limit"
        assert f"{MOST_WATCHES_EACH} folders are watched for you, which is the limit" in error.message
        assert kernel_watches(project) == MOST_WATCHES_EACH < MOST_WATCHES
        await watch(client, project, "5")
    finally:
        project.stop()


async def test_a_folder_that_goes_away(client: Client, project: Project) -> None:
    for name in ("removed", "moved"):
        (project.home / name).mkdir()
    async with watched(client, project, "removed") as changes:
        (project.home / "removed").rmdir()
        with pytest.raises(RpcError, match="not there any more"):
            await changes.next()
    async with watched(client, project, "moved") as changes:
        (project.home / "moved").rename(project.home / "elsewhere")
        with pytest.raises(RpcError, match="not there any more"):
            await changes.next()
    assert (await refused(client, project, "moved")).kind == "not_found"


async def test_what_cannot_be_watched(client: Client, project: Project) -> None:
    (project.home / "file").touch()
    (project.home / "out").symlink_to("/etc")
    os.mkfifo(project.home / "pipe")
    assert (await refused(client, project, "file")).kind == "invalid_params"
    assert (await refused(client, project, "pipe")).kind == "invalid_params"
    assert (await refused(client, project, "none")).kind == "not_found"
    for path in ("out", "..", "out/ssl"):
        assert (await refused(client, project, path)).kind == "forbidden"


async def test_a_link_inside_leads_to_the_same_watch(client: Client, project: Project) -> None:
    (project.home / "real").mkdir()
    (project.home / "link").symlink_to("real")
    assert (await watch(client, project, "link"))["watch"] == (await watch(client, project, "real"))["watch"]


async def test_the_agent_and_the_server_are_killed(server: Server, directory: Path) -> None:
    project = start_project(server, directory)
    client = await Client.admin(server.url("admin"), None)
    (project.home / "folder").mkdir()
    try:
        async with watched(client, project, "folder") as changes:
            project.kill()
            (project.home / "folder" / "meanwhile").touch()
            project.start_again()
            assert await changes.next() is None, "another agent has seen nothing of what was before"
            (project.home / "folder" / "a").touch()
            await changes.until("a")
            server.stop()
            (project.home / "folder" / "b").touch()
            server.start()
            while (names := await changes.next()) is not None and "b" not in names:
                pass
            (project.home / "folder" / "c").touch()
            while (names := await changes.next()) is not None and "c" not in names:
                pass
    finally:
        await client.close()
        project.stop()


async def test_a_lease_ends(project: Project) -> None:
    """The one who watched has gone: the kernel watches nothing more, and nothing is published."""
    (project.home / "leased").mkdir()
    events: asyncio.Queue[WatchEvent] = asyncio.Queue()

    async def publish(event: WatchEvent) -> None:
        events.put_nowait(event)

    watches = Watches(publish, lease=0.2)
    home = Home(project.home)
    first = await watches.renew(home, "leased", "a")
    assert first["seconds"] == 0.2
    fds = len(os.listdir("/proc/self/fd"))

    async def is_closed() -> bool:
        return len(os.listdir("/proc/self/fd")) < fds

    await eventually(is_closed, "the kernel watches nothing")
    (project.home / "leased" / "x").touch()
    again = await watches.renew(home, "leased", "a")
    assert again["watch"] != first["watch"]
    (project.home / "leased" / "y").touch()
    assert (await asyncio.wait_for(events.get(), SECONDS))["names"] == ["y"]
    assert events.empty()
    watches.close()
    home.close()
