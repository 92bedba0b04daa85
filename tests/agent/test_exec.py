"""Commands of a project, through a real nats-server with the permissions of a project."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random

import pytest
from nats.aio.msg import Msg

from natskit.client import Client
from natskit.errors import ConnectionLostError, NotAllowedError
from natskit.rpc import RpcError, encode_error
from natskit.stream import Reader

from .conftest import Project, Server, until_async


async def test_ping(client: Client, project: Project) -> None:
    assert await client.call_project(project.project_id, "ping") == {
        "pong": True,
        "project_id": project.project_id,
    }


async def test_output_and_exit_code(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="echo out; echo err >&2; exit 3") as run:
        assert await run.output() == (b"out\n", b"err\n")
    assert (run.exit_code, run.signal, run.timed_out, run.cancelled) == (3, None, False, False)


async def test_argv_is_not_shell(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, ["printf", "%s|", "a b", "$HOME", "*"]) as run:
        assert await run.output() == (b"a b|$HOME|*|", b"")


async def test_starts_in_the_home_with_a_clean_environment(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="pwd; env", env={"EXTRA": "yes"}) as run:
        out, _ = await run.output()
    lines = out.decode().splitlines()
    assert lines[0] == str(project.home)
    names = {line.partition("=")[0] for line in lines[1:]}
    allowed = {"PATH", "LANG", "LC_ALL", "TZ", "HOME", "SHELL", "TERM", "NATSKIT_PROJECT_ID", "EXTRA", "PWD", "_"}
    assert names <= allowed | {"SHLVL", "OLDPWD"}
    assert f"HOME={project.home}" in lines
    assert "EXTRA=yes" in lines


async def test_inherits_no_descriptor(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, ["ls", "/proc/self/fd"]) as run:
        out, _ = await run.output()
    assert set(out.split()) == {b"0", b"1", b"2", b"3"}  # 3 is the directory ls reads


async def test_cwd(client: Client, project: Project) -> None:
    (project.home / "sub").mkdir(exist_ok=True)
    async with client.exec(project.project_id, ["pwd"], cwd="sub") as run:
        assert await run.output() == (f"{project.home}/sub\n".encode(), b"")


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"argv": ["no-such-command"]}, "not_found"),
        ({"command": "pwd", "cwd": "missing"}, "not_found"),
        ({"command": "pwd", "cwd": "../.."}, "forbidden"),
        ({"command": "pwd", "cwd": "/"}, "invalid_params"),
        ({"argv": []}, "invalid_params"),
        ({}, "invalid_params"),
        ({"argv": ["a\0b"]}, "invalid_state"),
        ({"command": "true", "timeout": -1}, "invalid_params"),
        ({"argv": ["true"], "command": "true"}, "invalid_params"),
    ],
)
async def test_refusals(client: Client, project: Project, params: dict[str, object], kind: str) -> None:
    with pytest.raises(RpcError) as caught:
        async with client.exec(project.project_id, **params):  # type: ignore[arg-type]
            pass
    assert caught.value.kind == kind


async def test_nobody_there(client: Client) -> None:
    with pytest.raises(ConnectionLostError, match="not running"):
        async with client.exec("00000000-0000-0000-0000-000000000000", ["true"]):
            pass


async def test_somebody_there_in_a_moment(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    project = "00000000-0000-0000-0000-000000000001"
    later = Reader._request_later

    async def answer(message: Msg) -> None:
        await message.respond(encode_error(1, RpcError("limit", "it is here now")))

    async def come(reader: Reader) -> None:
        await client.subscribe(f"projects.{project}.api", answer)
        await later(reader)

    monkeypatch.setattr(Reader, "_request_later", come)
    with pytest.raises(RpcError, match="it is here now"):
        async with client.exec(project, ["true"]):
            pass


async def test_stdin_text(client: Client, project: Project) -> None:
    text = "grüße\n" * 50_000
    async with client.exec(project.project_id, ["sha256sum"], stdin=text) as run:
        out, _ = await run.output()
    assert out.split()[0].decode() == hashlib.sha256(text.encode()).hexdigest()


async def test_stdin_stream(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, ["cat"], stdin_stream=True) as run:
        output = aiter(run)
        await run.write(b"one")
        assert await anext(output) == ("stdout", b"one")
        await run.write(b"two")
        assert await anext(output) == ("stdout", b"two")
        await run.close_stdin()
        assert [frame async for frame in output] == []
    assert run.exit_code == 0


async def test_stdin_of_any_size(client: Client, project: Project) -> None:
    """More than all the buffers on the way, to a command that is slow to begin."""
    data = random.Random(1).randbytes(24 * 1024 * 1024)
    async with client.exec(project.project_id, command="sleep 0.5; sha256sum", stdin_stream=True) as run:
        await run.write(data)
        await run.close_stdin()
        out, _ = await run.output()
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert project.peak() < 100 * 1024 * 1024


async def test_stdin_that_nobody_reads(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="exec <&-; echo closed", stdin_stream=True) as run:
        await run.write(b"x" * 20 * 1024 * 1024)
        await run.close_stdin()
        assert await run.output() == (b"closed\n", b"")
    assert run.exit_code == 0


async def test_signal(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="kill -SEGV $$") as run:
        await run.output()
    assert (run.exit_code, run.signal) == (None, "SIGSEGV")


async def test_timeout_ends_the_whole_group(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="sleep 1000 & echo $!; wait", timeout=0.3) as run:
        out, _ = await run.output()
    assert run.timed_out
    assert run.signal == "SIGTERM"
    await until_async(lambda: not alive(int(out)), "the grandchild ends")


async def test_cancel_insists(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="trap '' TERM; echo $$; while :; do sleep 1; done") as run:
        output = aiter(run)
        _, pid = await anext(output)
        await run.cancel()
        assert [frame async for frame in output] == []
    assert run.cancelled
    assert run.signal == "SIGKILL"
    assert not alive(int(pid))


async def test_leaving_early_cancels(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="echo $$; sleep 1000") as run:
        _, pid = await anext(aiter(run))
    await until_async(lambda: not alive(int(pid)), "the command ends")


async def test_a_child_that_keeps_the_pipe_does_not_keep_the_answer(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="sleep 1000 & echo $!") as run:
        out, _ = await asyncio.wait_for(run.output(), 5)
    assert run.exit_code == 0
    assert alive(int(out)), "a background process of a command that ended by itself goes on"
    os.kill(int(out), 9)


async def test_many_at_once(client: Client, project: Project) -> None:
    async def one(number: int) -> bytes:
        async with client.exec(project.project_id, ["echo", str(number)]) as run:
            return (await run.output())[0]

    answers = await asyncio.gather(*(one(number) for number in range(50)))
    assert answers == [f"{number}\n".encode() for number in range(50)]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_command_that_was_asked_for_twice_runs_once(client: Client, project: Project) -> None:
    """A reader whose connection was lost before the first frame publishes the same request again."""
    async with client.exec(project.project_id, command="echo ran >> twice; sleep 0.2; cat twice") as run:
        reader = run._reader
        for _ in range(3):
            await reader._request_again()
        assert await run.output() == (b"ran\n", b"")
        await reader._request_again()
    async with client.exec(project.project_id, command="cat twice") as run:
        assert await run.output() == (b"ran\n", b"")


async def test_what_the_server_refuses_is_said_at_once(server: Server, project: Project) -> None:
    """The projects' user may not publish to a project."""
    stranger = await Client.admin(server.url("project"), None)
    stranger.connection._inbox_prefix = bytearray(f"_INBOX.project.{project.project_id}".encode())
    with pytest.raises(NotAllowedError, match=f"you may not publish to projects.{project.project_id}.api"):
        await stranger.call_project(project.project_id, "ping")
    with pytest.raises(NotAllowedError):
        async with stranger.exec(project.project_id, command="true"):
            pass
    await stranger.close()
