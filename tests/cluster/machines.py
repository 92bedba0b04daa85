"""The machines of a Docker cluster that a test or a benchmark works on, the platform on them, and what can be seen."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from natskit.runner.agent_unit import unit_of
from tests.cluster.load import Target

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
Outcome = subprocess.CompletedProcess[str]

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


@dataclass
class Machines:
    """A cluster by its name, and its control folder. ``data`` goes with every deploy."""

    name: str
    control: Path
    data: dict[str, str] = field(default_factory=dict)

    @classmethod
    def named(cls, name: str) -> Machines:
        """A cluster that ``make cluster`` has started."""
        return cls(name, REPOSITORY / ".cluster" / name)

    @property
    def info(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.control / "platform.json").read_text())
        return found

    def docker(self, *words: str, check: bool = True) -> Outcome:
        return subprocess.run(["docker", *words], capture_output=True, text=True, check=check, timeout=120)

    def sh(self, machine: str, command: str) -> Outcome:
        """Run a line of shell as root on a machine."""
        return self.docker("exec", f"{self.name}-{machine}", "sh", "-c", command, check=False)

    def deploy(self, *arguments: str, **overrides: str) -> Outcome:
        """Run ``pyinfra inventories/docker.py deploy.py`` with ``data``, and ``overrides`` on top."""
        data = self.data | overrides
        words = [word for key, value in data.items() for word in ("--data", f"{key}={value}")]
        return subprocess.run(
            [str(BIN / "pyinfra"), "-y", "inventories/docker.py", "deploy.py", *words, *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"NATSKIT_CLUSTER": self.name, "NATSKIT_CONTROL": str(self.control)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def natskit(self, *arguments: str, stdin: str | None = None, check: bool = True) -> Outcome:
        done = subprocess.run(
            [str(BIN / "natskit"), "--platform", str(self.control), *arguments],
            capture_output=True,
            text=True,
            input=stdin,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"natskit {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def target(self) -> Target:
        """Somebody with a running project, for the load; made when it is not there."""
        if EMAIL not in self.natskit("account", "list", "--json").stdout:
            self.natskit("account", "add", EMAIL, "--password-stdin", stdin=PASSWORD)
        mine = json.loads(self.natskit("project", "list", "--account", EMAIL, "--json").stdout)
        project = mine[0] if mine else json.loads(self.natskit("project", "create", EMAIL, "Load", "--json").stdout)
        self.natskit("project", "start", project["project_id"])
        return Target(self.info, EMAIL, PASSWORD, project["project_id"])

    def home_of(self, project_id: str) -> str:
        """The machine a project runs on."""
        active = f"systemctl is-active {unit_of(project_id)}"
        (machine,) = [m for m in ("runner-1", "runner-2") if self.sh(m, active).returncode == 0]
        return machine

    def starts(self, machines: Iterable[str] = UNITS) -> dict[str, str]:
        """When the unit of each machine was started, by the machine's own clock."""
        show = "systemctl show --value -p ActiveEnterTimestampMonotonic"
        return {m: self.sh(m, f"{show} {UNITS[m]}").stdout.strip() for m in machines}

    def varz(self, machine: str, page: str = "varz") -> dict[str, Any]:
        """What a nats-server says of itself, on its own loopback."""
        ask = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:8222/{page}', timeout=3).read().decode())"
        found: dict[str, Any] = json.loads(self.sh(machine, f'python3 -c "{ask}"').stdout)
        return found

    def busiest(self) -> str:
        """The machine of the nats-server with the most browsers."""
        browsers = {}
        for machine in ("nats-1", "nats-2", "nats-3"):
            connections = self.varz(machine, "connz")["connections"]
            browsers[machine] = sum(connection.get("type") == "websocket" for connection in connections)
        return max(browsers, key=lambda machine: browsers[machine])

    def wait_until_ready(self, seconds: float = 120) -> float:
        """Wait until every part answers; how long that took."""
        started = time.monotonic()
        self.natskit("ready", "--timeout", str(seconds))
        return time.monotonic() - started

    def wait_until_replicated(self, seconds: float = 60) -> None:
        """Wait until every nats-server says that all of its streams have caught up."""
        ask = "import urllib.request as r; r.urlopen('http://127.0.0.1:8222/healthz', timeout=3)"
        deadline = time.monotonic() + seconds
        for machine in ("nats-1", "nats-2", "nats-3"):
            while self.sh(machine, f'python3 -c "{ask}"').returncode != 0:
                assert time.monotonic() < deadline, f"{machine} has not caught up"
                time.sleep(0.3)

    @contextlib.contextmanager
    def isolated(self, machine: str) -> Iterator[None]:
        """Cut a machine off from the others: packets, both ways, vanish without a word. This machine still gets in."""
        others = [self.address(other) for other in UNITS if other != machine]
        rules = [f"{chain} {way} {other}" for other in others for chain, way in (("INPUT", "-s"), ("OUTPUT", "-d"))]
        pid = self.docker("inspect", "--format", "{{.State.Pid}}", f"{self.name}-{machine}").stdout.strip()
        enter = ["nsenter", "--target", pid, "--net", "iptables"]
        for rule in rules:
            subprocess.run([*enter, "-I", *rule.split(), "-j", "DROP"], check=True, capture_output=True)
        try:
            yield
        finally:
            for rule in rules:
                subprocess.run([*enter, "-D", *rule.split(), "-j", "DROP"], check=True, capture_output=True)

    def address(self, machine: str) -> str:
        """The address of a machine."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return self.docker("inspect", "--format", form, f"{self.name}-{machine}").stdout.strip()
