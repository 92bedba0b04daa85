"""Which code runs: a program whose code changed must be restarted like one whose settings changed."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import natskit


def build_id(packages: Iterable[str] = ()) -> str:
    """A short digest of natskit's code and of the API packages named in the settings."""
    digest = hashlib.sha256()
    for folder in [Path(natskit.__file__).parent, *(_folder(package) for package in packages)]:
        digest.update(_digest(folder).encode())
    return digest.hexdigest()[:12]


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else Path("/nonexistent")


@functools.cache
def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
