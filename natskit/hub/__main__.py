"""``python -m natskit.hub --settings FILE``."""

from __future__ import annotations

import sys

from natskit.hub.config import HubProgram
from natskit.process import arenas
from natskit.process.service_program import Serve, run


def _load() -> Serve[HubProgram]:
    from natskit.hub.app import serve

    return serve


arenas.share()
sys.exit(run("hub", HubProgram, _load))
