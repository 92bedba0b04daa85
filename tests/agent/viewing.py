"""What a viewer of a terminal sees: its output, drawn by an emulator of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from natskit.client import Client
from natskit.project.terminals.screen import Rows, Screen
from natskit.terminal import Terminal
from tests.kit.wait import eventually

Look = tuple[list[list[tuple[bytes, bytes]]], tuple[int, int], tuple[Any, ...]]
MODES = (1, 5, 6, 7, 12, 25, 1000, 1002, 1003, 1004, 1006, 2004)
"""Private modes that are compared: keys of the cursor, colours, origin, wrapping, cursor, mouse, focus, paste."""
SCROLLBACK = 8 * 1024 * 1024


class Drawn:
    """A screen that draws what it is given, and says how it looks."""

    def __init__(self, columns: int, rows: int) -> None:
        self.answers: list[bytes] = []
        self.title = ""
        self.screen = Screen(columns, rows, SCROLLBACK, answer=self.answers.append, titled=self._titled)

    def _titled(self, title: str) -> None:
        self.title = title

    def look(self) -> Look:
        """Each cell's attributes and text, the cursor, and modes."""
        terminal = self.screen._terminal
        cells = [[(cell.sgr, cell.text or b" ") for cell in row] for row, _ in Rows(terminal).rows]
        rest = (
            terminal.get("cursor_pending_wrap", "bool"),
            terminal.get("active_screen", "GhosttyTerminalScreen"),
            terminal.get("scrollback_rows", "size_t"),
            terminal.size,
            [terminal.mode(mode) for mode in MODES],
        )
        return cells, terminal.cursor, rest

    def text(self) -> str:
        """The characters on the screen."""
        return str(self.screen._terminal.text())

    def contents(self) -> str:
        """The characters in the scrollback and on the screen."""
        return str(self.screen._terminal.contents())


class Viewing:
    """A viewer that reads all the time."""

    def __init__(self, view: Terminal) -> None:
        self.view = view
        self.drawn = Drawn(1, 1)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.received = bytearray()
        self.screens = 0
        self.reading = asyncio.Event()
        self.reading.set()
        self.task: asyncio.Task[None] | None = None

    async def follow(self) -> None:
        """Draw until the program ends."""
        async for kind, data in self.view:
            await self.reading.wait()
            if kind == "output":
                self.received += data
                self.drawn.screen.feed(data)
                continue
            self.events.append((kind, data))
            if kind == "screen":
                self.screens += 1
                self.received.clear()
                self.drawn = Drawn(data["columns"], data["rows"])
            elif kind == "size":
                self.drawn.screen.resize(data["columns"], data["rows"])

    async def type(self, text: str) -> None:
        """Type."""
        await self.view.write(text.encode())

    async def prompt(self) -> None:
        """Wait for the prompt of the shell: what is typed before it may be lost or shown twice, as everywhere."""
        await eventually(lambda: self.drawn.text().rstrip()[-1:] in ("$", "#"), "the shell's prompt")

    async def interrupt(self) -> None:
        """Press Ctrl+C, and wait for the prompt of the shell."""
        await self.type("\x03")
        await self.prompt()

    async def until(self, text: str) -> None:
        """Wait until the screen shows a text."""
        try:
            await eventually(lambda: text in self.drawn.text(), f"the screen shows {text!r}")
        except AssertionError as error:
            failure = self.task.exception() if self.task and self.task.done() else None
            raise AssertionError(f"{error}, but\n{self.drawn.text()}") from failure


@asynccontextmanager
async def viewing(client: Client, project_id: str, name: str, **options: Any) -> AsyncIterator[Viewing]:
    """View a terminal."""
    async with client.terminal(project_id, name, **options) as view:
        viewer = Viewing(view)
        task = viewer.task = asyncio.create_task(viewer.follow())
        try:
            yield viewer
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
