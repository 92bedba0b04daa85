"""The settings file of one project agent, written by the runner that starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from natskit.bus.output_stream import AWAY_SECONDS, FRAME_BYTES, MAX_WINDOW_BYTES, WINDOW_BYTES
from natskit.bus.permissions import check_id
from natskit.bus.servers import NatsServers
from natskit.errors import NatskitError


def _id(value: str) -> str:
    try:
        return check_id(value, "id")
    except NatskitError as error:
        raise ValueError(str(error)) from None


Id = Annotated[str, AfterValidator(_id)]
"""The id of a project or a runner, in settings and in parameters of methods."""


class UnattendedLimits(BaseModel):
    """What may run in a project without a reader, and what is kept of its output."""

    model_config = ConfigDict(extra="forbid")

    max_terminals: int = Field(default=32, ge=1)
    scrollback_bytes: int = Field(default=8 * 1024 * 1024, ge=0)
    """Of each terminal: the lines that have left its screen. A cell takes 8 bytes."""
    clipboard: bool = False
    """Whether the program on a terminal may set the clipboard of the viewer who types (OSC 52)."""
    recording_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024)
    """The most that a recording of a terminal may have."""
    max_jobs: int = Field(default=32, ge=1)
    """The most jobs that run, or have ended and are remembered."""
    job_output_bytes: int = Field(default=1024 * 1024, ge=FRAME_BYTES)
    """How much of each job's output is kept."""
    output_rate: int = Field(default=32 * 1024 * 1024, ge=64 * 1024)
    """Bytes that each terminal's program, and each job, may print in a second. It waits beyond that."""


class ProjectLimits(BaseModel):
    """Limits of each process of a project (rlimits). They contain accidents; they are not a sandbox."""

    model_config = ConfigDict(extra="forbid")

    memory_bytes: int | None = Field(default=None, ge=256 * 1024 * 1024)
    """RLIMIT_DATA, not RLIMIT_AS: runtimes such as V8 and Go reserve far more address space than they use."""
    max_processes: int | None = Field(default=None, ge=16)
    """How many threads and processes the user may have beyond those at the agent's start (RLIMIT_NPROC: the kernel
    counts all of the user's, not the project's, and does not apply it to root)."""
    max_file_bytes: int | None = Field(default=None, ge=1024 * 1024)
    cpu_seconds: int | None = Field(default=None, ge=1)
    """RLIMIT_CPU of each command. The agent itself has no such limit."""
    max_open_files: int = Field(default=4096, ge=256)


class ProjectProgram(BaseModel):
    """The settings file of ``python -m natskit.project --settings FILE``."""

    model_config = ConfigDict(extra="forbid")

    project_id: Id
    nats: NatsServers
    creds: Path | None = None
    """``None`` only if the server requires no credentials, as in tests of the agent alone. A relative path starts at
    the folder of this file: systemd puts both into a directory that only the running unit can see."""
    renewed_creds: Path | None = None
    """Creds with a newer key, if the runner has written them. The agent reads them when the runner sends SIGHUP."""
    home: Path
    window_bytes: int = Field(default=WINDOW_BYTES, ge=2 * FRAME_BYTES, le=MAX_WINDOW_BYTES)
    reader_patience: float | None = Field(default=None, ge=AWAY_SECONDS)
    """Seconds that the reader of a command's output may be silent before the command is ended; by default those of
    ``natskit/bus/output_stream.py``."""
    max_streams: int = Field(default=100, ge=1)
    """The most commands at the same time; each may hold ``window_bytes`` of output."""
    unattended: UnattendedLimits = UnattendedLimits()
    max_documents: int = Field(default=1000, ge=0)
    """The most documents that are kept the same as their files."""
    api_packages: list[str] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of each command, beside those of a login shell."""
    limits: ProjectLimits = ProjectLimits()
    parent_pid: int | None = None
    """The runner's process. The agent ends when this is no longer its parent."""

    def beside(self, settings: Path) -> ProjectProgram:
        """The same settings, with a relative path of the creds resolved from the folder of the settings file."""
        return self.model_copy(update={"creds": settings.parent / self.creds if self.creds is not None else None})
