"""Recordings of terminals: read by a program of its own, whole or not there, and never in anybody's way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from asciinema_scene.scenelib.scene import Scene

from natskit.client import Client
from natskit.rpc import RpcError
from tests.kit.wait import eventually

from .conftest import Project, Server, start_project
from .test_terminals import create, ends
from .viewing import Drawn, viewing


@pytest.fixture(autouse=True)
async def closed(client: Client, project: Project) -> AsyncIterator[None]:
    """Ends all terminals after each test."""
    yield
    for terminal in await client.call_project(project.project_id, "terminal.list"):
        await client.call_project(project.project_id, "terminal.close", terminal=terminal["terminal"])


def played(path: Path) -> str:
    """What asciinema-scene, which edits recordings, reads as output."""
    scene = Scene.parse(str(path))
    assert scene.format_version == 3
    return "".join(frame.text for frame in scene.frames if frame.tpe == "o")


def raw(path: Path) -> list[Any]:
    """All lines of a recording: each must be JSON."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def left_over(project: Project) -> list[str]:
    return [path.name for path in project.home.iterdir() if path.name.startswith(".natskit-")]


async def test_a_recording_is_played_by_another_program(client: Client, project: Project) -> None:
    script = "stty -echo; printf '\\033[31mred \u65e5\u672c\\033[m'; read secret; printf '\\nend'; exit 3"
    await create(client, project, "tape", "sh", "-c", script, columns=60, rows=10, record="first.cast")
    async with viewing(client, project.project_id, "tape", columns=60, rows=10) as seen:
        await seen.until("red \u65e5\u672c")
        screen = next(event for kind, event in seen.events if kind == "screen")
        assert screen["recording"] == "first.cast"
        assert not (project.home / "first.cast").exists()
        await seen.view.resize(50, 8)
        await eventually(lambda: seen.drawn.look()[2][3] == (50, 8), "it has the new size")
        await seen.type("hunter22\n")
        await eventually(lambda: seen.view.exit_code == 3, "the program ends")
    await ends(client, project, "tape")
    header, *events = raw(project.home / "first.cast")
    assert header["term"] == {"cols": 60, "rows": 10, "type": "xterm-256color"}
    assert [event[1:] for event in events if event[1] in "rx"] == [["r", "50x8"], ["x", "3"]]
    assert events[-1][1] == "x"
    assert all(interval >= 0 for interval, _, _ in events)
    assert "hunter22" not in (project.home / "first.cast").read_text()
    drawn = Drawn(60, 10)
    drawn.screen.feed(played(project.home / "first.cast").encode())
    assert drawn.text().split() == ["red", "\u65e5\u672c", "end"]
    assert left_over(project) == []


async def test_a_recording_begins_with_the_screen_and_can_be_ended(client: Client, project: Project) -> None:
    script = "stty -echo; echo before; read a; echo after; read b; echo last; read c"
    await create(client, project, "later", "sh", "-c", script)
    async with viewing(client, project.project_id, "later") as seen:
        await seen.until("before")
        asked: dict[str, Any] = {"terminal": "later", "path": "later.cast"}
        made = await client.call_project(project.project_id, "terminal.record", **asked)
        assert made["recording"] == "later.cast"
        with pytest.raises(RpcError, match="is recorded already"):
            await client.call_project(project.project_id, "terminal.record", terminal="later", path="other.cast")
        await seen.type("\n")
        await seen.until("after")
        ended = await client.call_project(project.project_id, "terminal.record", terminal="later")
        assert ended["recording"] is None
        await seen.type("\n")
        await seen.until("last")
        assert [event["path"] for kind, event in seen.events if kind == "recording"] == ["later.cast", None]
    drawn = Drawn(80, 24)
    drawn.screen.feed(played(project.home / "later.cast").encode())
    assert drawn.text().split() == ["before", "after"]
    with pytest.raises(RpcError, match="exists already"):
        await client.call_project(project.project_id, "terminal.record", **asked)
    assert left_over(project) == []


async def test_what_cannot_be_recorded_is_refused_and_leaves_nothing(client: Client, project: Project) -> None:
    (project.home / "taken.cast").write_text("mine")
    for said, argv, path in (
        ("'taken.cast' exists already", ["cat"], "taken.cast"),
        ("outside", ["cat"], "../outside.cast"),
        ("there is no command", ["no-such-program"], "none.cast"),
        ("none", ["cat"], "none/none.cast"),
    ):
        with pytest.raises(RpcError, match=said):
            await create(client, project, "refused", *argv, record=path)
    assert (project.home / "taken.cast").read_text() == "mine"
    assert not (project.home / "none.cast").exists()
    assert left_over(project) == []
    assert await client.call_project(project.project_id, "terminal.list") == []


async def test_a_recording_has_a_limit(server: Server, client: Client, directory: Path) -> None:
    project = start_project(server, directory, unattended={"recording_bytes": 64 * 1024})
    try:
        script = "read a; seq 100000; echo do''ne; read b"
        await create(client, project, "flood", "sh", "-c", script, record="flood.cast")
        async with viewing(client, project.project_id, "flood") as seen:
            await seen.type("\n")
            await seen.until("done")
            await eventually(lambda: (project.home / "flood.cast").exists(), "the recording ends")
        described = await client.call_project(project.project_id, "terminal.list")
        assert described[0]["recording"] is None
        assert (project.home / "flood.cast").stat().st_size <= 64 * 1024
        assert raw(project.home / "flood.cast")[-1][1:] == ["m", "the recording has reached its limit of 65,536 bytes"]
        assert "99" in played(project.home / "flood.cast")
    finally:
        project.stop()


async def test_a_recording_is_whole_when_the_project_stops(server: Server, client: Client, directory: Path) -> None:
    project = start_project(server, directory)
    await create(client, project, "a", "sh", "-c", "echo before; read x", record="stopped.cast")
    async with viewing(client, project.project_id, "a") as seen:
        await seen.until("before")
    await asyncio.to_thread(project.stop)
    assert "before" in played(project.home / "stopped.cast")
    assert left_over(project) == []


async def test_a_disk_that_takes_no_more_ends_the_recording_alone(
    server: Server, client: Client, directory: Path
) -> None:
    """The limit of a file's size is met as a full disk is: the kernel takes a part, and then nothing."""
    project = start_project(server, directory, limits={"max_file_bytes": 1024 * 1024})
    try:
        script = "read a; seq 300000; echo do''ne; cat"
        await create(client, project, "full", "sh", "-c", script, record="full.cast")
        async with viewing(client, project.project_id, "full") as seen:
            await seen.type("\n")
            await seen.until("done")
            await eventually(lambda: (project.home / "full.cast").exists(), "the recording ends")
            await seen.type("still here\n")
            await seen.until("still here")
        assert raw(project.home / "full.cast")[0]["version"] == 3
        assert played(project.home / "full.cast")
    finally:
        project.stop()
