"""Wait until a program answers its health check, so that the next one is only touched when this one works.

    python -m natskit.wait URL SECONDS

Exits 0 with the first answer of 200, 1 when there was none in time.
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request

INTERVAL = 0.05


def wait(url: str, seconds: float) -> str:
    """Poll ``url`` until it answers 200; the last refusal if it never does, else nothing."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline, last = time.monotonic() + seconds, "no answer"
    while time.monotonic() < deadline:
        try:
            with opener.open(url, timeout=2):
                return ""
        except urllib.error.HTTPError as error:
            last = f"{error.code} {error.read(500).decode(errors='replace')}"
        except OSError as error:
            last = str(error)
        time.sleep(INTERVAL)
    return last


if __name__ == "__main__":
    if problem := wait(sys.argv[1], float(sys.argv[2])):
        sys.exit(f"{sys.argv[1]} is not healthy after {sys.argv[2]} s: {problem}")
