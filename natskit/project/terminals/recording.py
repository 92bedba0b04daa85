"""A recording of a terminal, as a file that asciinema and its players read: asciicast v3.

The format: https://docs.asciinema.org/manual/asciicast/v3/. The file grows under a hidden name beside its own, and gets
its own when the recording ends: it is whole then. Every line that is written is whole as well, so that what an agent
that was killed has left under the hidden name can be played. What is typed is never recorded: it may be a password.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from natskit.process.signals import SIGNALLED
from natskit.project.content import NEW_FILE_MODE, temporary_name, write_all
from natskit.project.files import Home
from natskit.project.paths import FOLDER, check_name, explained, shown
from natskit.project.terminals.program import Outcome
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

BACKLOG_BYTES = 4 * 1024 * 1024
"""What is not on the disk yet, above which the terminal waits."""
LAST_BYTES = 4096
"""Room for the last events of a file that is full."""
TERM = "xterm-256color"


class Recording:
    """One recording, from its header to :meth:`finish`. ``failed`` is called when it has to end: it is full, or cannot
    be written.

    Raises :class:`RpcError` if the file exists already, or cannot be made.
    """

    def __init__(self, home: Home, path: str, *, most: int, columns: int, rows: int, command: str, title: str) -> None:
        check_name(path)
        self.path = path
        self.failed: Callable[[], None] = lambda: None
        self.why = ""
        """Why it ended by itself; empty if it did not."""
        self._most = most
        self._begun, self._last = time.monotonic(), 0
        self._lines = bytearray()
        self._size = 0
        """Bytes of all events until now, written or not."""
        self._held: list[tuple[str, str]] | None = None
        """Events that come after a screen that is not drawn yet."""
        self._writing = threading.Lock()
        self._flushing: asyncio.Task[None] | None = None
        self._ended = False
        with explained(path), home.at(path, may_be_absent=True) as place:
            if place.fd is not None:
                raise RpcError(
                    "conflict", f"{shown(path)} exists already: choose another name for the recording", what="recording"
                )
            self._name, self._temporary = place.name, temporary_name()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, NEW_FILE_MODE, dir_fd=place.folder)
            self._folder = os.dup(place.folder)
        header: dict[str, Any] = {
            "version": 3,
            "term": {"cols": columns, "rows": rows, "type": TERM},
            "timestamp": int(time.time()),
            "command": command,
            "title": title,
        }
        self._add(json.dumps(header).encode())

    @property
    def is_behind(self) -> bool:
        """Whether the disk has so much to take that the terminal should print no more for now."""
        return len(self._lines) + sum(len(text) for _, text in self._held or ()) > BACKLOG_BYTES

    def hold(self) -> None:
        """Keep what comes from now on until :meth:`screen` says what comes before it."""
        self._held = []

    def screen(self, drawn: bytes) -> None:
        """What the terminal showed when :meth:`hold` was called."""
        held, self._held = self._held, None
        self.output(drawn)
        for code, text in held or ():
            self._event(code, text)

    def output(self, data: bytes) -> None:
        """Take what viewers are shown."""
        self._event("o", data.decode("utf-8", "replace"))

    def resize(self, columns: int, rows: int) -> None:
        """Take a new size."""
        self._event("r", f"{columns}x{rows}")

    async def finish(self, outcome: Outcome | None = None) -> None:
        """End it, with how the program ended, and give the file its name."""
        if self._end(outcome):
            if self._flushing is not None:
                await self._flushing
            await asyncio.to_thread(self._close)

    def finish_now(self) -> None:
        """The same at the end of the agent, which waits for the disk."""
        if self._end(None):
            self._close()

    def _end(self, outcome: Outcome | None) -> bool:
        if self._ended:
            return False
        if self._held is not None:
            self.screen(b"")
        if outcome is not None and not self.why:
            code = outcome["exit_code"]
            self._event("x", str(code if code is not None else SIGNALLED + (outcome["signal_number"] or 0)))
        self._ended = True
        return True

    def _event(self, code: str, text: str) -> None:
        if self._ended or self.why:
            return
        if self._held is not None:
            self._held.append((code, text))
            return
        room = self._most - LAST_BYTES - self._size
        if code == "o" and len(text) > 1 and len(json.dumps(text, ensure_ascii=False).encode()) > room:
            half = len(text) // 2  # record what fits
            self._event(code, text[:half])
            self._event(code, text[half:])
            return
        now = round((time.monotonic() - self._begun) * 1000)
        interval, self._last = (now - self._last) / 1000, now
        line = json.dumps([interval, code, text], ensure_ascii=False).encode()
        if len(line) > room:
            line = json.dumps([interval, "m", f"the recording has reached its limit of {self._most:,} bytes"]).encode()
            self.why = f"it has reached the limit of {self._most:,} bytes (runner_project_recording)"
        self._add(line)
        if self.why:
            self.failed()

    def _add(self, line: bytes) -> None:
        self._size += len(line) + 1
        self._lines += line + b"\n"
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        while self._lines:
            data, self._lines = bytes(self._lines), bytearray()
            error = await asyncio.to_thread(self._write, data)
            if error is not None and not self.why:
                self.why = f"{shown(self.path)} cannot be written: {error.strerror or error}"
                self.failed()
        self._flushing = None

    def _write(self, data: bytes) -> OSError | None:
        """Write whole lines: if the disk takes no more, the file ends with the last one that it took."""
        with self._writing:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            try:
                write_all(self._fd, data)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, end)
                    os.lseek(self._fd, end, os.SEEK_SET)
                return error
        return None

    def _close(self) -> None:
        data, self._lines = bytes(self._lines), bytearray()
        self._write(data)
        try:
            os.fsync(self._fd)
            self._rename()
        except OSError as error:
            log.error("the recording %r stays under the name %r: %s", self.path, self._temporary, error.strerror)
        finally:
            self._release()

    def discard(self) -> None:
        """Remove it: the program did not start."""
        self._ended = True
        if self._flushing is not None:
            self._flushing.cancel()
        with self._writing:
            os.unlink(self._temporary, dir_fd=self._folder)
            self._release()

    def _release(self) -> None:
        os.close(self._fd)
        os.close(self._folder)

    def _rename(self) -> None:
        """Give the file its name, unless another has got it meanwhile: then one that nobody has."""
        for name in (self._name, self._name + self._temporary.encode()):
            with contextlib.suppress(FileExistsError):
                os.link(self._temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
                os.unlink(self._temporary, dir_fd=self._folder)
                break
        with contextlib.suppress(PermissionError):  # a user may be allowed to change a folder and not to list it
            folder = os.open(".", FOLDER, dir_fd=self._folder)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
