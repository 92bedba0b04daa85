"""Check the paths of a checkout and of a platform on this machine, before anything is installed there.

    python natskit/config/local_paths.py FOLDER     of the platform; the checkout is the working directory

Spaces, %, most quotes and letters of any language are allowed: templates and scripts quote them. The refused characters
cannot be written in some configuration file or script. This module needs only Python's standard library.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

SOCKET_BYTES = 107
"""unix(7): the maximum length of a socket's path, in bytes."""
MAX_ROOT = SOCKET_BYTES - len("/supervisor/supervisor.sock.4194304")
"""Maximum length of the platform's folder in bytes. supervisor creates its socket with its process id in the name."""

_NOWHERE = {
    r"[\x00-\x1f\x7f\ud800-\udfff]": "a control character, or a byte that is not UTF-8",
    r"\$": "$, which starts a variable in nginx",
    r"\s[;#]": "a space before ; or #, which starts a comment in supervisor",
    r"\s(/|$)": "a space at the end of a name, which supervisor drops",
    r"\\": "a backslash, which is special in nginx and shells",
}
_NO_ROOT = {r"[*?[\]]": "*, ?, [ or ], which are patterns in supervisor"}
_NO_CHECKOUT = {
    '["`]': "a quote that the first line of the scripts in .venv/bin cannot contain",
    ":": "a colon, which separates the folders of PATH",
}
_NO_VARIABLE = {
    "[\"']": "a quote, which supervisor does not support in environment variables",
    ":": "a colon, which separates the folders of PYTHONPATH",
}


def unfit_root(root: Path) -> str:
    """Why a platform under supervisor cannot use this folder; empty if it can."""
    found = _has(root, _NOWHERE | _NO_ROOT)
    size = len(os.fsencode(root))
    if not found and size > MAX_ROOT:
        found = f"has {size} bytes, more than the {MAX_ROOT} that leave space for the path of a Unix socket in it"
    return found


def unfit_checkout(checkout: Path) -> str:
    """Why natskit cannot run from this checkout; empty if it can."""
    return _has(checkout, _NOWHERE | _NO_CHECKOUT)


def unfit_packages(folder: Path) -> str:
    """Why supervisor's programs cannot load packages from this folder; empty if they can."""
    return _has(folder, _NOWHERE | _NO_VARIABLE)


def _has(path: Path, rules: dict[str, str]) -> str:
    return next((f"has {what}" for pattern, what in rules.items() if re.search(pattern, str(path))), "")


def main() -> int:
    """See the module."""
    checkout, root = Path.cwd(), Path(sys.argv[1]).resolve()
    if why := unfit_checkout(checkout):
        print(f"natskit: {_shown(checkout)} {why}: move the checkout to another folder", file=sys.stderr)
        return 1
    if why := unfit_root(root):
        advice = "choose another folder with NATSKIT_LOCAL=/FOLDER"
        print(f"natskit: the platform's folder {_shown(root)} {why}: {advice}", file=sys.stderr)
        return 1
    return 0


def _shown(path: Path) -> str:
    """The path in a printable form."""
    return str(path) if str(path).isprintable() else ascii(str(path))


if __name__ == "__main__":
    sys.exit(main())
