"""What a runner tells of its host and its projects."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.process.cgroups import PROJECTS, Tree
from natskit.runner.agent_unit import unit_of
from natskit.runner.orphans import MARK
from natskit.runner.usage import Used, by_cgroups, by_processes, host, rows
from tests.kit.wait import wait_for

PROJECT_ID = str(uuid.uuid4())
BURN = "import threading; threading.Thread(target=input, daemon=True).start()\nwhile True: pass"


@pytest.fixture
def burning() -> Iterator[subprocess.Popen[bytes]]:
    """A process of a project, with two threads and a processor for itself."""
    process = subprocess.Popen([sys.executable, "-c", BURN], env=os.environ | {MARK: PROJECT_ID}, stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    assert process.stdin
    process.stdin.close()


def test_the_processes_of_a_project_on_this_machine(burning: subprocess.Popen[bytes]) -> None:
    def used() -> Used | None:
        found = by_processes().get(PROJECT_ID)
        return found if found and (found.cpu_seconds or 0) > 0.2 and found.tasks == 2 else None

    found = wait_for(used, f"process {burning.pid} is counted")
    assert found is not None
    assert 1e6 < (found.memory_bytes or 0) < 1e9


def test_the_units_of_projects_on_a_host(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    unit = tmp_path / PROJECTS / unit_of(PROJECT_ID)
    unit.mkdir(parents=True)
    for name, text in (("cpu.stat", "usage_usec 2500000\n"), ("memory.current", "4096\n"), ("pids.current", "3\n")):
        (unit / name).write_text(text)
    assert by_cgroups(Tree(tmp_path)) == {PROJECT_ID: Used(2.5, 4096, 3)}


def test_a_stopped_project_has_its_files_and_one_that_was_never_measured_has_no_row() -> None:
    found = rows({"runs": Used(1.0, 2.0, 3.0)}, {"runs": None, "stopped": 4, "new": None})
    nothing = {"cpu_seconds": None, "memory_bytes": None, "tasks": None}
    assert found == [
        {"project_id": "runs", "cpu_seconds": 1.0, "memory_bytes": 2.0, "tasks": 3.0, "disk_bytes": None},
        {"project_id": "stopped", **nothing, "disk_bytes": 4},
    ]


def test_the_host() -> None:
    found = host(Path("/"))
    assert found["processors"] == os.cpu_count()
    assert 0 < found["memory_available_bytes"] <= found["memory_bytes"]
    assert 0 < found["disk_free_bytes"] <= found["disk_bytes"]
