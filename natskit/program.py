"""What every program of natskit does: read its settings file, log to stderr, run until it is told to stop."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from natskit.errors import SettingsError

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""Less than the service manager waits before it kills."""

PR_SET_PDEATHSIG = 1

ModelT = TypeVar("ModelT", bound=BaseModel)


def read_settings(path: Path, model: type[ModelT]) -> ModelT:
    """The settings in a JSON file. Raises :class:`SettingsError` naming the file, the key and the rule."""
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SettingsError(f"{path}: {place}: {first['msg']}") from None


def end_with_parent() -> None:
    """Have this process told to end (SIGTERM) when the one that started it ends, however that ends (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


async def until_stopped(
    start: Coroutine[Any, Any, None], stop: Callable[[], Coroutine[Any, Any, None]], *, started: Callable[[], None]
) -> None:
    """Start, call ``started``, wait for SIGTERM or SIGINT, stop; a start that takes long is given up when told to."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    starting = asyncio.ensure_future(start)
    stopping = asyncio.ensure_future(told.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        started()
    else:
        starting.cancel()
    await stopping
    try:
        await asyncio.wait_for(stop(), STOP_SECONDS)
    except TimeoutError:
        log.warning("stopping took more than %g s and was cut short", STOP_SECONDS)


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended.

    More than once where it must be: ``asyncio.wait_for`` of Python 3.11 forgets a cancellation that comes together with
    the result it waits for (cpython #86296).
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.2)


class _OneLine(logging.Formatter):
    """One line an event, for people and for log collectors: time, level, where, what. Never a secret."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


def log_to_stderr() -> None:
    """Send natskit's logs, and warnings of everybody else, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("natskit").setLevel(logging.INFO)
