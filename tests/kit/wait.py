"""The one way to wait in tests and measurements: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

SECONDS = 30.0
"""How long a condition may take. It is only waited out by a test that fails, so it leaves room for a busy machine."""
PAUSE = 0.02
T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, seconds: float = SECONDS) -> T:
    """Poll until ``condition`` returns something true, and return it; an exception counts as not yet."""
    deadline, error = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except Exception as caught:
            error = repr(caught)  # the exception itself would keep this frame, and what was found, alive
        time.sleep(PAUSE)
    raise AssertionError(_late(what, seconds, error))


@overload
async def eventually(condition: Callable[[], Awaitable[T]], what: str, seconds: float = SECONDS) -> T: ...


@overload
async def eventually(condition: Callable[[], T], what: str, seconds: float = SECONDS) -> T: ...


async def eventually(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """:func:`wait_for` on the event loop. ``condition`` is a function or a coroutine function."""
    deadline, error = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
        except Exception as caught:
            error = repr(caught)
        await asyncio.sleep(PAUSE)
    raise AssertionError(_late(what, seconds, error))


def _late(what: str, seconds: float, error: str) -> str:
    return f"{what}: not within {seconds:g} s" + (f" ({error})" if error else "")
