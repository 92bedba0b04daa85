"""The root directory of a project's unit: the files and folders that are made before each start, not mounted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from natskit.runner.sandbox import FOLDERS, FOLLOWED, LINKS, SHOWN

MODE = 0o755
"""On the host only root can reach it; inside the unit it is the project's ``/``."""


def lay_out(root: Path, host: Path = Path("/")) -> None:
    """Make it from scratch: the folders that programs expect, and the links into ``/usr`` that the host has.

    systemd creates its mount points, so earlier settings would leave empty folders behind. No process may run in the
    root: removing a folder would also remove mounts on it in other mount namespaces.
    """
    if root.exists():
        shutil.rmtree(root)
    for folder in ("", *FOLDERS):
        make(root / folder)
    for name in LINKS:
        if (host / name).is_symlink():
            (root / name).symlink_to((host / name).readlink())
    (root / "var" / "run").symlink_to("../run")
    (root / "etc" / "mtab").symlink_to("../proc/self/mounts")
    for name in FOLLOWED:
        (root / "etc" / name).symlink_to(SHOWN / name)


def make(folder: Path) -> None:
    """Make a folder that all users may enter, whatever the umask."""
    folder.mkdir(exist_ok=True)
    folder.chmod(MODE)


def name_user(etc: Path, name: str, user: int, home: Path) -> None:
    """Give a project's user a name in the project's own ``passwd`` and ``group``: it may not see those of the host."""
    _write(
        etc / "passwd",
        "root:x:0:0:root:/root:/usr/sbin/nologin",
        f"{name}:x:{user}:{user}:natskit project:{home}:/bin/bash",
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin",
    )
    _write(etc / "group", "root:x:0:", "tty:x:5:", f"{name}:x:{user}:", "nogroup:x:65534:")


def _write(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n")
    os.chmod(path, 0o644)
