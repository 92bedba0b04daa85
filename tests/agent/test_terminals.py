"""Terminals on a real agent: real programs, several viewers, floods, cuts, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import shutil
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from natskit import rpc
from natskit.bus.output_stream import frame_of
from natskit.client import Client
from natskit.rpc import RpcError
from tests.kit.wait import eventually

from .conftest import Project, Server, start_project
from .test_exec import alive
from .test_streams import agent_here
from .viewing import Drawn, viewing

MIB = 1024 * 1024
PROGRESS = (
    r"for n in 1 25 50 75 100; do printf '\r\033[44m%*s\033[m %3d%%' $((n / 4 + 1)) '' $n; sleep .02; done; exec cat"
)
QUIET_SHELL = ["/bin/sh"]
ASK = """
import os, re, sys, termios, time, tty
old = termios.tcgetattr(0)
tty.setraw(0)
for query, end in {queries}:
    os.write(1, query.encode())
    got = b""
    while not got.endswith(end.encode()):
        got += os.read(0, 1)
    print(ascii(got.decode()), end="\\r\\n")
termios.tcsetattr(0, termios.TCSADRAIN, old)
import select
print("more" if select.select([0], [], [], 0.2)[0] else "nothing more")
open("asked", "w").close()
"""
QUERIES = [
    ("\x1b[c", "c"),
    ("\x1b[6n", "R"),
    ("\x1b[?2004$p", "y"),
    ("\x1b]10;?\x07", "\x07"),
    ("\x1b]11;?\x07", "\x07"),
    ("\x1b[>q", "\\"),
    ("\x1bP+q544e\x1b\\", "\\"),
    ("\x1b[?u\x1b[c", "c"),
]


@pytest.fixture
async def names(client: Client, project: Project) -> AsyncIterator[list[str]]:
    """Names of terminals that are ended after the test."""
    made: list[str] = []
    yield made
    for terminal in await client.call_project(project.project_id, "terminal.list"):
        await client.call_project(project.project_id, "terminal.close", terminal=terminal["terminal"])


async def create(client: Client, project: Project, name: str, *argv: str, **params: Any) -> dict[str, Any]:
    made = await client.call_project(
        project.project_id, "terminal.create", name=name, argv=list(argv or QUIET_SHELL), **params
    )
    return dict(made)


def emulator_of(project: Project) -> int:
    children = Path(f"/proc/{project.process.pid}/task/{project.process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if b"emulator" in Path(f"/proc/{pid}/cmdline").read_bytes())


async def ends(client: Client, project: Project, name: str) -> None:
    async def is_gone() -> bool:
        listed = await client.call_project(project.project_id, "terminal.list")
        return name not in [terminal["terminal"] for terminal in listed]

    await eventually(is_gone, f"the terminal {name} ends")


pytestmark = pytest.mark.usefixtures("names")


async def test_a_login_shell_with_its_environment(client: Client, project: Project) -> None:
    made = await client.call_project(project.project_id, "terminal.create", columns=100, rows=30)
    assert made["terminal"] == "1"
    async with viewing(client, project.project_id, "1", columns=100, rows=30) as seen:
        await seen.type(
            "echo [$TERM] [$COLORTERM] [$HOME] [$USER] [$PYTHONUNBUFFERED] $(stty size) $(tty | cut -c1-8)\n"
        )
        await seen.until(f"[xterm-256color] [truecolor] [{project.home}]")
        await seen.until("[] 30 100 /dev/pts")
        await seen.type("echo $(id -un)=$USER=$LOGNAME $SHELL$(test -x $SHELL && echo ' runs') ${LANG:+''lang''uage}\n")
        name = pwd.getpwuid(os.getuid()).pw_name
        await seen.until(f"{name}={name}={name} /bin/bash runs language")
        await seen.type("shopt -q login_shell && echo a log''in with $(command -v python3)\n")
        await seen.until("a login with")
        assert ".venv" not in seen.drawn.text()
        await seen.type("exit 7\n")
        await eventually(lambda: seen.view.exit_code == 7, "the shell ends")
    await ends(client, project, "1")


async def test_job_control_and_keys_that_send_signals(client: Client, project: Project) -> None:
    await create(client, project, "keys", "/bin/bash", "--norc")
    async with viewing(client, project.project_id, "keys") as seen:
        await seen.prompt()
        await seen.type("sh -c 'echo run''ning; exec sleep 1000'\n")
        await seen.until("running")
        await seen.type("\x1a")
        await seen.until("Stopped")
        await seen.prompt()
        await seen.type("fg\n")
        await eventually(lambda: seen.drawn.text().count("exec sleep 1000") == 3, "the job is back")
        await seen.interrupt()
        await seen.type("echo st''ill here\n")
        await seen.until("still here")
        await seen.type("read -s -p 'Password: ' secret; echo; echo ${#secret} characters\n")
        await seen.until("Password: ")
        await seen.type("hunter22\n")
        await seen.until("8 characters")
        assert "hunter22" not in seen.drawn.contents()


@pytest.mark.parametrize(
    ("argv", "shows", "keys", "then"),
    [
        (["vim", "-u", "NONE", "-N", "text"], "line 3", "5G\x16jjll", "VISUAL BLOCK"),
        (["less", "-N", "text"], "line 3", "G", "line 300"),
        (["top", "-d", "100"], "PID USER", "1", "%Cpu0"),
        (["python3", "-q", "-i", "-c", "print('\\x1b[44mblue\\x1b[K\\x1b[m')"], "blue", "6 * 7\n", "42"),
        (["git", "-c", "core.pager=less", "-c", "color.ui=always", "log", "--stat"], "a commit", "G", "END"),
        (["htop", "-d", "100"], "Load average", "\x1b[B", "F10"),
        (["mc", "-u", "--nosubshell"], "10Quit", "\x1b[B", "10Quit"),
        (["tmux", "-L", "natskit-test", "-f", "/dev/null", "new", "sh"], "[0]", "echo in''side\n", "inside"),
        (["sh", "-c", PROGRESS], "100%", "next\n", "next"),
    ],
    ids=["vim", "less", "top", "python", "git", "htop", "mc", "tmux", "progress"],
)
async def test_coming_back_to_a_program_shows_what_it_shows(
    client: Client, project: Project, argv: list[str], shows: str, keys: str, then: str
) -> None:
    """A viewer that has seen everything and one that comes later see the same cells, cursor and modes."""
    assert shutil.which(argv[0]), f"there is no {argv[0]} here: run scripts/terminal-programs"
    (project.home / "text").write_text("".join(f"line {number} \t日本 é̂ end\n" for number in range(1, 301)))
    if argv[0] == "git":
        commit = "git init -q repo; cd repo; for n in $(seq 30); do git -c user.name=a -c user.email=a@b commit -q "
        async with client.exec(project.project_id, command=commit + '--allow-empty -m "a commit $n"; done') as run:
            await run.output()
        assert run.exit_code == 0
    await create(client, project, "program", *argv, cwd="repo" if argv[0] == "git" else ".", columns=90, rows=28)
    async with viewing(client, project.project_id, "program", columns=90, rows=28) as first:
        await first.until(shows)
        await first.type(keys)
        await first.until(then)
        async with viewing(client, project.project_id, "program", columns=90, rows=28) as second:
            await eventually(lambda: second.drawn.look() == first.drawn.look(), "both see the same")
            await second.type("\x1b[A\x1b[A")
            await eventually(lambda: bytes(second.received) != b"", "the keys do something")
            await eventually(lambda: second.drawn.look() == first.drawn.look(), "both see the same")
            assert (first.screens, second.screens) == (1, 1)


async def test_it_goes_on_without_a_viewer(client: Client, project: Project) -> None:
    await create(client, project, "alone", "sh", "-c", "read go; seq 100; echo fin''ished; read end; exit 5")
    async with viewing(client, project.project_id, "alone") as seen:
        await seen.type("go\n")
    async with viewing(client, project.project_id, "alone") as seen:
        await seen.until("finished")
        assert [line for line in seen.drawn.contents().split() if line.isdecimal()] == [str(n) for n in range(1, 101)]
        await seen.type("\n")
        await eventually(lambda: seen.view.exit_code == 5, "it ends")


async def test_the_size_is_that_of_the_smallest_visible_window(client: Client, project: Project) -> None:
    made = await create(client, project, "size")
    assert (made["columns"], made["rows"]) == (80, 24)

    async def is_size(columns: int, rows: int) -> None:
        await eventually(lambda: large.drawn.look()[2][3] == (columns, rows), f"the size is {columns}×{rows}")
        await large.type("stty size\n")
        await large.until(f"{rows} {columns}")

    async with viewing(client, project.project_id, "size", columns=120, rows=40) as large:
        await is_size(120, 40)
        async with viewing(client, project.project_id, "size", columns=60, rows=50) as small:
            await is_size(60, 40)
            await small.view.resize(30, 10, visible=False)
            await is_size(120, 40)
            await small.view.resize(70, 20)
            await is_size(70, 20)
            viewers = [event for kind, event in large.events if kind == "viewers"][-1]["viewers"]
            assert [viewer["columns"] for viewer in viewers] == [120, 70]
        await is_size(120, 40)


async def test_a_storm_of_resizes_ends_with_the_last_size(client: Client, project: Project) -> None:
    (project.home / "text").write_text("".join(f"line {number} \t日本 {'x' * 70}\n" for number in range(200)))
    await create(client, project, "storm", "less", "-N", "text", columns=80, rows=24)
    async with viewing(client, project.project_id, "storm", columns=80, rows=24) as seen:
        await seen.until("line 5")
        await asyncio.gather(*(seen.view.resize(20 + n % 90, 5 + n % 40) for n in range(150)), seen.type("jjkk"))
        await seen.view.resize(66, 17)
        await eventually(lambda: seen.drawn.look()[2][3] == (66, 17), "it has the last size")
        async with viewing(client, project.project_id, "storm", columns=66, rows=17) as late:
            await eventually(lambda: late.drawn.look()[:2] == seen.drawn.look()[:2], "both see the same")


async def test_a_viewer_that_went_away_stops_counting(server: Server) -> None:
    async with agent_here(server) as agent, await Client.admin(server.url("admin"), None) as client:
        project_id = agent.program.project_id
        await client.call_project(project_id, "terminal.create", name="a", argv=QUIET_SHELL)
        async with (
            viewing(client, project_id, "a", columns=100, rows=30),
            viewing(client, project_id, "a", columns=50, rows=10) as small,
        ):
            terminal = agent.terminals.get("a")
            await eventually(lambda: terminal.columns == 50, "both are there")
            view = terminal.find_viewer(small.view._view["viewer"])
            assert view is not None
            assert view._sender is not None
            view._sender.silence = 44.0
            terminal.fit()
            assert terminal.columns == 50
            view._sender.silence = 46.0
            terminal.fit()
            assert (terminal.columns, terminal.rows) == (100, 30)


async def test_queries_are_answered_while_nobody_views(client: Client, project: Project) -> None:
    """To the last one, of kitty's keyboard protocol, DA1 alone has an answer: no viewer could do what it asks for."""
    (project.home / "ask.py").write_text(ASK.format(queries=QUERIES))
    await create(client, project, "asks", "sh", "-c", "python3 ask.py; read end")
    await eventually((project.home / "asked").exists, "the program has all answers")
    assert (await client.call_project(project.project_id, "terminal.list"))[0]["viewers"] == []
    async with viewing(client, project.project_id, "asks") as seen:
        await seen.until("nothing more")
        said = seen.drawn.text()
    for answer in (r"\x1b[?62;22c", "R'", r"\x1b[?2004;2$y", "rgb:d0d0", "rgb:1616", "libghostty", r"\x1bP0+r\x1b"):
        assert answer in said
    assert said.count(r"\x1b[?62;22c") == 2


async def test_exactly_one_answers_while_several_view(client: Client, project: Project) -> None:
    (project.home / "ask.py").write_text(ASK.format(queries=QUERIES))
    await create(client, project, "asks")
    async with viewing(client, project.project_id, "asks") as one, viewing(client, project.project_id, "asks") as two:
        await one.type("python3 ask.py\n")
        for seen in (one, two):
            await seen.until("nothing more")
            assert seen.drawn.answers == []  # what an emulator here would have sent as input
            assert seen.drawn.text().count("libghostty") == 1


async def test_a_flood_stalls_neither_keys_nor_other_viewers(client: Client, project: Project) -> None:
    before = project.rss()
    await create(client, project, "flood")
    async with (
        viewing(client, project.project_id, "flood") as slow,
        viewing(client, project.project_id, "flood") as seen,
    ):
        slow.reading.clear()
        await seen.type("yes | cat -n\n")
        await eventually(lambda: len(seen.received) > 8 * MIB or seen.screens > 3, "much output arrives")
        await seen.interrupt()
        await seen.type("echo af''ter\n")
        await seen.until("after")
        slow.reading.set()
        await slow.until("after")
        await eventually(lambda: slow.drawn.look()[:2] == seen.drawn.look()[:2], "both see the same")
        assert slow.screens > 1
    assert project.peak() - before < 48 * MIB


async def test_a_viewer_that_never_acknowledges_delays_nobody(server: Server, client: Client, directory: Path) -> None:
    """It gets what fits into its window, and nothing more, until the project gives it up."""
    project = start_project(server, directory, reader_patience=10)
    try:
        await create(client, project, "flood")
        subject, before = f"projects.{project.project_id}.api", project.rss()
        inbox = client.connection.inbox_for(subject)
        arrived: list[Msg] = []

        async def keep(message: Msg) -> None:
            arrived.append(message)

        silent = await client.connection.subscribe(f"{inbox}.*", cb=keep)
        request = rpc.encode_request("terminal.attach", {"terminal": "flood", "columns": 80, "rows": 24})
        await client.connection.publish(subject, request, reply=f"{inbox}.0")
        async with viewing(client, project.project_id, "flood") as seen:
            await seen.type("yes | cat -n\n")
            await eventually(lambda: len(seen.received) > 8 * MIB or seen.screens > 3, "much output arrives")
            await seen.interrupt()
            await seen.type("echo af''ter\n")
            await seen.until("after")

            async def is_alone() -> bool:
                return len((await client.call_project(project.project_id, "terminal.list"))[0]["viewers"]) == 1

            await eventually(is_alone, "the silent viewer is given up")
            stream = next(message.reply for message in arrived if frame_of(message))
            control = f"projects.{project.project_id}.streams.{stream.rpartition('.')[2]}"
            await client.connection.publish(control, b'{"type": "resume", "seq": 0}', reply=f"{inbox}.0")
            await eventually(lambda: b"nobody read its output for 10 s" in arrived[-1].data, "it is told why")
        await silent.unsubscribe()
        assert 256 * 1024 < sum(len(message.data) for message in arrived) < MIB
        assert project.peak() - before < 48 * MIB
    finally:
        project.stop()


async def test_what_is_typed_arrives_once_through_restarts_of_the_server(
    server: Server, client: Client, project: Project
) -> None:
    await create(client, project, "typed", "sh", "-c", "stty -echo; cat > typed; echo en''d; read x")
    text = "".join(f"{number}\n" for number in range(2000))
    async with viewing(client, project.project_id, "typed") as seen:

        async def type_slowly() -> None:
            for start in range(0, len(text), 100):
                await seen.type(text[start : start + 100])
                await asyncio.sleep(0.005)

        typing = asyncio.create_task(type_slowly())
        for _ in range(2):
            await eventually(lambda: (project.home / "typed").exists(), "it types")
            server.stop()
            server.start()
        await typing
        await seen.type("\x04")
        await seen.until("end")
    assert (project.home / "typed").read_text() == text


async def test_a_viewer_that_was_given_up_comes_back(server: Server) -> None:
    """After a night with a closed lid: the screen is as it is now, and what was typed meanwhile arrives once."""
    async with agent_here(server) as agent, await Client.admin(server.url("admin"), None) as client:
        project_id = agent.program.project_id
        await client.call_project(project_id, "terminal.create", name="a", argv=["cat", "-v"])
        async with viewing(client, project_id, "a") as seen:
            await seen.type("first\n")
            await eventually(lambda: seen.drawn.text().count("first") == 2, "it is echoed")
            for sender, _ in list(agent._streams.values()):
                sender.give_up("nobody read its output for 600 s")
            await seen.type("second\n")
            await eventually(lambda: seen.drawn.text().count("second") == 2, "it is echoed")
            await eventually(lambda: seen.screens == 2, "the screen came again")
            assert seen.drawn.text().split() == ["first", "first", "second", "second"]


async def test_a_large_paste_arrives_whole(client: Client, project: Project) -> None:
    script = "stty raw -echo; echo rea''dy; head -c 1048576 | sha256sum | cut -c-64; read end"
    await create(client, project, "paste", "sh", "-c", script)
    data = os.urandom(MIB)
    async with viewing(client, project.project_id, "paste") as seen:
        await seen.until("ready")
        await seen.view.write(data)
        await seen.until(hashlib.sha256(data).hexdigest())
        with pytest.raises(RpcError, match="104,857,600 bytes are too many to type"):
            await seen.view.write(bytes(100 * MIB))


async def test_characters_are_not_torn(client: Client, project: Project) -> None:
    script = "import os,time\nfor b in '日本語 é 😀'.encode(): os.write(1, bytes([b])); time.sleep(.003)\ninput()"
    await create(client, project, "utf", "python3", "-c", script)
    async with viewing(client, project.project_id, "utf") as seen:
        await seen.until("日本語 é 😀")


async def test_an_emulator_that_dies_takes_no_program_with_it(client: Client, project: Project) -> None:
    (project.home / "text").write_text("hello\n" * 5)
    await create(client, project, "survivor", "vim", "-u", "NONE", "-N", "text")
    async with viewing(client, project.project_id, "survivor") as seen:
        await seen.until("hello")
        await seen.type("ione more \x1b")
        await seen.until("one more")
        os.kill(emulator_of(project), signal.SIGSEGV)
        await eventually(lambda: seen.screens == 2, "the screen comes again")
        await seen.until("one more")
        await seen.type("A, still\x1b")
        await seen.until(", still")
    assert "the emulator ended unexpectedly" in project.log()


async def test_closing_ends_everything_that_was_started(client: Client, project: Project) -> None:
    await create(client, project, "group", "bash", "--norc")
    start = "nohup sleep 1001 >/dev/null & echo $! > one; (trap '' HUP; echo $BASHPID > two; sleep 1002) & "
    async with viewing(client, project.project_id, "group") as seen:
        await seen.type(start + "until [ -s one ] && [ -s two ]; do sleep .1; done; echo do''ne\n")
        await seen.until("done")
        pids = [int((project.home / name).read_text()) for name in ("one", "two")]
        assert all(map(alive, pids))
        ended = await client.call_project(project.project_id, "terminal.close", terminal="group")
        assert ended["signal"] == "SIGHUP"
        await eventually(lambda: seen.view.signal == "SIGHUP", "the viewer is told")
    assert not any(alive(pid) for pid in pids)
    await ends(client, project, "group")


async def test_closing_also_ends_what_has_left_the_session(client: Client, project: Project) -> None:
    """``setsid`` and daemons, whose parents have ended: some by their parents, some by their environment alone."""
    await create(client, project, "left", "bash", "--norc")
    start = (
        "setsid --wait bash -c 'echo $$ > three; exec env -i sleep 1003' & "
        "setsid bash -c 'trap \"\" HUP; echo $$ > four; while :; do sleep 1; done' & "
        "(setsid bash -c '(echo $BASHPID > five; exec sleep 1005) & exit' &) ; "
    )
    names = ("three", "four", "five")
    for name in names:
        (project.home / name).unlink(missing_ok=True)
    async with viewing(client, project.project_id, "left") as seen:
        await seen.type(start + "until [ -s three ] && [ -s four ] && [ -s five ]; do sleep .1; done; echo do''ne\n")
        await seen.until("done")
        pids = [int((project.home / name).read_text()) for name in names]
        assert all(map(alive, pids))
        await client.call_project(project.project_id, "terminal.close", terminal="left")
    await eventually(lambda: not any(map(alive, pids)), "all have ended")


async def test_a_daemon_outlives_the_end_of_its_shell(client: Client, project: Project) -> None:
    """As on any terminal: only who closes it ends what has left it."""
    (project.home / "six").unlink(missing_ok=True)
    await create(client, project, "shell", "bash", "--norc")
    async with viewing(client, project.project_id, "shell") as seen:
        await seen.type("setsid bash -c 'echo $$ > six; exec sleep 1006' >/dev/null 2>&1 </dev/null &\n")
        await eventually(lambda: (project.home / "six").exists() and (project.home / "six").read_text(), "it runs")
        await seen.type("exit\n")
        await eventually(lambda: seen.view.exit_code == 0, "the shell ends")
    await ends(client, project, "shell")
    pid = int((project.home / "six").read_text())
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)


def open_files(project: Project) -> int:
    return len(os.listdir(f"/proc/{project.process.pid}/fd"))


async def test_bad_input_gets_one_clear_error(client: Client, project: Project) -> None:
    await create(client, project, "taken")
    before = open_files(project)

    async def refused(said: str, method: str = "terminal.create", **params: Any) -> None:
        with pytest.raises(RpcError, match=said):
            await client.call_project(project.project_id, method, **params)

    await refused("there is no command 'no-such-program'", argv=["no-such-program"])
    await refused("there is no command './none'", argv=["./none"])
    await refused("there is a terminal 'taken' already", name="taken")
    await refused("name", name="../x")
    await refused("columns", columns=0)
    await refused("rows", rows=100_000)
    await refused("no_such", "terminal.create", cwd="no_such")
    await refused("there is no terminal 'none'", "terminal.close", terminal="none")
    await refused("has no viewer 'x'", "terminal.resize", terminal="taken", viewer="x", columns=1, rows=1)
    for columns, rows, said in ((0, 24, "columns"), (100_000, 24, "columns"), (80, 0, "rows"), (80, 100_000, "rows")):
        size: dict[str, Any] = {"columns": columns, "rows": rows}
        await refused(said, **size)
        await refused(said, "terminal.resize", terminal="taken", viewer="x", **size)
        await refused(said, "terminal.attach", terminal="taken", **size)
    with pytest.raises(RpcError, match="there is no terminal 'none'"):
        async with viewing(client, project.project_id, "none"):
            pass
    assert open_files(project) == before
    assert [found["terminal"] for found in await client.call_project(project.project_id, "terminal.list")] == ["taken"]


async def test_there_are_only_so_many_terminals(server: Server, client: Client, directory: Path) -> None:
    project = start_project(server, directory, unattended={"max_terminals": 2})
    try:
        for name in ("a", "b"):
            await create(client, project, name)
        with pytest.raises(RpcError, match="has 2 terminals, which is the limit: close one"):
            await create(client, project, "c")
        await client.call_project(project.project_id, "terminal.close", terminal="a")
        await create(client, project, "c")
    finally:
        project.stop()


async def test_a_program_prints_no_faster_than_the_setting_allows(
    server: Server, client: Client, directory: Path
) -> None:
    project = start_project(server, directory, unattended={"output_rate": 256 * 1024})
    try:
        await create(
            client, project, "slow", "sh", "-c", "head -c 1048576 /dev/zero | tr '\\0' x; echo; echo d''one; read x"
        )
        start = asyncio.get_running_loop().time()
        async with viewing(client, project.project_id, "slow") as seen:
            await seen.until("done")
        assert asyncio.get_running_loop().time() - start > 3
    finally:
        project.stop()


async def test_a_viewer_that_only_watches_types_nothing(client: Client, project: Project) -> None:
    await create(client, project, "watched", "cat")
    async with (
        viewing(client, project.project_id, "watched", read_only=True) as watches,
        viewing(client, project.project_id, "watched") as types,
    ):
        await watches.type("not this\n")
        await types.type("but this\n")
        await watches.until("but this")
        assert "not this" not in watches.drawn.text()
        await eventually(lambda: types.view.viewer, "the other knows its own name")
        assert ("typing", {"viewer": types.view.viewer, "account_id": None}) in watches.events
        viewers = [event for kind, event in watches.events if kind == "viewers"][-1]["viewers"]
        assert {viewer["viewer"]: viewer["read_only"] for viewer in viewers} == {
            watches.view.viewer: True,
            types.view.viewer: False,
        }


async def test_one_account_alone_may_type(server: Server) -> None:
    """Read-only for all others, until somebody shares the terminal anew."""
    async with agent_here(server) as agent, await Client.admin(server.url("admin"), None) as client:
        project_id = agent.program.project_id
        await client.call_project(project_id, "terminal.create", name="a", argv=["cat"])
        async with viewing(client, project_id, "a") as seen:
            other = str(uuid.uuid4())
            agent.terminals.get("a").share(other)
            await seen.type("not this\n")
            described = (await client.call_project(project_id, "terminal.list"))[0]
            assert described["typist_account"] == other
            assert described["viewers"][0]["read_only"] is True
            shared = await client.call_project(project_id, "terminal.share", terminal="a", typing="me")
            assert shared["typist_account"] == "_INBOX.admin"
            await seen.type("but this\n")
            await seen.until("but this")
            assert "not this" not in seen.drawn.text()
            await client.call_project(project_id, "terminal.share", terminal="a", typing="everyone")
            await eventually(lambda: agent.terminals.get("a").typist_account is None, "all may type")


async def test_a_viewers_key_is_told_to_nobody(client: Client, project: Project) -> None:
    """Who knows it could take the viewer over: a caller chooses its inbox, so it can pretend to be its account."""
    await create(client, project, "secret", "cat")
    async with (
        viewing(client, project.project_id, "secret") as one,
        viewing(client, project.project_id, "secret") as two,
    ):
        await one.type("x\n")
        await two.until("x")
        listed = await client.call_project(project.project_id, "terminal.list")
        said = repr([listed, one.events, two.events])
        for seen in (one, two):
            assert seen.view.viewer
            assert seen.view.viewer in said
            assert seen.view._view["viewer"] not in said
        with pytest.raises(RpcError, match="has no viewer"):
            await client.call_project(
                project.project_id, "terminal.resize", terminal="secret", viewer=two.view.viewer, columns=9, rows=9
            )


@pytest.mark.parametrize("allowed", [True, False])
async def test_only_who_types_gets_the_clipboard_if_the_setting_allows_it(
    server: Server, client: Client, directory: Path, allowed: bool
) -> None:
    project = start_project(server, directory, unattended={"clipboard": allowed})
    script = "stty -echo; read a; printf '\\033]52;c;c2VjcmV0\\033[m\\033]52;c;?\\007do''ne\\n'; cat"
    try:
        await create(client, project, "clip", "sh", "-c", script)
        async with (
            viewing(client, project.project_id, "clip") as one,
            viewing(client, project.project_id, "clip") as two,
        ):
            await one.type("\n")
            for seen in (one, two):
                await seen.until("done")
            assert (b"52;c;c2VjcmV0" in one.received) is allowed
            assert b"52;c;" not in two.received
            assert b"52;c;?" not in one.received
    finally:
        project.stop()


async def test_a_viewer_with_a_larger_window_is_drawn_in_its_corner(client: Client, project: Project) -> None:
    """Without scrollback, the screen also suits a window that keeps its own, and that is larger."""
    await create(client, project, "corner", "sh", "-c", "seq 50; echo; printf '%040d' 7; read x", columns=20, rows=5)
    async with viewing(client, project.project_id, "corner", columns=20, rows=5) as exact:
        await exact.until("00000000000000000007")
        larger = Drawn(60, 20)
        larger.screen.feed(b"\x1b[31mold\r\n")
        async with client.terminal(project.project_id, "corner", columns=60, rows=20, scrollback=0) as view:
            async for kind, data in view:
                if kind == "output":
                    larger.screen.feed(data)
                    break
        assert [row[:20] for row in larger.look()[0][:5]] == exact.drawn.look()[0]
        assert larger.look()[1] == (20, 4)  # it waits in the column behind the last one


async def test_the_project_stops_under_its_terminals(server: Server, client: Client, directory: Path) -> None:
    project = start_project(server, directory)
    made = await create(client, project, "a")
    async with client.terminal(project.project_id, "a") as view:
        await asyncio.to_thread(project.stop)
        with pytest.raises(RpcError, match="the project was stopped"):
            await anext(event async for event in view if event[0] == "end")
    await eventually(lambda: not alive(made["pid"]), "the shell has ended")


async def test_the_key_of_somebody_elses_viewer_is_not_taken(client: Client, project: Project) -> None:
    """Even who has learnt it: it would end that viewer, and have its typing lost."""
    await client.call_project(project.project_id, "terminal.create", name="mine", argv=["cat"])
    async with viewing(client, project.project_id, "mine") as viewer:
        await viewer.type("before\r")
        await viewer.until("before")
        asked = {"terminal": "mine", "columns": 10, "rows": 5, "viewer": viewer.view._view["viewer"]}
        inbox = f"_INBOX.account.{uuid.uuid4()}.{project.project_id}.x"
        body = rpc.encode_request("terminal.attach", asked)
        await client.connection.publish(f"projects.{project.project_id}.api", body, reply=inbox)
        await client.connection.flush()
        await viewer.type("after\r")
        await viewer.until("after")
        assert viewer.screens == 1, "its stream was not ended"
    await client.call_project(project.project_id, "terminal.close", terminal="mine")
