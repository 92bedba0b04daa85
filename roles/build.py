"""Which code runs: a program whose code changed must be restarted like one whose settings changed."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

import natskit
from natskit.errors import SettingsError
from natskit.settings import Settings


def environment(settings: Settings, packages: Iterable[str]) -> dict[str, str]:
    """The environment of a Python program: a digest of its code, and where the platform's own packages are.

    Raises :class:`SettingsError` for a package that is nowhere.
    """
    found = {"NATSKIT_BUILD": _build(settings, packages)}
    if settings.platform_python_path:
        found["PYTHONPATH"] = os.pathsep.join(settings.platform_python_path)
    return found


def _build(settings: Settings, packages: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for place in [Path(natskit.__file__).parent, *(_find(package, settings) for package in packages)]:
        digest.update(_digest(place).encode())
    return digest.hexdigest()[:12]


def _find(package: str, settings: Settings) -> Path:
    """The folder of a package, or the file of a module, without importing it."""
    top = package.partition(".")[0]
    spec = PathFinder.find_spec(top, settings.platform_python_path) or PathFinder.find_spec(top)
    if spec is None or spec.origin is None:
        raise SettingsError(
            f"API package {package!r} is neither in platform_python_path nor installed in .venv: correct the name, "
            "or add its folder to platform_python_path"
        )
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


@functools.cache
def _digest(place: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        digest.update(str(path.relative_to(place)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
