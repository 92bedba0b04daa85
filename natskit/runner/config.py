"""The settings file of a runner, written by the role ``runner``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from natskit.bus.output_stream import AWAY_SECONDS, FRAME_BYTES, MAX_WINDOW_BYTES, WINDOW_BYTES
from natskit.bus.servers import NatsServers
from natskit.project.config import Id, ProjectLimits, ProjectProgram, UnattendedLimits


class ProjectDefaults(ProjectLimits):
    """What each project of this runner gets."""

    model_config = ConfigDict(extra="forbid")

    window_bytes: int = Field(default=WINDOW_BYTES, ge=2 * FRAME_BYTES, le=MAX_WINDOW_BYTES)
    reader_patience: float | None = Field(default=None, ge=AWAY_SECONDS)
    """Seconds that the reader of a command's output may be silent before the agent ends the command. Default:
    ``GONE_SECONDS`` of ``natskit/bus/output_stream.py``."""
    max_streams: int = Field(default=100, ge=1)
    unattended: UnattendedLimits = UnattendedLimits()
    max_documents: int = Field(default=1000, ge=0)
    """The most documents of a project that are kept the same as their files."""
    api_packages: list[str] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)
    """Further environment variables of each command."""
    max_disk_bytes: int | None = Field(default=None, ge=16 * 1024 * 1024)
    """Maximum bytes of a project's files on the disk, as ``du`` counts them, and at least 16 KiB for each file. The
    runner measures them now and then; few hosts have quotas that the kernel could enforce."""

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
    """``None`` only for a server without authentication, in tests of the runner."""
    project_nats: NatsServers | None = None
    """The servers that projects connect to. Default: those of the runner."""
    directory: Path
    python: Path = Path(sys.executable)
    manager: Literal["process", "systemd"] = "process"
    """What keeps the agents running: the runner, as its child processes, or systemd, as units
    ``natskit-project@NAME.service`` (:func:`natskit.runner.agent_unit.instance_of`), each in a sandbox of its own. With
    ``systemd`` the unit limits memory and processes."""
    metrics_file: Path | None = None
    """A file for the host's exporter."""
    disk_check_seconds: float = Field(default=30.0, gt=0)
    """Interval between two measurements of a project's files. Each walks through all files, at the lowest priority."""
    disk_reserve_bytes: int = Field(default=1024**3, ge=0)
    """With ``systemd``: minimum free bytes on the file system of the homes; 0 for no minimum. Checked every second.
    Below it, the runner stops the project that wrote the most."""
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
            reader_patience=self.project.reader_patience,
            max_streams=self.project.max_streams,
            unattended=self.project.unattended,
            max_documents=self.project.max_documents,
            api_packages=self.project.api_packages,
            environment=self.project.environment,
            limits=limits,
            parent_pid=parent_pid,
        )
