"""natskit as users install it: the wheel, in an environment without this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from roles import mirrors
from tests.kit.commands import run
from tests.platform.site import REPOSITORY

UV = str(Path(sys.executable).with_name("uv"))


def build(folder: Path) -> Path:
    """Build the wheel into a folder, from the source distribution."""
    # What is pinned here builds it: nothing is fetched.
    _uv("build", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(folder), str(REPOSITORY))
    (wheel,) = folder.glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Installed:
    """An environment with only the wheel, one of its extras, and their dependencies."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, wheel: Path, extra: str = "") -> Installed:
        """Install it, with the pinned versions of its dependencies."""
        _uv("venv", "--python", sys.executable, str(folder))
        requirement = f"natskit{f'[{extra}]' if extra else ''} @ {wheel.as_uri()}"
        pinned = str(REPOSITORY / "requirements" / "platform.lock")
        _uv("pip", "install", "--python", str(folder), "--constraint", pinned, requirement)
        return cls(folder)

    def run(self, *words: str, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment from a folder."""
        return run(
            [str(self.folder / "bin" / words[0]), *words[1:]],
            check=check,
            cwd=cwd,
            # None of the environment's commands is on the PATH, as pipx has it for all of them but natskit.
            env={name: value for name, value in os.environ.items() if not name.startswith(("NATSKIT_", "PYTHON"))}
            | environment,
            stdin=subprocess.DEVNULL,
            timeout=600,
        )


def _uv(*words: str) -> None:
    environment = mirrors.environment(os.environ)
    done = subprocess.run(
        [UV, "--quiet", *words, *(mirrors.arguments(os.environ) if words[0] != "venv" else [])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
