"""This machine, without root and without Docker; what `make up` deploys to.

All its files are in one folder: `.local` beside the README, or the folder that NATSKIT_LOCAL names.
Settings to change are in inventories/group_data/all.py.
"""

import os
from pathlib import Path

_root = Path(os.environ.get("NATSKIT_LOCAL") or Path(__file__).parent.parent / ".local").resolve()

_settings = {
    "platform_name": "local",
    "platform_address": "127.0.0.1",
    "platform_manager": "supervisor",
    "platform_tls": False,  # all of it is on loopback
    "platform_root": str(_root),
}

# One host plays every role.
nats = hub = proxy = runner = [("@local", _settings)]
