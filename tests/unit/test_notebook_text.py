"""Notebooks keep, byte for byte, what was not edited."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natskit.notebook_text import EMPTY, merge, parse, patched, text_of
from natskit.project.bound import text_merge
from natskit.rpc import RpcError

# Numbers that a JavaScript client changes, an order that sorting changes, escapes, a key that no notebook has.
STRANGE = """{
  "metadata" : {"kernelspec": {"name": "python3"}, "b": 1.0, "a": -0.0, "big": 12345678901234567890, "e": 1E16},
 "cells": [ {"source": ["print(1)\\n",  "# \\u00e9"], "cell_type": "code", "id": "one",
    "outputs": [{"output_type": "stream", "name": "stdout", "text": ["a\\n", "b"]},
      {"output_type": "display_data", "metadata": {}, "data":
        {"application/json": {"z": 9007199254740993, "a": true}}}],
    "execution_count": 7, "metadata": {"tags": []} },
   {"cell_type": "markdown", "id": "two", "metadata": {}, "source": "# Title"} ],
 "nbformat_minor": 5,   "nbformat": 4, "somebody's": [1,  2.50]
}"""


def test_what_is_the_same_stays() -> None:
    assert patched(STRANGE, parse(STRANGE, "f")) == STRANGE


def test_an_edit_of_a_source_changes_this_source_alone() -> None:
    notebook = parse(STRANGE, "f")
    notebook["cells"][0]["source"] = "print(2)\n# \u00e9\nmore"
    wanted = STRANGE.replace('["print(1)\\n",  "# \\u00e9"]', '["print(2)\\n",  "# \\u00e9\\n",  "more"]')
    made = patched(STRANGE, notebook)
    assert json.loads(made) == json.loads(wanted)
    start, end = STRANGE.index('"print(1)'), STRANGE.index('"cell_type": "code"')
    assert made.startswith(STRANGE[:start])
    assert made.endswith(STRANGE[end:])


def test_cells_come_and_go() -> None:
    notebook = parse(STRANGE, "f")
    new: dict[str, Any] = {
        "cell_type": "code",
        "id": "new",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
        "source": "a\nb",
    }
    notebook["cells"].insert(1, new)
    made = patched(STRANGE, notebook)
    assert parse(made, "f") == notebook
    first, last = STRANGE.index('{"source"'), STRANGE.index('{"cell_type": "markdown"')
    assert STRANGE[first : last - 5] in made
    assert STRANGE[last:] in made
    del notebook["cells"][1]
    assert parse(patched(made, notebook), "f") == parse(STRANGE, "f")
    assert patched("", {}) == json.dumps(EMPTY, indent=1) + "\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "needs 'cells'"),
        ('{"cells": [], "nbformat": 3}', "'nbformat' 4"),
        ('{"cells": [{}], "nbformat": 4}', "cell 1 needs a 'cell_type'"),
        ('{"cells": [{"cell_type": "code", "source": 5}], "nbformat": 4}', "the source of cell 1"),
        ('{"cells": [], "nbformat": 4, "metadata": {"a": NaN}}', "NaN is no JSON"),
        ('{"cells": [], "nbformat": 4, "metadata": {"a": 1e999}}', "a number is too large"),
        ('{"cells": [], "nbformat": 4, "metadata": {"a": ' + "[" * 5000 + "]" * 5000 + "}}", "deep"),
        ("{", "Expecting"),
    ],
)
def test_what_is_no_notebook_is_refused(text: str, why: str) -> None:
    with pytest.raises(RpcError, match=why):
        parse(text, "f.ipynb")


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_MAPS = st.dictionaries(st.text(max_size=4), _VALUES, max_size=3)
_SOURCES = st.text(alphabet='ab\n\u00e9"\\', max_size=12)


_OUTPUTS = st.lists(_SOURCES.map(lambda text: {"output_type": "stream", "text": text}), max_size=2)
_COUNTS: st.SearchStrategy[int | None] = st.one_of(st.none(), st.integers(0, 5))


@st.composite
def _cells(draw: st.DrawFn) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = []
    for number in draw(st.lists(st.integers(0, 9), unique=True, max_size=4)):
        cell: dict[str, Any] = {"id": f"c{number}", "cell_type": "code", "source": draw(_SOURCES)}
        cell |= {"metadata": draw(_MAPS), "outputs": draw(_OUTPUTS), "execution_count": draw(_COUNTS)}
        cells.append(cell)
    return cells


@given(_cells(), _cells(), _MAPS, _MAPS, st.sampled_from([None, 1, 4]), st.booleans(), st.sampled_from(["", "\n"]))
def test_any_notebook(
    old: list[dict[str, Any]],
    new: list[dict[str, Any]],
    one: dict[str, Any],
    other: dict[str, Any],
    indent: int | None,
    ascii_: bool,
    end: str,
) -> None:
    """A patched file reads as what was wanted, and one that nothing is wanted of stays, however it is written."""
    text = (
        json.dumps(
            {"cells": old, "metadata": one, "nbformat": 4, "nbformat_minor": 5}, indent=indent, ensure_ascii=ascii_
        )
        + end
    )
    before = parse(text, "f")
    assert patched(text, before) == text
    wanted = parse(json.dumps({"cells": new, "metadata": other, "nbformat": 4, "nbformat_minor": 5}), "f")
    made = patched(text, wanted)
    assert text_of(parse(made, "f")) == text_of(wanted)
    assert made.endswith(end or "}")
    assert parse(text_of(wanted), "f") == wanted


def test_both_changed_it() -> None:
    """What one of them changed is there; where both changed the same lines of a source, both are, with marks."""
    base = parse(STRANGE, "f")
    mine, theirs = copy.deepcopy(base), copy.deepcopy(base)
    mine["cells"][0]["source"] = "print(3)\n# é"
    theirs["cells"][0]["source"] = "print(4)\n# é"
    theirs["cells"][1]["source"] = "# Other"
    theirs["cells"].append({"cell_type": "raw", "id": "three", "metadata": {}, "source": "new in the file"})
    mine["cells"].insert(0, {"cell_type": "raw", "id": "zero", "metadata": {}, "source": "new by people"})
    mine["metadata"]["added"] = 1
    made = merge(base, mine, theirs, text_merge.merge)
    assert [cell["id"] for cell in made["cells"]] == ["zero", "one", "two", "three"]
    assert made["cells"][1]["source"] == (
        f"{text_merge.MINE}print(3)\n{text_merge.MIDDLE}print(4)\n{text_merge.THEIRS}# é"
    )
    assert made["cells"][2]["source"] == "# Other"
    assert made["metadata"]["added"] == 1
    assert merge(base, base, theirs, text_merge.merge) == theirs
    deleted = copy.deepcopy(base)
    del deleted["cells"][1]
    assert [cell["id"] for cell in merge(base, base, deleted, text_merge.merge)["cells"]] == ["one"]
    assert [cell["id"] for cell in merge(base, deleted, theirs, text_merge.merge)["cells"]] == ["one", "three", "two"]
