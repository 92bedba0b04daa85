"""Jobs on a real agent: commands that need no reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from natskit.client import Client
from natskit.project.jobs import MOST_PIECES, JobOutput
from natskit.project.sender import Kind
from natskit.rpc import RpcError
from tests.kit.wait import eventually

from .conftest import Project, Server, start_project
from .test_exec import alive


async def start(client: Client, project: Project, command: str, **params: Any) -> str:
    started = await client.call_project(project.project_id, "job.start", command=command, **params)
    return str(started["job"])


async def described(client: Client, project: Project, job: str) -> dict[str, Any]:
    jobs = await client.call_project(project.project_id, "job.list")
    return next(found for found in jobs if found["job"] == job)


async def over(client: Client, project: Project, job: str) -> dict[str, Any]:
    async def is_over() -> Any:
        return (await described(client, project, job))["result"]

    return dict(await eventually(is_over, "the job ends"))


async def test_its_output_is_read_later_and_by_several(client: Client, project: Project) -> None:
    job = await start(client, project, "cat; echo err >&2; exit 4", stdin="one\ntwo\n")
    assert (await over(client, project, job))["exit_code"] == 4
    for _ in range(2):
        async with client.job(project.project_id, job) as reading:
            assert await reading.output() == (b"one\ntwo\n", b"err\n")
        assert (reading.exit_code, reading.dropped_bytes) == (4, 0)


async def test_it_outlives_a_reader_in_the_middle(client: Client, project: Project) -> None:
    job = await start(client, project, "echo begin; until [ -e go ]; do sleep .05; done; echo end")
    async with client.job(project.project_id, job) as reading:
        async for _, data in reading:
            assert data == b"begin\n"
            break
    assert (await described(client, project, job))["result"] is None
    async with client.job(project.project_id, job) as reading:
        async for _, data in reading:
            if data == b"begin\n":
                (project.home / "go").touch()
    assert reading.exit_code == 0


async def test_its_output_is_kept_to_a_bound(client: Client, project: Project) -> None:
    before = project.rss()
    job = await start(client, project, "seq 3000000; echo last")
    await over(client, project, job)
    async with client.job(project.project_id, job) as reading:
        kept, _ = await reading.output()
    whole = len("".join(f"{number}\n" for number in range(1, 3000001))) + len("last\n")
    assert kept.endswith(b"2999999\n3000000\nlast\n")
    assert 512 * 1024 < len(kept) <= 1024 * 1024
    assert len(kept) + reading.dropped_bytes == whole
    assert project.peak() - before < 32 * 1024 * 1024


async def test_what_a_slow_reader_missed_is_counted_once(client: Client, project: Project) -> None:
    job = await start(client, project, "seq 100000; until [ -e more ]; do sleep .05; done; seq 3000000")
    first = len("".join(f"{number}\n" for number in range(1, 100001)))
    read = 0
    async with client.job(project.project_id, job) as reading:
        async for _, data in reading:
            read += len(data)
            if read == first:
                (project.home / "more").touch()
                await over(client, project, job)
    assert read + reading.dropped_bytes == first + len("".join(f"{number}\n" for number in range(1, 3000001)))
    assert reading.dropped_bytes > 0


@pytest.mark.parametrize("kinds", [["stdout"], ["stdout", "stderr"]])
async def test_small_pieces_take_no_more_memory_than_large_ones(kinds: list[Kind]) -> None:
    output = JobOutput(1024 * 1024, 1_000_000_000)
    for number in range(200_000):
        await output.send(kinds[number % len(kinds)], b"ab")
    assert len(output._pieces) <= MOST_PIECES
    assert output.size + output.dropped == 400_000


async def test_it_is_ended_with_what_it_started(client: Client, project: Project) -> None:
    job = await start(client, project, "sleep 1000 & echo $! > pid; wait")
    await eventually(lambda: (project.home / "pid").read_text().strip(), "it runs")
    ended = await client.call_project(project.project_id, "job.end", job=job)
    assert (ended["result"]["signal"], ended["result"]["cancelled"]) == ("SIGTERM", True)
    assert not alive(int((project.home / "pid").read_text()))
    again = await client.call_project(project.project_id, "job.end", job=job)
    assert again["result"] == ended["result"]


async def test_a_timeout_ends_it(client: Client, project: Project) -> None:
    job = await start(client, project, "sleep 1000", timeout=0.1)
    assert (await over(client, project, job))["timed_out"] is True


async def test_bad_input_gets_one_clear_error(client: Client, project: Project) -> None:
    async def refused(said: str, method: str = "job.start", **params: Any) -> None:
        with pytest.raises(RpcError, match=said):
            await client.call_project(project.project_id, method, **params)

    await refused("name either argv or command")
    await refused("there is no command 'no-such-program'", argv=["no-such-program"])
    await refused("there is no job 'none'", "job.end", job="none")
    job = await start(client, project, "sleep 1000")
    await refused("still runs: end it first", "job.forget", job=job)
    await client.call_project(project.project_id, "job.end", job=job)
    await client.call_project(project.project_id, "job.forget", job=job)
    with pytest.raises(RpcError, match=f"there is no job '{job}'"):
        async with client.job(project.project_id, job):
            pass


async def test_only_so_many_are_kept_and_may_run(server: Server, client: Client, directory: Path) -> None:
    project = start_project(server, directory, unattended={"max_jobs": 2})
    try:
        ended = await start(client, project, "true")
        await over(client, project, ended)
        running = [await start(client, project, "sleep 1000") for _ in range(2)]
        kept = await client.call_project(project.project_id, "job.list")
        assert [found["job"] for found in kept] == running
        with pytest.raises(RpcError, match="runs 2 jobs, which is the limit"):
            await start(client, project, "true")
    finally:
        project.stop()
    await eventually(lambda: not any(alive(found["pid"]) for found in kept), "they end with the project")
