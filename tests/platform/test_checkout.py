"""The checkout works in a folder of any name, after a move while the platform runs, and after the loss of its
Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.ops.stop_platform import supervisors
from tests.documents import ELSEWHERE, block, blocks
from tests.platform.site import REPOSITORY, own_ports

pytestmark = pytest.mark.platform

NOT_COPIED = (".git", ".local", ".cluster", "node_modules", ".*_cache", "playwright", "mypy", "*mypyc*")
"""What is large, and no platform needs."""


class Checkout:
    """A copy of this checkout with its .venv, in which commands run."""

    def __init__(self, place: Path) -> None:
        self.place = place
        shutil.copytree(REPOSITORY, place, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        settings = "".join(f"{name} = {port}\n" for name, port in own_ports().items())
        (place / "inventories" / "group_data" / "all.py").write_text(settings)
        self.programs = place.parent / "programs"
        self.environment = {"PATH": str(minimal(self.programs)), "HOME": str(place.parent), "LANG": "C.UTF-8"}

    def run(self, *command: str) -> str:
        """The output of a command that must succeed, on a system with little more than the essential packages."""
        done = subprocess.run(
            command,
            cwd=self.place,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-5000:]}{done.stderr[-5000:]}{self.logs()}"
        return done.stdout

    def up(self) -> str:
        return self.run("make", "up")

    def exec(self, *command: str) -> str:
        return self.run(".venv/bin/natskit", "exec", "Kept", "--start", "--", *command)

    def move(self, place: Path) -> None:
        place.parent.mkdir(parents=True)
        self.place = self.place.rename(place)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.place.glob(".local/log/*.log"))


def minimal(folder: Path) -> Path:
    """A folder with the commands of Debian's essential packages, make and Python; without dpkg, with all commands."""
    folder.mkdir(parents=True)
    query = ["dpkg-query", "-W", "-f", "${Essential} ${Priority} ${Package}\n"]
    if not shutil.which("dpkg-query"):
        return Path(os.environ["PATH"])
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line.split()[2] for line in lines if line.startswith("yes") or line.split()[1] == "required"]
    listed = subprocess.run(["dpkg-query", "-L", *names], capture_output=True, text=True, check=True).stdout
    places = [Path(line) for line in listed.splitlines() if Path(line).parent.name in ("bin", "sbin")]
    for place in [*places, *(Path(found) for name in ("make", "awk", "sh") if (found := shutil.which(name)))]:
        if place.is_file() and not (folder / place.name).exists():
            (folder / place.name).symlink_to(place)
    (folder / "python3").symlink_to(Path(sys.executable).resolve())
    return folder


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    folder = Path(tempfile.mkdtemp(prefix="natskit-"))  # not below pytest's, whose length a socket's path cannot have
    checkout = Checkout(folder / "it's 100% ü" / "a check;out")
    yield checkout
    subprocess.run([checkout.place / "scripts" / "down", checkout.place / ".local"], check=True, timeout=120)
    shutil.rmtree(folder)


def printed_commands() -> list[str]:
    """The shell commands of the pages that run on one machine without root, in order."""
    found = []
    for found_block in blocks("sh"):
        if found_block.id not in ELSEWHERE and not found_block.text.startswith("apt-get install"):
            found += re.sub(r"\\\n\s*", "", found_block.text).splitlines()
    return found


def test_the_commands_of_the_documentation_run_as_printed(checkout: Checkout) -> None:
    """In order, in a checkout in which nothing runs, on a minimal system."""
    commands = printed_commands()
    assert commands[0] == "make up"
    assert len(commands) > 20
    # grep ends with 1 where nobody was refused.
    checked = [f"{{ {line}\n}} || {'[ $? = 1 ]' if '| grep' in line else 'exit 1'}" for line in commands]
    said = checkout.run("bash", "-o", "pipefail", "-c", "\n".join(checked))
    assert "natskit is up" in said
    assert "\n7\n" in said
    assert 'server_name: "nats-1"' in said


def test_an_upgrade_fetches_the_commits_and_rebuilds_the_console(checkout: Checkout, tmp_path: Path) -> None:
    """The commands of the guide, with a repository that has a newer console."""

    def git(*words: str, cwd: Path) -> None:
        subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *words], cwd=cwd, check=True)

    origin = tmp_path / "origin"
    git("init", "--quiet", "--initial-branch=main", str(checkout.place), cwd=tmp_path)
    git("add", "--all", cwd=checkout.place)
    git("commit", "--quiet", "--message=old", cwd=checkout.place)
    git("clone", "--quiet", str(checkout.place), str(origin), cwd=tmp_path)
    git("remote", "add", "origin", str(origin), cwd=checkout.place)
    git("fetch", "--quiet", "origin", cwd=checkout.place)
    git("branch", "--quiet", "--set-upstream-to=origin/main", cwd=checkout.place)
    page = origin / "web" / "console" / "index.html"
    page.write_text(page.read_text().replace("</html>", "<!-- newer --></html>"))
    git("commit", "--quiet", "--all", "--message=newer", cwd=origin)

    (checkout.programs / "git").symlink_to(shutil.which("git") or "/usr/bin/git")
    checkout.run("bash", "-euc", block("docs/how-to/upgrade.md", "Upgrade natskit", "sh"))
    assert "<!-- newer -->" in (checkout.place / "web" / "dist" / "index.html").read_text()


def test_the_packages_of_a_release_are_built_as_the_guide_says(checkout: Checkout) -> None:
    """On a machine without Node.js, with the tools that `make lint` installs."""
    tools = REPOSITORY / "web" / "node_modules"
    if not (tools / ".tools").exists():
        subprocess.run([REPOSITORY / "scripts" / "web-tools"], check=True, capture_output=True)
    shutil.rmtree(checkout.place / "web" / "node_modules", ignore_errors=True)
    shutil.copytree(tools, checkout.place / "web" / "node_modules", symlinks=True)
    checkout.run("bash", "-euc", block("docs/how-to/release.md", "Build the packages", "sh"))
    kinds = {path.suffix for path in (checkout.place / "dist").iterdir() if path.name != ".gitignore"}
    assert kinds == {".whl", ".gz"}
    (packed,) = (checkout.place / "web" / "client").glob("natskit-client-*.tgz")
    with tarfile.open(packed) as archive:
        assert "package/types/natskit.d.ts" in archive.getnames()


def test_it_works_anywhere_and_goes_on_elsewhere(checkout: Checkout) -> None:
    assert "natskit is up" in checkout.up()
    checkout.run(".venv/bin/natskit", "project", "create", "admin@localhost", "Kept")
    checkout.exec("sh", "-c", "echo data > file")
    assert "nothing to change" in checkout.up()

    old = checkout.place
    checkout.move(old.parents[1] / "two words" / "natskit")
    said = checkout.up()
    assert "Setting up .venv (platform): the checkout was moved or copied" in said
    assert checkout.exec("cat", "file") == "data\n"
    assert checkout.exec("pwd").startswith(f"{checkout.place}/.local/")
    assert [found.root for found in supervisors() if found.root.is_relative_to(old.parents[1])] == [
        checkout.place / ".local"
    ]
    assert "nothing to change" in checkout.up()

    for link in (checkout.place / ".venv" / "bin").glob("python*"):
        link.unlink()
    (checkout.place / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    said = checkout.up()
    assert "its Python was replaced or removed" in said
    assert checkout.exec("cat", "file") == "data\n"
    assert "natskit is down" in checkout.run("make", "down")
