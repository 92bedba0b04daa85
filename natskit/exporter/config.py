"""The settings file of an exporter, written by the role ``exporter``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from natskit.process.metrics_endpoint import MetricsAccess


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Shown(_Part):
    """A port of this host that shows a certificate."""

    name: str
    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    protocol: Literal["tls", "nats"] = "tls"
    """``nats``: nats-server greets before TLS begins."""
    server_name: str = ""
    """The name to ask for (SNI); empty for none."""


class ExporterProgram(_Part):
    """What ``python -m natskit.exporter --settings FILE`` reads."""

    access: MetricsAccess
    units: list[str] = []
    """The units of systemd that should run on this host, apart from those of projects."""
    nats_monitor: str | None = None
    """The URL of nats-server's monitoring port on this host."""
    nats_accounts: list[str] = []
    """The public keys of the NATS accounts whose streams are shown."""
    shown: list[Shown] = []
    folders: list[Path] = []
    """Folders whose file systems are watched."""
    written: Path
    """The folder in which other programs leave metrics, in files ``*.prom``."""
