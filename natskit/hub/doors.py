"""The other ways to sign in: a trusted backend, its tickets, and an OpenID provider."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from natskit.errors import OidcError, SignInError, StateError
from natskit.hub import backend
from natskit.hub.answers import (
    RefusedError,
    address_of,
    agent_of,
    description,
    json_object,
    max_age,
    note_sign_in,
    read_body,
    set_session_cookie,
)
from natskit.hub.sessions import SignedIn
from natskit.identity.claims import COOKIE
from natskit.rpc import RpcError

if TYPE_CHECKING:
    from natskit.hub.app import Hub

FLOW_COOKIE = "__Host-natskit-oidc"
_STATUS = {"invalid_params": 400, "forbidden": 403, "conflict": 409}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>natskit</title><link rel="icon" href="/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/console.css">
</head><body><main class="door"><div class="card"><h1>You are not signed in</h1><p role="alert">{message}</p>
<p><a id="back" href="/">Back to the sign-in</a></p></div></main></body></html>
"""


class Doors:
    """The handlers; each answers one path. None of them sends a browser anywhere but to the site's own front page or to
    the provider of the settings."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> list[Route]:
        """The paths."""
        return [
            Route("/api/doors", self.doors, methods=["GET"]),
            Route("/api/backend/session", self.backend_session, methods=["POST"]),
            Route("/api/backend/ticket", self.backend_ticket, methods=["POST"]),
            Route("/api/enter", self.enter, methods=["GET"]),
            Route("/api/oidc/start", self.oidc_start, methods=["GET"]),
            Route("/api/oidc/callback", self.oidc_callback, methods=["GET"]),
        ]

    async def doors(self, _: Request) -> Response:
        """How one can sign in here."""
        oidc = self._hub.program.oidc
        return JSONResponse({"oidc": {"label": oidc.label, "path": "/api/oidc/start"} if oidc else None})

    async def backend_session(self, request: Request) -> Response:
        """For a trusted backend: a session, and the cookie that it has to set."""
        name, body = await self._of_backend(request)
        try:
            signed_in, made = await self._hub.backends.open_session(name, body, address_of(request))
        except (RpcError, SignInError) as error:
            raise _refusal(error) from None
        cookie = Response()
        set_session_cookie(cookie, signed_in.cookie, max_age(signed_in))
        return JSONResponse(
            description(signed_in)
            | {
                "made": made,
                "set_cookie": cookie.headers["set-cookie"],
                "cookie": {
                    "name": COOKIE,
                    "value": signed_in.cookie,
                    "max_age": max_age(signed_in),
                    "path": "/",
                    "secure": True,
                    "http_only": True,
                    "same_site": "Strict",
                },
            }
        )

    async def backend_ticket(self, request: Request) -> Response:
        """For a trusted backend: an address to send the browser to."""
        name, body = await self._of_backend(request)
        try:
            ticket, account_id, made = await self._hub.backends.ticket(name, body, address_of(request))
        except (RpcError, SignInError) as error:
            raise _refusal(error) from None
        url = f"{self._hub.program.allowed_origins[0]}/api/enter?ticket={ticket}"
        return JSONResponse({"account_id": account_id, "made": made, "url": url, "seconds": backend.TICKET_SECONDS})

    async def enter(self, request: Request) -> Response:
        """Where a backend sends a browser: the ticket becomes a session, once."""
        _refuse_a_glance(request)
        address, agent = address_of(request), agent_of(request)
        try:
            signed_in = await self._hub.sessions.enter(request.query_params.get("ticket", "")[:200], address, agent)
        except SignInError as error:
            self._hub.metrics.sign_ins.labels("refused").inc()
            self._hub.audit.record_of_stranger(
                "sign_in",
                reason=error.reason,
                account=error.account_id,
                address=address,
                via="ticket",
                user_agent=agent,
            )
            return _page(403, f"You cannot come in here: {error}.")
        except StateError:
            return _page(503, "This is not possible at this moment. Try again in a while.")
        return self._let_in(signed_in, f"ticket of {signed_in.session.via}")

    async def oidc_start(self, _: Request) -> Response:
        """To the provider."""
        if self._hub.oidc is None:
            raise RefusedError(404, "not_found", "this site has no OpenID provider")
        try:
            url, cookie = await self._hub.oidc.begin()
        except OidcError as error:
            return _page(error.status, str(error))
        response = RedirectResponse(url, 303)
        _set_flow_cookie(response, cookie, self._hub.oidc.flow_seconds)
        return response

    async def oidc_callback(self, request: Request) -> Response:
        """Back from the provider."""
        if self._hub.oidc is None:
            raise RefusedError(404, "not_found", "this site has no OpenID provider")
        _refuse_a_glance(request)
        query = {key: value[:4096] for key, value in request.query_params.items()}
        try:
            signed_in = await self._hub.oidc.finish(
                query, request.cookies.get(FLOW_COOKIE, ""), address_of(request), agent_of(request)
            )
        except OidcError as error:
            self._hub.metrics.sign_ins.labels("refused").inc()
            response = _page(error.status, str(error))
        else:
            response = self._let_in(signed_in, "oidc")
        _set_flow_cookie(response, "", 0)
        return response

    def _let_in(self, signed_in: SignedIn, via: str) -> Response:
        note_sign_in(self._hub, signed_in, via)
        response = RedirectResponse("/", 303)
        set_session_cookie(response, signed_in.cookie, max_age(signed_in))
        return response

    async def _of_backend(self, request: Request) -> tuple[str, dict[str, Any]]:
        if not self._hub.program.backends:
            raise RefusedError(404, "not_found", "this site has no trusted backend")
        name = self._hub.backends.authenticate(request.headers.get("authorization", ""), address_of(request))
        if name is None:
            raise RefusedError(401, "unauthorized", "this is not the token of a backend, or it may not come from here")
        return name, json_object(await read_body(request, backend.LARGEST_BODY))


def _refuse_a_glance(request: Request) -> None:
    """What only looks must not use the address up: a HEAD, or a browser that fetches before anybody has clicked."""
    if request.method != "GET" or "prefetch" in request.headers.get("sec-purpose", request.headers.get("purpose", "")):
        raise RefusedError(405, "not_allowed", "this address is good once, and is for a person who opens it")


def _refusal(error: RpcError | SignInError) -> RefusedError:
    if isinstance(error, RpcError):
        return RefusedError(_STATUS.get(error.kind, 503), error.kind, error.message)
    return RefusedError(403, "forbidden", "the account may not use the platform")


def _page(status: int, message: str) -> Response:
    return HTMLResponse(_PAGE.format(message=html.escape(message)), status)


def _set_flow_cookie(response: Response, value: str, seconds: int) -> None:
    """Lax: it has to come back with the provider's redirection."""
    response.set_cookie(FLOW_COOKIE, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="lax")
