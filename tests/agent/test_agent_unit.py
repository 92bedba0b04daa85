"""How the runner reads systemd's answers and watches the disk. tests/cluster tests the units themselves."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from natskit.bus.servers import NatsServers
from natskit.config.render import project_values, render
from natskit.config.settings import Settings
from natskit.process.sd_notify import tell_systemd
from natskit.project.config import ProjectProgram
from natskit.rpc import RpcError
from natskit.runner.agent_process import AgentProcess
from natskit.runner.agent_unit import AgentUnit, instance_of, project_of, unit_of
from natskit.runner.config import ProjectDefaults, RunnerProgram
from natskit.runner.disk import Disk, human, measure
from natskit.runner.project_agent import ProjectAgent, Switch
from natskit.runner.systemd import GONE, UnitState, explain, parse_list, parse_properties

MIB = 1024 * 1024


def runner_program(directory: Path, **settings: object) -> RunnerProgram:
    return RunnerProgram.model_validate(
        {
            "runner_id": str(uuid.uuid4()),
            "name": "test",
            "nats": NatsServers(urls=["nats://127.0.0.1:1"]),
            "directory": directory,
            **settings,
        }
    )


def test_an_agent_does_not_load_aiohttp() -> None:
    """aiohttp takes 11 MB, a project connects over TCP, and there may be thousands of projects."""
    code = "import sys, natskit.project.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "natskit.bus.connection" in loaded
    assert "aiohttp" not in loaded


def test_the_instance_is_a_name_for_a_user() -> None:
    project_ids = [str(uuid.uuid4()) for _ in range(100)]
    for project_id in project_ids:
        assert re.fullmatch(r"p[a-z2-7]{26}", instance_of(project_id))  # useradd(8): at most 31, a letter first
        assert project_of(unit_of(project_id)) == project_id
    assert len({instance_of(project_id) for project_id in project_ids}) == 100


@pytest.mark.parametrize(
    "unit", ["natskit-project@.service", "natskit-project@x.service", f"other@p{'a' * 26}.service"]
)
def test_other_units_are_no_projects(unit: str) -> None:
    assert project_of(unit) is None


def test_the_list_of_units() -> None:
    text = (
        "natskit-project@paaaaaaaaaaaaaaaaaaaaaaaaaa.service loaded active     running      natskit project\n"
        "natskit-project@pbbbbbbbbbbbbbbbbbbbbbbbbbb.service loaded activating auto-restart natskit project\n"
        "natskit-project@pcccccccccccccccccccccccccc.service loaded failed     failed       natskit project\n"
    )
    states = list(parse_list(text).values())
    assert states == [
        UnitState("active", "running"),
        UnitState("activating", "auto-restart"),
        UnitState("failed", "failed"),
    ]
    assert [(state.runs, state.is_starting) for state in states] == [(True, False), (False, True), (False, False)]
    assert parse_list("") == {}


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({"Result": "oom-kill"}, "it was ended because its memory was used up"),
        (
            {"Result": "signal", "ExecMainCode": "2", "ExecMainStatus": "9"},
            "the agent ended (SIGKILL): perhaps its memory was used up",
        ),
        ({"Result": "core-dump", "ExecMainStatus": "11"}, "the agent ended (SIGSEGV)"),
        ({"Result": "signal", "ExecMainStatus": "35"}, "the agent ended (SIGRTMIN+1)"),
        ({"Result": "exit-code", "ExecMainStatus": "2"}, "the agent ended (exit code 2)"),
        (
            {"Result": "exit-code", "ExecMainCode": "0", "ExecMainStatus": "0"},
            "its sandbox or its home could not be prepared",
        ),
        ({"Result": "timeout"}, "the agent did not answer in time"),
        ({"Result": "start-limit-hit"}, "the agent ended again and again"),
        ({"Result": "success", "ExecMainCode": "0"}, "it was stopped"),
        ({"Result": "resources"}, "systemd could not run it (resources)"),
    ],
)
def test_reasons(shown: Mapping[str, str], words: str) -> None:
    assert explain(parse_properties("".join(f"{name}={value}\n" for name, value in shown.items()))) == words


async def test_an_adopted_unit_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def how(_: str) -> str:
        return "the agent ended (SIGKILL)"

    monkeypatch.setattr("natskit.runner.agent_unit.how_it_ended", how)
    heard: list[tuple[str, str]] = []

    async def no_jwt(*_: str) -> str:
        raise AssertionError

    def report(_: str, state: str, detail: str) -> None:
        heard.append((state, detail))

    agent = AgentUnit(runner_program(tmp_path, manager="systemd"), str(uuid.uuid4()), no_jwt, report)
    agent.adopt(UnitState("active", "running"))
    for seen in (UnitState("activating", "auto-restart"), UnitState("active", "running")):
        await asyncio.sleep(0.01)
        agent.observe(seen)
    await asyncio.sleep(0.01)
    await agent.leave()
    assert heard == [
        *(("starting", ""), ("running", "")),
        *(("starting", "the agent ended (SIGKILL)"), ("running", "")),
    ]
    assert agent.state == "running", "it goes on without its runner"
    assert not GONE.runs


async def test_a_running_unit_gets_a_new_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials in the unit do not change while it runs; the new ones go where the unit shows them to the
    agent."""
    said: list[tuple[str, ...]] = []
    keys: list[str] = []

    async def systemctl(*words: str, **_: object) -> str:
        said.append(words)
        return ""

    async def jwt(_: str, public_key: str) -> str:
        keys.append(public_key)
        return f"jwt-{len(keys)}"

    async def use(_: str, public_key: str) -> None:
        assert public_key == keys[-1]
        assert "--signal=SIGHUP" in said[-1]
        assert agent.unit in said[-1]

    monkeypatch.setattr("natskit.runner.agent_unit.systemctl", systemctl)
    monkeypatch.setattr("natskit.runner.agent_unit.HOMES", tmp_path / "homes")
    program = runner_program(tmp_path, manager="systemd", creds=tmp_path / "runner.creds")
    agent = AgentUnit(program, str(uuid.uuid4()), jwt, lambda *_: None)
    with pytest.raises(RpcError, match="it is started"):
        await agent.rotate(Switch(jwt, use))
    await agent._prepare()
    agent.adopt(UnitState("active", "running"))
    await agent.rotate(Switch(jwt, use))
    folder = tmp_path / "projects" / instance_of(agent.project_id)
    given = folder / "renewed" / "project.creds"
    assert given.read_text() == (folder / "project.creds").read_text()
    assert "jwt-2" in given.read_text()
    assert agent.public_key() == keys[-1]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, given.parent, given)] == [0o700, 0o711, 0o600]
    assert given.stat().st_uid == agent.folders()[0].stat().st_uid
    told = ProjectProgram.model_validate_json((folder / "project.json").read_text())
    unit = render("natskit-project@.service", UNIT)
    assert told.renewed_creds == Path("/home/renewed/project.creds")
    assert "BindReadOnlyPaths=-/var/lib/natskit/runner/projects/%i/renewed:/home/renewed\n" in unit
    await agent._prepare()
    assert not given.exists(), "what is started reads the newest as its credentials"
    await agent.leave()


UNIT = project_values(
    Settings(
        runner_project_memory=None, runner_project_cpu=None, runner_project_processes=100, runner_project_file=5 * MIB
    ),
    "/opt/natskit/env/bin/python",
) | {"open_files": 1000, "environment": {"A": 'x "y" 100%'}}


def test_the_unit_of_a_project_says_its_limits() -> None:
    without = render("natskit-project@.service", UNIT)
    assert 'Environment="A=x \\"y\\" 100%%"\n' in without
    assert "MemoryMax" not in without.replace("set-property natskit-projects.slice MemoryMax", "")
    assert "nosuid,nodev,noexec\n" in without
    limited = render("natskit-project@.service", UNIT | {"memory": 512 * MIB, "cpu_percent": 50})
    for line in ("MemoryMax=536870912", "CPUQuota=50%", "TasksMax=100", "LimitFSIZE=5242880", "LimitNOFILE=1000"):
        assert f"\n{line}\n" in limited
    assert all(not line.rstrip().endswith("\\") for line in limited.splitlines())


def test_creds_beside_the_settings(tmp_path: Path) -> None:
    program = ProjectProgram(
        project_id=str(uuid.uuid4()), nats=NatsServers(urls=["nats://x"]), creds=Path("a.creds"), home=tmp_path
    )
    assert program.beside(tmp_path / "project.json").creds == tmp_path / "a.creds"
    absolute = program.model_copy(update={"creds": Path("/x/a.creds")})
    assert absolute.beside(tmp_path / "project.json").creds == Path("/x/a.creds")


def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not tell_systemd("READY=1")


class Watched:
    """A disk with two running projects, and the actions that the runner took on them."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.program = runner_program(directory, **settings)
        self.held: dict[str, str] = {}
        self.projects: list[ProjectAgent] = []
        for _ in range(2):
            agent = AgentProcess(self.program, str(uuid.uuid4()), None, lambda *_: None)
            agent.folders()[0].mkdir(parents=True)
            self.projects.append(agent)
        self.disk = Disk(
            self.program, lambda: [p for p in self.projects if p.project_id not in self.held], self.hold, directory
        )

    async def hold(self, project: ProjectAgent, reason: str) -> None:
        self.held[project.project_id] = reason

    def write(self, project: ProjectAgent, mib: int) -> None:
        with (project.folders()[0] / "file").open("ab") as file:
            file.write(os.urandom(mib * MIB))

    async def look(self) -> dict[str, str]:
        await self.disk._look()
        return self.held


async def test_a_project_over_its_limit_is_stopped_and_may_clean_up(tmp_path: Path) -> None:
    watched = Watched(tmp_path, project=ProjectDefaults(max_disk_bytes=16 * MIB), disk_check_seconds=1e-6)
    big, small = watched.projects
    watched.write(big, 17)
    watched.write(small, 15)
    assert list(await watched.look()) == [big.project_id]
    assert "17 MiB of 16 MiB" in watched.held.pop(big.project_id)
    assert list(await watched.look()) == [big.project_id], "nobody asked for it"
    del watched.held[big.project_id]
    big.asked_at = asyncio.get_running_loop().time()
    assert await watched.look() == {}, "somebody did"
    watched.write(big, 2)
    assert list(await watched.look()) == [big.project_id], "to clean up, and not to go on"
    del watched.held[big.project_id]
    (big.folders()[0] / "file").unlink()
    assert await watched.look() == {}


async def test_many_small_files_count_by_their_number(tmp_path: Path) -> None:
    watched = Watched(tmp_path, project=ProjectDefaults(max_disk_bytes=16 * MIB), disk_check_seconds=1e-6)
    many, few = watched.projects
    for project, number in ((many, 1100), (few, 900)):
        for name in range(number):
            (project.folders()[0] / str(name)).touch()
    assert list(await watched.look()) == [many.project_id]
    assert re.match(r"its 1,1\d\d files count as 17\.\d MiB of 16 MiB", watched.held[many.project_id])


async def test_the_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(tmp_path, manager="systemd", disk_reserve_bytes=1024 * MIB)
    free = [2000 * MIB]
    monkeypatch.setattr(watched.disk, "_measure_free", lambda: free[-1])
    writer, other = watched.projects
    watched.write(other, 40)
    assert await watched.look() == {}
    free.append(1000 * MIB)
    assert await watched.look() == {}, "nobody has written since: others did"
    watched.write(writer, 20)
    watched.write(other, 1)
    assert list(await watched.look()) == [writer.project_id]
    assert "has written 20 MiB while its host has only 0.977 GiB" in watched.held[writer.project_id]


async def test_measuring_follows_no_links(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(os.urandom(2 * MIB))
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    taken = await measure([tmp_path / "inside"])
    assert taken is not None
    assert taken.size < MIB
    assert taken.files == 2
    assert await measure([tmp_path / "missing"]) == (0, 0)


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (1023, "0.999 KiB"), (1536, "1.5 KiB"), (12 * 1024**3, "12 GiB"), (3 * 1024**4, "3 TiB")],
)
def test_human(size: int, words: str) -> None:
    assert human(size) == words
