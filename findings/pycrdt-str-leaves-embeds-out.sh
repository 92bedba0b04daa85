#!/bin/bash
# Expected: an index that is found in str(text) is a place in the text, as with ASCII text that has nothing embedded.
# Seen: what insert_embed() put in counts as one place in len(text) and in every index, and str(text) leaves it out: an
# insertion before the word "go" lands inside the word before it. An embedded string is missing in str(text) too.
# Version: pycrdt 0.14.13
# Why it matters: who edits a text by the difference of two strings writes into the wrong words for everybody, without
# an error, as soon as somebody embeds a picture. text.diff() tells the parts apart.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pycrdt==0.14.13
"$folder/env/bin/python" - <<'EOF'
import sys
from pycrdt import Doc, Text

text = Doc().get("text", type=Text)
text += "see  and go"
text.insert_embed(4, {"image": "map"})
seen = [len(text), len(str(text))]
text.insert(str(text).index("go"), "then ")
seen.append(str(text))
text.insert_embed(0, "a string")
seen.append("a string" in str(text))
print("pycrdt 0.14.13: len(text), len(str(text)), the edited text, the embedded string is in it:", seen)
sys.exit(0 if seen == [12, 11, "see  andthen  go", False] else "the behaviour has changed")
EOF
