"""The difference of two texts as small edits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycrdt import Doc, Text

from natskit.document import set_text
from natskit.rpc import RpcError
from natskit.text_changes import changes

TEXTS = st.text(alphabet="ab\né😀", max_size=60)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_the_edits_make_the_new_text(old: str, new: str) -> None:
    text = old
    for change in changes(old, new):
        text = text[: change.start] + change.text + text[change.end :]
    assert text == new


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
def test_a_document_takes_them(old: str, new: str) -> None:
    doc: Doc[Text] = Doc()
    text = doc.get("text", type=Text)
    set_text(text, old)
    set_text(text, new)
    assert str(text) == new


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, st.lists(st.integers(0, 60), max_size=4))
def test_what_is_embedded_in_a_document_stays(old: str, new: str, places: list[int]) -> None:
    doc: Doc[Text] = Doc()
    text = doc.get("text", type=Text)
    set_text(text, old)
    for number, place in enumerate(sorted(places, reverse=True)):  # none moves another
        text.insert_embed(len(old[:place].encode()), {"number": number})
    before = [content for content, _ in text.diff() if not isinstance(content, str)]
    set_text(text, new)
    assert str(text) == new
    assert [content for content, _ in text.diff() if not isinstance(content, str)] == before


def test_an_edit_keeps_its_side_of_what_is_embedded() -> None:
    doc: Doc[Text] = Doc()
    text = doc.get("text", type=Text)
    set_text(text, "é😀 before after")
    text.insert_embed(len("é😀 before ".encode()), {"image": 1})
    set_text(text, "é😀 before and after it")
    assert [content for content, _ in text.diff()] == ["é😀 before ", {"image": 1.0}, "and after it"]


def test_an_edit_before_what_is_embedded_changes_nothing_after_it() -> None:
    doc: Doc[Text] = Doc()
    text = doc.get("text", type=Text)
    set_text(text, "aabab")
    text.insert_embed(2, {"image": 1})
    set_text(text, "Xabab")
    assert [content for content, _ in text.diff()] == ["Xa", {"image": 1.0}, "bab"]


def test_a_text_with_many_lines_alike() -> None:
    old = [word for number in range(900) for word in (f"a{number}\n", "\n")]
    new = [line if number % 3 else f"b{number}\n" for number, line in enumerate(old)]
    changed = "".join(old)
    for change in changes("".join(old), "".join(new)):
        changed = changed[: change.start] + change.text + changed[change.end :]
    assert changed == "".join(new)


def test_embedded_strings_are_refused_before_anything_changes() -> None:
    doc: Doc[Text] = Doc()
    text = doc.get("text", type=Text)
    set_text(text, "ab")
    text.insert_embed(1, "x y z")
    before = doc.get_update()
    with pytest.raises(RpcError, match="embedded strings"):
        set_text(text, "abc")
    assert doc.get_update() == before


def test_what_stays_is_not_replaced() -> None:
    old = "".join(f"line {number}\n" for number in range(100))
    new = old.replace("line 5\n", "line five\n").replace("line 90\n", "")
    edits = changes(old, new)
    assert sum(change.end - change.start + len(change.text) for change in edits) < 20
