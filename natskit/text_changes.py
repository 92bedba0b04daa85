"""The difference between two texts as few small edits, for shared documents.

An edit that replaces a whole text doubles what a document keeps, and mixes with what others type meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple, TypeVar

MOST_LINES = 4000
"""Beyond this many changed lines they are replaced as one: the comparison takes time by their square."""


MOST_ALIKE = 10
"""How often a line may be in a text, for a match to begin with it."""
LineT = TypeVar("LineT", str, bytes)


class Change(NamedTuple):
    """Replace the code points from ``start`` to ``end`` of the old text by ``text``."""

    start: int
    end: int
    text: str


def changes(old: str, new: str) -> list[Change]:
    """The edits that make ``new`` of ``old``, the last of the text first, so that none moves another.

    They begin and end at code points, never within one.
    """
    start = _common(old, new)
    end = _common(old[start:][::-1], new[start:][::-1])
    before, after = old[start : len(old) - end], new[start : len(new) - end]
    return sorted((_trimmed(old, change) for change in _by_line(before, after, start)), reverse=True)


def _by_line(before: str, after: str, offset: int) -> Iterator[Change]:
    if not before and not after:
        return
    lines, others = before.splitlines(keepends=True), after.splitlines(keepends=True)
    if not before or not after or len(lines) + len(others) > MOST_LINES:
        yield Change(offset, offset + len(before), after)
        return
    starts = [offset]
    for line in lines:
        starts.append(starts[-1] + len(line))
    for tag, i, j, k, m in matcher(lines, others).get_opcodes():
        if tag != "equal":
            yield Change(starts[i], starts[j], "".join(others[k:m]))


def matcher(old: Sequence[LineT], new: Sequence[LineT]) -> SequenceMatcher[LineT]:
    """Compares the lines of two texts, of which there are at most :data:`MOST_LINES`.

    Lines that are there often, such as empty ones, only extend a match: to look for matches that begin with one takes
    time by the cube of their number.
    """
    often = {line for line, number in Counter(new).items() if number > MOST_ALIKE}
    return SequenceMatcher(often.__contains__, old, new, autojunk=False)


def _trimmed(old: str, change: Change) -> Change:
    """The change without what stays at its beginning and end."""
    gone = old[change.start : change.end]
    head = _common(gone, change.text)
    tail = _common(gone[head:][::-1], change.text[head:][::-1])
    return Change(change.start + head, change.end - tail, change.text[head : len(change.text) - tail])


def _common(one: str, other: str) -> int:
    """The length of what two texts have in common at the beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
