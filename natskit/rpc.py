"""JSON-RPC 2.0: a table of typed methods, and the bytes of requests and responses.

The hub and the project agent each answer from a :class:`Methods` table. A platform adds its own methods in the same
way (docs/how-to/add-your-own-api.md). The same table answers over NATS and over HTTP.

Source: the JSON-RPC 2.0 specification. Batches are refused: one message is one request, so that a batch cannot bypass
the rate limit.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Generic, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from natskit import json_text
from natskit.errors import NatskitError, SettingsError

log = logging.getLogger(__name__)

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

_KINDS = {
    "parse_error": PARSE_ERROR,
    "invalid_request": INVALID_REQUEST,
    "method_not_found": METHOD_NOT_FOUND,
    "invalid_params": INVALID_PARAMS,
    "internal_error": INTERNAL_ERROR,
    "forbidden": -32001,
    "not_found": -32002,
    "conflict": -32003,
    "limit": -32004,
    "unavailable": -32005,
    "timeout": -32006,
    "invalid_state": -32007,
    "must_change_password": -32008,
}

CallerT = TypeVar("CallerT")
Handler = Callable[..., Awaitable[Any]]
HandlerT = TypeVar("HandlerT", bound=Handler)


class RpcError(NatskitError):
    """An error that is sent to the caller unchanged: a kind (``not_found``, ``forbidden``, ...) and a message.

    ``data`` travels in the error's ``data`` member beside ``kind``.
    """

    def __init__(self, kind: str, message: str, **data: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.code = _KINDS[kind]
        self.message = message
        self.data = data

    def to_json(self) -> dict[str, Any]:
        """The ``error`` member of a JSON-RPC response."""
        return {"code": self.code, "message": self.message, "data": {"kind": self.kind, **self.data}}

    @classmethod
    def from_json(cls, error: Mapping[str, Any]) -> RpcError:
        """The error in a response. An unknown kind becomes ``internal_error``."""
        data = dict(error.get("data") or {})
        kind = data.pop("kind", None)
        if kind not in _KINDS:
            kind = next((k for k, code in _KINDS.items() if code == error.get("code")), "internal_error")
        return cls(str(kind), str(error.get("message", "unknown error")), **data)


class NotCalledError(RpcError):
    """The error of a request for which no method was called: there is no such method, or its parameters do not fit."""


_program_name = ["a natskit program"]


def set_program_name(program: str) -> None:
    """Set the name of this program, such as ``hub-2``, that :func:`internal_error` reports."""
    _program_name[0] = program


def internal_error(what: str, error: BaseException) -> RpcError:
    """Log an unexpected error. Returns the error for the caller.

    The caller learns where to look: an error number that the log has too, the program and its host. The caller never
    sees the exception's text, which may contain a secret.
    """
    number, program, host = secrets.token_hex(4), _program_name[0], socket.gethostname()
    log.error("internal error %s: %s", number, what, exc_info=error)
    message = f"internal error {number} in {program} on host {host}: search its log for this number"
    return RpcError("internal_error", message, id=number, program=program, host=host)


@dataclass(frozen=True)
class Request:
    """One call: its id (``None`` for a notification), the method's name and the named parameters."""

    id: str | int | float | None
    method: str
    params: dict[str, Any]
    is_notification: bool = False
    said_by: str = ""
    """The user's name as the caller states it: for the audit log, never for authorization. A natskit extension."""


@dataclass(frozen=True)
class Declaration:
    """The properties of a method, declared where it is defined (:meth:`Methods.method`).

    Clients need ``idempotent``, ``transport`` and ``changes_rights`` before they call. They contain those of the
    built-in methods (:mod:`natskit.methods`), and treat the methods of a platform's own packages as if these had the
    defaults: to ask a hub would cost each client a request at each connection (docs/how-to/add-your-own-api.md).
    """

    access: str | None = None
    """The access rule for callers, by its name in the program that answers. ``None``: the program's default rule."""
    idempotent: bool = False
    """Whether calling it twice does the same as calling it once, so that clients may repeat a lost call."""
    audited: bool | None = None
    """Whether a successful call is an audit event. ``None``: unless the name says that the method only reads
    (``list_...``, ``get_...``, ``..._list``)."""
    transport: Literal["any", "http"] = "any"
    """``http`` if clients that can should call it over HTTP, where the hub knows the caller's session."""
    changes_rights: bool = False
    """Whether it always changes what the caller may do, so that the hub makes the caller reconnect."""
    one_time_password: bool = False
    """Whether an account may call it before it has replaced its one-time password."""
    immediate: bool = False
    """Whether it never waits. It is then answered at once, without a task of its own, if it was quick the last time."""


Authorize = Callable[[Declaration, Mapping[str, Any]], Awaitable[None]]
"""Raises :class:`RpcError` if the caller may not call a method with these (validated) parameters."""


@dataclass(frozen=True)
class _Method:
    handler: Handler
    declaration: Declaration
    params: type[BaseModel] | None
    names: tuple[str, ...] = ()


@dataclass
class Methods(Generic[CallerT]):
    """A table of methods, each called as ``handler(caller, **params)`` with validated, typed parameters."""

    _table: dict[str, _Method] = field(default_factory=dict)

    def method(
        self,
        name: str | None = None,
        *,
        access: str | None = None,
        idempotent: bool = False,
        audited: bool | None = None,
        transport: Literal["any", "http"] = "any",
        changes_rights: bool = False,
        one_time_password: bool = False,
        immediate: bool = False,
    ) -> Callable[[HandlerT], HandlerT]:
        """Register an ``async`` function. Its first parameter is the caller; the others' annotations are the schema.

        The keywords are those of :class:`Declaration`. Raises :class:`SettingsError` if the name is taken or a
        parameter has no annotation.
        """
        declaration = Declaration(access, idempotent, audited, transport, changes_rights, one_time_password, immediate)

        def register(handler: HandlerT) -> HandlerT:
            self._add(name or handler.__name__, handler, declaration)
            return handler

        return register

    def include(self, other: Methods[CallerT], origin: str) -> None:
        """Add another table's methods. Raises :class:`SettingsError`, naming ``origin``, if a name is taken."""
        for name, method in other._table.items():
            if name in self._table and self._table[name] is not method:
                raise SettingsError(f"method {name!r} of {origin} is already registered: give it another name")
            self._table[name] = method

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._table)

    def declarations(self) -> dict[str, Declaration]:
        """What each method needs and does, by name."""
        return {name: self._table[name].declaration for name in self.names()}

    def declaration(self, name: str) -> Declaration | None:
        """What a method needs and does; ``None`` if there is no such method."""
        method = self._table.get(name)
        return method.declaration if method is not None else None

    def parameters(self, name: str) -> tuple[str, ...]:
        """The names of a method's parameters."""
        return self._table[name].names

    async def call(self, caller: CallerT, request: Request, authorize: Authorize | None = None) -> Any:
        """Validate the parameters, ask ``authorize``, and call.

        Raises :class:`RpcError`; its subclass :class:`NotCalledError` if there is no such method or its parameters do
        not fit.
        """
        method = self._table.get(request.method)
        if method is None:
            raise NotCalledError("method_not_found", f"there is no method {request.method[:64]!r}")
        if method.params is None:
            if request.params:
                raise NotCalledError("invalid_params", f"{request.method} takes no parameters")
            if authorize is not None:
                await authorize(method.declaration, {})
            return await method.handler(caller)
        try:
            params = method.params.model_validate(request.params)
        except ValidationError as error:
            raise NotCalledError("invalid_params", _explain(request.method, error)) from None
        # Not model_dump: nested models stay models.
        arguments = {name: getattr(params, name) for name in method.names}
        if authorize is not None:
            await authorize(method.declaration, arguments)
        return await method.handler(caller, **arguments)

    async def answer(self, caller: CallerT, body: bytes, most: int | None = None) -> bytes | None:
        """The response to a request's bytes; ``None`` for a notification. Only cancellation is raised.

        A response larger than ``most`` bytes, the limit of a message, is replaced by an error that says so.
        """
        identifier: str | int | float | None = None
        notification = False
        try:
            request = parse(body)
            identifier, notification = request.id, request.is_notification
            result = await self.call(caller, request)
            if notification:
                return None
            answer = encode_result(identifier, result)
            return answer if most is None else fitted(identifier, answer, most)
        except RpcError as error:
            return None if notification else encode_error(identifier, error)
        except Exception as error:
            failure = internal_error("a method failed", error)
            return None if notification else encode_error(identifier, failure)

    def _add(self, name: str, handler: Handler, declaration: Declaration) -> None:
        if name in self._table:
            raise SettingsError(f"method {name!r} is already registered: give it another name")
        hints = get_type_hints(handler, include_extras=True)
        fields: dict[str, Any] = {}
        for parameter in list(inspect.signature(handler).parameters.values())[1:]:
            if parameter.name not in hints:
                raise SettingsError(f"method {name!r}: parameter {parameter.name!r} needs a type annotation")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
        model = create_model(f"{name}_params", __config__=ConfigDict(extra="forbid"), **fields) if fields else None
        self._table[name] = _Method(handler, declaration, model, tuple(fields))


def parse(body: bytes) -> Request:
    """Read a request's bytes. Raises :class:`RpcError` (``parse_error`` or ``invalid_request``)."""
    try:
        raw = json_text.read(body)
    except (ValueError, RecursionError):
        raise RpcError("parse_error", "the request is not JSON") from None
    if not isinstance(raw, dict):
        raise RpcError("invalid_request", "the request must be one JSON object (batches are not supported)")
    if raw.get("jsonrpc") != "2.0":
        raise RpcError("invalid_request", 'the request must say "jsonrpc": "2.0"')
    method, params, identifier = raw.get("method"), raw.get("params", {}), raw.get("id")
    if not isinstance(method, str):
        raise RpcError("invalid_request", "the request's method must be a string")
    if not isinstance(params, dict):
        raise RpcError("invalid_request", "the request's params must be an object (parameters go by name)")
    infinite = isinstance(identifier, float) and not math.isfinite(identifier)
    if isinstance(identifier, bool) or not isinstance(identifier, str | int | float | None) or infinite:
        raise RpcError("invalid_request", "the request's id must be a string, a number or null")
    said_by = raw.get("said_by")
    return Request(
        identifier,
        method,
        params,
        is_notification="id" not in raw,
        said_by=said_by if isinstance(said_by, str) else "",
    )


def encode_request(
    method: str, params: Mapping[str, Any] | None = None, identifier: str | int = 1, said_by: str = ""
) -> bytes:
    """The bytes of a request."""
    body = {"jsonrpc": "2.0", "id": identifier, "method": method, "params": dict(params or {})}
    return _dump(body | ({"said_by": said_by} if said_by else {}))


def encode_result(identifier: str | int | float | None, result: Any) -> bytes:
    """The bytes of a successful response."""
    return _dump({"jsonrpc": "2.0", "id": identifier, "result": result})


def encode_error(identifier: str | int | float | None, error: RpcError) -> bytes:
    """The bytes of a failed response."""
    return _dump({"jsonrpc": "2.0", "id": identifier, "error": error.to_json()})


def fitted(identifier: str | int | float | None, answer: bytes, most: int) -> bytes:
    """The response, or an error in its place if it is larger than the server's limit for one message."""
    if len(answer) <= most:
        return answer
    message = f"the answer has {len(answer):,} bytes, more than the {most:,} that fit into one message; ask for less"
    return encode_error(identifier, RpcError("limit", message, size=len(answer), limit=most))


def decode_response(body: bytes) -> Any:
    """The result in a response's bytes. Raises :class:`RpcError` if it is an error or not a response."""
    try:
        raw = json_text.read(body)
    except ValueError:
        raise RpcError("internal_error", "the answer is not JSON") from None
    if not isinstance(raw, dict) or ("result" not in raw and not isinstance(raw.get("error"), dict)):
        raise RpcError("internal_error", "the answer is not a JSON-RPC response")
    if "error" in raw:
        raise RpcError.from_json(raw["error"])
    return raw["result"]


def size_of(value: Any) -> int:
    """The size of a value in a response, in bytes."""
    return len(_dump(value))


def load_methods(group: str, attribute: str, packages: Iterable[str]) -> Methods[Any]:
    """The built-in methods of an entry-point ``group`` and the methods of the ``packages`` in the settings.

    A package is the name of an entry point in the group, or an importable module with a :class:`Methods` object
    called ``attribute``. Raises :class:`SettingsError` for a package that is not found or lacks that object.
    """
    known = {point.name: point for point in entry_points(group=group)}
    methods: Methods[Any] = Methods()
    for package in dict.fromkeys(["natskit", *packages]):
        try:
            found = known[package].load() if package in known else getattr(importlib.import_module(package), attribute)
        except (ImportError, AttributeError) as error:
            raise SettingsError(
                f"API package {package!r} is neither an entry point of group {group!r} nor a module with an object "
                f"{attribute!r} ({error}): install it, or correct the name in the settings"
            ) from error
        if not isinstance(found, Methods):
            raise SettingsError(f"API package {package!r}: {attribute!r} must be a natskit.rpc.Methods")
        methods.include(found, package)
    return methods


def _dump(value: Any) -> bytes:
    return json_text.write(value, _encode_model)


def _encode_model(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"a method returned {type(value).__name__}, which is not JSON")


def _explain(method: str, error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "params"
    if first["type"] == "extra_forbidden":
        return f"{method} has no parameter {place!r}"
    if first["type"] == "missing":
        return f"{method} needs the parameter {place!r}"
    return f"{method}: {place}: {first['msg']}"
