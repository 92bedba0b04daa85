"""Two texts that come from one: what either changed, and what both changed differently, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from natskit.text_changes import MOST_LINES, matcher

MINE, MIDDLE, THEIRS = "<<<<<<< document\n", "=======\n", ">>>>>>> disk\n"
"""The lines around and between what cannot be merged, as git writes them."""

Lines = list[str]
Match = tuple[int, int, int]
"""So many lines from one place of the old text on are those from a place of the new text on."""


def merge(base: str | None, mine: str, theirs: str) -> str:
    """Both texts in one. ``base`` is what both come from; ``None`` if nobody knows.

    A part that only one of them changed reads as that one has it. A part that both changed differently is there twice,
    between lines that begin with ``<<<<<<<`` and ``>>>>>>>``.
    """
    if mine == theirs or theirs == base:
        return mine
    if mine == base:
        return theirs
    if THEIRS in mine and _merged(base, _without_theirs(mine), theirs) == mine:
        return mine  # merged already, and nobody heard of that
    return _merged(base, mine, theirs)


def _merged(base: str | None, mine: str, theirs: str) -> str:
    a, b = _lines(mine), _lines(theirs)
    return "".join(_two(a, b) if base is None else _three(_lines(base), a, b))


def _without_theirs(merged: str) -> str:
    """A text as it was before it was merged."""
    kept: Lines = []
    is_theirs = False
    for line in _lines(merged):
        is_theirs = line != THEIRS and (is_theirs or line == MIDDLE)
        if not is_theirs and line not in (MINE, THEIRS):
            kept.append(line)
    return "".join(kept)


def _lines(text: str) -> Lines:
    """With their ends. Only ``\\n`` ends a line: ``str.splitlines`` knows ten others."""
    parts = text.split("\n")
    return [line + "\n" for line in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _two(a: Lines, b: Lines) -> Iterator[str]:
    """What only one of them has, and where both have something else, both."""
    at, bt = 0, 0
    for i, j, size in [*_matches(a, b), (len(a), len(b), 0)]:
        yield from _resolved([], a[at:i], b[bt:j])
        yield from a[i : i + size]
        at, bt = i + size, j + size


def _three(old: Lines, a: Lines, b: Lines) -> Iterator[str]:
    """The algorithm of diff3 (Khanna, Kunal, Pierce: "A Formal Investigation of Diff3", 2007)."""
    ot = at = bt = 0
    ends = len(old), len(a), len(b), 0
    for o, i, j, size in [*_stable(_matches(old, a), _matches(old, b)), ends]:
        yield from _resolved(old[ot:o], a[at:i], b[bt:j])
        yield from old[o : o + size]
        ot, at, bt = o + size, i + size, j + size


def _stable(mine: list[Match], theirs: list[Match]) -> Iterator[tuple[int, int, int, int]]:
    """The runs of lines of the old text that both have, with where they are in each."""
    m = t = 0
    while m < len(mine) and t < len(theirs):
        (o, i, size), (p, j, length) = mine[m], theirs[t]
        start, end = max(o, p), min(o + size, p + length)
        if start < end:
            yield start, i + start - o, j + start - p, end - start
        if o + size < p + length:
            m += 1
        elif o + size > p + length:
            t += 1
        else:
            m, t = m + 1, t + 1


def _matches(a: Lines, b: Lines) -> list[Match]:
    head = 0
    while head < min(len(a), len(b)) and a[head] == b[head]:
        head += 1
    tail = 0
    while tail < min(len(a), len(b)) - head and a[len(a) - tail - 1] == b[len(b) - tail - 1]:
        tail += 1
    found: list[Match] = [(0, 0, head)] if head else []
    middle, other = a[head : len(a) - tail], b[head : len(b) - tail]
    if middle and other and len(middle) + len(other) <= MOST_LINES:
        blocks = matcher(middle, other).get_matching_blocks()
        found += [(head + i, head + j, size) for i, j, size in blocks if size]
    if tail:
        found.append((len(a) - tail, len(b) - tail, tail))
    return found


def _resolved(old: Lines, a: Lines, b: Lines) -> Lines:
    if a == b or b == old:
        return a
    if a == old:
        return b
    return [MINE, *_ended(a), MIDDLE, *_ended(b), THEIRS]


def _ended(lines: Lines) -> Lines:
    """The lines, the last with an end, so that what follows begins a line."""
    return [*lines[:-1], lines[-1] if lines[-1].endswith("\n") else lines[-1] + "\n"] if lines else []
