"""The platform on eight machines in Docker, brought up for the tests or found running."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import json
import os
import secrets
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from natskit.client import Client
from natskit.errors import NatskitError
from natskit.rpc import RpcError
from natskit.runner.agent_unit import instance_of
from tests.platform.raw import RawClient
from tests.platform.site import REPOSITORY, Site

NAME = "natskit-test"
NATS = ("nats-1", "nats-2", "nats-3")
HUBS = ("hub-1", "hub-2")
RUNNERS = ("runner-1", "runner-2")
SCRIPT = str(REPOSITORY / "scripts" / "cluster")
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

    @property
    def machines(self) -> list[str]:
        """Their names, as ``nats-1``."""
        listed = subprocess.run([SCRIPT, "list", self.name], check=True, capture_output=True, text=True)
        return [line.split()[0].removeprefix(f"{self.name}-") for line in listed.stdout.splitlines()]

    def container(self, machine: str) -> str:
        """What Docker calls a machine."""
        return f"{self.name}-{machine}"

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
        """Deploy, and the names of the operations that changed something, by machine."""
        found = self.deploy("--json", **settings).changes
        return {host.removeprefix(f"{self.name}-"): names for host, names in found.items()}

    def machine_of(self, project_id: str) -> str:
        """Where a project's files are."""
        folder = f"/var/lib/natskit/runner/projects/{instance_of(project_id)}"
        holds = [machine for machine in RUNNERS if self.sh(machine, f"test -d {folder}", check=False).returncode == 0]
        (found,) = holds
        return found

    def tcp(self, creds: Path | str | None = None, server: str = NATS[0]) -> RawClient:
        return RawClient.tcp(self.address(server), 4222, creds, ca_file=self.info["nats_ca_file"])

    def read(self, program: str, name: str) -> str:
        machine = "runner-1" if program == "runner" else program
        folder = "hub-1" if program.startswith("hub") else program
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
        """Which servers have a copy of each stream, as they say themselves."""
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
        subprocess.run([SCRIPT, "down", self.name], check=True, capture_output=True, timeout=120)

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
    done = subprocess.run(
        ["docker", *words], capture_output=True, text=True, errors="replace", timeout=120, check=False
    )
    assert not check or done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
    return done


@contextlib.contextmanager
def running(name: str) -> Iterator[Cluster]:
    """A cluster that somebody keeps running while they work on the tests; it stays."""
    control = os.environ.get("NATSKIT_CONTROL") or REPOSITORY / ".cluster" / name
    cluster = Cluster(name, Path(control).resolve())
    cluster.domain = f"{secrets.token_hex(4)}.example.org"
    _deploy(cluster)
    yield cluster


@contextlib.contextmanager
def brought_up(root: Path) -> Iterator[Cluster]:
    """A cluster of the tests' own, ready for use, and taken down at the end."""
    cluster = Cluster(NAME, root)
    with (Path(tempfile.gettempdir()) / f"{NAME}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AssertionError(
                f"other tests use the cluster {NAME} at this moment: wait until they have ended"
            ) from None
        _script("down", NAME)  # what a killed run has left
        try:
            subnet = _free_subnet()
            _script("up", NAME, *([subnet] if subnet else []))
            _deploy(cluster)
            yield cluster
        finally:
            cluster.stop()


def _deploy(cluster: Cluster) -> None:
    done = cluster.deploy()
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-20_000:]}"
    cluster.natskit("ready", "--timeout", "100")


def _script(*words: str) -> None:
    # Building the image takes a minute or two, with Docker's own packages before that some more.
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"scripts/cluster {' '.join(words)}: {done.stdout}{done.stderr}"


def _free_subnet() -> str | None:
    """One that no network of Docker has; none to choose as long as Docker does not run, which has no networks then."""
    listed = subprocess.run(["docker", "network", "ls", "--quiet"], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        return None
    networks = json.loads(docker("network", "inspect", *listed.stdout.split()).stdout)
    taken = [
        ipaddress.ip_network(config["Subnet"]) for network in networks for config in network["IPAM"]["Config"] or []
    ]
    for number in range(90, 120):
        subnet = ipaddress.ip_network(f"172.31.{number}.0/24")
        if not any(subnet.version == other.version and subnet.overlaps(other) for other in taken):
            return str(subnet)
    raise AssertionError("no 172.31.90.0/24 to 172.31.119.0/24 is free in Docker")


class Shell:
    """Runs lines of shell in projects over one connection as the operator: a command would take a second to start."""

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
        """Run a line; 255 if the project went away meanwhile. Ends after a minute at the most."""
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
