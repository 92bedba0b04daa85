"""The messages between the agent and its emulator: what both ends need, and nothing that takes long to import."""

from __future__ import annotations

import struct
from enum import IntEnum

HEADER = struct.Struct("<BIQ")
"""Kind, number of the terminal, bytes of the body."""


class Kind(IntEnum):
    """The kinds of messages: first those to the emulator, then those from it."""

    OPEN = 1
    """JSON: the arguments of :class:`~natskit.project.terminals.screen.Screen`."""
    FEED = 2
    """What the program has written."""
    RESIZE = 3
    """JSON: columns and rows."""
    DRAW = 4
    """JSON: how much scrollback. Answered with ``DRAWN``, in order."""
    CLOSE = 5
    ANSWER = 6
    """What the terminal answers to the program."""
    TITLE = 7
    """The terminal's title, in UTF-8."""
    DRAWN = 8
    """What draws the screen as it was when ``DRAW`` came."""


def message(kind: Kind, terminal: int, body: bytes) -> bytes:
    """The bytes of a message."""
    return HEADER.pack(kind, terminal, len(body)) + body
