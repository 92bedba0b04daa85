"""The one way to run a command that a test waits for."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

SHOWN = 10_000
"""The most characters of each output that a failure shows."""


def run(command: Sequence[str], *, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it printed. With ``check``, its failure is the test's.

    ``options`` are those of :func:`subprocess.run`.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    said = f"{done.stdout[-SHOWN:]}{done.stderr[-SHOWN:]}"
    assert not check or done.returncode == 0, f"{' '.join(command)}: {said}"
    return done
