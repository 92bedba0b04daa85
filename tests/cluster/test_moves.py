"""A project moves with its files between two hosts, by the command that operators use."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator

import pytest

from natskit.runner.agent_unit import instance_of
from tests.cluster.site import RUNNERS, Cluster, Shell
from tests.platform.site import World

HOMES = "/var/lib/private/natskit-project"
LIST = """
import hashlib, json, os, stat, sys
top = os.fsencode(sys.argv[1])
found = []
for folder, folders, names in os.walk(top):
    for name in [b"", *folders, *names] if folder == top else [*folders, *names]:
        path = os.path.join(folder, name).rstrip(b"/")
        status = os.lstat(path)
        kind, more = stat.S_IFMT(status.st_mode), ""
        if kind == stat.S_IFLNK:
            more = os.readlink(path).hex()
        if kind == stat.S_IFREG:
            more = hashlib.sha256(open(path, "rb").read()).hexdigest()
        found.append([path[len(top):].hex(), kind, stat.S_IMODE(status.st_mode), status.st_mtime_ns, more])
print(json.dumps(sorted(found)))
"""


@pytest.fixture
def moved(cluster: Cluster, world: World) -> Iterator[str]:
    """A running project."""
    project_id = str(cluster.natskit_json("project", "create", world.email_a, "Moved")["project_id"])
    cluster.natskit("project", "start", project_id)
    yield project_id
    with contextlib.suppress(AssertionError):
        cluster.natskit("project", "delete", project_id, "--yes")


def facts(cluster: Cluster, machine: str, project_id: str) -> list[object]:
    home = f"{HOMES}/{instance_of(project_id)}"
    found: list[object] = json.loads(cluster.sh(machine, f"python3 -c {shlex.quote(LIST)} {home}").stdout)
    return found


def test_a_project_moves_between_two_hosts(cluster: Cluster, moved: str, project_shell: Shell) -> None:
    done = project_shell(
        moved,
        "mkdir -p deep/er empty; for i in $(seq 1500); do echo $i > deep/f$i; done; "
        "head -c 20000000 /dev/urandom > big; printf x > $(printf 'new\\nline'); "
        "printf y > $(printf '\\377'); ln -s /etc/passwd out; ln big second; "
        "chmod 500 deep; chmod 640 big; touch -d '2001-02-03 04:05:06.789' deep/f7; mkfifo pipe",
    )
    assert done.returncode == 0, done.stderr
    source = cluster.machine_of(moved)
    (target,) = set(RUNNERS) - {source}
    runners = [row["name"] for row in cluster.natskit_json("runner", "list")]
    names = {name.removeprefix(f"{cluster.name}-"): name for name in runners}
    refused = cluster.natskit("project", "move", moved, "--runner", names[target], check=False)
    assert "the project is running: stop it first" in refused.stderr
    cluster.natskit("project", "stop", moved)
    before = facts(cluster, source, moved)
    said = cluster.natskit("project", "move", moved, "--runner", names[target], "--stop")
    assert f"'Moved' is on {names[target]}." in said.stdout
    assert "verified: sha256 " in said.stdout
    assert facts(cluster, target, moved) == before
    assert cluster.machine_of(moved) == target
    assert instance_of(moved) not in cluster.sh(source, f"ls -A {HOMES}").stdout
    assert "arriving" not in cluster.sh(target, f"ls -A {HOMES}").stdout
    cluster.natskit("project", "start", moved)
    done = project_shell(moved, "stat -c '%U %a' deep big && echo more >> deep/f9 && rm out && ls -A | wc -l")
    user = instance_of(moved)
    assert done.stdout.splitlines()[:2] == [f"{user} 500", f"{user} 640"], done
    assert done.returncode == 0, "its files are its own there"
    # The host is lost, as far as anybody knows: the project begins without its files.
    cluster.natskit("project", "stop", moved)
    lost = cluster.natskit("project", "move", moved, "--runner", names[source], "--without-files", "--yes")
    assert f"'Moved' is on {names[source]}." in lost.stdout
    cluster.natskit("project", "start", moved)
    assert project_shell(moved, "test -e big").returncode == 1
    cluster.natskit("project", "stop", moved)
    # Nobody knows which of the two homes is wanted, so neither is removed.
    refused = cluster.natskit("project", "move", moved, "--runner", names[target], check=False)
    assert "has files of the project already" in refused.stderr
    cancelled = cluster.natskit("project", "move", moved, "--cancel")
    assert cancelled.stdout == f"'Moved' stays on {names[source]}.\n"
    home = f"{HOMES}/{instance_of(moved)}"
    cluster.sh(target, f"test -e {home}/big && rm -rf {home} /var/lib/natskit/runner/projects/{instance_of(moved)}")
