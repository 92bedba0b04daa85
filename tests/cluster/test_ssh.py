"""The same deploy over SSH, as a user with sudo: it has nothing to do where Docker's connector deployed."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.site import Cluster
from tests.platform.site import REPOSITORY, Deployed

USER = "deploy"
SUDOERS = f"/etc/sudoers.d/{USER}"
ROLES = ("nats", "hub", "proxy", "runner")


@dataclass(frozen=True)
class OverSsh:
    """An inventory, as inventories/example.py has it, of the machines of a cluster."""

    cluster: Cluster
    folder: Path

    def write(self, known_hosts: str) -> None:
        """Write the inventory, with the keys by which the hosts are known."""
        with pytest.MonkeyPatch.context() as patched:
            for name in ("NATSKIT_CLUSTER", "NATSKIT_CONTROL"):
                patched.setenv(name, self.cluster.environment[name])
            groups = runpy.run_path(str(REPOSITORY / self.cluster.inventory))
        lines = []
        for role in ROLES:
            # The same data, at the address of each machine instead of its container.
            hosts = [(machine["platform_address"], machine) for _, machine in groups[role]]
            lines.append(f"{role} = {hosts!r}")
        settings = {
            "ssh_user": USER,
            "ssh_key": str(self.folder / "key"),
            "ssh_known_hosts_file": str(self.folder / "known_hosts"),
            "ssh_strict_host_key_checking": "yes",
            "_sudo": True,
        }
        (self.folder / "group_data").mkdir(exist_ok=True)
        (self.folder / "inventory.py").write_text("\n".join(lines) + "\n")
        (self.folder / "group_data" / "all.py").write_text(
            "".join(f"{key} = {value!r}\n" for key, value in settings.items())
        )
        (self.folder / "known_hosts").write_text(known_hosts)

    def deploy(self, **overrides: str) -> Deployed:
        """Deploy with the settings the cluster has, and others on top."""
        data = self.cluster.data | overrides
        words = [word for key, value in data.items() for word in ("--data", f"{key}={value}")]
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("pyinfra")),
                *("-y", "--json", str(self.folder / "inventory.py"), "deploy.py", *words),
            ],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Deployed(done.returncode, done.stdout, done.stderr)

    def changes(self, **overrides: str) -> dict[str, set[str]]:
        """The operations that changed something, by machine."""
        names = {self.cluster.address(machine): machine for machine in self.cluster.machines}
        return {names[host]: set(changed) for host, changed in self.deploy(**overrides).changes.items()}

    def host_key(self, machine: str) -> str:
        """The line of known_hosts for a machine, asked not over the network but on the machine itself."""
        kind, key, *_ = self.cluster.sh(machine, "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()
        return f"{self.cluster.address(machine)} {kind} {key}\n"


@pytest.fixture(scope="module")
def ssh(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OverSsh]:
    """Every machine of the cluster lets ``deploy`` in by a key, and do everything by sudo."""
    found = OverSsh(cluster, tmp_path_factory.mktemp("ssh"))
    key = found.folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    for machine in cluster.machines:
        cluster.sh(
            machine,
            f"useradd --create-home {USER} && install -d -m 700 -o {USER} -g {USER} /home/{USER}/.ssh "
            f"&& echo '{key.with_suffix('.pub').read_text().strip()}' > /home/{USER}/.ssh/authorized_keys "
            f"&& echo '{USER} ALL=(ALL) NOPASSWD: ALL' > {SUDOERS} && systemctl start ssh",
        )
    found.write("".join(map(found.host_key, cluster.machines)))
    yield found
    for machine in cluster.machines:
        cluster.sh(
            machine,
            f"systemctl stop ssh; rm -f {SUDOERS}; pkill -u {USER}; userdel --remove --force {USER}",
            check=False,
        )


@pytest.fixture
def settings_back(ssh: OverSsh) -> Iterator[None]:
    """After the test, all machines have the settings again that they had before it."""
    yield
    ssh.deploy()


def test_nothing_is_left_to_do_for_ssh_where_docker_deployed(ssh: OverSsh) -> None:
    assert ssh.changes() == {}


@pytest.mark.usefixtures("settings_back")
def test_a_changed_setting_reaches_the_hosts_and_nothing_is_left_in_tmp(ssh: OverSsh) -> None:
    changed = ssh.changes(nats_write_deadline="11")
    servers = {machine for machine in ssh.cluster.machines if machine.startswith("nats-")}
    assert changed.keys() == servers
    assert all({"Render nats-server.conf", "Reload nats"} == names for names in changed.values())
    assert [json.loads(varz)["write_deadline"] for varz in ssh.cluster.monitor("varz")] == [11 * 10**9] * len(servers)
    for machine in servers:
        assert ssh.cluster.sh(machine, "ls /tmp | grep pyinfra", check=False).stdout == ""
        assert ssh.cluster.sh(machine, "stat -c '%a %U' /var/lib/natskit/nats/nats-server.conf").stdout.split() == [
            "600",
            "natskit-nats",
        ]


def test_a_user_without_sudo_is_refused_before_any_host_is_changed(ssh: OverSsh) -> None:
    ssh.cluster.sh("hub-2", f"mv {SUDOERS} /root/sudoers")
    try:
        done = ssh.deploy(nats_write_deadline="12")
    finally:
        ssh.cluster.sh("hub-2", f"mv /root/sudoers {SUDOERS}")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert f"{ssh.cluster.address('hub-2')}: {USER} may not use sudo, or not without a password" in said
    assert "Starting operation" not in said
    assert ssh.changes() == {}


def test_a_host_with_another_key_is_not_logged_into(ssh: OverSsh) -> None:
    keys = [ssh.host_key(machine) for machine in ssh.cluster.machines]
    stranger = "AAAAC3NzaC1lZDI1NTE5AAAAIHtM4mJYqGZ1bGq2nVYbq3hO8p0m6l1Yy0m8p3s4Qk5z"
    try:
        ssh.write("".join(f"{key.rpartition(' ')[0]} {stranger}\n" for key in keys))
        done = ssh.deploy()
    finally:
        ssh.write("".join(keys))
    assert done.returncode != 0
    assert "does not match" in done.stdout + done.stderr


@pytest.mark.usefixtures("settings_back")
def test_a_host_that_is_down_fails_alone_and_the_next_run_completes_it(ssh: OverSsh) -> None:
    ssh.cluster.sh("nats-3", "systemctl stop ssh")
    try:
        done = ssh.deploy(nats_write_deadline="13")
    finally:
        ssh.cluster.sh("nats-3", "systemctl start ssh")
    assert ssh.cluster.address("nats-3") in done.stdout + done.stderr
    count = "grep -c 'write_deadline.*13' /var/lib/natskit/nats/nats-server.conf"
    found = [ssh.cluster.sh(machine, count, check=False).stdout.strip() for machine in ("nats-1", "nats-2", "nats-3")]
    assert found == ["1", "1", "0"]
    assert ssh.changes(nats_write_deadline="13").keys() == {"nats-3"}


def test_a_host_of_another_platform_is_not_given_new_keys(ssh: OverSsh, tmp_path: Path) -> None:
    inventory = ssh.folder / "inventory.py"
    good = inventory.read_text()
    inventory.write_text(good.replace(repr(str(ssh.cluster.root)), repr(str(tmp_path / "other"))))
    try:
        done = ssh.deploy()
    finally:
        inventory.write_text(good)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    (line,) = [line for line in said.splitlines() if ": it belongs to a platform" in line]
    assert all(ssh.cluster.address(machine) in line for machine in ssh.cluster.machines)
    assert ssh.changes() == {}


def test_a_taken_port_of_a_host_is_named_with_the_process_that_has_it(ssh: OverSsh) -> None:
    ssh.cluster.sh("hub-1", "systemd-run --quiet --unit squatter python3 -m http.server 8700")
    try:
        done = ssh.deploy(hub_port="8700")
    finally:
        ssh.cluster.sh("hub-1", "systemctl stop squatter")
    assert done.returncode != 0
    assert f"{ssh.cluster.address('hub-1')}: port 8700 is taken by process " in done.stdout + done.stderr
    assert ssh.changes() == {}
