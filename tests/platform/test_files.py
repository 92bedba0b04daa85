"""Files on a whole platform: ``natskit cp``, and the access to the methods for files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from natskit.client import Client
from natskit.errors import ConnectionLostError, NotAllowedError
from natskit.project.file_api import file_methods
from natskit.rpc import RpcError
from tests.documents import block
from tests.kit.wait import wait_for
from tests.platform.site import LocalSite, World
from tests.platform.test_resilience import pid_of

NATSKIT = str(Path(sys.executable).with_name("natskit"))
LARGE_MIB = int(os.environ.get("NATSKIT_TEST_FILE_MIB", "60"))
"""The size of a large file in MiB; 1024 takes minutes."""


def write_large(path: Path, mib: int = LARGE_MIB) -> str:
    """Write a file of random bytes. Returns its SHA-256."""
    dice = random.Random(2)
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(dice.randbytes(1024 * 1024))
    return version_of(path)


def version_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def home(site: LocalSite, world: World) -> Path:
    (found,) = (site.root / "runner" / "projects").rglob(f"{world.names['p']}/home")
    return found


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "data.bin").write_bytes(random.Random(1).randbytes(3_000_000))
    (tmp_path / "results" / "inner").mkdir(parents=True)
    (tmp_path / "results" / "one").write_text("1")
    (tmp_path / "results" / "inner" / "two").write_text("2")
    (tmp_path / "results" / "link").symlink_to("/etc/passwd")
    return tmp_path


def cp(site: LocalSite, here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NATSKIT, "cp", *arguments], cwd=here, env=site.environment, capture_output=True, text=True, check=False
    )


def test_the_commands_of_the_how_to_guide_run(site: LocalSite, world: World, home: Path, here: Path) -> None:
    text = block("docs/how-to/copy-files.md", "Copy with the command", "sh")
    lines = text.replace("First steps", world.names["p"]).replace("natskit", NATSKIT)
    done = subprocess.run(
        ["sh", "-e"], input=lines, cwd=here, env=site.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (here / "copy.bin").read_bytes() == (home / "data.bin").read_bytes() == (here / "data.bin").read_bytes()
    found = sorted(str(path.relative_to(home / "archive")) for path in (home / "archive").rglob("*"))
    assert found == ["results", "results/inner", "results/inner/two", "results/one"]
    assert "skipped, as it is no file: results/link" in done.stderr


def test_a_folder_comes_back_as_it_was(site: LocalSite, world: World, home: Path, here: Path) -> None:
    project = world.names["p"]
    (home / "tree" / "inner").mkdir(parents=True)
    (home / "tree" / "inner" / "run").write_text("x")
    (home / "tree" / "inner" / "run").chmod(0o755)
    (home / "tree" / os.fsdecode(b"a\xff\nb")).write_text("bytes")
    (home / "tree" / "link").symlink_to("inner")
    done = cp(site, here, "-r", f"{project}:tree", "copy")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(here / "copy")) == sorted([os.fsdecode(b"a\xff\nb"), "inner"])
    assert (here / "copy" / "inner" / "run").stat().st_mode & 0o777 == 0o755
    assert len(done.stderr.splitlines()) == 1
    assert cp(site, here, f"{project}:tree", "copy").stderr == "natskit: tree is a folder: add --recursive\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none", "P:"], "natskit: none does not exist\n"),
        (["results", "P:"], "natskit: results is a folder: add --recursive\n"),
        (["P:none", "."], "natskit: 'none' does not exist\n"),
        (["data.bin", "P:../x"], "natskit: '../x' leads out of the project's home\n"),
        (["data.bin", "no such project:x"], "natskit: there is no project 'no such project': `natskit project list`"),
    ],
)
def test_errors_are_one_line(site: LocalSite, world: World, here: Path, arguments: list[str], said: str) -> None:
    words = [re.sub(r"^P:", f"{world.names['p']}:", word) for word in arguments]
    done = cp(site, here, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["data.bin", "copy"], ["P:a", "P:b"], ["data.bin", "P:a", "P:b"], ["data.bin"]])
def test_a_copy_has_one_end_in_a_project(site: LocalSite, here: Path, arguments: list[str]) -> None:
    assert cp(site, here, *arguments).returncode == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_was_ended_goes_on(
    site: LocalSite, world: World, home: Path, here: Path, how: signal.Signals
) -> None:
    version = write_large(here / "big", max(200, LARGE_MIB))
    command = [NATSKIT, "cp", "big", f"{world.names['p']}:big"]
    running = subprocess.Popen(command, cwd=here, env=site.environment, stderr=subprocess.PIPE)

    def has_begun() -> bool:
        return any(found.stat().st_size > 2_000_000 for found in home.glob(".natskit-*.upload"))

    wait_for(has_begun, "some of it has arrived")
    running.send_signal(how)
    running.communicate()
    left = list(home.glob(".natskit-*.upload"))
    assert running.returncode != 0
    assert len(left) == 1
    inode = left[0].stat().st_ino
    assert cp(site, here, *command[2:]).returncode == 0
    assert version_of(home / "big") == version
    assert (home / "big").stat().st_ino == inode, "it began again"
    (home / "big").unlink()


def sync(site: LocalSite, here: Path, *arguments: str) -> str:
    done = subprocess.run(
        [NATSKIT, "sync", *arguments], cwd=here, env=site.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tree_of(top: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(top)): path.read_bytes() if path.is_file() else None
        for path in top.rglob("*")
        if not path.is_symlink()
    }


def test_sync_makes_folders_alike_and_copies_nothing_twice(
    site: LocalSite, world: World, home: Path, here: Path
) -> None:
    there = f"{world.names['p']}:synced"
    for number in range(600):
        (here / "results" / "inner" / f"{number}").write_text(f"{number}")
    (here / "results" / "big").write_bytes(random.Random(4).randbytes(2_000_000))
    (here / "results" / "empty").mkdir()
    assert sync(site, here, "results", there) == "603 copied, 0 removed.\n"
    assert tree_of(home / "synced") == tree_of(here / "results")
    assert sync(site, here, "results", there) == "0 copied, 0 removed.\n"
    (here / "results" / "one").write_text("X")
    (home / "synced" / "more").mkdir()
    (home / "synced" / "more" / "file").write_text("surplus")
    (home / "synced" / "more" / ".natskit-0.upload").write_text("not finished")
    assert sync(site, here, "-n", "--delete", "results", there) == "copy one\nremove more\n"
    assert sync(site, here, "results", there) == "1 copied, 0 removed.\n"
    assert (home / "synced" / "more" / "file").exists()
    assert sync(site, here, "--delete", "results", there) == "0 copied, 1 removed.\n"
    assert tree_of(home / "synced") == tree_of(here / "results")
    assert sync(site, here, there, "back") == "603 copied, 0 removed.\n"
    assert tree_of(here / "back") == tree_of(here / "results")
    (here / "back" / "surplus").mkdir()
    (here / "back" / "inner" / "7").write_text("8")
    assert sync(site, here, "--delete", there, "back") == "1 copied, 1 removed.\n"
    assert tree_of(here / "back") == tree_of(here / "results")


def test_sync_writes_through_no_link(site: LocalSite, world: World, home: Path, here: Path) -> None:
    there = f"{world.names['p']}:linked"
    (home / "linked" / "folder").mkdir(parents=True)
    (home / "linked" / "folder" / "file").write_text("theirs")
    (here / "own").mkdir()
    (here / "back").mkdir()
    (here / "back" / "folder").symlink_to("../own")
    done = subprocess.run(
        [NATSKIT, "sync", there, "back"], cwd=here, env=site.environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, os.listdir(here / "own")) == (1, [])
    assert done.stderr == "natskit: folder is a directory in the source, and a symlink in the target\n"


async def test_a_stranger_may_use_none_of_the_methods(site: LocalSite, world: World) -> None:
    async with await Client.sign_in(site.url, world.email_b, world.password, ca_file=site.ca_file) as stranger:
        for method in file_methods.names():
            with pytest.raises(NotAllowedError):
                await stranger.call_project(world.names["p"], method)


async def test_who_loses_the_project_sends_and_reads_no_more(
    site: LocalSite, world: World, home: Path, tmp_path: Path
) -> None:
    project = world.names["p"]
    data = random.Random(3).randbytes(1024 * 1024) * 100
    (tmp_path / "big").write_bytes(data)
    (home / "secret").write_bytes(data)
    for way in ("up", "down"):
        site.natskit("project", "share", project, world.email_b)
        async with await Client.sign_in(site.url, world.email_b, world.password, ca_file=site.ca_file) as member:
            files = member.files(project, patience=5)
            taken: list[int] = []

            def take_away(done: int, _size: int, taken: list[int] = taken) -> None:
                if done > 2_000_000 and not taken:
                    taken.append(done)
                    site.natskit("project", "unshare", project, world.email_b)

            transfer: Coroutine[Any, Any, object]

            if way == "up":
                transfer = files.upload(tmp_path / "big", "theirs", progress=take_away)
            else:
                transfer = files.download("secret", tmp_path / "theirs", progress=take_away)
            with pytest.raises((NotAllowedError, ConnectionLostError, RpcError)):
                await transfer
            assert taken
    assert not (home / "theirs").exists()
    assert not (tmp_path / "theirs").exists()
    (home / "secret").unlink()
    for name in os.listdir(home):  # they may not discard it either; the next uploads do, after some days
        if name.startswith(".natskit-"):
            (home / name).unlink()


async def test_who_loses_the_project_hears_no_more(site: LocalSite, world: World, home: Path) -> None:
    project = world.names["p"]
    (home / "watched").mkdir()
    site.natskit("project", "share", project, world.email_b)
    async with await Client.sign_in(site.url, world.email_b, world.password, ca_file=site.ca_file) as member:
        changes = member.watch_directory(project, "watched")
        assert await asyncio.wait_for(anext(changes), 20) is None
        (home / "watched" / "heard").touch()
        assert await asyncio.wait_for(anext(changes), 20) == frozenset({"heard"})
        site.natskit("project", "unshare", project, world.email_b)
        (home / "watched" / "secret").touch()

        async def listen() -> None:
            async for names in changes:
                assert names is None or "secret" not in names

        with pytest.raises((NotAllowedError, RpcError)):
            await asyncio.wait_for(listen(), 60)
    async with await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file) as owner:
        changes = owner.watch_directory(project, "watched")
        assert await asyncio.wait_for(anext(changes), 20) is None
        (home / "watched" / "still").touch()
        assert "still" in (await asyncio.wait_for(anext(changes), 20) or ())
        await changes.aclose()
    shutil.rmtree(home / "watched")


@pytest.mark.parametrize("program", ["proxy", "nats", "runner"])
async def test_a_file_arrives_whatever_dies_in_the_middle(
    site: LocalSite, world: World, home: Path, tmp_path: Path, program: str
) -> None:
    """As a user, through the proxy. The project's agent dies together with the runner."""
    data = random.Random(4).randbytes(1024 * 1024) * 40
    (tmp_path / "up").write_bytes(data)
    async with await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file) as person:
        files = person.files(world.names["p"])
        killed: list[int] = []

        def kill(done: int, size: int) -> None:
            if done > size // 4 and not killed:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

        victim = pid_of(site, program)
        await files.upload(tmp_path / "up", "arrives", progress=kill)
        assert killed.pop() == victim
        assert (home / "arrives").read_bytes() == data
        wait_for(lambda: site.natskit("status", check=False).returncode == 0, "the platform to be whole again")
        victim = pid_of(site, program)
        await files.download("arrives", tmp_path / "down", progress=kill)
        assert killed == [victim]
        assert (tmp_path / "down").read_bytes() == data
    wait_for(lambda: site.natskit("status", check=False).returncode == 0, "the platform to be whole again")
    (home / "arrives").unlink()
    assert not any(name.startswith(".natskit-") for name in os.listdir(home))


VICTIMS = ("agent", "hub-1", "proxy", "nats", "hub-2")


def kill(site: LocalSite, world: World, victim: str) -> None:
    """End a program of the platform without a warning."""
    pid = wait_for(lambda: agent_of(world) if victim == "agent" else pid_of(site, victim), f"{victim} to run")
    os.kill(pid, signal.SIGKILL)


def agent_of(world: World) -> int:
    """The process id of the project's agent."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            if "natskit.project" in words and world.names["p"] in " ".join(words):
                return int(process.name)
    raise AssertionError("the project's agent does not run")


async def test_a_large_file_arrives_although_everything_dies_in_turn(
    site: LocalSite, world: World, home: Path, tmp_path: Path
) -> None:
    """As a user, through the proxy."""
    version = write_large(tmp_path / "up")
    async with await Client.sign_in(site.url, world.email_a, world.password, ca_file=site.ca_file) as person:
        files = person.files(world.names["p"])
        for way in ("up", "down"):
            hit = Killer(site, world)
            if way == "up":
                await files.upload(tmp_path / "up", "whole", progress=hit)
            else:
                await files.download("whole", tmp_path / "down", progress=hit)
            assert hit.left == []
            wait_for(lambda: site.natskit("status", check=False).returncode == 0, "the platform to be whole again")
    assert version_of(home / "whole") == version_of(tmp_path / "down") == version
    (home / "whole").unlink()
    assert not any(name.startswith(".natskit-") for name in os.listdir(home))


class Killer:
    """Kills one program after the other while a file is on its way."""

    def __init__(self, site: LocalSite, world: World) -> None:
        self._site, self._world = site, world
        self.left = list(VICTIMS)

    def __call__(self, done: int, size: int) -> None:
        if self.left and done > size * (len(VICTIMS) - len(self.left) + 1) // (len(VICTIMS) + 2):
            kill(self._site, self._world, self.left.pop(0))


def test_an_upload_over_http_arrives_although_everything_dies_in_turn(
    site: LocalSite, world: World, home: Path, tmp_path: Path
) -> None:
    """With an ``Upload-Id``, and ``Range`` on the way back."""
    version = write_large(tmp_path / "up")
    size = (tmp_path / "up").stat().st_size
    address, headers = f"/api/projects/{world.names['p']}/files/whole", {"Upload-Id": version}
    hit = Killer(site, world)
    begins: list[int] = []

    def body(begin: int) -> Iterator[bytes]:
        begins.append(begin)
        with (tmp_path / "up").open("rb") as file:
            file.seek(begin)
            while data := file.read(256 * 1024):
                hit(file.tell(), size)
                yield data

    with site.http() as http:
        http.timeout = httpx.Timeout(60)

        def attempt() -> bool:
            answer = http.post("/api/sign-in", json={"email": world.email_a, "password": world.password})
            answer.raise_for_status()
            found = http.head(address, headers=headers)
            begin = int(found.headers["upload-offset"]) if found.status_code == 204 else 0
            if found.status_code not in (204, 404):
                return False
            if begin == 0 and http.head(address).status_code == 200:
                return True  # only the answer was lost
            more = {"Content-Range": f"bytes {begin}-{size - 1}/{size}", "Content-Length": str(size - begin)}
            answer = http.put(address, content=body(begin), headers=headers | more)
            return answer.status_code == 200 and answer.json() == {"version": version}

        def received() -> bool:
            with (tmp_path / "down").open("ab") as file:
                begin = file.tell()
                if begin == size:
                    return True
                more = {"Range": f"bytes={begin}-"} if begin else {}
                with http.stream("GET", address, headers=more) as answer:
                    answer.raise_for_status()
                    assert answer.status_code == (206 if begin else 200)
                    for part in answer.iter_raw():
                        file.write(part)
                        hit(file.tell(), size)
            return False

        wait_for(attempt, "the file to arrive", 300 + LARGE_MIB)
        assert hit.left == []
        assert max(begins) > 0, "it began again"
        assert version_of(home / "whole") == version
        wait_for(lambda: site.natskit("status", check=False).returncode == 0, "the platform to be whole again")
        hit.left = list(VICTIMS)
        wait_for(received, "the file to come back", 300 + LARGE_MIB)
        assert hit.left == []
    assert version_of(tmp_path / "down") == version
    (home / "whole").unlink()
    wait_for(lambda: site.natskit("status", check=False).returncode == 0, "the platform to be whole again")
