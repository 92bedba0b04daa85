"""A project's agent as a child process of the runner: on the local machine, without root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from natskit.errors import NatskitError
from natskit.process.descriptors import readable
from natskit.process.signals import signal_name
from natskit.project.config import ProjectProgram
from natskit.project.environment import passed_on
from natskit.runner.orphans import MARK, end_all
from natskit.runner.project_agent import ProjectAgent
from natskit.runner.removal import remove_tree

READY_SECONDS = 30.0
STOP_SECONDS = 5.0
LOG_BYTES = 1024 * 1024
OWN_PACKAGES = "PYTHONPATH"
"""The folders of the platform's own packages, for agents and not for their commands."""


class AgentProcess(ProjectAgent):
    """An agent that ends when the runner ends."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.process: subprocess.Popen[bytes] | None = None

    async def leave(self) -> None:
        """Stop the agent. The hubs still want it to run, so the next runner starts it again."""
        await self.stop()

    @property
    def home(self) -> Path:
        """It is beside what the runner keeps for the agent."""
        return self._directory / "home"

    def folders(self) -> list[Path]:
        """The home. The machine's /tmp does not count: all users share it."""
        return [self.home]

    async def _launch(self) -> None:
        await asyncio.to_thread(end_all, self.project_id)
        ready, tell = os.pipe()
        try:
            self.process = self._spawn(tell)
        finally:
            os.close(tell)
        try:
            await asyncio.wait_for(readable(ready), READY_SECONDS)
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
        self.home.mkdir(mode=0o700, exist_ok=True)
        return self._program.for_project(
            self.project_id,
            creds=self._directory / "project.creds",
            renewed=self._directory / "project.creds",
            home=self.home,
            limits=self._program.project.limits(),
            parent_pid=os.getpid(),
        )

    def _spawn(self, tell: int) -> subprocess.Popen[bytes]:
        environment = passed_on(os.environ) | {"HOME": str(self.home), MARK: self.project_id}
        if OWN_PACKAGES in os.environ:
            environment[OWN_PACKAGES] = os.environ[OWN_PACKAGES]
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
        """Nothing to do: the agent reads the file it has read before."""

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
        await remove_tree(self._directory)


async def _end_of(pid: int) -> None:
    """Wait for the end of a child without reaping it."""
    fd = os.pidfd_open(pid)
    try:
        await readable(fd)
    finally:
        os.close(fd)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal_name(-code)
