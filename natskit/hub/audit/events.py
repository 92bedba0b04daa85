"""The audit: who signed in, who was refused and why, who shared what with whom, and what administrators did.

Every event is a message in the JetStream stream ``AUDIT``. Only the control machine can create, change or read the
stream; hubs may publish to it (natskit/bus/permissions.py, natskit/ops/stream_provisioning.py). The stream refuses the
deletion of a message and a purge (``deny_delete``, ``deny_purge``: once set, nats-server does not take them back),
headers that replace earlier messages (``allow_rollup_hdrs``), and messages that expire by themselves
(``allow_msg_ttl``).

No request waits for the audit, or fails with it. :meth:`Audit.record` puts an event into a bounded queue. A task writes
it, and repeats that until JetStream acknowledges it. So events are lost only if

- a hub is killed: those of the last milliseconds, or since JetStream became unavailable;
- JetStream is away so long that the queue is full. ``/metrics`` counts these events, and so does an event
  ``events_lost`` once events can be written again.

The ``id`` of an event counts the events of one run of a hub, so a gap shows that events are missing.
Events that anybody can repeat at will, such as refused sign-ins, are written once a minute for each source and then
counted, up to a limit a minute in all: they must not push out other events, since a full stream drops its oldest.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import nats.errors

from natskit.bus.connection import Connection
from natskit.bus.permissions import AUDIT_STREAM
from natskit.errors import StateError
from natskit.hub.metrics import Metrics
from natskit.hub.timestamp import iso
from natskit.process.lifecycle import run_all

log = logging.getLogger(__name__)

Event = dict[str, Any]

QUEUE = 10_000
"""Events waiting for JetStream in one hub; some 5 MB."""
BATCH = 64
"""Events sent to JetStream at the same time: it syncs them together."""
WRITE_SECONDS = 3.0
LONGEST_PAUSE = 5.0
STOP_SECONDS = 2.0
MINUTE = 60.0
STRANGERS = 20
"""Events a minute and hub, for each kind, that clients without a session can cause; more are counted. The same limit
holds for failed calls of one account, project or runner: there is no end of names that do not exist."""
REPEATS = 5
"""Events a minute and hub for one account, project or runner that repeats one action on the same target; more are
counted."""
NAMED = 1000
"""Targets a minute and hub that are named for one action of one account; more are counted. Some 300 KB: enough that an
attacker cannot hide among decoys, and too little to fill the stream."""
LONGEST = 256
"""Characters of a text in an event: an address, a user agent, an e-mail."""
_TOO_LARGE = 10054


class Audit:
    """The audit as one hub writes it."""

    def __init__(self, hub: str, metrics: Metrics) -> None:
        self._hub = hub
        self._run = secrets.token_hex(4)
        self._count = 0
        self._metrics = metrics
        self._waiting: deque[tuple[str, str, bytes]] = deque()
        self._something = asyncio.Event()
        self._lost = 0
        self._strangers = Throttle(each=1, total=STRANGERS)
        self._accounts = Throttle(each=REPEATS, total=NAMED)
        self._failures = Throttle(each=REPEATS, total=STRANGERS)

    def record(self, kind: str, *, account: str = "-", outcome: str = "ok", **fields: Any) -> None:
        """Record an event about an account. Never waits and never fails. Fields without a value are left out."""
        self._put({"kind": kind, "outcome": outcome, "account": account, **fields})

    def record_of_stranger(
        self, kind: str, *, reason: str, account: str = "-", address: str = "", **fields: Any
    ) -> None:
        """Record a refusal that anybody can cause at will: once a minute for each address, account and reason."""
        event = {"kind": kind, "outcome": "refused", "account": account, "reason": reason, "address": address, **fields}
        if self._strangers.take((kind,), (reason, account, address), event):
            self._put(event)

    def record_of_account(self, kind: str, *, account: str, outcome: str = "ok", **fields: Any) -> None:
        """Record an action of a signed-in account: :data:`REPEATS` times a minute for each target."""
        event = {"kind": kind, "outcome": outcome, "account": account, **fields}
        whom = tuple(str(fields.get(name) or "") for name in ("target", "email", "project_id", "session_id"))
        who = account, str(fields.get("by") or "")
        if outcome == "ok":
            named = self._accounts.take((kind, outcome, *who), whom, event)
        else:
            named = self._failures.take(who, (kind, outcome, *whom), event)
        if named:
            self._put(event)

    def gauges(self) -> dict[str, float]:
        """For Prometheus."""
        return {"natskit_hub_audit_waiting": float(len(self._waiting))}

    async def run(self, connection: Connection) -> None:
        """Write recorded events, until cancelled."""
        await run_all([self._summarise(), self._write(connection)])

    async def finish(self, connection: Connection) -> None:
        """Write the remaining events, for a short time, after :meth:`run` has ended."""
        self._put_summaries()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                while self._waiting:
                    await self._write_some(connection)
        except (TimeoutError, StateError, nats.errors.Error):
            log.error("the audit lost its last %d events: JetStream did not take them", len(self._waiting))

    # ----

    def _put(self, event: Event) -> None:
        self._count += 1
        if len(self._waiting) >= QUEUE:
            self._lost += 1
            self._metrics.audit.labels("dropped").inc()
            return
        identifier = f"{self._hub}.{self._run}.{self._count}"
        body = _encode({"time": iso(time.time()), "id": identifier, **event, "hub": self._hub})
        subject = f"audit.{_token(event['kind'])}.{_token(event['account'])}"
        self._waiting.append((subject, identifier, body))
        self._something.set()

    def _put_summaries(self) -> None:
        for throttle in (self._strangers, self._accounts, self._failures):
            for event in throttle.due():
                self._put(event)

    async def _summarise(self) -> None:
        while True:
            await asyncio.sleep(MINUTE)
            self._put_summaries()

    async def _write(self, connection: Connection) -> None:
        pause = 0.0
        while True:
            await self._something.wait()
            try:
                await self._write_some(connection)
                pause = 0.0
            except (StateError, nats.errors.Error, OSError, ValueError) as error:
                pause = min(LONGEST_PAUSE, 2 * pause + 0.1)
                log.warning("the audit cannot be written, trying again: %s", str(error) or type(error).__name__)
                await asyncio.sleep(pause)

    async def _write_some(self, connection: Connection) -> None:
        """Write the oldest events. Keeps those that were not acknowledged, and raises the first error."""
        batch = [self._waiting[n] for n in range(min(BATCH, len(self._waiting)))]
        results = await asyncio.gather(*(_store(connection, *event) for event in batch), return_exceptions=True)
        kept: list[tuple[str, str, bytes]] = []
        failure: BaseException | None = None
        for event, result in zip(batch, results, strict=True):
            self._waiting.popleft()
            if isinstance(result, BaseException):
                kept.append(event)
                failure = failure or result
            else:
                self._metrics.audit.labels("stored" if result else "dropped").inc()
        self._waiting.extendleft(reversed(kept))
        if failure is not None:
            raise failure
        if self._lost:
            lost, self._lost = self._lost, 0
            self.record("events_lost", outcome="failed", count=lost)
        if not self._waiting:
            self._something.clear()


class Throttle:
    """Passes the first ``each`` events of a key, for ``total`` keys of a group, in a minute; counts the rest.

    A group is a kind of event, with whatever else its events have in common.
    """

    def __init__(self, each: int, total: int) -> None:
        self._each, self._total = each, total
        self._seen: dict[tuple[str, ...], _Repeated] = {}
        self._beyond: dict[tuple[str, ...], _Repeated] = {}
        self._keys: Counter[tuple[str, ...]] = Counter()

    def take(self, group: tuple[str, ...], key: tuple[str, ...], event: Event) -> bool:
        """Whether to write the event now."""
        found = self._seen.get(group + key)
        if found is None and self._keys[group] >= self._total:
            account = event.get("account", "-") if event.get("account") in group else "-"
            kind = event["kind"] if event["kind"] in group else "calls"
            plain = {"kind": kind, "outcome": event["outcome"], "account": account}
            if event.get("by") in group:
                plain["by"] = event["by"]
            self._beyond.setdefault(group, _Repeated(plain | {"reason": "more than are named"})).times += 1
            return False
        if found is None:
            self._keys[group] += 1
            found = self._seen[group + key] = _Repeated()
        found.times += 1
        if found.times <= self._each:
            return True
        found.event = event
        return False

    def due(self) -> list[Event]:
        """An event for each key that was only counted since the last call."""
        repeated = [(r, r.times - self._each) for r in self._seen.values()]
        beyond = [(r, r.times) for r in self._beyond.values()]
        self._seen, self._beyond, self._keys = {}, {}, Counter()
        return [r.event | {"count": count} for r, count in (*repeated, *beyond) if count > 0]


@dataclass
class _Repeated:
    event: Event = field(default_factory=dict)
    times: int = 0


async def _store(connection: Connection, subject: str, identifier: str, body: bytes) -> bool:
    """Whether JetStream stored the event. False for one that it will never take; raises if a later attempt may work."""
    try:
        answer = await connection.request(subject, body, timeout=WRITE_SECONDS, headers={"Nats-Msg-Id": identifier})
    except nats.errors.NoRespondersError:
        raise StateError(
            f"the stream {AUDIT_STREAM} does not answer: a deploy makes it, or JetStream is away"
        ) from None
    error = json.loads(answer.data).get("error")
    if not error:
        return True
    if error.get("err_code") == _TOO_LARGE:
        log.error("an audit event is too large and was dropped: %s has %d bytes", subject, len(body))
        return False
    raise StateError(f"the audit could not be written: {error.get('description')}")


def _encode(event: Event) -> bytes:
    plain = {key: _plain(value) for key, value in event.items() if value not in (None, "")}
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """A value that is safe to store and print: of limited length, without control characters, which act on
    terminals."""
    if isinstance(value, bool | int | float):
        return value
    return "".join(c if c.isprintable() else "?" for c in str(value)[:LONGEST])


def _token(text: str) -> str:
    """A token of a subject."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)[:64] or "-"
