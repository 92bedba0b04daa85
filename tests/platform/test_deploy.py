"""A second deploy changes nothing without a reason, and only what depends on a change."""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from natskit.config.settings import load
from natskit.errors import SettingsError
from natskit.ops import stop_platform
from roles import host_probe, preflight
from tests.kit.ports import free_port
from tests.kit.wait import wait_for
from tests.platform.site import PORTS, LocalSite, Site, deployed, own_ports

pytestmark = pytest.mark.platform

PROGRAMS = {"nats", "hub-1", "hub-2", "keeper-1", "keeper-2", "proxy", "runner"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A separate platform, because these tests change its settings."""
    root = Path(tmp_path_factory.mktemp("deploy")) / "local"
    with deployed(root) as site:
        yield site


def changes(site: Site, **settings: str) -> list[str]:
    """Deploy. Returns the names of the operations that changed something."""
    done = site.deploy("--json", **settings)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{site.logs()}"
    return done.changes.get("@local", [])


def keep(site: Site, **settings: str) -> list[str]:
    """The same, and keep the settings for later deploys, which would otherwise undo them."""
    site.data |= settings
    return changes(site)


def configuration(site: Site) -> dict[str, tuple[int, bytes]]:
    """The files that deploys write, with their times: much cheaper than another deploy."""
    folders = ("nats", "hub-1", "hub-2", "keeper-1", "keeper-2", "proxy", "runner", "supervisor", "identity")
    kinds = {".conf", ".json", ".creds", ".nk", ".key", ".crt", ".jwt"}
    found = [path for folder in folders for path in (site.root / folder).rglob("*") if path.suffix in kinds]
    assert len(found) > 30
    found.append(site.root / "platform.json")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def processes(site: Site) -> dict[str, int]:
    """The process ids of the programs."""
    return {part["name"]: part["pid"] for part in site.natskit_json("status")["processes"]}


def server_variables(site: Site) -> dict[str, object]:
    """nats-server's own variables, so that the test reads the outcome from the server."""
    return dict(httpx.get(f"{site.info['monitor_url']}/varz").json())


def test_a_second_deploy_changes_nothing(machine: Site) -> None:
    before = processes(machine)
    assert set(before) == PROGRAMS
    assert changes(machine) == []
    assert processes(machine) == before


def test_a_dry_run_says_what_would_change_and_changes_nothing(machine: Site) -> None:
    before, written = server_variables(machine), configuration(machine)
    done = machine.deploy("--dry", nats_max_connections="1000")
    assert done.returncode == 0, done.stderr
    assert "Render nats-server.conf" in done.stdout + done.stderr
    assert server_variables(machine)["config_load_time"] == before["config_load_time"]
    assert configuration(machine) == written


def test_a_dry_run_on_a_clean_machine_leaves_it_clean(tmp_path: Path) -> None:
    site = LocalSite(tmp_path / "local", own_ports())
    done = site.deploy("--dry")
    assert done.returncode == 0, done.stderr
    assert not site.root.exists()


def test_what_nats_server_can_reload_is_reloaded(machine: Site) -> None:
    before = processes(machine)
    assert keep(machine, nats_max_connections="1000") == ["Render nats-server.conf", "Reload nats"]
    assert server_variables(machine)["max_connections"] == 1000
    assert processes(machine) == before


def test_what_nats_server_cannot_reload_restarts_it_alone(machine: Site) -> None:
    before = processes(machine)
    keep(machine, nats_websocket_port=str(free_port()))
    after = processes(machine)
    assert {name for name in PROGRAMS if before[name] != after[name]} == {"nats"}
    machine.natskit("ready")


def test_another_retention_of_the_audit_comes_into_effect(machine: Site) -> None:
    """Without a restart: the control machine tells nats-server."""
    before = processes(machine)
    assert changes(machine, hub_audit_bytes=str(100 << 20)) == ["Make the streams as the inventory says"]
    assert changes(machine, hub_audit_bytes=str(100 << 20)) == []
    assert changes(machine) == ["Make the streams as the inventory says"]
    assert processes(machine) == before


def test_a_bad_configuration_never_replaces_a_good_one(machine: Site) -> None:
    path, record = machine.root / "nats" / "nats-server.conf", machine.root / "platform.json"
    good, before, told = path.read_text(), processes(machine), record.read_text()
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
    assert record.read_text() == told, "a deploy that failed says nothing about the platform"
    assert [other.name for other in path.parent.glob("nats-server.conf*")] == [path.name]
    assert processes(machine) == before
    assert changes(machine) == []


def test_the_command_is_told_of_a_deploy_that_succeeded(machine: Site) -> None:
    assert machine.info["session_sliding"] != 86400
    keep(machine, hub_session_sliding="86400")
    assert machine.info["session_sliding"] == 86400


def test_a_hub_keeps_no_file_of_a_provider_that_is_gone(machine: Site, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of the provider\n")
    secret.chmod(0o600)
    provider = {
        "hub_oidc_issuer": "https://localhost:9",
        "hub_oidc_client_id": "natskit",
        "hub_oidc_client_secret_file": str(secret),
        "hub_oidc_ca_file": str(machine.ca_file),
    }

    def kept() -> set[str]:
        return {path.name for hub in ("hub-1", "hub-2") for path in (machine.root / hub).glob("oidc-*")}

    changes(machine, **provider)
    assert kept() == {"oidc-ca.crt", "oidc-secret.key"}
    changes(machine)
    assert kept() == set()
    assert changes(machine) == []


def test_a_wrong_setting_is_refused_before_anything_is_touched(machine: Site) -> None:
    before = configuration(machine), processes(machine)
    done = machine.deploy(proxy_prot="1", nats_port="0")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "unknown setting proxy_prot: did you mean proxy_port?" in said
    assert "roles/" not in said  # the author of the setting needs no place in natskit's code
    assert "nats_port = 0: input should be greater than or equal to 1" in said
    assert "Starting operation" not in said
    assert (configuration(machine), processes(machine)) == before


def test_a_taken_port_is_named_with_the_process_that_has_it(machine: Site) -> None:
    before = configuration(machine), processes(machine)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = machine.deploy(proxy_port=str(port))
    assert done.returncode != 0
    assert f"port {port} is taken by process {os.getpid()} " in done.stdout + done.stderr
    assert (configuration(machine), processes(machine)) == before


def test_the_ports_of_another_platform_are_one_line(machine: Site, tmp_path: Path) -> None:
    """The error names the platform, and says how to stop it."""
    done = LocalSite(tmp_path / "other", machine.data).deploy()
    assert done.returncode != 0
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "taken by" in line]
    me = pwd.getpwuid(os.getuid()).pw_name
    assert f"taken by the platform of {me} in {machine.root}: stop it (scripts/down {machine.root})" in line
    assert all(machine.data[key] in line for key in PORTS)
    assert "hub_port" in line
    assert "Starting operation" not in done.stdout + done.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("others", [(), ("another",)])
def test_the_ports_of_another_user_are_one_line(
    machine: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, others: tuple[str, ...]
) -> None:
    """Only root can inspect that user's processes, but everybody can see who owns a socket. The error cannot name the
    platform."""
    (own,) = (found for found in stop_platform.supervisors() if found.root == machine.root)
    all_of_user = [dataclasses.replace(own, root=tmp_path / name) for name in others] + [own]
    monkeypatch.setattr(stop_platform, "supervisors", lambda: all_of_user)
    monkeypatch.setattr(host_probe, "owners", lambda _: {})
    data = {key: int(port) for key, port in machine.data.items()}
    fixed = {"platform_manager": "supervisor", "platform_tls": False, "platform_root": str(tmp_path / "other")}
    with pytest.raises(SettingsError) as refused:
        preflight.check(load(data | fixed, "here"))
    assert len(str(refused.value).splitlines()) == 1
    user = pwd.getpwuid(os.getuid()).pw_name
    if others:
        assert f"taken by a platform of {user}, in {tmp_path / 'another'} or {machine.root}: stop" in str(refused.value)
    else:
        assert f"taken by the platform of {user} in {machine.root}" in str(refused.value)


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
    """In this module, where nobody else signs in: the limit counts addresses, and all tests use the same one."""
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
