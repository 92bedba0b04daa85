"""``python -m natskit.hub --settings FILE``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from natskit import core_dumps
from natskit.errors import NatskitError
from natskit.hub.app import serve
from natskit.hub.program import HubProgram
from natskit.program import log_to_stderr, read_settings


def main() -> int:
    """Run a hub; 2 when its settings are wrong."""
    parser = argparse.ArgumentParser(prog="python -m natskit.hub", description="Run a natskit hub.")
    parser.add_argument("--settings", type=Path, required=True, help="the hub's settings file (JSON)")
    arguments = parser.parse_args()
    core_dumps.forbid()
    log_to_stderr()
    try:
        asyncio.run(serve(read_settings(arguments.settings, HubProgram)))
    except NatskitError as error:
        print(f"natskit hub: {error}", file=sys.stderr)
        return 2
    return 0


sys.exit(main())
