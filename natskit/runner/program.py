"""The settings file of a runner, written by the role ``runner``."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from natskit.connection import NatsServers
from natskit.project.program import Id, ProjectLimits
from natskit.stream import FRAME_BYTES, MAX_WINDOW_BYTES, WINDOW_BYTES


class ProjectDefaults(ProjectLimits):
    """What each project of this runner gets."""

    model_config = ConfigDict(extra="forbid")

    window_bytes: int = Field(default=WINDOW_BYTES, ge=2 * FRAME_BYTES, le=MAX_WINDOW_BYTES)
    max_streams: int = Field(default=100, ge=1)
    api_packages: list[str] = Field(default_factory=list)

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
    project: ProjectDefaults = ProjectDefaults()
