"""This machine, without root and without Docker; what `make up` deploys to.

Everything lands in one folder: `.local` beside the README, or what NATSKIT_LOCAL says.
Settings to change are in inventories/group_data/all.py.
"""

import os
from pathlib import Path

_root = Path(os.environ.get("NATSKIT_LOCAL") or Path(__file__).parent.parent / ".local").resolve()

hosts = [("@local", {"platform_root": str(_root)})]
