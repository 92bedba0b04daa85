"""Operations for files: written only when their content differs, and never before the real program accepts them."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.operation import OperationMeta
from pyinfra.facts.files import Sha1File
from pyinfra.operations import files

from roles.errors import DeployError

CANDIDATE = ".candidate"
AS_USER = (
    "setpriv --reuid={user} --regid={user} --clear-groups "
    "--inh-caps=+net_bind_service --ambient-caps=+net_bind_service --"
)
"""What its unit allows a program: its own user, and ports below 1024."""


def private_directory(path: Path, owner: str = "") -> None:
    """A folder that only its owner may enter; made before anything secret is uploaded into it."""
    files.directory(name=f"Make folder {path}", path=str(path), mode="700", user=owner or None, group=owner or None)


@dataclass(frozen=True)
class WrittenFile:
    """A file that a program reads, and whether this deploy changed it."""

    path: Path
    operation: OperationMeta

    @property
    def did_change(self) -> Callable[[], bool]:
        """For ``_if``: asked when the deploy runs."""
        return self.operation.did_change


def checked_file(
    *,
    name: str,
    content: str,
    path: Path,
    mode: str = "600",
    owner: str = "",
    check: Sequence[str] = (),
    explain: str = "",
) -> WrittenFile:
    """Write a file when its content differs; with ``check``, only after that program has accepted it.

    The candidate is written beside the file, ``{}`` in ``check`` stands for its path, and it is moved into place, at
    once, when the check succeeds. A refused candidate is removed and the run of this host fails with what the program
    said, and with ``explain``; the old file stays.

    The content goes through the command's input: never into an argv, and never into a file that others may read, as
    the temporary file of an upload over SSH with sudo would be.
    """
    operation = _written(
        name=name,
        content=_Content(content.encode()),
        path=str(path),
        mode=mode,
        owner=owner,
        check=list(check),
        explain=explain,
    )
    return WrittenFile(path, operation)


@dataclass(frozen=True)
class _Content:
    """What pyinfra may show of an operation's arguments does not show this."""

    data: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        return hashlib.sha1(self.data, usedforsecurity=False).hexdigest()


@operation()
def _written(
    content: _Content, path: str, mode: str, owner: str, check: list[str], explain: str
) -> Generator[StringCommand, None, None]:
    if host.get_fact(Sha1File, path=path) == content.digest:
        host.noop(f"{path} is as it should be")
        return
    candidate = shlex.quote(path + CANDIDATE)
    steps = [f"umask 077; base64 -d > {candidate}", f"chmod {mode} {candidate}"]
    if owner:
        steps.append(f"chown {owner}: {candidate}")
    if check:
        log = shlex.quote(f"{path}{CANDIDATE}.log")
        command = " ".join(candidate if word == "{}" else shlex.quote(word) for word in check)
        # As the user who will read it: nginx makes its folders even when it only checks, and binds its ports.
        command = f"{AS_USER.format(user=owner)} {command}" if owner else command
        refuse = f"cat {log} >&2; echo {shlex.quote(explain)} >&2; rm -f {candidate} {log}; exit 1"
        steps.append(f"{{ {command} > {log} 2>&1 || {{ {refuse}; }}; }}")
        steps.append(f"rm -f {log}")
    steps.append(f"mv {candidate} {shlex.quote(path)}")
    yield StringCommand(" && ".join(steps), _stdin=base64.b64encode(content.data).decode())


@operation(is_idempotent=True)
def stage(what: str) -> Generator[StringCommand, None, None]:
    """Where hosts wait for each other: pyinfra goes on with one host's next operation while another still has to do
    what it needs, unless they have an operation in common."""
    host.noop(what)
    yield from ()


def require_directory(path: Path, what: str) -> None:
    """End the run if a folder of the control machine is missing."""
    if not path.is_dir():
        raise DeployError(f"{path} is missing: {what}")
