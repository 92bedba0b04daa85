#!/bin/bash
# Expected: `import httpx` loads an HTTP client. What its command `httpx` needs is loaded when that command runs.
# Seen: where click, pygments and rich are installed, as other packages often bring them, `import httpx` loads the
#   command too, and with it these three: about a hundred modules more.
# Version: httpx 0.28.1, with click 8.5.1, pygments 2.21.0, rich 15.0.0
# Why it matters: a command-line program that asks one address over HTTP pays for a terminal toolkit at each start,
#   and the cost depends on which other packages happen to be installed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
install() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
ask() {
  "$folder/env/bin/python" - <<'EOF'
import sys
before = len(sys.modules)
import httpx
names = ("click", "pygments", "rich", "httpx._main")
print(len(sys.modules) - before, *(name for name in names if name in sys.modules))
EOF
}
install httpx==0.28.1
alone=$(ask)
echo "httpx 0.28.1 alone loads modules: $alone"
install click==8.5.1 pygments==2.21.0 rich==15.0.0
beside=$(ask)
echo "beside click 8.5.1, pygments 2.21.0 and rich 15.0.0: $beside"
[[ $alone != *rich* && $beside == *click*pygments*rich*httpx._main* && $((${beside%% *} - ${alone%% *})) -gt 50 ]] ||
  { echo "the behaviour has changed"; exit 1; }
