"""Files on a whole platform: ``natskit cp``, and the access to the methods for files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

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


def test_a_command_that_was_ended_goes_on(site: LocalSite, world: World, home: Path, here: Path) -> None:
    data = random.Random(2).randbytes(1024 * 1024) * 200
    (here / "big").write_bytes(data)
    command = [NATSKIT, "cp", "big", f"{world.names['p']}:big"]
    running = subprocess.Popen(command, cwd=here, env=site.environment, stderr=subprocess.PIPE)

    def has_begun() -> bool:
        return any(found.stat().st_size > 2_000_000 for found in home.glob(".natskit-*.upload"))

    wait_for(has_begun, "some of it has arrived")
    running.send_signal(signal.SIGINT)
    running.communicate()
    left = list(home.glob(".natskit-*.upload"))
    assert running.returncode != 0
    assert len(left) == 1
    inode = left[0].stat().st_ino
    assert cp(site, here, *command[2:]).returncode == 0
    assert hashlib.sha256((home / "big").read_bytes()).digest() == hashlib.sha256(data).digest()
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
