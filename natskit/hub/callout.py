"""The auth callout: nats-server asks for everyone who comes through the NATS account AUTH, and this answers.

Nothing here does I/O: the answer comes from the view of the state, and costs two signatures. When more ask than can
be answered in time, those who waited longest are turned away at once with an empty answer, which costs nothing: the
server would give up on them anyway, and they come back by themselves.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Coroutine
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from natskit.connection import Connection
from natskit.errors import ClaimsError, StateError
from natskit.hub.audit import Audit
from natskit.hub.bucket import LAG_SECONDS
from natskit.hub.metrics import Metrics
from natskit.hub.state import State
from natskit.hub.tokens import Tokens
from natskit.identity import nkey

log = logging.getLogger(__name__)

SUBJECT = "$SYS.REQ.USER.AUTH"
QUEUE = "hub"

PATIENCE_SECONDS = 1.5
"""nats-server waits for the answer as long as ``nats_auth_timeout`` says: three seconds."""
YOUNG_SECONDS = 3
"""Who presents a JWT this soon after it was made may know of it before this hub's view does."""
SLICE_SECONDS = 0.005
"""How long callouts may keep the event loop before others get their turn."""
_STANDARD_ALPHABET = str.maketrans("-_", "+/")


class Callout:
    """Answers the callouts of one hub."""

    def __init__(self, connection: Connection, state: State, tokens: Tokens, metrics: Metrics, audit: Audit) -> None:
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
        """Begin to answer. The state must be current by now."""
        self._subscription = await self._connection.subscribe(
            SUBJECT, queue=QUEUE, cb=self._on_request, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await self._connection.flush()

    async def stop(self) -> None:
        """Let the other hubs answer; what has arrived is still answered."""
        if self._subscription is not None:
            await self._subscription.drain()  # type: ignore[no-untyped-call]

    async def _on_request(self, message: Msg) -> None:
        if not self._state.current:
            self._later(self._answer_when_current(message))
            return
        began = time.perf_counter()
        assert self._subscription is not None
        if self._subscription.pending_msgs * self._cost > PATIENCE_SECONDS:
            self._metrics.callouts.labels("shed").inc()
            await message.respond(b"")
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
        try:
            await self._state.wait_current(PATIENCE_SECONDS)
        except StateError:
            await message.respond(b"")
        else:
            await message.respond(self._answer(message.data) or b"")

    async def _answer_when_known(self, message: Msg) -> None:
        """The JWT is only just made: another hub's write may be on its way to this one's view."""
        deadline = time.monotonic() + LAG_SECONDS
        answer = None
        while answer is None:
            left = deadline - time.monotonic()
            bucket = self._state.sessions
            await asyncio.wait(
                [asyncio.create_task(b.changed(max(left, 0))) for b in (bucket, self._state.projects)],
                return_when=asyncio.FIRST_COMPLETED,
            )
            answer = self._answer(message.data, patient=left > 0)
        await message.respond(answer)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        self._metrics.callouts.labels("waited").inc()
        task = asyncio.create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def _answer(self, request: bytes, *, patient: bool = False) -> bytes | None:
        """The answer to one request; empty, which refuses, for what is no request.

        With ``patient``, ``None`` instead of a refusal for a JWT so young that the view may not know of it yet.
        """
        now = int(time.time())
        try:
            asked = _read(request)
            user_nkey, server_id = str(asked["user_nkey"]), str(asked["server_id"]["id"])
            options = asked.get("connect_opts") or {}
            token, signature = str(options.get("jwt") or ""), str(options.get("sig") or "")
            client = asked.get("client_info") or {}
            nonce, transport = str(client.get("nonce") or ""), str(client.get("type") or "")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            self._metrics.callouts.labels("malformed").inc()
            return b""
        holder = None
        try:
            holder, public_key, issued_at, bearer = self._tokens.holder(token, now)
            if not bearer and not _is_signed(nonce, signature, public_key):
                raise ClaimsError(f"{holder.kind} {holder.id} did not sign the server's nonce")
            if bearer and transport != "websocket":
                raise ClaimsError(f"{holder.kind} {holder.id} came over {transport[:20]!r}, not over WebSocket")
            if self._state.is_held_off(holder):
                raise ClaimsError(f"{holder.kind} {holder.id} asks more than a hub can do for one, and has to wait")
            rights = self._state.rights(holder, public_key)
            if rights is None or (rights.public_key and rights.public_key != public_key):
                if patient and now - issued_at <= YOUNG_SECONDS:
                    return None
                raise ClaimsError(f"{holder.kind} {holder.id} may not connect (any more)")
        except ClaimsError as error:
            log.info("connect refused: %s", error)
            account = holder.id if holder is not None and holder.kind == "browser" else "-"
            address = str(client.get("host") or "")
            self._audit.record_of_stranger("connect", reason=str(error), account=account, address=address)
            self._metrics.callouts.labels("refused").inc()
            return self._tokens.response(user_nkey=user_nkey, server_id=server_id, now=now, error="not authorized")
        self._metrics.callouts.labels("granted").inc()
        jwt = self._tokens.grant(holder, rights, user_nkey, now)
        return self._tokens.response(user_nkey=user_nkey, server_id=server_id, now=now, jwt=jwt)


def _read(request: bytes) -> dict[str, Any]:
    """The request's claims. Only nats-server can publish here, so its signature is not checked again."""
    body = request.split(b".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    nats: dict[str, Any] = claims["nats"]
    return nats


def _is_signed(nonce: str, signature: str, public_key: str) -> bool:
    """Whether the holder of the key signed the nonce. Either base64 alphabet is taken, as nats-server does.

    nats-server checks it too, but asks even when its check failed: what keeps that from a hub is only that 2.15 sends
    such a request to the account ``$G``, where nobody listens (measured in tests/nats).
    """
    text = signature.rstrip("=").translate(_STANDARD_ALPHABET)
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return False
    return bool(nonce) and nkey.verify(public_key, nonce.encode(), raw)
