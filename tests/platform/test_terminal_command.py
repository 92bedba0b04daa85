"""``natskit terminal``, ``natskit job`` and ``natskit exec --detach`` against a platform."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

from tests.agent.viewing import Drawn
from tests.kit.wait import wait_for
from tests.platform.site import Site, World

NATSKIT = str(Path(sys.executable).with_name("natskit"))


class Window:
    """A terminal window in which a command runs."""

    def __init__(self, site: Site, *arguments: str, columns: int = 100, rows: int = 30) -> None:
        self.master, slave = pty.openpty()
        self.drawn = Drawn(columns, rows)
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            [NATSKIT, *arguments],
            cwd=site.root,
            env=site.environment | {"TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(self.master, False)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.drawn.screen.resize(columns, rows)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def shows(self, text: str) -> bool:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.master, 65536):
                self.drawn.screen.feed(data)
        return text in self.drawn.contents()

    def until(self, text: str) -> None:
        try:
            wait_for(lambda: self.shows(text), f"the window shows {text!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}, but\n{self.drawn.contents()}") from None

    def code(self) -> int:
        wait_for(lambda: self.shows("") and self.process.poll() is not None, "the command ends")
        return int(self.process.returncode)


@contextlib.contextmanager
def window(site: Site, *arguments: str, columns: int = 100, rows: int = 30) -> Iterator[Window]:
    opened = Window(site, *arguments, columns=columns, rows=rows)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.wait()
        os.close(opened.master)


def test_a_terminal_in_this_one(site: Site, world: World) -> None:
    name = world.names["p"]
    with window(site, "terminal", name) as first:
        first.type("stty size\n")
        first.until("30 100")
        first.type("printf '\\033[?1049h\\033[44m'; echo in fr''ont\n")
        first.until("in front")
        first.resize(90, 20)
        first.process.send_signal(signal.SIGWINCH)
        wait_for(lambda: "90×20" in site.natskit("terminal", name, "--list").stdout, "the terminal has the new size")
        first.type("stty size\n")
        first.until("20 90")
        first.type("\x1d")
        assert first.code() == 0
        first.until("The terminal 'main' goes on.")
    assert "main" in site.natskit("terminal", name, "--list").stdout
    with window(site, "terminal", name, columns=90, rows=20) as second:
        second.until("in front")
        second.type("echo back; exit 7\n")
        assert second.code() == 7
    with window(site, "terminal", name, "monitor", "--", "sh", "-c", "echo re''ady; exec cat") as third:
        third.until("ready")
        site.natskit("terminal", name, "monitor", "--end")
        assert third.code() == 129  # SIGHUP
    with window(site, "terminal", name, "options", "cat", "-A") as fourth:
        fourth.type("\t|\n")
        fourth.until("^I|$")
        site.natskit("terminal", name, "options", "--end")
        assert fourth.code() == 129
    assert site.natskit("terminal", name, "--list").stdout == "No terminals.\n"


def test_a_terminal_is_recorded(site: Site, world: World) -> None:
    name = world.names["p"]
    with window(site, "terminal", name, "demo", "--record", "demo.cast") as first:
        first.type("echo rec''orded\n")
        first.until("recorded")
        first.type("\x1d")
        assert first.code() == 0
    site.natskit("terminal", name, "demo", "--stop-recording")
    events = [json.loads(line) for line in site.natskit("exec", name, "--", "cat", "demo.cast").stdout.splitlines()]
    assert events[0]["version"] == 3
    assert "recorded" in "".join(event[2] for event in events[1:])
    with window(site, "terminal", name, "demo", "--record", "demo.cast") as second:
        second.until("'demo.cast' exists already")
        assert second.code() == 1
    site.natskit("terminal", name, "demo", "--end")
    site.natskit("exec", name, "--", "rm", "demo.cast")


def test_a_terminal_needs_a_terminal(site: Site, world: World) -> None:
    done = site.natskit("terminal", world.names["p"], check=False)
    assert done.returncode == 1
    assert "needs a terminal to draw on" in done.stderr


def test_a_job_goes_on_without_its_reader(site: Site, world: World) -> None:
    name = world.names["p"]
    shell = ["sh", "-c", "echo out; echo err >&2; while ! [ -e go ]; do sleep .1; done; rm go; echo end; exit 3"]
    job = site.natskit("exec", name, "--detach", "--", *shell).stdout.strip()
    assert "running" in site.natskit("job", "list", name).stdout
    reader = subprocess.Popen(
        [NATSKIT, "job", "attach", name, job],
        cwd=site.root,
        env=site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"out\n"
    reader.send_signal(signal.SIGINT)
    said = reader.communicate(timeout=30)[1]
    assert reader.returncode == 130
    assert f"The job goes on. To read it again: natskit job attach {name} {job}\n".encode() in said
    assert "running" in site.natskit("job", "list", name).stdout
    site.natskit("exec", name, "--", "touch", "go")
    done = site.natskit("job", "attach", name, job, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\nend\n", "err\n")
    assert "exit code 3" in site.natskit("job", "list", name).stdout
    site.natskit("job", "forget", name, job)
    assert f"no job '{job}'" in site.natskit("job", "attach", name, job, check=False).stderr


def test_a_job_is_ended(site: Site, world: World) -> None:
    name = world.names["p"]
    job = site.natskit("exec", name, "--detach", "--", "sleep", "600").stdout.strip()
    still = site.natskit("job", "forget", name, job, check=False)
    assert "still runs: end it first" in still.stderr
    assert site.natskit("job", "end", name, job).stdout == f"{job}: ended by SIGTERM\n"
    assert site.natskit("job", "attach", name, job, check=False).returncode == 143
