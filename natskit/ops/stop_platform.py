"""Stop the platform in a folder of this machine, and wait until it has stopped.

    python -m natskit.ops.stop_platform FOLDER

This module also finds the platforms that run on this machine, and their users. It needs only Python's standard
library, so that a platform can be stopped even after ``.venv`` was removed.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from natskit.ops.orphans import ForeignProcessError, command_of, end_orphans, is_supervisord, process_ids, words_of

STOP_SECONDS = 300.0
"""supervisord stops its programs one after the other. Each may take up to a minute."""
CONFIGURATION = Path("supervisor", "supervisord.conf")
"""The path in a platform's folder."""


@dataclass(frozen=True)
class Supervisor:
    """A supervisord that runs a platform: its process id, its user's uid and the platform's folder."""

    pid: int
    user: int
    root: Path


class NotOursError(Exception):
    """The platform belongs to another user. The message names the user and the fix."""


def supervisors() -> Iterator[Supervisor]:
    """The platforms' supervisords of all users on this machine. ``/proc`` may hide those of other users."""
    for pid in process_ids():
        words = words_of(pid)
        if "-c" not in words[:-1] or not is_supervisord(words):
            continue
        configuration = Path(words[words.index("-c") + 1])
        if configuration.parts[-2:] == CONFIGURATION.parts:
            try:
                user = os.stat(f"/proc/{pid}").st_uid
            except OSError:  # it has ended
                continue
            root = _root(pid, configuration.parents[1])
            if not _is_in_container(pid, root):
                yield Supervisor(pid, user, root)


def _root(pid: int, started: Path) -> Path:
    """The platform's current folder or, for another user's process, its folder at the start, which may have moved."""
    try:
        current = Path(f"/proc/{pid}/cwd").readlink()
        return current if (current / CONFIGURATION).exists() else started
    except OSError:
        return started


def _is_in_container(pid: int, root: Path) -> bool:
    """Whether it runs in a container, where the path is another folder. False for a process of another user."""
    try:
        return not root.samefile(f"/proc/{pid}/root{root}")
    except OSError:
        return False


def user_name(number: int) -> str:
    """The name of a user."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def may_end(user: int) -> bool:
    """Whether we may signal processes of a user."""
    return os.geteuid() in (0, user)


def check_owner(root: Path) -> None:
    """Raises :class:`NotOursError` if we may not access the platform's folder, its parents or its configuration."""
    for path in (*reversed(root.parents), root, root / "supervisor", root / CONFIGURATION):
        if os.path.lexists(path) and not os.access(path, os.X_OK if path.is_dir() else os.R_OK):
            owner, me = user_name(path.stat().st_uid), user_name(os.geteuid())
            raise NotOursError(f"{path} belongs to {owner}, and you are {me}: do this as {owner}")


def down(root: Path) -> str:
    """Stop the platform and return a message. Raises :class:`NotOursError`, or ``TimeoutError`` if it does not stop."""
    check_owner(root)
    running = [found for found in supervisors() if found.root == root]
    for found in running:
        if not may_end(found.user):
            raise NotOursError(_whose(root, user_name(found.user)))
    for found in running:
        os.kill(found.pid, signal.SIGTERM)
    for found in running:
        wait_for_end(found.pid, root)
    # A supervisord that was killed leaves its programs behind.
    try:
        ended = end_orphans(root / "supervisor" / "programs")
    except ForeignProcessError as error:
        raise NotOursError(_whose(root, user_name(error.user))) from None
    if running:
        return f"natskit is down; its data is in {root}"
    return f"ended {len(ended)} programs that had outlived their supervisord" if ended else "natskit is not running"


def _whose(root: Path, owner: str) -> str:
    return f"{owner} started the platform in {root}, and you are {user_name(os.geteuid())}: run make down as {owner}"


def wait_for_end(pid: int, root: Path) -> None:
    """Wait until the supervisord of a platform has ended. Raises ``TimeoutError`` if it does not."""
    deadline = time.monotonic() + STOP_SECONDS
    while command_of(pid):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"supervisord (process {pid}) has not ended in {STOP_SECONDS:g} s: see {root}/log/supervisord.log"
            )
        time.sleep(0.05)


def main() -> int:
    """See the module."""
    try:
        print(down(Path(sys.argv[1]).resolve()))
    except (NotOursError, OSError) as error:
        print(f"natskit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
