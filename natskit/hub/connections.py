"""Connections that no longer have what their holder would get now are cut; their clients come back by themselves.

A connection's name (``authorized_user``) says who holds it and which rights it got. Right after a change the names
that were right before it are looked for, so the usual case costs one small question; shortly after, and regularly,
all connections are compared. Every hub does so, whoever authorised what. So a right that was taken away is gone when

- *the hub that authorised is dead*: any other hub cuts; the next one to start compares everything first;
- *another hub authorises at that moment, from an older view*: all hubs compare everything again :data:`AGAIN_SECONDS`
  after a change. A view that is older than that is noticed to be so within 1.5 s (:mod:`natskit.hub.bucket`), its hub
  does not authorise until it has caught up, and what it then learns are changes, which it acts on itself;
- *a kick is lost*: the same comparisons find the connection once more;
- *a nats-server is cut off*: nobody can reach it, so its clients keep what they had, among themselves. Who comes to it
  anew is authorised only by a hub on its side, and only while that takes its view for current. Where the stream's
  leader was cut off too, it steps down 10 to 20 s later (``raft.go``, ``lostQuorumInterval``), which the hub notices
  after :data:`~natskit.hub.bucket.SILENT_SECONDS` more: about half a minute in all. When the
  server is back, which is looked for each second, all connections are compared;
- *no hub runs*, or all that fails: the authorisation itself ends after ``authorization_ttl_seconds`` (900 s, and up to
  a tenth more), and nats-server then drops the connection without asking anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable

import nats.errors
from nats.aio.msg import Msg

from natskit.connection import Connection
from natskit.hub.metrics import Metrics
from natskit.hub.state import Holder, State

log = logging.getLogger(__name__)

GRACE_SECONDS = 0.1
"""Between a changed grant and the cut: whoever made the change gets the answer to it on the connection it asked on."""
ENDED_SECONDS = 0.5
"""Likewise for whoever changes the password over NATS, who cannot come back for the answer."""
BACK_SECONDS = 0.25
"""By then a client that was cut is back: natskit's clients wait for 0.1 s, and connecting takes a few milliseconds."""
AGAIN_SECONDS = (0.5, 2.0)
"""After a change: by the first every hub's view has it, and by the second each hub knows if its own has not
(:mod:`natskit.hub.bucket` looks every half second); what was authorised meanwhile is found."""
EVERY_SECONDS = 30.0
NEW_SECONDS = 1.0
"""How often it is looked which servers there are; one that was cut off has connections nobody could cut."""
ANSWER_SECONDS = 0.5
SETTLE_SECONDS = 0.05
"""While it is not known yet how many servers will answer, those that are this much later than the first are missed."""
PAGE = 1024
FEW = 64
"""More outdated names than this are not asked for one by one."""


class Connections:
    """Lists and cuts connections, through services of the NATS account SYS that PLATFORM imports."""

    def __init__(self, connection: Connection, state: State, platform_account: str, metrics: Metrics) -> None:
        self._connection = connection
        self._state = state
        self._account = platform_account
        self._metrics = metrics
        self._outdated: set[str] = set()
        self._spared: set[str] = set()
        """Outdated, but not to be cut just yet, by the comparison of all connections neither."""
        self._locked_out: set[str] = set()
        """Not to be spared for what else ends with it: the sessions of a disabled account are ended right after."""
        self._servers: set[str] = set()
        """Those that answered lately; an answer is waited for from all of them."""
        self._back_at: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._all_soon = asyncio.Event()
        self._lock = asyncio.Lock()

    def cut_now(self, names: set[str]) -> None:
        """Connections with these names are outdated from now on: somebody was locked out."""
        if names:
            self._locked_out |= names
            asyncio.get_running_loop().call_later(ENDED_SECONDS, self._locked_out.difference_update, names)
            self._outdate(names)

    def _outdate(self, names: set[str]) -> None:
        if not names:
            return
        self._spared -= names
        self._outdated |= names
        self._wake.set()
        loop = asyncio.get_running_loop()
        for holder in {name.split(".")[1] for name in names}:
            self._back_at[holder] = loop.time() + BACK_SECONDS
            loop.call_later(BACK_SECONDS, self._back, holder)

    async def wait_back(self, holder: str) -> None:
        """Give a holder whose connection was just cut the time to come back, so that it hears what it is told."""
        left = self._back_at.get(holder, 0) - asyncio.get_running_loop().time()
        if left > 0:
            await asyncio.sleep(left)

    def _back(self, holder: str) -> None:
        if self._back_at.get(holder, 0) <= asyncio.get_running_loop().time() + 0.001:
            self._back_at.pop(holder, None)

    def cut_ended(self, names: set[str]) -> None:
        """The session of these connections has ended. Who signs out is cut at once by the hub that was asked to."""
        self._cut_after(ENDED_SECONDS, names)

    def cut_soon(self, names: set[str]) -> None:
        """Connections with these names are outdated from now on: what their holders may use has changed."""
        self._cut_after(GRACE_SECONDS, names)

    def _cut_after(self, seconds: float, names: set[str]) -> None:
        names = names - self._locked_out
        if names:
            self._spared |= names
            asyncio.get_running_loop().call_later(seconds, self._outdate, names)

    async def run(self) -> None:
        """Cut what is outdated, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in (self._run_few(), self._run_all(), self._run_new()):
                group.create_task(work)

    async def cut_outdated(self) -> None:
        """Cut what recent changes outdated, now; returns when the servers were told."""
        async with self._lock:
            names, self._outdated = self._outdated, set()
            if not names or not self._state.current:
                self._outdated |= names
                return
            if len(names) > FEW:
                await self._compare({})
            else:
                await asyncio.gather(*(self._compare({"user": name}) for name in names))

    async def _run_few(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.cut_outdated()
            except nats.errors.Error as error:
                log.warning("connections: %s", error)
            self._all_soon.set()

    async def _run_all(self) -> None:
        soon, later = AGAIN_SECONDS
        loop = asyncio.get_running_loop()
        once_more = False
        while True:
            if not (self._state.current and self._connection.is_connected):
                await asyncio.sleep(soon)
                continue
            began = loop.time()
            try:
                await self._compare({})
            except nats.errors.Error as error:
                log.warning("connections: %s", error)
            # Comparing everything may take at most a tenth of the time.
            await asyncio.sleep(max(soon, 9 * (loop.time() - began - ANSWER_SECONDS)))
            changed = await _is_set(self._all_soon, later - soon if once_more else EVERY_SECONDS)
            once_more = changed
            if changed:
                self._all_soon.clear()
                await asyncio.sleep(soon)

    async def _run_new(self) -> None:
        """Compare everything as soon as a server is there that was not, or did not answer: it was told of no change.

        Whoever waits for the known servers alone would also go on missing the answers of one that is further away.
        """
        while True:
            with contextlib.suppress(nats.errors.Error):
                well = self._state.current and self._connection.is_connected
                if well and (new := await self._answering() - self._servers):
                    log.info("nats-servers are there: %s", ", ".join(sorted(new)))
                    self._servers |= new
                    self._all_soon.set()  # not here: there it is seen to that this takes a part of the time alone
            await asyncio.sleep(NEW_SECONDS)

    async def _answering(self) -> set[str]:
        """The servers that can be reached now."""
        found: set[str] = set()

        async def on_answer(message: Msg) -> None:
            found.add(json.loads(message.data)["server"]["id"])

        inbox = self._connection.new_inbox()
        subscription = await self._connection.subscribe(inbox, cb=on_answer)
        try:
            await self._connection.publish("$SYS.REQ.SERVER.PING", b"", reply=inbox)
            await asyncio.sleep(ANSWER_SECONDS)
        finally:
            await subscription.unsubscribe()
        return found

    async def is_connected(self, name: str) -> bool:
        """Whether somebody is connected with this name, anywhere."""
        found: list[tuple[str, int, str]] = []
        await self._page({"user": name}, 0, lambda other: other == name, found)
        return bool(found)

    async def _compare(self, only: dict[str, str]) -> None:
        """Read the whole list, then cut: cutting while turning pages would make some slip through."""
        outdated: list[tuple[str, int, str]] = []
        offset = 0
        while await self._page(only, offset, self._is_outdated, outdated):
            offset += PAGE
        for server, cid, name in outdated:
            await self._cut(server, cid, name)
        if outdated:
            log.info("cut %d connections, the first of %s", len(outdated), outdated[0][2])
            await self._connection.flush()

    async def _page(
        self, only: dict[str, str], offset: int, wanted: Callable[[str], bool], found: list[tuple[str, int, str]]
    ) -> bool:
        """Ask every server for a page of connections and note those that are wanted; whether there is another."""
        more = False
        answered: set[str] = set()
        complete = asyncio.Event()

        async def on_answer(message: Msg) -> None:
            nonlocal more
            answer = json.loads(message.data)
            server, data = answer["server"]["id"], answer.get("data") or {}
            more |= int(data.get("total", 0)) > offset + PAGE
            for connection in data.get("connections") or []:
                name = connection.get("authorized_user", "")
                if wanted(name):
                    found.append((server, connection["cid"], name))
            answered.add(server)
            if not self._servers:
                asyncio.get_running_loop().call_later(SETTLE_SECONDS, complete.set)
            elif answered >= self._servers:
                complete.set()

        inbox = self._connection.new_inbox()
        subscription = await self._connection.subscribe(inbox, cb=on_answer)
        question = {"acc": self._account, "auth": True, "limit": PAGE, "offset": offset, **only}
        await self._connection.publish("$SYS.REQ.SERVER.PING.CONNZ", json.dumps(question).encode(), reply=inbox)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await complete.wait()
        finally:
            await subscription.unsubscribe()
        if missing := self._servers - answered:
            log.warning("nats-servers do not answer: %s", ", ".join(sorted(missing)))
        self._servers &= answered
        return more

    def _is_outdated(self, name: str) -> bool:
        kind, _, rest = name.partition(".")
        parts = rest.split(".")
        if kind not in ("browser", "project", "runner") or len(parts) != 3 or name in self._spared:
            return False
        return not self._state.is_valid(Holder(kind, parts[0], parts[1]), name)  # type: ignore[arg-type]

    async def _cut(self, server: str, cid: int, name: str) -> None:
        log.debug("cut connection %d of %s", cid, name)
        self._metrics.cut.inc()
        # Without a reply subject nats-server ignores the request (events.go, ``zReq``); nobody needs the answer.
        await self._connection.publish(
            f"$SYS.REQ.SERVER.{server}.KICK", json.dumps({"cid": cid}).encode(), reply=self._connection.new_inbox()
        )


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Whether an event comes within so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
