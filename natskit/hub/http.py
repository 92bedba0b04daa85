"""The hub over HTTP, behind the proxy: sign-in and session, the API for signed-in callers, health and metrics."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from natskit.errors import SignInError, StateError
from natskit.hub.caller import Caller
from natskit.hub.projects import iso
from natskit.hub.sessions import SignedIn
from natskit.identity.claims import COOKIE
from natskit.permissions import inbox_prefix
from natskit.rpc import RpcError

if TYPE_CHECKING:
    from natskit.hub.app import Hub

log = logging.getLogger(__name__)

NATS_PATH = "/nats"
LARGEST_BODY = 1024 * 1024
"""The same as nats-server's default ``max_payload``: what fits over NATS fits here."""


class _RefusedError(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        headers = {"Retry-After": str(retry_after)} if retry_after is not None else None
        self.response = JSONResponse({"error": {"code": code, "message": message}}, status, headers)


class Pages:
    """The handlers; each answers one path."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def app(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            Route("/api/sign-in", self.sign_in, methods=["POST"]),
            Route("/api/sign-out", self.sign_out, methods=["POST"]),
            Route("/api/session", self.session, methods=["GET"]),
            Route("/api/rpc", self.rpc, methods=["POST"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]
        handlers: dict[Any, Any] = {
            _RefusedError: lambda _, error: error.response,
            SignInError: lambda _, error: _RefusedError(401, "signed_out", str(error)).response,
            StateError: lambda _, error: _RefusedError(503, "unavailable", str(error)).response,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        # A redirect would name the host the request named, and http:// behind the proxy.
        app.router.redirect_slashes = False
        return _Front(app, self._hub)

    async def sign_in(self, request: Request) -> Response:
        """Open a session; the cookie is its name."""
        body = await self._json(request)
        email, password = body.get("email"), body.get("password")
        if not isinstance(email, str) or not isinstance(password, str) or len(email) > 320:
            raise _RefusedError(400, "invalid_request", "sign-in needs an email and a password")
        try:
            signed_in = await self._hub.sessions.sign_in(
                email, password, _address(request), request.headers.get("user-agent", "")
            )
        except SignInError as error:
            self._hub.metrics.sign_ins.labels("refused").inc()
            log.info("sign-in refused from %s", _address(request))
            raise _RefusedError(401, "wrong_credentials", str(error)) from None
        except RpcError as error:
            raise _RefusedError(503, error.kind, error.message, error.data.get("retry_after")) from None
        self._hub.metrics.sign_ins.labels("ok").inc()
        log.info("signed in: account %s from %s", signed_in.session.account_id, _address(request))
        return self._signed_in(signed_in)

    async def session(self, request: Request) -> Response:
        """The session of the cookie, prolonged; before each connect a browser asks for this."""
        return self._signed_in(await self._hub.sessions.slide(request.cookies.get(COOKIE, "")))

    async def sign_out(self, request: Request) -> Response:
        """End the session and cut its connections. Without a session there is nothing to do."""
        self._check_origin(request)
        try:
            session_id, _, _ = await self._hub.sessions.check(request.cookies.get(COOKIE, ""))
        except SignInError:
            pass
        else:
            names = self._hub.state.names_of_session(session_id)
            await self._hub.sessions.end(session_id)
            self._hub.connections.cut_now(names)
            await self._hub.connections.cut_outdated()
        response = Response(status_code=204)
        _set_cookie(response, "", 0)
        return response

    async def rpc(self, request: Request) -> Response:
        """One JSON-RPC request of the signed-in person; the same methods as over NATS."""
        body = await self._body(request)
        session_id, session, _ = await self._hub.sessions.check(request.cookies.get(COOKIE, ""))
        caller = Caller(self._hub, "account", session.account_id, session_id)
        answer = await self._hub.services.over_http(caller, body)
        return Response(status_code=204) if answer is None else Response(answer, media_type="application/json")

    async def healthz(self, _: Request) -> Response:
        """200 only while this hub can do everything it is for."""
        problems = self._hub.problems()
        program = self._hub.program
        body = {"status": "unavailable" if problems else "ok", "hub": program.name, "version": program.version}
        return JSONResponse(body | ({"problems": problems} if problems else {}), 503 if problems else 200)

    async def metrics(self, _: Request) -> Response:
        """Prometheus. The proxy does not forward this."""
        return PlainTextResponse(self._hub.metrics.text(), media_type="text/plain; version=0.0.4")

    def _signed_in(self, signed_in: SignedIn) -> Response:
        session, account = signed_in.session, signed_in.account
        response = JSONResponse(
            {
                "account_id": session.account_id,
                "email": account.email,
                "must_change_password": account.one_time,
                "nats": {"path": NATS_PATH, "inbox_prefix": inbox_prefix("browser", session.account_id)},
                "expires_at": iso(session.expires_at),
            }
        )
        _set_cookie(response, signed_in.cookie, int(session.expires_at - session.last_seen))
        return response

    def _check_origin(self, request: Request) -> None:
        """A browser says which page a POST comes from; other pages, and callers who say nothing, are refused."""
        if request.headers.get("origin") not in self._hub.program.allowed_origins:
            raise _RefusedError(403, "forbidden_origin", "this page may not call the hub (Origin not allowed)")

    async def _body(self, request: Request) -> bytes:
        self._check_origin(request)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_BODY:
                raise _RefusedError(413, "too_large", f"a request has at most {LARGEST_BODY} bytes")
        return bytes(body)

    async def _json(self, request: Request) -> dict[str, Any]:
        try:
            body = json.loads(await self._body(request))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise _RefusedError(400, "invalid_request", "the request is no JSON object")
        return body


class _Front:
    """Nothing the hub says may be cached, and before it is ready only its health can be asked."""

    def __init__(self, app: ASGIApp, hub: Hub) -> None:
        self._app = app
        self._hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_uncached(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"cache-control", b"no-store")]
            await send(message)

        app = self._app
        if scope["type"] == "http" and scope["path"].startswith("/api/") and not self._hub.ready:
            app = _RefusedError(503, "unavailable", "this hub is starting; try again in a moment").response
        await app(scope, receive, send_uncached if scope["type"] == "http" else send)


def _set_cookie(response: Response, value: str, max_age: int) -> None:
    response.set_cookie(COOKIE, value, max_age=max_age, path="/", secure=True, httponly=True, samesite="strict")


def _address(request: Request) -> str:
    """The proxy overwrites the header, so it says the truth wherever the hub is only reached through it."""
    forwarded = request.headers.get("x-forwarded-for")
    return forwarded or (request.client.host if request.client else "")
