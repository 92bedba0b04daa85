"""Disconnects connections that no longer have the rights their holder would get now. Their clients reconnect by
themselves.

A connection's name (``authorized_user``) says who holds it and which rights it got. After a change, a hub looks for the
names that were right before it, at once and twice more shortly after: in its index of connections, or by asking the
servers while the index may lack some (:mod:`natskit.hub.auth.connection_index`). Regularly, it compares all
connections. Every hub does this, whichever hub authorised a connection. So a right that was taken away is gone when

- *the hub that authorised is dead*: any other hub disconnects; the next hub to start first compares everything;
- *another hub authorises at that moment, from an older view*: all hubs look at each new connection within a second, and
  for the names that were right before :data:`LOOK_AGAIN_SECONDS` after a change. A hub notices within 1.5 s that its
  view is older than that (:mod:`natskit.hub.state.bucket`). It then stops authorising until it has caught up, and acts
  on the changes it reads. A hub that cannot ask the leader, because it has lost its nats-server or a new leader is
  being elected, goes on authorising until it hears that it lacks something, for
  :data:`~natskit.hub.state.bucket.RECENT_SECONDS` at most, and looks at what it authorised when it has caught up;
- *a kick is lost*: the connection is found again in the same way;
- *nats-server's word of a connection is lost*: the next comparison finds it, and each change is asked about until one
  finds nothing;
- *a nats-server is partitioned from the others*: its clients keep their rights, among themselves. Only a hub on its
  side authorises new clients there, and only while that hub takes its view for current. If the stream's leader is on
  that side too, it steps down after 10 to 20 s (``raft.go``, ``lostQuorumInterval``), which the hub notices
  :data:`~natskit.hub.state.bucket.SILENT_SECONDS` later: about half a minute in all. Hubs look for servers every
  second, and compare all connections when the server is back;
- *no hub runs*, or all of this fails: the authorisation itself ends after ``authorization_ttl_seconds`` (900 s, and up
  to a tenth more). nats-server then drops the connection without asking a hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from natskit.bus.connection import Connection
from natskit.bus.permissions import connections_subject
from natskit.bus.request_many import request_many
from natskit.hub.auth.connection_index import ConnectionIndex, Place
from natskit.hub.metrics import Metrics
from natskit.hub.state.view import Holder, State
from natskit.process.lifecycle import run_all

log = logging.getLogger(__name__)

GRACE_SECONDS = 0.1
"""Delay before a changed right disconnects: the client that made the change gets its answer on the same connection."""
ENDED_SECONDS = 0.5
"""The same for a client that changes its password over NATS: it cannot reconnect to get the answer."""
RECONNECT_SECONDS = 0.25
"""By then a disconnected client is back: natskit's clients wait 0.1 s, and connecting takes a few milliseconds."""
LOOK_AGAIN_SECONDS = (0.5, 2.0)
"""After a change. By the first, every hub's view has the change; by the second, a hub whose view lacks it knows so
(:mod:`natskit.hub.state.bucket` checks every half second). This finds what was authorised meanwhile."""
COMPARE_SECONDS = 30.0
CATCH_UP_SECONDS = 0.1
"""How often a hub whose view is not current looks whether it is, while there are connections to end."""
SERVER_CHECK_SECONDS = 1.0
"""How often hubs look for servers: one that was partitioned has connections that no hub could end."""
ANSWER_SECONDS = 0.5
SETTLE_SECONDS = 0.05
"""While the number of servers is unknown, a hub waits this long for more answers after the first."""
PAGE = 1024
MOST_SINGLE_QUERIES = 64
"""For more outdated names than this, a hub without a complete index lists all connections instead of asking for each
name."""


class Connections:
    """Lists and ends connections, through services of the NATS account SYS that PLATFORM imports."""

    def __init__(self, connection: Connection, state: State, platform_account: str, metrics: Metrics) -> None:
        self._connection = connection
        self._state = state
        self._account = platform_account
        self._metrics = metrics
        self._index = ConnectionIndex()
        self._outdated: set[str] = set()
        self._opened: list[tuple[Place, str]] = []
        self._again: set[str] = set()
        """Outdated by a change a moment ago, to be looked for once more."""
        self._postponed: set[str] = set()
        """Outdated, but not to be ended yet, not even by a comparison of all connections."""
        self._locked_out: set[str] = set()
        """Names that :meth:`disconnect_ended` must not postpone: the sessions of a disabled account end right after
        it."""
        self._servers: set[str] = set()
        """The servers that answered lately. A query waits for all of them."""
        self._reconnected_at: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._compare_soon = asyncio.Event()
        self._lock = asyncio.Lock()

    def disconnect_now(self, names: set[str]) -> None:
        """Connections with these names are outdated from now on: somebody was locked out."""
        if names:
            self._locked_out |= names
            asyncio.get_running_loop().call_later(ENDED_SECONDS, self._locked_out.difference_update, names)
            self._mark_outdated(names)

    def _mark_outdated(self, names: set[str]) -> None:
        if not names:
            return
        self._postponed -= names
        self._outdated |= names
        self._wake.set()
        loop = asyncio.get_running_loop()
        for holder in {name.split(".")[1] for name in names}:
            self._reconnected_at[holder] = loop.time() + RECONNECT_SECONDS
            loop.call_later(RECONNECT_SECONDS, self._reconnected, holder)

    async def wait_reconnected(self, holder: str) -> None:
        """Wait until a holder that was just disconnected has had time to reconnect, so that it gets its answer."""
        left = self._reconnected_at.get(holder, 0) - asyncio.get_running_loop().time()
        if left > 0:
            await asyncio.sleep(left)

    def is_reconnecting(self, holder: str) -> bool:
        """Whether a holder that was just disconnected may not be back yet."""
        until = self._reconnected_at.get(holder)
        return until is not None and until > asyncio.get_running_loop().time()

    def _reconnected(self, holder: str) -> None:
        if self._reconnected_at.get(holder, 0) <= asyncio.get_running_loop().time() + 0.001:
            self._reconnected_at.pop(holder, None)

    def disconnect_ended(self, names: set[str]) -> None:
        """The session of these connections has ended. On sign-out, the hub that was asked disconnects at once
        instead."""
        self._disconnect_after(ENDED_SECONDS, names)

    def disconnect_soon(self, names: set[str]) -> None:
        """Connections with these names are outdated from now on: what their holders may use has changed."""
        self._disconnect_after(GRACE_SECONDS, names)

    def _disconnect_after(self, seconds: float, names: set[str]) -> None:
        names = names - self._locked_out
        if names:
            self._postponed |= names
            asyncio.get_running_loop().call_later(seconds, self._mark_outdated, names)

    async def run(self) -> None:
        """Disconnect outdated connections, until cancelled."""
        await self._connection.subscribe(connections_subject("opened"), cb=self._on_opened)
        await self._connection.subscribe(connections_subject("closed"), cb=self._on_closed)
        undo = self._connection.on_reconnect(self._distrust)
        try:
            await run_all([self._run_changes(), self._run_opened(), self._run_comparisons(), self._run_servers()])
        finally:
            undo()

    async def _on_opened(self, message: Msg) -> None:
        if (opened := self._index.opened(message.data)) is not None:
            self._opened.append(opened)

    async def _on_closed(self, message: Msg) -> None:
        self._index.closed(message.data)

    def _distrust(self) -> None:
        self._index.distrust()
        self._compare_soon.set()

    async def disconnect_outdated(self) -> None:
        """Disconnect now what recent changes outdated. Returns when the servers were told."""
        async with self._lock:
            names, self._outdated = self._outdated, set()
            if not names or not self._state.current:
                self._outdated |= names
                return
            for seconds in LOOK_AGAIN_SECONDS:
                asyncio.get_running_loop().call_later(seconds, self._look_again, names)
            await self._look_for(names)

    def _look_again(self, names: set[str]) -> None:
        self._again |= names
        self._wake.set()

    async def _look_for(self, names: set[str]) -> None:
        """Disconnect the connections with these names whose holders have other rights now."""
        if self._index.is_complete:
            await self._end([(place, name) for name in names for place in self._index.find(name)])
        elif len(names) > MOST_SINGLE_QUERIES:
            await self._compare({})
        else:
            await asyncio.gather(*(self._compare({"user": name}) for name in names))

    async def _run_changes(self) -> None:
        while True:
            await self._wake.wait()
            if not self._state.current:
                await asyncio.sleep(CATCH_UP_SECONDS)
                continue
            self._wake.clear()
            try:
                await self.disconnect_outdated()
                again, self._again = self._again, set()
                if len(again) > MOST_SINGLE_QUERIES and not self._index.is_complete:
                    self._compare_soon.set()  # _run_comparisons limits the time this takes
                else:
                    await self._look_for(again)
            except nats.errors.Error as error:
                log.warning("connections: %s", error)
                self._compare_soon.set()

    async def _run_opened(self) -> None:
        """Look at each new connection once, when this hub's view must have the changes that it was authorised by."""
        before: list[tuple[Place, str]] = []
        while True:
            await asyncio.sleep(LOOK_AGAIN_SECONDS[0])
            if not (self._state.current and self._connection.is_connected):
                continue  # what was opened meanwhile is looked at when this hub has caught up
            due, before, self._opened = before, self._opened, []
            with contextlib.suppress(nats.errors.Error):  # the next comparison finds it
                await self._end(due)

    async def _run_comparisons(self) -> None:
        (pause, _), loop = LOOK_AGAIN_SECONDS, asyncio.get_running_loop()
        while True:
            if not (self._state.current and self._connection.is_connected):
                await asyncio.sleep(pause)
                continue
            self._compare_soon.clear()
            began = loop.time()
            try:
                await self._compare({})
            except nats.errors.Error as error:
                log.warning("connections: %s", error)
            # Comparing everything may take a tenth of the time at most.
            await asyncio.sleep(max(pause, 9 * (loop.time() - began - ANSWER_SECONDS)))
            await _wait_for(self._compare_soon, COMPARE_SECONDS)

    async def _run_servers(self) -> None:
        """Compare everything as soon as a new server answers, or one that did not answer before: it heard of no change.

        Waiting for the known servers alone would also miss the answers of a more distant one forever. A server that is
        slow once is not gone.
        """
        missed = set[str]()
        while True:
            with contextlib.suppress(nats.errors.Error):
                if self._state.current and self._connection.is_connected:
                    answering = await self._answering()
                    missed, gone = self._servers - answering, missed & (self._servers - answering)
                    if gone:
                        self._lose(gone)
                    if new := answering - self._servers:
                        log.info("new nats-servers answer: %s", ", ".join(sorted(new)))
                        self._servers |= new
                        self._distrust()  # _run_comparisons limits the time that comparing takes
            await asyncio.sleep(SERVER_CHECK_SECONDS)

    def _lose(self, servers: set[str]) -> None:
        log.warning("no answer from nats-servers: %s", ", ".join(sorted(servers)))
        self._servers -= servers
        self._distrust()

    async def _answering(self) -> set[str]:
        """The ids of the servers that can be reached now."""
        answers = await request_many(self._connection, "$SYS.REQ.SERVER.PING", b"", seconds=ANSWER_SECONDS)
        return {json.loads(message.data)["server"]["id"] for message in answers}

    async def turn_away(self, place: Place) -> None:
        """Disconnect a client that is still waiting for its authorisation, without a reason that it could misread."""
        await self._cut(place)

    async def is_connected(self, name: str) -> bool:
        """Whether somebody is connected with this name, anywhere."""
        found: dict[Place, tuple[str, float]] = {}
        await self._page({"user": name}, 0, found)
        return any(other == name for other, _ in found.values())

    async def _compare(self, only: dict[str, str]) -> None:
        """Read the whole list, then disconnect: ending connections while reading pages would skip some."""
        began, before = time.monotonic(), set(self._servers)
        found: dict[Place, tuple[str, float]] = {}
        offset = 0
        while await self._page(only, offset, found):
            offset += PAGE
        if not only and self._servers >= before:
            self._index.compared(began, found)
        await self._end((place, name) for place, (name, _) in found.items())

    async def _end(self, connections: Iterable[tuple[Place, str]]) -> None:
        """Disconnect those whose holders have other rights now."""
        outdated = [(place, name) for place, name in connections if self._is_outdated(name)]
        for place, name in outdated:
            await self._kick(place, name)
        if outdated:
            log.info("disconnected %d connections, the first of %s", len(outdated), outdated[0][1])
            await self._connection.flush()

    async def _page(self, only: dict[str, str], offset: int, found: dict[Place, tuple[str, float]]) -> bool:
        """Ask every server for a page of connections: the name of each, and for how many seconds it has been open.

        Returns whether there is another page.
        """
        answers: dict[str, dict[str, Any]] = {}

        def is_last(message: Msg) -> bool:
            answer = json.loads(message.data)
            answers[answer["server"]["id"]] = answer.get("data") or {}
            return bool(self._servers) and answers.keys() >= self._servers

        question = {"acc": self._account, "auth": True, "limit": PAGE, "offset": offset, **only}
        await request_many(
            self._connection,
            "$SYS.REQ.SERVER.PING.CONNZ",
            json.dumps(question).encode(),
            seconds=ANSWER_SECONDS,
            stall=None if self._servers else SETTLE_SECONDS,
            is_last=is_last,
        )
        for server, data in answers.items():
            if connections := data.get("connections"):
                now = datetime.fromisoformat(data["now"])
                for each in connections:
                    age = (now - datetime.fromisoformat(each["start"])).total_seconds()
                    found[Place(server, each["cid"])] = each.get("authorized_user", ""), age
        if missing := self._servers - answers.keys():
            self._lose(missing)
        return any(int(data.get("total", 0)) > offset + PAGE for data in answers.values())

    def _is_outdated(self, name: str) -> bool:
        kind, _, rest = name.partition(".")
        parts = rest.split(".")
        if kind not in ("browser", "project", "runner") or len(parts) != 3 or name in self._postponed:
            return False
        return not self._state.is_valid(Holder(kind, parts[0], parts[1]), name)  # type: ignore[arg-type]

    async def _kick(self, place: Place, name: str) -> None:
        log.debug("disconnect connection %d of %s", place.cid, name)
        self._metrics.disconnected.inc()
        await self._cut(place)

    async def _cut(self, place: Place) -> None:
        # Without a reply subject nats-server ignores the request (events.go, ``zReq``); nobody needs the answer.
        body = json.dumps({"cid": place.cid}).encode()
        await self._connection.publish(f"$SYS.REQ.SERVER.{place.server}.KICK", body, reply=self._connection.new_inbox())


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    """Wait until an event is set, at most ``seconds``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
