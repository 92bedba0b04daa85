"""Platforms that tests start on this machine: one whose run was killed is stopped by the next run, as clusters are.

supervisord and its programs outlive the process that started them. So a run marks the folder of each platform and
claims it; the kernel ends the claim with the run, however that ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from natskit.ops.stop_platform import supervisors
from tests.kit.ports import claim, release

MARK = "of-a-test-run"
"""A file in the folder of a platform that tests started. Other platforms are none of their business."""
DOWN = Path(__file__).parents[2] / "scripts" / "down"


@contextlib.contextmanager
def own_platform(root: Path) -> Iterator[None]:
    """Claim the folder of a platform for this run. The caller starts the platform there, and stops it at the end."""
    remove_leftovers()
    assert claim(_claim_of(root)), f"another run of the tests has a platform in {root}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        (root / MARK).touch()
        yield
    finally:
        release(_claim_of(root))


def remove_leftovers() -> None:
    """Stop this user's marked platforms that no run claims any more."""
    for found in supervisors():
        if found.user != os.geteuid() or not (found.root / MARK).exists() or not claim(_claim_of(found.root)):
            continue
        try:
            subprocess.run([DOWN, str(found.root)], check=True, capture_output=True, timeout=300)
        finally:
            release(_claim_of(found.root))


def _claim_of(root: Path) -> str:
    """The name of the claim of a folder: short enough for a socket, whatever the path."""
    return f"platform/{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}"
