"""The life cycle of every natskit program: read the settings file, log to stderr, run until a signal stops it."""

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
"""Less than the time after which the service manager kills the program."""

PR_SET_PDEATHSIG = 1

ModelT = TypeVar("ModelT", bound=BaseModel)
ResultT = TypeVar("ResultT")


def read_settings(path: Path, model: type[ModelT]) -> ModelT:
    """Read the settings in a JSON file. Raises :class:`SettingsError` with the file, the key and the rule."""
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SettingsError(f"{path}: {place}: {first['msg']}") from None


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, for whatever reason (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


async def until_stopped(
    start: Coroutine[Any, Any, None], stop: Callable[[], Coroutine[Any, Any, None]], *, started: Callable[[], None]
) -> None:
    """Start, call ``started``, wait for SIGTERM or SIGINT, stop. A signal during the start cancels the start."""
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
        log.warning("stopping took more than %g s and was aborted", STOP_SECONDS)


def spawn(tasks: set[asyncio.Task[ResultT]], work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
    """Run work in a task, which ``tasks`` keeps until it ends: the event loop alone would let go of it too early."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def run_all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run until all have ended, one has failed, or this is cancelled; then cancel the others and wait until they have
    ended.

    Not ``asyncio.TaskGroup``: it cancels each task once, and waits forever for one that loses the cancellation
    (:func:`cancel`).
    """
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await cancel(tasks)


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended, even if this is cancelled meanwhile.

    Cancels a task again if necessary: ``asyncio.wait_for`` of Python 3.11 loses a cancellation that arrives together
    with the result it waits for (cpython #86296).
    """
    pending, cancelled = {task for task in tasks if not task.done()}, False
    while pending:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=0.2)
        except asyncio.CancelledError:
            cancelled = True
        pending = {task for task in pending if not task.done()}
    if cancelled:
        raise asyncio.CancelledError


class _OneLine(logging.Formatter):
    """One line per event, for people and for log collectors: time, level, logger, message. It never holds a secret."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


def log_to_stderr() -> None:
    """Send natskit's logs, and warnings of other packages, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("natskit").setLevel(logging.INFO)
