"""Describes a browser in a few words by which its owner recognises it."""

from __future__ import annotations

import re

_PROGRAMS = (
    # The order matters: Edge and Opera say that they are Chrome, and all of them that they are Safari.
    ("Edge", r"Edg(?:e|A|iOS)?/(\d+)"),
    ("Opera", r"(?:OPR|Opera)/(\d+)"),
    ("Samsung Internet", r"SamsungBrowser/(\d+)"),
    ("Firefox", r"(?:Firefox|FxiOS)/(\d+)"),
    ("Chrome", r"(?:Chrome|HeadlessChrome|CriOS)/(\d+)"),
    ("Safari", r"Version/(\d+)[.\d]* (?:Mobile/\w+ )?Safari/"),
)
_SYSTEMS = (
    ("iPhone", r"iPhone"),
    ("iPad", r"iPad"),
    ("Android", r"Android"),
    ("ChromeOS", r"CrOS"),
    ("Windows", r"Windows"),
    ("macOS", r"Macintosh|Mac OS X"),
    ("Linux", r"Linux|X11"),
)
LONGEST = 60


def describe(user_agent: str) -> str:
    """``Firefox 132 on Linux`` for the ``User-Agent`` header of a browser; its first word for another program.

    Clients may send anything: characters that could control a terminal are left out.
    """
    program = _program(user_agent)
    system = next((name for name, pattern in _SYSTEMS if re.search(pattern, user_agent)), "")
    if program:
        return f"{program} on {system}" if system else program
    words = "".join(c for c in user_agent if c.isprintable()).split()
    return words[0][:LONGEST] if words else "unknown"


def is_browser(user_agent: str) -> bool:
    """Whether this header is a browser's. Other programs send their own name, or nothing."""
    return bool(_program(user_agent))


def _program(user_agent: str) -> str:
    for name, pattern in _PROGRAMS:
        if found := re.search(pattern, user_agent):
            return f"{name} {found[1]}"
    return ""
