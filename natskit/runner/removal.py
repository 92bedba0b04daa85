"""Remove a project's files, whatever modes and depth its commands gave them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from natskit.errors import NatskitError

ATTEMPTS = 10
"""A process that is ending may still create files in a folder that was empty a moment ago."""
SHOWN = 300
"""Characters of a message of rm: the paths of nested folders have no limit."""


async def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with its contents. Does nothing if it is gone.

    ``rm`` and ``find`` walk by file descriptors, so they can handle folders of any depth. ``shutil.rmtree`` of Python
    3.11 and 3.12 cannot (it recurses for each folder), nor can functions that take paths longer than ``PATH_MAX``. They
    follow no links, and stay on the file system they began on. Raises :class:`NatskitError` with the file that cannot
    be removed. Another call can remove the rest.
    """
    for _ in range(ATTEMPTS):
        said = await _run("rm", "--recursive", "--force", "--one-file-system", "--", str(path))
        if not said:
            return
        if "ermission denied" in said and os.geteuid() != 0:
            await _open_folders(path)
    raise NatskitError(f"{path} cannot be removed: {_short(said)}")


async def _open_folders(path: Path) -> None:
    """Restore the owner's right to list and change folders, which commands may have removed.

    For folders only: a file may have another name outside. Root does not need this, and it would be dangerous for root:
    ``chmod`` follows a link that takes the place of a folder.
    """
    closed = ("-xdev", "-type", "d", "!", "-perm", "-u=rwx")
    await _run("find", str(path), *closed, "-execdir", "chmod", "u+rwx", "--", "{}", ";")


async def _run(*words: str) -> str:
    """The first line that a command writes to its standard error."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        # -execdir refuses a PATH with relative folders, in which a project could put its own chmod.
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
    )
    _, said = await process.communicate()
    return said.decode(errors="replace").strip().partition("\n")[0]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}…{text[-SHOWN // 2 :]}"
