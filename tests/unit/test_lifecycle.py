"""Tasks end with their owner, even if a cancellation gets lost."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from natskit.process.lifecycle import cancel, run_all


async def forever(ended: list[str], name: str, *, loses: int = 0) -> None:
    """Runs until it is cancelled, and loses the first cancellations, as ``asyncio.wait_for`` may."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            loses -= 1
            if loses < 0:
                ended.append(name)
                raise


async def fails() -> None:
    await asyncio.sleep(0)
    raise ValueError("no")


@pytest.mark.parametrize("loses", [0, 1, 3])
async def test_cancelled_work_ends_though_a_cancellation_is_lost(loses: int) -> None:
    ended: list[str] = []
    task = asyncio.create_task(run_all([forever(ended, "a", loses=loses), forever(ended, "b")]))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        await cancel([task])
    assert sorted(ended) == ["a", "b"]
    assert task.cancelled()


async def test_a_failure_ends_the_others_and_is_raised() -> None:
    ended: list[str] = []
    with pytest.raises(ValueError, match="no"):
        await run_all([forever(ended, "a", loses=1), fails()])
    assert ended == ["a"]


async def test_work_that_ends_by_itself() -> None:
    await run_all([asyncio.sleep(0), asyncio.sleep(0)])


async def test_a_cancellation_while_it_waits_is_not_lost() -> None:
    ended: list[str] = []
    stubborn = asyncio.create_task(forever(ended, "a", loses=2))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(cancel([stubborn]))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == ["a"]
    with contextlib.suppress(asyncio.CancelledError):
        await stubborn
