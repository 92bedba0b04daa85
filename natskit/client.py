"""The async Python client: sign in or use a creds file, call the hub, call a project, follow a command's output.

    async with await Client.sign_in("https://localhost:4043", "me@example.org", password) as client:
        project = await client.call_hub("create_project", title="Demo")
        await client.call_hub("start_project", project_id=project["project_id"])
        async with client.exec(project["project_id"], command="make test") as run:
            async for stream, data in run:
                sys.stdout.buffer.write(data)
        print(run.exit_code)

A client comes back by itself after the restart of a server or a hub, after a change of its rights and after the
expiry of a connection; subscriptions and running commands go on. It ends with :meth:`Client.close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import nats.errors
from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError

from natskit import __version__, rpc
from natskit.connection import Connection, Creds, CredsText, NatsServers, OnStatus, Status, connect, request
from natskit.errors import AbsentError, AnswerLostError, ConnectionLostError, NatskitError, NotAllowedError, SignInError
from natskit.permissions import check_id, inbox_prefix
from natskit.stream import GRANT_SECONDS, Reader

CALL_SECONDS = 10.0
CONNECT_SECONDS = 20.0
CUTTING = frozenset({"create_project", "delete_project"})
"""Methods of the hub that always change what the caller may do, and so cut their connection."""
REPEATABLE = frozenset(
    {
        "ping",
        "whoami",
        "list_projects",
        "create_project",
        "delete_project",
        "start_project",
        "stop_project",
        "rename_project",
        "share_project",
        "unshare_project",
        "read_text_file_from_project",
        "write_text_file_to_project",
        "read_text_file",
        "write_text_file",
        "list_directory",
    }
)
"""Methods of the hub and of projects that do the same thing when they are done twice."""
OVER_HTTP = frozenset({"list_sessions", "end_session", "end_all_sessions", "change_password"})
"""Methods of the hub that are about the session, which it knows over HTTP alone: the cookie says which one it is."""
CUT_SECONDS = 1.0
"""How long to wait for the connection with the new rights; it takes about 0.1."""
ABSENT_SECONDS = 0.5
"""How long who serves a subject may be away, such as an agent that comes back with a new key, before a call fails."""
SIGN_IN_TURNS = 5
"""When a whole class signs in at once, the hubs say whose turn is when: so often it is waited for."""


class Client:
    """A connection to the platform as one account (:meth:`sign_in`) or as the operator (:meth:`admin`)."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._hub_subject = "hub.admin"
        self._said_by = ""
        self._session: _Session | None = None
        self._watchers: list[OnStatus] = []
        self._readers: dict[str, set[Reader]] = {}
        self._watched: set[str] = set()
        self.account_id: str | None = None
        """The signed-in account; ``None`` for the operator."""
        self.must_change_password = False
        """Signed in with a one-time password: until ``call_hub("change_password", …)`` nothing else may be asked."""
        self.status: Status = "connecting"

    @classmethod
    async def sign_in(cls, url: str, email: str, password: str, *, ca_file: Path | str | None = None) -> Client:
        """Sign in as a person, over HTTPS, and connect over WebSocket, both through the proxy at ``url``.

        Raises :class:`SignInError` when the e-mail or password is wrong, :class:`ConnectionLostError` when nothing
        answers at ``url``.
        """
        session = _Session(url, ca_file)
        client = cls()
        client._session = session
        try:
            body = await session.sign_in(email, password)
            client.account_id = check_id(str(body["account_id"]), "account_id")
            client.must_change_password = body.get("must_change_password") is True
            client._hub_subject = f"hub.api.{client.account_id}"
            scheme = "wss" if session.url.scheme == "https" else "ws"
            await client._open(
                NatsServers(urls=[f"{scheme}://{session.url.netloc}{body['nats']['path']}"], ca_file=session.ca_file),
                prefix=inbox_prefix("browser", client.account_id),
            )
        except BaseException:
            await client.close()
            raise
        return client

    @classmethod
    async def admin(
        cls,
        nats_url: str | Sequence[str],
        creds: Path | str | CredsText | None,
        *,
        ca_file: Path | str | None = None,
        name: str = "admin",
        patience: float = CONNECT_SECONDS,
        said_by: str = "",
    ) -> Client:
        """Connect as the operator with the creds of ``PLATFORM/admin``, the path of the file or its
        :class:`~natskit.connection.CredsText`; :meth:`call_hub` calls ``hub.admin``.

        ``nats_url`` is that of one server, or those of all servers of a cluster. ``said_by`` is what the audit notes
        as who did it.
        """
        client = cls()
        client._said_by = said_by
        urls = [nats_url] if isinstance(nats_url, str) else list(nats_url)
        servers = NatsServers(urls=urls, ca_file=Path(ca_file) if ca_file is not None else None)
        given = Path(creds) if isinstance(creds, str) and creds else creds or None
        await client._open(servers, prefix=inbox_prefix("admin"), creds=given, name=name, patience=patience)
        return client

    @property
    def connection(self) -> Connection:
        """The nats-py client underneath, for what is not covered here."""
        if self._connection is None:
            raise ConnectionLostError("the client is not connected")
        return self._connection

    async def call_hub(self, method: str, *, wait: float = CALL_SECONDS, **params: Any) -> Any:
        """Call a method of the hub.

        Raises :class:`RpcError`, :class:`ConnectionLostError`, and :class:`SignInError` when the session has ended.
        """
        if method in OVER_HTTP and self._session is not None:
            result = await self._session.call(method, params, wait)
            self.must_change_password &= method != "change_password"
            return result
        if method not in CUTTING or self.account_id is None:
            return await self._call(self._hub_subject, method, params, wait)
        if method == "create_project":
            params.setdefault("key", secrets.token_hex(16))
        # The rights to a new project come with a new connection, which the hub brings about: what is called next must
        # not be on its way when the old one is cut.
        back = asyncio.Event()
        forget = self.connection.on_reconnect(back.set)
        try:
            result = await self._call(self._hub_subject, method, params, wait)
            await _is_set(back, CUT_SECONDS)
        finally:
            forget()
        return result

    async def call_project(self, project_id: str, method: str, *, wait: float = CALL_SECONDS, **params: Any) -> Any:
        """Call a method of a project's agent.

        Raises :class:`RpcError`, :class:`ConnectionLostError`, and :class:`NotAllowedError` for a project that is not
        the caller's.
        """
        check_id(project_id, "project_id")
        return await self._call(f"projects.{project_id}.api", method, params, wait)

    def exec(
        self,
        project_id: str,
        argv: Sequence[str] | None = None,
        *,
        command: str | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        stdin: str | None = None,
        stdin_stream: bool = False,
        timeout: float | None = None,
    ) -> Execution:
        """Run a program (``argv``) or a line of shell (``command``); use the result with ``async with``."""
        check_id(project_id, "project_id")
        params = {
            "argv": list(argv) if argv is not None else None,
            "command": command,
            "cwd": cwd,
            "env": env,
            "stdin": stdin,
            "stdin_stream": stdin_stream or None,
            "timeout": timeout,
        }
        wanted = {name: value for name, value in params.items() if value is not None}
        return Execution(self, project_id, wanted)

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Await ``callback(message)`` for each message, in order; returns what ends the subscription."""
        subscription = await self.connection.subscribe(subject, cb=callback)

        async def unsubscribe() -> None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

        return unsubscribe

    async def publish(self, subject: str, data: bytes) -> None:
        """Publish one message. Raises :class:`ConnectionLostError` when it cannot be sent or kept for later."""
        try:
            await self.connection.publish(subject, data)
        except nats.errors.Error as error:
            raise ConnectionLostError(f"{subject}: {error}") from error

    def on_status(self, callback: OnStatus) -> None:
        """Call ``callback(status, reason)`` when the connection is lost, tried again, back, or closed."""
        self._watchers.append(callback)

    async def sign_out(self) -> None:
        """End the session on the server, which cuts all its connections, and close."""
        if self._session is not None:
            await self._session.sign_out()
        await self.close()

    async def close(self) -> None:
        """Close the connection; the session stays valid."""
        if self._connection is not None and not self._connection.is_closed:
            await self._connection.close()
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(
        self,
        servers: NatsServers,
        *,
        prefix: str,
        creds: Creds | None = None,
        name: str = "client",
        patience: float = CONNECT_SECONDS,
    ) -> None:
        self._connection = await connect(
            servers,
            name=f"natskit {name}",
            inbox_prefix=prefix,
            creds=creds,
            before_connect=self._session.headers if self._session is not None else None,
            on_status=self._on_status,
            timeout=patience,
        )

    def _check_size(self, body: bytes) -> None:
        if len(body) > self.connection.max_payload:
            raise rpc.RpcError(
                "limit",
                f"the request has {len(body)} bytes; the server takes at most {self.connection.max_payload}",
            )

    async def _watch(self, project_id: str) -> None:
        """Hear of the project's reconnects, where this client may; the operator notices a little later."""
        if self.account_id is None or project_id in self._watched:
            return
        self._watched.add(project_id)

        async def on_event(_message: Msg) -> None:
            for reader in list(self._readers.get(project_id, ())):
                reader.ask_again()

        await self.subscribe(f"events.project.{project_id}.agent", on_event)

    async def _call(self, subject: str, method: str, params: dict[str, Any], wait: float) -> Any:
        """Ask, and ask again what may be done twice, or never was: a change of rights cut the connection, nobody was
        there for a moment, or the hub is asked too much and says when to come back."""
        body = rpc.encode_request(method, params, said_by=self._said_by if subject == "hub.admin" else "")
        self._check_size(body)
        back = asyncio.Event()
        forget = self.connection.on_reconnect(back.set)
        loop = asyncio.get_running_loop()
        lost, absent, deadline = False, False, loop.time() + wait
        try:
            while True:
                back.clear()
                left = deadline - loop.time()
                try:
                    return rpc.decode_response(await request(self.connection, subject, body, wait))
                except AbsentError:
                    if absent or left <= ABSENT_SECONDS:
                        raise
                    absent = True
                    await asyncio.sleep(ABSENT_SECONDS)
                except AnswerLostError:
                    if left <= 0 or method not in REPEATABLE:
                        raise
                    lost = True
                except NotAllowedError:
                    if left <= 0 or not await _is_set(back, GRANT_SECONDS):
                        raise
                except rpc.RpcError as error:
                    if lost and method == "delete_project" and error.kind == "not_found":
                        return {"project_id": params["project_id"]}  # the answer to this was the one that was lost
                    seconds = _seconds_to_wait(error)
                    if seconds is None or seconds > left:
                        raise
                    await asyncio.sleep(seconds)
        finally:
            forget()

    def _on_status(self, status: Status, reason: str) -> None:
        self.status = status
        for watcher in list(self._watchers):
            watcher(status, reason)


class Execution:
    """One running command: iterate over its output, then look at how it ended.

    Leaving the ``async with`` block before the end cancels the command.
    """

    def __init__(self, client: Client, project_id: str, params: dict[str, Any]) -> None:
        self.exit_code: int | None = None
        self.signal: str | None = None
        """The signal that ended the command, such as ``SIGTERM``."""
        self.timed_out = False
        self.cancelled = False
        self._client = client
        self._project_id = project_id
        self._reader = Reader(client.connection)
        self._params = params

    async def __aenter__(self) -> Self:
        body = rpc.encode_request("exec", self._params)
        self._client._check_size(body)
        await self._client._watch(self._project_id)
        self._client._readers.setdefault(self._project_id, set()).add(self._reader)
        try:
            await self._reader.open(f"projects.{self._project_id}.api", body)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        while (frame := await self._reader.frame()) is not None:
            yield frame
        try:
            outcome = _Outcome.model_validate(self._reader.result)
        except ValidationError:
            raise rpc.RpcError("internal_error", "the project did not say how the command ended") from None
        self.exit_code, self.signal = outcome.exit_code, outcome.signal
        self.timed_out, self.cancelled = outcome.timed_out, outcome.cancelled

    async def output(self) -> tuple[bytes, bytes]:
        """Wait for the end; everything written to stdout and to stderr."""
        parts: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        async for stream, data in self:
            parts[stream] += data
        return bytes(parts["stdout"]), bytes(parts["stderr"])

    async def write(self, data: bytes) -> None:
        """Send data to the command's stdin (``stdin_stream=True``); waits while the command does not read.

        A command that answers while it reads, such as ``cat``, needs its output to be read at the same time, as with
        any pair of pipes: write in a task of its own.
        """
        await self._reader.write(data)

    async def close_stdin(self) -> None:
        """Tell the command that its input is over."""
        await self._reader.end_of_input()

    async def cancel(self) -> None:
        """Ask the command to end; its remaining output and its end still arrive."""
        await self._reader.control({"type": "cancel"})

    async def _close(self) -> None:
        self._client._readers[self._project_id].discard(self._reader)
        await self._reader.close()


def _seconds_to_wait(error: rpc.RpcError) -> float | None:
    """When to come back, if a hub did not take a request because it is asked too much."""
    seconds = error.data.get("retry_after")
    return float(seconds) if error.kind == "unavailable" and isinstance(seconds, int | float) else None


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Whether an event comes within so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class _Outcome(BaseModel):
    exit_code: int | None
    signal: str | None
    timed_out: bool
    cancelled: bool


class _Session:
    """The browser's part: the cookie, and how it is kept fresh."""

    def __init__(self, url: str, ca_file: Path | str | None) -> None:
        self.url = urlsplit(url)
        if self.url.scheme not in ("http", "https") or not self.url.netloc:
            raise NatskitError(f"{url!r} is not a URL such as https://localhost:4043")
        self.ca_file = Path(ca_file) if ca_file is not None else None
        self._origin = f"{self.url.scheme}://{self.url.netloc}"
        verify: ssl.SSLContext | bool = True
        if self.ca_file is not None:
            try:
                verify = ssl.create_default_context(cafile=str(self.ca_file))
            except OSError as error:
                raise NatskitError(f"the CA file {self.ca_file}: {error.strerror or error}") from error
        self._http = httpx.AsyncClient(
            base_url=self._origin,
            headers={"Origin": self._origin, "User-Agent": f"natskit/{__version__}"},
            verify=verify,
            timeout=10,
            trust_env=False,
        )
        self._refreshed = False

    async def sign_in(self, email: str, password: str) -> dict[str, Any]:
        for turns in range(SIGN_IN_TURNS, -1, -1):
            answer = await self._send("POST", "/api/sign-in", json={"email": email, "password": password})
            seconds = answer.headers.get("Retry-After", "")
            if not (turns and answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and seconds.isdecimal()):
                break
            await asyncio.sleep(int(seconds))
        if answer.status_code != httpx.codes.OK:
            raise SignInError(_message(answer))
        self._refreshed = True
        return dict(answer.json())

    async def call(self, method: str, params: dict[str, Any], wait: float) -> Any:
        """One request as this session. Raises what :meth:`Client.call_hub` does."""
        answer = await self._send("POST", "/api/rpc", content=rpc.encode_request(method, params), timeout=wait)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise SignInError("the session has ended: sign in again")
        if answer.status_code != httpx.codes.OK:
            raise ConnectionLostError(f"{self._origin}: {_message(answer)}")
        return rpc.decode_response(answer.content)

    async def headers(self) -> dict[str, str]:
        """What the WebSocket upgrade needs. The cookie is refreshed before each attempt but the first."""
        if not self._refreshed:
            with contextlib.suppress(ConnectionLostError):  # the hubs may be down while the server is up
                answer = await self._send("GET", "/api/session")
                if answer.status_code == httpx.codes.UNAUTHORIZED:
                    raise SignInError("the session has ended: sign in again")
        self._refreshed = False
        cookie = "; ".join(f"{item.name}={item.value}" for item in self._http.cookies.jar)
        return {"Cookie": cookie, "Origin": self._origin}

    async def sign_out(self) -> None:
        await self._send("POST", "/api/sign-out")

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ConnectionLostError(f"{self._origin}: {error or type(error).__name__}") from error


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"refused with HTTP status {answer.status_code}"
