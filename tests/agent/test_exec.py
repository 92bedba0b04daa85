"""Commands of a project, through a real nats-server with a project's permissions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import re
import urllib.request
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from natskit.bus.output_stream import Reader
from natskit.client import Client
from natskit.errors import ConnectionLostError, NotAllowedError
from natskit.project.environment import OWN, PASSED_ON
from natskit.rpc import RpcError, encode_error
from natskit.runner.removal import remove_tree
from tests.kit.wait import eventually

from .conftest import Project, Server, start_project


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
    allowed = {*PASSED_ON, *OWN, "SHELL", "TERM", "NATSKIT_PROJECT_ID", "EXTRA", "_", "SHLVL"}
    allowed |= {"PYTHONUNBUFFERED", "OLDPWD"}
    assert {name for name in names if not name.startswith("LC_")} <= allowed
    assert f"HOME={project.home}" in lines
    assert "EXTRA=yes" in lines


async def test_has_the_environment_of_a_login_shell(client: Client, project: Project) -> None:
    """The variables are those that login(1) sets; the user is the one that ``id`` prints."""
    (project.home / "sub").mkdir(exist_ok=True)
    script = 'set -u; id -un; for name in USER LOGNAME HOME SHELL PATH LANG TERM PWD; do eval echo "\\$$name"; done'
    async with client.exec(project.project_id, ["sh", "-c", script], cwd="sub") as run:
        out, err = await run.output()
    assert (run.exit_code, err) == (0, b"")
    user, name, logname, home, shell, path, lang, _, directory = out.decode().splitlines()
    assert (name, logname) == (user, user)
    assert home == str(project.home)
    assert os.access(shell, os.X_OK)
    assert "/usr/bin" in path.split(":")
    assert lang
    async with client.exec(project.project_id, ["printenv", "PWD"], cwd="sub") as run:
        assert (await run.output())[0].decode() == f"{directory}\n" == f"{project.home}/sub\n"


async def test_inherits_no_descriptor(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, ["ls", "/proc/self/fd"]) as run:
        out, _ = await run.output()
    assert set(out.split()) == {b"0", b"1", b"2", b"3"}  # 3 is the directory ls reads


async def test_cwd(client: Client, project: Project) -> None:
    (project.home / "sub").mkdir(exist_ok=True)
    async with client.exec(project.project_id, ["pwd"], cwd="sub") as run:
        assert await run.output() == (f"{project.home}/sub\n".encode(), b"")


async def test_in_a_folder_whose_path_is_longer_than_the_kernel_can_say(client: Client, project: Project) -> None:
    make = "import os; [(os.mkdir('folder'), os.chdir('folder')) for _ in range(1000)]; open('here', 'w')"
    async with client.exec(project.project_id, ["python3", "-c", make]) as run:
        assert await run.output() == (b"", b"")
    for argv in (["ls"], ["sh", "-c", "ls"]):
        async with client.exec(project.project_id, argv, cwd="folder/" * 1000) as run:
            out, _ = await run.output()
        assert (run.exit_code, out) == (0, b"here\n")
    await remove_tree(project.home / "folder")


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
    """More input than all buffers on the way hold, for a command that is slow to read it."""
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
    assert (run.exit_code, run.signal, run.signal_number) == (None, "SIGSEGV", 11)


@pytest.mark.parametrize(("number", "name"), [(34, "SIGRTMIN"), (35, "SIGRTMIN+1"), (64, "SIGRTMAX")])
async def test_real_time_signal(client: Client, project: Project, number: int, name: str) -> None:
    async with client.exec(project.project_id, command=f"kill -{number} $$") as run:
        await run.output()
    assert (run.exit_code, run.signal, run.signal_number) == (None, name, number)


async def test_timeout_ends_the_whole_group(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="sleep 1000 & echo $!; wait", timeout=0.3) as run:
        out, _ = await run.output()
    assert run.timed_out
    assert run.signal == "SIGTERM"
    await eventually(lambda: not alive(int(out)), "the grandchild ends")


@pytest.mark.parametrize("output", ["", " >log 2>&1"], ids=["its output is read", "its output goes into a file"])
async def test_what_a_shell_runs_has_its_time_to_end(client: Client, project: Project, output: str) -> None:
    """SIGTERM ends a shell at once. Its child may still have to save something."""
    (project.home / "saved").unlink(missing_ok=True)
    (project.home / "saver").write_text(
        "trap 'sleep 1; echo done > saved; exit' TERM\necho ready\necho > ready\nwhile :; do sleep .05; done\n"
    )
    ready = project.home / "ready"
    ready.unlink(missing_ok=True)
    async with client.exec(project.project_id, command=f"sh saver{output}; echo never") as run:
        await eventually(ready.exists, "what the shell runs is ready")
        await run.cancel()
        out, _ = await run.output()
    assert (run.signal, run.cancelled) == ("SIGTERM", True)
    assert b"never" not in out
    assert (project.home / "saved").read_text() == "done\n"


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
    await eventually(lambda: not alive(int(pid)), "the command ends")


async def test_a_child_that_keeps_the_pipe_does_not_keep_the_answer(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="sleep 1000 & echo $!") as run:
        out, _ = await asyncio.wait_for(run.output(), 5)
    assert run.exit_code == 0
    assert alive(int(out)), "a background process of a command that ended by itself goes on"
    os.kill(int(out), 9)


PRINTS_FOR_EVER = {
    "ticks": "while :; do echo tick; sleep .05; done",
    "ticks on stderr": "while :; do echo tick >&2; sleep .05; done",
    "a flood": "yes",
}


@pytest.mark.parametrize("started", ["({}) &", "setsid sh -c '{}' &", "nohup sh -c '{}' &"])
@pytest.mark.parametrize("prints", PRINTS_FOR_EVER.values(), ids=PRINTS_FOR_EVER)
async def test_what_prints_in_the_background_goes_on_without_the_command(
    client: Client, project: Project, prints: str, started: str
) -> None:
    """The command ends when its process ends. Its child can still print, and the agent discards that."""
    async with client.exec(project.project_id, command=f"echo begun; {started.format(prints)} echo $!; exit 3") as run:
        out, _ = await asyncio.wait_for(run.output(), 5)
    assert (run.exit_code, run.timed_out) == (3, False)
    assert out.startswith(b"begun\n")
    pid = next(int(line) for line in out.split() if line.isdigit())
    before = written_by(pid)
    # More than a pipe holds, where it prints that much: it is neither ended nor stopped.
    await eventually(lambda: written_by(pid) > before + (1024 * 1024 if prints == "yes" else 10), "it goes on printing")
    group = os.getpgid(pid)
    os.killpg(group, 9) if group != os.getpgid(0) else os.kill(pid, 9)


def written_by(pid: int) -> int:
    """The bytes that a process and its children have written."""
    try:
        io = Path(f"/proc/{pid}/io").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # a child, such as a sleep, that ended meanwhile
        return 0
    own = int(re.search(r"wchar: (\d+)", io)[1])  # type: ignore[index]
    return own + sum(written_by(int(child)) for child in children)


async def test_what_prints_once_later_is_not_ended_by_that(client: Client, project: Project) -> None:
    async with client.exec(project.project_id, command="(sleep 1; echo x; touch printed) & :") as run:
        await asyncio.wait_for(run.output(), 5)
    await eventually((project.home / "printed").exists, "the child has printed, and gone on")


async def test_a_server_in_the_background_serves(client: Client, project: Project) -> None:
    """It prints to stderr for each request."""
    serve = "python3 -u -m http.server --bind 127.0.0.1 0 & echo $!"
    async with client.exec(project.project_id, command=serve) as run:
        pid = int((await run.output())[0].split()[0])

    async def port() -> int | None:
        async with client.exec(project.project_id, command=f"ls -l /proc/{pid}/fd; cat /proc/net/tcp") as run:
            out = (await run.output())[0].decode()
        inodes = re.findall(r"socket:\[(\d+)\]", out)
        rows = [line.split() for line in out.splitlines() if ": 0100007F:" in line]
        return next((int(row[1].partition(":")[2], 16) for row in rows if row[9] in inodes and row[3] == "0A"), None)

    found = await eventually(port, "the server listens")
    for _ in range(3):
        status = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{found}/").status)
        assert status == 200
    os.kill(pid, 9)


async def test_a_command_that_ended_is_not_timed_out(client: Client, project: Project) -> None:
    """Background processes are not part of it."""
    command = "(while :; do echo tick; sleep .05; done) & echo $!; exit 5"
    async with client.exec(project.project_id, command=command, timeout=0.2) as run:
        out, _ = await asyncio.wait_for(run.output(), 5)
    pid = int(next(line for line in out.split() if line.isdigit()))
    assert (run.exit_code, run.signal, run.timed_out) == (5, None, False)
    assert alive(pid)
    os.kill(pid, 9)


async def test_all_that_a_command_wrote_arrives_however_quickly_it_ends(client: Client, project: Project) -> None:
    """The pipe is full when the process ends, and a child keeps writing into it."""
    command = "head -c 65536 /dev/zero | tr '\\0' a; yes & echo $! >&2"
    async with client.exec(project.project_id, command=command) as run:
        out, err = await asyncio.wait_for(run.output(), 10)
    os.kill(int(err), 9)
    assert out.startswith(b"a" * 65536)


async def test_the_last_lines_of_what_a_shell_pipes_through(client: Client, project: Project) -> None:
    """A process substitution outlives its shell for a moment."""
    for _ in range(5):
        line = "exec > >(sleep 0.05; cat); echo through"
        async with client.exec(project.project_id, ["bash", "-c", line]) as run:
            assert (await run.output())[0] == b"through\n"


async def test_pipes_that_are_left_behind_are_given_back(client: Client, project: Project) -> None:
    fds = f"/proc/{project.process.pid}/fd"
    before = len(os.listdir(fds))
    for _ in range(20):
        async with client.exec(project.project_id, command="sleep 1 &") as run:
            await run.output()
    await eventually(lambda: len(os.listdir(fds)) <= before, "the agent has closed them")


async def test_too_many_left_behind(server: Server, directory: Path) -> None:
    """The agent keeps some descriptors for itself. It refuses a caller that left processes behind, and ends none of
    them."""
    project = start_project(server, directory, limits={"max_open_files": 256})
    client = await Client.admin(server.url("admin"), None)
    pids: list[int] = []

    async def one() -> None:
        async with client.exec(project.project_id, command="sleep 1000 & echo $!") as run:
            pids.append(int((await run.output())[0]))

    async def leave_behind(count: int) -> None:
        for _ in range(count // 10):
            await asyncio.gather(*(one() for _ in range(10)))

    try:
        with pytest.raises(RpcError, match="background processes of earlier commands") as caught:
            await leave_behind(100)
        assert caught.value.kind == "limit"
        assert len(pids) >= 64
        assert all(alive(pid) for pid in pids)
        for pid in pids[:20]:
            os.kill(pid, 9)

        async def goes() -> bool:
            try:
                async with client.exec(project.project_id, command="true") as run:
                    await run.output()
            except RpcError:
                return False
            return run.exit_code == 0

        await eventually(goes, "there is room again")
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        await client.close()
        project.stop()


@pytest.mark.parametrize(
    "program",
    [
        ["python3", "-c", "print('at once'); import time; time.sleep(1000)"],
        ["sh", "-c", "python3 -c \"print('at once'); import time; time.sleep(1000)\"; true"],
    ],
)
async def test_what_python_prints_arrives_at_once(client: Client, project: Project, program: list[str]) -> None:
    async with client.exec(project.project_id, program) as run:
        stream, said = await asyncio.wait_for(anext(aiter(run)), 10)
        assert (stream, said.strip()) == ("stdout", b"at once")
        await run.cancel()


async def test_what_python_printed_before_a_timeout_is_there(client: Client, project: Project) -> None:
    program = ["python3", "-c", "for n in range(3): print(n)\nimport time; time.sleep(1000)"]
    async with client.exec(project.project_id, program, timeout=2) as run:
        out, _ = await run.output()
    assert run.timed_out
    assert out == b"0\n1\n2\n"


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
    """A project's user may not publish to a project."""
    stranger = await Client.admin(server.url("project"), None)
    stranger.connection._inbox_prefix = bytearray(f"_INBOX.project.{project.project_id}".encode())
    with pytest.raises(NotAllowedError, match=f"you may not publish to projects.{project.project_id}.api"):
        await stranger.call_project(project.project_id, "ping")
    with pytest.raises(NotAllowedError):
        async with stranger.exec(project.project_id, command="true"):
            pass
    await stranger.close()
