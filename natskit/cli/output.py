"""Robust standard output and standard error for the command.

Another program can make a shared pipe non-blocking (``node``, ``ssh`` and some terminals do). Python's ``print`` then
fails with BlockingIOError in the middle of the text; this module waits instead. When the reader closes the pipe
(``| head``), the command ends silently with the exit code of SIGPIPE. Any other write error, such as a full disk, is
one line on standard error. A stream that the parent process closed stays closed: its number is never given to a file
opened later, which would then receive the output.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from natskit.errors import NatskitError
from natskit.process.signals import SIGNALLED

NAMES = {1: "standard output", 2: "standard error"}
LOST = 1
"""The exit code when output could not be written."""


class ReaderGoneError(Exception):
    """The reader closed the pipe. Not an OSError, because code that handles those must not catch it."""


class OutputError(NatskitError):
    """Output cannot be written."""


def write(fd: int, data: bytes | memoryview) -> None:
    """Write all data, and wait while the pipe is full.

    Raises :class:`ReaderGoneError` or :class:`OutputError`.
    """
    view = memoryview(data)
    while view:
        view = view[_write_some(fd, view) :]


def _write_some(fd: int, view: memoryview) -> int:
    while True:
        try:
            return os.write(fd, view)
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(fd, select.POLLOUT)
            waiting.poll()
        except BrokenPipeError:
            raise ReaderGoneError from None
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OutputError(f"{NAMES.get(fd, fd)} cannot be written: {reason}") from None


class _Stream(io.RawIOBase):
    """A standard stream below Python's buffers. After the first error, all further data is dropped."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.failed = False

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        if not self.failed:
            try:
                write(self._fd, view)
            except (ReaderGoneError, OutputError):
                self.failed = True
                if self._fd != 2:  # there is no other place to report an error of standard error
                    raise
        return len(view)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)


def run(command: Callable[[], None]) -> None:
    """Run a command. If its output fails, exit as other programs do."""
    _occupy()
    errors = _Stream(2)
    if sys.stdout is sys.__stdout__:  # unless something else, such as a test, has replaced it
        sys.stdout = _text(_Stream(1), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(errors, sys.stderr)
    code: int | str | None = 0
    try:
        try:
            command()
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
    except ReaderGoneError:
        code = SIGNALLED + signal.SIGPIPE
    except OutputError as error:
        code = LOST
        print(f"natskit: {error}", file=sys.stderr)
    sys.exit(code or (LOST if errors.failed else 0))


def _occupy() -> None:
    """Give a closed standard stream's number to something that can be neither read nor written."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            os.open("/", os.O_RDONLY | os.O_DIRECTORY)  # takes the lowest free number


def _text(stream: _Stream, like: TextIO | None) -> TextIO:
    encoding, errors = (like.encoding, like.errors) if like is not None else ("utf-8", "backslashreplace")
    by_line = stream.fileno() == 2 or stream.isatty()
    return io.TextIOWrapper(io.BufferedWriter(stream), encoding=encoding, errors=errors, line_buffering=by_line)
