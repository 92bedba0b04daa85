"""natskit's own code for a project's sandbox. tests/cluster/test_seen.py tests the sandbox itself."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from natskit.config.render import project_values, render
from natskit.config.settings import load
from natskit.errors import SettingsError
from natskit.runner.claim_home import give, settle_in
from natskit.runner.mounted_files import Followed
from natskit.runner.project_root import lay_out
from natskit.runner.sandbox import ETC, FOLLOWED
from roles.project_mounts import Devices

DOCS = Path(__file__).parent.parent.parent / "docs"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.mark.parametrize(
    ("key", "path", "said"),
    [
        ("read_only", "srv/data", "is not an absolute path"),
        ("read_only", "/srv/my data", "contains ' '"),
        ("read_only", "/srv/%i", "contains '%'"),
        ("read_only", "/srv/a:/etc", "contains ':'"),
        ("read_only", "/srv/../etc/ssh", "contains .."),
        ("read_only", "/srv/a\u200bb", "an invisible character"),
        ("read_only", "/", "that is all of the host"),
        ("read_only", "//", "that is all of the host"),
        ("read_only", "/var", "/var/lib/private is not for projects"),
        ("read_only", "/var/lib", "/var/lib/private is not for projects"),
        ("read_only", "/var/lib/private/natskit-project", "/var/lib/private is not for projects"),
        ("read_only", "/var/lib/natskit/runner/", "/var/lib/natskit is not for projects"),
        ("read_write", "/run", "/run/systemd is not for projects"),
        ("read_write", "/run/credentials/x", "/run/credentials is not for projects"),
        ("read_only", "/home", "each project has its own /home/project"),
        ("read_write", "/home/project/x", "each project has its own there"),
        ("read_only", "/etc", "name the files and folders"),
        ("read_write", "/etc/passwd", "each project has its own there"),
        ("read_only", "/tmp", "each project has its own there"),
        ("read_only", "/var/tmp/x", "each project has its own there"),
        ("read_only", "/usr", "projects see all of /usr"),
        ("read_only", "/lib64/x", "projects see all of /usr"),
        ("read_only", "/proc/1", "the kernel's files"),
        ("read_only", "/dev/dri", "devices are for runner_project_devices"),
        ("read_only", "/srv/data", ""),
        ("read_only", "/home/shared", ""),
        ("read_only", "/etc/pip.conf", ""),
        ("read_write", "/var/www", ""),
        ("read_write", "/usr/local/share/models", ""),
    ],
)
def test_paths_that_settings_may_name(key: str, path: str, said: str) -> None:
    setting = f"runner_project_{key}_paths"
    if said:
        with pytest.raises(SettingsError, match=re.escape(said)) as caught:
            load({setting: [path]}, "group_data/all.py")
        assert setting in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    else:
        assert getattr(load({setting: [path]}, "here"), setting) == [path]


def test_a_path_of_the_platform_that_is_elsewhere() -> None:
    with pytest.raises(SettingsError, match="/srv/bus is not for projects"):
        load({"platform_root": "/srv/bus", "runner_project_read_only_paths": ["/srv"]}, "here")


def test_a_path_is_read_only_or_not() -> None:
    both = {f"runner_project_{key}_paths": ["/srv/data", "/srv/x/"] for key in ("read_only", "read_write")}
    with pytest.raises(SettingsError, match="/srv/data is in runner_project_read_only_paths and in"):
        load(both, "here")


@pytest.mark.parametrize("key", ["read_only", "read_write"])
def test_no_path_is_in_one_that_projects_may_write_to(key: str) -> None:
    """systemd follows links when it mounts, so a project could make it show another project any place of the host."""
    both = {"runner_project_read_write_paths": ["/srv/exchange"]}
    beside = f"runner_project_{key}_paths"
    with pytest.raises(SettingsError, match="/srv/exchange/in/it is in /srv/exchange, which is in") as refused:
        load(both | {beside: [*both.get(beside, []), "/srv/exchange/in/it"]}, "here")
    assert "use folders that do not contain each other" in str(refused.value)
    load(both | {beside: [*both.get(beside, []), "/srv/exchange-2"]}, "here")
    load(both | {"runner_project_read_only_paths": ["/srv"]}, "here")


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("/dev/nvidia0", ""),
        ("/dev/dri", ""),
        ("/dev", "a device has a path"),
        ("/srv/data", "a device has a path"),
        ("/dev/shm/x", "every project has its own"),
        ("/dev/mem", "a project with that device would"),
        ("/dev/mapper/root", "a project with that device would"),
    ],
)
def test_devices_that_settings_may_name(device: str, said: str) -> None:
    if said:
        with pytest.raises(SettingsError, match=f"runner_project_devices: projects cannot have {device}: {said}"):
            load({"runner_project_devices": device}, "here")
    else:
        assert load({"runner_project_devices": device}, "here").runner_project_devices == [device]


def test_a_disk_is_known_by_its_kind_or_its_group() -> None:
    said = ["c:render:/dev/dri/renderD128", "b:disk:/dev/sda", "c:disk:/dev/sg0", "b:root:/dev/dm-0", "c:root:/dev/kvm"]
    disks = [device.path for device in Devices().process(said) if device.is_disk]
    assert disks == ["/dev/dm-0", "/dev/sda", "/dev/sg0"]


def test_the_unit_shows_what_is_listed_and_what_settings_add() -> None:
    settings = load(
        {
            "runner_project_read_only_paths": ["/srv/data"],
            "runner_project_read_write_paths": ["/srv/drop"],
            "runner_project_devices": ["/dev/dri"],
        },
        "here",
    )
    values = project_values(
        settings,
        "/opt/natskit/programs/1/env/bin/python",
        python_prefix="/opt/python3.12",
        devices=["/dev/dri/card0"],
        device_groups=["render"],
    )
    unit = render("natskit-project@.service", values | {"environment": {}})
    lines = [line for line in unit.splitlines() if line.startswith(("Bind", "Device", "Supplementary", "ReadWrite"))]
    read_only = [line.removeprefix("BindReadOnlyPaths=") for line in lines if line.startswith("BindReadOnlyPaths=")]
    places = {line.removeprefix("-").split(":")[-1] for line in read_only}
    assert {place for place in places if not place.startswith(("/etc/", "/sys/fs/cgroup"))} == {
        *("/usr", "/opt/natskit/programs/1/env", "/opt/python3.12", "/run/natskit", "/home/renewed", "/srv/data")
    }
    assert {place for place in places if place.startswith("/etc/")} == {f"/etc/{name}" for name in ETC}
    assert [line for line in lines if not line.startswith("BindReadOnlyPaths=")] == [
        "SupplementaryGroups=render",
        "BindPaths=/var/lib/private/natskit-project/%i:/home/project",
        "ReadWritePaths=/home/project",
        "BindPaths=-/srv/drop",
        "ReadWritePaths=-/srv/drop",
        "BindPaths=-/dev/dri",
        "DeviceAllow=/dev/dri/card0 rw",
    ]


def test_the_docs_list_what_is_seen_of_etc() -> None:
    text = (DOCS / "reference" / "sandbox.md").read_text()
    (listed,) = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    assert listed.split() == [*FOLLOWED, *ETC]


def test_a_root_is_made_anew(tmp_path: Path) -> None:
    host, root = tmp_path / "host", tmp_path / "root"
    host.mkdir()
    (host / "bin").symlink_to("usr/bin")
    (host / "lib").mkdir()
    before = os.umask(0o077)
    try:
        lay_out(root, host)
        (root / "srv" / "old").mkdir(parents=True)
        lay_out(root, host)
    finally:
        os.umask(before)
    assert {path.name for path in root.iterdir()} == {
        *("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var")
    }
    assert os.readlink(root / "bin") == "usr/bin"
    assert {path.name for path in (root / "etc").iterdir()} == {"mtab", *FOLLOWED}
    closed = [path for path in root.rglob("*") if path.is_dir() and stat.S_IMODE(path.stat().st_mode) != 0o755]
    assert not closed, "a project may enter them, whatever the runner's umask is"


@AS_ROOT
def test_a_home_is_given_to_its_user(tmp_path: Path) -> None:
    home, outside, etc = tmp_path / "home", tmp_path / "outside", tmp_path / "etc"
    for folder in (home / "a" / "b", outside, etc):
        folder.mkdir(parents=True)
    (outside / "file").touch()
    (home / "a" / "link").symlink_to(outside / "file")
    (home / "folder-link").symlink_to(outside)
    deep = "cd a && for i in $(seq 1500); do mkdir d && cd d || exit 1; done; touch end"
    subprocess.run(["sh", "-c", deep], cwd=home, check=True)
    settle_in("pexample", 61234, home, etc)
    wrong = ["find", str(home), "(", "!", "-uid", "61234", "-o", "!", "-gid", "61234", ")"]
    assert subprocess.run(wrong, capture_output=True, check=True).stdout == b""
    assert (outside.stat().st_uid, (outside / "file").stat().st_uid) == (os.getuid(), os.getuid())
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert "pexample:x:61234:61234:natskit project:/home/project:/bin/bash\n" in (etc / "passwd").read_text()
    assert "pexample:x:61234:\n" in (etc / "group").read_text()
    assert [stat.S_IMODE((etc / name).stat().st_mode) for name in ("passwd", "group")] == [0o644, 0o644]
    subprocess.run(["rm", "-rf", str(home)], check=True)


@AS_ROOT
def test_what_is_the_users_is_not_walked_through(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.chown(tmp_path, 61234, 61234)
    give(tmp_path, 61234)
    assert (tmp_path / "file").stat().st_uid == os.getuid()


@AS_ROOT
def test_a_walk_that_was_interrupted_is_made_again(tmp_path: Path) -> None:
    """The walk changes the folder itself last. If a file cannot be given away, the folder stays as it was."""
    (tmp_path / "file").touch()
    subprocess.run(["chattr", "+i", str(tmp_path / "file")], check=True)
    try:
        with pytest.raises(OSError, match="chown 61234:61234"):
            give(tmp_path, 61234)
    finally:
        subprocess.run(["chattr", "-i", str(tmp_path / "file")], check=True)
    os.chown(tmp_path, 0, 0)
    give(tmp_path, 61234)
    assert (tmp_path / "file").stat().st_uid == 61234


def test_what_the_host_changes_is_followed(tmp_path: Path) -> None:
    etc, shown = tmp_path / "etc", tmp_path / "shown"
    etc.mkdir()
    shown.mkdir()
    (etc / "hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\n")
    (etc / "resolv.conf").symlink_to(tmp_path / "stub")
    followed = Followed(shown, etc)
    followed.follow()
    assert (shown / "resolv.conf").read_text() == "nameserver 127.0.0.53\n"
    assert not (shown / "resolv.conf").is_symlink()
    assert stat.S_IMODE((shown / "hosts").stat().st_mode) == 0o644
    first = (shown / "hosts").stat().st_ino
    (tmp_path / "new").write_text("nameserver 192.0.2.1\n")
    (tmp_path / "new").replace(tmp_path / "stub")
    followed.follow()
    assert (shown / "resolv.conf").read_text() == "nameserver 192.0.2.1\n"
    assert (shown / "hosts").stat().st_ino == first, "what is the same is left alone"
    (etc / "hosts").unlink()
    followed.follow()
    assert not (shown / "hosts").exists()
