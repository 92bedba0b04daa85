"""One command of a project: its process group, its pipes, and how it ends.

Not ``asyncio.subprocess``: its child watcher costs a thread for each child, and its stream readers copy the output
twice. ``subprocess.Popen`` (which uses ``vfork``) takes about a millisecond, and a pidfd tells the loop of the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from typing import IO, Any, Literal, TypedDict

from natskit.project.sender import Sender
from natskit.rpc import RpcError
from natskit.stream import FRAME_BYTES, STDIN_REPORT_BYTES

STDIN_BUFFER_BYTES = 8 * 1024 * 1024
GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""
OOM_SCORE = 200
"""Added to the agent's own ``oom_score_adj`` (thousandths of the memory): when the project's memory is used up, the
kernel ends a command and not the agent, which is then there to say so."""
LINGER_SECONDS = 0.5
"""How long a quiet pipe that somebody else holds open is watched after the command itself has ended."""


class Result(TypedDict):
    """How a command ended: an exit code, or the name of the signal that ended it."""

    exit_code: int | None
    signal: str | None
    timed_out: bool
    cancelled: bool


class Command:
    """A started command. It leads a process group of its own, which is what is signalled."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: dict[str, str],
        stdin: Literal["pipe", "none"],
        cpu_seconds: int | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
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
            raise RpcError("invalid_state", f"{argv[0][:200]!r} cannot be started: {_reason(error)}") from None
        self.pid = self._process.pid
        _prefer_to_agent(self.pid)
        if cpu_seconds is not None:
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        self._pidfd = os.pidfd_open(self.pid)
        self._ended = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_end)
        self._tasks: set[asyncio.Task[None]] = set()
        self._kill_timer: asyncio.TimerHandle | None = None
        self.timed_out = self.cancelled = False
        self._stdin = _Stdin(self._process.stdin) if self._process.stdin else None

    async def run(self, sender: Sender, timeout: float | None) -> Result:  # noqa: ASYNC109 - part of the answer
        """Send the output until the command has ended, or end it. Always leaves no trace but its children."""
        timer = self._loop.call_later(timeout, self._on_timeout) if timeout is not None else None
        sender.input_taken = self._stdin_taken
        watch = self._loop.create_task(self._kill_when_gone(sender))
        if self._stdin is not None:
            self._stdin.report = lambda: self._spawn(sender.heartbeat())
        stdout, stderr = self._process.stdout, self._process.stderr
        assert stdout is not None
        assert stderr is not None
        pumps = [
            self._loop.create_task(self._pump(stdout.fileno(), "stdout", sender)),
            self._loop.create_task(self._pump(stderr.fileno(), "stderr", sender)),
        ]
        try:
            await asyncio.gather(*pumps)
            await asyncio.shield(self._ended)
        finally:
            watch.cancel()
            if timer is not None:
                timer.cancel()
            for pump in pumps:
                pump.cancel()
            self._close()
        code = self._process.returncode
        return {
            "exit_code": code if code >= 0 else None,
            "signal": _signal_name(-code) if code < 0 else None,
            "timed_out": self.timed_out,
            "cancelled": self.cancelled,
        }

    @property
    def stdin_received(self) -> int:
        """How many bytes of input have come from the caller."""
        return self._stdin.received if self._stdin is not None else 0

    def _stdin_taken(self) -> int:
        return self._stdin.taken if self._stdin is not None else 0

    def discard(self) -> None:
        """End a command that was started but cannot be followed."""
        self._close()

    def feed(self, data: bytes) -> None:
        """Put data into the command's stdin; more than it reads in time is refused by ending the command."""
        if self._stdin is not None and not self._stdin.feed(data):
            self.terminate()

    def end_of_input(self) -> None:
        """Close the command's stdin once everything is written."""
        if self._stdin is not None:
            self._stdin.finish()

    def cancel(self) -> None:
        """End the command because the caller asks."""
        self.cancelled = True
        self.terminate()

    def terminate(self) -> None:
        """Ask the whole group to end, and insist two seconds later."""
        if self._kill_timer is None:
            self._signal(signal.SIGTERM)
            self._kill_timer = self._loop.call_later(GRACE_SECONDS, self.kill)

    def kill(self) -> None:
        """End the whole group now."""
        self._signal(signal.SIGKILL)

    async def _pump(self, fd: int, kind: Literal["stdout", "stderr"], sender: Sender) -> None:
        os.set_blocking(fd, False)
        while True:
            await sender.room()
            if sender.gone.is_set():
                return
            try:
                data = os.read(fd, FRAME_BYTES)
            except BlockingIOError:
                if not await self._readable(fd):
                    return
                continue
            if not data:
                return
            await sender.send(kind, data)

    async def _readable(self, fd: int) -> bool:
        """Wait for data or the end of the pipe; false if the command has ended and the pipe stays quiet."""
        ready = self._loop.create_future()
        self._loop.add_reader(fd, _set, ready)
        try:
            if not self._ended.done():
                await asyncio.wait({ready, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                await asyncio.wait({ready}, timeout=LINGER_SECONDS)
            return ready.done()
        finally:
            self._loop.remove_reader(fd)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _kill_when_gone(self, sender: Sender) -> None:
        await sender.gone.wait()
        self.kill()

    def _on_timeout(self) -> None:
        self.timed_out = True
        self.terminate()

    def _on_end(self) -> None:
        # Not reaped yet: while the leader is a zombie, its process group id cannot become somebody else's.
        self._loop.remove_reader(self._pidfd)
        _set(self._ended)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _close(self) -> None:
        if self._stdin is not None:
            self._stdin.close()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
            self.kill()  # what is left of a group that was told to end
        if not self._ended.done():
            self.kill()
            self._loop.remove_reader(self._pidfd)
        self._process.wait()
        os.close(self._pidfd)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


class _Stdin:
    """Writes to a pipe as fast as the command reads, keeping a bounded rest, and tells how far it is."""

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
        """What is written, or will never be, since the command has closed its stdin."""
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
        except OSError:  # the command closed its stdin, which it may
            self._rest.clear()
            self._finishing = True
            self._tell()
        if self._waiting:
            self._loop.remove_writer(self._fd)
            self._waiting = False
        if self._finishing and not self._closed:
            self.close()


def _prefer_to_agent(pid: int) -> None:
    """Let the kernel end this process before the agent. Raising the score takes no privilege."""
    with contextlib.suppress(OSError, ValueError):  # ended already, or no such file here
        with open("/proc/self/oom_score_adj") as file:
            own = int(file.read())
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(min(own + OOM_SCORE, 1000)))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
