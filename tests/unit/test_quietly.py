"""What `make up` and `make cluster` show of pyinfra's output."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "quietly"


def test_what_several_hosts_say_is_shown_once() -> None:
    told = """\
--> Connecting to hosts...
    [@docker/a] Connected
--> Starting operation: Make folder /srv
    [a]   Success
    [bb]  No changes
--> Starting serial operation: Render nats-server.conf
    [a]   nats-server: candidate:86:1: unknown field "x"
    [a]
    [a]   Error: executed 0 commands
    [bb]  nats-server: candidate:86:1: unknown field "x"
    [bb]  Error: executed 0 commands
    [c]   No changes
--> Starting operation: Run nats
    [c]   Success
--> Results:
    [c] whatever
"""
    shown = subprocess.run([SCRIPT], input=told, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [
        "  Make folder /srv",
        "  Render nats-server.conf failed:",
        '    [a, bb] nats-server: candidate:86:1: unknown field "x"',
        "    [a, bb] Error: executed 0 commands",
        "  Run nats",
        "2 changes",
    ]
