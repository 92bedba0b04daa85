#!/bin/bash
# Expected: `zensical build --strict` fails on every broken relative link, as it does for a missing page and a missing
#   heading.
# Seen: a link to a file that is no page (thing.yaml) and does not exist builds without a warning, and the website has
#   the broken link. The same link to a missing page (thing.md) ends the build with exit code 1.
# Version: zensical 0.0.73
# Why it matters: documentation links configuration files and scripts as often as pages. A team that relies on the
#   strict build to find dead links ships them; check the built HTML as well.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check zensical==0.0.73
cd "$folder"
"$folder/venv/bin/zensical" --version
mkdir docs
printf '[project]\nsite_name = "probe"\n' >zensical.toml
build() {
  printf '# Probe\n\n[a link](%s)\n' "$1" >docs/index.md
  rm -rf site .cache
  "$folder/venv/bin/zensical" build --strict >said 2>&1 && code=0 || code=$?
  echo "a link to $1, which does not exist: exit code $code"
}
build thing.md
page=$code
build thing.yaml
file=$code
grep -o 'href="[^"]*thing.yaml"' site/index.html || true
[ "$page" != 0 ] && [ "$file" = 0 ] || { cat said; echo "the behaviour has changed"; exit 1; }
