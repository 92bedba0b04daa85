"""Start, list and remove clusters. The labels of Docker's objects are the only state."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.client import DockerClient
from docker.errors import APIError, DockerException, NotFound
from testcontainers.core.docker_client import DockerClient as Connection
from testcontainers.core.labels import create_labels

from cluster.machines import (
    LABEL,
    MACHINES,
    RECIPE,
    RELEASES,
    ROLE_LABEL,
    SUBNET,
    Machine,
    container_of,
    image_of,
    network_of,
)

SCRIPTS = Path(__file__).parents[1] / "scripts"
COMMAND = ".venv/bin/python -m cluster"
"""The command, for hints in error messages."""
BOOT_SECONDS = 60
INOTIFY_INSTANCES = 512
"""Each machine takes six. The kernel's default allows root 128 in all."""


class ClusterError(Exception):
    """Why a cluster cannot be started or removed, and what to do about it, in one or more lines."""


@dataclass(frozen=True, order=True)
class Listed:
    """A machine in Docker. ``address`` is the configured one: a stopped machine has no other."""

    container: str
    role: str
    address: str
    state: str


def up(name: str, subnet: str = "", *, debian: str, machines: Iterable[Machine] = MACHINES) -> str:
    """Start the missing and stopped machines of a cluster, and wait until they have booted. Returns the subnet.

    ``subnet`` is a /24; the default for a new cluster is ``SUBNET``. ``debian`` is the release of new machines.
    """
    _check(name, subnet, debian)
    _ensure_docker()
    image = image_of(debian)
    with _docker() as docker:
        _build(docker, image, debian)
        network = _ensure_network(docker, name, subnet)

        def start(machine: Machine) -> ClusterError | None:
            try:
                _start(docker, name, machine, image=image, subnet=network)
                _wait_for_boot(docker, f"{name}-{machine.name}")
            except ClusterError as error:
                return error
            return None

        with ThreadPoolExecutor(len(MACHINES)) as pool:
            failed = [error for error in pool.map(start, machines) if error is not None]
        if failed:
            raise ClusterError("\n".join(map(str, failed)))
        running = docker.containers.list(filters={"label": f"{LABEL}={name}"})
    if any(container.attrs["Config"]["Image"] != image for container in running):
        print(
            f"machines were built from another recipe in docker/, or run another release than Debian {debian}: "
            f"to replace them, run {COMMAND} down {name}, then {COMMAND} up {name}"
        )
    return network


def down(name: str) -> bool:
    """Remove a cluster's machines, disks and network, but not the image. Returns whether there was anything."""
    _check(name)
    if not is_installed():
        return False
    # Machines outlive Docker's daemon and a reboot, so start the daemon to find them.
    _ensure_docker()
    label = {"label": f"{LABEL}={name}"}
    with _docker() as docker:
        containers = docker.containers.list(all=True, filters=label, ignore_removed=True)
        networks = docker.networks.list(filters=label)
        disks = docker.volumes.list(filters=label)
        with ThreadPoolExecutor(len(MACHINES)) as pool:
            list(pool.map(_remove(force=True, v=True), containers))
        for rest in (*networks, *disks):
            _remove()(rest)
    return bool(containers or networks or disks)


def listed(name: str) -> list[Listed]:
    """The machines of a cluster; an empty list if Docker does not answer."""
    _check(name)
    with contextlib.suppress(DockerException), _docker() as docker:
        return sorted(
            Listed(
                container.name,
                container.labels[ROLE_LABEL],
                "".join(
                    network["IPAMConfig"]["IPv4Address"]
                    for network in container.attrs["NetworkSettings"]["Networks"].values()
                ),
                container.status,
            )
            for container in docker.containers.list(all=True, filters={"label": f"{LABEL}={name}"}, ignore_removed=True)
        )
    return []


def run_in(container: str, script: str) -> str:
    """Run lines of shell as root in a container, and return the output. Raises :class:`ClusterError` if one fails."""
    with _docker() as docker:
        try:
            code, (output, said) = docker.containers.get(container).exec_run(["sh", "-ec", script], demux=True)
        except DockerException as error:
            raise ClusterError(f"{container}: {error}") from None
    if code != 0:
        raise ClusterError(f"{container}: {(said or b'').decode(errors='replace').strip()}")
    return (output or b"").decode(errors="replace")


def names() -> set[str]:
    """The clusters with a container, network or volume in Docker."""
    _ensure_docker()
    having = {"label": LABEL}
    with _docker() as docker:
        containers = docker.containers.list(all=True, filters=having, ignore_removed=True)
        found = {container.labels[LABEL] for container in containers}
        found |= {network.attrs["Labels"][LABEL] for network in docker.networks.list(filters=having)}
        return found | {disk.attrs["Labels"][LABEL] for disk in docker.volumes.list(filters=having)}


def is_installed() -> bool:
    """Whether this machine has the command ``docker``. Without it, there can be no cluster."""
    return shutil.which("docker") is not None


def _check(name: str, subnet: str = "", debian: str = RELEASES[0]) -> None:
    if not re.fullmatch("[a-z][a-z0-9-]*", name):
        raise ClusterError(f"{name} cannot be the name of a cluster: use lower-case letters, digits and -")
    if subnet and not re.fullmatch(r"([0-9]{1,3}\.){3}0/24", subnet):
        raise ClusterError(f"{subnet} is not a subnet of the form 172.31.78.0/24")
    if debian not in RELEASES:
        raise ClusterError(f"NATSKIT_DEBIAN={debian}: the machines can run Debian {' or '.join(RELEASES)}")


def _ensure_docker() -> None:
    """Make sure that Docker answers. Raises :class:`ClusterError` with the reason if it cannot."""
    done = subprocess.run([SCRIPTS / "docker"], check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise ClusterError(done.stderr.strip())


@contextlib.contextmanager
def _docker() -> Iterator[DockerClient]:
    """A connection to the Docker that testcontainers uses: that of DOCKER_HOST or of Docker's context."""
    client = Connection(max_pool_size=len(MACHINES)).client
    try:
        yield client
    finally:
        client.close()


def _build(docker: DockerClient, image: str, debian: str) -> None:
    if docker.images.list(name=image):
        return
    print(f"Building the image of the cluster's machines, Debian {debian} …", flush=True)
    done = subprocess.run([RECIPE / "build", image, debian], check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise ClusterError(done.stderr.strip())


def _ensure_network(docker: DockerClient, name: str, wanted: str) -> str:
    """The subnet of the cluster's network, which is created if it is missing."""
    try:
        found = docker.networks.get(name).attrs
    except NotFound:
        return _make_network(name, wanted or SUBNET)
    if (found["Labels"] or {}).get(LABEL) != name:
        raise ClusterError(f"there is a Docker network {name} that is not of this cluster: choose another name")
    subnet = str(found["IPAM"]["Config"][0]["Subnet"])
    if wanted not in ("", subnet):
        raise ClusterError(f"cluster {name} is in {subnet}, not in {wanted}: to move it, {COMMAND} down {name} first")
    return subnet


def _make_network(name: str, subnet: str) -> str:
    network = network_of(name, subnet)
    try:
        network.create()
    except APIError as error:
        raise ClusterError(
            f"the network {subnet} cannot be created: {_said(error).rpartition(': ')[2]}\n"
            f"choose another: {COMMAND} up {name} 172.31.78.0/24"
        ) from None
    return subnet


def _start(docker: DockerClient, cluster: str, machine: Machine, *, image: str, subnet: str) -> None:
    """Start a machine if it does not run."""
    name = f"{cluster}-{machine.name}"
    try:
        container = _found(docker.containers, name)
        if container is None:
            if machine.role == "runner":
                _ensure_disk(docker, cluster, name)
            new = container_of(cluster, machine, image=image, subnet=subnet)
            try:
                new.start()
            finally:
                new.get_docker_client().client.close()
        elif container.labels.get(LABEL) != cluster:
            raise ClusterError(
                f"there is a container {name} that is not of this cluster: remove it, or choose another name"
            )
        elif container.status == "paused":
            container.unpause()
        elif container.status != "running":
            container.start()
    except APIError as error:
        raise ClusterError(f"{name} does not start: {_said(error)}") from None


def _ensure_disk(docker: DockerClient, cluster: str, name: str) -> None:
    disk = _found(docker.volumes, name)
    if disk is not None:
        if (disk.attrs["Labels"] or {}).get(LABEL) != cluster:
            raise ClusterError(
                f"there is a Docker volume {name} that is not of this cluster: remove it, or choose another name"
            )
        return
    try:
        # testcontainers' own labels, so that its reaper removes the disk as well.
        docker.volumes.create(name, labels=create_labels("", {LABEL: cluster}))
    except APIError as error:
        raise ClusterError(f"the disk {name} cannot be created: {_said(error)}") from None


def _wait_for_boot(docker: DockerClient, name: str) -> None:
    """Wait until systemd has started all units. Failed units are reported, and are no error."""
    deadline = time.monotonic() + BOOT_SECONDS
    container = docker.containers.get(name)
    while True:
        state = _run(container, "systemctl is-system-running").strip()
        if state == "running":
            return
        if state == "degraded":
            failed = _run(container, "systemctl list-units --failed --plain --no-legend").splitlines()
            print(f"{name} runs, without {' '.join(line.split()[0] for line in failed)}", file=sys.stderr)
            return
        container.reload()
        if container.status != "running":
            said = container.logs(tail=5).decode(errors="replace").rstrip()
            raise ClusterError(f"{name} ended; the end of its log:\n{said}{_few_watches()}")
        if time.monotonic() >= deadline:
            raise ClusterError(
                f"{name} has not booted in {BOOT_SECONDS} s ({state or 'no answer'}): "
                f"docker exec {name} systemctl list-jobs{_few_watches()}"
            )
        time.sleep(0.2)


def _run(container: Any, command: str) -> str:
    """The output of a command in a container; empty if the command cannot be started, as before systemd runs."""
    try:
        output, _ = container.exec_run(command, demux=True).output
    except APIError:
        return ""
    return (output or b"").decode(errors="replace")


def _few_watches() -> str:
    """A hint if inotify instances may be used up: then systemd ends without a message, or waits forever."""
    with contextlib.suppress(OSError):
        allowed = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
        if allowed < INOTIFY_INSTANCES:
            return (
                f"\neach machine takes six inotify instances, and root may have {allowed} in all: "
                f"sysctl fs.inotify.max_user_instances={INOTIFY_INSTANCES}"
            )
    return ""


def _found(collection: Any, name: str) -> Any:
    try:
        return collection.get(name)
    except NotFound:
        return None


def _remove(**options: bool) -> Callable[[Any], None]:
    """A function that removes an object in Docker. It accepts that the reaper removes the object at the same time."""

    def remove(thing: Any) -> None:
        try:
            thing.remove(**options)
        except NotFound:
            return
        except APIError as error:
            if "already in progress" not in _said(error):
                raise ClusterError(f"{thing.name} cannot be removed: {_said(error)}") from None

    return remove


def _said(error: APIError) -> str:
    """The first line of Docker's error message."""
    return next(iter(str(error.explanation or error).splitlines()), "")
