"""One command of a project: its process group, its pipes, and how it ends.

Not ``asyncio.subprocess``: its child watcher costs a thread for each child, and its stream readers copy the output
twice. ``subprocess.Popen`` (which uses ``vfork``) takes about a millisecond, and a pidfd tells the loop of the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Coroutine, Sequence
from typing import IO, Any, Literal, Protocol, TypedDict

from natskit.bus.output_stream import FRAME_BYTES, STDIN_REPORT_BYTES
from natskit.process.descriptors import readable
from natskit.process.lifecycle import spawn
from natskit.process.signals import signal_name
from natskit.project.background_output import Leftovers
from natskit.project.sender import Kind
from natskit.rpc import RpcError

STDIN_BUFFER_BYTES = 8 * 1024 * 1024
GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""
LOOK_SECONDS = 0.05
"""How often the agent checks whether a group that got SIGTERM still has processes."""
OOM_SCORE = 200
"""Added to the agent's own ``oom_score_adj`` (thousandths of the memory). When the project's memory is used up, the
kernel ends a command and not the agent, which can then report it."""
LINGER_SECONDS = 0.5
"""How long after the end of a command its children's output still counts as its own: ``exec > >(tee log)`` leaves a
``tee`` behind that writes the last lines a moment later."""


class Sink(Protocol):
    """What takes a command's output: the sender of a stream, or what keeps the output of a job."""

    gone: asyncio.Event
    input_taken: Callable[[], int]

    async def room(self) -> None:
        """Wait until it takes more output."""

    async def send(self, kind: Kind, data: bytes) -> None:
        """Take output."""

    async def heartbeat(self) -> None:
        """Say how much input the command has taken."""


class Result(TypedDict):
    """How a command ended: an exit code, or the name and number of the signal that ended it."""

    exit_code: int | None
    signal: str | None
    signal_number: int | None
    timed_out: bool
    cancelled: bool


class Command:
    """A started command. It leads a process group of its own, and signals go to the whole group."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: dict[str, str],
        stdin: Literal["pipe", "none"],
        leftovers: Leftovers,
        cpu_seconds: int | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._leftovers = leftovers
        try:
            self._process = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE if stdin == "pipe" else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise RpcError("not_found", f"there is no command {argv[0][:200]!r}", what="command") from None
        except (OSError, ValueError) as error:
            raise RpcError("invalid_state", f"{argv[0][:200]!r} cannot be started: {reason(error)}") from None
        self.pid = self._process.pid
        prefer_to_agent(self.pid)
        if cpu_seconds is not None:
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        stdout, stderr = self._process.stdout, self._process.stderr
        assert stdout is not None
        assert stderr is not None
        self._outputs = [_Output(stdout, "stdout"), _Output(stderr, "stderr")]
        self._pidfd = os.pidfd_open(self.pid)
        self._ended = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_end)
        self._tasks: set[asyncio.Task[None]] = set()
        self._kill_timer: asyncio.TimerHandle | None = None
        self._killed = False
        self.timed_out = self.cancelled = False
        self._stdin = _Stdin(self._process.stdin) if self._process.stdin else None

    async def run(self, sender: Sink, timeout: float | None) -> Result:  # noqa: ASYNC109 - part of the answer
        """Send the output until the command has ended, or ``timeout`` seconds are over, which ends the command.

        Its background processes go on; the agent reads and discards their output.
        """
        timer = self._loop.call_later(timeout, self._on_timeout) if timeout is not None else None
        sender.input_taken = self._stdin_taken
        watch = self._loop.create_task(self._kill_when_gone(sender))
        if self._stdin is not None:
            self._stdin.report = lambda: self._spawn(sender.heartbeat())
        pumps = [self._loop.create_task(output.pump(sender)) for output in self._outputs]
        try:
            await asyncio.shield(self._ended)
            await self._group_ends()
            await asyncio.wait(pumps, timeout=LINGER_SECONDS)
            for output in self._outputs:
                await output.sent.wait()
            for pump in pumps:
                if pump.done():
                    pump.result()
        finally:
            watch.cancel()
            if timer is not None:
                timer.cancel()
            for pump in pumps:
                pump.cancel()  # wherever it waits: the sender has everything it read
            await asyncio.wait(pumps)
            self._close()
        code = self._process.returncode
        return {
            "exit_code": code if code >= 0 else None,
            "signal": signal_name(-code) if code < 0 else None,
            "signal_number": -code if code < 0 else None,
            "timed_out": self.timed_out,
            "cancelled": self.cancelled,
        }

    @property
    def stdin_received(self) -> int:
        """How many bytes of input the caller has sent."""
        return self._stdin.received if self._stdin is not None else 0

    def _stdin_taken(self) -> int:
        return self._stdin.taken if self._stdin is not None else 0

    def discard(self) -> None:
        """End a command that was started but whose stream could not be opened."""
        self._close()

    def feed(self, data: bytes) -> None:
        """Write data to the command's stdin. If too much is unread, the command is ended."""
        if self._stdin is not None and not self._stdin.feed(data):
            self.terminate()

    def feed_all(self, text: str) -> None:
        """Write the whole input of the command, and close its stdin after it."""
        self.feed(text.encode("utf-8", "surrogatepass"))
        self.end_of_input()

    def end_of_input(self) -> None:
        """Close the command's stdin after all input is written."""
        if self._stdin is not None:
            self._stdin.finish()

    def cancel(self) -> None:
        """End the command because the caller asked. The result of a command that ended by itself does not change."""
        if not self._has_ended():
            self.cancelled = True
            self.terminate()

    def terminate(self) -> None:
        """Send SIGTERM to the whole group, and SIGKILL two seconds later."""
        if self._kill_timer is None:
            self._signal(signal.SIGTERM)
            self._kill_timer = self._loop.call_later(GRACE_SECONDS, self.kill)

    def kill(self) -> None:
        """Send SIGKILL to the whole group."""
        self._killed = True
        self._signal(signal.SIGKILL)

    async def _group_ends(self) -> None:
        """Wait while a group that got SIGTERM ends: a shell ends at once, and its children may still save something."""
        while self._kill_timer is not None and not self._killed and _others_in_group(self.pid):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)  # the kernel reports no end of a group

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        spawn(self._tasks, work)

    async def _kill_when_gone(self, sender: Sink) -> None:
        await sender.gone.wait()
        self.kill()

    def _on_timeout(self) -> None:
        if not self._has_ended():
            self.timed_out = True
            self.terminate()

    def _has_ended(self) -> bool:
        """Whether the command itself has ended, even if the event loop has not noticed yet.

        Does not reap it: while the leader is a zombie, no other process group can get its id.
        """
        if self._ended.done():
            return True
        return os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        for output in self._outputs:
            output.command_ended()
        if not self._ended.done():
            self._ended.set_result(None)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _close(self) -> None:
        if self._stdin is not None:
            self._stdin.close()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
            self.kill()  # processes that outlived SIGTERM
        if not self._ended.done():
            self.kill()
            self._loop.remove_reader(self._pidfd)
        self._process.wait()
        os.close(self._pidfd)
        for output in self._outputs:
            if not output.closed:
                self._leftovers.keep(output.pipe)


class _Output:
    """One of the command's pipes: read as fast as the reader of the stream takes it."""

    def __init__(self, pipe: IO[bytes], kind: Literal["stdout", "stderr"]) -> None:
        self.pipe = pipe
        self.closed = False
        """Set when no process can write to the pipe any more."""
        self.sent = asyncio.Event()
        """Set when the sender has all output of the command itself, or the reader is gone."""
        self._kind = kind
        self._owed: int | None = None
        self._loop = asyncio.get_running_loop()
        os.set_blocking(pipe.fileno(), False)

    def command_ended(self) -> None:
        """The reader gets the output that is in the pipe now, and none that other processes write later."""
        if not self.closed:
            unread = fcntl.ioctl(self.pipe.fileno(), termios.FIONREAD, b"\0" * 4)
            self._owed = int.from_bytes(unread, sys.byteorder)
            self._look()

    async def pump(self, sender: Sink) -> None:
        """Send output until the end of the pipe. Can be cancelled at any time without losing output."""
        try:
            while not self.closed and not sender.gone.is_set():
                await sender.room()
                if not sender.gone.is_set():
                    await self._read(sender)
        finally:
            self.sent.set()

    async def _read(self, sender: Sink) -> None:
        try:
            data = os.read(self.pipe.fileno(), FRAME_BYTES)
        except BlockingIOError:
            await readable(self.pipe.fileno())
            return
        if not data:
            self.closed = True
            self.pipe.close()
            return
        if self._owed is not None:
            self._owed -= len(data)
            self._look()
        await sender.send(self._kind, data)

    def _look(self) -> None:
        if self._owed is not None and self._owed <= 0:
            self.sent.set()


class _Stdin:
    """Write to a pipe as fast as the command reads, keep a bounded rest, and report the progress."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._fd = pipe.fileno()
        self._loop = asyncio.get_running_loop()
        self._rest = bytearray()
        self.received = self._reported = 0
        self.report: Callable[[], None] = lambda: None
        self._finishing = self._closed = self._waiting = False
        os.set_blocking(self._fd, False)

    @property
    def taken(self) -> int:
        """Bytes that are written, or will never be, since the command has closed its stdin."""
        return self.received - len(self._rest)

    def feed(self, data: bytes) -> bool:
        self.received += len(data)
        if self._closed or self._finishing:
            self._tell()
            return True
        if len(self._rest) + len(data) > STDIN_BUFFER_BYTES:
            return False
        self._rest += data
        self._write()
        return True

    def finish(self) -> None:
        self._finishing = True
        self._write()

    def close(self) -> None:
        if self._waiting:
            self._loop.remove_writer(self._fd)
            self._waiting = False
        if not self._closed:
            self._closed = True
            self._rest.clear()
            with contextlib.suppress(OSError):
                self._pipe.close()

    def _tell(self) -> None:
        if self.taken - self._reported >= STDIN_REPORT_BYTES:
            self._reported = self.taken
            self.report()

    def _write(self) -> None:
        try:
            while self._rest and not self._closed:
                written = os.write(self._fd, bytes(self._rest[:FRAME_BYTES]))
                del self._rest[:written]
                self._tell()
        except BlockingIOError:
            if not self._waiting:
                self._waiting = True
                self._loop.add_writer(self._fd, self._write)
            return
        except OSError:  # the command has closed its stdin
            self._rest.clear()
            self._finishing = True
            self._tell()
        if self._waiting:
            self._loop.remove_writer(self._fd)
            self._waiting = False
        if self._finishing and not self._closed:
            self.close()


def _others_in_group(leader: int) -> bool:
    """Whether a process group has processes besides its leader."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != leader:
            with contextlib.suppress(OSError):  # ended meanwhile
                # The name, in parentheses, may contain any character; state, parent and group follow (proc(5)).
                with open(f"/proc/{entry.name}/stat", "rb") as file:
                    state, _, group = file.read().rpartition(b")")[2].split()[:3]
                if int(group) == leader and state not in (b"Z", b"X"):
                    return True
    return False


def prefer_to_agent(pid: int) -> None:
    """Make the kernel end this process before the agent. Raising the score requires no privilege."""
    with contextlib.suppress(OSError, ValueError):  # ended already, or no such file here
        with open("/proc/self/oom_score_adj") as file:
            own = int(file.read())
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(min(own + OOM_SCORE, 1000)))


def reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
