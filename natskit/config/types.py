"""The types of settings: their rules and units."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from natskit.validation.addresses import host_name
from natskit.validation.names import NameRefusedError, checked_address


@dataclass(frozen=True)
class Unit:
    """The unit of a number, as docs/reference/settings.md shows it."""

    name: str


Port = Annotated[int, Field(ge=1, le=65535)]
Bytes = Annotated[int, Field(ge=0), Unit("bytes")]
Seconds = Annotated[int, Field(ge=1), Unit("seconds")]
Count = Annotated[int, Field(ge=1)]
Host = Annotated[str, AfterValidator(host_name)]
"""A DNS name or an IPv4 address, stored as browsers write it: in lower case and in ASCII."""


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535:
        raise ValueError("write HOST:PORT, such as nats.example.org:4222")
    return f"{host_name(host)}:{port}"


Address = Annotated[str, AfterValidator(_address)]
"""HOST:PORT."""


def _email(value: str) -> str:
    try:
        return checked_address(value)
    except NameRefusedError as error:
        raise ValueError(str(error)) from None


Email = Annotated[str, AfterValidator(_email)]
"""An e-mail address, by the rules for those of accounts."""
HOST_PATH = r"^/[^\s%;\"'$\\]*$"
HostPath = Annotated[str, Field(pattern=HOST_PATH)]
"""An absolute path on the host, without characters that are special for systemd, nginx or nats-server."""
Name = Annotated[str, Field(pattern=r"^[^\s*>.]+$")]
"""One token of a subject."""


def _split(value: Any) -> Any:
    """``a,b`` from a command line is the list ``["a", "b"]``."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _parsed(value: Any) -> Any:
    """Parse a value from a command line as JSON."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


Listed = BeforeValidator(_split)
Structured = BeforeValidator(_parsed)
