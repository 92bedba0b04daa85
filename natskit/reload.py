"""Reload a running nats-server and find out whether it took the new configuration.

    python -m natskit.reload PID_FILE MONITOR_URL

Exits 0 when the server says it has loaded its configuration anew, 1 when it did not: a changed listener or JetStream
folder needs a restart (nats-server, ``reload.go``).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import httpx

PATIENCE = 3.0
"""Seconds; a reload takes milliseconds, and one that is refused is never answered."""


def reload(pid_file: Path, monitor_url: str) -> bool:
    """Send SIGHUP and wait for ``config_load_time`` in ``/varz`` to move on."""
    try:
        pid = int(pid_file.read_text())
        before = _load_time(monitor_url)
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError, httpx.HTTPError):
        return False
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(0.05)
        try:
            if _load_time(monitor_url) != before:
                return True
        except httpx.HTTPError:
            return False
    return False


def _load_time(monitor_url: str) -> str:
    return str(httpx.get(f"{monitor_url}/varz", timeout=2).json()["config_load_time"])


if __name__ == "__main__":
    sys.exit(0 if reload(Path(sys.argv[1]), sys.argv[2]) else 1)
