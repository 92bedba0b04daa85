"""A backup from the control machine holds the files of projects on two other hosts, and brings them back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.identity import passphrase
from natskit.runner.agent_unit import instance_of
from tests.cluster.site import RUNNERS, Cluster, Shell, docker
from tests.platform.site import World

HOMES = "/var/lib/private/natskit-project"


class Backups:
    """The command on the control machine, with a target of its own."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self.target = cluster, folder / "target"
        (folder / "passphrase").write_text("correct horse battery staple")
        self._environment = {"NATSKIT_BACKUP_TARGET": str(self.target)} | {
            passphrase.COMMAND: f"cat {folder / 'passphrase'}"
        }

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [Path(sys.executable).with_name("natskit"), "backup", *words],
            env=self._cluster.environment | self._environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr + self._cluster.logs()
        return done


@pytest.fixture(scope="module")
def backup(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backups]:
    yield Backups(cluster, tmp_path_factory.mktemp("backup"))
    for machine in RUNNERS:
        cluster.sh(machine, "rm -f /usr/local/bin/restic")


@pytest.fixture(scope="module")
def projects(cluster: Cluster, world: World, project_shell: Shell) -> dict[str, str]:
    """A running project with files on each host, by machine. It writes one of them all the time."""
    found: dict[str, str] = {}
    for number in range(4):
        project_id = cluster.natskit_json("project", "create", world.email_a, f"Backed up {number}")["project_id"]
        cluster.natskit("project", "start", project_id)
        found.setdefault(cluster.machine_of(project_id), project_id)
        if len(found) == len(RUNNERS):
            break
    assert len(found) == len(RUNNERS), f"all projects are on one machine: {found}"
    for machine, project_id in found.items():
        done = project_shell(
            project_id,
            f"echo from {machine} > file; mkdir -p a/b; head -c 3000000 /dev/urandom > a/b/big; ln -s file link; "
            "chmod 640 file; printf x > $(printf '\\377'); (while :; do date +%N > busy; done) >/dev/null 2>&1 &",
        )
        assert done.returncode == 0, done
    return found


def install_restic(cluster: Cluster) -> None:
    """The machines have no way out, so this one gives them its own."""
    program = shutil.which("restic")
    assert program is not None
    for machine in RUNNERS:
        docker("cp", os.path.realpath(program), f"{cluster.container(machine)}:/usr/local/bin/restic")


def test_a_host_that_cannot_take_part_is_named(cluster: Cluster, backup: Backups, projects: dict[str, str]) -> None:
    assert len(projects) == len(RUNNERS)
    done = backup("create", check=False)
    assert done.returncode == 1
    assert "restic is not installed on this host: run `apt-get install restic` there" in done.stderr
    assert "runner runner-" in done.stderr
    assert not list(backup.target.glob("*Z*"))
    install_restic(cluster)
    cluster.sh(RUNNERS[1], "systemctl stop natskit-runner")
    try:
        done = backup("create", check=False)
    finally:
        cluster.sh(RUNNERS[1], "systemctl start natskit-runner")
    assert done.returncode == 3
    assert f"runner {RUNNERS[1]} does not answer" in done.stdout
    assert done.stderr.endswith(f"natskit: the backup lacks the files of runner {RUNNERS[1]}\n")
    shutil.rmtree(next(backup.target.glob("*Z*")))
    cluster.natskit("ready", "--timeout", "100")


def test_files_of_both_hosts_are_taken_while_projects_run(
    cluster: Cluster, backup: Backups, projects: dict[str, str], project_shell: Shell
) -> None:
    install_restic(cluster)
    said = backup("create").stdout
    for machine, project_id in projects.items():
        assert f"runner {machine}: " in said
        assert f"{instance_of(project_id)}/busy was written each time it was read" in said
        assert project_shell(project_id, "pgrep -fc 'date' >/dev/null; cat file").stdout == f"from {machine}\n"
        assert cluster.sh(machine, "ls -A /var/lib/natskit/runner").stdout.split().count("backup") == 0
    files = sum(path.stat().st_size for path in backup.target.glob("files/**/*") if path.is_file())
    backup("create", "--rate", "20000")
    again = sum(path.stat().st_size for path in backup.target.glob("files/**/*") if path.is_file())
    assert again - files < 2_000_000, "what has not changed is not stored again"
    said = backup("verify").stdout
    assert said.count("all hashes are right") == len(RUNNERS)
    assert "The backup is good." in said


def test_one_project_comes_back_on_its_host(
    cluster: Cluster, backup: Backups, projects: dict[str, str], project_shell: Shell, tmp_path: Path
) -> None:
    machine, project_id = next(iter(projects.items()))
    other = projects[next(one for one in RUNNERS if one != machine)]
    for one in (project_id, other):
        project_shell(one, "rm -rf a file; echo later > file")
    refused = backup("restore", "--project", project_id, "--overwrite", check=False)
    assert f"projects run whose files would be replaced: stop them with `natskit project stop {project_id}" in (
        refused.stderr
    )
    assert project_shell(project_id, "cat file").stdout == "later\n"
    cluster.natskit("project", "stop", project_id)
    backup("restore", "--project", project_id, "--overwrite")
    cluster.natskit("project", "start", project_id)
    done = project_shell(project_id, "cat link; stat -c '%U %a' file; stat -c %s a/b/big; ls | wc -l")
    assert done.stdout.splitlines() == [f"from {machine}", f"{instance_of(project_id)} 640", "3000000", "5"], done
    assert project_shell(other, "cat file").stdout == "later\n", "another project keeps its files"
    backup("files", other, "file", "--to", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == f"from {next(m for m, p in projects.items() if p == other)}\n"
    for name in RUNNERS:
        assert ".restored" not in cluster.sh(name, f"ls -A {HOMES}").stdout


def test_everything_comes_back_on_both_hosts(
    cluster: Cluster, backup: Backups, projects: dict[str, str], project_shell: Shell
) -> None:
    for machine, project_id in projects.items():
        project_shell(project_id, f"echo now {machine} > file; pkill -f date")
    backup("create")
    running = [one["project_id"] for one in cluster.natskit_json("project", "list") if one["state"] == "running"]
    for project_id in projects.values():
        project_shell(project_id, "echo lost > file; touch added")
    for project_id in running:
        cluster.natskit("project", "stop", project_id)
    said = backup("restore", "--overwrite").stdout
    assert "The platform is open again" in said
    cluster.natskit("ready", "--timeout", "100")
    for project_id in running:
        cluster.natskit("project", "start", project_id)
    for machine, project_id in projects.items():
        assert project_shell(project_id, "cat file; ls added").stdout == f"now {machine}\n"
