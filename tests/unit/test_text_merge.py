"""The merge of two texts that come from one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.project.bound.text_merge import MIDDLE, MINE, THEIRS, merge

LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "\n", "x\u2028y\n"]), max_size=12)
TEXTS = st.builds(lambda lines, end: "".join(lines) + end, LINES, st.sampled_from(["", "end", "ünd 😀"]))


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "merged"),
    [
        ("a\nb\nc\n", "A\nb\nc\n", "a\nb\nC\n", "A\nb\nC\n"),
        ("a\nb\nc\n", "a\nc\n", "a\nb\nc\nd\n", "a\nc\nd\n"),
        ("a\n", "a\nsame\n", "a\nsame\n", "a\nsame\n"),
        ("a\nb\nc\n", "a\nB\nc\n", "a\nB\nc\nd\n", "a\nB\nc\nd\n"),
        ("a\nb\nc\n", "a\n1\nc\n", "a\n2\nc\n", f"a\n{MINE}1\n{MIDDLE}2\n{THEIRS}c\n"),
        ("a\nb", "a\n1", "a\n2", f"a\n{MINE}1\n{MIDDLE}2\n{THEIRS}"),
        ("a\nb\nc\n", "a\nc\n", "a\n2\nc\n", f"a\n{MINE}{MIDDLE}2\n{THEIRS}c\n"),
        (None, "a\nmine\nc\n", "a\nc\n", "a\nmine\nc\n"),
        (None, "", "theirs\n", "theirs\n"),
        (None, "a\nmine\n", "a\ntheirs\n", f"a\n{MINE}mine\n{MIDDLE}theirs\n{THEIRS}"),
        ("", "", "theirs\n", "theirs\n"),
    ],
)
def test_what_is_merged(base: str | None, mine: str, theirs: str, merged: str) -> None:
    assert merge(base, mine, theirs) == merged


@given(TEXTS, TEXTS, TEXTS)
def test_nothing_is_lost(base: str, mine: str, theirs: str) -> None:
    """Every line that one of them has and the other one has not removed is there, however much differs."""
    merged = merge(base, mine, theirs)
    for lines in (merged.split("\n"), merge(base, merged, theirs).split("\n")):
        for text in (mine, theirs):
            for line in set(text.split("\n")) - set(base.split("\n")):
                assert line in lines
    assert merge(base, mine, mine) == mine
    assert merge(base, base, theirs) == theirs
    assert merge(base, mine, base) == mine


def test_what_is_merged_again_is_not_there_twice() -> None:
    base, mine, theirs = "a\nb\nc\n", "a\nmine\nc\n", "a\ntheirs\nc\n"
    merged = merge(base, mine, theirs)
    assert THEIRS in merged
    assert merge(base, merged, theirs) == merged


@given(TEXTS, TEXTS)
def test_without_a_base_both_are_there(mine: str, theirs: str) -> None:
    lines = merge(None, mine, theirs).split("\n")
    assert {*mine.split("\n"), *theirs.split("\n")} <= {*lines, ""}
