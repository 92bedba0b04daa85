"""The real ``nats``, ``nsc`` and ``versitygw``, if ``scripts/nats-tools`` could build them."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.kit.commands import run

_TOOLS = Path(__file__).parents[2] / ".tools"


def needs(name: Literal["nats", "nsc", "versitygw"]) -> pytest.MarkDecorator:
    """A mark that skips tests if a command is missing, with the reason."""
    return pytest.mark.skipif(not tool_path(name).exists(), reason=f"no {name}: {_why(name)}")


def tool_path(name: str) -> Path:
    """Where the command is, if it could be built."""
    return _TOOLS / "bin" / name


def _why(name: str) -> str:
    said = _TOOLS / f"{name}.missing"
    return said.read_text().strip() if said.exists() else "scripts/nats-tools has not been run"


def environment(home: Path) -> dict[str, str]:
    """An environment with both commands in the PATH, in which they use nothing outside ``home``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NSC_", "XDG_"))}
    return kept | {"HOME": str(home), "PATH": f"{_TOOLS / 'bin'}:{os.environ['PATH']}"}


@dataclass(frozen=True)
class Tool:
    """One of the commands, with its own home: it neither reads nor changes the user's contexts and stores."""

    name: Literal["nats", "nsc"]
    home: Path
    arguments: tuple[str, ...] = ()
    """Come first in each call."""

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command. With ``check``, fail if it fails."""
        return run(
            [str(tool_path(self.name)), *self.arguments, *map(str, arguments)],
            check=check,
            env=environment(self.home),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    def json(self, *arguments: str | Path) -> Any:
        """The command's output with ``--json``."""
        return json.loads(self.run(*arguments, "--json").stdout)
