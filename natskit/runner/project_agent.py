"""One project's agent as the runner sees it, in a unit or in a child process: start, watch, restart, stop."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, NamedTuple

from natskit.errors import NatskitError
from natskit.identity import nkey
from natskit.identity.claims import format_creds
from natskit.identity.files import write_private
from natskit.process.lifecycle import cancel, read_settings
from natskit.project.config import ProjectProgram
from natskit.rpc import RpcError, internal_error
from natskit.runner.config import RunnerProgram

log = logging.getLogger(__name__)

State = Literal["stopped", "starting", "running", "failed"]
Report = Callable[[str, State, str], None]
AskForJwt = Callable[[str, str], Awaitable[str]]


class Switch(NamedTuple):
    """The requests to a hub that give a running agent another key: sign a JWT for it, then forget the old key."""

    next_jwt: AskForJwt
    use: Callable[[str, str], Awaitable[None]]


FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
STEADY_SECONDS = 60.0
"""After an agent has run this long, the pause before its restart is the shortest again."""


class ProjectAgent(ABC):
    """Keeps one agent running between :meth:`start` and :meth:`stop`."""

    def __init__(self, program: RunnerProgram, project_id: str, ask_for_jwt: AskForJwt, report: Report) -> None:
        self.project_id = project_id
        self.state: State = "stopped"
        self.detail = ""
        self.lock = asyncio.Lock()
        self.since = time.monotonic()
        self.held = False
        """Whether the runner stopped it for a reason that only its user can remove. It starts again only on request."""
        self.unexpected_ends = 0
        """How often it ended, or was ended by the runner, while it should have run."""
        self.asked_at = float("-inf")
        """When a start was last requested."""
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
            await self._stop_keeping()  # a start was requested: do not wait for the next attempt
        if self._keeper is None:
            self.held, self.asked_at = False, time.monotonic()
            self._new_key = True
            self._keep_from("starting", self._keep())
        await self._settled.wait()
        if self.state != "running":
            raise RpcError("unavailable", f"the project did not start: {self.detail or 'it is still starting'}")

    def public_key(self) -> str:
        """The public key in the agent's creds; empty if there are none."""
        creds = self._directory / "project.creds"
        lines = creds.read_text().splitlines() if creds.exists() else []
        return next((nkey.public_key(line) for line in lines if line.startswith("SU")), "")

    async def interrupt(self) -> None:
        """Make a waiting :meth:`start` give up, so that a stop need not wait for it."""
        if self.state in ("starting", "failed"):
            await self._stop_keeping()
            self._set("failed", "it was stopped while it was starting")
            self._settled.set()

    async def stop(self) -> None:
        """Stop the agent and everything it started."""
        await self._stop_keeping()
        await self._end()
        self.held = False
        self._set("stopped")

    async def hold(self, reason: str) -> None:
        """End the agent and everything it started at once, for a ``reason`` that its user has to remove."""
        await self._stop_keeping()
        await self._kill()
        await self._end()
        self.held = True
        self._set("failed", reason)
        self._settled.set()

    async def delete(self) -> None:
        """Stop, and remove the project's files."""
        await self.stop()
        await self._remove()

    async def rotate(self, switch: Switch) -> None:
        """Give the running agent a new key; it reconnects with the key, and its commands go on.

        Raises :class:`NatskitError`. The old key is valid then, and the new one may be valid too.
        """
        if self.state != "running":
            raise RpcError("invalid_state", f"the project is {self.state}: it gets a new key when it is started")
        told = read_settings(self._directory / "project.json", ProjectProgram)
        if told.renewed_creds is None:
            raise RpcError("invalid_state", "the project was started by an earlier version: stop it and start it")
        seed = nkey.create_seed("user")
        public_key = nkey.public_key(seed)
        jwt = await switch.next_jwt(self.project_id, public_key)
        creds = format_creds(jwt, seed)
        # Both keys are valid now. Write the new one for the next start first, then for the running agent.
        write_private(self._directory / "project.creds", creds)
        self._give(creds)
        await self._tell()
        await switch.use(self.project_id, public_key)

    @abstractmethod
    async def leave(self) -> None:
        """Called when the runner ends."""

    @property
    @abstractmethod
    def home(self) -> Path:
        """The folder of the project's files."""

    @property
    def arriving(self) -> Path:
        """The folder, beside the home, in which the files arrive that are moved here from another runner."""
        return self.home.with_name(f".{self.home.name}.arriving")

    @property
    def was_started(self) -> bool:
        """Whether this runner has ever started the project."""
        return self._directory.exists()

    def make_place(self) -> None:
        """Make the folder that the home is in."""
        for directory in (self._directory.parent, self._directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    @abstractmethod
    def folders(self) -> list[Path]:
        """The folders in which the project can leave files; these count as its disk usage."""

    @abstractmethod
    async def _launch(self) -> None:
        """Start the agent and wait until it answers. Raises :class:`NatskitError` if it does not."""

    @abstractmethod
    async def _ended(self) -> str:
        """Wait for the end of a launched agent, and return how it ended."""

    @abstractmethod
    async def _kill(self) -> None:
        """Kill all processes of the project."""

    @abstractmethod
    async def _end(self) -> None:
        """End all processes of the project, and wait until they are gone."""

    @abstractmethod
    async def _remove(self) -> None:
        """Remove all files of a project that does not run."""

    @abstractmethod
    def _give(self, creds: str) -> None:
        """Put new creds where the running agent can read them."""

    @abstractmethod
    async def _tell(self) -> None:
        """Send SIGHUP to the running agent."""

    @abstractmethod
    def _settings(self) -> ProjectProgram:
        """The agent's settings."""

    def _keep_from(self, state: State, keeping: Awaitable[None]) -> None:
        self._settled.clear()
        self._set(state)
        self._keeper = asyncio.ensure_future(keeping)

    async def _stop_keeping(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await cancel([keeper])

    async def _keep(self, *, runs: bool = False) -> None:
        """Launch the agent, wait for its end, and repeat. With ``runs`` the agent runs already: begin with the wait."""
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                if not runs:
                    await self._prepare()
                    await self._launch()
                    self._new_key = False
                    self._answers()
                detail = await self._ended()
            except (NatskitError, OSError) as error:
                self._new_key = True
                detail = str(error)
            except Exception as error:
                detail = internal_error(f"project {self.project_id} does not run", error).message
            runs = False
            await self._end()
            self._set("failed", detail)
            self._settled.set()
            if time.monotonic() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            self._settled.clear()
            self._set("starting", detail)

    def _answers(self) -> None:
        self._set("running")
        self._settled.set()

    async def _prepare(self) -> None:
        """Write the agent's settings, and creds with a key of its own that the hub has signed."""
        for directory in (self._directory.parent, self._directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        creds = self._directory / "project.creds"
        if self._new_key or not creds.exists():
            seed = nkey.create_seed("user")
            jwt = await self._ask_for_jwt(self.project_id, nkey.public_key(seed))
            write_private(creds, format_creds(jwt, seed))
        write_private(self._directory / "project.json", self._settings().model_dump_json(indent=2))

    def _set(self, state: State, detail: str = "") -> None:
        if state != self.state:
            self.since = time.monotonic()
            self.unexpected_ends += self.state == "running" and state in ("starting", "failed")
        changed = (state, detail) != (self.state, self.detail)
        self.state, self.detail = state, detail
        if changed:
            log.info("project %s: %s %s", self.project_id, state, detail)
            self._report(self.project_id, state, detail)
