"""A runner's host goes from Debian 12 to 13, with its projects: the next deploy is all that it takes.

A machine of Debian 12 takes the place of one of 13. Then one of 13 takes its place again, with the disk of /var/lib and
with what natskit had put into /opt and /etc: what an upgrade leaves as it was.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.lifecycle import up
from tests.cluster.site import DEBIAN, Cluster, docker

MACHINE = "runner-2"
KEPT = "/opt/natskit /etc/systemd/system/natskit-*"

pytestmark = pytest.mark.skipif(DEBIAN != "13", reason="a machine of the cluster is what the host is upgraded to")


def replaced(cluster: Cluster, release: str, *, disk: bool) -> None:
    """Replace a machine by one of this release, with its ``disk`` or with a new one."""
    docker("rm", "--force", cluster.container(MACHINE))
    if not disk:
        docker("volume", "rm", cluster.container(MACHINE))
    up(cluster.name, debian=release)
    cluster.let_in()


@pytest.fixture(scope="module")
def old(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with a runner of Debian 12. At the end, a new machine of Debian 13 takes its place."""
    replaced(cluster, "12", disk=False)
    yield cluster
    replaced(cluster, "13", disk=False)
    assert cluster.deploy().returncode == 0
    cluster.natskit("ready")


def release(cluster: Cluster) -> str:
    return cluster.sh(MACHINE, ". /etc/os-release && echo $VERSION_ID").stdout.strip()


def test_its_projects_are_there_afterwards(old: Cluster) -> None:
    assert release(old) == "12"
    assert old.deploy().returncode == 0
    old.natskit("ready")
    email = f"upgrade@{old.domain}"
    old.natskit("account", "add", email, "--password-stdin", stdin="from twelve to thirteen")
    project_id = old.natskit_json("project", "create", email, "Kept")["project_id"]
    old.natskit("project", "move", project_id, "--runner", MACHINE)
    old.natskit("exec", project_id, "--start", "--", "sh", "-c", "mkdir -p a/b && echo 'written on 12' > a/b/file")
    old.sh(MACHINE, f"tar -cf /var/lib/kept.tar {KEPT}")

    replaced(old, "13", disk=True)
    assert release(old) == "13"
    old.sh(MACHINE, "tar -xf /var/lib/kept.tar -C / && rm /var/lib/kept.tar && systemctl daemon-reload")
    old.sh(MACHINE, "systemctl start natskit-runner", check=False)

    done = old.deploy()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    old.natskit("ready")
    said = old.natskit(
        "exec", project_id, "--start", "--", "sh", "-c", "cat a/b/file && echo new >> a/b/file && id -un"
    )
    assert said.stdout.splitlines()[0] == "written on 12"
