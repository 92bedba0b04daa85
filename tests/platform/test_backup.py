"""The how-to guide for backups, on a whole platform: everything is lost, and restored from the backup."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.identity import passphrase
from tests.documents import block
from tests.kit.wait import wait_for
from tests.platform.site import LocalSite, deployed

pytestmark = pytest.mark.platform

GUIDE = "docs/how-to/back-up.md"
PASSPHRASE = "correct horse battery staple"  # noqa: S105
PASSWORD = "another long password"  # noqa: S105


class BackedUp(LocalSite):
    """The platform on this machine, with the passphrase in a file, and a folder for backups."""

    target: Path

    @property
    def environment(self) -> dict[str, str]:
        read = f"cat {self.root.parent / 'passphrase'}"
        return super().environment | {"NATSKIT_BACKUP_TARGET": str(self.target), passphrase.COMMAND: read}

    def guide(self, section: str, number: int = 0) -> str:
        """Run the commands of a section of the guide, with this site's paths."""
        text = block(GUIDE, section, "sh", number)
        lines = [line for line in text.splitlines() if not line.startswith("export ")]
        names = "\n".join(lines).replace(".venv/bin/natskit", str(Path(sys.executable).with_name("natskit")))
        names = names.replace("/tmp/", f"{self.root.parent}/")
        names = re.sub(r"\d{4}-\d\d-\d\dT\d{6}Z", self.backups()[-1] if self.target.exists() else "", names)
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", names],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def backups(self) -> list[str]:
        return [one["name"] for one in self.natskit_json("backup", "list")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackedUp]:
    root = Path(tmp_path_factory.mktemp("backup")) / "local"
    (root.parent / "passphrase").write_text(PASSPHRASE)
    BackedUp.target = root.parent / "target"
    with deployed(root, BackedUp) as site:
        assert isinstance(site, BackedUp)
        yield site


def test_everything_is_lost_and_comes_back(site: BackedUp) -> None:
    site.natskit("account", "add", "ada@example.org", "--password-stdin", stdin=PASSWORD)
    project = site.natskit_json("project", "create", "ada@example.org", "Kept")["project_id"]
    site.natskit(
        "exec", "Kept", "--start", "--", "sh", "-c", "echo kept > file; mkfifo pipe; ln -s file link; chmod 600 file"
    )
    assert "1 files" in site.guide("Take a backup")
    assert site.natskit("exec", "Kept", "--", "cat", "file").stdout == "kept\n", "it runs all the time"
    said = site.guide("Verify a backup")
    assert re.search(
        r"The backup is good\. Its data was \d+ s old; restoring \d+ messages and reading 1 files took", said
    )

    assert site.natskit_json("status")["backup"]["verified"]
    assert re.search(rf"last backup: .* ago in {site.target}, verified .* ago", site.natskit("status").stdout)

    site.stop()
    shutil.rmtree(site.root)
    site.root.mkdir(mode=0o700)
    said = natskit(site, "backup", "restore")
    assert "deploy. Then run this command again" in said
    assert (site.root / "restored-inventory").is_dir()
    done = site.deploy()
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    site.natskit("ready")
    said = natskit(site, "backup", "restore")
    assert "The platform is open again" in said
    site.natskit("ready")
    assert "ada@example.org" in {one["email"] for one in site.natskit_json("account", "list")}
    assert site.sign_in("ada@example.org", PASSWORD).account_id
    assert site.natskit(
        "exec", "Kept", "--start", "--", "sh", "-c", "cat link; stat -c %a file; stat -c %F pipe"
    ).stdout == ("kept\n600\nfifo\n")
    assert (site.root / "runner" / "projects" / project / "home" / "file").read_text() == "kept\n"
    audited = [json.loads(line) for line in site.natskit("audit", "--json").stdout.splitlines()]
    assert any("backup restore: " in event.get("what", "") for event in audited), audited


def test_back_to_a_backup_and_one_bucket(site: BackedUp) -> None:
    site.natskit("exec", "Kept", "--start", "--", "sh", "-c", "echo later > file")
    done = site.natskit("backup", "restore", "--overwrite", check=False)
    assert "projects run whose files would be replaced: stop them with `natskit project stop " in done.stderr
    site.natskit("project", "stop", "Kept")
    site.guide("Go back to a backup")
    site.natskit("ready")
    assert site.natskit("exec", "Kept", "--start", "--", "cat", "file").stdout == "kept\n"
    site.natskit("account", "add", "gone@example.org")
    site.guide("Restore one bucket")
    site.natskit("ready")
    assert "gone@example.org" not in {one["email"] for one in site.natskit_json("account", "list")}


def test_a_file_of_a_project_comes_back(site: BackedUp) -> None:
    project = site.natskit_json("project", "create", "ada@example.org", "My project")["project_id"]
    made = (
        "mkdir -p 'a [b]*/c'; echo first > notes.md; echo second > 'a [b]*/c/d'; echo other > 'a b'; chmod 644 notes.md"
    )
    site.natskit("exec", "My project", "--start", "--", "sh", "-c", made)
    natskit(site, "backup", "create")
    site.natskit("exec", "My project", "--", "sh", "-c", "echo worse > notes.md; rm -r a*")
    site.guide("Get a file of a project back")
    assert site.natskit("exec", "My project", "--", "cat", "notes.md").stdout == "first\n"
    place = site.root.parent / "notes.md"
    assert place.stat().st_mode & 0o777 == 0o600

    def refused(*words: str) -> str:
        done = site.natskit("backup", "files", *words, check=False)
        assert done.returncode == 1
        return done.stderr

    assert f"{place} exists already" in refused("My project", "notes.md", "--to", str(place))
    there = site.root.parent / "there"
    assert f"the backup has no gone.md of project {project}" in refused("My project", "gone.md", "--to", str(there))
    assert "is not a path inside the project" in refused("My project", "../project.json", "--to", str(there))
    nobody = "00000000-0000-4000-8000-000000000000"
    assert f"the backup has no files of project {nobody}" in refused(nobody, "--to", str(there))
    assert not list(site.root.parent.glob("*there*")), "nothing is left"

    site.guide("Restore the files of one project")
    again = ("sh", "-c", "cat notes.md a*/c/d")
    assert site.natskit("exec", "My project", "--start", "--", *again).stdout == "first\nsecond\n"
    site.natskit("exec", "Kept", "--", "true")  # others go on

    site.natskit("project", "delete", "My project", "--yes")
    site.natskit("backup", "files", project, "a [b]*", "--to", str(there))
    assert {path.name: path.read_text() for path in there.glob("c/*")} == {"d": "second\n"}
    everything = site.root.parent / "everything"
    site.natskit("backup", "files", project, "--to", str(everything))
    assert (everything / "a b").read_text() == "other\n"


def test_a_file_that_is_being_written_is_named(site: BackedUp) -> None:
    """restic itself succeeds without a message."""
    site.natskit("project", "create", "admin@localhost", "Busy")
    site.natskit("exec", "Busy", "--start", "--", "sh", "-c", "(while :; do date +%N >> busy; done) >/dev/null 2>&1 &")
    projects = site.root / "runner" / "projects"
    busy = wait_for(lambda: next(projects.glob("*/home/busy")), "the file")
    said = natskit(site, "backup", "create")
    assert f"{busy.relative_to(projects)} was written each time it was read" in said
    site.natskit("project", "stop", "Busy")
    said = natskit(site, "backup", "create")
    assert "was written" not in said
    before = site.backups()
    assert site.guide("Keep the newest backups") == "Nothing is old enough to be removed.\n"
    assert natskit(site, "backup", "prune", "--keep", "1").count("is removed.") == len(before) - 1
    natskit(site, "backup", "verify")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_backup_that_lacks_a_project_says_so_everywhere(site: BackedUp) -> None:
    site.natskit("project", "create", "admin@localhost", "Odd")
    site.natskit("exec", "Odd", "--start", "--", "sh", "-c", "echo x > odd")
    odd = next((site.root / "runner" / "projects").glob("*/home/odd"))
    os.chown(odd, 12_345, 12_345)
    metrics = site.root.parent / "metrics"
    metrics.mkdir()
    done = subprocess.run(
        [Path(sys.executable).with_name("natskit"), "backup", "create"],
        env=site.environment | {"NATSKIT_METRICS": str(metrics)},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        assert done.returncode == 3, done.stdout + done.stderr
        assert f"{odd.parents[1].name} is NOT in the backup" in done.stdout
        assert done.stderr.endswith("natskit: the backup lacks 1 project\n")
        assert 'natskit_backup_lacks{what="projects"} 1.0\n' in (metrics / "backup.prom").read_text()
        assert "; it lacks 1 project\n" in site.natskit("status").stdout
        lacks = {"runners": [], "projects": 1, "files": 0}
        assert site.natskit_json("status")["backup"]["lacks"] == lacks
        assert site.natskit_json("backup", "list")[-1]["lacks"] == lacks
        assert "1 project" in natskit(site, "backup", "list")
    finally:
        os.chown(odd, 0, 0)
    runner = site.natskit_json("runner", "list")[0]["name"]
    natskit(site, "backup", "create", "--without-runner", runner)  # exits 0: it was asked for
    assert f"; it lacks the files of runner {runner}\n" in site.natskit("status").stdout
    assert site.info["backup_bytes"] == {one["runner_id"]: 1024**4 for one in site.natskit_json("runner", "list")}


def test_a_run_that_is_told_to_end_leaves_nothing(site: BackedUp) -> None:
    before = sorted(os.listdir(site.target))
    process = subprocess.Popen(
        [Path(sys.executable).with_name("natskit"), "backup", "create"],
        env=site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # the first stream is there
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert sorted(os.listdir(site.target)) == before


def natskit(site: BackedUp, *words: str) -> str:
    return site.natskit(*words).stdout
