"""A platform of the version before the NATS account STATE is upgraded while people work, taken back, upgraded again.

The older version comes from git. Both versions are deployed by the same Python, as on a machine where natskit is
upgraded in place.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit.commands import run
from tests.kit.platforms import own_platform
from tests.platform.site import REPOSITORY, Deployed, LocalSite, own_ports

BIN = Path(sys.executable).parent
PASSWORD = "correct horse battery staple"  # noqa: S105
FIRST = "STATE_SCOPES: Mapping"
"""What the commit that brought the NATS account has added to natskit/bus/permissions.py."""


def older_commit() -> str:
    """The last commit in which the state is in PLATFORM; empty if the history is not here."""
    command = ["git", "log", "--reverse", "--format=%H", f"-S{FIRST}", "--", "natskit/bus/permissions.py"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.split()
    return f"{found[0]}^" if found else ""


class UpgradedSite(LocalSite):
    """A platform that is deployed from either tree by a Python of its own."""

    tree: Path
    python: Path

    def use(self, tree: Path) -> None:
        """Deploy from this tree from now on."""
        self.tree = tree
        packages = self.python.parents[1] / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        (packages / "site-packages" / "kit.pth").write_text(f"{tree}\n{sysconfig.get_path('purelib')}\n")

    def deploy(self, *arguments: str, **overrides: str) -> Deployed:
        words = [word for key, value in (self.data | overrides).items() for word in ("--data", f"{key}={value}")]
        command = [str(self.python), str(BIN / "pyinfra"), "-y", self.inventory, "deploy.py", *words, *arguments]
        done = subprocess.run(
            command, cwd=self.tree, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}\n{self.logs()}"
        self.info = json.loads((self.root / "platform.json").read_text())
        return Deployed(done.returncode, done.stdout, done.stderr)

    def natskit(
        self, *arguments: str, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), str(BIN / "natskit"), *arguments]
        return run(command, check=check, cwd=self.root, env=self.environment, input=stdin, timeout=120)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tree of the older version."""
    commit = older_commit()
    if not commit:
        pytest.skip("the commit before the NATS account STATE is not in this clone")
    tree = tmp_path_factory.mktemp("older") / "natskit"
    subprocess.run(["git", "worktree", "add", "--detach", tree, commit], cwd=REPOSITORY, check=True)
    try:
        (tree / "web" / "dist").symlink_to(REPOSITORY / "web" / "dist")
        yield tree
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=REPOSITORY, check=True)


@pytest.fixture(scope="module")
def site(older: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpgradedSite]:
    """A platform of the older version, with people and projects."""
    folder = tmp_path_factory.mktemp("upgraded")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    for program in ("nats-server", "supervisord", "supervisorctl"):
        (folder / "venv" / "bin" / program).symlink_to(BIN / program)
    site = UpgradedSite(folder / "local", own_ports())
    site.python = folder / "venv" / "bin" / "python"
    site.use(older)
    with own_platform(site.root):
        try:
            site.deploy()
            site.natskit("ready")
            for number in range(3):
                email = f"p{number}@example.org"
                site.natskit("account", "add", email, "--password-stdin", stdin=PASSWORD)
                site.natskit("project", "create", email, f"Project {number}")
            yield site
        finally:
            site.stop()


@dataclass
class Person:
    """Creates one project after the other, with one session, and counts those that were acknowledged."""

    site: UpgradedSite
    created: set[str] = field(default_factory=set)
    cookie: str = ""
    longest: float = 0.0
    """Seconds between two acknowledgements."""

    def __enter__(self) -> Person:
        self.cookie = self.cookie or self.site.sign_in("p1@example.org", PASSWORD).cookie
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        self._wait(len(self.created) + 3)
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(len(self.created) + 3)
        self._stops.set()
        self._thread.join()

    def _wait(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.created) < count:
            assert time.monotonic() < deadline, "nobody can create a project any more"
            time.sleep(0.1)

    def _work(self) -> None:
        last = time.monotonic()
        with self.site.http() as http:
            while not self._stops.wait(0.1):
                title = f"Made {len(self.created)}"
                call = {"jsonrpc": "2.0", "id": 1, "method": "create_project", "params": {"title": title}}
                try:
                    said: dict[str, Any] = http.post("/api/rpc", json=call, headers={"Cookie": self.cookie}).json()
                except (httpx.HTTPError, ValueError):
                    continue
                if "result" in said:
                    self.created.add(said["result"]["project_id"])
                    self.longest, last = max(self.longest, time.monotonic() - last), time.monotonic()


def projects(site: UpgradedSite) -> set[str]:
    return {one["project_id"] for one in site.natskit_json("project", "list")}


def streams(site: UpgradedSite) -> dict[str, tuple[str, int]]:
    """The NATS account and the last sequence of each stream that takes writes."""
    (said,) = site.monitor("jsz?streams=1&config=1&accounts=1")
    return {
        stream["name"]: (account["name"], stream["state"]["last_seq"])
        for account in json.loads(said)["account_details"]
        for stream in account.get("stream_detail", [])
        if not stream["config"]["subjects"][0].startswith("moved.")
    }


def test_there_and_back_while_people_work(site: UpgradedSite, older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, known, person = streams(site), projects(site), Person(site)
    assert before["KV_accounts"][0] == "PLATFORM"
    with person:
        site.use(REPOSITORY)
        site.deploy()
    print(f"the longest pause, with two hubs that restart: {person.longest:.1f} s")
    after = streams(site)
    for name in ("KV_accounts", "KV_projects", "KV_memberships", "KV_sessions", "KV_runners", "AUDIT"):
        assert after[name][0] == "STATE"
        assert after[name][1] >= before[name][1]
    assert projects(site) >= known | person.created
    site.natskit("ready")
    kinds = {event["kind"] for event in audit(site)}
    assert {"account_add", "sign_in", "create_project"} <= kinds, "the events of before and of now"

    with person:
        said = site.natskit("state", "back").stdout
        assert "Deploy the older version now" in said
        left_out = said.split()[-2:]
        site.use(older)
        site.deploy()
    assert projects(site) >= known | person.created
    assert streams(site)["KV_accounts"][0] == "PLATFORM"
    site.natskit("ready")
    with monkeypatch.context() as patched:
        patched.setenv("NATSKIT_IDENTITY_PASSPHRASE", PASSWORD)
        site.natskit("backup", "create", "--without-files", "--target", str(site.root.parent / "backup"), *left_out)

    with person:
        site.use(REPOSITORY)
        site.deploy()
        said = site.natskit("state", "confirm").stdout
        assert "The old streams are deleted" in said
    assert projects(site) >= known | person.created
    (said,) = site.monitor("jsz?accounts=1")
    assert "PLATFORM" not in {one["name"] for one in json.loads(said)["account_details"]}
    refused = site.natskit("state", "confirm", check=False)
    assert "there is nothing to confirm or to undo" in refused.stderr
    site.deploy()
    assert projects(site) >= known | person.created
    site.natskit("ready")


def audit(site: UpgradedSite) -> list[dict[str, Any]]:
    said = site.natskit("audit", "--since", "1h", "--json").stdout
    return [json.loads(line) for line in said.splitlines()]
