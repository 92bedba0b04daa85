"""What a project sees of its host, from inside: no file of anybody else, and everything that its programs need."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

import pytest

from natskit.runner.agent_unit import instance_of, unit_of
from natskit.runner.sandbox import ETC, FOLLOWED, HOMES, WRITTEN_ETC
from tests.cluster.site import Cluster, Neighbours
from tests.cluster.test_sandbox import ProjectShell

MARK = "natskit-somebody-elses"
"""The name of a file that anybody on the host may read."""
PLACES = (
    *(
        "/",
        "/home",
        "/home/other",
        "/root",
        "/srv",
        "/srv/data",
        "/data",
        "/backup",
        "/export/a/b",
        "/mnt",
        "/mnt/disk",
    ),
    *("/media/usb", "/boot", "/opt", "/opt/other", "/lost+found", "/opt/natskit", "/opt/natskit/programs"),
    *("/etc", "/etc/myapp", "/etc/natskit", "/etc/ssh", "/etc/sudoers.d", "/etc/default", "/etc/profile.d", "/etc/ssl"),
    *("/etc/ssl/private", "/etc/cron.d", "/etc/systemd/system"),
    *(
        "/var",
        "/var/lib",
        "/var/lib/other",
        "/var/log",
        "/var/backups",
        "/var/www/html",
        "/var/mail",
        "/var/spool/cron",
    ),
    *("/var/cache/other", "/var/opt/other", "/var/local", "/var/lib/natskit", "/var/lib/natskit/hub-1"),
    *("/run", "/run/other", "/run/lock", "/run/user/1000", "/run/secrets", "/run/systemd", "/run/natskit-project"),
    *("/tmp", "/tmp/other", "/var/tmp", "/var/tmp/other", "/dev/shm"),
)
"""Folders of a host."""
KERNELS = ("proc", "sys", "dev")
SHOWN = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Top-level folders of a host that a project is meant to see: ``/usr``, and links into it."""


@pytest.fixture(scope="module")
def marked(cluster: Cluster, neighbours: Neighbours) -> Iterator[list[str]]:
    """Put a file that everybody may read into every place and every top-level folder of the host. Yields the paths."""
    machine = neighbours.machine
    top = cluster.sh(machine, "find / -mindepth 1 -maxdepth 1 -type d -printf '%f\\n'").stdout.split()
    places = list(dict.fromkeys([*PLACES, *(f"/{name}" for name in top if name not in (*KERNELS, *SHOWN))]))
    found = [f"{place.rstrip('/')}/{MARK}" for place in places]
    words = shlex.join(found)
    folders = {str(folder) for path in found for folder in PurePosixPath(path).parents}
    there = cluster.sh(machine, f"ls -d {shlex.join(folders)} 2>/dev/null", check=False).stdout.split()
    cluster.sh(
        machine,
        f'set -e; umask 022; for f in {words}; do mkdir -p "$(dirname "$f")"; echo theirs > "$f"; chmod 644 "$f"; done',
    )
    yield found
    made = sorted(folders - set(there), reverse=True)
    cluster.sh(machine, f"rm -f {words}; rmdir {shlex.join(made)} 2>/dev/null; true")


@pytest.mark.parametrize("place", PLACES)
def test_a_file_of_the_host_is_not_seen(
    place: str, marked: list[str], neighbours: Neighbours, project_shell: ProjectShell
) -> None:
    path = f"{place.rstrip('/')}/{MARK}"
    assert path in marked
    outcome = project_shell(neighbours.a, f"cat {path}; ls {path}")
    assert outcome.returncode != 0, outcome.stdout
    assert not outcome.stdout


def test_nothing_of_it_is_anywhere(marked: list[str], neighbours: Neighbours, project_shell: ProjectShell) -> None:
    """Neither under another name, nor under that of a folder."""
    words = shlex.join(marked)
    assert not project_shell(neighbours.a, f"cat {words} 2>/dev/null").stdout
    find = f"find / /proc/self/root /proc/self/cwd -name {MARK} -not -path '/proc/[0-9]*' 2>/dev/null; true"
    assert not project_shell(neighbours.a, find).stdout


def test_the_folders_are_those_of_the_docs(neighbours: Neighbours, project_shell: ProjectShell) -> None:
    def seen(folder: str) -> set[str]:
        return set(project_shell(neighbours.a, f"ls -A {folder}").stdout.split())

    assert seen("/") - {"lib32", "libx32"} == {
        *("bin", "dev", "etc", "home", "lib", "lib64", "opt", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var")
    }
    assert seen("/home") == {"project", "renewed"}
    assert seen("/root") == set()
    assert seen("/opt") == {"natskit"}
    assert seen("/opt/natskit") == {"programs"}
    (program,) = seen("/opt/natskit/programs")
    assert seen(f"/opt/natskit/programs/{program}") == {"env"}
    assert seen("/var") == {"run", "tmp"}
    # From 257 on, systemd shows which release the host is, in host.
    assert seen("/run") - {"host"} == {"credentials", "natskit", "natskit-project", "systemd"}
    assert seen("/run/natskit") == {"ca.crt", "hosts", "resolv.conf"}
    assert seen("/run/systemd") <= {"incoming", "journal", "notify"}
    assert seen("/etc") <= {name.split("/")[0] for name in ETC} | {*WRITTEN_ETC, *FOLLOWED}
    assert seen("/etc/ssl") <= {"certs", "openssl.cnf"}
    assert seen("/etc/default") <= {"locale"}


NEIGHBOURS_NAMES = {
    "among the mounts": "cat /proc/self/mountinfo",
    "among the cgroups": "find /sys/fs/cgroup",
    "in /run": "find /run",
    "among the users": "cat /etc/passwd /etc/group; getent passwd",
    "in the rest of /": "find / -name '*OTHER*'",
}


@pytest.mark.parametrize("look", NEIGHBOURS_NAMES.values(), ids=NEIGHBOURS_NAMES)
def test_the_neighbours_name_is_not_seen(look: str, neighbours: Neighbours, project_shell: ProjectShell) -> None:
    other = instance_of(neighbours.b)
    outcome = project_shell(neighbours.a, f"{{ {look.replace('OTHER', other)}; }} 2>/dev/null; true")
    assert other not in outcome.stdout
    assert "natskit-runner" not in outcome.stdout


@pytest.mark.parametrize("folder", ["/", "/etc", "/home", "/opt", "/root", "/run", "/usr", "/var", "/dev", "/sys"])
def test_what_is_seen_of_the_host_is_not_written_to(
    folder: str, neighbours: Neighbours, project_shell: ProjectShell
) -> None:
    assert project_shell(neighbours.a, f"touch {folder}/x || mkdir {folder}/y").returncode != 0


def test_no_folder_appears_on_the_host(cluster: Cluster, neighbours: Neighbours) -> None:
    """A unit without its own mount namespace would create its mount points on the host."""
    for folder in ("/home/project", "/home/renewed", "/project", "/sys/fs/cgroup/natskit"):
        assert cluster.sh(neighbours.machine, f"test ! -e {folder}", check=False).returncode == 0, folder


def _python(code: str) -> str:
    return f"python3 -c {shlex.quote(code)}"


WORKS: dict[str, tuple[str, str]] = {
    "a program in its home": ("cp /bin/echo ./mine && ./mine runs", "runs"),
    "a script in its home": ("printf '#!/bin/sh\\necho runs\\n' > s && chmod +x s && ./s", "runs"),
    "a program in /tmp": ("cp /bin/echo /tmp/mine && /tmp/mine runs", "runs"),
    "a virtual environment": ("python3 -m venv --without-pip v && v/bin/python -c 'print(\"runs\")'", "runs"),
    "its user's name": ("id -un", "OWN"),
    "its group's name": ("id -gn", "OWN"),
    "its user's home": (_python("import os, pwd; print(pwd.getpwuid(os.getuid()).pw_dir)"), "/home/project"),
    "the names of owners": ("stat -c '%U %G' /home/project", "OWN OWN"),
    "a home by ~name": ("echo ~OWN", "/home/project"),
    "names of hosts": ("getent hosts nats-1 | grep -c .", "1"),
    "the machine's own name": ("getent hosts $(hostname) | grep -c .", "1"),
    "certificates it trusts": (
        _python("import ssl; print(ssl.create_default_context().cert_store_stats()['x509_ca'] > 50)"),
        "True",
    ),
    "the time zone": ("readlink -f /etc/localtime >/dev/null && date +%Z", "UTC"),
    "other time zones": (
        _python("import zoneinfo; print(zoneinfo.ZoneInfo('Europe/Vienna').key)"),
        "Europe/Vienna",
    ),
    "languages": ("LC_ALL=C.UTF-8 locale charmap", "UTF-8"),
    "terminals": (_python("import pty; pty.spawn(['test', '-t', '0']) or print('runs')"), "runs"),
    "shared memory": (
        _python("from multiprocessing import shared_memory as s; m = s.SharedMemory(create=True, size=9); m.unlink()"),
        "",
    ),
    "a pool of processes": (_python("import multiprocessing as m; print(m.Pool(2).map(abs, [-1]))"), "[1]"),
    "its own limits": (
        "find /sys/fs/cgroup -name 'memory.max' -o -name memory.limit_in_bytes | xargs cat",
        "536870912",
    ),
    "what the host has in memory": ("grep -c MemTotal /proc/meminfo", "1"),
    "links into /usr": ("readlink /bin /lib", "usr/bin\nusr/lib"),
    "shebangs": ("printf '#!/usr/bin/env python3\\nprint(\"runs\")\\n' > p && chmod +x p && ./p", "runs"),
    "a server of its own": (
        _python("import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"),
        "",
    ),
    "a socket in its home": (_python("import socket; socket.socket(socket.AF_UNIX).bind('sock')"), ""),
    "who it is to ssh": ("ssh -G example.org | sed -n 's/^user //p'", "OWN"),
    "what is mounted": ("df --output=target /home/project | tail -n 1", "/home/project"),
    "the release of the host": (". /etc/os-release && echo $ID", "debian"),
}
"""What programs need: a command, and what it prints."""


@pytest.mark.parametrize(("command", "prints"), WORKS.values(), ids=WORKS)
def test_what_programs_need_works(
    command: str, prints: str, neighbours: Neighbours, project_shell: ProjectShell
) -> None:
    own = instance_of(neighbours.a)
    place = f"rm -rf works && mkdir works && cd works && {command.replace('OWN', own)}"
    outcome = project_shell(neighbours.a, place)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip() == prints.replace("OWN", own)


def restart(cluster: Cluster, project_id: str) -> None:
    """Stop and start a project, so that it sees changes."""
    cluster.natskit("project", "stop", project_id)
    cluster.natskit("project", "start", project_id)


def test_a_change_of_the_hosts_network_is_seen(
    cluster: Cluster, neighbours: Neighbours, project_shell: ProjectShell
) -> None:
    """A running project sees changes of the host's resolver and names."""
    name, wait = (
        "natskit-new-name",
        "for i in $(seq 100); do getent hosts natskit-new-name && exit; sleep 0.1; done; exit 1",
    )
    assert project_shell(neighbours.a, f"getent hosts {name}").returncode != 0
    cluster.sh(neighbours.machine, f"cp /etc/hosts /root/hosts && echo 192.0.2.7 {name} >> /etc/hosts")
    try:
        assert project_shell(neighbours.a, wait).stdout.split() == ["192.0.2.7", name]
    finally:
        cluster.sh(neighbours.machine, "cat /root/hosts > /etc/hosts")


Made = Callable[[str], str]


@pytest.fixture
def made(cluster: Cluster, world: object) -> Made:  # noqa: ARG001 - its accounts
    """Make and start a project. Returns its id."""

    def make(title: str) -> str:
        email = f"b@{cluster.domain}"
        project_id = str(cluster.natskit_json("project", "create", email, title)["project_id"])
        cluster.natskit("project", "start", project_id)
        return project_id

    return make


TREE = """
mkdir -p deep && cd deep && i=0; while [ $i -lt 1500 ]; do mkdir d && cd d || exit 1; i=$((i+1)); done; echo end > file
cd /home/project && mkdir shut && echo x > shut/x && chmod 0 shut && ln -s /etc/passwd link && ln -s / root-link
mkdir -m 1777 sticky && touch sticky/x && mkfifo fifo && echo mine > file && ln file other-name
"""


@pytest.mark.parametrize("owner", ["65534", "61999", "0"])
def test_files_follow_the_user(owner: str, cluster: Cluster, made: Made, project_shell: ProjectShell) -> None:
    """The number of a project's user changes. Before Debian 13 received the homes, systemd gave them to 65534."""
    project_id = made(f"Moved from {owner}")
    machine, home = cluster.machine_of(project_id), f"{HOMES}/{instance_of(project_id)}"
    assert project_shell(project_id, TREE).returncode == 0
    cluster.natskit("project", "stop", project_id)
    cluster.sh(machine, f"touch /root/outside && ln -s /root/outside {home}/outside-link")
    cluster.sh(machine, f"chown -R --no-dereference {owner}:{owner} {home}")
    # As systemd 252 left it, when it made the homes itself: before the runner of this version was started.
    cluster.sh(machine, f"mkdir -p /var/lib/natskit-project && ln -s {home} /var/lib/natskit-project/")
    cluster.sh(machine, "systemctl restart natskit-runner")
    cluster.natskit("ready", "--timeout", "100")
    cluster.natskit("project", "start", project_id)
    wrong = project_shell(project_id, 'find . \\( ! -uid "$(id -u)" -o ! -gid "$(id -g)" \\) | head')
    assert (wrong.returncode, wrong.stdout) == (0, "")
    assert project_shell(project_id, "chmod 700 shut && cat file shut/x other-name").stdout.split() == [
        *("mine", "x", "mine")
    ]
    assert cluster.sh(machine, "stat -c %u /root/outside /etc/passwd").stdout.split() == ["0", "0"]
    # Of what is there, nothing stays; what links lead to, does.
    cluster.natskit("project", "delete", project_id, "--yes")
    gone = f"{home} /var/lib/natskit-project/{instance_of(project_id)} /var/lib/natskit/runner/projects/"
    cluster.sh(machine, f"for path in {gone}{instance_of(project_id)}; do test ! -e $path && test ! -L $path; done")
    cluster.sh(machine, "test -e /root/outside && test -e /etc/passwd && rm /root/outside")


def test_files_that_are_the_users_are_left_alone(cluster: Cluster, made: Made, project_shell: ProjectShell) -> None:
    """Then a start costs nothing for each file. ctime shows when somebody changed an owner."""
    project_id = made("Left alone")
    assert project_shell(project_id, "touch f").returncode == 0
    before = project_shell(project_id, "stat -c %z f").stdout
    restart(cluster, project_id)
    assert project_shell(project_id, "stat -c %z f").stdout == before
    cluster.natskit("project", "delete", project_id, "--yes")


def test_a_unit_that_somebody_started_by_hand(cluster: Cluster, made: Made, project_shell: ProjectShell) -> None:
    """The runner adopts it, with its whole root directory."""
    project_id = made("By hand")
    machine = cluster.machine_of(project_id)
    cluster.natskit("project", "stop", project_id)
    cluster.sh(machine, f"systemctl start {unit_of(project_id)}", check=False)
    cluster.natskit("project", "start", project_id)
    assert project_shell(project_id, "ls /usr/bin/env && touch f").returncode == 0
    cluster.natskit("project", "delete", project_id, "--yes")


GPU = "/dev/natskit-gpu"


@pytest.fixture(scope="module")
def shown(cluster: Cluster, neighbours: Neighbours) -> Iterator[Neighbours]:
    """The host shows more to its projects, by settings. Restored at the end."""
    machine = neighbours.machine
    for runner in ("runner-1", "runner-2"):
        cluster.sh(
            runner,
            "umask 022; mkdir -p /srv/natskit-shared/in /home/natskit-shared /srv/natskit-drop /srv/natskit-not; "
            "chmod 1777 /srv/natskit-drop; groupadd --force --system natskit-gpu; echo conf > /etc/natskit-app.conf; "
            "for f in /srv/natskit-shared/in /home/natskit-shared /srv/natskit-not; do echo shown > $f/file; done; "
            # A device that a container may use, and a unit with DevicePolicy=closed not: 10:200 is /dev/net/tun.
            f"mkdir -p {GPU}; [ -e {GPU}/card0 ] || mknod {GPU}/card0 c 10 200; "
            f"chown root:natskit-gpu {GPU}/card0; chmod 660 {GPU}/card0",
        )
    done = cluster.deploy(
        runner_project_read_only_paths="/srv/natskit-shared,/home/natskit-shared,/etc/natskit-app.conf",
        runner_project_read_write_paths="/srv/natskit-drop",
        runner_project_devices=GPU,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    restart(cluster, neighbours.a)
    yield neighbours
    done = cluster.deploy()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    restart(cluster, neighbours.a)
    cluster.sh(machine, f"rm -rf /srv/natskit-* /home/natskit-shared /etc/natskit-app.conf {GPU}")


@pytest.mark.parametrize("path", ["/srv/natskit-shared/in/file", "/home/natskit-shared/file", "/etc/natskit-app.conf"])
def test_a_setting_shows_more(path: str, shown: Neighbours, project_shell: ProjectShell) -> None:
    outcome = project_shell(shown.a, f"cat {path}")
    assert outcome.returncode == 0, outcome.stderr
    assert project_shell(shown.a, f"echo x >> {path} || touch {path}.new").returncode != 0


def test_and_not_what_is_beside_it(shown: Neighbours, project_shell: ProjectShell) -> None:
    assert project_shell(shown.a, "ls -A /srv").stdout.split() == ["natskit-drop", "natskit-shared"]
    assert project_shell(shown.a, "cat /srv/natskit-not/file").returncode != 0


def test_a_setting_lets_projects_write(shown: Neighbours, cluster: Cluster, project_shell: ProjectShell) -> None:
    assert project_shell(shown.a, "echo mine > /srv/natskit-drop/file").returncode == 0
    assert cluster.sh(shown.machine, "cat /srv/natskit-drop/file").stdout == "mine\n"


def test_a_setting_gives_a_device(shown: Neighbours, project_shell: ProjectShell) -> None:
    opened = project_shell(shown.a, _python(f"import os; os.open('{GPU}/card0', os.O_RDWR); print('opened')"))
    assert opened.stdout.strip() == "opened", opened.stderr


def test_what_is_not_there_is_refused_before_anything_changes(shown: Neighbours, cluster: Cluster) -> None:
    cluster.sh(shown.machine, "ln -sfn / /srv/natskit-all")
    before = cluster.sh(shown.machine, "cat /etc/systemd/system/natskit-project@.service").stdout
    done = cluster.deploy(
        runner_project_read_only_paths="/srv/natskit-missing,/srv/natskit-all", runner_project_devices="/dev/natskit-no"
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    for words in (
        "runner_project_read_only_paths: /srv/natskit-missing is not there",
        "/srv/natskit-all leads to /, which projects cannot be shown",
        "runner_project_devices: there is no device /dev/natskit-no",
    ):
        assert words in said
    assert cluster.sh(shown.machine, "cat /etc/systemd/system/natskit-project@.service").stdout == before
    cluster.sh(shown.machine, "rm /srv/natskit-all")
