"""natskit/ops/supervisor.py, with a real supervisord."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.config.render import render
from natskit.errors import ConnectionLostError, NatskitError
from natskit.ops import supervisor
from natskit.ops.orphans import command_of
from natskit.ops.supervisor import Process, hang_up, processes, restart, shut_down, socket_of, start, update
from tests.kit.wait import wait_for

NOTES_HANGUPS = "trap 'echo hung up >>hangups' HUP; while :; do sleep 600 & wait; done"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a platform with the program ``a``, which runs, and ``wrong``, which ends at once."""
    root = tmp_path_factory.mktemp("supervisor")
    for folder in ("log", "supervisor", "supervisor/programs"):
        (root / folder).mkdir(mode=0o700)
    user = "root" if os.geteuid() == 0 else ""
    values = {"root": str(root), "user": user, "open_files": 256, "interpreter": ""}
    (root / "supervisor" / "supervisord.conf").write_text(render("supervisord.conf", values))
    define(root, "a", ["bash", "-c", NOTES_HANGUPS])
    define(root, "wrong", ["false"])
    command: list[str | Path] = [
        Path(sys.executable).with_name("supervisord"),
        "-c",
        root / "supervisor" / "supervisord.conf",
    ]
    subprocess.run(command, check=True)
    wait_for(lambda: known(root)["a"].state == "RUNNING", "supervisord to run")
    yield root
    shut_down(root)


def define(root: Path, program: str, command: list[str]) -> None:
    values = {
        "program": program,
        "command": shlex.join(command),
        "environment": {},
        "priority": 1,
        "stop_signal": "TERM",
        "stop_seconds": 5,
        "working_directory": root,
        "root": root,
    }
    (root / "supervisor" / "programs" / f"{program}.conf").write_text(render("supervisor-program.conf", values))


def known(root: Path) -> dict[str, Process]:
    return {process.name: process for process in processes(socket_of(root))}


def test_a_program_that_runs_is_not_started_twice(root: Path) -> None:
    before = known(root)["a"]
    start(socket_of(root), "a")
    assert known(root)["a"].pid == before.pid
    os.kill(before.pid, 0)


def test_a_restart_is_complete_when_it_returns(root: Path) -> None:
    before = known(root)["a"]
    restart(socket_of(root), "a")
    after = known(root)["a"]
    assert after.state == "RUNNING"
    assert after.pid != before.pid
    with pytest.raises(ProcessLookupError):
        os.kill(before.pid, 0)


def test_a_program_that_was_stopped_is_started(root: Path) -> None:
    for again in (start, restart):
        with supervisor._supervisord(socket_of(root)) as supervisord:
            supervisord.stopProcess("a")
        assert known(root)["a"].state == "STOPPED"
        again(socket_of(root), "a")
        assert known(root)["a"].state == "RUNNING"


def test_a_program_is_told_to_reload(root: Path) -> None:
    before = known(root)["a"].pid
    hang_up(socket_of(root), "a")
    wait_for((root / "hangups").exists, "the signal")
    assert known(root)["a"].pid == before


def test_definitions_are_read_again_for_one_program_alone(root: Path) -> None:
    before = known(root)["a"].pid
    define(root, "a", ["sleep", "601"])
    define(root, "b", ["sleep", "602"])
    update(socket_of(root), "b")
    assert known(root)["a"].pid == before
    first = wait_for(lambda: known(root)["b"].pid, "b to start")
    define(root, "b", ["sleep", "603"])
    update(socket_of(root), "b")
    second = wait_for(lambda: known(root)["b"].pid, "b to start again")
    wait_for(lambda: command_of(second) == "sleep 603", "the new command")
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    (root / "supervisor" / "programs" / "b.conf").unlink()
    update(socket_of(root), "b")
    assert "b" not in known(root)
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


def test_a_program_that_cannot_run_is_named(root: Path) -> None:
    with pytest.raises(NatskitError, match=r"supervisor refuses wrong: (ABNORMAL_TERMINATION|SPAWN_ERROR)"):
        restart(socket_of(root), "wrong")
    with pytest.raises(NatskitError, match="supervisor refuses absent: BAD_NAME"):
        start(socket_of(root), "absent")


def test_a_definition_that_cannot_be_read_is_named(root: Path) -> None:
    place = root / "supervisor" / "programs" / "odd.conf"
    place.write_text("[program:odd]\n")
    try:
        with pytest.raises(NatskitError, match=r"supervisor refuses odd: CANT_REREAD: .*program:odd.* command"):
            update(socket_of(root), "odd")
    finally:
        place.unlink()


def test_a_supervisord_that_is_told_to_end_has_ended(tmp_path: Path, root: Path) -> None:
    shut_down(tmp_path)  # none is there
    with supervisor._supervisord(socket_of(root)) as supervisord:
        pids = [supervisord.getPID(), known(root)["a"].pid]
    shut_down(root)
    assert [pid for pid in pids if command_of(pid)] == []
    with pytest.raises(ConnectionLostError, match=r"supervisor does not answer on .*/supervisor.sock"):
        processes(socket_of(root))
