"""The platform on eight machines in Docker, which the tests start or find running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import subprocess
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from cluster.access import let_in
from cluster.lifecycle import down, listed
from natskit.client import Client
from natskit.errors import NatskitError
from natskit.rpc import RpcError
from natskit.runner.agent_unit import instance_of
from tests.kit.clusters import own_cluster
from tests.kit.commands import run
from tests.platform.raw import RawClient
from tests.platform.site import REPOSITORY, Site

DEBIAN = os.environ.get("NATSKIT_DEBIAN") or "13"
"""The release that the machines run."""
NATS = ("nats-1", "nats-2", "nats-3")
HUBS = ("hub-1", "hub-2")
RUNNERS = ("runner-1", "runner-2")
T = TypeVar("T")

SETTINGS = {
    # The tests sign in far more often than people do.
    "proxy_sign_in_rate": "300",
    "proxy_sign_in_burst": "40",
    # Bombs go off in projects: how large they get at the most.
    "runner_project_memory": str(512 * 1024**2),
    "runner_project_cpu": "100",
    "runner_project_disk": str(400 * 1024**2),
}


class Cluster(Site):
    """The machines of a Docker cluster, with the platform on them; ``root`` is its control folder."""

    inventory = "inventories/docker.py"

    def __init__(self, name: str, root: Path) -> None:
        super().__init__(root, dict(SETTINGS))
        self.name = name

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"NATSKIT_CLUSTER": self.name, "NATSKIT_CONTROL": str(self.root)}

    def let_in(self) -> None:
        """Give a deploy access to the machines, including new ones."""
        let_in(self.name, self.root / "ssh")

    @property
    def machines(self) -> list[str]:
        """Their names, such as ``nats-1``."""
        return [machine.container.removeprefix(f"{self.name}-") for machine in listed(self.name)]

    def container(self, machine: str) -> str:
        """Docker's name of a machine."""
        return f"{self.name}-{machine}"

    def in_network_of(self, machine: str) -> list[str]:
        """The beginning of a command of this machine that changes a machine's network, which it may not do itself."""
        pid = docker("inspect", "--format", "{{.State.Pid}}", self.container(machine)).stdout.strip()
        return ["nsenter", "--target", pid, "--net"]

    def address(self, machine: str) -> str:
        """The address of a machine."""
        found = docker(
            "inspect",
            "--format",
            "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
            "--",
            self.container(machine),
        )
        return found.stdout.strip()

    def sh(self, machine: str, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a line of shell as root on a machine."""
        done = docker("exec", self.container(machine), "sh", "-c", command, check=False)
        assert not check or done.returncode == 0, f"{machine}: {command}: {done.stdout}{done.stderr}"
        return done

    def changes(self, **settings: str) -> dict[str, list[str]]:
        """Deploy. Returns the names of the operations that changed something, by machine."""
        found = self.deploy("--json", **settings).changes
        return {host.removeprefix(f"{self.name}-"): names for host, names in found.items()}

    def machine_of(self, project_id: str) -> str:
        """The machine with a project's files."""
        folder = f"/var/lib/natskit/runner/projects/{instance_of(project_id)}"
        holds = [machine for machine in RUNNERS if self.sh(machine, f"test -d {folder}", check=False).returncode == 0]
        (found,) = holds
        return found

    def tcp(self, creds: Path | str | None = None, server: str = NATS[0]) -> RawClient:
        return RawClient.tcp(self.address(server), 4222, creds, ca_file=self.info["nats_ca_file"])

    def read(self, program: str, name: str) -> str:
        machine = {"runner": "runner-1", "keeper-1": "hub-1", "keeper-2": "hub-2"}.get(program, program)
        kind = program.partition("-")[0]
        folder = f"{kind}-1" if kind in ("hub", "keeper") else program
        return self.sh(machine, f"cat /var/lib/natskit/{folder}/{name}").stdout

    def project_creds(self, project_id: str) -> str:
        path = f"/var/lib/natskit/runner/projects/{instance_of(project_id)}/project.creds"
        return self.sh(self.machine_of(project_id), f"cat {path}").stdout

    def monitor(self, path: str) -> list[str]:
        ask = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:8222/{path}').read().decode())"
        return [self.sh(machine, f"python3 -c {shlex.quote(ask)}").stdout for machine in NATS]

    def variables(self, name: str) -> list[Any]:
        """A value of each nats-server's ``/varz``."""
        return [json.loads(answer)[name] for answer in self.monitor("varz")]

    def streams(self) -> dict[str, set[str]]:
        """The servers that have a copy of each stream, from the servers."""
        found: dict[str, set[str]] = {}
        for server, answer in zip(NATS, self.monitor("jsz?streams=true&accounts=true"), strict=True):
            for account in json.loads(answer)["account_details"]:
                for stream in account.get("stream_detail", []):
                    found.setdefault(stream["name"], set()).add(server)
        return found

    def readable_by_others(self) -> list[str]:
        secrets = r"\( -name keys.json -o -name '*.nk' -o -name '*.creds' -o -name '*.key' \)"
        places = "/var/lib/natskit /var/lib/private/natskit-project /etc/natskit /etc/nginx /opt/natskit"
        found = []
        for machine in self.machines:
            find = f"find {places} -type f {secrets}"
            assert self.sh(machine, f"{find} 2>/dev/null", check=False).stdout, (
                f"{machine} has no keys where they should be"
            )
            # What no one but root gets to is not readable, whatever its own mode says.
            listed = self.sh(machine, f"{find} -perm /077 2>/dev/null", check=False).stdout.split()
            found += [f"{machine}:{path}" for path in listed]
        return found

    def stop(self) -> None:
        down(self.name)

    def logs(self) -> str:
        parts = []
        for machine in self.machines:
            said = self.sh(machine, "journalctl --no-pager --output cat --lines 15 --unit 'natskit-*'", check=False)
            parts.append(f"---- {machine}\n{said.stdout[-3000:]}{said.stderr}")
        return "\n".join(parts)


@dataclass(frozen=True)
class Neighbours:
    """Two running projects on one machine."""

    machine: str
    a: str
    b: str


def docker(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``docker``."""
    return run(["docker", *words], check=check, errors="replace", timeout=120)


@contextlib.contextmanager
def running(name: str) -> Iterator[Cluster]:
    """A cluster that a developer keeps running. The tests leave it running."""
    control = os.environ.get("NATSKIT_CONTROL") or REPOSITORY / ".cluster" / name
    cluster = Cluster(name, Path(control).resolve())
    cluster.domain = f"{secrets.token_hex(4)}.example.org"
    _deploy(cluster)
    yield cluster


@contextlib.contextmanager
def brought_up(root: Path) -> Iterator[Cluster]:
    """A cluster for the tests, ready for use, and removed at the end."""
    with own_cluster(DEBIAN) as name:
        cluster = Cluster(name, root)
        cluster.let_in()
        _deploy(cluster)
        yield cluster


def _deploy(cluster: Cluster) -> None:
    done = cluster.deploy()
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-20_000:]}"
    cluster.natskit("ready", "--timeout", "100")


class Shell:
    """Runs lines of shell in projects over one connection as the operator. A ``natskit`` command would take a second to
    start."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._client: Client | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        info = self._cluster.info
        creds, ca_file = info["creds"]["platform_admin"], info["nats_ca_file"]
        self._client = self._submit(Client.admin(info["nats_urls"], creds, ca_file=ca_file)).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._submit(self._client.close()).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __call__(self, project_id: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line for at most a minute. Returns 255 if the project went away."""
        return self._submit(self._run(project_id, command)).result(90)

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _run(self, project_id: str, command: str) -> subprocess.CompletedProcess[str]:
        assert self._client is not None
        said = {"stdout": b"", "stderr": b""}
        code: int | None = 255
        try:
            async with self._client.exec(project_id, command=command, timeout=60) as run:
                async for stream, data in run:
                    said[stream] = (said[stream] + data)[-100_000:]
            code = run.exit_code if run.exit_code is not None else 128
        except (NatskitError, RpcError) as error:
            said["stderr"] += f"\n{error}".encode()
        texts = {stream: data.decode(errors="replace") for stream, data in said.items()}
        return subprocess.CompletedProcess(command, code or 0, texts["stdout"], texts["stderr"])
