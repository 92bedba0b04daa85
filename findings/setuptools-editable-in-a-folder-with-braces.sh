#!/bin/bash
# Expected: the name of a project's folder does not matter to its build. pip install --editable works in a folder called
#   "{x}" as in any other, and so does building a wheel.
# Seen: the editable install ends with "ValueError: invalid variable 'x'". setuptools takes the paths of the
#   installation scheme, which contain the folder of the virtual environment, for patterns whose {names} it replaces.
# Version: setuptools 80.9.0, pip 25.3
# Why it matters: a checkout below a folder with braces, as templates for new projects and some CI systems make them,
#   cannot be set up, and the error names a variable that appears in none of the user's files.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
install() {
  mkdir -p "$1"
  python3 -m venv "$1/venv"
  "$1/venv/bin/python" -m pip install --quiet --disable-pip-version-check pip==25.3 setuptools==80.9.0
  printf '[project]\nname = "probe"\nversion = "1"\n[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n' >"$1/pyproject.toml"
  touch "$1/probe.py"
  (cd "$1" && venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable . 2>&1)
}

install "$folder/plain"
"$folder/plain/venv/bin/python" -m pip --version
"$folder/plain/venv/bin/python" -c 'import setuptools; print("setuptools", setuptools.__version__)'
echo "in a plain folder: installed"
if said=$(install "$folder/{x}"); then
  echo "in a folder {x}: installed; the behaviour has changed"
  exit 1
fi
grep -o "ValueError: invalid variable 'x'" <<<"$said" | head -n 1 | sed 's/^/in a folder {x}: /'
