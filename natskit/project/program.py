"""The settings file of one project agent, written by the runner that starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from natskit.connection import NatsServers
from natskit.errors import NatskitError
from natskit.permissions import check_id
from natskit.stream import FRAME_BYTES, MAX_WINDOW_BYTES, WINDOW_BYTES


def _id(value: str) -> str:
    try:
        return check_id(value, "id")
    except NatskitError as error:
        raise ValueError(str(error)) from None


Id = Annotated[str, AfterValidator(_id)]
"""The id of a project or a runner, in settings and in parameters of methods."""


class ProjectLimits(BaseModel):
    """Limits of each process of a project (rlimits). They bound accidents; they are no sandbox."""

    model_config = ConfigDict(extra="forbid")

    memory_bytes: int | None = Field(default=None, ge=256 * 1024 * 1024)
    """RLIMIT_DATA, not RLIMIT_AS: runtimes such as V8 and Go reserve far more address space than they use."""
    max_processes: int | None = Field(default=None, ge=16)
    """How many threads and processes the user may have beyond those at the agent's start (RLIMIT_NPROC: the kernel
    counts all of the user's, not the project's, and does not apply it to root)."""
    max_file_bytes: int | None = Field(default=None, ge=1024 * 1024)
    cpu_seconds: int | None = Field(default=None, ge=1)
    """RLIMIT_CPU of each command; the agent itself lives on."""
    max_open_files: int = Field(default=4096, ge=256)


class ProjectProgram(BaseModel):
    """What ``python -m natskit.project --settings FILE`` reads."""

    model_config = ConfigDict(extra="forbid")

    project_id: Id
    nats: NatsServers
    creds: Path | None = None
    """``None`` only where the server asks for no credentials: in tests of the agent alone. A relative path is beside
    this file: systemd puts both into a directory that only the running unit has."""
    renewed_creds: Path | None = None
    """Creds with a newer key, if the runner has put them there; looked at when it sends SIGHUP."""
    home: Path
    window_bytes: int = Field(default=WINDOW_BYTES, ge=2 * FRAME_BYTES, le=MAX_WINDOW_BYTES)
    max_streams: int = Field(default=100, ge=1)
    """Commands at the same time; each may hold ``window_bytes`` of output."""
    api_packages: list[str] = Field(default_factory=list)
    limits: ProjectLimits = ProjectLimits()
    parent_pid: int | None = None
    """The runner. The agent ends when this is no longer its parent."""

    def beside(self, settings: Path) -> ProjectProgram:
        """The same, with the path of the creds as seen from the settings file."""
        return self.model_copy(update={"creds": settings.parent / self.creds if self.creds is not None else None})
