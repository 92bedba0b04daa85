"""Clusters start, are found again, and leave nothing behind. The tests use clusters of one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.lifecycle import ClusterError, down, listed, names, up
from cluster.machines import LABEL, MACHINES, image_of
from tests.cluster.site import DEBIAN, docker
from tests.kit.clusters import own_cluster, remove_leftovers
from tests.kit.wait import wait_for
from tests.platform.site import REPOSITORY

(RUNNER,) = [machine for machine in MACHINES if machine.name == "runner-1"]
OTHER_RELEASE = {"12": "13", "13": "12"}[DEBIAN]
RUN = f"""
import sys
from cluster.machines import MACHINES
from tests.kit.clusters import own_cluster
with own_cluster({DEBIAN!r}, [machine for machine in MACHINES if machine.name == {RUNNER.name!r}]) as name:
    print(name, flush=True)
    sys.stdin.read()
"""
"""Another run of the tests, which has a machine until its input ends."""


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """A cluster of one machine."""
    with own_cluster(DEBIAN, [RUNNER]) as name:
        yield name


def again(name: str) -> None:
    """Start the cluster a second time, as its owner would."""
    up(name, debian=DEBIAN, machines=[RUNNER])


def state(name: str) -> list[str]:
    return [machine.state for machine in listed(name)]


def everything(name: str) -> str:
    """All containers, networks and volumes of a cluster that Docker still has."""
    kinds = (("ps", "--all"), ("network", "ls"), ("volume", "ls"))
    return "".join(docker(*kind, "--quiet", "--filter", f"label={LABEL}={name}").stdout for kind in kinds)


def test_two_runs_at_once_have_a_cluster_each_and_a_killed_one_leaves_nothing(small: str) -> None:
    # The reaper, where there is one, does the same some seconds later: here the next run is to do it.
    environment = os.environ | {"TESTCONTAINERS_RYUK_DISABLED": "true"}
    command = [sys.executable, "-c", RUN]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        other = run.stdout.readline().strip()
        try:
            assert other not in {small, ""}
            remove_leftovers()
            assert state(other) == ["running"], "a run that goes on keeps its cluster"
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait(10)
    assert len(everything(other).split()) == 3, "a killed run removes nothing: a container, a network and a disk stay"
    remove_leftovers()
    assert everything(other) == ""
    assert other not in names()
    assert state(small) == ["running"]


def test_a_run_that_ends_leaves_nothing(small: str) -> None:
    with own_cluster(DEBIAN, [RUNNER]) as name:
        assert name != small
        assert everything(name)
    assert everything(name) == ""


@pytest.mark.parametrize("stopping", ["stop", "pause", "kill"])
def test_a_machine_that_does_not_run_is_started_again(small: str, stopping: str) -> None:
    docker(stopping, f"{small}-{RUNNER.name}")
    assert state(small) != ["running"]
    again(small)
    assert state(small) == ["running"]


def test_a_removed_machine_comes_back_with_its_disk(small: str) -> None:
    container = f"{small}-{RUNNER.name}"
    docker("exec", container, "touch", "/var/lib/kept")
    docker("rm", "--force", container)
    again(small)
    docker("exec", container, "test", "-e", "/var/lib/kept")


def test_the_command_lists_machines(small: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "list", small], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    (machine,) = listed(small)
    assert done.stdout == f"{small}-runner-1 runner {machine.address} running\n"
    assert machine.address.endswith(".41")


def test_machines_of_another_release_are_noticed(small: str, capfd: pytest.CaptureFixture[str]) -> None:
    again(small)
    assert "another recipe" not in capfd.readouterr().out
    up(small, debian=OTHER_RELEASE, machines=())
    assert f"run another release than Debian {OTHER_RELEASE}: " in capfd.readouterr().out


def test_what_has_the_name_of_a_machine_is_refused(small: str) -> None:
    hub = next(machine for machine in MACHINES if machine.role == "hub")
    container = f"{small}-{hub.name}"
    docker("create", "--name", container, image_of(DEBIAN), "true")
    try:
        with pytest.raises(ClusterError, match=f"there is a container {container} that is not of this cluster"):
            up(small, debian=DEBIAN, machines=[hub])
    finally:
        docker("rm", container)


def test_what_has_the_name_of_a_disk_is_refused(small: str) -> None:
    other = next(machine for machine in MACHINES if machine.name == "runner-2")
    docker("volume", "create", f"{small}-{other.name}")
    try:
        with pytest.raises(ClusterError, match=f"there is a Docker volume {small}-{other.name} that is not of this"):
            up(small, debian=DEBIAN, machines=[other])
    finally:
        docker("volume", "rm", f"{small}-{other.name}")


def test_what_has_the_name_of_a_network_is_refused(small: str) -> None:
    name = f"{small}-foreign"
    docker("network", "create", "--internal", "--subnet", "172.31.120.0/24", name)
    try:
        with pytest.raises(ClusterError, match=f"there is a Docker network {name} that is not of this cluster"):
            up(name, debian=DEBIAN, machines=())
        assert not down(name), "it is not removed either"
    finally:
        docker("network", "rm", name)


def test_another_subnet_than_it_has_is_refused(small: str) -> None:
    (machine,) = listed(small)
    subnet = machine.address.rpartition(".")[0] + ".0/24"
    with pytest.raises(
        ClusterError, match=rf"cluster {small} is in {subnet}, not in 172.31.9.0/24: to move it, .* down"
    ):
        up(small, "172.31.9.0/24", debian=DEBIAN)
    with pytest.raises(
        ClusterError, match=rf"(?s)the network {subnet} cannot be created: .*\nchoose another: .* up {small}-2 172"
    ):
        up(f"{small}-2", subnet, debian=DEBIAN)


def test_the_last_words_of_a_machine_that_ends_are_told(small: str, tmp_path: Path) -> None:
    container = f"{small}-{RUNNER.name}"
    init = tmp_path / "init"
    init.write_text("#!/bin/sh\necho this is the end\nexit 1\n")
    init.chmod(0o755)
    docker("stop", container)
    docker("cp", str(init), f"{container}:/sbin/natskit-init")
    with pytest.raises(ClusterError, match=rf"{container} ended; the end of its log:\nthis is the end"):
        again(small)
    docker("rm", "--force", container)
    again(small)
    wait_for(lambda: state(small) == ["running"], "the machine runs")


@pytest.mark.parametrize(
    ("name", "subnet", "debian", "refused"),
    [
        ("Natskit", "", "13", "Natskit cannot be the name of a cluster: use lower-case letters, digits and -"),
        ("natskit", "172.31.9.0", "13", "172.31.9.0 is not a subnet of the form 172.31.78.0/24"),
        ("natskit", "172.31.9.1/24", "13", "172.31.9.1/24 is not a subnet of the form 172.31.78.0/24"),
        ("natskit", "", "11", "NATSKIT_DEBIAN=11: the machines can run Debian 12 or 13"),
    ],
)
def test_what_is_no_cluster_is_refused(name: str, subnet: str, debian: str, refused: str) -> None:
    with pytest.raises(ClusterError, match=refused):
        up(name, subnet, debian=debian)
