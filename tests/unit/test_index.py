"""The index of the hub's view, against a dictionary of sets."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from natskit.hub.state.index import Index

names = st.sampled_from(["a", "b", "c", "abc", ""])


@given(st.lists(st.tuples(st.booleans(), names, names)))
def test_an_index_is_a_dictionary_of_sets(steps: list[tuple[bool, str, str]]) -> None:
    index, model = Index(), defaultdict[str, set[str]](set)
    for adds, key, member in steps:
        (index.add if adds else index.discard)(key, member)
        (model[key].add if adds else model[key].discard)(member)
        for one in ("a", "b", "c", "abc", ""):
            assert index.get(one) == model[one]
            assert all(index.has(one, other) == (other in model[one]) for other in ("a", "b", "c", "abc", ""))
    assert len(index) == sum(1 for members in model.values() if members)


def test_what_an_index_gives_is_the_callers() -> None:
    index = Index()
    for member in ("one", "two"):
        index.add("key", member)
        index.get("key").clear()
    assert index.get("key") == {"one", "two"}
