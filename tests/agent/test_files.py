"""Files of a project, through a real nats-server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from natskit.client import Client
from natskit.rpc import RpcError

from .conftest import Project


async def refused(client: Client, project: Project, method: str, **params: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await client.call_project(project.project_id, method, **params)
    return caught.value


async def test_write_read_list(client: Client, project: Project) -> None:
    text = "grüße 🙂\n\t\"'\\\0"
    written = await client.call_project(project.project_id, "write_text_file", path="a.txt", text=text)
    assert await client.call_project(project.project_id, "read_text_file", path="a.txt") == {"text": text, **written}
    assert (project.home / "a.txt").read_bytes() == text.encode()
    listed = await client.call_project(project.project_id, "list_directory")
    assert [(one["name"], one["type"]) for one in listed] == [("a.txt", "file")]
    (project.home / "a.txt").unlink()


async def test_only_one_of_many_writers_wins(client: Client, project: Project) -> None:
    first = await client.call_project(
        project.project_id, "write_text_file", path="b.txt", text="0", expected_version="absent"
    )

    async def write(number: int) -> str:
        try:
            await client.call_project(
                project.project_id,
                "write_text_file",
                path="b.txt",
                text=str(number),
                expected_version=first["version"],
            )
        except RpcError as error:
            return error.kind
        return "written"

    results = await asyncio.gather(*(write(number) for number in range(1, 20)))
    assert sorted(results) == ["conflict"] * 18 + ["written"]


async def test_confinement(client: Client, project: Project) -> None:
    (project.home / "out").symlink_to("/etc")
    for path in ("out/passwd", "../project.json", "a/../../project.json"):
        assert (await refused(client, project, "read_text_file", path=path)).kind in ("forbidden", "not_found")
    assert (await refused(client, project, "read_text_file", path="out/passwd")).kind == "forbidden"
    assert (await refused(client, project, "read_text_file", path="../project.json")).kind == "forbidden"
    assert (await refused(client, project, "write_text_file", path="../x", text="")).kind == "forbidden"
    assert (await refused(client, project, "list_directory", path="..")).kind == "forbidden"


async def test_too_large_is_an_error_not_a_disconnect(client: Client, project: Project) -> None:
    connected = client.connection.stats["reconnects"]
    (project.home / "large").write_bytes(b"x" * 2_000_000)
    assert (await refused(client, project, "read_text_file", path="large")).kind == "limit"
    # Fits as a file, but each of its characters takes six bytes in JSON.
    (project.home / "escaped").write_bytes(b"\1" * 500_000)
    assert (await refused(client, project, "read_text_file", path="escaped")).kind == "limit"
    text = "x" * 2_000_000
    assert (await refused(client, project, "write_text_file", path="a", text=text)).kind == "limit"
    assert client.connection.stats["reconnects"] == connected
    assert "disconnected" not in project.log()


async def test_not_text(client: Client, project: Project) -> None:
    (project.home / "binary").write_bytes(b"\xff\xfe")
    error = await refused(client, project, "read_text_file", path="binary")
    assert error.kind == "invalid_state"
    assert "UTF-8" in error.message


async def test_bad_parameters(client: Client, project: Project) -> None:
    assert (await refused(client, project, "read_text_file")).kind == "invalid_params"
    assert (await refused(client, project, "read_text_file", path=1)).kind == "invalid_params"
    assert (await refused(client, project, "read_text_file", path="a", nope=1)).kind == "invalid_params"
    assert (await refused(client, project, "no_such_method")).kind == "method_not_found"
