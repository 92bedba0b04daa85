#!/bin/bash
# Expected: in origin mode, CUU moves the cursor up by one row (ECMA-48, 8.3.22): from the lower margin, row 13, to row 12.
# Seen: xterm.js stays in row 13, because each relative movement adds the upper margin to a row that has it already.
# Version: @xterm/xterm 6.0.0
# Why it matters: what a program draws between margins stands in other rows than in xterm, VTE and libghostty-vt. A viewer
#   that comes back has it right, so it differs from one that has seen it all.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo '{ "private": true }' >package.json
npm install --silent --no-audit --no-fund --save-exact @xterm/xterm@6.0.0 >/dev/null 2>&1
cat >probe.cjs <<'EOF'
globalThis.self = globalThis.window = globalThis;
globalThis.document = { createElement: () => ({ getContext: () => null }), documentElement: { style: {} } };
Object.defineProperty(globalThis, "navigator", { value: { userAgent: "", platform: "" } });
const { Terminal } = require("@xterm/xterm");
const terminal = new Terminal({ cols: 80, rows: 24, allowProposedApi: true });
terminal.write("\x1b[12;13r\x1b[?6h\x1b[2;1H\x1b[1A", () => {
  const row = terminal.buffer.active.cursorY + 1;
  console.log("xterm.js 6.0.0: from row 13, CUU leads to row", row);
  process.exit(row === 13 ? 0 : 1);
});
EOF
node probe.cjs || { echo "the behaviour has changed"; exit 1; }
