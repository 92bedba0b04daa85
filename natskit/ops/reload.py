"""Reload a running nats-server and check that it loaded the new configuration.

    python -m natskit.ops.reload PID_FILE MONITOR_URL

Exits 0 when the server reports that it has reloaded its configuration, 1 otherwise. A changed listener or JetStream
folder needs a restart (nats-server, ``reload.go``).
"""

from __future__ import annotations

import natskit.process.httpx_without_rich  # noqa: F401 - must come first

# isort: split
import os
import signal
import sys
import time
from pathlib import Path

import httpx

PATIENCE = 3.0
"""Seconds. A reload takes milliseconds, and a refused reload is only visible by the missing change."""


def reload(pid_file: Path, monitor_url: str) -> bool:
    """Send SIGHUP and wait until ``config_load_time`` in ``/varz`` changes."""
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
