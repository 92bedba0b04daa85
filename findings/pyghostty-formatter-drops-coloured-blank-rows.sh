#!/bin/bash
# Expected: libghostty-vt's formatter, asked for VT sequences, writes what draws the terminal's screen again: a row that
#   a program has filled with a background colour and no text (ESC[2K under ESC[44m) comes back blue.
# Seen: the row comes back as a bare line break, without its colour. The rows around it, which have text, keep theirs.
#   Turning the formatter's trimming off does not change that.
# Version: pyghostty 0.1.3, which holds libghostty-vt
# Why it matters: to show a terminal to somebody who comes later, as multiplexers do, this output is not enough:
#   the status bars and panels of full-screen programs lose their background. Draw such rows cell by cell instead.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pyghostty==0.1.3
"$folder/env/bin/python" - <<'EOF'
import sys
from pyghostty import Terminal, ffi, lib

def formatted(terminal, trim):
    options = ffi.new("GhosttyFormatterTerminalOptions *")
    options.size = ffi.sizeof("GhosttyFormatterTerminalOptions")
    options.emit, options.trim = lib.GHOSTTY_FORMATTER_FORMAT_VT, trim
    formatter, data, length = ffi.new("GhosttyFormatter *"), ffi.new("uint8_t **"), ffi.new("size_t *")
    assert lib.ghostty_formatter_terminal_new(ffi.NULL, formatter, terminal._t[0], options[0]) == lib.GHOSTTY_SUCCESS
    assert lib.ghostty_formatter_format_alloc(formatter[0], ffi.NULL, data, length) == lib.GHOSTTY_SUCCESS
    return bytes(ffi.buffer(data[0], length[0]))

terminal = Terminal(20, 4)
terminal.feed(b"\x1b[41mred\r\n\x1b[44m\x1b[2K\r\n\x1b[42mgreen\x1b[0m")
print("pyghostty 0.1.3")
gone = True
for trim in (True, False):
    text = formatted(terminal, trim)
    print(f"trim={trim}: {text!r}")
    red, green = b"41" in text or b"48;5;1m" in text, b"42" in text or b"48;5;2m" in text
    blue = b"44" in text or b"48;5;4m" in text
    gone = gone and red and green and not blue
sys.exit(0 if gone else "the behaviour has changed")
EOF
