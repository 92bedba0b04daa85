"""The runner measures and removes file trees with the oddest structures."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from natskit.errors import NatskitError
from natskit.runner.disk import measure
from natskit.runner.removal import remove_tree

NOBODY = 65534
REMOVE = """
import asyncio, os, pathlib, sys
from natskit.runner.removal import remove_tree
if os.geteuid() == 0:  # only now: another user may not reach this Python
    os.setresuid(65534, 65534, 65534)
asyncio.run(remove_tree(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture
def tree() -> Iterator[Path]:
    """A folder that a user other than root can reach, too."""
    outer = Path(tempfile.mkdtemp(prefix="natskit-removal-", dir="/var/tmp"))
    outer.chmod(0o755)
    (outer / "tree").mkdir()
    yield outer / "tree"
    subprocess.run(["rm", "-rf", outer], check=True)


def descend(folder: Path, name: str, levels: int) -> None:
    """Make nested folders. Their path may be longer than any system call accepts."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


@pytest.mark.parametrize(("name", "levels"), [("a", 1500), ("a" * 200, 1500), ("b", 5000)])
def test_folders_in_folders(tree: Path, name: str, levels: int) -> None:
    descend(tree, name, levels)
    taken = asyncio.run(measure([tree]))
    assert taken is not None
    assert taken.files == levels + 2
    asyncio.run(remove_tree(tree))
    assert not tree.exists()


@pytest.mark.parametrize("mode", [0o000, 0o555, 0o300])
def test_folders_that_their_owner_has_closed(tree: Path, mode: int) -> None:
    """A user other than root needs the right to list and change a folder."""
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").touch()
    descend(tree, "deep", 100)
    (tree / "a" / "link").symlink_to("/etc")
    command = [sys.executable, "-c", REMOVE, str(tree)]
    if os.geteuid() == 0:
        os.chown(tree.parent, NOBODY, NOBODY)
        subprocess.run(["chown", "-R", str(NOBODY), tree], check=True)
    closed = ["-depth", "-type", "d", "-execdir", "chmod", f"{mode:o}", "{}", ";"]
    subprocess.run(["find", tree, *closed], check=True, env={"PATH": "/usr/bin:/bin"})
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not tree.exists()


def test_files_that_are_made_meanwhile(tree: Path) -> None:
    stop, made = threading.Event(), threading.Event()

    def make() -> None:
        for number in range(300):
            try:
                (tree / f"folder-{number}").mkdir()
                (tree / f"folder-{number}" / "file").touch()
            except FileNotFoundError:
                break
            made.set()
        stop.set()

    writer = threading.Thread(target=make)
    writer.start()
    made.wait()
    asyncio.run(remove_tree(tree))
    stop.wait()
    writer.join()
    assert not tree.exists()


def test_links_and_what_is_no_folder(tree: Path) -> None:
    outside = tree.parent / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (tree / "link").symlink_to(outside)
    os.mkfifo(tree / "pipe")
    (tree / os.fsdecode(b"-rf \xff\n")).touch()
    asyncio.run(remove_tree(tree))
    assert not tree.exists()
    assert (outside / "file").exists()
    link = tree.parent / "only a link"
    link.symlink_to(outside)
    asyncio.run(remove_tree(link))
    assert not link.is_symlink()
    assert (outside / "file").exists()
    asyncio.run(remove_tree(link))  # gone already


def test_what_cannot_be_removed_is_named_and_another_attempt_finishes(tree: Path) -> None:
    if os.geteuid() != 0 or shutil.which("chattr") is None:
        pytest.skip("needs root and chattr")
    (tree / "kept").touch()
    (tree / "other").touch()
    if subprocess.run(["chattr", "+i", tree / "kept"], capture_output=True, check=False).returncode:
        pytest.skip("the file system knows no immutable files")
    try:
        with pytest.raises(NatskitError, match=r"kept.*Operation not permitted"):
            asyncio.run(remove_tree(tree))
        assert not (tree / "other").exists()
    finally:
        subprocess.run(["chattr", "-i", tree / "kept"], check=True)
    asyncio.run(remove_tree(tree))
    assert not tree.exists()
