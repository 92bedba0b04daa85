"""Import a library without something large that it imports, but that a program of natskit does not need."""

from __future__ import annotations

import importlib
import sys


def import_without(module: str, left_out: str) -> None:
    """Import a module as if ``left_out`` were not installed. Later imports of ``left_out`` work as usual.

    If something has imported it already, there is nothing to save, and this does nothing.
    """
    if left_out in sys.modules:
        return
    sys.modules[left_out] = None  # type: ignore[assignment]
    try:
        importlib.import_module(module)
    finally:
        del sys.modules[left_out]
