"""JSON, quickly, and with the meaning that the standard library gives it.

msgspec takes a tenth of the time. It refuses some of what :mod:`json` reads: NaN and infinities, lone surrogates,
UTF-16. It writes some of what :mod:`json` refuses, such as bytes, sets, dates and the fields of any dataclass, which
may be secrets; and NaN as null. So msgspec reads what it can, and writes plain values. Everything else is up to
:mod:`json`, whose errors are the errors here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import msgspec

_read = msgspec.json.Decoder().decode
_write = msgspec.json.Encoder().encode
_write_sorted = msgspec.json.Encoder(order="deterministic").encode
_PLAIN = frozenset({str, int, bool, type(None)})


def read(text: bytes) -> Any:
    """The value of a JSON text. Raises :class:`ValueError` and :class:`RecursionError`, as :func:`json.loads` does."""
    try:
        return _read(text)
    except ValueError:
        return json.loads(text)


def write(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """The JSON text of a value. ``default`` replaces what has no JSON by something that has. Raises what
    :func:`json.dumps` does. A lone surrogate, which has no UTF-8 encoding, becomes an escape such as ``\\udcff``."""
    try:
        if _is_plain(value):
            return _write(value)
    except (UnicodeEncodeError, RecursionError):
        pass
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=default)
    return text.encode("utf-8", "backslashreplace")


def write_sorted(value: Any) -> bytes:
    """The JSON text of a value, whose objects have their members in the order of their names, in ASCII."""
    try:
        if _is_plain(value) and (text := _write_sorted(value)).isascii():
            return text
    except (UnicodeEncodeError, RecursionError):
        pass
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _is_plain(value: Any) -> bool:
    """Whether a value consists of what has one meaning in JSON: nothing but the types that :func:`read` returns."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not (type(item) in _PLAIN or _is_plain(item)):
                return False
        return True
    if kind is list or kind is tuple:
        return all(type(item) in _PLAIN or _is_plain(item) for item in value)
    return kind is float and math.isfinite(value)
