"""Waiting for file descriptors on the event loop."""

from __future__ import annotations

import asyncio


async def readable(fd: int) -> None:
    """Wait until a read would not block. Raises :class:`PermissionError` for a regular file, which epoll(7) does not
    support."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
