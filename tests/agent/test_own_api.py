"""A plugin's methods in the project agent: typed parameters, the caller, errors, and streamed answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from natskit import rpc
from natskit.bus.output_stream import Reader
from natskit.client import Client
from natskit.rpc import RpcError

from .conftest import Server, start_project

MODULE = """
from natskit.project.agent import Caller
from natskit.rpc import Methods, RpcError

natskit_project: Methods[Caller] = Methods()


@natskit_project.method()
async def word_count(caller: Caller, path: str, at_least: int = 0) -> dict[str, int]:
    words = len(caller.home.read(path, caller.max_answer).split())
    if words < at_least:
        raise RpcError("invalid_state", f"{path} has only {words} words")
    return {"words": words}


@natskit_project.method()
async def countdown(caller: Caller, start: int) -> str:
    stream = await caller.open_stream()
    for number in range(start, 0, -1):
        await stream.room()
        await stream.send("stdout", str(number).encode())
    return "lift-off"
"""


async def test_methods_of_a_package(
    server: Server, directory: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "my_project_api.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(directory))
    project = start_project(server, directory, api_packages=["my_project_api"])
    try:
        (project.home / "text").write_text("one two three")
        assert await client.call_project(project.project_id, "word_count", path="text") == {"words": 3}
        for params, kind in (
            ({"path": "text", "at_least": 4}, "invalid_state"),
            ({"path": "../secret"}, "forbidden"),
            ({"path": 5}, "invalid_params"),
        ):
            with pytest.raises(RpcError) as caught:
                await client.call_project(project.project_id, "word_count", **params)
            assert caught.value.kind == kind
        reader = Reader(client.connection)
        await reader.open(f"projects.{project.project_id}.api", rpc.encode_request("countdown", {"start": 3}))
        got = []
        while frame := await reader.frame():
            got.append(frame)
        await reader.close()
        assert got == [("stdout", b"3"), ("stdout", b"2"), ("stdout", b"1")]
        assert reader.result == "lift-off"
        assert await client.call_project(project.project_id, "ping"), "the built-in methods are there as well"
    finally:
        project.stop()


def test_a_package_that_is_missing_is_said_at_the_start(server: Server, directory: Path) -> None:
    with pytest.raises(AssertionError, match="no_such_package"):
        start_project(server, directory, api_packages=["no_such_package"])


async def test_an_access_rule_that_nobody_would_enforce_is_refused(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = MODULE.replace("natskit_project.method()", 'natskit_project.method(access="owner")', 1)
    (directory / "owners_project_api.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(directory))
    with pytest.raises(AssertionError, match="method 'word_count': a project cannot enforce the access rule 'owner'"):
        start_project(server, directory, api_packages=["owners_project_api"])
