"""One terminal's screen, kept by Ghostty's emulator (libghostty-vt), and the bytes that draw it anywhere else.

Only the emulator's process (``emulator.py``) imports this module. A viewer that comes does not get the program's output
again, but what draws the state to which that output has led: scrollback, both screens, colours, cursor and modes.
libghostty-vt can write that itself, but it leaves out cells without text that have a background colour. So it writes
the scrollback and the modes, and this module the visible rows, cell by cell.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from pyghostty import GhosttyError, Terminal, ffi, lib
from pyghostty.core import init_sized

PARSER_BYTES = 256 * 1024
"""The longest unfinished sequence that a screen can be drawn with."""
CELL_WIDTH, CELL_HEIGHT = 8, 16
"""Pixels of a cell, for programs that ask."""
FOREGROUND, BACKGROUND = (0xD0, 0xD0, 0xD0), (0x16, 0x16, 0x16)
"""The colours that programs are told (OSC 10 and 11): viewers choose their own, and may differ from each other."""
NOT_SAID = re.compile(rb"\x1b_G|\x1b\[\?[0-9]+u")
"""Answers that would promise what viewers cannot do: kitty's graphics and its keyboard protocol."""
TERMCAP, NO_TERMCAP = re.compile(rb"\x1bP\+q[^\x1b]*\x1b\\"), b"\x1bP0+r\x1b\\"
"""XTGETTCAP, to which libghostty-vt has no answer, and "unknown": without an answer a program waits for some time."""
CLEAR_TAB, CLEAR_TAB_AS_KNOWN = b"\x1b[g", b"\x1b[0g"
"""libghostty-vt ignores TBC without a number, which is 0 (ECMA-48, 8.3.154)."""
TITLE_CHARACTERS = 256
RESET = b"\x1bc"
SOFT_RESET = (
    b"\x1b[?1049l\x1b[!p\x1b[?7h\x1b[?9;1000;1002;1003;1004;1005;1006;1015;2004;2026l\x1b[<99u\x1b>\x1b(B"
    b"\x1b[m\x1b[H\x1b[2J"
)
"""For terminals that keep their own scrollback, and may be larger: somebody's window, with what was in it before."""
WIPE = b"\x18\x1b[2J\x1b[3J"
"""Empties the screen and the scrollback, and changes neither cursor nor modes."""
USUAL_SETS = b"\x0f\x1b(B\x1b)B\x1b*B\x1b+B"
"""The character sets that libghostty-vt expects: it writes only what differs from them."""
CLUSTERS = 2027
"""The mode in which characters that belong together take one cell."""

_STYLES = {
    "bold": b";1",
    "faint": b";2",
    "italic": b";3",
    "blink": b";5",
    "inverse": b";7",
    "invisible": b";8",
    "strikethrough": b";9",
    "overline": b";53",
}
_TERMINAL_EXTRAS = ("modes", "scrolling_region", "tabstops", "pwd", "keyboard")
_CURSOR = ("cursor", "style", "charsets")
_SCREEN_EXTRAS = (*_CURSOR, "hyperlink", "protection", "kitty_keyboard")
ORIGIN = b"\x1b[?6h"
_MARGINS = (re.compile(rb"\x1b\[(\d+);\d+r"), re.compile(rb"\x1b\[(\d+);\d+s"))
_ALTERNATE = re.compile(rb"\x1b\[\?(?:47|1047|1049)h")
_COLOUR_TAGS = (lib.GHOSTTY_CELL_CONTENT_BG_COLOR_PALETTE, lib.GHOSTTY_CELL_CONTENT_BG_COLOR_RGB)
_BEGUN = re.compile(rb"(?:[\xc2-\xf4]|[\xe0-\xf4][\x80-\xbf]|[\xf0-\xf4][\x80-\xbf]{2})\Z")
"""A character in UTF-8 whose end is missing."""
_SPACERS = (lib.GHOSTTY_CELL_WIDE_SPACER_TAIL, lib.GHOSTTY_CELL_WIDE_SPACER_HEAD)


class Screen:
    """A terminal of ``columns`` by ``rows`` that keeps up to ``scrollback`` bytes of the lines that have left it.

    ``answer`` gets what the terminal answers to a program's queries; ``titled`` gets its title when that changes.
    """

    def __init__(
        self,
        columns: int,
        rows: int,
        scrollback: int,
        *,
        answer: Callable[[bytes], None],
        titled: Callable[[str], None],
    ) -> None:
        self._terminal = Terminal(columns, rows, fg=FOREGROUND, bg=BACKGROUND)
        self._answer, self._titled = answer, titled
        self._title = ""
        self._begun = b""
        self._set("SCROLLBACK_MAX_LINES", ffi.new("size_t *", 2**40))
        self._set("SCROLLBACK_MAX_BYTES", ffi.new("size_t *", scrollback))
        self._set("CONTINUATION_MAX_BYTES", ffi.new("size_t *", PARSER_BYTES))
        self._set("KITTY_IMAGE_STORAGE_LIMIT", ffi.new("uint64_t *", 0))
        self._terminal.on_reply(self._reply)
        # cffi frees a callback that nothing refers to.
        self._callbacks = (
            ffi.callback("GhosttyTerminalSizeFn", self._say_size),
            ffi.callback("GhosttyTerminalColorSchemeFn", _say_dark),
        )
        self._set("SIZE", self._callbacks[0])
        self._set("COLOR_SCHEME", self._callbacks[1])

    def feed(self, data: bytes) -> None:
        """Take the program's output."""
        data = self._begun + data
        # libghostty-vt has to forget the beginning of a character before a copy of it can draw, and draws U+FFFD then.
        begun = _BEGUN.search(data, max(0, len(data) - 3))
        self._begun = begun[0] if begun else b""
        data = data[: begun.start()] if begun else data
        if CLEAR_TAB in data:
            data = data.replace(CLEAR_TAB, CLEAR_TAB_AS_KNOWN)
        start = 0
        for query in TERMCAP.finditer(data) if b"\x1bP+q" in data else ():
            self._terminal.feed(data[start : query.start()])
            self._answer(NO_TERMCAP)  # in its place among the other answers
            start = query.end()
        self._terminal.feed(data[start:] if start else data)
        if b"\x1b" in data and (title := self._read_title()) != self._title:
            self._title = title
            self._titled(title)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size. Lines of the main screen are wrapped anew."""
        self._terminal.resize(columns, rows, CELL_WIDTH, CELL_HEIGHT)

    def close(self) -> None:
        """Free its memory."""
        self._terminal.close()

    def draw(self, scrollback: int | None) -> bytes:
        """The bytes that bring a terminal of this size into this state, whatever its own state is.

        With the last ``scrollback`` rows that have left the screen, or with all (``None``). Without any (0), they also
        suit a larger terminal. Raises ``GhosttyError``.
        """
        frozen = self._freeze()
        active = frozen.thaw()  # a copy has the whole scrollback: as few as possible
        alternate = active.get("active_screen", "GhosttyTerminalScreen") == lib.GHOSTTY_TERMINAL_SCREEN_ALTERNATE
        main = frozen.thaw() if alternate else active
        frozen.close()
        if alternate:
            main.feed(b"\x1b[?1049l")
        wrapped = scrollback != 0
        rows = Rows(active)
        parts = [RESET if wrapped else SOFT_RESET]
        if active.mode(CLUSTERS):
            parts.append(b"\x1b[?%dh" % CLUSTERS)
        parts += [_history(main, scrollback), (Rows(main) if alternate else rows).draw(wrapped=wrapped)]
        active.feed(WIPE)
        extras = _format(active, _TERMINAL_EXTRAS, _SCREEN_EXTRAS)
        style = _format(active, (), ("style",))
        if alternate:
            main.feed(WIPE)
            entered = _ALTERNATE.search(extras)
            parts += [_format(main, (), _CURSOR), entered[0] if entered else b"\x1b[?1049h"]
            parts.append(b"\x1b[m\x1b[2J" + USUAL_SETS)
            parts.append(rows.draw(wrapped=wrapped))
            extras = _ALTERNATE.sub(b"", extras)
            main.close()
        active.feed(b"\x1b8" + WIPE)  # the saved cursor
        parts += [_format(active, (), _CURSOR), b"\x1b7" + USUAL_SETS, self._at_last(extras)]
        active.close()
        if self._terminal.get("cursor_pending_wrap", "bool"):
            parts += [rows.again(*self._terminal.cursor), style]
        parts += [self._dynamic(), _unfinished(self._terminal), self._begun]
        return b"".join(parts)

    def _freeze(self) -> _Frozen:
        try:
            return _Frozen(self._terminal)
        except GhosttyError:  # an unfinished sequence is longer than PARSER_BYTES: such a one is no use to anybody
            self._terminal.feed(b"\x18")
            return _Frozen(self._terminal)

    def _at_last(self, extras: bytes) -> bytes:
        """What sets modes and cursor. In origin mode, rows and columns count from the margins."""
        if ORIGIN not in extras:
            return extras
        x, y = self._terminal.cursor
        top, left = (int(found[1]) if (found := margin.search(extras)) else 1 for margin in _MARGINS)
        return extras.replace(ORIGIN, b"") + ORIGIN + b"\x1b[%d;%dH" % (max(y + 2 - top, 1), max(x + 2 - left, 1))

    def _dynamic(self) -> bytes:
        """The title, and the colours that the program has changed."""
        parts = [f"\x1b]2;{self._title}\x1b\\".encode()] if self._title else []
        now, usual = ffi.new("GhosttyColorRgb[256]"), ffi.new("GhosttyColorRgb[256]")
        self._get("COLOR_PALETTE", now)
        self._get("COLOR_PALETTE_DEFAULT", usual)
        if ffi.buffer(now)[:] != ffi.buffer(usual)[:]:
            changed = (number for number in range(256) if _spec(now[number]) != _spec(usual[number]))
            parts += [b"\x1b]4;%d;%b\x1b\\" % (number, _spec(now[number])) for number in changed]
        for number, key in ((10, "FOREGROUND"), (11, "BACKGROUND"), (12, "CURSOR")):
            if self._get(f"COLOR_{key}", now) and (
                not self._get(f"COLOR_{key}_DEFAULT", usual) or _spec(now[0]) != _spec(usual[0])
            ):
                parts.append(b"\x1b]%d;%b\x1b\\" % (number, _spec(now[0])))
        return b"".join(parts)

    def _get(self, key: str, into: Any) -> bool:
        data = getattr(lib, f"GHOSTTY_TERMINAL_DATA_{key}")
        return bool(lib.ghostty_terminal_get(self._terminal._t[0], data, into) == lib.GHOSTTY_SUCCESS)

    def _set(self, option: str, value: Any) -> None:
        number = getattr(lib, f"GHOSTTY_TERMINAL_OPT_{option}")
        _check(lib.ghostty_terminal_set(self._terminal._t[0], number, value), option)

    def _read_title(self) -> str:
        said = ffi.new("GhosttyString *")
        if not self._get("TITLE", said) or not said.len:
            return ""
        title = bytes(ffi.buffer(said.ptr, said.len)).decode("utf-8", "replace")
        return "".join(character for character in title if character.isprintable())[:TITLE_CHARACTERS]

    def _reply(self, data: bytes) -> None:
        if not NOT_SAID.match(data):
            self._answer(data)

    def _say_size(self, _terminal: Any, _data: Any, said: Any) -> bool:
        said.columns, said.rows = self._terminal.size
        said.cell_width, said.cell_height = CELL_WIDTH, CELL_HEIGHT
        return True


def _say_dark(_terminal: Any, _data: Any, said: Any) -> bool:
    said[0] = lib.GHOSTTY_COLOR_SCHEME_DARK
    return True


class _Frozen:
    """A terminal's state. Copies are made of it, since one looks at the other screen by changing a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self._data, self._length = ffi.new("uint8_t **"), ffi.new("size_t *")
        _check(lib.ghostty_snapshot_encode_alloc(terminal._t[0], ffi.NULL, self._data, self._length), "freeze")

    def thaw(self) -> Terminal:
        """A copy, outside of any unfinished sequence."""
        decoder, made = ffi.new("GhosttySnapshotDecoder *"), ffi.new("GhosttyTerminal *")
        _check(lib.ghostty_snapshot_decoder_new_buf(ffi.NULL, decoder, self._data[0], self._length[0]), "thaw")
        try:
            _check(lib.ghostty_snapshot_decoder_decode(decoder[0], made), "thaw")
        finally:
            lib.ghostty_snapshot_decoder_free(decoder[0])
        copy = object.__new__(Terminal)  # around a terminal that exists already
        copy._t, copy._cb_err = made, None
        copy._free = weakref.finalize(copy, lib.ghostty_terminal_free, made[0])
        if not copy.get("vt_ground", "bool"):
            copy.feed(b"\x18")
        return copy

    def close(self) -> None:
        """Free the memory."""
        lib.ghostty_free(ffi.NULL, self._data[0], self._length[0])


class Cell(NamedTuple):
    sgr: bytes
    """What sets its colours and attributes."""
    text: bytes | None
    """Its characters; empty if it has none; ``None`` in the cells that a wide character also takes."""
    link: bytes = b""
    """The address that it links to."""


_SGR_DEFAULT = b"\x1b[0m"
_NOTHING = Cell(_SGR_DEFAULT, b"")


class Rows:
    """The visible rows of a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._looks: dict[int, tuple[int, int, int, bool]] = {}
        self._row = ffi.new("GhosttyRow *")
        self._cells = ffi.new("GhosttyRenderStateRowCells *")
        self.rows: list[tuple[list[Cell], bool]] = []
        """The cells of each row, and whether its line goes on in the next one."""
        state, rows = ffi.new("GhosttyRenderState *"), ffi.new("GhosttyRenderStateRowIterator *")
        _check(lib.ghostty_render_state_new(ffi.NULL, state), "state")
        _check(lib.ghostty_render_state_row_iterator_new(ffi.NULL, rows), "rows")
        _check(lib.ghostty_render_state_row_cells_new(ffi.NULL, self._cells), "cells")
        try:
            _check(lib.ghostty_render_state_update(state[0], terminal._t[0]), "update")
            _check(lib.ghostty_render_state_get(state[0], lib.GHOSTTY_RENDER_STATE_DATA_ROW_ITERATOR, rows), "rows")
            while lib.ghostty_render_state_row_iterator_next(rows[0]):
                self.rows.append(self._read(rows[0], len(self.rows)))
        finally:
            lib.ghostty_render_state_row_cells_free(self._cells[0])
            lib.ghostty_render_state_row_iterator_free(rows[0])
            lib.ghostty_render_state_free(state[0])

    def draw(self, *, wrapped: bool) -> bytes:
        """What draws them on an empty screen, with ``wrapped`` so that lines know that they go on in the next row."""
        parts = []
        goes_on = False
        for y, (cells, wraps) in enumerate(self.rows):
            wraps = wraps and wrapped and y + 1 < len(self.rows)
            line = _line(cells, whole=wraps, at_least_one=goes_on)
            if line:
                parts.append(line if goes_on else b"\x1b[%d;1H%b" % (y + 1, line))
            goes_on = wraps
        return b"".join(parts)

    def again(self, x: int, y: int) -> bytes:
        """What writes the last character of a full line once more: the cursor then waits behind it."""
        cells = self.rows[y][0]
        while x and cells[x].text is None:
            x -= 1
        return b"\x1b[%dG%b%b" % (x + 1, cells[x].sgr, cells[x].text or b" ")

    def _read(self, row: Any, y: int) -> tuple[list[Cell], bool]:
        view, wraps = ffi.new("GhosttyCellsView *"), ffi.new("bool *")
        _check(lib.ghostty_render_state_row_get(row, lib.GHOSTTY_RENDER_STATE_ROW_DATA_RAW, self._row), "row")
        _check(lib.ghostty_row_get(self._row[0], lib.GHOSTTY_ROW_DATA_WRAP, wraps), "wrap")
        _check(lib.ghostty_render_state_row_get(row, lib.GHOSTTY_RENDER_STATE_ROW_DATA_CELLS, self._cells), "cells")
        _check(lib.ghostty_render_state_row_get(row, lib.GHOSTTY_RENDER_STATE_ROW_DATA_CELLS_RAW, view), "cells")
        styles: dict[int, bytes] = {0: _SGR_DEFAULT}
        cells = [
            self._cell(raw, x, y, styles) if raw else _NOTHING for x, raw in enumerate(ffi.unpack(view.ptr, view.len))
        ]
        return cells, wraps[0]

    def _cell(self, raw: int, x: int, y: int, styles: dict[int, bytes]) -> Cell:
        if raw not in self._looks:
            self._looks[raw] = _look(raw)
        tag, wide, style, linked = self._looks[raw]
        if tag in _COLOUR_TAGS:
            return Cell(b"\x1b[0%bm" % _colour(raw, tag), b"")
        if style not in styles:
            styles[style] = _sgr(self._style(x))
        if wide in _SPACERS:
            return Cell(styles[style], None if wide == lib.GHOSTTY_CELL_WIDE_SPACER_TAIL else b"")
        return Cell(styles[style], self._text(x), self._link(x, y) if linked else b"")

    def _style(self, x: int) -> Any:
        style = init_sized("GhosttyStyle")
        self._of_cell(x, "STYLE", style)
        return style

    def _text(self, x: int) -> bytes:
        count = ffi.new("uint32_t *")
        self._of_cell(x, "GRAPHEMES_LEN", count)
        points = ffi.new("uint32_t[]", max(count[0], 1))
        if count[0]:
            self._of_cell(x, "GRAPHEMES_BUF", points)
        return "".join(map(chr, points[0 : count[0]])).encode("utf-8", "replace")

    def _link(self, x: int, y: int) -> bytes:
        ref, size = self._terminal.ref(x, y), ffi.new("size_t *")
        lib.ghostty_grid_ref_hyperlink_uri(ref, ffi.NULL, 0, size)
        address = ffi.new("uint8_t[]", max(size[0], 1))
        _check(lib.ghostty_grid_ref_hyperlink_uri(ref, address, size[0], size), "link")
        return bytes(ffi.buffer(address, size[0]))

    def _of_cell(self, x: int, key: str, into: Any) -> None:
        _check(lib.ghostty_render_state_row_cells_select(self._cells[0], x), "cell")
        number = getattr(lib, f"GHOSTTY_RENDER_STATE_ROW_CELLS_DATA_{key}")
        _check(lib.ghostty_render_state_row_cells_get(self._cells[0], number, into), key)


def _line(cells: list[Cell], *, whole: bool, at_least_one: bool) -> bytes:
    """What writes a row: up to its last cell if ``whole``, otherwise up to the last that shows anything."""
    end = len(cells)
    while not whole and end > at_least_one and cells[end - 1] == _NOTHING:
        end -= 1
    parts = []
    sgr, link = _SGR_DEFAULT, b""
    for cell in cells[:end]:
        if cell.text is None:
            continue
        if cell.link != link:
            parts.append(b"\x1b]8;;%b\x1b\\" % cell.link)
            link = cell.link
        if cell.sgr != sgr:
            parts.append(cell.sgr)
            sgr = cell.sgr
        parts.append(cell.text or b" ")
    if link:
        parts.append(b"\x1b]8;;\x1b\\")
    if sgr != _SGR_DEFAULT:
        parts.append(_SGR_DEFAULT)
    return b"".join(parts)


def _look(raw: int) -> tuple[int, int, int, bool]:
    """The kind of a cell's content, the kind of its width, the number of its style, and whether it is a link."""
    tag, wide = ffi.new("GhosttyCellContentTag *"), ffi.new("GhosttyCellWide *")
    style, linked = ffi.new("GhosttyStyleId *"), ffi.new("bool *")
    for key, into in (("CONTENT_TAG", tag), ("WIDE", wide), ("STYLE_ID", style), ("HAS_HYPERLINK", linked)):
        _check(lib.ghostty_cell_get(raw, getattr(lib, f"GHOSTTY_CELL_DATA_{key}"), into), key)
    return tag[0], wide[0], style[0], linked[0]


def _colour(raw: int, tag: int) -> bytes:
    """The background of a cell without text."""
    if tag == lib.GHOSTTY_CELL_CONTENT_BG_COLOR_PALETTE:
        number = ffi.new("GhosttyColorPaletteIndex *")
        _check(lib.ghostty_cell_get(raw, lib.GHOSTTY_CELL_DATA_COLOR_PALETTE, number), "colour")
        return b";48;5;%d" % number[0]
    colour = ffi.new("GhosttyColorRgb *")
    _check(lib.ghostty_cell_get(raw, lib.GHOSTTY_CELL_DATA_COLOR_RGB, colour), "colour")
    return b";48;2;%d;%d;%d" % (colour.r, colour.g, colour.b)


def _sgr(style: Any) -> bytes:
    parts = [code for name, code in _STYLES.items() if getattr(style, name)]
    if style.underline:
        parts.append(b";4" if style.underline == 1 else b";4:%d" % style.underline)
    for code, colour in ((38, style.fg_color), (48, style.bg_color), (58, style.underline_color)):
        if colour.tag == lib.GHOSTTY_STYLE_COLOR_PALETTE:
            parts.append(b";%d;5;%d" % (code, colour.value.palette))
        elif colour.tag == lib.GHOSTTY_STYLE_COLOR_RGB:
            rgb = colour.value.rgb
            parts.append(b";%d;2;%d;%d;%d" % (code, rgb.r, rgb.g, rgb.b))
    return b"\x1b[0%bm" % b"".join(parts)


def _history(terminal: Terminal, most: int | None) -> bytes:
    """What writes the last ``most`` rows that have left the screen, and pushes them out of the screen."""
    count = terminal.get("scrollback_rows", "size_t")
    first = 0 if most is None else max(count - most, 0)
    if first >= count:
        return b""
    columns, rows = terminal.size
    selection = init_sized("GhosttySelection")
    selection.start = terminal.ref(0, first, "history")[0]
    selection.end = terminal.ref(columns - 1, count - 1, "history")[0]
    text = _format(terminal, (), (), selection)
    # Empty rows at the end are left out.
    missing = count - first - text.count(b"\r\n")
    pushed: bytes = text + _SGR_DEFAULT + b"\r\n" * (missing + rows - 1)
    return pushed


def _format(
    terminal: Terminal, extras: tuple[str, ...], screen_extras: tuple[str, ...], selection: Any = None
) -> bytes:
    """What libghostty-vt writes for a terminal."""
    options = init_sized("GhosttyFormatterTerminalOptions")
    options.emit = lib.GHOSTTY_FORMATTER_FORMAT_VT
    for name in extras:
        setattr(options.extra, name, True)
    for name in screen_extras:
        setattr(options.extra.screen, name, True)
    if selection is not None:
        options.selection = selection
    formatter, data, length = ffi.new("GhosttyFormatter *"), ffi.new("uint8_t **"), ffi.new("size_t *")
    _check(lib.ghostty_formatter_terminal_new(ffi.NULL, formatter, terminal._t[0], options[0]), "formatter")
    try:
        _check(lib.ghostty_formatter_format_alloc(formatter[0], ffi.NULL, data, length), "format")
    finally:
        lib.ghostty_formatter_free(formatter[0])
    text = bytes(ffi.buffer(data[0], length[0]))
    lib.ghostty_free(ffi.NULL, data[0], length[0])
    return text


def _unfinished(terminal: Terminal) -> bytes:
    """The beginning of a sequence whose end the program has not written yet."""
    if terminal.get("vt_ground", "bool"):
        return b""
    data, length = ffi.new("uint8_t **"), ffi.new("size_t *")
    if lib.ghostty_terminal_continuation_alloc(terminal._t[0], ffi.NULL, data, length):
        return b""
    text = bytes(ffi.buffer(data[0], length[0]))
    lib.ghostty_free(ffi.NULL, data[0], length[0])
    return text


def _spec(colour: Any) -> bytes:
    return b"rgb:%02x/%02x/%02x" % (colour.r, colour.g, colour.b)


def _check(result: int, what: str) -> None:
    if result != lib.GHOSTTY_SUCCESS:
        raise GhosttyError(f"{what}: {result}")
