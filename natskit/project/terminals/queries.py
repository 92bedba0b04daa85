"""What programs ask of their terminal, in the middle of what they print.

The emulator answers each query, whether or not somebody views the terminal. What viewers get has no queries, so that
their own terminals do not answer as well. For that, the output is cut only where no sequence is unfinished.
"""

from __future__ import annotations

import re

MAX_SEQUENCE = 64 * 1024
"""A longer sequence, such as an image, is passed on in pieces, and not looked at."""
_IGNORED = rb"(?:(?!\xc2\x9d)[^\x07\x18\x1a\x1b -~])*+"
"""What terminals skip in the middle of a sequence: control characters, DEL, bytes that are no UTF-8, U+FEFF."""
_SKIPPED = rb"(?:(?!\xc2\x9d)[^\x18\x1a\x1b -~])*+"
_CLIPBOARD = rb"(?:\x1b%b\]|\xc2\x9d)%b(?:0%b)*5%b2%b;" % (_SKIPPED, *(_IGNORED,) * 4)
"""Begins a use of the clipboard (OSC 52), however it is written."""
_STRING = rb"[^\x07\x18\x1a\x1b]*"
_QUERIES = (
    rb"\x05|\x1bZ"  # ENQ, DECID
    rb"|\x1b\[(?:"
    rb"[>=]?[0-9;]*c"  # DA1 to DA3
    rb"|\??[0-9;]*n"  # DSR: status, place of the cursor, colour scheme
    rb"|[0-9;]*x"  # DECREQTPARM
    rb"|>[0-9]*q"  # XTVERSION
    rb"|\??[0-9;]*\$p"  # DECRQM
    rb"|[0-9;]*\$w|[0-9;]*\*y"  # DECRQPSR, DECRQCRA
    rb"|\?u"  # kitty's keyboard protocol
    rb"|\?[0-9;]*[mS]"  # XTQMODKEYS, XTSMGRAPHICS
    rb"|(?:1[1345689]|2[01])(?:;[0-9]*)*t"  # sizes and titles of the window
    rb")"
    rb"|\x1b\](?:4;[^\x07\x1b]*\?|1[0-9];\?|5[;0-9]*;\?)[^\x07\x1b]*(?:\x07|\x1b\\)"  # colours
    rb"|\x1bP(?:\$|\+)q[^\x1b]*\x1b\\"  # DECRQSS, XTGETTCAP
    rb"|\x1b_G[^\x1b]*a=q[^\x1b]*\x1b\\"  # kitty's graphics
)
# Any escape ends a string, and the end may be missing.
QUERY = re.compile(rb"%b|%b%b(?:\x07|\x1b\\)?" % (_QUERIES, _CLIPBOARD, _STRING))
"""Also every use of the clipboard: what a program prints must not change what a viewer pastes elsewhere."""
QUERY_ONLY = re.compile(
    rb"%b|%b[^;\x07\x18\x1a\x1b]*;%b\?%b(?:\x07|\x1b\\)?" % (_QUERIES, _CLIPBOARD, _IGNORED, _STRING)
)
"""Only what reads the clipboard."""
_CLIPBOARD_BEGINS = re.compile(
    rb"%b|(?:\x1b%b(?:\]|\Z)|\xc2\x9d)%b(?:0%b)*(?:5%b(?:2%b)?)?\Z" % (_CLIPBOARD, _SKIPPED, *(_IGNORED,) * 4)
)
_STRING_ENDS = re.compile(rb"[\x07\x18\x1a\x1b]")
_UNFINISHED = re.compile(
    # An escape sequence, or a string.
    rb"\x1b(?:(?!\xc2\x9d)[^\x18\x1a\x1b -~])*+(?:[ -/]*|\[[0-?]*[ -/]*|[\]P_X^][^\x07\x18\x1a\x1b]*\x1b?)\Z"
    rb"|\xc2\x9d[^\x07\x18\x1a\x1b]*\x1b?\Z"
    rb"|[\xc0-\xff][\x80-\xbf]{0,2}\Z"  # a character in UTF-8
)
_LENGTHS = ((0xE0, 2), (0xF0, 3), (0x100, 4))
"""First bytes of characters in UTF-8 below a limit, and the bytes that such a character has."""


class Output:
    """A program's output, cut where no sequence is unfinished."""

    def __init__(self) -> None:
        self._kept = b""
        self._dropping = False
        """Whether a use of the clipboard goes on that is too long for anybody."""

    def add(self, data: bytes) -> bytes:
        """Take output, and return what is whole of it and of what was kept before."""
        if self._dropping:
            end = _STRING_ENDS.search(data)
            self._dropping, data = end is None, data[end.start() :] if end else b""
        if self._kept:
            data, self._kept = self._kept + data, b""
        cut = _end(data)
        if len(data) - cut > MAX_SEQUENCE:
            self._dropping = bool(_CLIPBOARD_BEGINS.match(data, cut))
            return data[:cut] if self._dropping else data
        self._kept = data[cut:]
        return data[:cut]

    def rest(self) -> bytes:
        """What is kept, when nothing follows."""
        rest, self._kept = self._kept, b""
        return rest


def without_queries(data: bytes) -> bytes:
    """What viewers get."""
    return QUERY.sub(b"", data) if _may_ask(data) else data


def with_clipboard(data: bytes) -> bytes:
    """What the viewer who types gets where programs may set the clipboard. They never read it."""
    return QUERY_ONLY.sub(b"", data) if _may_ask(data) else data


def _may_ask(data: bytes) -> bool:
    # Python looks for one byte a hundred times as fast as for two.
    return b"\x1b" in data or b"\x05" in data or (b"\x9d" in data and b"\xc2\x9d" in data)


def _end(data: bytes) -> int:
    """Where an unfinished sequence at the end begins; the length of the data if there is none."""
    string = data.rfind(b"\xc2\x9d") if b"\x9d" in data else -1
    escape = data.rfind(b"\x1b")
    before = data.rfind(b"\x1b", 0, escape) if escape == len(data) - 1 else -1
    for start in sorted((string, before, escape)):
        if start >= 0 and _UNFINISHED.match(data, start):
            return start
    found = _UNFINISHED.search(data, max(len(data) - 3, 0))
    if found and found[0][:1] != b"\x1b":
        length = next(bytes_ for limit, bytes_ in _LENGTHS if found[0][0] < limit)
        if len(found[0]) < length:
            return found.start()
    return len(data)
