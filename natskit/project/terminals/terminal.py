"""One terminal: a program, its screen at the emulator, and its viewers. It needs no viewer."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable
from typing import Any

from natskit.bus.output_stream import FRAME_BYTES
from natskit.project.config import UnattendedLimits
from natskit.project.terminals.emulator_client import EmulatorClient, EmulatorGoneError, Port
from natskit.project.terminals.program import Outcome, Program
from natskit.project.terminals.queries import Output, with_clipboard, without_queries
from natskit.project.terminals.recording import Recording
from natskit.project.terminals.viewer import Viewer
from natskit.rpc import RpcError

GATHER_SECONDS = 0.0015
"""How long output is gathered after some was sent. What follows silence, such as the echo of a key, does not wait."""
FLOOD_BYTES, FLOOD_SECONDS = 8 * 1024, 0.004
"""After so much at once, it is gathered for longer: frames cost each hop the same time, however small they are."""
GATHER_BYTES = FRAME_BYTES - 4 * 1024
"""Output that is sent at once: a frame, without the 4 KiB that the kernel may give beyond it."""
BEHIND_SECONDS = 0.01
"""How long a terminal waits for an emulator that has much to read."""
COMMAND_CHARACTERS = 1000
"""How much of its command line a terminal's description has."""
FIT_SECONDS = 5.0
"""How often a terminal looks whether a viewer has gone silent."""
LINGER_SECONDS = 0.5
"""How long after the end of the program output of its background processes is still shown."""
GRACE_SECONDS = 2.0
"""Between SIGHUP and SIGKILL."""
POLL_SECONDS = 0.02
REMEMBERED = 256
"""Viewers that left and may come back: so many counts of input are kept."""


class Terminal:
    """A running program and who views it."""

    def __init__(
        self,
        name: str,
        argv: list[str],
        program: Program,
        columns: int,
        rows: int,
        limits: UnattendedLimits,
        recording: Recording | None = None,
    ) -> None:
        self.name = name
        self.argv = argv
        self._command = shlex.join(argv)[:COMMAND_CHARACTERS]
        self.program = program
        self.columns, self.rows = columns, rows
        self.title = ""
        self.outcome: Outcome | None = None
        """How the program ended, when all output has been read."""
        self.over = asyncio.Event()
        self.typist_account: str | None = None
        """Whose viewers alone may type, as :meth:`share` has it; ``None`` if all may."""
        self._limits = limits
        self._recording = recording
        self._started = time.time()
        self._viewers: list[Viewer] = []
        self._inputs: dict[tuple[str | None, str], int] = {}
        """Bytes of input that arrived from viewers that left, by their accounts and keys."""
        self._typist = ""
        self._output = Output()
        self._answers = bytearray()
        self._emulator: EmulatorClient | None = None
        self._port: Port | None = None
        self._loop = asyncio.get_running_loop()
        self._read_timer: asyncio.TimerHandle | None = None
        self._reading = self._writing = False
        self._due = 0.0
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._gather_seconds = GATHER_SECONDS
        self._pass_on_timer: asyncio.TimerHandle | None = None
        self._passed_on = float("-inf")
        self._hung_up = asyncio.Event()
        self._fit_timer: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._work: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    async def start(self, emulator: EmulatorClient) -> None:
        """Open the screen, and follow the program until it ends."""
        self._port = await emulator.open(
            self.columns,
            self.rows,
            self._limits.scrollback_bytes,
            answer=self._answer,
            titled=self._titled,
            lost=self._screen_lost,
        )
        self._emulator = emulator
        if self._recording is not None:
            self._recording.failed = self._recording_failed
        self._drain()
        self._work = self._loop.create_task(self._follow())

    def describe(self) -> dict[str, Any]:
        """What ``terminal.list`` says of it."""
        return {
            "terminal": self.name,
            "command": self._command,
            "pid": self.program.pid,
            "title": self.title,
            "columns": self.columns,
            "rows": self.rows,
            "started_at": self._started,
            "typist_account": self.typist_account,
            "recording": self._recording.path if self._recording is not None else None,
            "viewers": [viewer.describe() for viewer in self._viewers],
        }

    def viewer(self, key: str, account_id: str | None, **options: Any) -> Viewer:
        """A viewer that is about to come. It goes on where the same account's viewer with the same key was."""
        earlier = next((viewer for viewer in self._viewers if viewer.key == key), None)
        if earlier is None:
            return Viewer(self, key, input_received=self._inputs.get((account_id, key), 0), **options)
        if earlier.account_id != account_id:
            raise RpcError("conflict", f"{key!r} is another account's viewer: choose another key")
        viewer = Viewer(self, key, input_received=earlier.stdin_received, **options)
        viewer.take_over(earlier)
        return viewer

    def find_viewer(self, key: str) -> Viewer | None:
        """The viewer with a key that views it now."""
        return next((viewer for viewer in self._viewers if viewer.key == key), None)

    def join(self, viewer: Viewer) -> None:
        """Add a viewer."""
        self._viewers = [other for other in self._viewers if other.key != viewer.key] + [viewer]
        self._empty.clear()
        self.fit()
        self._tell_viewers()
        if self._fit_timer is None:
            self._fit_timer = self._loop.call_later(FIT_SECONDS, self._fit_again)

    def leave(self, viewer: Viewer) -> None:
        """Remove a viewer."""
        if viewer not in self._viewers:
            return  # the same viewer has come with a new stream
        self._viewers.remove(viewer)
        who = viewer.account_id, viewer.key
        self._inputs.pop(who, None)
        self._inputs[who] = viewer.input_taken
        if len(self._inputs) > REMEMBERED:
            del self._inputs[next(iter(self._inputs))]
        if not self._viewers:
            self._empty.set()
            if self._fit_timer is not None:
                self._fit_timer.cancel()
                self._fit_timer = None
        self.fit()
        self._tell_viewers()

    def resize(self, viewer: Viewer, columns: int, rows: int, visible: bool) -> None:
        """Note the size of a viewer's window."""
        if (viewer.columns, viewer.rows, viewer.visible) != (columns, rows, visible):
            viewer.columns, viewer.rows, viewer.visible = columns, rows, visible
            self.fit()
            self._tell_viewers()

    def fit(self) -> None:
        """Take the size of the smallest window that is visible; without any, the size stays."""
        counting = [viewer for viewer in self._viewers if viewer.counts]
        if not counting or self.outcome is not None:
            return
        columns = min(viewer.columns for viewer in counting)
        rows = min(viewer.rows for viewer in counting)
        if (columns, rows) != (self.columns, self.rows):
            self._set_size(columns, rows)

    def typed(self, viewer: Viewer) -> None:
        """Pass a viewer's input on, and tell who types."""
        if viewer.key != self._typist:
            self._typist = viewer.key
            self._tell({"type": "typing", "viewer": viewer.name, "account_id": viewer.account_id})
        self._write()

    def share(self, typist_account: str | None) -> None:
        """Let only an account's viewers type, or all."""
        self.typist_account = typist_account
        self._tell_viewers()

    async def record(self, start: Callable[[], Recording]) -> None:
        """Record from now on, beginning with the screen. Raises :class:`RpcError` if it is recorded already."""
        if self._recording is not None:
            raise RpcError("conflict", f"the terminal {self.name!r} is recorded already, into {self._recording.path!r}")
        recording = self._recording = start()
        recording.failed = self._recording_failed
        recording.hold()
        self._tell_recording()
        try:
            recording.screen(await self.draw(0))
        except EmulatorGoneError:
            recording.screen(b"")

    async def end_recording(self, outcome: Outcome | None = None) -> None:
        """End the recording, if there is one. Its file has its name then."""
        if self._recording is not None:
            recording, self._recording = self._recording, None
            await recording.finish(outcome)
            self._tell_recording(recording.why)

    def end_recording_now(self) -> None:
        """The same, at the end of the agent."""
        if self._recording is not None:
            self._recording.finish_now()
            self._recording = None

    async def draw(self, scrollback: int | None) -> bytes:
        """What draws the screen; what is put to viewers from now on comes after it."""
        assert self._emulator is not None
        assert self._port is not None
        return await self._emulator.draw(self._port, scrollback)

    async def close(self) -> None:
        """Hang up, and wait for the end of everything that the program started."""
        if self.outcome is None:
            self.program.hang_up(self.program.everything())
            if not await self._gone_within(GRACE_SECONDS, self.program.everything):
                self.program.kill(self.program.everything())
        await self.over.wait()

    def kill(self) -> None:
        """End its session at once, without waiting. What has left it ends with the project."""
        if self.outcome is None:
            self.program.kill(self.program.session())

    async def _follow(self) -> None:
        await self.program.ended.wait()
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await self._hung_up.wait()
        except TimeoutError:
            self.program.hang_up(self.program.session())
            if not await self._gone_within(GRACE_SECONDS, self.program.session):
                self.program.kill(self.program.session())
            self._drain()
        self._stop_reading()
        if self._writing:
            self._loop.remove_writer(self.program.master)
        self._pass_on()
        self._put(self._output.rest())
        self.outcome = self.program.result()
        await self.end_recording(self.outcome)
        self.program.close()
        self.over.set()
        for viewer in self._viewers:
            viewer.wake()
        await self._empty.wait()  # one that is slow still gets the last screen
        if self._emulator is not None and self._port is not None:
            self._emulator.close(self._port)

    async def _gone_within(self, seconds: float, living: Callable[[], list[int]]) -> bool:
        deadline = self._loop.time() + seconds
        while living():
            if self._loop.time() >= deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    def _drain(self) -> None:
        """Read the output that is there."""
        self._read_timer = None
        if (self._emulator is not None and self._emulator.is_behind) or (
            self._recording is not None and self._recording.is_behind
        ):
            self._pause(BEHIND_SECONDS)
            return
        size = 0
        data: bytes | None = b""
        while self._gathered_bytes < GATHER_BYTES and (data := self.program.read()):
            self._gathered.append(data)
            self._gathered_bytes += len(data)
            size += len(data)
        self._pass_on_in_time()
        if data is None:
            self._stop_reading()
            self._hung_up.set()
        elif (pause := self._pause_after(size)) > 0:
            self._pause(pause)
        elif not self._reading:
            self._reading = True
            self._loop.add_reader(self.program.master, self._drain)

    def _pause_after(self, size: int) -> float:
        """How long to read nothing, so that the program prints no faster than it may."""
        now = self._loop.time()
        self._due = max(self._due, now) + size / self._limits.output_rate
        return self._due - now - GATHER_BYTES / self._limits.output_rate

    def _pass_on_in_time(self) -> None:
        """Pass on what fills a frame or follows silence, and the rest a moment later.

        Meanwhile the terminal is read on: the kernel has room for 64 KiB, and a program that fills it stands still.
        """
        wait = self._passed_on + self._gather_seconds - self._loop.time()
        if self._gathered_bytes >= GATHER_BYTES or wait <= 0:
            self._pass_on()
        elif self._gathered and self._pass_on_timer is None:
            self._pass_on_timer = self._loop.call_later(wait, self._pass_on)

    def _pass_on(self) -> None:
        """Give the emulator, the viewers and the recording what was gathered."""
        if self._pass_on_timer is not None:
            self._pass_on_timer.cancel()
            self._pass_on_timer = None
        if not self._gathered:
            return
        data = b"".join(self._gathered)
        self._gathered.clear()
        self._gathered_bytes = 0
        self._gather_seconds = FLOOD_SECONDS if len(data) > FLOOD_BYTES else GATHER_SECONDS
        self._passed_on = self._loop.time()
        self._put(self._output.add(data))

    def _pause(self, seconds: float) -> None:
        self._stop_reading()
        self._read_timer = self._loop.call_later(seconds, self._drain)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.program.master)
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _put(self, data: bytes) -> None:
        if not data:
            return
        if self._emulator is not None and self._port is not None:
            self._emulator.feed(self._port, data)
        if not self._viewers and self._recording is None:
            return
        shown = without_queries(data)
        if self._recording is not None:
            self._recording.output(shown)
        for viewer in self._viewers:
            if self._limits.clipboard and viewer.key == self._typist:
                viewer.put(with_clipboard(data))
            else:
                viewer.put(shown)

    def _write(self) -> None:
        """Give the program the emulator's answers and the viewers' input, as it takes them."""
        if self.outcome is not None:
            return
        while self._answers:
            taken = self.program.write(bytes(self._answers))
            del self._answers[:taken]
            if not taken:
                break
        left = bool(self._answers)
        for viewer in self._viewers:
            if not left:
                left = viewer.write_input()
        if left and not self._writing:
            self._loop.add_writer(self.program.master, self._write)
        elif not left and self._writing:
            self._loop.remove_writer(self.program.master)
        self._writing = left

    def _answer(self, data: bytes) -> None:
        if len(self._answers) < GATHER_BYTES:  # a program that asks and never reads gets no more answers
            self._answers += data
        self._write()

    def _titled(self, title: str) -> None:
        self.title = title
        self._tell({"type": "title", "title": title})

    def _screen_lost(self) -> None:
        """The emulator was started anew: make programs that draw the whole screen do so."""
        if self.outcome is None:
            self.program.resize(self.columns, max(self.rows - 1, 1))
            self.program.resize(self.columns, self.rows)
        for viewer in self._viewers:
            viewer.redraw()

    def _set_size(self, columns: int, rows: int) -> None:
        assert self._emulator is not None
        assert self._port is not None
        self._pass_on()  # what was printed at the old size
        self.columns, self.rows = columns, rows
        self._emulator.resize(self._port, columns, rows)
        if self._recording is not None:
            self._recording.resize(columns, rows)
        self._tell({"type": "size", "columns": columns, "rows": rows})
        self.program.resize(columns, rows)

    def _fit_again(self) -> None:
        self._fit_timer = self._loop.call_later(FIT_SECONDS, self._fit_again)
        self.fit()

    def _tell_viewers(self) -> None:
        viewers = [viewer.describe() for viewer in self._viewers]
        self._tell({"type": "viewers", "viewers": viewers, "typist_account": self.typist_account})

    def _tell_recording(self, why: str = "") -> None:
        path = self._recording.path if self._recording is not None else None
        self._tell({"type": "recording", "path": path, "why": why})

    def _recording_failed(self) -> None:
        self._ending = self._loop.create_task(self.end_recording())

    def _tell(self, event: dict[str, Any]) -> None:
        for viewer in self._viewers:
            viewer.tell(event)
