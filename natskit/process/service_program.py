"""How a program starts that needs an extra of the package and runs on uvloop: hub and keeper."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from natskit.errors import NatskitError
from natskit.process import core_dumps
from natskit.process.lifecycle import log_to_stderr, read_settings

SettingsT = TypeVar("SettingsT", bound=BaseModel)
Serve = Callable[[SettingsT], Coroutine[Any, Any, None]]


def run(name: str, settings: type[SettingsT], load: Callable[[], Serve[SettingsT]]) -> int:
    """Run ``natskit.NAME``, which is also its extra, with the file of ``--settings`` until it is stopped.

    ``load`` imports what serves, so that a missing package is one line and no traceback. Returns the exit code: 2 when
    the settings are wrong or a package is missing.
    """
    parser = argparse.ArgumentParser(prog=f"python -m natskit.{name}", description=f"Run a natskit {name}.")
    parser.add_argument("--settings", type=Path, required=True, help=f"the {name}'s settings file (JSON)")
    arguments = parser.parse_args()
    core_dumps.forbid()
    log_to_stderr()
    try:
        import uvloop

        serve = load()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "natskit":
            raise
        advice = f"pip install 'natskit[{name}]' (there is no module {error.name} here)"
        print(f"natskit {name}: a {name} needs the extra `{name}`: {advice}", file=sys.stderr)
        return 2
    try:
        program = read_settings(arguments.settings, settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(program))
    except NatskitError as error:
        print(f"natskit {name}: {error}", file=sys.stderr)
        return 2
    return 0
