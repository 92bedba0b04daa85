"""Streams under stress: floods, readers that stall or vanish, connections that break in the middle."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from nats.aio.msg import Msg

import natskit.bus.output_stream
import natskit.project.sender
from natskit.bus.connection import connect
from natskit.bus.servers import NatsServers
from natskit.client import Client, Execution
from natskit.errors import ConnectionLostError
from natskit.project.agent import Agent
from natskit.project.api import natskit_project
from natskit.project.command import Command
from natskit.project.config import ProjectProgram
from natskit.rpc import RpcError
from tests.kit.wait import eventually

from .conftest import Project, Server
from .test_exec import alive

MIB = 1024 * 1024


@asynccontextmanager
async def agent_here(server: Server) -> AsyncIterator[Agent]:
    """An agent in this process, so that a test can set its clock and reach its connection."""
    with tempfile.TemporaryDirectory() as home:
        program = ProjectProgram(
            project_id=str(uuid.uuid4()), nats=NatsServers(urls=[server.url("project")]), home=Path(home)
        )
        agent = Agent(program, natskit_project)
        try:
            await agent.start()
            yield agent
        finally:
            await agent.close()


async def kick(server: Server, client_id: int | None, server_id: str) -> None:
    """Close a connection, as a hub does after a change of rights."""
    there = NatsServers(urls=[server.url("sys")])
    async with await connect(there, name="system", inbox_prefix="_INBOX", timeout=10) as system:
        body = json.dumps({"cid": client_id}).encode()
        answer = await system.request(f"$SYS.REQ.SERVER.{server_id}.KICK", body, timeout=5)
        assert b"error" not in answer.data


def server_id(client: Client) -> str:
    return str(client.connection._server_info["server_id"])


async def digest(run: Execution) -> tuple[int, str]:
    size, sha = 0, hashlib.sha256()
    async for _, data in run:
        size += len(data)
        sha.update(data)
    return size, sha.hexdigest()


def expected(size: int) -> str:
    return hashlib.sha256(b"y\n" * (size // 2)).hexdigest()


async def test_a_flood_arrives_whole_in_bounded_memory(client: Client, project: Project) -> None:
    before = project.rss()
    size = 300 * MIB
    async with client.exec(project.project_id, command=f"yes | head -c {size}") as run:
        got = await digest(run)
    assert got == (size, expected(size))
    assert run.exit_code == 0
    assert project.peak() - before < 32 * MIB


async def test_a_stalled_reader_stalls_the_command(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="echo $$; yes") as run:
        output = aiter(run)
        _, pid = await anext(output)
        before = project.rss()
        io = Path(f"/proc/{int(pid.split()[0])}/task")  # the shell; yes is its child

        def written() -> int:
            child = next(io.glob("*/children")).read_text().split()[0]
            return int(re.search(r"wchar: (\d+)", Path(f"/proc/{child}/io").read_text())[1])  # type: ignore[index]

        await eventually(lambda: next(io.glob("*/children")).read_text(), "yes runs")
        last = -1
        for _ in range(200):
            now = await asyncio.to_thread(written)
            if now == last:
                break
            last = now
            await asyncio.sleep(0.2)
        else:
            pytest.fail("yes never stops writing")
        assert last < 8 * MIB
        assert project.rss() - before < 16 * MIB
        for _ in range(100):
            await anext(output)
        await run.cancel()
        await digest(run)
    assert run.cancelled


async def test_cut_reader_goes_on(client: Client, project: Project, server: Server) -> None:
    size = 200 * MIB
    async with client.exec(project.project_id, command=f"yes | head -c {size}") as run:
        got, sha, kicks = 0, hashlib.sha256(), 0
        async for _, data in run:
            got += len(data)
            sha.update(data)
            if got > (kicks + 1) * 40 * MIB:
                kicks += 1
                await kick(server, client.connection.client_id, server_id(client))
    assert kicks == 4
    assert (got, sha.hexdigest()) == (size, expected(size))


async def test_cut_writer_goes_on(client: Client, project: Project, server: Server) -> None:
    data = random.Random(2).randbytes(24 * MIB)
    async with client.exec(project.project_id, ["sha256sum"], stdin_stream=True) as run:
        for start in range(0, len(data), 4 * MIB):
            await run.write(data[start : start + 4 * MIB])
            await kick(server, client.connection.client_id, server_id(client))
        await run.close_stdin()
        out, _ = await run.output()
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_server_restart_in_the_middle(client: Client, project: Project, server: Server) -> None:
    async with client.exec(project.project_id, command="for i in 1 2 3; do echo $i; sleep 0.5; done; echo end") as run:
        output = aiter(run)
        first = await anext(output)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        rest = b"".join([data async for _, data in output])
    assert first[1] + rest == b"1\n2\n3\nend\n"
    assert run.exit_code == 0


async def test_cut_agent_goes_on(client: Client, server: Server) -> None:
    """The operator's client notices only the missing heartbeats."""
    async with agent_here(server) as agent:
        size = 64 * MIB
        async with client.exec(agent.program.project_id, command=f"yes | head -c {size}") as run:
            got, sha, kicked = 0, hashlib.sha256(), False
            async for _, data in run:
                got += len(data)
                sha.update(data)
                if not kicked:
                    kicked = True
                    await kick(server, agent.connection.client_id, server_id(client))
        assert (got, sha.hexdigest()) == (size, expected(size))


async def test_cut_agent_tells_its_readers(client: Client, server: Server) -> None:
    async with agent_here(server) as agent:
        project_id = agent.program.project_id
        client.account_id = "as if signed in"
        try:
            async with client.exec(project_id, ["cat"], stdin_stream=True) as run:
                output = aiter(run)
                back = asyncio.Event()
                agent.connection.on_reconnect(back.set)
                await kick(server, agent.connection.client_id, server_id(client))
                await asyncio.wait_for(back.wait(), 5)
                await run.write(b"hello")
                assert await asyncio.wait_for(anext(output), 1) == ("stdout", b"hello")
        finally:
            client.account_id = None


READ = """
import asyncio, sys
from natskit.client import Client

async def main(url, project):
    async with await Client.admin(url, None) as client:
        command = "n=0; while [ $n -lt 150 ]; do n=$((n+1)); echo $n | tee -a count; sleep 0.1; done; exit 7"
        async with client.exec(project, command=command) as run:
            async for _, data in run:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            print("exit code", run.exit_code)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_reader_that_stood_still_goes_on_where_it_was(tmp_path: Path) -> None:
    """It stands still until nats-server disconnects it and the command prints its last lines."""
    server = Server(tmp_path)
    server.extra = 'ping_interval: "1s"'
    await asyncio.to_thread(server.start)
    try:
        async with agent_here(server) as agent:
            arguments = [server.url("admin"), agent.program.project_id]
            reader = await asyncio.create_subprocess_exec(
                sys.executable, "-c", READ, *arguments, stdout=subprocess.PIPE
            )
            count = agent.home.path / "count"
            await eventually(lambda: count.exists() and agent._streams, "the command runs")
            reader.send_signal(signal.SIGSTOP)
            await eventually(lambda: count.read_text().split()[-1:] == ["150"], "the command goes on", 40)
            (sender, _), *_ = agent._streams.values()
            assert sender.silence > 10
            reader.send_signal(signal.SIGCONT)
            out, _ = await asyncio.wait_for(reader.communicate(), 30)
            assert out.decode().split("\n") == [*map(str, range(1, 151)), "exit code 7", ""]
    finally:
        await asyncio.to_thread(server.stop)


async def test_a_reader_that_comes_back_too_late_is_told_why(server: Server, client: Client) -> None:
    async with agent_here(server) as agent:
        agent.program.reader_patience = 600
        async with client.exec(agent.program.project_id, command="echo $$; exec sleep 1000") as run:
            output = aiter(run)
            _, pid = await anext(output)
            (sender, _), *_ = agent._streams.values()
            sender.silence = 600
            await eventually(lambda: not agent._streams, "the stream is forgotten")
            assert not alive(int(pid))
            with pytest.raises(RpcError, match=r"the command was ended: nobody read its output for 600 s"):
                await anext(output)


async def test_an_agent_that_stood_still_blames_nobody(client: Client, server: Server) -> None:
    """The clock jumps when a machine was suspended or an agent was stopped."""
    async with (
        agent_here(server) as agent,
        client.exec(agent.program.project_id, command="echo $$; exec sleep 1000") as run,
    ):
        _, pid = await anext(aiter(run))
        (sender, _), *_ = agent._streams.values()
        sender._ticked -= 10_000
        before = sender.silence
        await eventually(lambda: sender.silence != before, "its clock ticks")
        assert sender.silence < 10
        assert alive(int(pid))


async def test_leaving_a_command_frees_its_place_at_once(server: Server, client: Client) -> None:
    async with agent_here(server) as agent:
        async with client.exec(agent.program.project_id, command="echo x; exec yes") as run:
            await anext(aiter(run))
        await eventually(lambda: not agent._streams, "the stream is forgotten", 5)


async def test_who_is_away_gives_way(server: Server, client: Client) -> None:
    """If there are too many commands, only the one whose reader has been silent longest ends."""
    async with agent_here(server) as agent:
        agent.program.max_streams = 2
        project = agent.program.project_id
        async with client.exec(project, command="echo $$; exec sleep 1000") as away:
            _, pid = await anext(aiter(away))
            (sender, _), *_ = agent._streams.values()
            async with client.exec(project, command="echo $$; exec sleep 1000") as present:
                _, other = await anext(aiter(present))
                sender.silence = natskit.bus.output_stream.AWAY_SECONDS + 1
                async with client.exec(project, ["echo", "a third one"]) as run:
                    assert await run.output() == (b"a third one\n", b"")
                assert alive(int(other))
                await eventually(lambda: not alive(int(pid)), "the command of who is away has ended")
            with pytest.raises(RpcError, match="another command needed its place"):
                await away.output()


async def test_a_reader_that_vanishes_ends_the_command(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natskit.project.sender, "GONE_SECONDS", 0.5)
    async with agent_here(server) as agent:
        project_id = agent.program.project_id
        reader = await Client.admin(server.url("admin"), None)
        run = reader.exec(project_id, command="echo $$; yes")
        await run.__aenter__()
        _, pid = await anext(aiter(run))
        shell = int(pid.split()[0])
        assert alive(shell)
        run._reader.ended = True  # close without a word to the agent
        await run._reader.close()
        await reader.close()
        await eventually(lambda: not alive(shell), "the command ends")
        await eventually(lambda: not agent._streams, "the stream is forgotten")
        assert await client.call_project(project_id, "ping")


async def test_an_agent_that_dies_is_a_clear_error(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natskit.bus.output_stream, "QUIET_SECONDS", 0.5)
    monkeypatch.setattr(natskit.bus.output_stream, "ANSWER_SECONDS", 1)
    async with agent_here(server) as agent, client.exec(agent.program.project_id, ["sleep", "1000"]) as run:
        await agent.connection.close()
        with pytest.raises(ConnectionLostError, match="went away"):
            await run.output()


async def test_a_stopped_project_says_so(server: Server, client: Client) -> None:
    command = "echo $$; exec sleep 1000"
    async with agent_here(server) as agent, client.exec(agent.program.project_id, command=command) as run:
        output = aiter(run)
        _, pid = await anext(output)
        await agent.close()
        with pytest.raises(RpcError, match="stopped") as caught:
            await anext(output)
        assert caught.value.kind == "unavailable"
        assert not alive(int(pid))


async def test_a_restarted_agent_does_not_know_the_stream(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natskit.bus.output_stream, "QUIET_SECONDS", 0.5)
    async with agent_here(server) as agent, client.exec(agent.program.project_id, ["sleep", "1000"]) as run:
        found = agent._streams.copy()
        agent._streams.clear()
        for sender, _ in found.values():
            sender.close()
        with pytest.raises(RpcError, match="restarted") as caught:
            await run.output()
        assert caught.value.kind == "not_found"
        for _, command in found.values():
            assert isinstance(command, Command)
            command.kill()
            await eventually(partial(_has_ended, command), "it has ended")


def _has_ended(command: Command) -> bool:
    return command._process.returncode is not None


async def test_too_many_commands(server: Server, client: Client) -> None:
    async with agent_here(server) as agent:
        agent.program.max_streams = 1
        project_id = agent.program.project_id
        async with client.exec(project_id, ["sleep", "1000"]):
            with pytest.raises(RpcError) as caught:
                async with client.exec(project_id, ["true"]):
                    pass
            assert caught.value.kind == "limit"


async def test_the_output_of_a_command_is_not_for_others(server: Server, client: Client) -> None:
    """The agent sends frames only to the reply subject of the request."""
    heard: list[str] = []

    async def note(message: Msg) -> None:
        heard.append(message.subject)

    stop = await client.subscribe(">", note)
    async with agent_here(server) as agent, client.exec(agent.program.project_id, ["echo", "x"]) as run:
        await run.output()
    await client.connection.flush()
    await stop()
    assert {re.sub(r"[0-9a-f-]{24,36}|[A-Za-z0-9]{22}", "*", one) for one in heard} <= {
        "projects.*.api",
        "projects.*.streams.*",
        "_INBOX.admin.*.*.0",
        "docs.disk.*.-",  # it asks for the documents of its project
    }
