"""The ``natskit`` command against a platform: exit codes, streams, and one-line errors."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.documents import block
from tests.kit.wait import wait_for
from tests.platform.site import Site, World

SHELL = ["sh", "-c"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        ([*SHELL, "exit 7"], 7),
        ([*SHELL, "kill -TERM $$"], 143),
        ([*SHELL, "kill -35 $$"], 163),
        ([*SHELL, "(while :; do echo tick; sleep .2; done) & exit 3"], 3),
        (["no-such-command"], 127),
    ],
)
def test_the_exit_code_is_the_commands(site: Site, world: World, command: list[str], code: int) -> None:
    assert site.natskit("exec", world.names["p"], "--", *command, check=False).returncode == code


def test_a_timeout_is_124_and_ends_the_command(site: Site, world: World) -> None:
    mark = str(uuid.uuid4())
    line = f"sleep 600 # {mark}"
    done = site.natskit("exec", world.names["p"], "--timeout", "0.3", "--", *SHELL, line, check=False)
    assert done.returncode == 124
    left = site.natskit(
        "exec", world.names["p"], "--", *SHELL, f"grep -l {mark[:-1]}[{mark[-1]}] /proc/*/cmdline || true"
    )
    assert left.stdout == ""


def test_output_and_errors_go_where_they_belong(site: Site, world: World) -> None:
    done = site.natskit("exec", world.names["p"], "--", *SHELL, "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_bytes_pass_through_unchanged(site: Site, world: World) -> None:
    data = bytes(range(256)) * 20_000
    command = [str(Path(sys.executable).with_name("natskit")), "exec", world.names["p"], "--stdin", "--", "cat"]
    done = subprocess.run(
        command, cwd=site.root, env=site.environment, input=data, capture_output=True, timeout=60, check=True
    )
    assert done.stdout == data


def test_input_without_end_ends_with_the_command(site: Site, world: World) -> None:
    command = [str(Path(sys.executable).with_name("natskit")), "exec", world.names["p"], "--stdin", "--"]
    with open("/dev/zero", "rb") as zero:
        done = subprocess.run(
            [*command, "head", "-c", "3"],
            cwd=site.root,
            env=site.environment,
            stdin=zero,
            capture_output=True,
            timeout=60,
            check=True,
        )
    assert done.stdout == bytes(3)


@contextlib.contextmanager
def execution(
    site: Site, world: World, line: str, hangup: str = "default", **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A running ``natskit exec``. ``hangup`` is ``default`` or ``ignore``, however these tests were started."""
    command = [str(Path(sys.executable).with_name("natskit")), "exec", world.names["p"], "--", *SHELL, line]
    with subprocess.Popen(
        ["env", f"--{hangup}-signal=HUP", *command],
        cwd=site.root,
        env=site.environment,
        stderr=subprocess.PIPE,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_timeout_is_not_about_what_is_left_behind(site: Site, world: World) -> None:
    line = "(while :; do echo tick; sleep .05; done) & exit 5"
    done = site.natskit("exec", world.names["p"], "--timeout", "0.3", "--", *SHELL, line, check=False)
    assert done.returncode == 5


def test_output_that_cannot_be_written_at_once_arrives_whole(site: Site, world: World) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with execution(site, world, "seq 200000", stdout=writing) as process, open(reading, "rb") as reader:
        os.close(writing)
        wait_for(
            lambda: fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4) == struct.pack("i", 65536), "the pipe is full"
        )
        assert reader.read().split() == [str(n).encode() for n in range(1, 200_001)]
        assert process.communicate()[1] == b""
    assert process.returncode == 0


def test_a_reader_that_has_gone_ends_the_command(site: Site, world: World) -> None:
    mark = str(uuid.uuid4())
    with execution(site, world, f"yes {mark}", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141
    wait_for(lambda: not running(site, world, mark), "the command has ended")


def test_a_full_disk_ends_the_command_with_one_line(site: Site, world: World) -> None:
    with open("/dev/full", "wb") as full, execution(site, world, "echo x; sleep 600", stdout=full) as process:
        _, said = process.communicate(timeout=30)
    assert said == b"natskit: standard output cannot be written: No space left on device\n"
    assert process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_ends_natskit_ends_the_command_in_the_project(site: Site, world: World, number: signal.Signals) -> None:
    mark = str(uuid.uuid4())
    with execution(site, world, f"echo begun; sleep 600; : {mark}", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(number)
        assert process.wait(30) == -number
    wait_for(lambda: not running(site, world, mark), "the command has ended")


def test_with_nohup_it_outlives_the_terminal(site: Site, world: World) -> None:
    with execution(site, world, "echo begun; sleep 600", hangup="ignore", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM


def running(site: Site, world: World, mark: str) -> bool:
    """Whether a process of the project has this in its command line."""
    line = f"grep -l {mark[:-1]}[{mark[-1]}] /proc/*/cmdline || true"
    return site.natskit("exec", world.names["p"], "--", *SHELL, line).stdout != ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["exec", "no such project", "--", "true"], "there is no project 'no such project'"),
        (["project", "create", "nobody@example.org", "x"], "nobody@example.org"),
        (["account", "add", "a@example.org"], "a@example.org"),
        (["--platform", "/nonexistent", "account", "list"], "/nonexistent/platform.json"),
        (["render", "nginx.conf", "--set", "proxy_prot=1"], "did you mean proxy_port?"),
        (["render", "no.conf"], "there is no template 'no.conf'"),
    ],
)
def test_a_mistake_gets_one_clear_line(site: Site, world: World, arguments: list[str], said: str) -> None:
    assert world.email_a == "a@example.org"
    done = site.natskit(*arguments, check=False)
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_accounts_and_projects_as_a_script_sees_them(site: Site, world: World) -> None:
    emails = {row["email"]: row["account_id"] for row in site.natskit_json("account", "list")}
    assert emails[world.email_a] == world.names["a"]
    (project,) = site.natskit_json("project", "list", "--account", world.email_a)
    assert (project["project_id"], project["role"]) == (world.names["p"], "owner")


def test_status_names_every_part(site: Site, world: World) -> None:
    assert world.names
    report = site.natskit_json("status")
    assert report["state"] == "ok"
    assert {"nats", "hub-1", "hub-2", "keeper-1", "keeper-2", "proxy", "runner", "bus"} <= {
        part["name"] for part in report["parts"]
    }


@pytest.mark.skipif(not shutil.which("logger"), reason="there is no logger")
def test_the_audit_is_copied_to_the_system_log_as_the_guide_shows_it(site: Site) -> None:
    """With a log socket of the test, since the machine may have none."""
    guide = block("docs/how-to/read-the-audit.md", "Keep a copy", "sh").strip()
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(f"{folder}/log")
        log.settimeout(30)
        natskit = shlex.quote(str(Path(sys.executable).with_name("natskit")))
        command = guide.replace(".venv/bin/natskit", natskit).replace("| logger", f"| logger --socket {folder}/log")
        assert command.count(folder) == 1
        copying = subprocess.Popen(["sh", "-c", command], env=site.environment, cwd=site.root, start_new_session=True)
        try:
            email = f"{uuid.uuid4()}@{site.domain}"
            site.natskit("account", "add", email)
            said = ""
            while email not in said:
                said = log.recv(65_536).decode()
        finally:
            os.killpg(copying.pid, signal.SIGTERM)
            copying.wait(10)
    assert "natskit-audit: {" in said
