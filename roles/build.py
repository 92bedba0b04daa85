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

NATSKIT = Path(natskit.__file__).parent


def environment(settings: Settings, packages: Iterable[str]) -> dict[str, str]:
    """The environment of a Python program that runs from here: a digest of its code, and where own packages are.

    Raises :class:`SettingsError` for a package that is nowhere.
    """
    found = {"NATSKIT_BUILD": digest([NATSKIT, *places(settings, packages)])[:12]}
    if settings.platform_python_path:
        found["PYTHONPATH"] = os.pathsep.join(settings.platform_python_path)
    return found


def places(settings: Settings, packages: Iterable[str]) -> list[Path]:
    """The folders of packages, or the files of modules, without importing them.

    Raises :class:`SettingsError` for a package that is nowhere.
    """
    return [_find(package, settings) for package in packages]


def digest(places: Iterable[Path]) -> str:
    """What changes when the code in one of these places does."""
    return hashlib.sha256("".join(map(_digest, places)).encode()).hexdigest()


def _find(package: str, settings: Settings) -> Path:
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
