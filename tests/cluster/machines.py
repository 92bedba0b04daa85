"""What tests of changes and failures, and measurements, need of a cluster besides :class:`Cluster`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

from natskit.bus.permissions import BUCKETS
from natskit.runner.agent_unit import unit_of
from tests.cluster.load import Target
from tests.cluster.site import RUNNERS, Cluster
from tests.kit.wait import wait_for
from tests.platform.site import REPOSITORY

UNITS = {
    "nats-1": "natskit-nats",
    "nats-2": "natskit-nats",
    "nats-3": "natskit-nats",
    "hub-1": "natskit-hub-1",
    "hub-2": "natskit-hub-1",
    "proxy-1": "nginx",
    "runner-1": "natskit-runner",
    "runner-2": "natskit-runner",
}
"""What runs on each machine."""
EMAIL, PASSWORD = "load@example.org", "correct horse battery staple"


class Machines(Cluster):
    """A cluster whose machines can be inspected one by one. Every deploy gets ``data``, which tests may change."""

    def __init__(self, name: str, root: Path, data: dict[str, str]) -> None:
        super().__init__(name, root)
        self.data = dict(data)
        self.info = json.loads((root / "platform.json").read_text())

    @classmethod
    def of(cls, cluster: Cluster) -> Self:
        """The machines of a cluster, with a copy of its settings."""
        return cls(cluster.name, cluster.root, cluster.data)

    @classmethod
    def named(cls, name: str) -> Self:
        """A cluster that ``make cluster`` has started."""
        return cls(name, REPOSITORY / ".cluster" / name, {})

    def target(self) -> Target:
        """An account with a running project, for the load. Makes them if necessary."""
        if EMAIL not in self.natskit("account", "list", "--json").stdout:
            self.natskit("account", "add", EMAIL, "--password-stdin", stdin=PASSWORD)
        mine = self.natskit_json("project", "list", "--account", EMAIL)
        project = mine[0] if mine else self.natskit_json("project", "create", EMAIL, "Load")
        self.natskit("project", "start", project["project_id"])
        return Target(self.info, EMAIL, PASSWORD, project["project_id"])

    def home_of(self, project_id: str) -> str:
        """The machine on which a project runs."""
        active = f"systemctl is-active {unit_of(project_id)}"
        (machine,) = [m for m in RUNNERS if self.sh(m, active, check=False).returncode == 0]
        return machine

    def starts(self, machines: Iterable[str] = UNITS) -> dict[str, str]:
        """When the unit of each machine was started, by the machine's own clock."""
        show = "systemctl show --value -p ActiveEnterTimestampMonotonic"
        return {m: self.sh(m, f"{show} {UNITS[m]}").stdout.strip() for m in machines}

    def varz(self, machine: str, page: str = "varz") -> dict[str, Any]:
        """A nats-server's ``/varz``, from its own loopback."""
        ask = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:8222/{page}', timeout=3).read().decode())"
        found: dict[str, Any] = json.loads(self.sh(machine, f'python3 -c "{ask}"').stdout)
        return found

    def state_max_bytes(self) -> dict[str, int]:
        """The maximum size of the state's buckets, from a nats-server."""
        buckets = {f"KV_{bucket}" for bucket in BUCKETS}
        found = self.varz("nats-1", "jsz?streams=true&accounts=true&config=true")["account_details"]
        streams = [stream for account in found for stream in account.get("stream_detail", [])]
        return {s["name"]: s["config"]["max_bytes"] for s in streams if s["name"] in buckets}

    def busiest(self) -> str:
        """The machine of the nats-server with the most browsers."""
        browsers = {}
        for machine in ("nats-1", "nats-2", "nats-3"):
            connections = self.varz(machine, "connz")["connections"]
            browsers[machine] = sum(connection.get("type") == "websocket" for connection in connections)
        return max(browsers, key=lambda machine: browsers[machine])

    def wait_until_ready(self, seconds: float = 120) -> float:
        """Wait until every part answers. Returns how long that took."""
        started = time.monotonic()
        self.natskit("ready", "--timeout", str(seconds))
        return time.monotonic() - started

    def wait_until_replicated(self, seconds: float = 60) -> None:
        """Wait until every nats-server reports that all its streams have caught up, up to this long for each."""
        ask = "import urllib.request as r; r.urlopen('http://127.0.0.1:8222/healthz', timeout=3)"

        def caught_up(machine: str) -> bool:
            return self.sh(machine, f'python3 -c "{ask}"', check=False).returncode == 0

        for machine in ("nats-1", "nats-2", "nats-3"):
            wait_for(partial(caught_up, machine), f"{machine} to catch up", seconds)

    @contextlib.contextmanager
    def isolated(self, machine: str) -> Iterator[None]:
        """Cut a machine off from the others by dropping all packets in both directions. This machine can still reach
        it."""
        others = [self.address(other) for other in UNITS if other != machine]
        rules = [f"{chain} {way} {other}" for other in others for chain, way in (("INPUT", "-s"), ("OUTPUT", "-d"))]
        enter = [*self.in_network_of(machine), "iptables"]
        for rule in rules:
            subprocess.run([*enter, "-I", *rule.split(), "-j", "DROP"], check=True, capture_output=True)
        try:
            yield
        finally:
            for rule in rules:
                subprocess.run([*enter, "-D", *rule.split(), "-j", "DROP"], check=True, capture_output=True)
