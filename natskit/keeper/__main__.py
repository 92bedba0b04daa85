"""``python -m natskit.keeper --settings FILE``."""

from __future__ import annotations

import sys

from natskit.keeper.config import KeeperProgram
from natskit.process.service_program import Serve, run


def _load() -> Serve[KeeperProgram]:
    from natskit.keeper.app import serve

    return serve


sys.exit(run("keeper", KeeperProgram, _load))
