"""What a project tries and must not get, from inside, with another project on the same machine.

Each attempt is a command of project A; what is written in capitals is filled in with facts about its neighbour B.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from natskit.runner.agent_unit import instance_of, unit_of
from tests.cluster.site import Cluster, Neighbours, docker
from tests.kit.wait import wait_for

RUNNER = "/var/lib/natskit/runner"
METADATA = "169.254.169.254"
BOMB_SECONDS = 4.0

Outcome = subprocess.CompletedProcess[str]
ProjectShell = Callable[[str, str], Outcome]
"""Run a line of shell in a running project, by its id."""


def _fails(outcome: Outcome) -> bool:
    return outcome.returncode != 0


def _says_nothing(outcome: Outcome) -> bool:
    return not outcome.stdout.strip()


def _python(code: str) -> str:
    return f"python3 - <<'END'\n{code}\nEND"


ASK_METADATA = f"""python3 -c "import socket; socket.create_connection(('{METADATA}', 8080), 2)" """


_THREADS = """
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=(60,)).start()
    except RuntimeError:
        pass
"""
_OPEN_FILES = """
import os
opened = []
try:
    while True:
        opened.append(os.open("/dev/null", 0))
except OSError:
    print(len(opened))
"""
_SYSTEM_CALL = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); "

ESCAPES: list[tuple[str, str, Callable[[Outcome], bool]]] = [
    ("read the other's home", "cat /var/lib/private/natskit-project/OTHER/secret", _fails),
    ("read the other's home by its public name", "cat /var/lib/natskit-project/OTHER/secret", _fails),
    (
        "see who else is here",
        "ls /var/lib/natskit-project || ls -A /var/lib/private/natskit-project/ | grep -v OWN",
        _fails,
    ),
    ("read the other's home through its process", "cat /proc/OTHER_PID/root/home/project/secret", _fails),
    ("read the other's creds", "cat /run/credentials/natskit-project@OTHER.service/project.creds", _fails),
    ("see the other's credentials folder", "ls /run/credentials | grep -v OWN", _fails),
    ("read the other's creds where the runner wrote them", f"cat {RUNNER}/projects/OTHER/project.creds", _fails),
    ("read the runner's creds", f"cat {RUNNER}/runner.creds {RUNNER}/runner.json", _fails),
    ("list the platform's folder", "ls /var/lib/natskit", _fails),
    ("see processes of others", 'ps -eo uid= | tr -d " " | grep -vx "$(id -u)"', _fails),
    ("read the other's environment", "cat /proc/OTHER_PID/environ /proc/OTHER_PID/cmdline", _fails),
    ("read the runner's memory map", "cat /proc/RUNNER_PID/maps", _fails),
    ("signal the other", "kill -0 OTHER_PID", _fails),
    ("signal the runner", "kill -TERM RUNNER_PID", _fails),
    ("signal everybody", 'sh -c "trap : TERM; kill -TERM 1"', _fails),
    (
        "trace the other",
        _python(_SYSTEM_CALL + "raise SystemExit(libc.ptrace(16, OTHER_PID, 0, 0) != 0)"),
        _fails,
    ),
    (
        "read the other's memory",
        _python("open('/proc/OTHER_PID/mem', 'rb').read(1)"),
        _fails,
    ),
    ("write to /etc", "touch /etc/natskit-was-here", _fails),
    ("write to /usr", "touch /usr/local/bin/natskit-was-here", _fails),
    ("write to /opt", "touch /opt/natskit/natskit-was-here", _fails),
    (
        "change the agent's program",
        # Where it is not found, nothing is proved: that counts as a success of the attack.
        "for f in /opt/natskit/programs/*/env/lib/python3*/site-packages/natskit/rpc.py; "
        'do [ -r "$f" ] || exit 0; echo >> "$f" && exit 0; done; exit 1',
        _fails,
    ),
    ("write to the state of others", "touch /var/lib/private/natskit-project/natskit-was-here", _fails),
    ("write kernel settings", "echo 1 > /proc/sys/kernel/panic", _fails),
    ("write to the cgroup tree", "find /sys/fs/cgroup -name cgroup.procs -writable 2>/dev/null | grep .", _fails),
    ("mount", "mount -t tmpfs none /home/project", _fails),
    ("unmount", "umount /run/credentials/* || umount /tmp", _fails),
    ("a user namespace", "unshare --user --map-root-user true", _fails),
    ("a mount namespace", "unshare --mount true", _fails),
    ("the namespace of the first process", "nsenter --target 1 --mount true", _fails),
    ("another root", _python("import os; os.chroot('/')"), _fails),
    ("become root", _python("import os; os.setuid(0)"), _fails),
    ("become the other", _python("import os; os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID)"), _fails),
    ("a program with the owner's rights", "cp /bin/sh ./sh && chmod u+s ./sh", _fails),
    ("sudo", "sudo -n true", _fails),
    ("give a file away", _python("import os; open('f', 'w'); os.chown('f', OTHER_UID, -1)"), _fails),
    ("a raw socket", _python("import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"), _fails),
    ("a packet socket", _python("import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)"), _fails),
    ("a kernel module", _python(_SYSTEM_CALL + "raise SystemExit(libc.syscall(175, 0, 0, b'') != 0)"), _fails),
    (
        "bpf",
        _python(_SYSTEM_CALL + "raise SystemExit(libc.syscall(321, 0, 0, 0) < 0 and ctypes.get_errno() in (1, 38))"),
        _fails,
    ),
    (
        "io_uring",
        _python(_SYSTEM_CALL + "raise SystemExit(libc.syscall(425, 8, ctypes.create_string_buffer(120)) < 0)"),
        _fails,
    ),
    ("stop the other", "systemctl --no-ask-password stop natskit-project@OTHER.service", _fails),
    ("start a unit", "systemd-run --no-ask-password --wait true", _fails),
    ("list the units", "systemctl list-units", _fails),
    ("write to a terminal of others", "find /dev/pts -name '[0-9]*' ! -user \"$(id -u)\" -writable | grep .", _fails),
    ("devices of the host", "ls /dev | grep -E '^(mem|kmsg|sd|vd|nvme|loop|fuse|net)'", _fails),
    ("what others left in /dev/shm", "ls -A /dev/shm", _says_nothing),
    ("what others left in /tmp", "ls -A /tmp /var/tmp | grep natskit-left-here", _fails),
    (
        "what others left as System V memory",
        "tail -n +2 /proc/sysvipc/shm | grep .",
        _fails,
    ),
    ("the address of cloud metadata", ASK_METADATA, _fails),
    (
        # The runner and systemd walk this home as root: what they are led to must stay what it is (see the test).
        "lead root astray with links",
        "mkdir -p trap && i=0; while [ $i -lt 300 ]; do rm -rf trap/x; mkdir trap/x; rm -rf trap/x; "
        "ln -s /var/lib/private/natskit-project/OTHER trap/x; cat trap/x/secret && exit 0; i=$((i+1)); done; exit 1",
        _fails,
    ),
]


def facts(cluster: Cluster, pair: Neighbours) -> dict[str, str]:
    """The values for the words in capitals."""

    def main_pid(unit: str) -> str:
        return cluster.sh(pair.machine, f"systemctl show --property=MainPID --value {unit}").stdout.strip()

    other_pid = main_pid(unit_of(pair.b))
    return {
        "OTHER_PID": other_pid,
        "OTHER_UID": cluster.sh(pair.machine, f"stat --format %u /proc/{other_pid}").stdout.strip(),
        "RUNNER_PID": main_pid("natskit-runner.service"),
        "OTHER": instance_of(pair.b),
        "OWN": instance_of(pair.a),
    }


def fill(command: str, known: Mapping[str, str]) -> str:
    """Fill the facts into a command."""
    for word, fact in known.items():  # the longer words come first
        command = command.replace(word, fact)
    return command


@pytest.fixture(scope="module", autouse=True)
def metadata(cluster: Cluster, neighbours: Neighbours) -> Iterator[None]:
    """Answer requests where clouds serve a machine's credentials. Otherwise a missing answer would prove nothing."""
    machine, unit = neighbours.machine, "natskit-test-metadata"
    set_address(cluster.container(machine), "replace")
    listen = f"import socket, time; listener = socket.create_server(('{METADATA}', 8080)); time.sleep(3600)"
    cluster.sh(machine, f'systemd-run --unit {unit} python3 -c "{listen}"')
    cluster.sh(machine, f"for i in $(seq 50); do {ASK_METADATA} 2>/dev/null && exit; sleep 0.1; done; exit 1")
    yield
    cluster.sh(machine, f"systemctl stop {unit}")
    set_address(cluster.container(machine), "delete")


def set_address(container: str, change: str) -> None:
    """Give a machine the address of cloud metadata, or remove it. The machine itself may not."""
    image = docker("inspect", "--format", "{{.Image}}", container).stdout.strip()
    network = ["--network", f"container:{container}", "--cap-add", "NET_ADMIN", "--entrypoint", "ip"]
    docker("run", "--rm", *network, image, "address", change, f"{METADATA}/32", "dev", "lo")


@pytest.fixture
def prepared(neighbours: Neighbours, project_shell: ProjectShell) -> Neighbours:
    """Put something worth stealing into project B."""
    left = "echo secret | tee secret /tmp/natskit-left-here /var/tmp/natskit-left-here >/dev/shm/natskit-left-here"
    assert (
        project_shell(neighbours.b, f"{left}; chmod -R a+rwX . /tmp/natskit-left-here; ipcmk -M 4096").returncode == 0
    )
    return neighbours


@pytest.mark.parametrize(("name", "command", "holds"), ESCAPES, ids=[name for name, _, _ in ESCAPES])
def test_escape(
    name: str,
    command: str,
    holds: Callable[[Outcome], bool],
    cluster: Cluster,
    prepared: Neighbours,
    project_shell: ProjectShell,
) -> None:
    outcome = project_shell(prepared.a, fill(command, facts(cluster, prepared)))
    assert holds(outcome), f"{name}: {outcome.returncode} {outcome.stdout} {outcome.stderr}"
    assert answer_seconds(project_shell, prepared.b) < 2


def answer_seconds(project_shell: ProjectShell, project_id: str) -> float:
    """How long a project takes to run a command. Fails if the command fails."""
    began = time.monotonic()
    outcome = project_shell(project_id, "cat secret")
    assert outcome.stdout.strip() == "secret", outcome.stderr
    return time.monotonic() - began


BOMBS: list[tuple[str, str]] = [
    ("forks", _python("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass")),
    ("threads", _python(_THREADS)),
    ("memory", _python("held = []\nwhile True: held.append(bytearray(16 << 20))")),
    (
        "memory of many",
        "while :; do for i in $(seq 20); do python3 -c 'import time; x = bytearray(100 << 20); time.sleep(5)' & done; "
        "wait; done",
    ),
    ("memory as files", "while :; do cat /dev/zero > /dev/shm/zero; done"),
    ("processor", "for i in $(seq 16); do (while :; do :; done) & done; wait"),
    ("open files", _python(_OPEN_FILES)),
    ("log", "while :; do echo a line of noise for the journal of the host; done | logger"),
]
"""Name and command. Most last until they are ended."""


@pytest.mark.parametrize(("name", "command"), BOMBS, ids=[name for name, _ in BOMBS])
def test_bomb(name: str, command: str, cluster: Cluster, prepared: Neighbours, project_shell: ProjectShell) -> None:
    runner = facts(cluster, prepared)["RUNNER_PID"]
    ended: list[Outcome] = []
    bomb = threading.Thread(target=lambda: ended.append(project_shell(prepared.a, command)), daemon=True)
    bomb.start()
    began, slowest = time.monotonic(), 0.0
    while time.monotonic() - began < BOMB_SECONDS:
        slowest = max(slowest, answer_seconds(project_shell, prepared.b))
    assert not ended or ended[0].returncode != 255, f"it went off: {ended[0].stderr}"
    # So many bombs in so short a time are more starts than systemd allows.
    unit = unit_of(prepared.a)
    cluster.sh(prepared.machine, f"systemctl reset-failed {unit}; systemctl restart {unit}")
    bomb.join(20)
    assert slowest < 2, f"{name}: the other project took {slowest:.1f} s"
    assert facts(cluster, prepared)["RUNNER_PID"] == runner, "the runner lives"


DISK_BOMB = "for i in $(seq 24); do head -c 33554432 /dev/zero > fill$i; sleep 0.2; done; sleep 60"
"""At most 768 MiB, because the disk belongs to the user who runs the tests."""


def test_a_full_disk(cluster: Cluster, prepared: Neighbours, project_shell: ProjectShell) -> None:
    """Runs last, because project A is stopped afterwards. The machine's ``max_disk_bytes`` has to be below 700 MiB."""
    assert project_shell(prepared.a, "true").returncode == 0
    bomb = threading.Thread(target=project_shell, args=(prepared.a, DISK_BOMB), daemon=True)
    bomb.start()
    slowest = 0.0

    def stopped() -> bool:
        nonlocal slowest
        state = cluster.sh(prepared.machine, f"systemctl is-active {unit_of(prepared.a)}", check=False).stdout.strip()
        if state == "active":
            slowest = max(slowest, answer_seconds(project_shell, prepared.b))
        return state != "active"

    wait_for(stopped, "the project that fills the disk to be stopped", 90)
    assert slowest < 2
    free = cluster.sh(prepared.machine, "df --output=avail -B1 /var/lib/private | tail -n 1").stdout
    assert int(free) > 1024**3
