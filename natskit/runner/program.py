"""The settings file of a runner, written by the role ``runner``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from natskit.connection import NatsServers
from natskit.project.program import Id, ProjectLimits, ProjectProgram
from natskit.stream import FRAME_BYTES, MAX_WINDOW_BYTES, WINDOW_BYTES


class ProjectDefaults(ProjectLimits):
    """What each project of this runner gets."""

    model_config = ConfigDict(extra="forbid")

    window_bytes: int = Field(default=WINDOW_BYTES, ge=2 * FRAME_BYTES, le=MAX_WINDOW_BYTES)
    max_streams: int = Field(default=100, ge=1)
    api_packages: list[str] = Field(default_factory=list)
    max_disk_bytes: int | None = Field(default=None, ge=16 * 1024 * 1024)
    """Bytes its files may take (what ``du`` says, not their lengths; 16 KiB each at the least, for their inodes).
    Measured now and then, not enforced by the kernel: quotas of file systems are not there everywhere."""

    def limits(self) -> ProjectLimits:
        """The limits alone."""
        return ProjectLimits(**{name: getattr(self, name) for name in ProjectLimits.model_fields})


class RunnerProgram(BaseModel):
    """What ``python -m natskit.runner --settings FILE`` reads."""

    model_config = ConfigDict(extra="forbid")

    runner_id: Id
    name: str
    version: str = ""
    nats: NatsServers
    creds: Path | None = None
    """``None`` only where the server asks for no credentials: in tests of the runner alone."""
    project_nats: NatsServers | None = None
    """Where projects connect, if not where the runner does."""
    directory: Path
    python: Path = Path(sys.executable)
    manager: Literal["process", "systemd"] = "process"
    """Who keeps the agents: the runner, as its child processes, or systemd, as ``natskit-project@ID.service``, each
    in a sandbox of its own. With ``systemd`` the limits on memory and processes are the unit's."""
    state_name: str = Field(default="natskit-project", pattern=r"^[a-z][a-z0-9-]*$")
    """The folder of the units' homes below ``/var/lib/private``, as in the template of the unit."""
    disk_check_seconds: float = Field(default=30.0, gt=0)
    """How often each project's files are measured. It costs a walk through all of them, at the lowest priority."""
    disk_reserve_bytes: int = Field(default=1024**3, ge=0)
    """With ``systemd``: bytes of the file system of the homes that projects may not take; 0 for none. Looked at every
    second. Below it, the project that has written most since is stopped."""
    project: ProjectDefaults = ProjectDefaults()

    def for_project(
        self,
        project_id: str,
        *,
        creds: Path,
        renewed: Path,
        home: Path,
        limits: ProjectLimits,
        parent_pid: int | None = None,
    ) -> ProjectProgram:
        """The settings of one project's agent."""
        return ProjectProgram(
            project_id=project_id,
            nats=self.project_nats or self.nats,
            creds=creds if self.creds is not None else None,
            renewed_creds=renewed if self.creds is not None else None,
            home=home,
            window_bytes=self.project.window_bytes,
            max_streams=self.project.max_streams,
            api_packages=self.project.api_packages,
            limits=limits,
            parent_pid=parent_pid,
        )
