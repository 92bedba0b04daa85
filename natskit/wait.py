"""Wait until a program answers its health check, so that the next one is only touched when this one works.

    python -m natskit.wait [--ca FILE] [--cert FILE --key FILE] URL SECONDS [-- COMMAND…]

Exits 0 with the first answer of 200, 1 when there was none in time; with a COMMAND, runs that in either case. ``--ca``
is the CA of an https:// URL, ``--cert`` and ``--key`` what to show to a program that asks who is there (PEM files).
"""

from __future__ import annotations

import argparse
import http.client
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

INTERVAL = 0.05


def wait(url: str, seconds: float, context: ssl.SSLContext | None = None) -> str:
    """Poll ``url`` until it answers 200; the last refusal if it never does, else nothing."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    deadline, last = time.monotonic() + seconds, "no answer"
    while time.monotonic() < deadline:
        try:
            with opener.open(url, timeout=2):
                return ""
        except urllib.error.HTTPError as error:
            last = f"{error.code} {error.read(500).decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as error:
            # The latter also when this connected to itself, as TCP may do where nobody listens on a port that Linux
            # hands out to clients: what comes back is the request.
            last = str(error)
        time.sleep(INTERVAL)
    return last


def client_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """What to trust (the machine's CAs without ``ca``), and what to show. Raises :class:`OSError`."""
    context = ssl.create_default_context(cafile=ca)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def main(arguments: list[str]) -> None:
    """See the module."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[split + 1 :]
    parser = argparse.ArgumentParser(prog="python -m natskit.wait", allow_abbrev=False)
    for option in ("--ca", "--cert", "--key"):
        parser.add_argument(option, type=Path)
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    asked = parser.parse_args(arguments[:split])
    try:
        problem = wait(asked.url, asked.seconds, client_context(asked.ca, asked.cert, asked.key))
    except OSError as error:
        problem = f"one of {asked.ca}, {asked.cert}, {asked.key} is unreadable or does not fit the others: {error}"
    if problem:
        print(f"{asked.url} is not healthy after {asked.seconds:g} s: {problem}", file=sys.stderr)
    if command:
        os.execv(command[0], command)  # noqa: S606
    sys.exit(1 if problem else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
