"""A project's agent as an instance of the unit ``natskit-project@.service``: on hosts, each in its own sandbox.

systemd starts a crashed agent again, also while there is no runner. When it gives up, or a start fails, the runner
goes on, with pauses that grow and a new key. The runner sees what happens by asking for the list of units each second
(:meth:`AgentUnit.observe`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from natskit.errors import NatskitError
from natskit.identity.files import write_private
from natskit.project.program import ProjectLimits, ProjectProgram
from natskit.rpc import RpcError
from natskit.runner.project_agent import ProjectAgent
from natskit.runner.systemd import GONE, UnitState, how_it_ended, list_units, systemctl

UNITS = "natskit-project@*.service"
HOME = Path("/home/project")
"""The same in every project: where its unit mounts its state directory."""
RENEWED = Path("/home/renewed")
"""Where its unit shows a project its folder ``renewed``: credentials of a unit do not change while it runs."""
PRIVATE = Path("/var/lib/private")
"""Where systemd keeps the state of units with ``DynamicUser=`` (systemd.exec(5))."""
START_SECONDS = 28.0
"""A little more than ``TimeoutStartSec`` of the unit, and less than a hub waits."""


def instance_of(project_id: str) -> str:
    """What stands for a project in the name of its unit, and is the name of its user: ``p`` and 26 of a-z, 2-7.

    Not the id itself: a user's name may have 31 characters. And without a name in the unit, ``DynamicUser=`` would
    give all instances of a template one user (systemd takes the name before the ``@``).
    """
    return "p" + base64.b32encode(uuid.UUID(project_id).bytes).decode().rstrip("=").lower()


def unit_of(project_id: str) -> str:
    """The name of a project's unit."""
    return f"natskit-project@{instance_of(project_id)}.service"


def project_of(unit: str) -> str | None:
    """The project of a unit, if it is one."""
    instance = unit.removeprefix("natskit-project@").removesuffix(".service")
    try:
        project_id = str(uuid.UUID(bytes=base64.b32decode(instance[1:].upper() + "======")))
    except ValueError:
        return None
    return project_id if unit_of(project_id) == unit else None


async def units() -> dict[str, UnitState]:
    """The units of projects that are known to systemd, by project."""
    found = await list_units(UNITS)
    return {project_id: state for unit, state in found.items() if (project_id := project_of(unit)) is not None}


class AgentUnit(ProjectAgent):
    """An agent that goes on without the runner."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.unit = unit_of(self.project_id)
        # The unit's template knows no other name of the project.
        self._directory = self._program.directory / "projects" / instance_of(self.project_id)
        self._seen = GONE
        self._changed = asyncio.Event()

    def observe(self, seen: UnitState) -> None:
        """Take what systemd says about the unit now."""
        if seen != self._seen:
            self._seen = seen
            self._changed.set()

    def adopt(self, seen: UnitState) -> None:
        """Go on with a unit that runs, or is about to, since an earlier runner."""
        self._new_key = False
        self._seen = seen
        self._keep_from("starting", self._keep(runs=True))
        if seen.runs:
            self._answers()

    async def leave(self) -> None:
        """Go on: the unit outlives the runner, and the next one adopts it."""
        await self._stop_keeping()

    def folders(self) -> list[Path]:
        """The home, and what the unit has of /tmp and /var/tmp (``PrivateTmp=``)."""
        private = [path for tmp in ("/tmp", "/var/tmp") for path in Path(tmp).glob(f"systemd-private-*-{self.unit}-*")]
        return [self._home, *private]

    @property
    def _home(self) -> Path:
        return PRIVATE / self._program.state_name / instance_of(self.project_id)

    async def _launch(self) -> None:
        with contextlib.suppress(NatskitError):  # fails when it was never started
            await systemctl("reset-failed", self.unit)
        try:
            await systemctl("start", self.unit, wait=START_SECONDS)
        except NatskitError:
            raise NatskitError(f"{await how_it_ended(self.unit)}: see journalctl -u {self.unit}") from None
        self._seen = UnitState("active", "running")

    async def _ended(self) -> str:
        """Follow the unit until systemd has given up on it."""
        while True:
            self._changed.clear()
            seen = self._seen
            if seen.runs:
                self._answers()
            elif seen.is_starting:
                if self.state == "running":
                    self._set("starting", await how_it_ended(self.unit))
            else:
                return await how_it_ended(self.unit)
            await self._changed.wait()

    def _settings(self) -> ProjectProgram:
        defaults = self._program.project
        return self._program.for_project(
            self.project_id,
            creds=Path("project.creds"),  # both are credentials of the unit, in one folder
            renewed=RENEWED / "project.creds",
            home=HOME,
            limits=ProjectLimits(cpu_seconds=defaults.cpu_seconds, max_open_files=defaults.max_open_files),
        )

    async def _prepare(self) -> None:
        await super()._prepare()
        folder = self._directory / "renewed"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)  # below one that is root's alone
        (folder / "project.creds").unlink(missing_ok=True)

    def _give(self, creds: str) -> None:
        path = self._directory / "renewed" / "project.creds"
        if not path.parent.is_dir():
            raise RpcError("invalid_state", "the project was started by an earlier version: stop it and start it")
        user = self._home.stat().st_uid  # systemd has made it up for as long as the unit runs
        write_private(path, creds)
        os.chown(path, user, -1)

    async def _tell(self) -> None:
        await systemctl("kill", "--kill-who=main", "--signal=SIGHUP", self.unit)

    async def _kill(self) -> None:
        with contextlib.suppress(NatskitError):  # it does not run
            await systemctl("kill", "--signal=SIGKILL", self.unit)

    async def _end(self) -> None:
        with contextlib.suppress(NatskitError):  # systemd has no such unit in memory
            await systemctl("stop", self.unit, wait=None)
        with contextlib.suppress(NatskitError):
            await systemctl("reset-failed", self.unit)
        self._seen = GONE

    async def _remove(self) -> None:
        """systemd removes what it made: as the project's own user could not, and without following its links."""
        await systemctl("clean", "--what=state", self.unit, wait=None)
        if self._home.exists():
            raise NatskitError(f"{self._home} is still there after systemctl clean")
        if self._directory.exists():
            await asyncio.to_thread(shutil.rmtree, self._directory)
