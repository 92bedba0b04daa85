"""The version of the code that runs: a program whose code changed is restarted like one whose settings changed."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

import natskit
from natskit.config.kit import IN_WHEEL, kit
from natskit.config.settings import Settings
from natskit.errors import SettingsError

NATSKIT = Path(natskit.__file__).parent
LOCK = kit() / "requirements" / "platform.lock"


def environment(settings: Settings, packages: Iterable[str]) -> dict[str, str]:
    """The environment of a Python program that runs from here: a digest of its code, and the path of the platform's own
    packages.

    Raises :class:`SettingsError` for a package that does not exist.
    """
    found = {"NATSKIT_BUILD": f"{digest([NATSKIT, *places(settings, packages)])[:12]}-{_interpreter()}"}
    if settings.platform_python_path:
        found["PYTHONPATH"] = os.pathsep.join(settings.platform_python_path)
    return found


def _interpreter() -> str:
    """A digest of the Python that runs programs here and its packages: a change of them requires a restart."""
    return hashlib.sha256(sys.version.encode() + LOCK.read_bytes()).hexdigest()[:12]


def places(settings: Settings, packages: Iterable[str]) -> list[Path]:
    """The folders of packages, or the files of modules, without importing them.

    Raises :class:`SettingsError` for a package that does not exist.
    """
    return [_find(package, settings) for package in packages]


def digest(places: Iterable[Path]) -> str:
    """A digest of the code in these places."""
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
        if path.is_relative_to(NATSKIT / IN_WHEEL):  # runs here alone: the same code has the same digest in a checkout
            continue
        digest.update(str(path.relative_to(place)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
