"""The auth callout: answers nats-server's question whether a client of the NATS account AUTH may connect, and as whom.

An answer needs no I/O: it comes from the view of the state, and costs two signatures. When more clients ask than the
hub can answer in time, it turns those away that waited longest: it has nats-server disconnect them, which costs next to
nothing. Any answer but a JWT would tell them "Authorization Violation", and no answer "Authentication Timeout" after
three seconds; a client that is just disconnected tries again by itself, after a random pause.

While the view catches up (:mod:`natskit.hub.state.bucket`), a hub

- lets those in whom its view lets in, with the rights of its view, if the leader has said within
  :data:`~natskit.hub.state.bucket.RECENT_SECONDS` that the view had everything, and nobody has told the hub since that
  it lacks something. They are looked at again when the view has caught up
  (:mod:`natskit.hub.auth.disconnect`);
- refuses nobody: who has no rights in the view may have got some meanwhile. They wait for the view, and are turned away
  if that takes longer than :data:`PATIENCE_SECONDS`. Only what does not depend on the view is refused at once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from natskit import json_text
from natskit.bus.connection import Connection
from natskit.errors import ClaimsError, StateError
from natskit.hub.audit.events import Audit
from natskit.hub.auth.connection_index import Place
from natskit.hub.auth.tokens import Tokens
from natskit.hub.metrics import Metrics
from natskit.hub.state.bucket import LAG_SECONDS
from natskit.hub.state.view import State
from natskit.identity import nkey
from natskit.process.lifecycle import spawn

log = logging.getLogger(__name__)

SUBJECT = "$SYS.REQ.USER.AUTH"
QUEUE = "hub"

PATIENCE_SECONDS = 1.5
"""How long a callout may wait here. nats-server waits for ``nats_auth_timeout``: three seconds."""
YOUNG_SECONDS = 3
"""A JWT this young may be newer than this hub's view."""
BUSY_LOG_SECONDS = 5.0
"""The pause between two lines of the log that say how many clients were turned away."""
SLICE_SECONDS = 0.005
"""How long callouts may keep the event loop busy before it serves something else."""
_MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError)
_STANDARD_ALPHABET = str.maketrans("-_", "+/")


class Callout:
    """Answers the callouts of one hub."""

    def __init__(
        self,
        connection: Connection,
        state: State,
        tokens: Tokens,
        metrics: Metrics,
        audit: Audit,
        turn_away: Callable[[Place], Awaitable[None]],
    ) -> None:
        self._turn_away = turn_away
        self._turned_away = 0
        self._connection = connection
        self._state = state
        self._tokens = tokens
        self._metrics = metrics
        self._audit = audit
        self._cost = 0.001
        self._slice_began = 0.0
        self._subscription: Subscription | None = None
        self._late: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start answering. The state must be current."""
        self._subscription = await self._connection.subscribe(
            SUBJECT, queue=QUEUE, cb=self._on_request, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await self._connection.flush()

    async def stop(self) -> None:
        """Leave new callouts to the other hubs, and answer those that have arrived."""
        if self._subscription is not None:
            await self._subscription.drain()  # type: ignore[no-untyped-call]

    async def _on_request(self, message: Msg) -> None:
        began = time.perf_counter()
        assert self._subscription is not None
        if self._subscription.pending_msgs * self._cost > PATIENCE_SECONDS:
            await self._shed(message)
            return
        if not self._state.recent:
            self._later(self._answer_when_current(message))
            return
        answer = self._answer(message.data, patient=True)
        if answer is None:
            self._later(self._answer_when_known(message))
        else:
            await message.respond(answer)
        done = time.perf_counter()
        self._cost += (done - began - self._cost) / 50
        self._metrics.callout_seconds.observe(done - began)
        if done - self._slice_began > SLICE_SECONDS:
            await asyncio.sleep(0)
            self._slice_began = time.perf_counter()

    async def _answer_when_current(self, message: Msg) -> None:
        answer = None
        with contextlib.suppress(StateError):
            await self._state.wait_current(PATIENCE_SECONDS)
            answer = self._answer(message.data)
        if answer is None:
            await self._shed(message)
        else:
            await message.respond(answer)

    async def _answer_when_known(self, message: Msg) -> None:
        """Answer for a holder without rights in this view, which another hub's write may not have reached yet."""
        deadline = time.monotonic() + LAG_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            watched = (self._state.sessions, self._state.projects)
            waiting = [asyncio.create_task(bucket.changed(left)) for bucket in watched]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if answer := self._answer(message.data, patient=True):
                await message.respond(answer)
                return
        await self._answer_when_current(message)

    async def _shed(self, message: Msg) -> None:
        """Have nats-server disconnect the client that waits for this answer: it tries again by itself."""
        self._metrics.callouts.labels("shed").inc()
        try:
            asked = _read(message.data)
            place = Place(str(asked["server_id"]["id"]), int(asked["client_info"]["id"]))
        except _MALFORMED:
            await message.respond(b"")
            return
        if not self._turned_away:
            asyncio.get_running_loop().call_later(BUSY_LOG_SECONDS, self._say_busy)
        self._turned_away += 1
        with contextlib.suppress(nats.errors.Error):  # then nats-server says "Authentication Timeout"
            await self._turn_away(place)

    def _say_busy(self) -> None:
        """One line for all that were turned away lately."""
        log.warning(
            "busy: %d clients were disconnected before they were authorised, in %d s; they try again by themselves",
            self._turned_away,
            BUSY_LOG_SECONDS,
        )
        self._turned_away = 0

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        self._metrics.callouts.labels("waited").inc()
        spawn(self._late, work)

    def _answer(self, request: bytes, *, patient: bool = False) -> bytes | None:
        """The answer to a request. Malformed requests get an empty answer, which refuses.

        Returns ``None`` instead of a refusal while the view is not current. With ``patient``, also for a JWT so young
        that the view may lack it.
        """
        now = int(time.time())
        try:
            asked = _read(request)
            user_nkey, server_id = str(asked["user_nkey"]), str(asked["server_id"]["id"])
            options = asked.get("connect_opts") or {}
            token, signature = str(options.get("jwt") or ""), str(options.get("sig") or "")
            client = asked.get("client_info") or {}
            nonce, transport = str(client.get("nonce") or ""), str(client.get("type") or "")
        except _MALFORMED:
            self._metrics.callouts.labels("malformed").inc()
            return b""
        holder = None
        try:
            holder, public_key, issued_at, bearer = self._tokens.holder(token, now)
            if not bearer and not _is_signed(nonce, signature, public_key):
                raise ClaimsError(f"{holder.kind} {holder.id} did not sign the server's nonce")
            if bearer and transport != "websocket":
                raise ClaimsError(f"{holder.kind} {holder.id} connected over {transport[:20]!r}, not over WebSocket")
            meant = str(options.get("user") or "")
            if bearer and meant not in ("", holder.id):
                # Another account has signed in since the page was loaded: its connection would be useless to the page.
                raise ClaimsError(f"{holder.kind} {holder.id} connected from a page of {meant[:36]!r}")
            if self._state.is_blocked(holder):
                raise ClaimsError(f"{holder.kind} {holder.id} is blocked: it ignored refusals")
            rights = self._state.rights(holder, public_key)
            if rights is None or (rights.public_key and rights.public_key != public_key):
                if not self._state.current or (patient and now - issued_at <= YOUNG_SECONDS):
                    return None
                raise ClaimsError(f"{holder.kind} {holder.id} may not connect (any more)")
        except ClaimsError as error:
            log.info("connect refused: %s", error)
            account = holder.id if holder is not None and holder.kind == "browser" else "-"
            address = str(client.get("host") or "")
            self._audit.record_of_stranger("connect", reason=str(error), account=account, address=address)
            self._metrics.callouts.labels("refused").inc()
            return self._tokens.response(user_nkey=user_nkey, server_id=server_id, now=now, error="not authorized")
        jwt = self._tokens.grant(holder, rights, user_nkey, now)
        response = self._tokens.response(user_nkey=user_nkey, server_id=server_id, now=now, jwt=jwt)
        if len(response) > self._connection.max_payload:  # the setting was lowered
            log.error(
                "%s %s cannot connect: its authorisation has %d bytes, more than nats_max_payload; raise that setting, "
                "or remove the account from projects",
                holder.kind,
                holder.id,
                len(response),
            )
            self._metrics.callouts.labels("refused").inc()
            return self._tokens.response(user_nkey=user_nkey, server_id=server_id, now=now, error="not authorized")
        self._metrics.callouts.labels("granted").inc()
        return response


def _read(request: bytes) -> dict[str, Any]:
    """The claims of a request. Its signature is not checked: only nats-server can publish here."""
    body = request.split(b".")[1]
    claims = json_text.read(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    nats: dict[str, Any] = claims["nats"]
    return nats


def _is_signed(nonce: str, signature: str, public_key: str) -> bool:
    """Whether the holder of the key signed the nonce. Both base64 alphabets are accepted, as in nats-server.

    nats-server checks the signature too, but sends the callout even if its check failed: 2.15 sends it to the account
    ``$G``, where nobody listens (measured in tests/nats), which alone keeps it from a hub.
    """
    text = signature.rstrip("=").translate(_STANDARD_ALPHABET)
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return False
    return bool(nonce) and nkey.verify(public_key, nonce.encode(), raw)
