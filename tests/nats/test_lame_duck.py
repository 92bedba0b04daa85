"""A stop ends in time even if nats-server is in lame duck mode, in which it ignores SIGTERM."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from pathlib import Path

import pytest

from natskit.config.render import render, values
from natskit.config.settings import load
from natskit.ops.orphans import end_orphans
from tests.kit.nats import PROGRAM, running
from tests.kit.ports import free_port
from tests.kit.wait import wait_for
from tests.platform.raw import RawClient

DEFAULTS = load({"platform_root": "/srv/natskit"}, "test")


@pytest.fixture
def leaving(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A nats-server in the shortest possible lame duck mode, with a client: without one it would end at once."""
    port = free_port()
    config = (
        f'listen: "127.0.0.1:{port}"\n'
        f'jetstream: {{ store_dir: "{tmp_path}/jetstream" }}\n'
        f'lame_duck_duration: "{DEFAULTS.nats_lame_duck_duration}s"\n'
        f'lame_duck_grace_period: "{DEFAULTS.nats_lame_duck_grace_period}s"\n'
    )
    with running(tmp_path, config) as server:
        clients = [RawClient.tcp("127.0.0.1", port) for _ in range(2)]
        server.process.send_signal(signal.SIGUSR2)
        wait_for(lambda: "Entering lame duck mode" in server.log(), "the lame duck")
        yield server.process
        for client in clients:
            client.close()


def seconds_of(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_supervisor_ends_it_at_once(tmp_path: Path, leaving: subprocess.Popen[bytes]) -> None:
    parser = RawConfigParser()
    given = {"platform_root": str(tmp_path), "platform_manager": "supervisor"}
    parser.read_string(render("supervisor-program.conf", values("supervisor-program.conf", given)))
    program = parser["program:nats"]
    leaving.send_signal(signal.Signals[f"SIG{program['stopsignal']}"])
    assert seconds_of(lambda: leaving.wait(20)) < 5 < int(program["stopwaitsecs"])
    assert leaving.returncode == 0, "it was not killed"


def test_systemd_waits_long_enough(tmp_path: Path, leaving: subprocess.Popen[bytes]) -> None:
    unit = render("natskit-nats.service", values("natskit-nats.service", {"platform_root": str(tmp_path)}))
    (number,) = re.findall(r"^KillSignal=(\w+)$", unit, re.MULTILINE)
    (limit,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    leaving.send_signal(signal.Signals[number])
    leaving.send_signal(signal.SIGTERM)
    assert seconds_of(lambda: leaving.wait(int(limit))) < DEFAULTS.nats_lame_duck_duration + 15
    assert leaving.returncode == 0, "it was not killed"


def test_what_has_outlived_its_supervisord_is_ended_and_not_killed(
    tmp_path: Path, leaving: subprocess.Popen[bytes]
) -> None:
    programs = tmp_path / "supervisor" / "programs"
    programs.mkdir(parents=True)
    (programs / "nats.conf").write_text(f"[program:nats]\ncommand = {PROGRAM} -c {tmp_path}/nats.conf\n")
    assert end_orphans(programs, patience=3) == [leaving.pid]
    assert leaving.wait(5) == 0
