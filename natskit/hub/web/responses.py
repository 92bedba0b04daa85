"""Helpers of the HTTP handlers: refusals, bodies, cookies, and the client's address."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from natskit.bus.permissions import inbox_prefix
from natskit.errors import SignInError
from natskit.hub.auth.sessions import SignedIn
from natskit.hub.timestamp import iso
from natskit.hub.web.context import WebContext
from natskit.identity.claims import COOKIE

log = logging.getLogger(__name__)

NATS_PATH = "/nats"
MEANT_FOR = "natskit-account"
"""Optional header with the id of the account that the page shows. All tabs of a browser share one cookie; a page that
sends the header never acts for another account that has signed in in another tab."""


class RefusedError(Exception):
    """A refused request, with the error response."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        headers = {"Retry-After": str(retry_after)} if retry_after is not None else None
        self.response = JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def check_origin(hub: WebContext, request: Request) -> None:
    """Refuse a request that changes something from a page of another site, and one without ``Origin``, which browsers
    always send. Raises :class:`RefusedError`."""
    if request.headers.get("origin") not in hub.program.allowed_origins:
        raise elsewhere(hub, request)


def elsewhere(hub: WebContext, request: Request) -> RefusedError:
    """The refusal of a request from a page of another site."""
    url, origin = hub.program.allowed_origins[0], request.headers.get("origin", "")[:200]
    host = request.headers.get("host", "")[:200]
    log.info(
        "refused: request from %s with Origin %r and Host %r; the site is %s", address_of(request), origin, host, url
    )
    came = f"a page at {origin!r}" if origin else "a page that sends no Origin"
    return RefusedError(403, "forbidden_origin", f"the address of this site is {url}; this request is from {came}")


async def read_body(request: Request, largest: int) -> bytes:
    """The body of a request. Raises :class:`RefusedError` for one that is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > largest:
            raise RefusedError(413, "too_large", f"a request may have at most {largest} bytes")
    return bytes(body)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises :class:`RefusedError`."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RefusedError(400, "invalid_request", "the request is not a JSON object")
    return parsed


def description(signed_in: SignedIn) -> dict[str, Any]:
    """The description of a session for its client."""
    session, account = signed_in.session, signed_in.account
    return {
        "account_id": session.account_id,
        "session_id": signed_in.session_id,
        "email": account.email,
        "must_change_password": account.one_time,
        "nats": {"path": NATS_PATH, "inbox_prefix": inbox_prefix("browser", session.account_id)},
        "expires_at": iso(session.expires_at),
    }


def note_sign_in(hub: WebContext, signed_in: SignedIn, via: str | None = None) -> None:
    """Count a sign-in and record it in the audit. ``via``: how, if not by a password."""
    session = signed_in.session
    hub.metrics.sign_ins.labels("ok").inc()
    hub.audit.record_of_account(
        "sign_in",
        account=session.account_id,
        via=via,
        session_id=signed_in.session_id,
        email=signed_in.account.email,
        address=session.address,
        user_agent=session.user_agent,
    )


def max_age(signed_in: SignedIn) -> int:
    """The lifetime of a session's cookie, in seconds."""
    return int(signed_in.session.expires_at - signed_in.session.last_seen)


def session_cookie(hub: WebContext, request: Request) -> str:
    """The session cookie. Its old name, without the site's port, is accepted too."""
    return request.cookies.get(hub.program.cookie) or request.cookies.get(COOKIE, "")


async def forget_old_cookie(hub: WebContext, request: Request, response: Response) -> None:
    """Remove a session cookie with the old name, without the site's port, when another account signs in: otherwise its
    session would return when the newer cookie is gone. A cookie of another site is left alone."""
    old = request.cookies.get(COOKIE, "")
    if not old or hub.program.cookie == COOKIE:
        return
    with contextlib.suppress(SignInError):
        await hub.sessions.check(old)
        response.set_cookie(COOKIE, "", max_age=0, path="/", secure=True, httponly=True, samesite="strict")


def set_session_cookie(hub: WebContext, response: Response, value: str, seconds: int) -> None:
    """Set the session cookie. Scripts and other sites do not get it."""
    response.set_cookie(
        hub.program.cookie, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="strict"
    )


def address_of(request: Request) -> str:
    """The client's address. The proxy overwrites the header, so it is true if only the proxy can reach the hub."""
    forwarded = request.headers.get("x-forwarded-for")
    return forwarded or (request.client.host if request.client else "")


def agent_of(request: Request) -> str:
    """The ``User-Agent`` header."""
    return request.headers.get("user-agent", "")
