"""Admission control: which requests a hub takes, so that one caller cannot use up a hub that works for all.

The hub decides before it reads a request, when it knows only the caller and the size: reading costs the most. It counts
the cost as time of its event loop, because clients that connect wait for the same loop to authorise them.

The caller of :meth:`Admission.enter`, ``_enter`` in ``natskit/hub/api/dispatch.py``, counts each refusal in the metric
``natskit_hub_refused_requests_total``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from natskit.rpc import RpcError

IN_FLIGHT = 1000
"""Requests in flight in one hub. It refuses more at once."""
IN_FLIGHT_EACH = 50
"""Requests in flight of one caller, so that one caller cannot take all places."""

LARGEST_REQUEST = 1024 * 1024
"""Bytes of a request. The largest requests write files into projects; over HTTP, and with the default ``max_payload``
of nats-server, they are no longer than this. With a higher ``nats_max_payload``, one request could hold up a hub for
seconds."""

BURST_SECONDS = 1.0
"""Seconds of a hub that one caller may use in a burst: some 16,000 small requests."""
CALL_SECONDS = 60e-6
"""Cost of a small request, measured (bench, row 4)."""
BYTE_SECONDS = 30e-9
"""The most that a byte of a request costs: JSON of nothing but brackets. Text costs a tenth."""
ANSWER_BYTE_SECONDS = 80e-9
"""Cost of a byte of an answer, measured for a list of 1,500 projects."""
FILE_SECONDS = 1e-3
"""Cost of a request for a file over HTTP, besides its bytes: about three requests to the project."""
FILE_BYTE_SECONDS = 2.5e-9
"""Cost of a byte of a file that the hub passes on over HTTP, measured for 200 MB each way (2.2 and 1.7 ns)."""
REFUSAL_SECONDS = 100e-6
"""Charge for a refused request: more than it costs, so that a caller that does not wait gets less done."""
FLOOD_SECONDS = 20.0
"""A caller that owes this many seconds beyond its burst ignores refusals: 10 s of requests at full speed."""
LONGEST_SECONDS = 60.0
"""The longest that a caller is refused after its last request, whatever was asked with a stolen session."""
BLOCK_SECONDS, LONGEST_BLOCK_SECONDS = 10.0, 160.0
"""How long the hub that noticed a flood blocks its caller; twice as long each time, up to the second value."""
FORGOTTEN_SECONDS = 600.0
"""After this long without a flood, the next one counts as the first."""
MOST_CALLERS = 10_000


class Admission:
    """The requests in flight in one hub, and the time each caller has used. Keys name callers."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``share`` is the part of the hub's time that one caller may use in the long run."""
        self._share = share
        self._burst = BURST_SECONDS / share
        self._clock = clock
        self._in_flight = 0
        self._each: dict[str, int] = {}
        self._paid: dict[str, float] = {}
        """When each caller, at its share, will have paid for the time it used."""
        self._floods: dict[str, tuple[float, float]] = {}
        """When each flooding caller was last blocked, and for how long."""

    def enter(self, key: str, size: int) -> RpcError | None:
        """Take a request of ``size`` bytes, until :meth:`leave`. Returns the error if it is refused, else ``None``."""
        if size > LARGEST_REQUEST:
            self.charge(key, REFUSAL_SECONDS + size * BYTE_SECONDS)
            return RpcError(
                "limit",
                f"the request has {size} bytes; a hub takes at most {LARGEST_REQUEST}: split it",
                size=size,
                limit=LARGEST_REQUEST,
            )
        wait = self._wait(key)
        if wait > 0:
            self.charge(key, REFUSAL_SECONDS + size * BYTE_SECONDS)
            seconds = math.ceil(wait)
            return RpcError("unavailable", f"rate limit exceeded; retry in {seconds} s", retry_after=seconds)
        mine = self._each.get(key, 0)
        if self._in_flight >= IN_FLIGHT or mine >= IN_FLIGHT_EACH:
            whose = " of yours" if mine >= IN_FLIGHT_EACH else ""
            self.charge(key, REFUSAL_SECONDS)
            return RpcError("unavailable", f"too many requests{whose} are in flight; retry in a moment", retry_after=1)
        self.charge(key, CALL_SECONDS + size * BYTE_SECONDS)
        self._each[key] = mine + 1
        self._in_flight += 1
        return None

    def is_flooding(self, key: str) -> bool:
        """Whether a caller ignores refusals."""
        return self._wait(key) > FLOOD_SECONDS

    def block_seconds(self, key: str) -> float:
        """How long to block a caller that floods now."""
        now = self._clock()
        if len(self._floods) >= MOST_CALLERS:
            self._floods = {k: flood for k, flood in self._floods.items() if now - flood[0] < FORGOTTEN_SECONDS}
        last, seconds = self._floods.get(key, (-FORGOTTEN_SECONDS, 0.0))
        again = now - last < FORGOTTEN_SECONDS
        seconds = min(2 * seconds, LONGEST_BLOCK_SECONDS) if again else BLOCK_SECONDS
        self._floods[key] = now, seconds
        return seconds

    def leave(self, key: str) -> None:
        """A request that was taken has been answered."""
        self._in_flight -= 1
        left = self._each.pop(key) - 1
        if left:
            self._each[key] = left

    def charge(self, key: str, seconds: float) -> None:
        """Charge a caller for some of the hub's time."""
        now = self._clock()
        if len(self._paid) >= MOST_CALLERS:
            self._paid = {caller: until for caller, until in self._paid.items() if until > now}
        until = max(now, self._paid.get(key, 0.0)) + seconds / self._share
        self._paid[key] = min(until, now + self._burst + LONGEST_SECONDS)

    def pause(self, key: str) -> float:
        """How long a caller that sends or reads a file has to wait for its next part. Half of its burst stays for its
        requests, which are refused instead."""
        return self._wait(key) + self._burst / 2

    def _wait(self, key: str) -> float:
        return self._paid.get(key, 0.0) - self._clock() - self._burst
