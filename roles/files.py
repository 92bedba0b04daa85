"""Operations for files: write a file only if its content differs, and only after the real program has accepted it."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyinfra import host
from pyinfra.api import FactBase, StringCommand, operation
from pyinfra.api.operation import OperationMeta
from pyinfra.operations import files

from roles.errors import DeployError

CANDIDATE = ".candidate"
AS_USER = (
    "setpriv --reuid={user} --regid={user} --clear-groups "
    "--inh-caps=+net_bind_service --ambient-caps=+net_bind_service -- env HOME=/nonexistent"
)
"""Run a check with the rights that its unit gives the program: its own user, and ports below 1024."""


def private_directory(path: Path, owner: str = "") -> None:
    """Make a folder that only its owner may enter, before secrets are uploaded into it."""
    files.directory(name=f"Make folder {path}", path=str(path), mode="700", user=owner or None, group=owner or None)


def public_directory(path: Path) -> None:
    """Make a folder that root owns and all users may read."""
    files.directory(name=f"Make folder {path}", path=str(path), mode="755", user="root", group="root")


@dataclass(frozen=True)
class WrittenFile:
    """A file that a program reads, and whether this deploy changed it."""

    path: Path
    operation: OperationMeta

    @property
    def did_change(self) -> Callable[[], bool]:
        """For the argument ``_if``, which calls it while the deploy runs."""
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
    """Write a file if its content, mode or owner differs; with ``check``, only after that program has accepted it.

    The operation writes a candidate beside the file, runs ``check`` with ``{}`` replaced by the candidate's path, and
    moves the candidate into place atomically if the check succeeds. Otherwise it removes the candidate and keeps the
    old file, and the run of this host fails with the program's output and ``explain``.

    The content goes through the command's input. It never appears in an argv, nor in a file that other users may read,
    such as the temporary file of an upload over SSH with sudo.
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
    """The content of a file, hidden from pyinfra's output of an operation's arguments."""

    data: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class FileOnHost:
    """The digest, mode and owner of a file on a host."""

    digest: str
    mode: str
    owner: str

    def is_as(self, content: _Content, mode: str, owner: str) -> bool:
        """Whether it has this content, mode and, if one is named, owner."""
        return self.digest == content.digest and self.mode == mode and (not owner or self.owner == owner)


class FoundFile(FactBase[FileOnHost | None]):
    """The file at a path; ``None`` if there is none."""

    def command(self, path: str) -> str:
        place = shlex.quote(path)
        return f"if [ -f {place} ]; then stat -c '%a %U' {place}; sha256sum < {place}; fi"

    def process(self, output: Iterable[str]) -> FileOnHost | None:
        words = " ".join(output).split()
        return FileOnHost(words[2], words[0], words[1]) if len(words) > 2 else None


@operation()
def _written(
    content: _Content, path: str, mode: str, owner: str, check: list[str], explain: str
) -> Generator[StringCommand, None, None]:
    found = host.get_fact(FoundFile, path=path)
    if found is not None and found.is_as(content, mode, owner):
        host.noop(f"{path} is as it should be")
        return
    candidate = shlex.quote(path + CANDIDATE)
    steps = [f"umask 077; base64 -d > {candidate}", f"chmod {mode} {candidate}"]
    if owner:
        steps.append(f"chown {owner}: {candidate}")
    if check:
        log = shlex.quote(f"{path}{CANDIDATE}.log")
        command = " ".join(candidate if word == "{}" else shlex.quote(word) for word in check)
        # As the user who will read the file: even for a check, nginx makes its folders and binds its ports.
        command = f"{AS_USER.format(user=owner)} {command}" if owner else command
        refuse = f"cat {log} >&2; echo {shlex.quote(explain)} >&2; rm -f {candidate} {log}; exit 1"
        steps.append(f"{{ {command} > {log} 2>&1 || {{ {refuse}; }}; }}")
        steps.append(f"rm -f {log}")
    steps.append(f"mv {candidate} {shlex.quote(path)}")
    yield StringCommand(" && ".join(steps), _stdin=base64.b64encode(content.data).decode())


@operation(is_idempotent=True)
def stage(what: str) -> Generator[StringCommand, None, None]:
    """A point at which hosts wait for each other. pyinfra orders the operations of different hosts only by those that
    the hosts have in common, so without it an operation of a hub could run before one of a nats-server."""
    host.noop(what)
    yield from ()


def require_directory(path: Path, what: str) -> None:
    """End the run if a folder of the control machine is missing."""
    if not path.is_dir():
        raise DeployError(f"{path} is missing: {what}")
