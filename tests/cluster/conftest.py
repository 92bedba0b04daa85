"""One Docker cluster for all tests of this folder: its machines, people and projects."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.site import Cluster, Neighbours, Shell, brought_up, running
from tests.platform.site import World, populate


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for the whole run. If NATSKIT_TEST_CLUSTER names a running one, the tests use it and leave it
    running."""
    name = os.environ.get("NATSKIT_TEST_CLUSTER")
    with running(name) if name else brought_up(tmp_path_factory.mktemp("cluster") / "control") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def site(cluster: Cluster) -> Cluster:
    """The site on which tests of the one-machine platform run here."""
    return cluster


@pytest.fixture(scope="session")
def world(cluster: Cluster) -> World:
    """Two accounts with a running project each."""
    return populate(cluster)


@pytest.fixture(scope="session")
def project_shell(cluster: Cluster) -> Iterator[Shell]:
    """Run a line of shell in a running project."""
    with Shell(cluster) as shell:
        yield shell


@pytest.fixture(scope="module")
def neighbours(cluster: Cluster, world: World) -> Neighbours:
    """Two running projects of one person on one machine. Each module has its own, since some tests fill theirs."""
    machines: dict[str, str] = {}
    # Projects are spread over the runners: of three, two share one.
    for number in range(3):
        project_id = cluster.natskit_json("project", "create", world.email_b, f"Neighbour {number}")["project_id"]
        cluster.natskit("project", "start", project_id)
        machine = cluster.machine_of(project_id)
        if machine in machines:
            return Neighbours(machine, machines[machine], project_id)
        machines[machine] = project_id
    raise AssertionError(f"no two projects are on one machine: {machines}")
