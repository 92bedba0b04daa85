"""The same deploy as a user with sudo, at the machines' addresses. It changes nothing after a deploy as root."""

from __future__ import annotations

import json
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.site import Cluster, docker
from tests.kit.wait import wait_for
from tests.platform.site import REPOSITORY, Deployed

USER = "deploy"
SUDOERS = f"/etc/sudoers.d/{USER}"
ROLES = ("nats", "hub", "proxy", "runner")


@dataclass(frozen=True)
class OverSsh:
    """An inventory of a cluster's machines, in the form of inventories/example.py."""

    cluster: Cluster
    folder: Path

    def write(self, known_hosts: str, **own: dict[str, str]) -> None:
        """Write the inventory and the hosts' keys. ``hub_2=…`` adds data to hub-2."""
        with pytest.MonkeyPatch.context() as patched:
            for name in ("NATSKIT_CLUSTER", "NATSKIT_CONTROL"):
                patched.setenv(name, self.cluster.environment[name])
            groups = runpy.run_path(str(REPOSITORY / self.cluster.inventory))
        lines = []
        for role in ROLES:
            # The same data, at the address of each machine, but for how root logs in.
            hosts = [
                (
                    machine["platform_address"],
                    {key: value for key, value in machine.items() if not key.startswith("ssh_")}
                    | own.get(machine["platform_name"].replace("-", "_"), {}),
                )
                for _, machine in groups[role]
            ]
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
        """Deploy with the cluster's settings and these changes."""
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

    def known_hosts(self) -> str:
        """The keys of all machines, with their current addresses."""
        return "".join(map(self.host_key, self.cluster.machines))

    def host_key(self, machine: str) -> str:
        """The known_hosts line of a machine, read on the machine and not over the network."""
        kind, key, *_ = self.cluster.sh(machine, "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()
        return f"{self.cluster.address(machine)} {kind} {key}\n"


@pytest.fixture(scope="module")
def ssh(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OverSsh]:
    """Every machine of the cluster accepts the key of ``deploy``, who may do everything by sudo."""
    found = OverSsh(cluster, tmp_path_factory.mktemp("ssh"))
    key = found.folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    for machine in cluster.machines:
        cluster.sh(
            machine,
            f"useradd --create-home --shell /bin/bash {USER} "
            f"&& install -d -m 700 -o {USER} -g {USER} /home/{USER}/.ssh "
            f"&& echo '{key.with_suffix('.pub').read_text().strip()}' > /home/{USER}/.ssh/authorized_keys "
            f"&& echo '{USER} ALL=(ALL) NOPASSWD: ALL' > {SUDOERS}",
        )
    found.write(found.known_hosts())
    yield found
    for machine in cluster.machines:
        cluster.sh(
            machine,
            f"rm -f {SUDOERS}; pkill -u {USER}; userdel --remove --force {USER}",
            check=False,
        )


@pytest.fixture
def settings_back(ssh: OverSsh) -> Iterator[None]:
    """Restore the settings of all machines after the test."""
    yield
    ssh.deploy()


def test_nothing_is_left_to_do_where_root_deployed(ssh: OverSsh) -> None:
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


SHELL_FILE = """
echo "Welcome to $(hostname)"
echo "a complaint" >&2
umask 077
printf 'and no end of line'
"""


@pytest.fixture
def talkative(ssh: OverSsh) -> Iterator[OverSsh]:
    """The user's shell prints something before each command, and has a strict umask."""
    for machine in ssh.cluster.machines:
        ssh.cluster.sh(machine, f"printf %s {shlex.quote(SHELL_FILE)} > /home/{USER}/.bashrc")
    yield ssh
    for machine in ssh.cluster.machines:
        ssh.cluster.sh(machine, f"rm /home/{USER}/.bashrc")


def closed(ssh: OverSsh, machine: str) -> str:
    """Files of the programs that not every user of a machine may read."""
    return ssh.cluster.sh(machine, "find /opt/natskit ! -type l ! -perm -444 -o -type d ! -perm -755").stdout


def test_what_the_shell_of_the_user_prints_is_no_answer(talkative: OverSsh) -> None:
    assert talkative.changes() == {}


@pytest.mark.usefixtures("settings_back")
def test_the_umask_of_the_user_closes_nothing_and_what_it_closed_is_opened(talkative: OverSsh) -> None:
    cluster = talkative.cluster
    # As a deploy left them that took the umask: a folder of programs, the console, the CA that projects read.
    cluster.sh("hub-1", "chmod 700 /opt/natskit/programs")
    cluster.sh("proxy-1", "chmod -R go= /opt/natskit/console")
    cluster.sh("runner-1", "chmod 600 /var/lib/natskit/ca.crt")
    cluster.sh("nats-3", "rm -r /opt/natskit/nats-server")
    said = {part["name"]: part for part in status(cluster)}
    assert said["console"]["state"] == "failed"
    assert said["console"]["detail"] == f"{cluster.url}/ answers 404"

    assert talkative.changes().keys() == {"hub-1", "proxy-1", "runner-1", "nats-3"}
    assert {machine: closed(talkative, machine) for machine in cluster.machines} == dict.fromkeys(cluster.machines, "")
    assert cluster.sh("runner-1", "stat -c %a /var/lib/natskit/ca.crt").stdout.strip() == "644"
    with cluster.http() as browser:
        assert "natskit console" in browser.get("/").text
    cluster.natskit("ready")
    assert talkative.changes() == {}


def test_an_address_that_the_other_hosts_do_not_know_is_refused_before_any_is_changed(ssh: OverSsh) -> None:
    ssh.write(ssh.known_hosts(), hub_2={"platform_address": "alias"}, nats_3={"platform_address": "other-alias"})
    try:
        done = ssh.deploy()
    finally:
        ssh.write(ssh.known_hosts())
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Starting operation" not in said
    address = ssh.cluster.address
    assert f"{address('proxy-1')}: it cannot reach alias:8101 of hub-2 (the name is not known here" in said
    (line,) = [line for line in said.splitlines() if "it cannot reach other-alias:4222 of nats-3" in line]
    users = ("nats-1", "nats-2", "hub-1", "hub-2", "runner-1", "runner-2")
    assert all(address(machine) in line for machine in users)
    assert "this machine cannot reach other-alias:4222" in said
    assert ssh.changes() == {}


def status(cluster: Cluster) -> list[dict[str, str]]:
    """What ``natskit status`` says of each part."""
    parts: list[dict[str, str]] = json.loads(cluster.natskit("status", "--json", check=False).stdout)["parts"]
    return parts


@pytest.fixture
def moved(ssh: OverSsh) -> Iterator[Callable[[str, str], None]]:
    """Give a machine another address under its old name. Restored at the end."""
    own = {machine: ssh.cluster.address(machine) for machine in ssh.cluster.machines}

    def move(machine: str, address: str) -> None:
        network, container = ssh.cluster.name, ssh.cluster.container(machine)
        docker("network", "disconnect", network, container)
        docker("network", "connect", "--ip", address, "--alias", machine, network, container)

    yield move
    for machine, address in own.items():
        if ssh.cluster.address(machine) != address:
            move(machine, address)
    ssh.write(ssh.known_hosts())
    assert ssh.deploy().returncode == 0
    ssh.cluster.natskit("ready")


def test_a_hub_at_another_address_is_missed_by_status_and_found_by_the_next_deploy(
    ssh: OverSsh, moved: Callable[[str, str], None]
) -> None:
    cluster = ssh.cluster
    names = {"hub_1": {"platform_address": "hub-1"}, "hub_2": {"platform_address": "hub-2"}}
    ssh.write(ssh.known_hosts(), **names)
    assert ssh.deploy().returncode == 0
    assert ssh.changes() == {}
    cluster.natskit("ready")

    moved("hub-2", f"{cluster.address('hub-2').rpartition('.')[0]}.29")
    ssh.write(ssh.known_hosts(), **names)

    def missed() -> bool:
        found = {part["name"]: part for part in status(cluster)}
        assert found["hub-2"]["state"] == "ok"
        assert found["proxy"]["state"] == "warning"
        return "does not reach hub-2, which works: " in found["proxy"]["detail"]

    wait_for(missed, "status misses nothing", seconds=60)
    assert ssh.changes() == {"proxy-1": {"Render nginx.conf", "Reload proxy"}}
    reached = {"hub-2": "ok", "proxy": "ok"}
    wait_for(
        lambda: {part["name"]: part["state"] for part in status(cluster) if part["name"] in reached} == reached,
        "the proxy reaches the hub where it is",
        seconds=60,
    )
    assert ssh.changes() == {}
