"""A project's agent as an instance of the unit ``natskit-project@.service``: on hosts, each in its own sandbox.

systemd restarts a crashed agent, even while no runner runs. When systemd gives up, or a start fails, the runner tries
again, with growing pauses and a new key. The runner follows the units by asking systemd for their list every second
(:meth:`AgentUnit.observe`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import uuid
from pathlib import Path
from typing import Any

from natskit.errors import NatskitError
from natskit.identity.files import write_private
from natskit.project.config import ProjectLimits, ProjectProgram
from natskit.rpc import RpcError
from natskit.runner.project_agent import ProjectAgent
from natskit.runner.project_root import lay_out, make
from natskit.runner.removal import remove_tree
from natskit.runner.sandbox import HOME, HOMES, RENEWED
from natskit.runner.systemd import GONE, UnitState, how_it_ended, list_units, systemctl

UNITS = "natskit-project@*.service"
LINKS_OF_SYSTEMD = Path("/var/lib/natskit-project")
"""Links that systemd made to the homes of earlier versions, with ``StateDirectory=``."""
START_SECONDS = 28.0
"""A little more than ``TimeoutStartSec`` of the unit, and less than a hub waits."""


def instance_of(project_id: str) -> str:
    """A project's name in its unit, and the name of its user: ``p`` and 26 characters of a-z, 2-7.

    The id itself is too long: a user's name may have 31 characters. Without a name in the unit, ``DynamicUser=`` would
    give all instances of a template the same user (systemd takes the name before the ``@``).
    """
    return "p" + base64.b32encode(uuid.UUID(project_id).bytes).decode().rstrip("=").lower()


def unit_of(project_id: str) -> str:
    """The name of a project's unit."""
    return f"natskit-project@{instance_of(project_id)}.service"


def project_of(unit: str) -> str | None:
    """The project of a unit; ``None`` if it is not a unit of a project."""
    instance = unit.removeprefix("natskit-project@").removesuffix(".service")
    try:
        project_id = str(uuid.UUID(bytes=base64.b32decode(instance[1:].upper() + "======")))
    except ValueError:
        return None
    return project_id if unit_of(project_id) == unit else None


async def units() -> dict[str, UnitState]:
    """The states of the projects' units that systemd knows, by project."""
    found = await list_units(UNITS)
    return {project_id: state for unit, state in found.items() if (project_id := project_of(unit)) is not None}


class AgentUnit(ProjectAgent):
    """An agent that keeps running without the runner."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.unit = unit_of(self.project_id)
        # The unit's template knows the project only by this name.
        self._directory = self._program.directory / "projects" / instance_of(self.project_id)
        self._seen = GONE
        self._changed = asyncio.Event()

    def observe(self, seen: UnitState) -> None:
        """Take over the state of the unit that systemd reports now."""
        if seen != self._seen:
            self._seen = seen
            self._changed.set()

    def adopt(self, seen: UnitState) -> None:
        """Take over a unit that an earlier runner has started."""
        self._new_key = False
        self._seen = seen
        self._keep_from("starting", self._keep(runs=True))
        if seen.runs:
            self._answers()

    async def leave(self) -> None:
        """Leave the unit running: it outlives the runner, and the next runner adopts it."""
        await self._stop_keeping()

    def folders(self) -> list[Path]:
        """The home, and the unit's private parts of /tmp and /var/tmp (``PrivateTmp=``)."""
        private = [path for tmp in ("/tmp", "/var/tmp") for path in Path(tmp).glob(f"systemd-private-*-{self.unit}-*")]
        return [self.home, *private]

    @property
    def home(self) -> Path:
        """It is in a folder that may be on a disk of its own."""
        return HOMES / instance_of(self.project_id)

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
        await self._end()  # an operator may have started it by hand, and its root must not change while it runs
        await super()._prepare()
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(lay_out, self._directory / "root")
        make(self._directory / "cgroup")
        folder = self._directory / "renewed"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)  # below one that is root's alone
        (folder / "project.creds").unlink(missing_ok=True)

    def _give(self, creds: str) -> None:
        path = self._directory / "renewed" / "project.creds"
        if not path.parent.is_dir():
            raise RpcError("invalid_state", "the project was started by an earlier version: stop it and start it")
        user = self.home.stat().st_uid  # systemd allocated it for as long as the unit runs
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
        """Remove the home, whatever modes and depth its folders have, without following its links."""
        await remove_tree(self.home)
        await remove_tree(self.arriving)
        link = LINKS_OF_SYSTEMD / self.home.name
        if link.is_symlink():
            link.unlink()
        await remove_tree(self._directory)
