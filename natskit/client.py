"""The async Python client: sign in or use a creds file, call the hub, call a project, follow a command's output.

    async with await Client.sign_in("https://localhost:4043", "me@example.org", password) as client:
        project = await client.call_hub("create_project", title="Demo")
        await client.call_hub("start_project", project_id=project["project_id"])
        async with client.exec(project["project_id"], command="make test") as run:
            async for stream, data in run:
                sys.stdout.buffer.write(data)
        print(run.exit_code)

A client reconnects by itself when a server or hub restarts, when its rights change and when its authorization expires.
Subscriptions and running commands continue. End it with :meth:`Client.close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx
import nats.errors
from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError

from natskit import __version__, rpc
from natskit.bus.affinity import Affinity
from natskit.bus.connection import Connection, OnStatus, Status, connect
from natskit.bus.credentials import Creds, CredsText
from natskit.bus.file_transfer import PATIENCE_SECONDS
from natskit.bus.output_stream import GRANT_SECONDS, Reader
from natskit.bus.payload import Pieces
from natskit.bus.permissions import check_id, inbox_prefix
from natskit.bus.request import request_with_data
from natskit.bus.servers import NatsServers
from natskit.bus.tls_trust import client_context, trusted
from natskit.errors import AbsentError, AnswerLostError, ConnectionLostError, NatskitError, NotAllowedError, SignInError
from natskit.files import ProjectFiles
from natskit.methods import CHANGES_RIGHTS, IDEMPOTENT, OVER_HTTP
from natskit.process.signals import signal_number
from natskit.terminal import Terminal
from natskit.validation.addresses import origin
from natskit.watching import watch

if TYPE_CHECKING:
    from natskit.document import Document

CALL_SECONDS = 10.0
CONNECT_SECONDS = 20.0
RECONNECT_SECONDS = 1.0
"""Maximum wait for the reconnect that brings the new rights. It usually takes 0.1 s."""
ABSENT_SECONDS = 0.5
"""Wait before one retry when a subject has no subscriber, such as while an agent reconnects with a new key."""
PAGE_ENTRIES = 10_000
"""Directory entries per request. About this many fit into a message of 1 MiB."""
SIGN_OUT_SECONDS = 2.0
"""Maximum time that :meth:`Client.close` waits for a hub to end the session."""
PART_ROWS = 2000
"""Rows per request when a list does not fit into one message."""
SIGN_IN_RETRIES = 5
"""Maximum retries of a sign-in that the hubs ask to repeat later, as when a whole class signs in at once."""


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
        self._keepers = Affinity()
        self.account_id: str | None = None
        """The signed-in account; ``None`` for the operator."""
        self.must_change_password = False
        """Signed in with a one-time password: ``call_hub("change_password", …)`` is the only call allowed."""
        self.status: Status = "connecting"

    @classmethod
    async def sign_in(cls, url: str, email: str, password: str, *, ca_file: Path | str | None = None) -> Client:
        """Sign in with an account over HTTPS and connect over WebSocket, both through the proxy at ``url``.

        Raises :class:`SignInError` when the e-mail or password is wrong, and :class:`ConnectionLostError` when
        ``url`` does not answer.
        """
        session = _Session(url, ca_file)
        client = cls()
        client._session = session
        try:
            body = await session.sign_in(email, password)
            client.account_id = check_id(str(body["account_id"]), "account_id")
            client.must_change_password = body.get("must_change_password") is True
            client._hub_subject = f"hub.api.{client.account_id}"
            address = session.origin.replace("http", "ws", 1) + body["nats"]["path"]
            await client._open(
                NatsServers(urls=[address], ca_file=session.ca_file),
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
        """Connect as the operator with the creds of ``PLATFORM/admin``. :meth:`call_hub` then calls ``hub.admin``.

        ``nats_url`` is the URL of one server, or the URLs of all servers of a cluster. ``creds`` is a path or a
        :class:`~natskit.bus.credentials.CredsText`. The audit log records ``said_by`` as the user's name.
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
        """The underlying nats-py client, for calls that this class does not offer."""
        if self._connection is None:
            raise ConnectionLostError("the client is not connected")
        return self._connection

    async def call_hub(self, method: str, *, wait: float = CALL_SECONDS, **params: Any) -> Any:
        """Call a method of the hub.

        Raises :class:`RpcError`, :class:`ConnectionLostError`, or :class:`SignInError` when the session has ended.
        """
        if method in OVER_HTTP and self._session is not None:
            result = await self._session.call(method, params, wait)
            self.must_change_password &= method != "change_password"
            return result
        if method not in CHANGES_RIGHTS or self.account_id is None:
            return await self._call(self._hub_subject, method, params, wait)
        if method == "create_project":
            params.setdefault("key", secrets.token_hex(16))
        # The hub disconnects the client, and the new connection has the rights to the new project. Wait for it, so
        # that the next call is not in flight at the disconnect.
        back = asyncio.Event()
        forget = self.connection.on_reconnect(back.set)
        try:
            result = await self._call(self._hub_subject, method, params, wait)
            await _is_set(back, RECONNECT_SECONDS)
        finally:
            forget()
        return result

    async def list_hub(self, method: str, *, wait: float = CALL_SECONDS, **params: Any) -> list[dict[str, Any]]:
        """All rows of a hub method that returns a list, fetched in as many requests as needed.

        Raises the errors of :meth:`call_hub`. Rows added or removed during the call may or may not be included.
        """
        try:
            return list(await self.call_hub(method, wait=wait, **params))
        except rpc.RpcError as error:
            if error.kind != "limit":
                raise
        found: list[dict[str, Any]] = []
        limit = PART_ROWS
        while True:
            try:
                part = await self.call_hub(method, wait=wait, offset=len(found), limit=limit, **params)
            except rpc.RpcError as error:
                if error.kind != "limit" or limit == 1:
                    raise
                limit = (limit + 3) // 4  # this many rows do not fit into one message
            else:
                found += part
                if len(part) < limit:
                    return found

    async def call_project(self, project_id: str, method: str, *, wait: float = CALL_SECONDS, **params: Any) -> Any:
        """Call a method of a project's agent.

        Raises :class:`RpcError`, :class:`ConnectionLostError`, or :class:`NotAllowedError` when the caller may not
        use the project.
        """
        check_id(project_id, "project_id")
        return await self._call(f"projects.{project_id}.api", method, params, wait)

    async def call_runner(
        self,
        runner_id: str,
        method: str,
        params: dict[str, Any],
        data: bytes = b"",
        *,
        wait: float = CALL_SECONDS,
        service: str = "move",
    ) -> tuple[Any, memoryview]:
        """Call a method of a runner that moves or backs up projects, with data after the request. Only the operator
        may. ``service`` is ``move`` or ``backup``.

        Returns the result, and the data after it. Raises the errors of :meth:`call_project`.
        """
        check_id(runner_id, "runner_id")
        return await self._exchange(f"runners.{runner_id}.{service}", method, params, data, wait)

    async def call_documents(
        self, project_id: str, method: str, *, document: str = "-", wait: float = CALL_SECONDS, **params: Any
    ) -> Any:
        """Call a method of the documents service, about a document by its id, or about a project
        (docs/reference/documents.md).

        Raises the errors of :meth:`call_project`.
        """
        check_id(project_id, "project_id")
        if document != "-":
            check_id(document, "document")
        who = self.account_id or "admin"
        any_keeper = f"docs.{who}.{project_id}.{document}"

        async def send(subject: str) -> Any:
            is_patient = subject == any_keeper
            return (await self._exchange(subject, method, params, b"", wait, is_patient=is_patient))[0]

        return await self._keepers.ask(any_keeper, send)

    async def list_documents(self, project_id: str) -> list[dict[str, Any]]:
        """The documents of a project, sorted by path (docs/reference/documents.md): they come in pages.

        Raises the errors of :meth:`call_documents`.
        """
        found: list[dict[str, Any]] = []
        while page := await self.call_documents(project_id, "list", after=found[-1]["document_id"] if found else ""):
            found += page
        return sorted(found, key=lambda each: str(each["path"]))

    def document(
        self,
        project_id: str,
        path: str | None = None,
        *,
        document_id: str | None = None,
        create: bool = False,
        text: str = "",
    ) -> Document:
        """A document of a project, by its path or id, in step with everybody else's. Use it with ``async with``.

        With ``create``, the document is made if there is none, with this ``text``. Needs the extra ``keeper``.
        """
        check_id(project_id, "project_id")
        if (path is None) == (document_id is None):
            raise NatskitError("name a document either by its path or by its document_id")
        from natskit.document import Document  # pycrdt, which most clients do not need

        return Document(self, project_id, path=path, document_id=document_id, create=create, text=text)

    async def list_directory(self, project_id: str, path: str = ".") -> AsyncIterator[dict[str, Any]]:
        """Yield the entries of a project's folder, sorted by name. The folder may be of any size.

        Raises the errors of :meth:`call_project`. Entries added or removed during the call may or may not be included.
        """
        after: str | None = ""
        while after is not None:
            try:
                page = await self.call_project(
                    project_id, "list_directory_page", path=path, after=after, limit=PAGE_ENTRIES
                )
            except rpc.RpcError as error:
                if error.kind != "method_not_found":
                    raise
                # An agent of an earlier version runs until its project is stopped.
                page = {"entries": await self.call_project(project_id, "list_directory", path=path), "next": None}
            for entry in page["entries"]:
                yield entry
            after = page["next"]

    async def watch_directory(self, project_id: str, path: str = ".") -> AsyncGenerator[frozenset[str] | None, None]:
        """Yield the names in a project's folder that were made, removed, renamed or written, as they change.

        It is about the folder itself, not about what is in the folders below it. ``None``, which comes first, and again
        when something may have been missed, means that anything may have changed: list the folder. A watch survives
        reconnects and restarts. Only an account can watch, not the operator, who gets no events of projects.

        Raises the errors of :meth:`call_project`: ``not_found`` when the folder is not there any more, ``limit`` if too
        many are watched.
        """
        check_id(project_id, "project_id")
        async with contextlib.aclosing(watch(self, project_id, path)) as changes:
            async for names in changes:
                yield names

    def files(self, project_id: str, patience: float = PATIENCE_SECONDS) -> ProjectFiles:
        """The files of a project: to read, upload and download them, of any kind and size.

        A transfer waits ``patience`` seconds for a project that does not answer, and continues when it is back.
        """
        check_id(project_id, "project_id")

        def exchange(
            method: str, params: dict[str, Any], data: bytes | Pieces, wait: float
        ) -> Awaitable[tuple[Any, memoryview]]:
            return self._exchange(f"projects.{project_id}.api", method, params, data, wait)

        return ProjectFiles(exchange, self.connection.max_payload, patience)

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
        """Run a program (``argv``) or a shell command line (``command``). Use the result with ``async with``."""
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
        return Execution(self, project_id, "exec", wanted)

    def job(self, project_id: str, job_id: str) -> Execution:
        """Read what a job prints. ``call_project(project_id, "job.start", …)`` starts one, and returns its id.

        Leaving the ``async with`` block does not end a job, and neither does :meth:`Execution.cancel`:
        ``call_project(project_id, "job.end", job=job_id)`` does.
        """
        check_id(project_id, "project_id")
        return Execution(self, project_id, "job.attach", {"job": job_id})

    def terminal(
        self,
        project_id: str,
        name: str,
        *,
        columns: int = 80,
        rows: int = 24,
        visible: bool = True,
        read_only: bool = False,
        scrollback: int | None = None,
    ) -> Terminal:
        """View a terminal of a project. Use the result with ``async with``.

        ``call_project(project_id, "terminal.create", …)`` starts one, and returns its name. ``columns`` and ``rows``
        are the size of the viewer's window: the terminal is as large as the smallest that is ``visible``.
        ``scrollback`` limits the rows that come with the screen.
        """
        check_id(project_id, "project_id")
        view = {"terminal": name, "columns": columns, "rows": rows, "visible": visible, "read_only": read_only}
        return Terminal(self, project_id, view if scrollback is None else view | {"scrollback": scrollback})

    async def open_stream(self, project_id: str, reader: Reader, body: bytes) -> None:
        """Send a request whose answer is a stream, and let the reader ask again when a connection is back."""
        await self._watch(project_id)
        self._readers.setdefault(project_id, set()).add(reader)
        try:
            await reader.open(f"projects.{project_id}.api", body)
        except BaseException:
            await self.close_stream(project_id, reader)
            raise

    async def close_stream(self, project_id: str, reader: Reader) -> None:
        """Stop reading."""
        self._readers[project_id].discard(reader)
        await reader.close()

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]]
    ) -> Callable[[], Awaitable[None]]:
        """Await ``callback(message)`` for each message, in order. Returns a function that ends the subscription."""
        subscription = await self.connection.subscribe(subject, cb=callback)

        async def unsubscribe() -> None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

        return unsubscribe

    async def publish(self, subject: str, data: bytes) -> None:
        """Publish one message. Raises :class:`ConnectionLostError` when it can be neither sent nor buffered."""
        try:
            await self.connection.publish(subject, data)
        except nats.errors.Error as error:
            raise ConnectionLostError(f"{subject}: {error}") from error

    def on_status(self, callback: OnStatus) -> None:
        """Call ``callback(status, reason)`` when the client disconnects, retries, reconnects or closes."""
        self._watchers.append(callback)

    async def sign_out(self) -> None:
        """End the session on the server, which disconnects all its connections, and close the client.

        Raises :class:`ConnectionLostError`, and stays open, when no hub could end the session. :meth:`close` never
        raises this error.
        """
        if self._session is not None:
            await self._session.sign_out()
        await self.close()

    async def close(self) -> None:
        """Close the connection and end the session that :meth:`sign_in` opened.

        If no hub answers, the session remains until it expires or the account reaches its session limit.
        """
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

    async def _watch(self, project_id: str) -> None:
        """Listen for the project's reconnects. The operator may not, and notices a reconnect a little later."""
        if self.account_id is None or project_id in self._watched:
            return
        self._watched.add(project_id)

        async def on_event(_message: Msg) -> None:
            for reader in list(self._readers.get(project_id, ())):
                reader.ask_again()

        await self.subscribe(f"events.project.{project_id}.agent", on_event)

    async def _call(self, subject: str, method: str, params: dict[str, Any], wait: float) -> Any:
        return (await self._exchange(subject, method, params, b"", wait))[0]

    async def _exchange(
        self,
        subject: str,
        method: str,
        params: dict[str, Any],
        data: bytes | Pieces,
        wait: float,
        *,
        is_patient: bool = True,
    ) -> tuple[Any, memoryview]:
        """Send a request, with data after its JSON. Returns the result, and the data after that.

        Repeat the request if that is safe: after a lost answer to an idempotent method, after a moment without a
        subscriber, after a change of rights, or when the hub names a time to retry. Without ``is_patient``, wait for
        neither a subscriber nor a time.
        """
        body = rpc.encode_request(method, params, said_by=self._said_by if subject == "hub.admin" else "")
        back = asyncio.Event()
        forget = self.connection.on_reconnect(back.set)
        loop = asyncio.get_running_loop()
        lost, absent, deadline = False, not is_patient, loop.time() + wait
        try:
            while True:
                back.clear()
                left = deadline - loop.time()
                try:
                    answer, answer_data = await request_with_data(self.connection, subject, body, data, wait)
                    return rpc.decode_response(answer), answer_data
                except AbsentError:
                    if absent or left <= ABSENT_SECONDS:
                        raise
                    absent = True
                    await asyncio.sleep(ABSENT_SECONDS)
                except AnswerLostError:
                    if left <= 0 or method not in IDEMPOTENT:
                        raise
                    lost = True
                except NotAllowedError:
                    if left <= 0 or not await _is_set(back, GRANT_SECONDS):
                        raise
                except rpc.RpcError as error:
                    if lost and method == "delete_project" and error.kind == "not_found":
                        return {"project_id": params["project_id"]}, memoryview(
                            b""
                        )  # the lost answer confirmed this deletion
                    seconds = _seconds_to_wait(error)
                    if seconds is None or seconds > left or not is_patient:
                        raise
                    await asyncio.sleep(seconds)
        finally:
            forget()

    def _on_status(self, status: Status, reason: str) -> None:
        self.status = status
        for watcher in list(self._watchers):
            watcher(status, reason)


class Execution:
    """A running command. Iterate over its output, then read how it ended from the attributes.

    Leaving the ``async with`` block before the command ends cancels the command.
    """

    def __init__(self, client: Client, project_id: str, method: str, params: dict[str, Any]) -> None:
        self.exit_code: int | None = None
        self.signal: str | None = None
        """The signal that ended the command, such as ``SIGTERM`` or ``SIGRTMIN+1``."""
        self.signal_number: int | None = None
        """The signal's number on the project's host. A shell there would report exit code 128 + this number."""
        self.timed_out = False
        self.cancelled = False
        self.dropped_bytes = 0
        """Output of a job that was printed too long ago, or too fast for its reader."""
        self._client = client
        self._project_id = project_id
        self._reader = Reader(client.connection)
        self._body = rpc.encode_request(method, params)

    async def __aenter__(self) -> Self:
        await self._client.open_stream(self._project_id, self._reader, self._body)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        while (frame := await self._reader.frame()) is not None:
            if frame[0] == "event":
                self.dropped_bytes += json.loads(frame[1])["bytes"]
            else:
                yield frame
        try:
            outcome = _Outcome.model_validate(self._reader.result)
        except ValidationError:
            raise rpc.RpcError("internal_error", "the project did not say how the command ended") from None
        self.exit_code, self.signal = outcome.exit_code, outcome.signal
        self.signal_number = outcome.signal_number
        if self.signal is not None and self.signal_number is None:  # an agent of an earlier version does not send it
            self.signal_number = signal_number(self.signal)
        self.timed_out, self.cancelled = outcome.timed_out, outcome.cancelled

    async def output(self) -> tuple[bytes, bytes]:
        """Wait until the command ends. Returns all of its stdout and all of its stderr."""
        parts: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        async for stream, data in self:
            parts[stream] += data
        return bytes(parts["stdout"]), bytes(parts["stderr"])

    async def write(self, data: bytes) -> None:
        """Send data to the command's stdin (``stdin_stream=True``). Waits while the command does not read.

        For a command that writes while it reads, such as ``cat``, write in a separate task and read the output at the
        same time. Otherwise both sides can block, as with any pair of pipes.
        """
        await self._reader.write(data)

    async def close_stdin(self) -> None:
        """Close the command's stdin."""
        await self._reader.end_of_input()

    async def cancel(self) -> None:
        """Ask the command to end. Its remaining output and its result still arrive."""
        await self._reader.control({"type": "cancel"})

    async def leave(self) -> None:
        """End the command and stop reading, as leaving the block does. Returns once the request is sent."""
        await self._close()
        with contextlib.suppress(nats.errors.Error):
            await self._client.connection.flush()

    async def _close(self) -> None:
        await self._client.close_stream(self._project_id, self._reader)


def _seconds_to_wait(error: rpc.RpcError) -> float | None:
    """Seconds until the retry that an overloaded hub asks for; ``None`` if the error does not ask for one."""
    seconds = error.data.get("retry_after")
    return float(seconds) if error.kind == "unavailable" and isinstance(seconds, int | float) else None


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event is set within ``seconds``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class _Outcome(BaseModel):
    exit_code: int | None
    signal: str | None
    signal_number: int | None = None
    timed_out: bool
    cancelled: bool


class _Session:
    """An HTTP session, as a browser has it: holds the cookie and refreshes it."""

    def __init__(self, url: str, ca_file: Path | str | None) -> None:
        try:
            self.origin = origin(url)
        except ValueError as error:
            raise NatskitError(f"{url!r} is not a URL such as https://localhost:4043: {error}") from None
        self.ca_file = Path(ca_file) if ca_file is not None else None
        try:
            context = client_context(self.ca_file)
        except OSError as error:
            raise NatskitError(f"the CA file {self.ca_file}: {error.strerror or error}") from error
        self._http = httpx.AsyncClient(
            base_url=self.origin,
            headers={"Origin": self.origin, "User-Agent": f"natskit/{__version__}"},
            verify=context,
            timeout=10,
            trust_env=False,
        )
        self._refreshed = False
        self._signed_in = False

    async def sign_in(self, email: str, password: str) -> dict[str, Any]:
        for retries in range(SIGN_IN_RETRIES, -1, -1):
            answer = await self._send("POST", "/api/sign-in", json={"email": email, "password": password})
            seconds = answer.headers.get("Retry-After", "")
            if not (retries and answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and seconds.isdecimal()):
                break
            await asyncio.sleep(int(seconds))
        if answer.status_code != httpx.codes.OK:
            raise SignInError(_message(answer))
        self._refreshed = self._signed_in = True
        return dict(answer.json())

    async def call(self, method: str, params: dict[str, Any], wait: float) -> Any:
        """Send one request with the session's cookie. Raises the errors of :meth:`Client.call_hub`."""
        answer = await self._send("POST", "/api/rpc", content=rpc.encode_request(method, params), timeout=wait)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise SignInError("the session has ended: sign in again")
        if answer.status_code != httpx.codes.OK:
            raise ConnectionLostError(f"{self.origin}: {_message(answer)}")
        return rpc.decode_response(answer.content)

    async def headers(self) -> dict[str, str]:
        """The headers of the WebSocket upgrade. Refreshes the cookie before every attempt except the first."""
        if not self._refreshed:
            with contextlib.suppress(ConnectionLostError):  # the hubs may be down while the server is up
                answer = await self._send("GET", "/api/session")
                if answer.status_code == httpx.codes.UNAUTHORIZED:
                    raise SignInError("the session has ended: sign in again")
        self._refreshed = False
        cookie = "; ".join(f"{item.name}={item.value}" for item in self._http.cookies.jar)
        return {"Cookie": cookie, "Origin": self.origin}

    async def sign_out(self, wait: float = CALL_SECONDS) -> None:
        answer = await self._send("POST", "/api/sign-out", timeout=wait)
        if answer.is_error:
            raise ConnectionLostError(f"{self.origin}: {_message(answer)}")
        self._signed_in = False

    async def close(self) -> None:
        try:
            if self._signed_in:
                with contextlib.suppress(ConnectionLostError):
                    await self.sign_out(SIGN_OUT_SECONDS)
        finally:
            await self._http.aclose()

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            cas = f" (CAs: {trusted(self.ca_file)})" if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
            raise ConnectionLostError(f"{self.origin}: {error or type(error).__name__}{cas}") from error


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"refused with HTTP status {answer.status_code}"
