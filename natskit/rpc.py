"""JSON-RPC 2.0: a table of typed methods, and the bytes of requests and responses.

The hub and the project agent answer through a :class:`Methods` table each; a platform adds its own methods to them in
the same way (README, "Your own API"). The same table answers over NATS and over HTTP. Source of the format:
the JSON-RPC 2.0 specification, of which batches are refused: a request is one message, so that a right to ask once is
never a right to ask a thousand times.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

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
    """An error that goes to the caller as it is: a kind (``not_found``, ``forbidden``, ...) and a message.

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
        """The error a response carries; an unknown kind becomes ``internal_error``."""
        data = dict(error.get("data") or {})
        kind = data.pop("kind", None)
        if kind not in _KINDS:
            kind = next((k for k, code in _KINDS.items() if code == error.get("code")), "internal_error")
        return cls(str(kind), str(error.get("message", "unknown error")), **data)


@dataclass(frozen=True)
class Request:
    """One call: its id (``None`` for a notification), the method's name and the parameters by name."""

    id: str | int | float | None
    method: str
    params: dict[str, Any]
    is_notification: bool = False
    said_by: str = ""
    """Who is asking, as the caller says: for the audit, never for a right. A member of natskit's own."""


@dataclass(frozen=True)
class _Method:
    handler: Handler
    params: type[BaseModel] | None
    names: tuple[str, ...] = ()


@dataclass
class Methods(Generic[CallerT]):
    """A table of methods, each called as ``handler(caller, **params)`` with validated, typed parameters."""

    _table: dict[str, _Method] = field(default_factory=dict)

    def method(self, name: str | None = None) -> Callable[[HandlerT], HandlerT]:
        """Register an ``async`` function whose first parameter is the caller; its annotations are the schema.

        Raises :class:`SettingsError` if the name is taken or a parameter has no annotation.
        """

        def register(handler: HandlerT) -> HandlerT:
            self._add(name or handler.__name__, handler)
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

    async def call(self, caller: CallerT, request: Request) -> Any:
        """Validate the parameters and call. Raises :class:`RpcError`."""
        method = self._table.get(request.method)
        if method is None:
            raise RpcError("method_not_found", f"there is no method {request.method[:64]!r}")
        if method.params is None:
            if request.params:
                raise RpcError("invalid_params", f"{request.method} takes no parameters")
            return await method.handler(caller)
        try:
            params = method.params.model_validate(request.params)
        except ValidationError as error:
            raise RpcError("invalid_params", _explain(request.method, error)) from None
        # Not model_dump: nested models stay models.
        return await method.handler(caller, **{name: getattr(params, name) for name in method.names})

    async def answer(self, caller: CallerT, body: bytes) -> bytes | None:
        """The response to a request's bytes; ``None`` for a notification. Raises nothing but cancellation."""
        identifier: str | int | float | None = None
        notification = False
        try:
            request = parse(body)
            identifier, notification = request.id, request.is_notification
            result = await self.call(caller, request)
            return None if notification else encode_result(identifier, result)
        except RpcError as error:
            return None if notification else encode_error(identifier, error)
        except Exception:
            log.exception("a method failed")
            failure = RpcError("internal_error", "the method failed; the log of the server that ran it says why")
            return None if notification else encode_error(identifier, failure)

    def _add(self, name: str, handler: Handler) -> None:
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
        self._table[name] = _Method(handler, model, tuple(fields))


def parse(body: bytes) -> Request:
    """Read a request's bytes. Raises :class:`RpcError` (``parse_error`` or ``invalid_request``)."""
    try:
        raw = json.loads(body)
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


def decode_response(body: bytes) -> Any:
    """The result in a response's bytes. Raises :class:`RpcError` if it carries an error or is no response."""
    try:
        raw = json.loads(body)
    except ValueError:
        raise RpcError("internal_error", "the answer is not JSON") from None
    if not isinstance(raw, dict) or ("result" not in raw and not isinstance(raw.get("error"), dict)):
        raise RpcError("internal_error", "the answer is not a JSON-RPC response")
    if "error" in raw:
        raise RpcError.from_json(raw["error"])
    return raw["result"]


def load_methods(group: str, attribute: str, packages: Iterable[str]) -> Methods[Any]:
    """The built-in methods of an entry-point ``group`` and those of the ``packages`` named in the settings.

    A package is the name of an entry point in the group, or an importable module with a :class:`Methods` object
    called ``attribute``. Raises :class:`SettingsError` for a package that cannot be found or has no such object.
    """
    known = {point.name: point for point in entry_points(group=group)}
    methods: Methods[Any] = Methods()
    for package in dict.fromkeys(["natskit", *packages]):
        try:
            found = known[package].load() if package in known else getattr(importlib.import_module(package), attribute)
        except (ImportError, AttributeError) as error:
            raise SettingsError(
                f"API package {package!r} is no entry point of group {group!r} and no module with an object "
                f"{attribute!r} ({error}): install it, or correct the name in the settings"
            ) from error
        if not isinstance(found, Methods):
            raise SettingsError(f"API package {package!r}: {attribute!r} must be a natskit.rpc.Methods")
        methods.include(found, package)
    return methods


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_encode_model).encode(
        "utf-8", "surrogatepass"
    )


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
