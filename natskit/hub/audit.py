"""The audit: who signed in, who was refused and why, who shared what with whom, which administrator did what.

Every event is one message of the JetStream stream ``AUDIT``, which nobody but the control machine can make, change or
read: hubs may publish to it (natskit/permissions.py, natskit/streams.py). The stream refuses the deletion of a
message and a purge (``deny_delete``, ``deny_purge``: once set, nats-server does not take them back), headers that
replace earlier messages (``allow_rollup_hdrs``), and messages that expire by themselves (``allow_msg_ttl``).

Nothing that people ask for waits for the audit or fails with it. :meth:`Audit.record` puts an event into a bounded
queue; a task writes it, with an acknowledgement from JetStream, again and again until it is stored. So what is lost is

- what a hub that is killed had recorded within the last milliseconds, or since JetStream cannot be written to;
- what does not fit into the queue when JetStream is away for long. It is counted in ``/metrics`` and by an event
  ``events_lost`` once events can be written again.

The ``id`` of an event counts the events of one run of a hub without a gap, so what is missing in between shows.
What anybody can repeat at will (a refused sign-in) is written once a minute for each source, then counted, and a
bounded number a minute in all: it must not push out what matters, since the stream drops its oldest when it is full.
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

from natskit.connection import Connection
from natskit.errors import StateError
from natskit.hub.metrics import Metrics
from natskit.hub.projects import iso
from natskit.permissions import AUDIT_STREAM

log = logging.getLogger(__name__)

Event = dict[str, Any]

QUEUE = 10_000
"""Events waiting for JetStream in one hub; some 5 MB."""
BATCH = 64
"""Events on their way to JetStream at the same time: it syncs them together."""
WRITE_SECONDS = 3.0
LONGEST_PAUSE = 5.0
STOP_SECONDS = 2.0
MINUTE = 60.0
STRANGERS = 20
"""Events of a kind, a minute and hub, that those who are not signed in can cause; others are counted. So many things as
well that one account, project or runner tries in vain: what does not exist can be named without end."""
REPEATS = 5
"""Events a minute and hub of one account, project or runner doing one thing to the same account or project; more are
counted."""
NAMED = 1000
"""Accounts and projects that one account may do one thing to in a minute and hub, and each is named; more are counted.
Some 300 KB: who adds decoys hides nothing among fewer, and does not fill the stream with more."""
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
        """Note an event that concerns an account. Never waits and never fails; fields without a value are left out."""
        self._put({"kind": kind, "outcome": outcome, "account": account, **fields})

    def record_of_stranger(
        self, kind: str, *, reason: str, account: str = "-", address: str = "", **fields: Any
    ) -> None:
        """Note that somebody was refused who may try as often as they like: once a minute for each address, account
        and reason."""
        event = {"kind": kind, "outcome": "refused", "account": account, "reason": reason, "address": address, **fields}
        if self._strangers.take((kind,), (reason, account, address), event):
            self._put(event)

    def record_of_account(self, kind: str, *, account: str, outcome: str = "ok", **fields: Any) -> None:
        """Note what a signed-in account did, :data:`REPEATS` times a minute for each that it was done to."""
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
        """Write what is recorded, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._summarise())
            group.create_task(self._write(connection))

    async def finish(self, connection: Connection) -> None:
        """Write what is left, for a short time; :meth:`run` has ended."""
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
                log.warning("the audit waits: %s", str(error) or type(error).__name__)
                await asyncio.sleep(pause)

    async def _write_some(self, connection: Connection) -> None:
        """Write the oldest events; those that were not acknowledged stay. Raises what the first of them met."""
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
    """Lets the first ``each`` events of a key through in a minute, and ``total`` keys of a group; counts the rest.

    A group is a kind of event, and whatever else its events have in common.
    """

    def __init__(self, each: int, total: int) -> None:
        self._each, self._total = each, total
        self._seen: dict[tuple[str, ...], _Repeated] = {}
        self._beyond: dict[tuple[str, ...], _Repeated] = {}
        self._keys: Counter[tuple[str, ...]] = Counter()

    def take(self, group: tuple[str, ...], key: tuple[str, ...], event: Event) -> bool:
        """Whether the event is to be written now."""
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
        """What was only counted since the last call, an event for each key."""
        repeated = [(r, r.times - self._each) for r in self._seen.values()]
        beyond = [(r, r.times) for r in self._beyond.values()]
        self._seen, self._beyond, self._keys = {}, {}, Counter()
        return [r.event | {"count": count} for r, count in (*repeated, *beyond) if count > 0]


@dataclass
class _Repeated:
    event: Event = field(default_factory=dict)
    times: int = 0


async def _store(connection: Connection, subject: str, identifier: str, body: bytes) -> bool:
    """Whether JetStream has the event; one it will never take is given up. Raises when it may work later."""
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
        log.error("an audit event was given up: %s has %d bytes", subject, len(body))
        return False
    raise StateError(f"the audit could not be written: {error.get('description')}")


def _encode(event: Event) -> bytes:
    plain = {key: _plain(value) for key, value in event.items() if value not in (None, "")}
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """What is safe to store and to print: no control characters, which could act on a terminal, and not without end."""
    if isinstance(value, bool | int | float):
        return value
    return "".join(c if c.isprintable() else "?" for c in str(value)[:LONGEST])


def _token(text: str) -> str:
    """A token of a subject."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)[:64] or "-"
