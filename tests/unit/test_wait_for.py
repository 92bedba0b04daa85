"""The poller of all tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.kit.wait import eventually, wait_for


def later() -> Iterator[str]:
    """Fails once, returns nothing once, and then returns a value."""
    yield from ("raises", "", "there")


def test_what_is_there_is_returned() -> None:
    steps = later()

    def condition() -> str:
        step = next(steps)
        if step == "raises":
            raise OSError(step)
        return step

    assert wait_for(condition, "it") == "there"
    with pytest.raises(AssertionError, match=r"^it: not within 0\.1 s \(ZeroDivisionError"):
        wait_for(lambda: 1 / 0, "it", 0.1)
    with pytest.raises(AssertionError, match=r"^it: not within 0\.1 s$"):
        wait_for(lambda: False, "it", 0.1)


async def test_functions_and_coroutine_functions_are_awaited_alike() -> None:
    steps = later()

    async def condition() -> str:
        await asyncio.sleep(0)
        step = next(steps)
        if step == "raises":
            raise OSError(step)
        return step

    assert await eventually(condition, "it") == "there"
    assert await eventually(lambda: "there", "it") == "there"
    with pytest.raises(AssertionError, match=r"^it: not within 0\.1 s \(ZeroDivisionError"):
        await eventually(lambda: 1 / 0, "it", 0.1)
