"""What an exporter reads of a host: cgroups of both versions, and the files of other programs."""

from __future__ import annotations

import os
import threading
import time
import uuid
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from natskit.exporter import cgroups, machine, written
from natskit.process.cgroups import PROGRAMS, PROJECTS, Tree, project_of
from natskit.process.metrics_file import Gauge, text, write
from natskit.runner.agent_unit import unit_of
from tests.kit.wait import eventually
from tests.mounts import hanging

PROJECT_ID = str(uuid.uuid4())


def samples(metrics: list[Metric]) -> dict[tuple[str, ...], float]:
    return {(sample.name, *sample.labels.values()): sample.value for metric in metrics for sample in metric.samples}


def lay_out(root: Path, new: bool) -> None:
    """Cgroups as the kernel shows them: one tree, or one for each controller."""
    project, program = PROJECTS / unit_of(PROJECT_ID), PROGRAMS / "natskit-nats.service"
    files = {
        "systemd": {"cgroup.procs": f"{os.getpid()}\n"},
        "cpuacct": {"cpu.stat": "usage_usec 2500000\nuser_usec 1\n"} if new else {"cpuacct.usage": "2500000000\n"},
        "memory": {"memory.current" if new else "memory.usage_in_bytes": "4096\n"},
        "pids": {"pids.current": "3\n"},
    }
    if new:
        root.mkdir(parents=True, exist_ok=True)
        (root / "cgroup.controllers").write_text("cpu memory pids\n")
    for controller, content in files.items():
        for unit in (project, program):
            folder = root / unit if new else root / controller / unit
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in content.items():
                (folder / name).write_text(value)


@pytest.mark.parametrize("new", [True, False], ids=["cgroup v2", "cgroup v1"])
async def test_a_project_and_a_program_by_their_cgroups(tmp_path: Path, new: bool) -> None:
    lay_out(tmp_path, new)
    expected = ["natskit-nats.service", "natskit-hub-1.service"]
    found = samples(await cgroups.collect(expected, Tree(tmp_path)))
    assert found["natskit_project_cpu_seconds_total", PROJECT_ID] == 2.5
    assert found["natskit_project_memory_bytes", PROJECT_ID] == 4096
    assert found["natskit_project_tasks", PROJECT_ID] == 3
    assert found["natskit_program_up", "natskit-nats"] == 1
    assert found["natskit_program_up", "natskit-hub-1"] == 0
    assert found["natskit_program_cpu_seconds_total", "natskit-nats"] == 2.5
    assert time.time() - 86_400 < found["natskit_program_start_seconds", "natskit-nats"] <= time.time() + 1


async def test_a_host_without_projects(tmp_path: Path) -> None:
    found = samples(await cgroups.collect(["natskit-nats.service"], Tree(tmp_path / "nothing")))
    assert found == {("natskit_program_up", "natskit-nats"): 0}


def test_the_name_of_a_unit_says_the_project() -> None:
    assert project_of(unit_of(PROJECT_ID)) == PROJECT_ID
    for other in ("natskit-project@p.service", "natskit-project@px.service", "natskit-nats.service", "cron.service"):
        assert project_of(other) is None


async def test_the_machine(tmp_path: Path) -> None:
    found = samples(await machine.Machine([tmp_path, tmp_path / "gone"]).collect())
    assert abs(found["natskit_host_time_seconds",] - time.time()) < 60
    there = os.statvfs(tmp_path)
    assert found["natskit_host_disk_free_bytes", str(tmp_path)] == pytest.approx(
        there.f_bavail * there.f_frsize, rel=0.2
    )
    assert ("natskit_host_disk_bytes", str(tmp_path / "gone")) not in found
    assert 0 < found["natskit_host_memory_available_bytes",] < found["natskit_host_memory_bytes",]


async def test_a_file_system_that_hangs_takes_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, the others are seen as before, and when it is back so is it."""
    monkeypatch.setattr(machine, "LOOK_SECONDS", 0.2)
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    good.mkdir()
    here = machine.Machine([bad, good])
    with hanging(bad):
        before = threading.active_count()
        for _ in range(10):
            found = samples(await here.collect())
            assert found["natskit_host_disk_hangs", str(bad)] == 1
            assert ("natskit_host_disk_bytes", str(bad)) not in found
        assert threading.active_count() <= before + 2  # that of a look at the other may be about to end

        async def other_is_seen() -> bool:
            return ("natskit_host_disk_bytes", str(good)) in samples(await here.collect())

        await eventually(other_is_seen, "the other file system is seen")

    async def is_back() -> bool:
        found = samples(await here.collect())
        return found.get(("natskit_host_disk_hangs", str(bad))) == 0

    await eventually(is_back, "it is seen again")


def test_what_programs_write_is_passed_on_and_what_nobody_can_read_is_counted(tmp_path: Path) -> None:
    state = Gauge("natskit_test_state", "A state")
    state.add(1.0, name='a "quoted" \\ name\nin two lines')
    write(tmp_path / "one.prom", [state, Gauge.of("natskit_test_runs_total", "Runs", 2.0)])
    (tmp_path / "two.prom").write_text("natskit_half{")
    (tmp_path / "no-metrics.txt").write_text("natskit_ignored 1\n")
    answer = written.read(tmp_path).decode()
    found = {sample.name: sample for family in text_string_to_metric_families(answer) for sample in family.samples}
    assert found["natskit_test_state"].labels == {"name": 'a "quoted" \\ name\nin two lines'}
    assert found["natskit_test_runs_total"].value == 2
    assert found["natskit_exporter_unreadable_files"].value == 1
    assert "half" not in answer
    assert "natskit_ignored" not in answer


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one.prom", [Gauge.of("natskit_test", "A test", 1.0)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("natskit.process.metrics_file.text", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "one.prom", [])
    assert [path.name for path in tmp_path.iterdir()] == ["one.prom"]
    monkeypatch.undo()
    assert (tmp_path / "one.prom").read_text() == text([Gauge.of("natskit_test", "A test", 1.0)])
