"""Files that nobody but their owner may read, and that are never seen half-written."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from natskit.errors import IdentityError


def make_private(directory: Path) -> None:
    """Make a directory, and the missing ones above it, with mode 0700."""
    if not directory.is_dir():
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, content: str) -> None:
    """Write a file with mode 0600, atomically and durably; a file that holds the content already is left alone."""
    if path.exists() and path.read_bytes() == content.encode():
        return
    make_private(path.parent)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_private(path: Path) -> None:
    """Raise :class:`IdentityError` if anybody but the owner may read ``path``, or it does not exist."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror}") from None
    if mode & 0o077:
        raise IdentityError(f"{path} has mode {mode:04o}, so others may read it: run chmod go= {path}")
