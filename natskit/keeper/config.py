"""The settings file that ``python -m natskit.keeper --settings FILE`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from natskit import __version__
from natskit.bus.servers import NatsServers


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CredsFiles(_Part):
    """The creds file of the keeper in each NATS account."""

    platform: Path
    docs: Path


class KeeperProgram(_Part):
    """All settings of a keeper. Secrets are paths to files."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]+$")
    version: str = __version__
    nats: NatsServers
    creds: CredsFiles
    max_document_bytes: int = Field(default=8 * 1024**2, ge=65_536)
    """The most bytes of one document, in Yjs' encoding, without its history."""
    max_documents: int = Field(default=5000, ge=1)
    """The most documents of a project."""
    max_project_bytes: int = Field(default=64 * 1024**2, ge=65_536)
    """The most bytes of a project's documents with their histories."""
    account_bytes: int = Field(default=64 * 1024**2, ge=65_536)
    """The most bytes that one account may store in documents within an hour through this keeper."""
    thin_after_days: int = Field(default=0, ge=0)
    """After how many days the history of documents is thinned out, unless a project says otherwise; 0: never."""
    thin_to: Literal["minute", "hour"] = "minute"
    """Of each of these, one version stays of a history that is thinned out."""
    memory_bytes: int = Field(default=128 * 1024**2, ge=1024**2)
    """How much of documents a keeper holds in memory, in Yjs' encoding. A document takes several times as much."""
    caller_share: float = Field(default=0.25, gt=0)
    """The part of this keeper's time that one caller may use in the long run."""
