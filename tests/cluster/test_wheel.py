"""A user who has only installed natskit deploys from an empty folder, by SSH, to one machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.lifecycle import Listed, listed
from cluster.machines import Machine
from tests.cluster.site import DEBIAN, docker
from tests.kit.clusters import own_cluster
from tests.kit.wheel import Installed, build
from tests.platform.site import REPOSITORY

MACHINE = Machine("all-1", "runner", 51)
"""It plays every role; as a runner it has a disk of its own."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Listed]:
    """A separate machine without a deploy."""
    with own_cluster(DEBIAN, [MACHINE]) as name:
        (machine,) = listed(name)
        docker("exec", machine.container, "systemctl", "start", "ssh")
        yield machine


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    return Installed.make(folder / "environment", build(folder), "deploy")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory, machine: Listed) -> Path:
    """A key that may log in to the machine as root. ``known_hosts`` beside it has the machine's key."""
    key = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    public = key.with_suffix(".pub").read_text().strip()
    docker("exec", machine.container, "sh", "-c", f"mkdir -p -m 700 ~/.ssh && echo '{public}' > ~/.ssh/authorized_keys")
    kind, host_key, *_ = docker("exec", machine.container, "cat", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.split()
    key.with_name("known_hosts").write_text(f"{machine.address} {kind} {host_key}\n")
    return key


def test_init_and_deploy_from_an_empty_folder(installed: Installed, key: Path, machine: Listed, tmp_path: Path) -> None:
    def natskit(*words: str) -> str:
        return installed.run("natskit", *words, cwd=tmp_path).stdout

    where = "import natskit, sys; print(natskit.__file__, *sys.path)"
    assert str(REPOSITORY) not in installed.run("python", "-c", where, cwd=tmp_path).stdout

    hosts = [word for role in ("nats", "hub", "proxy", "runner") for word in (f"--{role}", machine.address)]
    login = ("--user", "root", "--key", str(key))
    told = natskit("init", *hosts, *login, "--domain", machine.address, "--admin", "ada@example.org")
    assert {path.name for path in tmp_path.iterdir()} == {"inventory.py", "group_data", "platform"}
    assert [line.split(maxsplit=1)[1] for line in told.splitlines()[-2:]] == ["deploy --dry", "deploy"]
    with (tmp_path / "group_data" / "all.py").open("a") as settings:
        # The user who runs these tests has not logged in there before.
        settings.write(f"ssh_known_hosts_file = {str(key.with_name('known_hosts'))!r}\n")

    natskit("deploy", "--dry")
    assert not (tmp_path / "platform" / "identity").exists(), "a dry run makes no keys"
    done = natskit("deploy")
    assert f"natskit is up: https://{machine.address}" in done
    assert str(REPOSITORY) not in done

    parts = json.loads(natskit("status", "--json"))["parts"]
    assert {part["state"] for part in parts} == {"ok"}
    assert {part["name"] for part in parts} >= {"proxy", "console", "bus", "runner"}
    natskit("project", "create", "ada@example.org", "First steps")
    assert natskit("exec", "First steps", "--start", "--", "cat", "/etc/debian_version").startswith(DEBIAN)
    assert "nothing to change" in natskit("deploy")
