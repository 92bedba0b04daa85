#!/bin/bash
# Expected: ESC[g (TBC) clears the tab stop at the cursor: a number that is left out is 0 (ECMA-48, 8.3.154; vttest uses it).
# Seen: libghostty-vt ignores ESC[g, and obeys ESC[0g.
# Version: pyghostty 0.1.3, which holds libghostty-vt
# Why it matters: what a program prints behind a tab stands in other columns than in xterm, VTE and xterm.js.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pyghostty==0.1.3
"$folder/env/bin/python" - <<'EOF'
import sys
from pyghostty import Terminal

columns = {}
for sequence in (b"\x1b[g", b"\x1b[0g"):
    terminal = Terminal(40, 2)
    terminal.feed(b"\x1b[1;9H" + sequence + b"\r\t")
    columns[sequence] = terminal.cursor[0]
print("pyghostty 0.1.3: a tab leads to", columns)
sys.exit(0 if columns == {b"\x1b[g": 8, b"\x1b[0g": 16} else "the behaviour has changed")
EOF
