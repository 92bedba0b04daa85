"""Who is connected, by name: kept from what nats-server says of each connection as it is opened and closed.

So a hub knows which connections a change outdates without asking every server to go through all its clients. What
nats-server says may be lost. The regular comparison of all connections corrects the index and finds out: until a
comparison finds nothing that was lost, the hub asks the servers after each change.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import NamedTuple

import msgspec

EVENT_SECONDS = 5.0
"""A message about a connection arrives within milliseconds. One that has not arrived after this time is lost."""


class Place(NamedTuple):
    """A connection: the id of its nats-server, and its number there."""

    server: str
    cid: int


class _Server(msgspec.Struct):
    id: str


class _Client(msgspec.Struct):
    id: int
    user: str = ""


class _Event(msgspec.Struct):
    """The parts that matter of nats-server's ``ConnectEventMsg`` and ``DisconnectEventMsg`` (server/events.go)."""

    server: _Server
    client: _Client


_event = msgspec.json.Decoder(_Event)


class ConnectionIndex:
    """The connections of this NATS account, as far as this hub has heard."""

    def __init__(self) -> None:
        self.is_complete = False
        """Whether each connection is in this index, as far as the last comparison could tell."""
        self._is_compared = False
        self._distrusted = float("-inf")
        self._missing: set[Place] = set()
        """Those that the last comparison did not find. It may skip one while others are closed."""
        self._names: dict[Place, tuple[str, float]] = {}
        self._places: dict[str, set[Place]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._names)

    def opened(self, data: bytes) -> tuple[Place, str] | None:
        """nats-server says that a connection was opened: returns it and its name; ``None`` if the server did not say
        this."""
        event = _read(data)
        if event is None:
            return None
        place = Place(event.server.id, event.client.id)
        self._add(place, event.client.user)
        return place, event.client.user

    def closed(self, data: bytes) -> None:
        """nats-server says that a connection was closed."""
        if (event := _read(data)) is not None:
            self._remove(Place(event.server.id, event.client.id))

    def find(self, name: str) -> set[Place]:
        """The connections with this name."""
        return set(self._places.get(name, ()))

    def distrust(self) -> None:
        """Something may have been missed: this hub was disconnected, or a server was."""
        self.is_complete = self._is_compared = False
        self._distrusted = time.monotonic()

    def compared(self, began: float, found: dict[Place, tuple[str, float]]) -> None:
        """Correct the index after a comparison that ``began`` then (``time.monotonic``) and that all servers answered.

        ``found`` has the name of each connection and for how many seconds it has been open. The index is complete after
        the first comparison, and as long as each further one finds nothing that was lost.
        """
        lost = 0
        for place, (name, age) in found.items():
            if self._names.get(place, ("", 0.0))[0] != name:
                lost += age > EVENT_SECONDS
                self._add(place, name)
        missing = {place for place, (_, heard) in self._names.items() if place not in found and heard < began}
        for place in missing & self._missing:
            self._remove(place)
        self._missing = missing - self._missing
        if began <= self._distrusted:  # it may lack what was missed
            return
        self.is_complete = not (lost and self._is_compared)
        self._is_compared = True

    def _add(self, place: Place, name: str) -> None:
        self._remove(place)
        self._names[place] = name, time.monotonic()
        self._places[name].add(place)

    def _remove(self, place: Place) -> None:
        name, _ = self._names.pop(place, ("", 0.0))
        if places := self._places.get(name):
            places.discard(place)
            if not places:
                del self._places[name]


def _read(data: bytes) -> _Event | None:
    try:
        return _event.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
