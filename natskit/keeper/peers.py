"""The keepers that are there, so that all of them name the same one for a document."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Callable

import nats.errors
from nats.aio.msg import Msg

from natskit.bus.connection import Connection
from natskit.bus.permissions import KEEPER_BEATS

BEAT_SECONDS, GONE_SECONDS = 1.0, 3.5
"""How often a keeper says that it is there, and how long others believe that."""
GOING = b"going"


class Peers:
    """This keeper and the others.

    Each document has the one keeper whose id and its own give the highest hash (rendezvous hashing): when one goes, the
    documents of that one alone move. Keepers may disagree for a moment; then two of them store updates of a document,
    which the stream puts in order.
    """

    def __init__(self, connection: Connection, is_well: Callable[[], bool]) -> None:
        """``is_well`` says whether this keeper can do its work now."""
        self.own = secrets.token_hex(6)
        """This keeper's id: a new one with each start, so that nobody is sent to one that does not listen yet."""
        self._connection, self._is_well = connection, is_well
        self._takes_requests = False
        self._heard: dict[str, float] = {}
        """When each of the others was heard of, in the seconds of the event loop."""

    async def start(self) -> None:
        """Listen to the others."""
        await self._connection.subscribe(KEEPER_BEATS, cb=self._note)

    async def beat(self) -> None:
        """Say that this keeper is there, until cancelled."""
        self._takes_requests = True
        while True:
            await self._say()
            await asyncio.sleep(BEAT_SECONDS)

    async def leave(self) -> None:
        """Say that this keeper takes no more requests."""
        self._takes_requests = False
        await self._publish(GOING)

    def preferred(self, document: str) -> str:
        """The id of the keeper that is to be asked about a document."""
        now = asyncio.get_running_loop().time()
        for other in [other for other, when in self._heard.items() if now - when > GONE_SECONDS]:
            del self._heard[other]
        return max(
            (self.own, *self._heard), key=lambda keeper: hashlib.sha256(f"{keeper}.{document}".encode()).digest()
        )

    async def _say(self) -> None:
        if self._takes_requests and self._is_well():
            await self._publish(b"")

    async def _publish(self, what: bytes) -> None:
        with contextlib.suppress(nats.errors.Error):  # it is said again
            await self._connection.publish(f"keepers.{self.own}", what)

    async def _note(self, message: Msg) -> None:
        keeper = message.subject.rpartition(".")[2]
        if keeper == self.own:
            return
        if message.data == GOING:
            self._heard.pop(keeper, None)
            return
        is_new = keeper not in self._heard
        self._heard[keeper] = asyncio.get_running_loop().time()
        if is_new:
            await self._say()  # so that it does not take itself for the only one
