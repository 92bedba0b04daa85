"""The hub over HTTP, behind the proxy: sign-in and session, the API for signed-in callers, health and metrics."""

from __future__ import annotations

import contextlib
import logging
import re
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from natskit.errors import OtherAccountError, SignInError, StateError
from natskit.hub.auth.sessions import SignedIn
from natskit.hub.limits.admission import LARGEST_REQUEST
from natskit.hub.web.context import WebContext
from natskit.hub.web.files import BrokenOffError, FilesOverHttp
from natskit.hub.web.responses import (
    MEANT_FOR,
    RefusedError,
    address_of,
    agent_of,
    check_origin,
    description,
    elsewhere,
    forget_old_cookie,
    json_object,
    max_age,
    note_sign_in,
    read_body,
    session_cookie,
    set_session_cookie,
)
from natskit.hub.web.sign_in_options import SignInOptions
from natskit.rpc import RpcError, internal_error
from natskit.validation.names import is_address

log = logging.getLogger(__name__)

_ATTEMPT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class HttpApi:
    """The HTTP handlers, one for each path."""

    def __init__(self, hub: WebContext) -> None:
        self._hub = hub

    def app(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            Route("/api/sign-in", self.sign_in, methods=["POST"]),
            Route("/api/sign-out", self.sign_out, methods=["POST"]),
            Route("/api/session", self.session, methods=["GET"]),
            Route("/api/elsewhere", self.elsewhere, methods=["GET"]),
            Route("/api/rpc", self.rpc, methods=["POST"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            *SignInOptions(self._hub).routes(),
            *FilesOverHttp(self._hub).routes(),
        ]
        handlers: dict[Any, Any] = {
            RefusedError: lambda _, error: error.response,
            OtherAccountError: lambda _, error: RefusedError(409, "other_account", str(error)).response,
            SignInError: lambda _, error: RefusedError(401, "signed_out", str(error)).response,
            StateError: lambda _, error: RefusedError(503, "unavailable", str(error)).response,
            Exception: _failed,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        # A redirect would name the host the request named, and http:// behind the proxy.
        app.router.redirect_slashes = False
        return _Front(app, self._hub)

    async def sign_in(self, request: Request) -> Response:
        """Open a session and set its cookie. ``attempt`` (optional) is the same in a request that is sent again."""
        body = await self._json(request)
        email, password, attempt = body.get("email"), body.get("password"), body.get("attempt")
        if not isinstance(email, str) or not isinstance(password, str) or len(email) > 320:
            raise RefusedError(400, "invalid_request", "sign-in needs an email and a password")
        if attempt is not None and not (isinstance(attempt, str) and _ATTEMPT.fullmatch(attempt)):
            raise RefusedError(400, "invalid_request", "attempt must be a lower-case UUID")
        address, agent = address_of(request), agent_of(request)
        try:
            signed_in = await self._hub.sessions.sign_in(email, password, address, agent, attempt)
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
        response = self._signed_in(signed_in)
        await forget_old_cookie(self._hub, request, response)
        return response

    async def session(self, request: Request) -> Response:
        """Prolong the session of the cookie and describe it. Browsers ask for this before each connect."""
        return self._signed_in(await self._hub.sessions.slide(*self._named(request)))

    async def sign_out(self, request: Request) -> Response:
        """End the session and its connections. Without a session, do nothing."""
        check_origin(self._hub, request)
        try:
            session_id, session, account = await self._hub.sessions.check(*self._named(request))
        except SignInError:
            pass
        else:
            names = self._hub.state.names_of_session(session_id)
            await self._hub.sessions.end(session_id)
            self._hub.connections.disconnect_now(names)
            await self._hub.connections.disconnect_outdated()
            self._hub.audit.record_of_account(
                "sign_out",
                account=session.account_id,
                session_id=session_id,
                email=account.email,
                address=address_of(request),
                user_agent=agent_of(request),
            )
        response = Response(status_code=204)
        set_session_cookie(self._hub, response, "", 0)
        await forget_old_cookie(self._hub, request, response)
        return response

    async def rpc(self, request: Request) -> Response:
        """Answer a JSON-RPC request of the signed-in account, with the same methods as over NATS."""
        body = await self._body(request)
        session_id, session, _ = await self._hub.sessions.check(*self._named(request))
        answer = await self._hub.dispatcher.over_http(session.account_id, session_id, body)
        return Response(status_code=204) if answer is None else Response(answer, media_type="application/json")

    async def elsewhere(self, request: Request) -> Response:
        """Refuse a request from a page of another site: the proxy sends such requests here."""
        raise elsewhere(self._hub, request)

    async def healthz(self, _: Request) -> Response:
        """Health: 200 only while every part of this hub works."""
        problems = self._hub.problems()
        program = self._hub.program
        body = {"status": "unavailable" if problems else "ok", "hub": program.name, "version": program.version}
        return JSONResponse(body | ({"problems": problems} if problems else {}), 503 if problems else 200)

    async def metrics(self, _: Request) -> Response:
        """Metrics for Prometheus. The proxy does not forward this path."""
        return PlainTextResponse(self._hub.metrics.text(), media_type="text/plain; version=0.0.4")

    def _refused(self, request: Request, reason: str, account_id: str, email: str) -> None:
        """Record a refused sign-in. The e-mail field may hold a password that was typed there by mistake."""
        self._hub.audit.record_of_stranger(
            "sign_in",
            reason=reason,
            account=account_id,
            email=email if is_address(email) else "(not an e-mail)",
            address=address_of(request),
            user_agent=agent_of(request),
        )

    def _named(self, request: Request) -> tuple[str, str | None]:
        """The session cookie of a request, and the account that it is meant for, if the request says so."""
        return session_cookie(self._hub, request), request.headers.get(MEANT_FOR)

    def _signed_in(self, signed_in: SignedIn) -> Response:
        response = JSONResponse(description(signed_in))
        set_session_cookie(self._hub, response, signed_in.cookie, max_age(signed_in))
        return response

    async def _body(self, request: Request) -> bytes:
        check_origin(self._hub, request)
        return await read_body(request, LARGEST_REQUEST)

    async def _json(self, request: Request) -> dict[str, Any]:
        return json_object(await self._body(request))


async def _failed(request: Request, error: Exception) -> Response:
    """Answer after an unexpected error: with the log that has the reason, and its number there."""
    said = internal_error(f"{request.method} {request.url.path[:80]} failed", error)
    return JSONResponse({"error": {"code": said.kind, "message": said.message, **said.data}}, 500)


class _Front:
    """Forbids caching of all answers, and refuses API requests until the hub is ready."""

    def __init__(self, app: ASGIApp, hub: WebContext) -> None:
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
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        # Starlette raises the error again that _failed has answered, and uvicorn would log it a second time.
        with contextlib.suppress(Exception, BrokenOffError):
            await app(scope, receive, send_uncached)
