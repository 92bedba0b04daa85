"""The hub over HTTP, behind the proxy: sign-in and session, the API for signed-in callers, health and metrics."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from natskit.errors import SignInError, StateError
from natskit.hub.accounts import is_email
from natskit.hub.admission import LARGEST_REQUEST
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
from natskit.hub.caller import Caller
from natskit.hub.doors import Doors
from natskit.hub.sessions import SignedIn
from natskit.identity.claims import COOKIE
from natskit.rpc import RpcError

if TYPE_CHECKING:
    from natskit.hub.app import Hub

log = logging.getLogger(__name__)


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
            *Doors(self._hub).routes(),
        ]
        handlers: dict[Any, Any] = {
            RefusedError: lambda _, error: error.response,
            SignInError: lambda _, error: RefusedError(401, "signed_out", str(error)).response,
            StateError: lambda _, error: RefusedError(503, "unavailable", str(error)).response,
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
            raise RefusedError(400, "invalid_request", "sign-in needs an email and a password")
        try:
            signed_in = await self._hub.sessions.sign_in(email, password, address_of(request), agent_of(request))
        except SignInError as error:
            self._hub.metrics.sign_ins.labels("refused").inc()
            self._refused(request, error.reason, error.account_id, email)
            log.info("sign-in refused from %s", address_of(request))
            raise RefusedError(401, "wrong_credentials", str(error)) from None
        except RpcError as error:
            self._refused(request, "limit", "-", email)
            raise RefusedError(503, error.kind, error.message, error.data.get("retry_after")) from None
        note_sign_in(self._hub, signed_in)
        log.info("signed in: account %s from %s", signed_in.session.account_id, address_of(request))
        return self._signed_in(signed_in)

    async def session(self, request: Request) -> Response:
        """The session of the cookie, prolonged; before each connect a browser asks for this."""
        return self._signed_in(await self._hub.sessions.slide(request.cookies.get(COOKIE, "")))

    async def sign_out(self, request: Request) -> Response:
        """End the session and cut its connections. Without a session there is nothing to do."""
        self._check_origin(request)
        try:
            session_id, session, account = await self._hub.sessions.check(request.cookies.get(COOKIE, ""))
        except SignInError:
            pass
        else:
            names = self._hub.state.names_of_session(session_id)
            await self._hub.sessions.end(session_id)
            self._hub.connections.cut_now(names)
            await self._hub.connections.cut_outdated()
            self._hub.audit.record_of_account(
                "sign_out",
                account=session.account_id,
                session_id=session_id,
                email=account.email,
                address=address_of(request),
                user_agent=agent_of(request),
            )
        response = Response(status_code=204)
        set_session_cookie(response, "", 0)
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

    def _refused(self, request: Request, reason: str, account_id: str, email: str) -> None:
        """Note a refused sign-in. Somebody may have typed the password where the e-mail belongs."""
        self._hub.audit.record_of_stranger(
            "sign_in",
            reason=reason,
            account=account_id,
            email=email if is_email(email) else "(not an e-mail)",
            address=address_of(request),
            user_agent=agent_of(request),
        )

    def _signed_in(self, signed_in: SignedIn) -> Response:
        response = JSONResponse(description(signed_in))
        set_session_cookie(response, signed_in.cookie, max_age(signed_in))
        return response

    def _check_origin(self, request: Request) -> None:
        """A browser says which page a POST comes from; other pages, and callers who say nothing, are refused."""
        if request.headers.get("origin") not in self._hub.program.allowed_origins:
            raise RefusedError(403, "forbidden_origin", "this page may not call the hub (Origin not allowed)")

    async def _body(self, request: Request) -> bytes:
        self._check_origin(request)
        return await read_body(request, LARGEST_REQUEST)

    async def _json(self, request: Request) -> dict[str, Any]:
        return json_object(await self._body(request))


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
            app = RefusedError(503, "unavailable", "this hub is starting; try again in a moment").response
        await app(scope, receive, send_uncached if scope["type"] == "http" else send)
