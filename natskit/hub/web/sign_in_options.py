"""Sign-in options besides the password: a trusted backend, its tickets, and an OpenID provider."""

from __future__ import annotations

import html
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from natskit.errors import OidcError, SignInError, StateError
from natskit.hub.auth.sessions import SignedIn
from natskit.hub.sign_in import backend
from natskit.hub.web.context import WebContext
from natskit.hub.web.responses import (
    RefusedError,
    address_of,
    agent_of,
    description,
    json_object,
    max_age,
    note_sign_in,
    read_body,
    session_cookie,
    set_session_cookie,
)
from natskit.rpc import RpcError

_STATUS = {"invalid_params": 400, "forbidden": 403, "conflict": 409}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>natskit</title><link rel="icon" href="/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/console.css">
</head><body><main class="door"><div class="card"><h1>This sign-in did not work</h1><p role="alert">{message}</p>
<p><a id="back" href="/">Back to the sign-in</a></p></div></main></body></html>
"""


class SignInOptions:
    """The HTTP handlers, one for each path. They redirect only to the site's own front page or to the OpenID
    provider."""

    def __init__(self, hub: WebContext) -> None:
        self._hub = hub

    def routes(self) -> list[Route]:
        """The paths."""
        return [
            Route("/api/doors", self.options, methods=["GET"]),
            Route("/api/backend/session", self.backend_session, methods=["POST"]),
            Route("/api/backend/ticket", self.backend_ticket, methods=["POST"]),
            Route("/api/enter", self.enter, methods=["GET"]),
            Route("/api/oidc/start", self.oidc_start, methods=["GET"]),
            Route("/api/oidc/callback", self.oidc_callback, methods=["GET"]),
        ]

    async def options(self, _: Request) -> Response:
        """The sign-in options, and the address of the site."""
        oidc = self._hub.program.oidc
        single_sign_on = {"label": oidc.label, "path": "/api/oidc/start"} if oidc else None
        return JSONResponse({"oidc": single_sign_on, "url": self._hub.program.allowed_origins[0]})

    async def backend_session(self, request: Request) -> Response:
        """Open a session for a trusted backend, which has to set the cookie in the answer."""
        name, body = await self._of_backend(request)
        try:
            signed_in, made = await self._hub.backends.open_session(name, body, address_of(request))
        except (RpcError, SignInError) as error:
            raise _refusal(error) from None
        cookie = Response()
        set_session_cookie(self._hub, cookie, signed_in.cookie, max_age(signed_in))
        return JSONResponse(
            description(signed_in)
            | {
                "made": made,
                "set_cookie": cookie.headers["set-cookie"],
                "cookie": {
                    "name": self._hub.program.cookie,
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
        """Make a ticket for a trusted backend: an address to send the browser to."""
        name, body = await self._of_backend(request)
        try:
            ticket, account_id, made = await self._hub.backends.ticket(name, body, address_of(request))
        except (RpcError, SignInError) as error:
            raise _refusal(error) from None
        url = f"{self._hub.program.allowed_origins[0]}/api/enter?ticket={ticket}"
        return JSONResponse({"account_id": account_id, "made": made, "url": url, "seconds": backend.TICKET_SECONDS})

    async def enter(self, request: Request) -> Response:
        """Open the session of a ticket, once. A backend sends the browser here."""
        _refuse_prefetch(request)
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
            return _page(403, f"You could not be signed in: {error}.")
        except StateError:
            return _page(503, "This is not possible at this moment. Try again in a while.")
        return self._let_in(signed_in, f"ticket of {signed_in.session.via}")

    async def oidc_start(self, request: Request) -> Response:
        """Redirect the browser to the provider."""
        if self._hub.oidc is None:
            raise RefusedError(404, "not_found", "this site has no OpenID provider")
        try:
            url, flow, cookie = await self._hub.oidc.begin()
        except OidcError as error:
            return _page(error.status, str(error))
        response = RedirectResponse(url, 303)
        for old in self._hub.oidc.too_many(self._flow_cookies(request)):
            self._set_flow_cookie(response, old, "", 0)
        self._set_flow_cookie(response, flow, cookie, self._hub.oidc.flow_seconds)
        return response

    async def oidc_callback(self, request: Request) -> Response:
        """Sign in a person whom the provider sent back."""
        if self._hub.oidc is None:
            raise RefusedError(404, "not_found", "this site has no OpenID provider")
        _refuse_prefetch(request)
        query = {key: value[:4096] for key, value in request.query_params.items()}
        flow = self._hub.oidc.flow_name(query.get("state", ""))
        cookie = self._flow_cookies(request).get(flow, "")
        if not cookie and await self._is_signed_in(request):
            return RedirectResponse("/", 303)  # a bookmark, or a reload of a finished sign-in
        try:
            signed_in = await self._hub.oidc.finish(query, cookie, address_of(request), agent_of(request))
        except OidcError as error:
            self._hub.metrics.sign_ins.labels("refused").inc()
            response = _page(error.status, str(error))
            if error.status >= 500:
                return response  # nothing was decided: the page can be loaded again
        else:
            response = self._let_in(signed_in, "oidc")
        if cookie:
            self._set_flow_cookie(response, flow, "", 0)
        return response

    def _flow_cookies(self, request: Request) -> dict[str, str]:
        """The cookies of a browser's flows, by the names of the flows."""
        begins = flow_cookie(self._hub.program.cookie, "")
        return {name.removeprefix(begins): value for name, value in request.cookies.items() if name.startswith(begins)}

    def _set_flow_cookie(self, response: Response, flow: str, value: str, seconds: int) -> None:
        """Set the cookie of a flow. ``SameSite=Lax``: it must come back with the provider's redirect."""
        name = flow_cookie(self._hub.program.cookie, flow)
        response.set_cookie(name, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="lax")

    async def _is_signed_in(self, request: Request) -> bool:
        try:
            await self._hub.sessions.check(session_cookie(self._hub, request))
        except SignInError:
            return False
        return True

    def _let_in(self, signed_in: SignedIn, via: str) -> Response:
        note_sign_in(self._hub, signed_in, via)
        response = RedirectResponse("/", 303)
        set_session_cookie(self._hub, response, signed_in.cookie, max_age(signed_in))
        return response

    async def _of_backend(self, request: Request) -> tuple[str, dict[str, Any]]:
        if not self._hub.program.backends:
            raise RefusedError(404, "not_found", "this site has no trusted backend")
        name = self._hub.backends.authenticate(request.headers.get("authorization", ""), address_of(request))
        if name is None:
            raise RefusedError(
                401,
                "unauthorized",
                "this is not the token of a backend, or the backend may not connect from this address",
            )
        return name, json_object(await read_body(request, backend.LARGEST_BODY))


def flow_cookie(cookie: str, flow: str) -> str:
    """The name of the cookie of a flow, derived from that of the site's session cookie."""
    return f"{cookie}-oidc-{flow}"


def _refuse_prefetch(request: Request) -> None:
    """Refuse a HEAD request or a prefetch, which must not use up an address that works once."""
    if request.method != "GET" or "prefetch" in request.headers.get("sec-purpose", request.headers.get("purpose", "")):
        raise RefusedError(405, "not_allowed", "this address works once, for a person who opens it")


def _refusal(error: RpcError | SignInError) -> RefusedError:
    if isinstance(error, RpcError):
        return RefusedError(_STATUS.get(error.kind, 503), error.kind, error.message)
    return RefusedError(403, "forbidden", "the account may not use the platform")


def _page(status: int, message: str) -> Response:
    return HTMLResponse(_PAGE.format(message=html.escape(message)), status)
