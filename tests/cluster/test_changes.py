"""A changed setting changes only the parts that depend on it. The tests ask the machines, not the deploy."""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from cryptography import x509

from tests.cluster.load import running
from tests.cluster.machines import UNITS, Machines
from tests.cluster.site import Cluster, docker
from tests.platform.site import Deployed

SERVERS, HUBS = ("nats-1", "nats-2", "nats-3"), ("hub-1", "hub-2")


@pytest.fixture(scope="module")
def machines(cluster: Cluster) -> Iterator[Machines]:
    """The cluster. Its settings are restored at the end."""
    yield Machines.of(cluster)
    done = cluster.deploy()
    assert done.returncode == 0, said(done)


def said(done: Deployed) -> str:
    return f"{done.stdout}\n{done.stderr}"


def deployed(machines: Machines, **changes: str) -> None:
    """Deploy, and keep the settings for the next deploy, which would otherwise undo them."""
    machines.data |= changes
    done = machines.deploy()
    assert done.returncode == 0, said(done)


def test_what_nats_server_can_reload_restarts_nothing(machines: Machines) -> None:
    starts, loaded = machines.starts(), {m: machines.varz(m)["config_load_time"] for m in SERVERS}
    deployed(machines, nats_max_payload="2000000")
    assert machines.starts() == starts
    for machine in SERVERS:
        now = machines.varz(machine)
        assert now["max_payload"] == 2_000_000
        assert now["config_load_time"] != loaded[machine]


def test_a_setting_of_the_proxy_reloads_nginx_alone(machines: Machines) -> None:
    starts, loaded = machines.starts(), {m: machines.varz(m)["config_load_time"] for m in SERVERS}
    before = nginx_workers(machines)
    deployed(machines, proxy_sign_in_rate="299")
    assert machines.starts() == starts
    assert {m: machines.varz(m)["config_load_time"] for m in SERVERS} == loaded
    assert not before & nginx_workers(machines, quiet=True)


def test_a_setting_of_the_hubs_restarts_them_one_after_the_other(machines: Machines) -> None:
    starts = machines.starts()
    # What each hub did when, by the one clock that all containers share.
    since = time.time()
    deployed(machines, hub_session_sliding="500000", hub_state_max_bytes="100000000")
    assert set(machines.state_max_bytes().values()) == {100_000_000}
    now = machines.starts()
    assert {m for m in UNITS if now[m] != starts[m]} == set(HUBS)
    first, second = sorted(down_and_up(machines, hub, since) for hub in HUBS)
    assert first[1] < second[0], "the second hub was stopped before the first one was back"


def test_a_config_that_nats_server_refuses_never_replaces_the_running_one(machines: Machines) -> None:
    starts = machines.starts()
    read = "sha256sum /var/lib/natskit/nats/nats-server.conf"
    config = {m: machines.sh(m, read).stdout for m in SERVERS}
    loaded = {m: machines.varz(m)["config_load_time"] for m in SERVERS}
    done = machines.deploy(nats_extra="no_such_option: true")
    assert done.returncode != 0
    assert "no_such_option" in said(done)
    assert machines.starts() == starts
    assert {m: machines.sh(m, read).stdout for m in SERVERS} == config
    assert {m: machines.varz(m)["config_load_time"] for m in SERVERS} == loaded
    machines.wait_until_ready()


@pytest.mark.parametrize(
    ("setting", "value", "what"),
    [("hub_sesion_sliding", "5", "hub_session_sliding"), ("nats_version", "2.1.0", "its hash is not known")],
)
def test_a_wrong_setting_is_refused_before_any_host_is_touched(
    machines: Machines, setting: str, value: str, what: str
) -> None:
    newest = "find /etc/systemd/system /var/lib/natskit /opt/natskit -newermt @{} -not -path '*/jetstream/*'"
    since = int(time.time())
    done = machines.deploy(**{setting: value})
    assert done.returncode != 0
    assert said(done).count(what) == 1, said(done)  # once for all the hosts
    assert "nats-1, " in said(done)
    for machine in ("hub-1", "proxy-1"):
        assert machines.sh(machine, newest.format(since), check=False).stdout == ""


def test_a_host_that_is_down_fails_alone_and_the_next_run_completes_it(machines: Machines) -> None:
    docker("stop", "--time", "1", machines.container("hub-2"))
    machines.data["hub_session_sliding"] = "510000"
    done = machines.deploy()
    assert done.returncode != 0
    assert f"{machines.name}-hub-2" in said(done)
    assert session_seconds(machines, "hub-1") == "510000"
    docker("start", machines.container("hub-2"))
    machines.wait_until_ready()
    starts = machines.starts()
    deployed(machines)
    assert session_seconds(machines, "hub-2") == "510000"
    now = machines.starts()
    assert {m for m in UNITS if now[m] != starts[m]} == {"hub-2"}


def test_a_gate_that_refuses_stops_the_change_and_the_next_run_completes_it(machines: Machines) -> None:
    """A nats-server that is cut off from the others still runs, and the deploy can reach it: the gate has to notice."""
    starts = machines.starts(SERVERS)
    machines.data["nats_memory_limit"] = str(900 * 1024**2)
    with machines.isolated("nats-3"):
        done = machines.deploy()
    assert done.returncode != 0
    assert "nats-1 must not go down now" in said(done)
    assert f"{machines.address('nats-3')}:4222 does not answer" in said(done)
    assert machines.starts(SERVERS[:2]) == {m: starts[m] for m in SERVERS[:2]}
    machines.wait_until_ready()
    deployed(machines)
    now = machines.starts(SERVERS)
    assert all(now[m] != starts[m] for m in SERVERS)


def test_a_renewed_certificate_is_served_without_a_restart(machines: Machines) -> None:
    doors = {"nats-1": 4222, "nats-2": 4222, "nats-3": 4222, "hub-1": 8101, "hub-2": 8101, "proxy-1": 443}
    starts, before = machines.starts(), {m: serial(machines, m, port) for m, port in doors.items()}
    # As if they were about to expire: what is missing is made, as what expires soon is.
    for part in ("", "proxy"):
        for path in (machines.root / "identity" / part / "tls").iterdir():
            if path.name not in ("ca.crt", "ca.key"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    with running(machines.target()) as load:
        since = time.monotonic()
        deployed(machines)
        load.go_on()
        seen = load.seen(since)
    assert machines.starts() == starts
    now = {m: serial(machines, m, port) for m, port in doors.items()}
    assert all(now[m] != before[m] for m in doors), (before, now)
    # A reload of nats-server disconnects clients that the auth callout authorized ("Reloaded: accounts"). Clients
    # with creds of PLATFORM stay. A browser reconnects at once, and again if its new server reloads later.
    assert seen.reconnects <= len(SERVERS)
    assert seen.failed("request") == 0, seen.reasons()
    assert seen.failed_first("write") == 0, seen.reasons()
    assert seen.silence < 3
    assert seen.output == "whole"
    assert load.written is not None
    assert load.written.lost == []


def session_seconds(machines: Machines, hub: str) -> str:
    read = "import json; print(json.load(open('/var/lib/natskit/hub-1/hub.json'))['session']['sliding_seconds'])"
    return machines.sh(hub, f'python3 -c "{read}"').stdout.strip()


def nginx_workers(machines: Machines, *, quiet: bool = False) -> set[str]:
    """The workers that accept new connections. Old ones stay until their last connection has ended."""
    listing = "ps -C nginx -o pid=,args="
    lines = [line.split(None, 1) for line in machines.sh("proxy-1", listing).stdout.splitlines()]
    return {pid for pid, what in lines if "worker process" in what and not (quiet and "shutting down" in what)}


def down_and_up(machines: Machines, hub: str, since: float) -> tuple[float, float]:
    """The times at which a hub began to stop and started again."""
    show = "systemctl show --timestamp=unix --value -p"
    stopped = machines.sh(hub, f"{show} InactiveEnterTimestamp {UNITS[hub]}").stdout.strip().lstrip("@")
    started = machines.sh(hub, f"{show} ActiveEnterTimestamp {UNITS[hub]}").stdout.strip().lstrip("@")
    assert float(stopped) >= since - 1
    return float(stopped), float(started)


def serial(machines: Machines, machine: str, port: int) -> int:
    """The serial number of the certificate at a port; for NATS, after INFO."""
    with socket.create_connection((machines.address(machine), port), timeout=5) as plain:
        if port == 4222:
            plain.recv(4096)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain) as wrapped:
            certificate = wrapped.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number
