"""natskit's JSON has the meaning of the standard library's."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from collections import OrderedDict, namedtuple
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natskit import json_text

READ = {
    "NaN": b'{"a":NaN}',
    "infinity": b"[Infinity, -Infinity]",
    "a number above the largest double": b"[1e400]",
    "a number below the smallest double": b"[5e-325, -1e-400]",
    "integers around 64 bits": b"[9223372036854775808, 18446744073709551616, -9223372036854775809]",
    "an integer of 30 digits": b'{"a":123456789012345678901234567890}',
    "an integer of 4300 digits": b"1" * 4300,
    "an integer of 5000 digits": b"1" * 5000,
    "zeros": b"[-0, -0.0, 0.0, 0e5]",
    "the same name twice": b'{"a":1,"b":{"c":1,"c":2},"a":[]}',
    "a lone surrogate": rb'{"a":"\ud800","\udc00":1}',
    "surrogates in the wrong order": rb'["\udc00\ud800"]',
    "a pair of surrogates": rb'["\ud83d\ude00"]',
    "a surrogate in bytes": b'["\xed\xa0\x80"]',
    "NUL": rb'["\u0000"]',
    "a byte order mark": b"\xef\xbb\xbf[1]",
    "UTF-16": "[1]".encode("utf-16"),
    "UTF-32": "[1]".encode("utf-32-be"),
    "no UTF-8": b'["\xff"]',
    "an overlong encoding": b'["\xc0\x80"]',
    "control characters": b'["a\tb"]',
    "a trailing comma": b"[1,]",
    "something behind": b"[1] 2",
    "NUL behind": b"[1]\x00",
    "spaces around": b" \r\n\t[1] \n",
    "other spaces": b"\x0c[1]\xc2\xa0",
    "a leading zero": b"[01]",
    "a plus": b"[+1]",
    "half a number": b"[1., .5]",
    "half an escape": rb'["\u12"]',
    "an unknown escape": rb'["\x"]',
    "an odd escape": rb'["\u+123"]',
    "single quotes": b"['a']",
    "a comment": b"[1] // one",
    "nothing": b"",
    "900 brackets": b"[" * 900 + b"]" * 900,
    "5,000 brackets": b"[" * 5000 + b"]" * 5000,
    "100,000 brackets that are never closed": b"[" * 100_000,
}


def outcome(work: Any, *arguments: Any) -> str:
    """The result: a value, with its types, or the kind of error."""
    try:
        return repr(work(*arguments))
    except RecursionError:
        return "too deep"
    except ValueError:
        return "no JSON"
    except TypeError as error:
        return f"no JSON: {error}"


@pytest.mark.parametrize("text", READ.values(), ids=READ.keys())
def test_what_is_read(text: bytes) -> None:
    assert outcome(json_text.read, text) == outcome(json.loads, text)


WORDS = (
    *rb'{ } [ ] , : "a" "b" "\ud83d\ude00" "\ud800" - 0 12 1.5 e3 E-400 true null NaN Infinity \ " '.split(),
    b" ",
    b"\n",
    b"\x01",
    b"\xff",
)
TOKENS = st.lists(st.sampled_from(WORDS), max_size=12).map(b"".join)


@settings(max_examples=500)
@given(TOKENS | st.binary(max_size=20))
def test_whatever_is_read(text: bytes) -> None:
    assert outcome(json_text.read, text) == outcome(json.loads, text)


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


class Word(str):
    pass


@dataclasses.dataclass
class Secret:
    password_hash: str = "secret"  # noqa: S105


class Struct(msgspec.Struct):
    password_hash: str = "secret"  # noqa: S105


Point = namedtuple("Point", "x y")
CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]

WRITTEN = {
    "text": ['é😀\u2028\x7f\x01"\\/'],
    "numbers": [0, -1, 2**64, -(10**30), True, None],
    "infinite": [float("nan"), float("inf"), {"a": -float("inf")}],
    "a lone surrogate": {"\ud800": "a\udfff"},
    "names that are no text": [{1: 1}, {None: 1}, {True: 1}, {1.5: 1}],
    "subclasses": [Number.ONE, Word("a"), Point(1, 2), OrderedDict(a=1), (1, (2,))],
    "bytes": b"a",
    "a set": {1},
    "a date": datetime.date(2026, 1, 1),
    "a time": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "a decimal": decimal.Decimal("1.5"),
    "a UUID": uuid.UUID(int=0),
    "an enumeration": Colour.RED,
    "a dataclass": [Secret()],
    "a struct": {"a": Struct()},
    "a circle": CIRCLE,
    "too deep": DEEP,
}


def written(value: Any) -> Any:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
    return json.loads(text), text


def rewritten(value: Any) -> Any:
    text = json_text.write(value)
    return json.loads(text), text


@pytest.mark.parametrize("value", WRITTEN.values(), ids=WRITTEN.keys())
def test_what_is_written(value: Any) -> None:
    """Above all, values that JSON cannot represent do not become objects with all their fields."""
    assert outcome(rewritten, value) == outcome(written, value)
    assert outcome(json_text.write_sorted, value) == outcome(
        lambda: json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300)
@given(JSON)
def test_whatever_is_written(value: Any) -> None:
    """The only difference is the form of some floating-point numbers: 1e16 for 1e+16."""
    assert repr(json.loads(json_text.write(value))) == repr(written(value)[0])
    text = json_text.write_sorted(value)
    assert text.isascii()
    assert repr(json.loads(text)) == repr(json.loads(json.dumps(value, sort_keys=True)))
