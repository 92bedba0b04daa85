"""The types settings are made of: what each may be, and its unit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


@dataclass(frozen=True)
class Unit:
    """What a number counts; it stands in docs/settings.md."""

    name: str


Port = Annotated[int, Field(ge=1, le=65535)]
Bytes = Annotated[int, Field(ge=0), Unit("bytes")]
Seconds = Annotated[int, Field(ge=1), Unit("seconds")]
Count = Annotated[int, Field(ge=1)]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")]
"""A DNS name or an IPv4 address."""
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?:[1-9][0-9]{0,4}$")]
"""HOST:PORT."""
HostPath = Annotated[str, Field(pattern=r"^/[^\s%;\"'$\\]*$")]
"""An absolute path on the host, without what systemd, nginx or nats-server read as more than a name."""
Name = Annotated[str, Field(pattern=r"^[^\s*>.]+$")]
"""One token of a subject."""


def _split(value: Any) -> Any:
    """``a,b`` from a command line is the list ``["a", "b"]``."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _parsed(value: Any) -> Any:
    """JSON from a command line is what it says."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


Listed = BeforeValidator(_split)
Structured = BeforeValidator(_parsed)
