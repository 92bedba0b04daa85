"""Wait until a program answers its health check, so that a deploy changes the next one only when this one works.

    python -m natskit.ops.health_wait [--ca FILE] [--cert FILE --key FILE] [--not-a-hub] URL SECONDS [-- COMMAND…]

Exits 0 when URL answers as a healthy hub does (status 200, and JSON whose ``status`` is ``ok``), or 1 if it does not in
time. Another program on that port, or a redirection to another page, is not healthy. With a COMMAND, runs it in either
case. With ``--not-a-hub``, status 200 is enough, as programs of others answer. ``--ca`` is the CA of an https:// URL;
``--cert`` and ``--key`` are a client certificate and its key (PEM files).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from natskit.bus.tls_trust import client_context

INTERVAL = 0.05
IsWell = Callable[[bytes], bool]
LONGEST_ANSWER = 64 * 1024
"""Bytes. A healthy hub needs a hundred."""


def wait(url: str, seconds: float, context: ssl.SSLContext | None = None, is_well: IsWell | None = None) -> str:
    """Poll ``url`` until a healthy hub answers, or a program whose answer ``is_well``.

    Returns an empty string then, or the last failure if none does.
    """
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirect
    )
    deadline, last = time.monotonic() + seconds, "no answer"
    while time.monotonic() < deadline:
        try:
            with opener.open(url, timeout=2) as answer:
                body = answer.read(LONGEST_ANSWER)
            if answer.status == 200 and (is_well or _says_ok)(body):
                return ""
            last = f"{answer.status}, but not the answer of a healthy hub: {body[:200].decode(errors='replace')}"
        except urllib.error.HTTPError as error:
            with error:
                last = f"{error.code} {error.read(500).decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as error:
            # HTTPException also covers a connection to itself: TCP allows that on an ephemeral port without a listener,
            # and the request then comes back as the answer.
            last = str(error)
        time.sleep(INTERVAL)
    return last


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes a redirection an :class:`urllib.error.HTTPError`."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _says_ok(body: bytes) -> bool:
    try:
        answer = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("status") == "ok"


def main(arguments: list[str]) -> None:
    """See the module."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[split + 1 :]
    parser = argparse.ArgumentParser(prog="python -m natskit.ops.health_wait", allow_abbrev=False)
    for option in ("--ca", "--cert", "--key"):
        parser.add_argument(option, type=Path)
    parser.add_argument("--not-a-hub", action="store_true")
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    asked = parser.parse_args(arguments[:split])
    try:
        context = client_context(asked.ca, asked.cert, asked.key)
        problem = wait(asked.url, asked.seconds, context, (lambda _: True) if asked.not_a_hub else None)
    except OSError as error:
        problem = f"one of {asked.ca}, {asked.cert}, {asked.key} is unreadable or does not match the others: {error}"
    if problem:
        print(f"{asked.url} is not healthy after {asked.seconds:g} s: {problem}", file=sys.stderr)
    if command:
        os.execv(command[0], command)  # noqa: S606
    sys.exit(1 if problem else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
