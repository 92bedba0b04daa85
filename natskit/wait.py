"""Wait until a program answers its health check, so that the next one is only touched when this one works.

    python -m natskit.wait URL SECONDS [-- COMMAND…]

Exits 0 with the first answer of 200, 1 when there was none in time; with a COMMAND, runs that in either case.
"""

from __future__ import annotations

import os
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


def main(arguments: list[str]) -> None:
    """See the module."""
    url, seconds, command = arguments[0], arguments[1], arguments[3:]
    problem = wait(url, float(seconds))
    if problem:
        print(f"{url} is not healthy after {seconds} s: {problem}", file=sys.stderr)
    if command:
        os.execv(command[0], command)  # noqa: S606
    sys.exit(1 if problem else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
