"""Many edits of a document are sent as one update, which has what they changed and no more than need be."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pycrdt import Doc, Text

from natskit.bus.yjs_format import read_vector
from natskit.document import Document


@pytest.mark.parametrize("count", [1, 2, 32, 33, 1500])
@pytest.mark.parametrize("corrections", [0, 2000], ids=["nothing deleted", "much deleted"])
async def test_many_edits_are_one_short_update(count: int, corrections: int) -> None:
    document = Document(cast(Any, None), "project", path="notes.md")
    edits: list[bytes] = []
    document.doc.observe(lambda event: edits.append(event.update))
    for _ in range(corrections):
        document.text.insert(0, "ab")
        del document.text[0]
    stored: Doc[Any] = Doc()
    stored.apply_update(document.doc.get_update())
    document._stored_clock = read_vector(document.doc.get_state()).get(document.doc.client_id, 0)
    edits.clear()
    for number in range(count):
        document.text.insert(len(document.text) if number % 2 else 0, "x")
    joined = document._joined(edits)
    assert len(joined) <= sum(map(len, edits))
    assert len(joined) <= max(len(edits[0]), len(document.doc.get_update(stored.get_state())) if count > 32 else 10**6)
    stored.apply_update(joined)
    assert str(stored.get("text", type=Text)) == str(document.text)
