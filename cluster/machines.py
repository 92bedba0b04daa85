"""The parts of a cluster and their options for Docker: machines, network, and the disks of the runners."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from docker.types import IPAMConfig, IPAMPool
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

RECIPE = Path(__file__).parents[1] / "docker"
RELEASES = ("12", "13")
"""The Debian releases that the machines can run."""
SUBNET = "172.31.77.0/24"
"""The default subnet of a cluster."""
LABEL = "natskit.cluster"
"""The label with the cluster's name, on all its objects in Docker."""
ROLE_LABEL = "natskit.role"


@dataclass(frozen=True)
class Machine:
    """One machine: its host name, its role, and the last number of its address."""

    name: str
    role: str
    number: int


MACHINES = (
    Machine("nats-1", "nats", 11),
    Machine("nats-2", "nats", 12),
    Machine("nats-3", "nats", 13),
    Machine("hub-1", "hub", 21),
    Machine("hub-2", "hub", 22),
    Machine("proxy-1", "proxy", 31),
    Machine("runner-1", "runner", 41),
    Machine("runner-2", "runner", 42),
)


def image_of(debian: str) -> str:
    """The name of the machines' image, which changes with every change of the recipe."""
    sums = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  ./{file.name}\n"
        for file in sorted(RECIPE.iterdir(), key=lambda file: file.name)
    ]
    return f"natskit-base:{debian}-{hashlib.sha256(''.join(sums).encode()).hexdigest()[:12]}"


def network_of(cluster: str, subnet: str) -> Network:
    """The network of a cluster, not created yet.

    It is internal: the host reaches the machines, they reach each other, and nobody reaches the internet.
    """
    network = Network(
        docker_network_kw={
            "internal": True,
            "ipam": IPAMConfig(pool_configs=[IPAMPool(subnet=subnet)]),
            "labels": {LABEL: cluster},
            # Docker before 25 makes a second network of the same name otherwise.
            "check_duplicate": True,
        }
    )
    network.name = cluster
    return network


def container_of(cluster: str, machine: Machine, *, image: str, subnet: str) -> DockerContainer:
    """The container of a machine, not started yet.

    A runner has a disk of its own for /var/lib, where the projects' files are. Unlike the file system of a real host,
    Docker's overlayfs does not support mounts with mapped ids, which systemd 257 and later use for a service's state. A
    machine that is removed and started again keeps its disk.
    """
    name = f"{cluster}-{machine.name}"
    container = (
        DockerContainer(image)
        .with_name(name)
        .with_command(["/sbin/natskit-init"])
        # Tells systemd that it runs in a container.
        .with_env("container", "docker")
        # systemd wants /run empty at every boot.
        .with_tmpfs_mount("/run")
    )
    # The image is built here. The prefix in TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX is for images of a registry.
    container.image = image
    if machine.role == "runner":
        container.with_volume_mapping(name, "/var/lib", "rw")
    address = f"{subnet.rpartition('.')[0]}.{machine.number}"
    docker = container.get_docker_client().client
    endpoint = docker.api.create_endpoint_config(aliases=[machine.name], ipv4_address=address)
    return container.with_kwargs(
        hostname=machine.name,
        labels={LABEL: cluster, ROLE_LABEL: machine.role},
        # testcontainers' own `with_network` cannot give a fixed address.
        network=cluster,
        networking_config={cluster: endpoint},
        # systemd shuts down at this signal.
        stop_signal="SIGRTMIN+3",
        cap_add=[
            # Docker's first process is systemd: it mounts cgroups and file systems, for itself and for its units'
            # sandboxes.
            "SYS_ADMIN",
            # A unit with PrivateUsers= and ProtectProc= reads /proc of its own first process, which is another user's
            # by then.
            "SYS_PTRACE",
            # The runner measures the files of projects, which are not its own.
            "DAC_READ_SEARCH",
        ],
        # Docker's filter refuses these system calls to every process, and its AppArmor profile every mount.
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
        # Its own part of the cgroup tree as the root of it; the host's would be shared: one system.slice for all.
        cgroupns="private",
    )
