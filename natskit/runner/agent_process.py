"""A project's agent as a child process of the runner: on the local machine, where nobody is root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from natskit.errors import NatskitError
from natskit.project.program import ProjectProgram
from natskit.runner.processes import MARK, end_all
from natskit.runner.project_agent import ProjectAgent

READY_SECONDS = 30.0
STOP_SECONDS = 5.0
LOG_BYTES = 1024 * 1024
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH")
"""What an agent gets of the runner's environment; a command gets less still."""


class AgentProcess(ProjectAgent):
    """An agent that ends when the runner ends."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.process: subprocess.Popen[bytes] | None = None

    async def leave(self) -> None:
        """Stop; the hubs still want it, so it comes back with the runner."""
        await self.stop()

    def folders(self) -> list[Path]:
        """The home; what is in the machine's /tmp is everybody's."""
        return [self._directory / "home"]

    async def _launch(self) -> None:
        await asyncio.to_thread(end_all, self.project_id)
        ready, tell = os.pipe()
        try:
            self.process = self._spawn(tell)
        finally:
            os.close(tell)
        try:
            await asyncio.wait_for(_readable(ready), READY_SECONDS)
            answers = os.read(ready, 1) == b"1"
        except TimeoutError:
            raise NatskitError(
                f"the agent did not connect within {READY_SECONDS:g} s: see {self._directory / 'agent.log'}"
            ) from None
        finally:
            os.close(ready)
        if not answers:
            raise NatskitError(f"the agent ended at once: see {self._directory / 'agent.log'}")

    async def _ended(self) -> str:
        assert self.process is not None
        await _end_of(self.process.pid)
        return f"the agent ended ({_how(self.process.wait())})"

    def _settings(self) -> ProjectProgram:
        home = self._directory / "home"
        home.mkdir(mode=0o700, exist_ok=True)
        return self._program.for_project(
            self.project_id,
            creds=self._directory / "project.creds",
            renewed=self._directory / "project.creds",
            home=home,
            limits=self._program.project.limits(),
            parent_pid=os.getpid(),
        )

    def _spawn(self, tell: int) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {"HOME": str(self._directory / "home"), MARK: self.project_id}
        output = self._directory / "agent.log"
        fresh = not output.exists() or output.stat().st_size > LOG_BYTES
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_TRUNC if fresh else os.O_APPEND)
        fd = os.open(output, flags, 0o600)
        try:
            # -P: the project's files must not be imported as if they were the agent's modules.
            return subprocess.Popen(
                [
                    *(str(self._program.python), "-P", "-m", "natskit.project"),
                    *("--settings", str(self._directory / "project.json"), "--ready-fd", str(tell)),
                ],
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                pass_fds=(tell,),
                start_new_session=True,
            )
        finally:
            os.close(fd)

    def _give(self, creds: str) -> None:
        """It reads them where it has read them before."""

    async def _tell(self) -> None:
        if self.process is None or self.process.poll() is not None:
            raise NatskitError("the agent has just ended")
        self.process.send_signal(signal.SIGHUP)

    async def _kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    async def _end(self) -> None:
        process = self.process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                await asyncio.wait_for(_end_of(process.pid), STOP_SECONDS)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.process = None
        await asyncio.to_thread(end_all, self.project_id)

    async def _remove(self) -> None:
        await asyncio.to_thread(_remove, self._directory)


async def _readable(fd: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def _end_of(pid: int) -> None:
    """Wait for the end of a child without reaping it."""
    fd = os.pidfd_open(pid)
    try:
        await _readable(fd)
    finally:
        os.close(fd)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _remove(directory: Path) -> None:
    """Remove a tree, also where somebody took the right to from its directories."""
    if not directory.exists():
        return
    for root, directories, _ in os.walk(directory):  # does not follow links
        for name in directories:
            path = Path(root, name)
            if not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.chmod(0o700)
    shutil.rmtree(directory)
