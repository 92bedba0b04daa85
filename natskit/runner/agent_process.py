"""One project's agent as the runner sees it: start, watch, start again after a crash, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from natskit.errors import NatskitError
from natskit.identity import nkey
from natskit.identity.claims import format_creds
from natskit.identity.files import write_private
from natskit.program import cancel
from natskit.project.program import ProjectProgram
from natskit.rpc import RpcError
from natskit.runner.processes import MARK, end_all
from natskit.runner.program import RunnerProgram

log = logging.getLogger(__name__)

State = Literal["stopped", "starting", "running", "failed"]
Report = Callable[[str, State, str], None]
AskForJwt = Callable[[str, str], Awaitable[str]]

READY_SECONDS = 30.0
STOP_SECONDS = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
STEADY_SECONDS = 60.0
"""An agent that ran this long is restarted at once when it ends."""
LOG_BYTES = 1024 * 1024
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH")
"""What an agent gets of the runner's environment; a command gets less still."""


class AgentProcess:
    """Keeps one agent running between :meth:`start` and :meth:`stop`."""

    def __init__(self, program: RunnerProgram, project_id: str, ask_for_jwt: AskForJwt, report: Report) -> None:
        self.project_id = project_id
        self.state: State = "stopped"
        self.detail = ""
        self.lock = asyncio.Lock()
        self.since = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self._program = program
        self._directory = program.directory / "projects" / project_id
        self._ask_for_jwt = ask_for_jwt
        self._report = report
        self._keeper: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._new_key = True

    async def start(self) -> None:
        """Start the agent and wait until it answers. Raises :class:`RpcError` if the first attempt fails."""
        if self.state == "failed":
            await self._stop_keeping()  # somebody asks: do not wait for the next attempt
        if self._keeper is None:
            self._new_key = True
            self._settled.clear()
            self._set("starting")
            self._keeper = asyncio.get_running_loop().create_task(self._keep())
        await self._settled.wait()
        if self.state != "running":
            raise RpcError("unavailable", f"the project did not start: {self.detail or 'it is still starting'}")

    async def interrupt(self) -> None:
        """Let a :meth:`start` that waits for the agent give up, so that a stop need not wait for it."""
        if self.state in ("starting", "failed"):
            await self._stop_keeping()
            self._set("failed", "it was stopped while it was starting")
            self._settled.set()

    async def stop(self) -> None:
        """Stop the agent and everything it started."""
        await self._stop_keeping()
        await self._end()
        self._set("stopped")

    async def delete(self) -> None:
        """Stop, and remove the project's directory."""
        await self.stop()
        await asyncio.to_thread(_remove, self._directory)

    async def _stop_keeping(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await cancel([keeper])

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                ended = await self._launch()
                self._new_key = False
                self._set("running")
                self._settled.set()
                await ended
                assert self.process is not None
                detail = f"the agent ended ({_how(self.process.wait())})"
            except (NatskitError, OSError) as error:
                self._new_key = True
                detail = str(error)
            except Exception:
                log.exception("project %s", self.project_id)
                detail = "the runner failed; its log says why"
            await self._end()
            self._set("failed", detail)
            self._settled.set()
            if time.monotonic() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            self._settled.clear()
            self._set("starting", detail)

    async def _launch(self) -> asyncio.Future[None]:
        """Start the process and wait until it answers; what is returned is done when it ends."""
        await asyncio.to_thread(end_all, self.project_id)
        settings = await self._prepare()
        ready, tell = os.pipe()
        try:
            self.process = self._spawn(settings, tell)
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
        return asyncio.ensure_future(_ended(self.process.pid))

    async def _prepare(self) -> Path:
        home, creds = self._directory / "home", self._directory / "project.creds"
        for directory in (self._directory.parent, self._directory, home):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._new_key or not creds.exists():
            seed = nkey.create_seed("user")
            jwt = await self._ask_for_jwt(self.project_id, nkey.public_key(seed))
            write_private(creds, format_creds(jwt, seed))
        defaults = self._program.project
        program = ProjectProgram(
            project_id=self.project_id,
            nats=self._program.project_nats or self._program.nats,
            creds=creds if self._program.creds is not None else None,
            home=home,
            window_bytes=defaults.window_bytes,
            max_streams=defaults.max_streams,
            api_packages=defaults.api_packages,
            limits=defaults.limits(),
            parent_pid=os.getpid(),
        )
        settings = self._directory / "project.json"
        write_private(settings, program.model_dump_json(indent=2))
        return settings

    def _spawn(self, settings: Path, tell: int) -> subprocess.Popen[bytes]:
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
                    *("--settings", str(settings), "--ready-fd", str(tell)),
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

    async def _end(self) -> None:
        process = self.process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                await asyncio.wait_for(_ended(process.pid), STOP_SECONDS)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.process = None
        await asyncio.to_thread(end_all, self.project_id)

    def _set(self, state: State, detail: str = "") -> None:
        if state != self.state:
            self.since = time.monotonic()
        changed = (state, detail) != (self.state, self.detail)
        self.state, self.detail = state, detail
        if changed:
            log.info("project %s: %s %s", self.project_id, state, detail)
            self._report(self.project_id, state, detail)


async def _readable(fd: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def _ended(pid: int) -> None:
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
