"""The group monitoring: a real Prometheus reads all machines, an alert fires when a program is stopped, reaches
Alertmanager, and ends when it runs again.

The machines have no way out, so this machine gives them the packages that it has unpacked for the tests of rules.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.cluster.site import HUBS, NATS, Cluster, docker
from tests.kit.wait import wait_for
from tests.platform.site import REPOSITORY

WATCH = HUBS[1]
INVENTORY = """
import runpy

_found = runpy.run_path({docker!r})
nats, hub, proxy, runner = (_found[role] for role in ("nats", "hub", "proxy", "runner"))
monitoring = [host for host in hub if host[0].endswith({watch!r})]
"""


class Watched(Cluster):
    """A cluster one of whose machines watches the others."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__(cluster.name, cluster.root)
        self.info = cluster.info
        path = folder / "inventory.py"
        path.write_text(INVENTORY.format(docker=str(REPOSITORY / "inventories" / "docker.py"), watch=f"-{WATCH}"))
        self.inventory = str(path)  # type: ignore[misc]
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text("w" * 40)
        self.data |= {"metrics_token_file": str(token)}

    def ask(self, path: str, port: int = 9090) -> Any:
        """What Prometheus or Alertmanager answers on its loopback."""
        code = (
            f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{port}{path}', timeout=5).read().decode())"
        )
        return json.loads(self.sh(WATCH, f"python3 -c {shlex.quote(code)}").stdout)

    def query(self, expression: str) -> dict[str, str]:
        """The value of each host."""
        found = self.ask(f"/api/v1/query?query={quote(expression)}")["data"]["result"]
        return {one["metric"].get("host", ""): one["value"][1] for one in found}

    def firing(self, name: str) -> list[str]:
        """The hosts for which Prometheus says that an alert fires."""
        alerts = self.ask("/api/v1/alerts")["data"]["alerts"]
        return [a["labels"]["host"] for a in alerts if a["labels"]["alertname"] == name and a["state"] == "firing"]


@pytest.fixture(scope="module")
def watched(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    subprocess.run([REPOSITORY / "scripts" / "prometheus"], check=True, capture_output=True, timeout=900)
    for package in sorted((REPOSITORY / ".tools" / "prometheus" / "packages").glob("*.deb")):
        docker("cp", str(package), f"{cluster.container(WATCH)}:/root/{package.name}")
    # What they depend on is for the pages that they show, and nobody looks at those here.
    cluster.sh(WATCH, "systemctl mask prometheus prometheus-alertmanager")
    cluster.sh(WATCH, "dpkg --install --force-depends /root/prometheus*.deb")
    found = Watched(cluster, tmp_path_factory.mktemp("monitoring"))
    found.changes()
    found.natskit("ready", "--timeout", "100")
    yield found
    cluster.changes()


def test_prometheus_reads_every_machine_and_only_on_loopback(watched: Watched) -> None:
    def all_read() -> bool:
        up = watched.query("min(up)by(host)")
        return {*watched.machines} <= {*up} and set(up.values()) == {"1"}

    wait_for(all_read, "all targets are up", 90)
    # The exporter of that machine may have been read before Prometheus and Alertmanager were there, and started.
    itself = 'natskit_program_up{program="natskit-prometheus"}'
    wait_for(lambda: watched.query(itself) == {WATCH: "1"}, "Prometheus is watched too", 60)
    wait_for(lambda: not watched.query("natskit_program_up==0"), "all programs run", 60)
    listening = watched.sh(WATCH, "ss -Hltn 'sport = :9090 or sport = :9093'").stdout.split("\n")
    assert {line.split()[3].rpartition(":")[0] for line in listening if line} == {"127.0.0.1"}
    assert watched.sh(WATCH, "stat -c '%a %U' /var/lib/natskit/monitoring/token").stdout == "600 natskit-monitoring\n"


def test_an_alert_fires_reaches_alertmanager_and_ends(watched: Watched) -> None:
    assert watched.firing("NatskitProgramDown") == []
    watched.sh(NATS[2], "systemctl stop natskit-nats")
    try:
        wait_for(lambda: watched.firing("NatskitProgramDown") == [NATS[2]], "the alert fires", 300)

        def told() -> bool:
            alerts = watched.ask("/api/v2/alerts", 9093)
            return any(a["labels"]["alertname"] == "NatskitProgramDown" for a in alerts)

        wait_for(told, "Alertmanager knows", 60)
        assert "runbook_url" in watched.ask("/api/v2/alerts", 9093)[0]["annotations"]
    finally:
        watched.sh(NATS[2], "systemctl start natskit-nats")
    wait_for(lambda: watched.firing("NatskitProgramDown") == [], "the alert ends", 120)


def test_the_next_deploy_is_quiet(watched: Watched) -> None:
    assert watched.changes() == {}


@pytest.mark.usefixtures("watched")
def test_a_host_that_leaves_the_group_keeps_neither_prometheus_nor_the_token(cluster: Cluster) -> None:
    """What it has recorded stays, and so do Debian's packages."""
    cluster.changes()
    folder = "/var/lib/natskit/monitoring"
    assert cluster.sh(WATCH, f"ls {folder}").stdout.split() == ["alertmanager", "prometheus"]
    units = "systemctl list-unit-files --no-legend 'natskit-*manager*' 'natskit-prom*'"
    assert cluster.sh(WATCH, units, check=False).stdout == ""  # it exits 1 if there are none
    assert cluster.sh(WATCH, "ss -Hltn 'sport = :9090 or sport = :9093'").stdout == ""
    assert cluster.sh(WATCH, f"ls {folder}/prometheus /usr/bin/prometheus").stdout != ""
    assert cluster.changes() == {}
