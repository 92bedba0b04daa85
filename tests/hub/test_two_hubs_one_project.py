"""Two hubs that work on one project at the same moment, each with a view of its own, on a real nats-server."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from natskit.hub.services.projects import Projects
from natskit.hub.state.records import Project
from natskit.hub.state.view import State
from natskit.process.lifecycle import cancel
from natskit.rpc import RpcError
from tests.hub.site import Site

Work = Callable[[], Awaitable[object]]


@contextlib.asynccontextmanager
async def hub(site: Site) -> AsyncIterator[tuple[State, Projects]]:
    """The part of a hub that changes projects."""

    def ignore(_: set[str]) -> None:
        """Nobody is connected."""

    async def silent(subject: str, *_: object) -> bytes:
        raise AssertionError(f"{subject} was asked")

    async def connected(_: str) -> bool:
        return False

    connection = await site.state()
    state = State(connection, {}, ignore, ignore, ignore)
    tasks = {asyncio.create_task(state.follow())}
    try:
        await state.wait_current(10)
        yield state, Projects(state, connection, silent, connected, 100)
    finally:
        await cancel(tasks)
        await connection.close()


def meanwhile(monkeypatch: pytest.MonkeyPatch, state: State, work: Work) -> None:
    """Do something on another hub when this one has decided what to write, and before its write arrives."""
    write, done = state.projects._write, False

    async def later(*arguments: object) -> int:
        nonlocal done
        if not done:
            done = True
            await work()
        return await write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(state.projects, "_write", later)


@contextlib.asynccontextmanager
async def two_hubs(folder: Path, project: Project) -> AsyncIterator[tuple[str, State, State, Projects]]:
    """The id of a project, the states of two hubs that know it, and what the second one changes projects with."""
    project_id = str(uuid.uuid4())
    async with Site.without_hubs(folder) as site, hub(site) as (one, _), hub(site) as (two, projects):
        await one.projects.change(project_id, lambda _: project)
        assert await two.projects.find(project_id) is not None
        yield project_id, one, two, projects


STARTED = Project(title="Demo", created_at=0, runner_id=str(uuid.uuid4()), desired="running", state="running")


@pytest.mark.parametrize("report", ["of the runner", "of the hub that stopped it"])
async def test_a_project_that_was_started_meanwhile_keeps_its_new_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: str
) -> None:
    async with two_hubs(tmp_path, replace(STARTED, desired="stopped")) as (project_id, one, two, slow):

        async def start_it() -> None:
            await one.update_project(project_id, desired="running", state="starting", public_key="UNEW")

        meanwhile(monkeypatch, two, start_it)
        if report == "of the runner":
            await slow.report(project_id, "stopped", "")
        else:
            await slow.stop(project_id)
        now = two.projects.get(project_id)
        assert now is not None
        assert (now.desired, now.public_key) == ("running", "UNEW")


@pytest.mark.parametrize("key", ["the only one", "a second one"])
async def test_a_project_that_was_stopped_meanwhile_gets_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    async with two_hubs(tmp_path, STARTED) as (project_id, one, two, slow):
        meanwhile(monkeypatch, two, lambda: one.update_project(project_id, desired="stopped"))
        accept = slow.keys.use if key == "the only one" else slow.keys.use_as_well
        with pytest.raises(RpcError, match="the project should not run"):
            await accept(project_id, "UNEW")
        now = two.projects.get(project_id)
        assert now is not None
        assert (now.public_key, now.next_key) == ("", "")


async def test_a_stop_takes_the_key_of_a_project_that_a_late_report_calls_stopped(tmp_path: Path) -> None:
    project_id = str(uuid.uuid4())
    async with Site.without_hubs(tmp_path) as site, hub(site) as (one, projects):
        await one.projects.change(project_id, lambda _: replace(STARTED, state="stopped", public_key="UNEW"))
        await projects.stop(project_id)
        now = one.projects.get(project_id)
        assert now is not None
        assert (now.desired, now.public_key) == ("stopped", "")
