"""Screens like those of vttest (https://invisible-island.net/vttest/), for a terminal of 80 columns and 24 rows.

Each leaves the terminal in another state: margins, tabs, character sets, attributes, insert mode, saved cursors. What
comes after shows whether a viewer that came in the middle has the same state.
"""

from __future__ import annotations

COLUMNS, ROWS = 80, 24
ESC = b"\x1b"


def _at(row: int, column: int) -> bytes:
    return b"\x1b[%d;%dH" % (row, column)


def _frame() -> bytes:
    """Test 1 of vttest: a border of * and +, drawn with all movements of the cursor, around what DECALN leaves."""
    parts = [b"\x1b#8", _at(9, 10), b"\x1b[1J", _at(18, 60), b"\x1b[0J\x1b[1K", _at(9, 71), b"\x1b[0K"]
    for row in range(10, 17):
        parts += [_at(row, 10), b"\x1b[1K", _at(row, 71), b"\x1b[0K"]
    parts += [_at(17, 30), b"\x1b[2K"]
    for column in range(1, COLUMNS + 1):
        parts += [b"\x1b[%d;%df*" % (ROWS, column), b"\x1b[%d;%df*" % (1, column)]
    parts.append(_at(2, 2))
    for _ in range(2, ROWS):
        parts.append(b"+\x1b[1D\x1bD")
    parts.append(_at(ROWS - 1, COLUMNS - 1))
    for _ in range(ROWS - 1, 1, -1):
        parts.append(b"+\x1b[1D\x1bM")
    parts.append(_at(2, 1))
    for _ in range(2, ROWS):
        parts.append(b"*\x1b[%dC*\x1bE" % (COLUMNS - 2))
    parts += [_at(2, 10), b"\x1b[42D\x1b[2C", b"+" * 76, _at(10, 12), b"The screen should be cleared inside"]
    return b"".join(parts)


def _wrap() -> bytes:
    """Lines that wrap, with controls in the middle, and a cursor that waits behind the last column."""
    line = b"".join(bytes([97 + place % 26]) for place in range(COLUMNS))
    return (
        b"\x1b[?7h" + _at(3, 1) + line * 2 + b"\x08\x08  " + line + b"\r\n" + line + b"\x1b[?7l" + line + b"Z\x1b[?7h"
    )


def _tabs() -> bytes:
    """Tab stops that are set, cleared, and used both ways."""
    stops = b"".join(b"\x1b[3C\x1bH" for _ in range(26))
    every_other = b"".join(_at(1, 1 + 6 * count) + b"\x1b[g\x1b[2g" for count in range(13))
    used = b"\t*" * 13 + b"\r\n" + b"     *" * 13 + b"\x1b[Z^\x1b[2Z^"
    return b"\x1b[3g" + _at(1, 1) + stops + every_other + _at(1, 7) + b"\x1b[1g" + _at(2, 1) + used


def _margins() -> bytes:
    """Lines that scroll between margins, in origin mode and without."""
    parts = [b"\x1b[12;13r\x1b[?6h\x1b[24B"]
    parts += [b"Soft scroll up region [12..13] line %d\r\n" % count for count in range(1, 30)]
    parts += [b"\x1b[1A\x1bM" + b"Down %d\r" % count for count in range(5)]
    parts += [b"\x1b[?6l\x1b[r", _at(23, 5), b"below", _at(3, 5), b"above\x1b[5;9r\x1b[?6h", _at(2, 2), b"inside"]
    return b"".join(parts)


def _attributes() -> bytes:
    """All renditions, together and reversed, with colours of all kinds."""
    parts = [b"\x1b[2J", _at(1, 20), b"Graphic rendition test pattern:"]
    for row, codes in enumerate((b"", b"1", b"4", b"1;4", b"5", b"1;5", b"4;5", b"7", b"1;7", b"3;9", b"2;53")):
        parts += [_at(4 + row, 1 + row * 3), b"\x1b[0;%bmnumber %d\x1b[27m not reversed" % (codes, row), b"\x1b[m"]
    parts += [b"\x1b[48;5;%dm \x1b[38;2;%d;9;99mX" % (number, number) for number in range(16, 52)]
    parts += [_at(20, 1), b"\x1b[44m\x1b[K", _at(21, 1), b"\x1b[0;4:3;58;5;1mcurly\x1b[7;32m"]
    return b"".join(parts)


def _sets() -> bytes:
    """Line drawing in G0 and G1, shifts, and a saved cursor that remembers them."""
    lines = b"lqqqwqqqk\r\nx   x   x\r\ntqqqnqqqu\r\nmqqqvqqqj\r\n"
    return b"\x1b(0" + lines + b"\x1b(B\x1b)0plain \x0eqqq\x1b7\x0f plain\x1b8xxx\x1b(B\x0f" + "日本 é̂ ".encode()


def _editing() -> bytes:
    """Characters and lines that are inserted, deleted and erased (test 8 of vttest)."""
    parts = [_at(row, 1) + bytes([64 + row]) * COLUMNS for row in range(1, ROWS + 1)]
    parts += [_at(4, 1), b"\x1b[5L", _at(9, 1), b"\x1b[3M", _at(2, 10), b"\x1b[20P", _at(3, 10), b"\x1b[20@"]
    parts += [_at(5, 1), b"\x1b[4hinserted \x1b[4l", _at(6, 70), b"\x1b[15X", _at(7, 1), b"\x1b[3S\x1b[2T", b"\x1b[10b"]
    parts += [b"\x1b[5;18r", _at(18, 1), b"\x1bD\x1bD", _at(5, 1), b"\x1bM\x1b[4h"]
    return b"".join(parts)


def _alternate() -> bytes:
    """The other screen, with a cursor saved in each, and mouse, paste and cursor modes."""
    main = b"".join(b"\x1b[%dmmain %d\x1b[m\r\n" % (31 + row % 6, row) for row in range(40)) + b"\x1b[3;7H\x1b7"
    modes = b"\x1b[?1049h\x1b[?1h\x1b=\x1b[?1002;1006h\x1b[?2004h\x1b[?25l\x1b[4 q"
    return main + modes + b"\x1b[41m\x1b[2J" + _at(5, 5) + b"alternate\x1b7\x1b[m" + _at(9, 9) + b"\x1b]2;title\x07here"


SCREENS: dict[str, bytes] = {
    "frame": _frame(),
    "wrap": _wrap(),
    "tabs": _tabs(),
    "margins": _margins(),
    "attributes": _attributes(),
    "sets": _sets(),
    "editing": _editing(),
    "alternate": _alternate(),
}
AFTER = b"A\tB\r\nC\x1bM\x1b[2CD" + b"e" * 90 + b"\x1b[3;3Hf\x1b8gx\x1b[?1049l\x1b8h"
"""What shows whether the state is the same: tabs, margins, modes, sets, attributes, and saved cursors."""
