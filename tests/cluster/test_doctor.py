"""The doctor on eight machines. Something else is wrong with each, and one run finds all of it."""

from __future__ import annotations

import json
import shlex
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from natskit.doctor.machine_probe import PROJECTS
from natskit.runner.agent_unit import instance_of
from tests.cluster.site import Cluster
from tests.kit.wait import wait_for

UNKNOWN = str(uuid.uuid4())
EATEN = "system.slice/natskit-eater.service"
EVENTS = f"cat /sys/fs/cgroup/{EATEN}/memory.events /sys/fs/cgroup/memory/{EATEN}/memory.oom_control"  # v2, v1
EATER = "python3 -c 'held = bytearray(10**9)'; sleep 600"


def findings(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cluster.natskit("doctor", "--json", check=False).stdout)["findings"]
    return found


@pytest.fixture
def damaged(cluster: Cluster) -> Iterator[dict[str, str]]:
    """The machines, each with a problem; what the doctor should say of it, with the severity."""
    place = "/var/lib/natskit/a disk"
    unit = f"natskit-project@{instance_of(UNKNOWN)}.service"
    cluster.sh("nats-1", "systemctl set-property --runtime natskit-nats.service TasksMax=5000")
    cluster.sh(
        "nats-2", f"mkdir '{place}' && mount -t tmpfs -o size=4m none '{place}' && ! cat /dev/zero >'{place}/all'"
    )
    cluster.sh("nats-3", "systemd-run --unit natskit-spare false")
    loop = "--property Restart=always --property RestartSec=1 --property StartLimitIntervalSec=0"
    cluster.sh("hub-1", f"systemd-run --unit natskit-loop {loop} false", check=False)
    limits = "--property MemoryMax=30M --property MemorySwapMax=0 --property OOMPolicy=continue"
    cluster.sh("hub-2", f"systemd-run --unit natskit-eater {limits} sh -c {shlex.quote(EATER)}")
    cluster.sh("runner-1", f"mkdir {PROJECTS}/{instance_of(UNKNOWN)}")
    file = f"/run/systemd/system/{unit}"
    text = "[Service]\nExecStart=sleep 600\n"
    cluster.sh(
        "runner-1", f"printf %s {shlex.quote(text)} >{file} && systemctl daemon-reload && systemctl start {unit}"
    )
    route = ("unreachable", cluster.address("nats-3"))
    network = [*cluster.in_network_of("runner-2"), "ip", "route"]
    subprocess.run([*network, "add", *route], check=True)
    try:
        wait_for(lambda: int(cluster.sh("hub-1", "systemctl show natskit-loop -P NRestarts").stdout) > 3, "a loop", 60)
        wait_for(
            lambda: "oom_kill 1" in cluster.sh("hub-2", EVENTS, check=False).stdout.split("\n"), "a killed one", 60
        )
        yield {
            "nats-1: natskit-nats.service has settings that natskit did not write": "untidy",
            f"nats-2: the disk of {place} is 100% full": "broken",
            "nats-3: natskit-spare.service has failed": "soon",
            "hub-1: natskit-loop.service starts again and again": "soon",
            "hub-2: the kernel ended processes of natskit-eater.service for want of memory": "soon",
            f"runner-1: the agent of a project that does not exist runs: {UNKNOWN}": "soon",
            f"runner-1: the files of a project that does not exist are left: {instance_of(UNKNOWN)}": "untidy",
            f"runner-2 does not reach nats-3 at {route[1]}:4222": "broken",
        }
    finally:
        cluster.sh("nats-1", "systemctl revert natskit-nats.service")
        cluster.sh("nats-2", f"umount '{place}' && rmdir '{place}'")
        cluster.sh("nats-3", "systemctl reset-failed natskit-spare")
        cluster.sh("hub-1", "systemctl stop natskit-loop")
        cluster.sh("hub-2", "systemctl stop natskit-eater")
        cluster.sh("runner-1", f"systemctl stop {unit}; rm {file}; systemctl daemon-reload")
        cluster.sh("runner-1", f"rmdir {PROJECTS}/{instance_of(UNKNOWN)}")
        subprocess.run([*network, "del", *route], check=True)


def test_one_run_finds_what_is_wrong_with_each_machine(cluster: Cluster, damaged: dict[str, str]) -> None:
    found = {one["what"]: one for one in findings(cluster)}
    assert {what: found[what]["severity"] for what in damaged if what in found} == damaged
    assert "in /run/systemd/" in found["nats-1: natskit-nats.service has settings that natskit did not write"]["why"]
    assert all(found[what]["mend"].startswith("on ") for what in damaged if ": " in what)


def test_afterwards_nothing_of_it_is_left(cluster: Cluster) -> None:
    def left() -> list[str]:
        words = ("natskit-spare", "natskit-loop", "natskit-eater", "did not write", "a disk", "does not reach", UNKNOWN)
        return [one["what"] for one in findings(cluster) if any(word in one["what"] for word in words)]

    assert left() == []
