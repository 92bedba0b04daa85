"""Which NATS servers a program connects to, as its settings file says."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class NatsServers(BaseModel):
    """The NATS servers of a platform.

    ``urls`` lists every server of the cluster. With ``tls://`` URLs, or a ``ca_file``, a client checks each server's
    certificate before it sends anything: the certificate must be for the host in the URL, and signed by ``ca_file``
    or, without one, by a CA the machine trusts.
    """

    model_config = ConfigDict(extra="forbid")

    urls: list[str] = Field(min_length=1)
    ca_file: Path | None = None
