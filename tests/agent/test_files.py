"""Files of a project, through a real nats-server."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from natskit.client import Client
from natskit.rpc import RpcError

from .conftest import Project, Server, start_project


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


async def test_a_folder_with_many_files(client: Client, project: Project) -> None:
    many = project.home / "many"
    many.mkdir()
    names = [f"file-{number:05}-{'x' * 100}" for number in range(20_000)]
    for name in names:
        os.close(os.open(many / name, os.O_CREAT))
    assert [entry["name"] async for entry in client.list_directory(project.project_id, "many")] == names
    error = await refused(client, project, "list_directory", path="many")
    assert error.kind == "limit"
    assert "list_directory_page" in error.message
    page = await client.call_project(
        project.project_id, "list_directory_page", path="many", after=names[10_000], limit=3
    )
    assert [entry["name"] for entry in page["entries"]] == names[10_001:10_004]
    assert page["next"] == names[10_003]
    shutil.rmtree(many)


async def test_names_that_are_no_text(client: Client, project: Project) -> None:
    (project.home / "names").mkdir()
    folder = os.fsencode(project.home / "names")
    contents = {
        b"a\xff": "bytes",
        "a\N{REPLACEMENT CHARACTER}".encode(): "another",
        b"a\nb": "lines",
        b"ab": "no lines",
    }
    for name, content in contents.items():
        (project.home / "names" / os.fsdecode(name)).write_text(content)
    entries = [entry async for entry in client.list_directory(project.project_id, "names")]
    read = {}
    for entry in entries:
        path = f"names/{entry['name']}"
        got = await client.call_project(project.project_id, "read_text_file", path=path)
        read[os.fsencode(entry["name"])] = got["text"]
        await client.call_project(
            project.project_id, "write_text_file", path=path, text="new", expected_version=got["version"]
        )
    assert read == contents
    assert sorted(os.listdir(folder)) == sorted(contents)
    shutil.rmtree(folder)


async def test_texts_are_kept_to_the_letter(client: Client, project: Project) -> None:
    for text in ("a\r\nb\r\n", "a\rb\n\r", "\ufeffa", "no end", "\0\1\x7f\x85\u2028\u2029\ufffe", "\n\n"):
        (project.home / "text").write_bytes(text.encode())
        got = await client.call_project(project.project_id, "read_text_file", path="text")
        assert got["text"] == text
        await client.call_project(project.project_id, "write_text_file", path="copy", text=text)
        assert (project.home / "copy").read_bytes() == text.encode()


async def test_the_smallest_messages(directory: Path) -> None:
    """nats_max_payload = 65536, the minimum of that setting."""
    small = Server(directory / "small")
    small.directory.mkdir()
    small.extra = "max_payload: 65536"
    small.start()
    client = await Client.admin(small.url("admin"), None)
    project = start_project(small, directory / "small")
    try:
        for number in range(1000):
            (project.home / f"{number:04}{chr(1) * 250}").touch()
        names = [entry["name"] async for entry in client.list_directory(project.project_id)]
        assert names == sorted(os.listdir(project.home))
        assert len(names) == 1000
        (project.home / "large").write_bytes(b"x" * 100_000)
        assert (await refused(client, project, "read_text_file", path="large")).kind == "limit"
        assert "disconnected" not in project.log()
    finally:
        project.stop()
        await client.close()
        small.stop()


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
