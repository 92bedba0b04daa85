"""The pipes of commands that have ended, which their background processes still write to.

``server &`` in a command leaves a process behind whose stdout and stderr are the command's pipes. Without a reader, its
next line would end the process (SIGPIPE); with one that stopped reading, the process would wait for ever. So the agent
goes on reading, and discards the output. A user who wants that output redirects it into a file. When the agent ends,
every process of its project ends too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from typing import IO

from natskit.rpc import RpcError

BLOCK_BYTES = 64 * 1024
"""The capacity of a pipe."""
PAUSE = 0.005
"""Seconds of rest after each read, for each pipe that rests: at most 200 reads a second in all, or 13 MB/s, so that
output without a reader costs the agent next to nothing. The pipe holds the output in between."""
SHARE = 2
"""The pipes may take up one half of the files that the agent may open."""


class Leftovers:
    """Reads pipes to their ends."""

    def __init__(self) -> None:
        self._pipes: set[IO[bytes]] = set()
        self._resting = 0
        self._loop = asyncio.get_running_loop()

    def check_room(self) -> None:
        """Raises :class:`RpcError` if ended commands have left too many open pipes behind."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE
        if len(self._pipes) >= most:
            raise RpcError(
                "limit",
                f"background processes of earlier commands hold {len(self._pipes)} outputs open, which is the limit: "
                "stop and start the project to end them, and let such processes print into a file (> log 2>&1)",
            )

    def keep(self, pipe: IO[bytes]) -> None:
        """Read this pipe, which does not block, from now on, and close it at its end."""
        self._pipes.add(pipe)
        self._watch(pipe)

    def close(self) -> None:
        """Close all of them."""
        for pipe in self._pipes:
            self._loop.remove_reader(pipe.fileno())
            pipe.close()
        self._pipes.clear()

    def _watch(self, pipe: IO[bytes]) -> None:
        self._loop.add_reader(pipe.fileno(), self._discard, pipe)

    def _discard(self, pipe: IO[bytes]) -> None:
        self._loop.remove_reader(pipe.fileno())
        with contextlib.suppress(BlockingIOError):
            if not os.read(pipe.fileno(), BLOCK_BYTES):
                self._pipes.discard(pipe)
                pipe.close()
                return
        self._resting += 1
        self._loop.call_later(PAUSE * self._resting, self._go_on, pipe)

    def _go_on(self, pipe: IO[bytes]) -> None:
        self._resting -= 1
        if not pipe.closed:
            self._watch(pipe)
