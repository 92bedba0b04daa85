"""Where the kit is: ``deploy.py``, ``roles/``, ``templates/``, ``requirements/``, the built console ``web/dist/``."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
IN_WHEEL = "_kit"
"""The folder of this package that ``scripts/wheel_kit.py`` puts the kit into when a wheel is built."""


def kit() -> Path:
    """The folder with the kit: in an installed wheel a part of the package, otherwise the checkout around it."""
    installed = PACKAGE / IN_WHEEL
    return installed if installed.is_dir() else PACKAGE.parent
