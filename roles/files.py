"""Operations for files: written only when their content differs, and never before the real program accepts them."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from io import BytesIO
from pathlib import Path

from pyinfra import host
from pyinfra.api import FileUploadCommand, StringCommand, operation
from pyinfra.api.command import QuoteString
from pyinfra.facts.files import Sha1File
from pyinfra.operations import files

from natskit.errors import SettingsError

CANDIDATE = ".candidate"


def private_directory(path: Path) -> None:
    """A folder that only its owner may enter; made before anything secret is uploaded into it."""
    files.directory(name=f"Make folder {path}", path=str(path), mode="700")


@operation()
def checked_file(
    content: str, path: str, mode: str = "600", check: list[str] | None = None
) -> Generator[StringCommand | FileUploadCommand, None, None]:
    """Write a file when its content differs; with ``check``, only after that program has accepted it.

    The candidate is uploaded beside the file, ``{}`` in ``check`` stands for its path, and it is moved into place, at
    once, when the check succeeds. A refused candidate is removed and the run of this host fails with what the program
    said; the old file stays.
    """
    data = content.encode()
    if host.get_fact(Sha1File, path=path) == hashlib.sha1(data, usedforsecurity=False).hexdigest():
        host.noop(f"{path} is as it should be")
        return
    candidate = path + CANDIDATE
    # The mode is set on an empty file first: the content is never readable by others, not even for a moment.
    yield StringCommand(
        "rm", "-f", QuoteString(candidate), "&&", "touch", QuoteString(candidate), "&&", "chmod", mode,
        QuoteString(candidate),
    )  # fmt: skip
    yield FileUploadCommand(BytesIO(data), candidate, remote_temp_filename=candidate)
    yield StringCommand("chmod", mode, QuoteString(candidate))
    if check:
        words = [QuoteString(candidate if word == "{}" else word) for word in check]
        yield StringCommand(
            "{", *words, ";", "}", ">", QuoteString(f"{candidate}.log"), "2>&1", "||", "{",
            "cat", QuoteString(f"{candidate}.log"), ">&2", ";",
            "rm", "-f", QuoteString(candidate), QuoteString(f"{candidate}.log"), ";", "exit", "1", ";", "}",
        )  # fmt: skip
        yield StringCommand("rm", "-f", QuoteString(f"{candidate}.log"))
    yield StringCommand("mv", QuoteString(candidate), QuoteString(path))


def require_directory(path: Path, what: str) -> None:
    """Raise :class:`SettingsError` if a folder of the control machine is missing."""
    if not path.is_dir():
        raise SettingsError(f"{path} is missing: {what}")
