"""``python -m natskit.runner.claim_home NAME``: give a project's home and name to the user that systemd allocated.

systemd runs this before each start of a project's agent, as root, within the root directory of the project's unit,
where ``/proc`` may not be mounted. A user that ``DynamicUser=`` allocates may have another number than at the previous
start. The owner of ``/run/natskit-project/NAME``, which systemd has just made for it (``RuntimeDirectory=``), has its
number.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from natskit.runner.project_root import name_user
from natskit.runner.sandbox import HOME

RUNTIME = Path("/run/natskit-project")


def settle_in(name: str, user: int, home: Path, etc: Path) -> None:
    """Give ``home`` and its contents to ``user``, and name that user ``name``. Raises :class:`OSError`."""
    give(home, user)
    home.chmod(0o700)
    name_user(etc, name, user, HOME)


def give(home: Path, user: int) -> None:
    """Change the owner of a folder and its contents, unless the user owns it already. Does not follow links.

    chown handles folders of any depth and changes the folder itself last (GNU coreutils), so an interrupted walk is
    repeated at the next start.
    """
    status = home.stat()
    if (status.st_uid, status.st_gid) == (user, user):
        return
    owner = f"{user}:{user}"
    done = subprocess.run(
        ["chown", "--recursive", "--no-dereference", "-P", "--", owner, str(home)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(f"chown {owner} {home}: {done.stderr.strip()[-500:]}")


def main() -> int:
    """Give the home of the project on the command line to its user."""
    name = sys.argv[1]
    try:
        settle_in(name, (RUNTIME / name).stat().st_uid, HOME, Path("/etc"))
    except OSError as error:
        print(f"the project's home cannot be given to its user: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
