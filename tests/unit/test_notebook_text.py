"""Notebooks keep, byte for byte, what was not edited."""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycrdt import Array, Doc

from natskit import notebook
from natskit.keeper.document import Document as Held
from natskit.keeper.store import Place
from natskit.notebook_text import EMPTY, merge, paired_cells, parse, patched, text_of
from natskit.project.bound import text_file, text_merge
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


def _cells_of(*sources: str) -> list[dict[str, Any]]:
    return [
        {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}
        for source in sources
    ]


def test_many_equal_cells_take_little_work() -> None:
    """In steps of the program, whose number does not depend on the machine."""
    old, new = _cells_of("a", *["same"] * 300, "b"), _cells_of("c", *["same"] * 301, "d")
    steps = 0

    def count(*_: Any) -> Any:
        nonlocal steps
        steps += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        assert paired_cells(old, new) == [*range(302), None]
    finally:
        sys.settrace(before)
    assert steps < 150_000


@pytest.mark.parametrize("regenerated", [False, True])
def test_cells_whose_ids_are_gone_stay(regenerated: bool) -> None:
    """A program leaves out the ids, or makes others: what is typed into the cells meanwhile stays."""
    base = parse(STRANGE, "f")
    doc: Doc[Any] = Doc()
    notebook.write(doc, base)
    wanted = copy.deepcopy(base)
    for number, cell in enumerate(wanted["cells"]):
        del cell["id"]
        if regenerated:
            cell["id"] = f"other {number}"
    held: Any = doc.get("cells", type=Array)
    typed = held[0]["source"]
    notebook.write(doc, wanted)
    typed.insert(0, "typed ")
    read = notebook.read(doc)
    assert read["cells"][0]["source"].startswith("typed ")
    assert [cell["id"] for cell in read["cells"]] == (["other 0", "other 1"] if regenerated else ["one", "two"])
    mine = copy.deepcopy(base)
    mine["cells"][0]["source"] += " by people"
    wanted["cells"][1]["source"] = "# By a program" if not regenerated else "# Title"
    bare = copy.deepcopy(base)
    for cell in bare["cells"]:
        del cell["id"]
    for old in (base, bare):  # the base may be what the file had
        made = merge(old, mine, wanted, text_merge.merge)
        assert [cell["id"] for cell in made["cells"]] == ["one", "two"]
        assert made["cells"][0]["source"].endswith(" by people")
        assert made["cells"][1]["source"] == wanted["cells"][1]["source"]


def test_ids_that_the_document_alone_has_are_not_written() -> None:
    """Nor are those of a file that is older than ids removed."""
    with_ids = parse(STRANGE, "f")
    without = STRANGE.replace(' "id": "one",', "").replace(' "id": "two",', "")
    assert patched(without, with_ids) == without
    older = STRANGE.replace('"nbformat_minor": 5', '"nbformat_minor": 4')
    assert patched(older, parse(older, "f")) == older
    assert "id" not in parse(older, "f")["cells"][0]


def test_what_no_notebook_can_have_is_refused() -> None:
    deep = STRANGE.replace("[1,  2.50]", "[" * 600 + "]" * 600)
    with pytest.raises(RpcError, match="deep"):
        parse(deep, "f")
    doc: Doc[Any] = Doc()
    notebook.write(doc, parse(STRANGE, "f"))
    held: Any = doc.get("cells", type=Array)
    held[0]["strange"] = b"bytes"
    with pytest.raises(RpcError, match="no JSON"):
        notebook.read(doc)
    notebook.write(doc, parse(STRANGE, "f"))
    assert notebook.read(doc) == parse(STRANGE, "f"), "and it can be mended"
    with pytest.raises(RpcError, match="cells, more than"):
        parse(json.dumps({"nbformat": 4, "cells": _cells_of(*["a"] * 5001)}), "f")


def test_a_text_that_becomes_too_long_is_refused_with_the_reason() -> None:
    compact = {"nbformat": 4, "metadata": {"numbers": [1] * 100_000}, "cells": []}
    with pytest.raises(RpcError, match="each value in a line of its own"):
        text_file.text_of("f.ipynb", json.dumps(compact, separators=(",", ":")).encode())


def test_a_moment_is_restored() -> None:
    """Cells beside a text do not count, and a moment without cells removes them."""
    now, then = (Held(Place("p", "d")) for _ in range(2))
    notebook.write(now.doc, parse(STRANGE, "f"))
    assert now.restore(then)
    assert notebook.read(now.doc)["cells"] == []
    then.set_text("text")
    stray: Any = then.doc.get("cells", type=Array)
    stray.append("stray")
    assert now.restore(then)
    assert now.text == "text"
