"""The difference of two texts as small edits."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from pycrdt import Doc, Text

from natskit.document import set_text
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


def test_what_stays_is_not_replaced() -> None:
    old = "".join(f"line {number}\n" for number in range(100))
    new = old.replace("line 5\n", "line five\n").replace("line 90\n", "")
    edits = changes(old, new)
    assert sum(change.end - change.start + len(change.text) for change in edits) < 20
