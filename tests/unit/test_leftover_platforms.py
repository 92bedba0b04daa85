"""Platforms of a killed test run keep running. The next run stops them, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.ops.stop_platform import supervisors
from tests.kit.platforms import MARK, remove_leftovers
from tests.kit.wait import wait_for
from tests.platform.site import REPOSITORY
from tests.unit.test_stop_platform import make_platform, program_of

RUN = """
import sys, time
from pathlib import Path
from tests.kit.platforms import own_platform

with own_platform(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(600)
"""


def running(root: Path) -> list[int]:
    return [found.pid for found in supervisors() if found.root == root]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a platform that a real supervisord keeps running."""
    root = tmp_path / "platform"
    configuration = make_platform(root)
    subprocess.run([Path(sys.executable).with_name("supervisord"), "-c", configuration], check=True)
    wait_for(lambda: running(root), "supervisord to run")
    # A child of supervisord that is not yet the program ignores the signal to end, and is killed ten seconds later.
    wait_for(lambda: program_of(root), "its program to run")
    yield root
    for pid in running(root):
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not running(root), "supervisord to end")


def test_the_platform_of_a_dead_run_is_stopped(root: Path) -> None:
    command = [sys.executable, "-c", RUN, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "claimed\n"
        remove_leftovers()
        assert running(root), "its run goes on"
        run.kill()
    remove_leftovers()
    # In another process, other tests may have begun to stop it.
    wait_for(lambda: not running(root), "supervisord to end")


def test_a_platform_that_no_test_started_goes_on(root: Path) -> None:
    assert not (root / MARK).exists()
    remove_leftovers()
    assert running(root)
