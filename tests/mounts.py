"""A mount in a folder, which not even root can remove."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, options: str = "mode=755") -> Iterator[None]:
    """Mount a file system (tmpfs(5)) on a folder. Skips the test if that is not permitted."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def hanging(folder: Path) -> Iterator[None]:
    """Mount a file system that never answers (fuse(4)): a program of ours serves it, and does nothing. Skips the test
    if that is not permitted."""
    try:
        served = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("nobody may serve a file system on this machine")
    options = f"fd={served},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    mount = ["mount", "-i", "-t", "fuse", "-o", options, "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False, pass_fds=[served]).returncode:
        os.close(served)
        pytest.skip("this machine lets nobody mount")
    try:
        yield
    finally:
        os.close(served)  # all who wait for an answer get an error
        subprocess.run(["umount", "-l", folder], check=True)
