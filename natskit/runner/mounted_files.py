"""Files of the host that change while projects run. A project would keep seeing the old file if it were mounted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from natskit.runner.sandbox import FOLLOWED


class Followed:
    """Copies of those files in a folder that projects see. A copy is replaced when the host's file changes."""

    def __init__(self, folder: Path, etc: Path = Path("/etc")) -> None:
        self._folder, self._etc = folder, etc
        self._seen: dict[str, tuple[int, ...]] = {}

    def follow(self) -> None:
        """Copy changed files, and remove the copies of deleted ones. Raises :class:`OSError`."""
        for name in FOLLOWED:
            path = self._etc / name
            try:
                status = path.stat()
            except FileNotFoundError:
                (self._folder / name).unlink(missing_ok=True)
                self._seen.pop(name, None)
                continue
            now = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if self._seen.get(name) != now:
                self._replace(name, path.read_bytes())
                self._seen[name] = now

    def _replace(self, name: str, content: bytes) -> None:
        part = self._folder / f".{name}"
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, 0o644)
        part.replace(self._folder / name)
