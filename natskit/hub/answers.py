"""What the handlers of HTTP requests have in common: refusals, bodies, cookies, and who asks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from natskit.hub.projects import iso
from natskit.hub.sessions import SignedIn
from natskit.identity.claims import COOKIE
from natskit.permissions import inbox_prefix

if TYPE_CHECKING:
    from natskit.hub.app import Hub

NATS_PATH = "/nats"


class RefusedError(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        headers = {"Retry-After": str(retry_after)} if retry_after is not None else None
        self.response = JSONResponse({"error": {"code": code, "message": message}}, status, headers)


async def read_body(request: Request, largest: int) -> bytes:
    """The body of a request. Raises :class:`RefusedError` for one that is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > largest:
            raise RefusedError(413, "too_large", f"a request has at most {largest} bytes")
    return bytes(body)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises :class:`RefusedError`."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RefusedError(400, "invalid_request", "the request is no JSON object")
    return parsed


def description(signed_in: SignedIn) -> dict[str, Any]:
    """What a client is told of its session."""
    session, account = signed_in.session, signed_in.account
    return {
        "account_id": session.account_id,
        "email": account.email,
        "must_change_password": account.one_time,
        "nats": {"path": NATS_PATH, "inbox_prefix": inbox_prefix("browser", session.account_id)},
        "expires_at": iso(session.expires_at),
    }


def note_sign_in(hub: Hub, signed_in: SignedIn, via: str | None = None) -> None:
    """Count a sign-in, and put it into the audit; ``via`` is how, if not by a password."""
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
    """Seconds that the cookie of a session is good for."""
    return int(signed_in.session.expires_at - signed_in.session.last_seen)


def set_session_cookie(response: Response, value: str, seconds: int) -> None:
    """The cookie that names a session; scripts and other sites do not get it."""
    response.set_cookie(COOKIE, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="strict")


def address_of(request: Request) -> str:
    """The proxy overwrites the header, so it says the truth wherever the hub is only reached through it."""
    forwarded = request.headers.get("x-forwarded-for")
    return forwarded or (request.client.host if request.client else "")


def agent_of(request: Request) -> str:
    """The browser, as it says."""
    return request.headers.get("user-agent", "")
