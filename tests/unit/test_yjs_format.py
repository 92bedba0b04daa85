"""What an update adds and needs, read from its bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycrdt import Array, Doc, Map, Text

from natskit.bus.yjs_format import MOST_DEPTH, BadUpdateError, read, read_vector, write_vector


def updates_of(doc: Doc[Any]) -> list[bytes]:
    made: list[bytes] = []
    doc.observe(lambda event: made.append(event.update))
    return made


def test_the_contents_of_all_kinds_of_content() -> None:
    doc: Doc[Any] = Doc()
    made = updates_of(doc)
    text = doc.get("text", type=Text)
    text += "hello 😀 wörld"
    doc.get("map", type=Map)["a"] = {"b": [1, 2.5, None, True, "x", {"c": b"12"}]}
    doc.get("map", type=Map)["n"] = Map({"z": 1})
    array = doc.get("array", type=Array)
    array.extend([1, "b", None])
    del array[0]
    text.format(0, 3, {"bold": True})
    vector: dict[int, int] = {}
    for update in made:
        contents = read(update)
        assert not contents.missing(vector)
        assert not contents.repeats(vector)
        vector = contents.after(vector)
        assert contents.repeats(vector) == bool(contents.added)
    assert vector == read_vector(doc.get_state())
    assert read(doc.get_update()).after({}) == vector
    assert read_vector(write_vector(vector)) == vector
    assert any(read(update).missing({}) for update in made)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read(data)
    except BadUpdateError as error:
        assert str(error)  # noqa: PT017


def test_values_within_values_are_bounded() -> None:
    def nested(depth: int) -> bytes:
        return b"\x01\x01\x05\x00\x08\x01\x04text\x01" + b"\x75\x01" * depth + b"\x7e\x00"

    read(nested(MOST_DEPTH))
    with pytest.raises(BadUpdateError, match="deep"):
        read(nested(MOST_DEPTH + 1))


@pytest.mark.parametrize(
    "data",
    [b"\x01\xff\xff\xff\xff\x0f\x05\x00", b"\x00\x01\x05\x01\xff\xff\xff\xff\x0f\xff\xff\xff\xff\x0f", b"\x80" * 30],
)
def test_what_counts_too_far_is_refused(data: bytes) -> None:
    with pytest.raises(BadUpdateError):
        read(data)
