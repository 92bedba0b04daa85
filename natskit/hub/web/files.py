"""Files of projects over HTTP: ``GET``, ``HEAD`` and ``PUT /api/projects/{project_id}/files/{path}``.

A folder is sent as a zip. The hub passes parts on between the project and the client, a few at a time, so that its
memory does not grow with the files. A file of a project may be of anybody's making, and has the address of the site. So
no browser may take it for a page, a script or a style of the site: all but a few kinds of media are
``application/octet-stream``, which no browser looks into (``nosniff``), and a page that is opened all the same is in a
sandbox without scripts and origin.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack
from email.utils import formatdate
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from natskit import rpc
from natskit.bus.file_transfer import PARTS_IN_FLIGHT, Transfer, Upload, read
from natskit.bus.payload import Pieces
from natskit.bus.permissions import check_id
from natskit.bus.request import request_with_data
from natskit.errors import ConnectionLostError, NatskitError
from natskit.hub.limits.admission import FILE_BYTE_SECONDS, FILE_SECONDS
from natskit.hub.web.context import WebContext
from natskit.hub.web.folders import FolderZip
from natskit.hub.web.responses import MEANT_FOR, RefusedError, check_origin, session_cookie
from natskit.rpc import RpcError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 20.0
"""How long a client waits for a project that does not answer: its agent may be restarted meanwhile."""
MOST_STREAMS, MOST_STREAMS_EACH = 32, 6
"""Files that one hub passes on at a time, and those of one account."""
PARTS = 48
"""Parts of files in the memory of a hub, each of at most 1 MiB."""

MEDIA = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "avif": "image/avif",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp4": "video/mp4",
    "webm": "video/webm",
}
"""The kinds of files that a page of the site may show, by the ends of their names. None of them can contain a script,
as SVG, PDF and HTML can."""
SAFE = {
    "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
STATUS = {
    "invalid_params": 400,
    "forbidden": 403,
    "must_change_password": 403,
    "not_found": 404,
    "conflict": 409,
    "invalid_state": 409,
    "limit": 507,
    "unavailable": 503,
    "timeout": 504,
}
"""The HTTP status of each kind of error."""


class _FilePath(StringConvertor):
    """The rest of a path, which may have lines."""

    regex = "(?:.|\\n)*"


register_url_convertor("file", _FilePath())


class BrokenOffError(BaseException):
    """An answer cannot be sent to its end: the server closes the connection, by which the client notices.

    It is no ``Exception``, as nothing has failed in this hub, and no other answer may follow."""


class _Passed(StreamingResponse):
    """An answer that is passed on from a project. It keeps its place among them until it has ended."""

    def __init__(
        self, parts: AsyncIterator[memoryview | bytes], status: int, headers: dict[str, str], place: ExitStack
    ) -> None:
        super().__init__(parts, status, headers)
        self.place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Raises :class:`BrokenOffError`."""
        with self.place:
            try:
                await super().__call__(scope, receive, send)
            except (NatskitError, RefusedError) as error:
                log.info("%s was not sent to its end: %s", scope["path"][:200], error)
                raise BrokenOffError from None


class FilesOverHttp:
    """The handlers for files. One for each hub: it counts what is passed on."""

    def __init__(self, hub: WebContext) -> None:
        self._hub = hub
        self._streams: dict[str, int] = {}
        """How many files are passed on, by account."""

    def routes(self) -> list[Route]:
        """The paths that it answers."""
        path = "/api/projects/{project_id}/files/{path:file}"
        return [Route(path, self.get, methods=["GET"]), Route(path, self.put, methods=["PUT"])]

    async def get(self, request: Request) -> Response:
        """A file of a project, or a range of it, or a folder as a zip; ``HEAD`` too, which says how much has arrived of
        an upload if it has an ``Upload-Id``."""
        session_id, account = await self._session(request)
        path, upload = _path(request) or ".", _upload_id(request)
        with ExitStack() as place:
            place.enter_context(self._stream(account))
            with self._admitted(account), _refusals():
                await self._check_member(request, session_id, account)
                transfer = self._transfer(request)
                if upload is not None and request.method == "HEAD":
                    return await self._arrived(transfer, path, upload)
                state = await self._look(transfer, path)
                if state is None:
                    return await self._zip(request, account, transfer, path, place)
            return self._file(request, account, transfer, path, state, place)

    async def _look(self, transfer: Transfer, path: str) -> dict[str, Any] | None:
        """The state of a file; ``None`` if it is a folder. Raises what :meth:`Transfer.ask` does."""
        try:
            return dict((await transfer.ask("read_file", {"path": path, "offset": 0, "size": 0}))[0])
        except RpcError as error:
            if error.kind != "invalid_params":
                raise
            entry, _ = await transfer.ask("stat", {"path": f"{path}/"})
            if entry["type"] != "directory":
                raise
            return None

    def _file(
        self,
        request: Request,
        account: str,
        transfer: Transfer,
        path: str,
        state: dict[str, Any],
        place: ExitStack,
    ) -> Response:
        tag, size = f'"{state["tag"]}"', int(state["size"])
        headers = {
            **SAFE,
            "Content-Type": MEDIA.get(path.rpartition(".")[2].lower(), "application/octet-stream"),
            "Content-Disposition": _disposition(path),
            "Accept-Ranges": "bytes",
            "ETag": tag,
            "Last-Modified": formatdate(state["mtime"], usegmt=True),
        }
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        chosen = _range(request, size, tag)
        if chosen is None:
            headers["Content-Range"] = f"bytes */{size}"
            return Response(status_code=416, headers=headers)
        begin, end, status = chosen
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        headers["Content-Length"] = str(end - begin)
        if request.method == "HEAD" or begin == end:
            return Response(status_code=status, headers=headers)
        parts = self._paid(request, account, _data(read(transfer, path, begin, end, state["tag"])))
        return _Passed(parts, status, headers, place.pop_all())

    async def _zip(self, request: Request, account: str, transfer: Transfer, path: str, place: ExitStack) -> Response:
        """A folder, whose size nobody knows before its end."""
        path = path.rstrip("/") or "."
        top = "files" if path.rpartition("/")[2] in (".", "..") else path.rpartition("/")[2]
        headers = {
            **SAFE,
            "Content-Type": "application/zip",
            "Content-Disposition": _disposition(f"{top}.zip"),
            "Accept-Ranges": "none",
        }
        folder = FolderZip(transfer, path, top)
        await folder.open()
        if request.method == "HEAD":
            return Response(headers=headers)
        return _Passed(self._paid(request, account, folder.parts()), 200, headers, place.pop_all())

    async def _arrived(self, transfer: Transfer, path: str, upload: str) -> Response:
        """How much has arrived of an upload that broke off, and whether it is finished, as in
        draft-ietf-httpbis-resumable-upload."""
        answer, _ = await transfer.ask("upload_part", {"path": path, "upload": upload, "offset": 0})
        headers = {"Upload-Offset": str(answer["offset"]), "Upload-Complete": "?0", "Cache-Control": "no-store"}
        if "version" in answer:
            headers |= {"Upload-Complete": "?1", "Upload-Version": answer["version"]}
        return Response(status_code=204, headers=headers)

    async def put(self, request: Request) -> Response:
        """Replace a file of a project. ``If-None-Match: *`` makes a new one only.

        What has arrived of an upload with an ``Upload-Id`` is kept when the upload breaks off. The same request goes on
        with it: the body begins where ``Content-Range`` says, or with the file. Bytes that are there are skipped.
        """
        check_origin(self._hub, request)
        session_id, account = await self._session(request)
        if "if-match" in request.headers:
            raise RefusedError(400, "invalid_request", "PUT takes no If-Match")
        chosen = _upload_id(request)
        begin, size = _sent_range(request, chosen)
        expected = "absent" if request.headers.get("if-none-match") == "*" else None
        with self._stream(account), self._admitted(account), _refusals():
            await self._check_member(request, session_id, account)
            upload = Upload(self._transfer(request), _path(request), chosen or secrets.token_hex(16))
            try:
                if 0 < begin == size:  # it may be finished: the answer was lost
                    upload.offset = size
                    version = await upload.finish(None, expected)
                else:
                    arrived = await upload.start(size, expected)
                    if begin > arrived:
                        said = f"{arrived} bytes have arrived of this upload: go on from there"
                        raise RefusedError(409, "conflict", said)
                    version = await self._receive(request, account, upload, expected, arrived - begin)
            except BaseException as error:
                await upload.leave()
                if chosen is None:
                    with contextlib.suppress(NatskitError):
                        await upload.cancel()
                if isinstance(error, ClientDisconnect):  # nobody reads an answer
                    raise RefusedError(400, "invalid_request", "the body broke off") from None
                raise
        return JSONResponse({"version": version})

    async def _receive(self, request: Request, account: str, upload: Upload, expected: str | None, skipped: int) -> str:
        """Pass the body on, without the bytes at its begin that have arrived before."""
        pieces: list[memoryview] = []
        waiting = 0

        async def send(size: int) -> None:
            nonlocal pieces, waiting
            data, pieces = _cut(pieces, size)
            waiting -= size
            await self._pay(request, account, size, "up")
            await upload.send(data)

        async for chunk in request.stream():
            piece = memoryview(chunk)[skipped:]
            skipped -= min(skipped, len(chunk))
            pieces.append(piece)
            waiting += len(piece)
            while waiting >= upload.part:
                await send(upload.part)
        if waiting:
            await send(waiting)
        return await upload.finish(None, expected)

    async def _paid(
        self, request: Request, account: str, parts: AsyncGenerator[memoryview | bytes, None]
    ) -> AsyncIterator[memoryview | bytes]:
        """What a project sends, as fast as the account may have it. Raises what :meth:`_pay` does."""
        async with contextlib.aclosing(parts):
            async for data in parts:
                await self._pay(request, account, len(data), "down")
                yield data

    async def _session(self, request: Request) -> tuple[str, str]:
        """The session of the cookie, and its account. Raises what
        :meth:`natskit.hub.auth.sessions.Sessions.check` does."""
        cookie, meant = session_cookie(self._hub, request), request.headers.get(MEANT_FOR)
        session_id, session, _ = await self._hub.sessions.check(cookie, meant)
        return session_id, session.account_id

    async def _check_member(self, request: Request, session_id: str, account: str) -> None:
        """Raises :class:`RpcError` unless the account may use the project, and the project runs."""
        await self._hub.dispatcher.check_member(account, session_id, request.path_params["project_id"])

    async def _pay(self, request: Request, account: str, size: int, way: str) -> None:
        """Charge an account for a part of a file, and wait until it may use more of this hub. Raises what
        :meth:`_session` and :meth:`_check_member` do: the account may have lost its rights meanwhile."""
        self._hub.metrics.file_bytes.labels(way).inc(size)
        admission, key = self._hub.dispatcher.admission, f"account.{account}"
        admission.charge(key, size * FILE_BYTE_SECONDS)
        await asyncio.sleep(max(0.0, admission.pause(key)))
        session_id, _ = await self._session(request)
        await self._check_member(request, session_id, account)

    @contextlib.contextmanager
    def _admitted(self, account: str) -> Iterator[None]:
        """Take a request for a file. Raises :class:`RefusedError` if the account has used too much of this hub."""
        admission, key = self._hub.dispatcher.admission, f"account.{account}"
        refusal = admission.enter(key, 0)
        if refusal is not None:
            self._hub.metrics.refused_requests.labels("account").inc()
            raise RefusedError(503, refusal.kind, refusal.message, refusal.data.get("retry_after"))
        admission.charge(key, FILE_SECONDS)
        try:
            yield
        finally:
            admission.leave(key)

    @contextlib.contextmanager
    def _stream(self, account: str) -> Iterator[None]:
        """Take a place for a file that is passed on. Raises :class:`RefusedError` if too many are."""
        self._check_places(account)
        self._streams[account] = self._streams.get(account, 0) + 1
        try:
            yield
        finally:
            self._streams[account] -= 1
            if not self._streams[account]:
                del self._streams[account]

    def _check_places(self, account: str) -> None:
        """Raises :class:`RefusedError` if too many files are passed on."""
        mine = self._streams.get(account, 0)
        if mine >= MOST_STREAMS_EACH or sum(self._streams.values()) >= MOST_STREAMS:
            whose = " of yours" if mine >= MOST_STREAMS_EACH else ""
            raise RefusedError(503, "unavailable", f"too many files{whose} are on their way; try again later", 5)

    def _transfer(self, request: Request) -> Transfer:
        connection, project_id = self._hub.file_connection, check_id(request.path_params["project_id"], "project")

        async def exchange(
            method: str, params: dict[str, Any], data: bytes | Pieces, wait: float
        ) -> tuple[Any, memoryview]:
            body = rpc.encode_request(method, {key: value for key, value in params.items() if value is not None})
            answer, more = await request_with_data(connection, f"projects.{project_id}.api", body, data, wait)
            return rpc.decode_response(answer), more

        return Transfer(exchange, connection.max_payload, PATIENCE_SECONDS, self._parts_in_flight)

    def _parts_in_flight(self) -> int:
        """How many parts each file may have on their way, so that all together fit into memory."""
        return max(1, min(PARTS_IN_FLIGHT, PARTS // max(1, sum(self._streams.values()))))


def _cut(pieces: list[memoryview], size: int) -> tuple[Pieces, list[memoryview]]:
    """The first ``size`` bytes of some pieces, and the pieces after them."""
    first: list[memoryview] = []
    for index, piece in enumerate(pieces):
        first.append(piece[:size])
        if len(piece) >= size:
            return Pieces(*first), [piece[size:], *pieces[index + 1 :]]
        size -= len(piece)
    raise AssertionError("there are not that many bytes")


async def _data(
    parts: AsyncGenerator[tuple[dict[str, Any], memoryview], None],
) -> AsyncGenerator[memoryview | bytes, None]:
    """The parts of a file, without its state."""
    async with contextlib.aclosing(parts):
        async for _, data in parts:
            yield data


def _path(request: Request) -> str:
    """The path of the file, whose name may have any bytes."""
    raw = bytes(request.scope["raw_path"]).partition(b"/files/")[2]
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")


def _length(request: Request) -> int:
    """The size that the client announces; 0 if it announces none."""
    said = request.headers.get("content-length", "")
    return int(said) if said.isascii() and said.isdecimal() else 0


def _upload_id(request: Request) -> str | None:
    """The name that the client gave its upload. Raises :class:`RefusedError` for one that is none."""
    name = request.headers.get("upload-id")
    if name is not None and not re.fullmatch("[0-9a-f]{16,64}", name):
        raise RefusedError(400, "invalid_request", "Upload-Id: an id has 16 to 64 hexadecimal digits, in small letters")
    return name


def _sent_range(request: Request, upload: str | None) -> tuple[int, int]:
    """Where the body begins in the file, and the size of the file; 0 if that is not announced (RFC 9110, 14.5).

    Raises :class:`RefusedError`."""
    said, length = request.headers.get("content-range"), _length(request)
    if upload is not None and "content-length" not in request.headers:
        raise RefusedError(411, "invalid_request", "an upload with an Upload-Id needs a Content-Length")
    if said is None:
        return 0, length
    if upload is None:
        raise RefusedError(
            400, "invalid_request", "PUT takes Content-Range only with an Upload-Id: send the whole file"
        )
    found = re.fullmatch(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})", said, re.ASCII)
    size = int(found[3]) if found else 0
    begin, last = (int(found[1]), int(found[2])) if found and found[1] else (size, size - 1)
    if not found or last + 1 != size or length != size - begin:
        raise RefusedError(
            400,
            "invalid_request",
            "Content-Range: say bytes BEGIN-LAST/SIZE, to the end of the file, or bytes */SIZE if nothing is left",
        )
    return begin, size


def _disposition(path: str) -> str:
    """Has a browser save the file, under its own name (RFC 6266), instead of showing it."""
    name = path.rpartition("/")[2].encode("utf-8", "surrogateescape")
    return f"attachment; filename*=UTF-8''{quote_from_bytes(name, safe='')}"


def _range(request: Request, size: int, tag: str) -> tuple[int, int, int] | None:
    """Where the answer begins and ends, and its status. ``None`` if nothing of the file is in the range.

    Ranges that are not understood, several of them, and those of another state of the file, are ignored (RFC 9110, 14).
    """
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", ""), re.ASCII)
    if found is None or found[0] == "bytes=-" or request.headers.get("if-range", tag) != tag:
        return 0, size, 200
    if not found[1]:
        begin, end = max(0, size - int(found[2])), size
    else:
        begin, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < begin:
            return 0, size, 200
    return (begin, end, 206) if begin < end else None


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turns the errors of a project, and of the way to it, into HTTP's."""
    try:
        yield
    except RpcError as error:
        seconds = error.data.get("retry_after")
        wait = max(1, round(seconds)) if isinstance(seconds, int | float) else None
        raise RefusedError(STATUS.get(error.kind, 500), error.kind, error.message, wait) from None
    except ConnectionLostError as error:
        raise RefusedError(503, "unavailable", f"the project does not answer: {error}; is it running?") from None
