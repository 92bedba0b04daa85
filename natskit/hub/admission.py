"""Whose requests are taken: what one asks must not use up what a hub can do for all.

It is looked at before a request is read, when only who asks and how long it is are known: reading costs the most. The
cost is counted as time of the hub's event loop, in which whoever connects waits to be let in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from natskit.rpc import RpcError

IN_FLIGHT = 1000
"""Requests being worked on by one hub; more are refused at once."""
IN_FLIGHT_EACH = 50
"""Requests being worked on for one caller, so that one cannot use up the room of all."""

LARGEST_REQUEST = 1024 * 1024
"""Bytes: a file to write into a project, the largest there is to ask, is no longer over HTTP or with nats-server's own
``max_payload``. Where ``nats_max_payload`` is higher, one request more would hold up a hub for seconds."""

BURST_SECONDS = 1.0
"""The time of a hub that one caller may use at once: some 16,000 small requests."""
CALL_SECONDS = 60e-6
"""What a small request costs, measured (bench, row 4)."""
BYTE_SECONDS = 30e-9
"""What a byte of a request costs at the most, to read JSON of nothing but brackets; text costs a tenth."""
ANSWER_BYTE_SECONDS = 80e-9
"""What a byte of an answer costs, as measured for a list of 1,500 projects."""
PING_SECONDS = 15e-6
"""What a ping costs."""
REFUSAL_SECONDS = 100e-6
"""What is counted for a request that is refused: more than it costs, so that who does not wait gets on the less."""
FLOOD_SECONDS = 20.0
"""Who has used up as much time to come does not listen to refusals: 10 s of as many requests as can be sent."""
LONGEST_SECONDS = 60.0
"""Nobody is refused for longer than this after their last request: not for all that was asked with a stolen session."""
HOLD_OFF_SECONDS, LONGEST_HOLD_OFF = 10.0, 160.0
"""How long somebody who floods is not let in by the hub that has noticed; twice as long each time again."""
FORGOTTEN_SECONDS = 600.0
"""Who has not flooded for so long has not flooded before."""
MOST_CALLERS = 10_000


class Admission:
    """The requests that one hub works on, and what each caller has used. Keys name callers."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``share`` is the part of the hub's time that one caller may use for long."""
        self._share = share
        self._burst = BURST_SECONDS / share
        self._clock = clock
        self._in_flight = 0
        self._each: dict[str, int] = {}
        self._paid: dict[str, float] = {}
        """Until when, at its share, each caller pays for what it has used."""
        self._floods: dict[str, tuple[float, float]] = {}
        """When each of those who flooded did so last, and for how long they were held off."""

    def enter(self, key: str, size: int) -> RpcError | None:
        """Take a request of ``size`` bytes, until :meth:`leave`; or why not."""
        if size > LARGEST_REQUEST:
            self.charge(key, REFUSAL_SECONDS + size * BYTE_SECONDS)
            return RpcError(
                "limit",
                f"the request has {size} bytes; a hub takes at most {LARGEST_REQUEST}: ask for less at once",
                size=size,
                limit=LARGEST_REQUEST,
            )
        wait = self._wait(key)
        if wait > 0:
            self.charge(key, REFUSAL_SECONDS + size * BYTE_SECONDS)
            seconds = math.ceil(wait)
            return RpcError(
                "unavailable", f"you ask more than a hub can do for one; try again in {seconds} s", retry_after=seconds
            )
        mine = self._each.get(key, 0)
        if self._in_flight >= IN_FLIGHT or mine >= IN_FLIGHT_EACH:
            whose = "of yours" if mine >= IN_FLIGHT_EACH else "here"
            self.charge(key, REFUSAL_SECONDS)
            return RpcError(
                "unavailable", f"too many requests {whose} are being worked on; try again in a moment", retry_after=1
            )
        self.charge(key, CALL_SECONDS + size * BYTE_SECONDS)
        self._each[key] = mine + 1
        self._in_flight += 1
        return None

    def is_flooding(self, key: str) -> bool:
        """Whether a caller asks on and on in spite of refusals."""
        return self._wait(key) > FLOOD_SECONDS

    def hold_off_seconds(self, key: str) -> float:
        """How long somebody who floods now is to be held off."""
        now = self._clock()
        if len(self._floods) >= MOST_CALLERS:
            self._floods = {k: flood for k, flood in self._floods.items() if now - flood[0] < FORGOTTEN_SECONDS}
        last, seconds = self._floods.get(key, (-FORGOTTEN_SECONDS, 0.0))
        again = now - last < FORGOTTEN_SECONDS
        seconds = min(2 * seconds, LONGEST_HOLD_OFF) if again else HOLD_OFF_SECONDS
        self._floods[key] = now, seconds
        return seconds

    def leave(self, key: str) -> None:
        """A request that was taken has its answer."""
        self._in_flight -= 1
        left = self._each.pop(key) - 1
        if left:
            self._each[key] = left

    def charge(self, key: str, seconds: float) -> None:
        """Count some of the hub's time to a caller."""
        now = self._clock()
        if len(self._paid) >= MOST_CALLERS:
            self._paid = {caller: until for caller, until in self._paid.items() if until > now}
        until = max(now, self._paid.get(key, 0.0)) + seconds / self._share
        self._paid[key] = min(until, now + self._burst + LONGEST_SECONDS)

    def _wait(self, key: str) -> float:
        return self._paid.get(key, 0.0) - self._clock() - self._burst
