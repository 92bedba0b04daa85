"""What supervisor says of its programs, asked over its socket (supervisord.org, "XML-RPC API")."""

from __future__ import annotations

import xmlrpc.client
from dataclasses import dataclass

from supervisor.xmlrpc import SupervisorTransport

from natskit.errors import ConnectionLostError


@dataclass(frozen=True)
class Process:
    """One program: ``state`` is supervisor's own word (RUNNING, STARTING, BACKOFF, FATAL, STOPPED)."""

    name: str
    state: str
    pid: int
    detail: str


def processes(socket: str) -> list[Process]:
    """Every program. Raises :class:`ConnectionLostError` when supervisor does not answer."""
    transport = SupervisorTransport(None, None, f"unix://{socket}")
    try:
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as server:
            found = server.supervisor.getAllProcessInfo()
    except (OSError, xmlrpc.client.Error) as error:
        raise ConnectionLostError(f"supervisor does not answer on {socket} ({error}): run `make up`") from None
    assert isinstance(found, list)
    return [
        Process(str(p["name"]), str(p["statename"]), int(p["pid"]), str(p["description"] or p["spawnerr"]))
        for p in found
    ]
