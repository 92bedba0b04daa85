"""A Docker cluster for each run of the tests: one that no other run has, and that outlives none of them.

Where its image can be had, testcontainers' reaper removes what a killed run has left, ten seconds later. Elsewhere, and
where the reaper fails, the next run does: it removes every cluster of tests whose run has ended.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Iterator

import requests
from docker.errors import DockerException, ImageNotFound
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import Reaper
from testcontainers.core.docker_client import DockerClient

from cluster import lifecycle
from cluster.machines import MACHINES, RELEASES, Machine
from tests.kit.ports import claim, release

SUFFIXES = ("", *(f"-{letter}" for letter in "bcdefgh"))
"""Of the names of clusters, one for each run on this machine at the same time."""
REGISTRY_SECONDS = 10
"""How long a registry may take to answer."""


@contextlib.contextmanager
def own_cluster(debian: str, machines: Iterable[Machine] = MACHINES) -> Iterator[str]:
    """The name of a running cluster that only this run uses, and that is removed at the end."""
    remove_leftovers()
    start_reaper()
    name = _own_name(debian)
    try:
        lifecycle.up(name, free_subnet(), debian=debian, machines=machines)
        yield name
    finally:
        lifecycle.down(name)
        release(_claim_of(name))


def remove_leftovers() -> None:
    """Remove the clusters of test runs that ended without removing them. Active runs claim theirs."""
    of_tests = re.compile(f"natskit-test-({'|'.join(RELEASES)})({'|'.join(SUFFIXES)})")
    for name in filter(of_tests.fullmatch, lifecycle.names()):
        if claim(_claim_of(name)):
            try:
                lifecycle.down(name)
            finally:
                release(_claim_of(name))


def start_reaper() -> None:
    """Start testcontainers' reaper for this process, or disable it where its image cannot be had.

    A reaper that cannot be reached (testcontainers-python issue 1093) must not stop the tests either.
    """
    if testcontainers_config.ryuk_disabled:
        return
    try:
        if _is_available(testcontainers_config.ryuk_image):
            Reaper.get_instance()
            return
    except (DockerException, OSError):
        Reaper.delete_instance()
    testcontainers_config.ryuk_disabled = True


def free_subnet() -> str:
    """A subnet that neither a network of Docker nor another test run uses."""
    docker = DockerClient().client
    try:
        networks = [network.attrs for network in docker.networks.list()]
    finally:
        docker.close()
    taken = [
        ipaddress.ip_network(config["Subnet"]) for network in networks for config in network["IPAM"]["Config"] or []
    ]
    for number in range(90, 120):
        subnet = ipaddress.ip_network(f"172.31.{number}.0/24")
        overlaps = any(subnet.version == other.version and subnet.overlaps(other) for other in taken)
        if not overlaps and claim(f"subnet/{subnet}"):
            return str(subnet)
    raise AssertionError("no 172.31.90.0/24 to 172.31.119.0/24 is free in Docker")


def _own_name(debian: str) -> str:
    """A name that only this process has, until it ends or releases the name."""
    for suffix in SUFFIXES:
        name = f"natskit-test-{debian}{suffix}"
        if claim(_claim_of(name)):
            return name
    raise AssertionError(f"{len(SUFFIXES)} other runs of these tests have a cluster at this moment")


def _claim_of(name: str) -> str:
    return f"cluster/{name}"


def _is_available(image: str) -> bool:
    """Whether Docker has an image, or a registry that has it answers."""
    docker = DockerClient(timeout=REGISTRY_SECONDS).client
    try:
        docker.images.get(image)
    except ImageNotFound:
        try:
            docker.images.get_registry_data(image)
        except (DockerException, requests.RequestException):
            return False
    finally:
        docker.close()
    return True
