"""Metrics of hosts: read over TLS with the token, from the one address that may; by the cgroups of systemd."""

from __future__ import annotations

import shlex
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.site import HUBS, NATS, RUNNERS, Cluster
from tests.kit.wait import wait_for
from tests.platform.site import World

TOKEN = "t" * 40
EXPORTER, HUB = 9464, 9465


@pytest.fixture(scope="module", autouse=True)
def watched(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The settings of a deploy that shows metrics to this machine; they are gone afterwards."""
    token = Path(tmp_path_factory.mktemp("metrics")) / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN + "\n")
    settings = {"metrics_token_file": str(token), "metrics_scrapers": own_address(cluster)}
    cluster.changes(**settings)
    cluster.natskit("ready", "--timeout", "100")
    yield settings
    cluster.changes()
    assert cluster.sh(NATS[0], "systemctl is-active natskit-exporter", check=False).stdout.strip() != "active"


def own_address(cluster: Cluster) -> str:
    """The address that machines see this one with."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:
        towards.connect((cluster.address(NATS[0]), 9))
        return str(towards.getsockname()[0])


def scrape(cluster: Cluster, machine: str, port: int = EXPORTER, token: str = TOKEN) -> str:
    """The answer, head and body."""
    context = ssl.create_default_context(cafile=str(cluster.root / "identity" / "tls" / "ca.crt"))
    name = "exporter.natskit" if port == EXPORTER else "hub.natskit"
    plain = socket.create_connection((cluster.address(machine), port), 20)
    with context.wrap_socket(plain, server_hostname=name) as connection:
        connection.sendall(f"GET /metrics HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


def values(answer: str) -> dict[tuple[str, ...], float]:
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK"), head
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def counts_all(cluster: Cluster, machine: str) -> bool:
    """Whether the machine has cgroup v2. With v1, systemd counts only what a unit asks for."""
    return cluster.sh(machine, "test -e /sys/fs/cgroup/cgroup.controllers", check=False).returncode == 0


def shows(cluster: Cluster, machine: str, program: str) -> bool:
    found = values(scrape(cluster, machine))
    assert found["natskit_program_up", program] == 1
    assert found["natskit_program_start_seconds", program] > 1e9
    if counts_all(cluster, machine):
        assert found["natskit_program_cpu_seconds_total", program] > 0
        assert found["natskit_program_memory_bytes", program] > 1024**2
        assert found["natskit_program_tasks", program] >= 1
    assert [key for key, value in found.items() if key[0] == "natskit_host_disk_read_only" and value] == []
    assert [key for key, value in found.items() if key[0] == "natskit_exporter_part_up" and not value] == []
    return True


def test_every_machine_shows_its_programs(cluster: Cluster) -> None:
    programs = {**dict.fromkeys(NATS, "natskit-nats"), **dict.fromkeys(HUBS, "natskit-hub-1")}
    programs |= {"proxy-1": "nginx", **dict.fromkeys(RUNNERS, "natskit-runner")}
    for machine, program in programs.items():
        # On a busy machine, an exporter that has just begun may not read all of its parts in time.
        wait_for(partial(shows, cluster, machine, program), f"{machine} shows {program}", 60)
    for machine in HUBS:
        assert values(scrape(cluster, machine, HUB))["natskit_hub_healthy",] == 1
    assert "natskit_certificate_end_seconds" in scrape(cluster, "proxy-1")
    assert "natskit_identity_end_seconds" in scrape(cluster, NATS[0])


def test_a_project_by_its_cgroup(cluster: Cluster, world: World) -> None:
    project = world.names["p"]
    machine = cluster.machine_of(project)

    def measured() -> bool:
        return ("natskit_project_disk_bytes", project) in values(scrape(cluster, machine))

    wait_for(measured, "the runner has measured the project's files", 180)
    found = values(scrape(cluster, machine))
    if counts_all(cluster, machine):
        assert found["natskit_project_cpu_seconds_total", project] > 0
    assert found["natskit_project_memory_bytes", project] > 1024**2
    assert found["natskit_project_tasks", project] >= 1
    assert found["natskit_project_unexpected_ends_total", project] == 0


def test_nobody_else_gets_anything(cluster: Cluster) -> None:
    for machine, port in ((NATS[0], EXPORTER), (HUBS[0], HUB)):
        assert scrape(cluster, machine, port, "u" * 40).startswith("HTTP/1.1 401 ")
        ask = (
            "import socket, ssl; c = ssl._create_unverified_context(); "
            f"s = c.wrap_socket(socket.create_connection(('{cluster.address(machine)}', {port}), 10)); "
            f"s.sendall(b'GET /metrics HTTP/1.1\\r\\nAuthorization: Bearer {TOKEN}\\r\\n\\r\\n'); print(s.recv(100))"
        )
        said = cluster.sh(RUNNERS[0], f"python3 -c {shlex.quote(ask)}", check=False)
        assert "200 OK" not in said.stdout, said.stdout
        assert said.stdout.strip() == "b''" or "reset" in said.stderr or "EOF" in said.stderr
    for machine in (NATS[0], HUBS[0], RUNNERS[0]):
        found = cluster.sh(machine, f"grep -rlF {TOKEN} /etc /var/lib/natskit /opt/natskit", check=False)
        assert found.stdout == ""
        others = cluster.sh(machine, "setpriv --reuid=65534 --clear-groups ls /var/lib/natskit/metrics", check=False)
        assert others.returncode != 0


def test_a_program_that_is_down_is_seen(cluster: Cluster) -> None:
    cluster.sh(NATS[2], "systemctl stop natskit-nats")
    try:
        found = values(scrape(cluster, NATS[2]))
        assert (found["natskit_program_up", "natskit-nats"], found["natskit_nats_healthy",]) == (0, 0)

        def leader_says_so() -> bool:
            shown = [values(scrape(cluster, machine)) for machine in NATS[:2]]
            # The labels are in alphabetical order: replica, stream.
            return any(one.get(("natskit_nats_stream_replica_current", NATS[2], "KV_accounts")) == 0 for one in shown)

        wait_for(leader_says_so, "the leader of KV_accounts lacks a copy", 60)
    finally:
        cluster.sh(NATS[2], "systemctl start natskit-nats")
    cluster.natskit("ready", "--timeout", "100")


def test_the_next_deploy_is_quiet(cluster: Cluster, watched: dict[str, str]) -> None:
    assert cluster.changes(**watched) == {}
