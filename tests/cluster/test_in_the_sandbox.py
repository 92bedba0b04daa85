"""Terminals, jobs and files in a project's real sandbox: its system calls, its devices, its disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from natskit.client import Client
from tests.agent.viewing import viewing
from tests.cluster.site import Cluster
from tests.platform.site import World


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    """The operator, who may send requests to every project."""
    creds = Path(cluster.info["creds"]["platform_admin"])
    async with await Client.admin(cluster.info["nats_urls"], creds, ca_file=cluster.info["nats_ca_file"]) as client:
        yield client


@pytest.fixture(scope="module")
def project(world: World) -> str:
    return world.names["p"]


async def test_a_terminal_has_a_size_and_job_control(client: Client, project: str) -> None:
    await client.call_project(project, "terminal.create", name="sandbox", argv=["bash", "--norc"])
    async with viewing(client, project, "sandbox", columns=91, rows=23) as viewer:
        await viewer.type("stty size; tty; sleep 1000\r")
        await viewer.until("23 91")
        await viewer.until("/dev/pts/")
        await viewer.interrupt()
        await viewer.type("echo interrupted: $?\r")
        await viewer.until("interrupted: 130")
        await viewer.type("exit 7\r")
        assert viewer.task is not None
        await asyncio.wait_for(viewer.task, 30)
        assert viewer.view.exit_code == 7


async def test_a_job_outlives_its_reader(client: Client, project: str) -> None:
    started = await client.call_project(project, "job.start", argv=["sh", "-c", "echo out; echo err >&2; exit 3"])
    async with client.job(project, started["job"]) as job:
        out, err = await job.output()
    assert (out, err, job.exit_code) == (b"out\n", b"err\n", 3)


async def test_files_of_every_kind(client: Client, project: str, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "data").write_bytes(data)
    files = client.files(project)
    await client.call_project(project, "make_directory", path="sandbox/deep")
    await files.upload(tmp_path / "data", "sandbox/data")
    await client.call_project(project, "copy", path="sandbox/data", to="sandbox/deep/copy")
    await client.call_project(project, "move", path="sandbox/deep/copy", to="sandbox/moved")
    await client.call_project(project, "make_link", path="sandbox/link", target="moved")
    await client.call_project(project, "chmod", path="sandbox/moved", mode=0o600)
    await files.download("sandbox/link", tmp_path / "back")
    assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()
    trashed = await client.call_project(project, "move_to_trash", path="sandbox/data")
    await client.call_project(project, "restore_from_trash", id=trashed["id"])
    await client.call_project(project, "remove", path="sandbox")
    names = [entry["name"] for entry in await client.call_project(project, "list_directory")]
    assert "sandbox" not in names
