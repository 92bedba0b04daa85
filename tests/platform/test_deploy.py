"""What a second deploy does: nothing, where nothing changed, and no more than it must, where something did."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.platform.site import PORTS, LocalSite, Site, deployed, free_ports, wait_for

pytestmark = pytest.mark.platform

PROGRAMS = {"nats", "hub-1", "hub-2", "proxy", "runner"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A platform of its own: these tests change its settings."""
    root = Path(tmp_path_factory.mktemp("deploy")) / "local"
    with deployed(root) as site:
        yield site


def changes(site: Site, **settings: str) -> list[str]:
    """Deploy, and the names of the operations that changed something."""
    done = site.deploy("--json", **settings)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{site.logs()}"
    return done.changes.get("@local", [])


def processes(site: Site) -> dict[str, int]:
    """The process ids of the programs."""
    return {part["name"]: part["pid"] for part in site.natskit_json("status")["processes"]}


def server_variables(site: Site) -> dict[str, object]:
    """What nats-server says of itself: the outcome is read from the server, not from its file."""
    return dict(httpx.get(f"{site.info['monitor_url']}/varz").json())


def test_a_second_deploy_changes_nothing(machine: Site) -> None:
    before = processes(machine)
    assert set(before) == PROGRAMS
    assert changes(machine) == []
    assert processes(machine) == before


def test_a_dry_run_says_what_would_change_and_changes_nothing(machine: Site) -> None:
    before = server_variables(machine)
    done = machine.deploy("--dry", nats_max_connections="1000")
    assert done.returncode == 0, done.stderr
    assert "Render nats-server.conf" in done.stdout + done.stderr
    assert server_variables(machine)["config_load_time"] == before["config_load_time"]
    assert changes(machine) == []


def test_a_dry_run_on_a_clean_machine_leaves_it_clean(tmp_path: Path) -> None:
    site = LocalSite(tmp_path / "local", dict(zip(PORTS, map(str, free_ports(5)), strict=True)))
    done = site.deploy("--dry")
    assert done.returncode == 0, done.stderr
    assert not site.root.exists()


def test_what_nats_server_can_reload_is_reloaded(machine: Site) -> None:
    before = processes(machine)
    assert changes(machine, nats_max_connections="1000") == ["Render nats-server.conf", "Reload nats"]
    assert server_variables(machine)["max_connections"] == 1000
    assert processes(machine) == before
    changes(machine)


def test_what_nats_server_cannot_reload_restarts_it_alone(machine: Site) -> None:
    before = processes(machine)
    (port,) = free_ports(1)
    changes(machine, nats_websocket_port=str(port))
    after = processes(machine)
    assert {name for name in PROGRAMS if before[name] != after[name]} == {"nats"}
    machine.natskit("ready")
    changes(machine)
    machine.natskit("ready")


def test_another_retention_of_the_audit_comes_into_effect(machine: Site) -> None:
    """Nothing is restarted: the control machine tells nats-server."""
    before = processes(machine)
    assert changes(machine, hub_audit_bytes=str(100 << 20)) == ["Make the streams as the inventory says"]
    assert changes(machine, hub_audit_bytes=str(100 << 20)) == []
    assert changes(machine) == ["Make the streams as the inventory says"]
    assert processes(machine) == before


def test_a_bad_configuration_never_replaces_a_good_one(machine: Site) -> None:
    path = machine.root / "nats" / "nats-server.conf"
    good, before = path.read_text(), processes(machine)
    section = '{"websocket": "same_origin: true"}'
    done = machine.deploy(nats_section_extra=section, nats_extra="max_conn: 9\nmax_paylod: 1")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    refused = re.search(r'nats-server.conf.candidate:(\d+):1: unknown field "max_paylod"', said)
    own = re.search(
        r"in the inventory.* nats_section_extra.websocket \(line \d+\), nats_extra \(lines (\d+) to (\d+)\)", said
    )
    assert refused is not None, said
    assert own is not None, said
    assert int(own[2]) == int(refused[1]) == int(own[1]) + 1
    assert path.read_text() == good
    assert [other.name for other in path.parent.glob("nats-server.conf*")] == [path.name]
    assert processes(machine) == before
    assert changes(machine) == []


def test_a_wrong_setting_is_refused_before_anything_is_touched(machine: Site) -> None:
    done = machine.deploy(proxy_prot="1", nats_port="0")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "unknown setting proxy_prot: did you mean proxy_port?" in said
    assert "roles/" not in said  # where our code says so is nothing to whoever wrote the setting
    assert "nats_port = 0: input should be greater than or equal to 1" in said
    assert "Starting operation" not in said
    assert changes(machine) == []


def test_a_taken_port_is_named_with_the_process_that_has_it(machine: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = machine.deploy(proxy_port=str(port))
    assert done.returncode != 0
    assert f"port {port} is taken by process {os.getpid()} " in done.stdout + done.stderr
    assert changes(machine) == []


def test_a_hub_fewer_is_retired_and_comes_back(machine: Site) -> None:
    before = processes(machine)
    changes(machine, hub_count="1")
    assert set(processes(machine)) == PROGRAMS - {"hub-2"}
    assert processes(machine)["nats"] == before["nats"]
    changes(machine)
    machine.natskit("ready")
    assert set(processes(machine)) == PROGRAMS


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_a_killed_program_comes_back(machine: Site, program: str) -> None:
    victim = processes(machine)[program]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: processes(machine)[program] not in {0, victim}, f"{program} to be started again")
    machine.natskit("ready")


def test_secrets_are_readable_by_their_owner_alone(machine: Site) -> None:
    assert stat.S_IMODE(machine.root.stat().st_mode) == 0o700
    seen = 0
    for path in machine.root.rglob("*"):
        if (path.is_file() and b"PRIVATE KEY" in path.read_bytes()) or path.suffix in {
            ".nk",
            ".creds",
            ".json",
            ".key",
        }:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
            seen += 1
    assert seen > 10


def test_guessing_passwords_is_slowed_down(machine: Site) -> None:
    """Here, where nobody else signs in: the limit is for an address, and all tests come from the same one."""
    with machine.http() as http:
        answers = [http.post("/api/sign-in", json={}).status_code for _ in range(40)]
        assert set(answers) == {400, 429}
        wait_for(lambda: http.post("/api/sign-in", json={}).status_code == 400, "the limit to lift by itself")


def test_down_stops_everything_and_up_finds_its_data(machine: Site) -> None:
    machine.natskit("account", "add", "kept@example.org", "--password-stdin", stdin="correct horse battery staple")
    pids = processes(machine).values()
    machine.stop()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    changes(machine)
    machine.natskit("ready")
    assert "kept@example.org" in {account["email"] for account in machine.natskit_json("account", "list")}
    assert changes(machine) == []
