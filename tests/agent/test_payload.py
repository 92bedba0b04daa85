"""Limits on messages, with the smallest and the default ``nats_max_payload``, and with more than 8 MiB."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats.errors
import pytest

from natskit.bus.connection import connect
from natskit.bus.servers import NatsServers
from natskit.client import Client
from natskit.rpc import RpcError

from .conftest import Project, Server, start_project

LEAST, USUAL, MUCH = 65_536, 1024**2, 20 * 1024**2


@pytest.fixture(scope="module", params=[LEAST, USUAL, MUCH])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="natskit-payload-") as folder:
        server = Server(Path(folder))
        server.extra = f"max_payload: {request.param}"
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def project(server: Server) -> Iterator[Project]:
    project = start_project(server, server.directory)
    yield project
    project.stop()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A client. The test fails if nats-server disconnects it or the project."""
    statuses: list[str] = []
    client = await Client.admin(server.url("admin"), None)
    client.on_status(lambda status, _reason: statuses.append(status))
    yield client
    assert statuses == []
    await client.close()
    assert "Maximum Payload Violation" not in server.log()


async def test_output_of_any_size_arrives(client: Client, project: Project) -> None:
    for size in (65_535, 65_536, 65_537, 200_000, 1_500_000):
        async with client.exec(project.project_id, command=f"head -c {size} /dev/zero") as run:
            got = [len(data) async for _, data in run]
        assert (sum(got), run.exit_code) == (size, 0)
        assert max(got) <= client.connection.max_payload


async def test_input_of_any_size_arrives(client: Client, project: Project) -> None:
    data = bytes(range(256)) * 3000
    async with client.exec(project.project_id, argv=["sha256sum"], stdin_stream=True) as run:
        await run.write(data)
        await run.close_stdin()
        said = b"".join([data async for _, data in run])
    assert said.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_a_request_that_is_too_large_is_refused_before_it_is_sent(client: Client, project: Project) -> None:
    most = client.connection.max_payload
    with pytest.raises(RpcError, match=re.escape(f"nats-server takes at most {most:,} in one message")) as call:
        await client.call_project(project.project_id, "write_text_file", path="x", text="x" * most)
    with pytest.raises(RpcError, match=re.escape(f"at most {most:,}")) as run:
        async with client.exec(project.project_id, command="true", env={"LONG": "x" * most}):
            pass
    assert {(error.value.kind, error.value.data["limit"]) for error in (call, run)} == {("limit", most)}
    text = "x" * (most - 2_000)
    await client.call_project(project.project_id, "write_text_file", path="x", text=text)
    answer = await client.call_project(project.project_id, "read_text_file", path="x")
    assert answer["text"] == text


async def test_an_answer_that_is_too_large_is_an_error_and_no_disconnect(client: Client, project: Project) -> None:
    most = client.connection.max_payload
    async with client.exec(project.project_id, command=f"head -c {most} /dev/zero | tr '\\0' x > large") as run:
        assert [data async for data in run] == []
    with pytest.raises(RpcError) as error:
        await client.call_project(project.project_id, "read_text_file", path="large")
    assert error.value.kind == "limit"


async def test_headers_count_too(server: Server) -> None:
    """nats-py checks only the size of the payload; nats-server disconnects a client whose message is larger with its
    headers."""
    there = NatsServers(urls=[server.url("admin")])
    connection = await connect(there, name="headers", inbox_prefix="_INBOX.admin", timeout=10)
    number, most, headers = connection.client_id, connection.max_payload, {"Some-Header": "é" * 10}
    size = len("NATS/1.0\r\nSome-Header: \r\n\r\n") + 20
    await connection.publish("x", b"x" * (most - size), headers=headers)
    await connection.flush()
    with pytest.raises(nats.errors.MaxPayloadError):
        await connection.publish("x", b"x" * (most - size + 1), headers=headers)
    await connection.flush()
    assert connection.client_id == number, "it was not cut"
    await connection.close()
