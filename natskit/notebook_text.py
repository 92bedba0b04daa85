"""Notebooks (``.ipynb``, nbformat 4) as text that does not depend on how a file writes them.

A file and a document that has cells are compared by this text: JSON with sorted keys, a line for each line of a source.
How the file writes the same (the order of keys, indentation, ``1.0`` for ``1``, integers of more than 53 bits, escapes)
is not in it, and stays in the file (:func:`patched`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from natskit.rpc import RpcError
from natskit.text_changes import MOST_LINES, matcher

Notebook = dict[str, Any]
MOST_DEPTH = 40
"""Of values within values. Documents take 64, with what is around them."""
MOST_CELLS = 5000
"""Of a notebook: what is done with them takes longer than with as many bytes of text."""
FIRST_WITH_IDS = 5
"""The nbformat_minor from which on files have the ids of cells. Those in older files are left alone."""
OWN_KEYS = ("cells", "metadata", "nbformat", "nbformat_minor")
"""Of a notebook. What else a file has at the top is left alone."""


def parse(text: str, place: str) -> Notebook:
    """The notebook in a text, its sources joined. ``{}`` for an empty text.

    Raises :class:`RpcError` with ``place`` if there is none.
    """
    if not text.strip():
        return {}
    return checked(lambda: json.loads(text, parse_constant=_refuse), place)


def checked(read: Callable[[], Any], place: str) -> Notebook:
    """What ``read`` returns, if it is a notebook, its sources joined. Raises :class:`RpcError` with ``place``."""
    try:
        return _checked(read())
    except (ValueError, RecursionError, OverflowError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply, or has a number too large"
        raise RpcError("invalid_state", f"{place} is not a notebook of nbformat 4: {reason[:200]}") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _checked(raw: Any) -> Notebook:
    if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list) or raw.get("nbformat") != 4:
        raise ValueError("it needs 'cells', and 'nbformat' 4")
    if not isinstance(raw.get("metadata", {}), dict) or type(raw.get("nbformat_minor", 0)) is not int:
        raise ValueError("'metadata' must be an object, and 'nbformat_minor' a whole number")
    if len(raw["cells"]) > MOST_CELLS:
        raise ValueError(f"it has {len(raw['cells']):,} cells, more than {MOST_CELLS:,}")
    for key in raw.keys() - {*OWN_KEYS}:
        _check_depth(raw[key], 0)  # it stays in the file, and is read with it
    found: Notebook = {key: _plain(raw[key], 0) for key in OWN_KEYS if key in raw and key != "cells"}
    found["cells"] = [_cell(cell, number) for number, cell in enumerate(raw["cells"], 1)]
    if found.get("nbformat_minor", FIRST_WITH_IDS) < FIRST_WITH_IDS:
        for cell in found["cells"]:
            cell.pop("id", None)
    return found


def _cell(raw: Any, number: int) -> dict[str, Any]:
    if not isinstance(raw, dict) or not isinstance(raw.get("cell_type"), str):
        raise ValueError(f"cell {number} needs a 'cell_type'")
    cell: dict[str, Any] = _plain(raw, 0)
    cell["source"] = _joined(cell.get("source", ""), f"the source of cell {number}")
    if not isinstance(cell.get("metadata", {}), dict) or not isinstance(cell.get("outputs", []), list):
        raise ValueError(f"cell {number}: 'metadata' must be an object, and 'outputs' a list")
    for output in cell.get("outputs", []):
        if not isinstance(output, dict):
            raise ValueError(f"cell {number}: each output must be an object")
        if output.get("output_type") == "stream":
            output["text"] = _joined(output.get("text", ""), f"an output of cell {number}")
    return cell


def _joined(value: Any, what: str) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text")
    return value


def _check_depth(value: Any, depth: int) -> None:
    if depth > MOST_DEPTH:
        raise ValueError(f"it has values within values, more than {MOST_DEPTH} deep")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(item, depth + 1)


def _plain(value: Any, depth: int) -> Any:
    """A value as a document has it: numbers are those of JavaScript."""
    if depth > MOST_DEPTH:
        raise ValueError(f"it has values within values, more than {MOST_DEPTH} deep")
    if isinstance(value, dict):
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    if value is not None and not isinstance(value, bool | str):  # a document may have bytes
        raise ValueError("it has a value that no JSON has")
    return value


def number(value: float) -> int | float:
    """A number as JavaScript has it. Raises :class:`ValueError` if it has none such."""
    found = float(value)
    if not math.isfinite(found):
        raise ValueError("a number is too large")
    return int(found) if found.is_integer() and abs(found) < 2**53 else found


def text_of(notebook: Notebook) -> str:
    """The text of a notebook; empty for an empty one."""
    if not notebook:
        return ""
    made = {**notebook, "cells": [_in_lines(cell) for cell in notebook["cells"]]}
    return json.dumps(made, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _in_lines(cell: Mapping[str, Any]) -> dict[str, Any]:
    made = {**cell, "source": _lines(cell["source"])}
    if "outputs" in cell:
        made["outputs"] = [
            {**output, "text": _lines(output["text"])} if output.get("output_type") == "stream" else output
            for output in cell["outputs"]
        ]
    return made


def _lines(text: str) -> list[str]:
    parts = text.split("\n")
    return [line + "\n" for line in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


# ---- the bytes of a file

EMPTY: Notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_ATOM = re.compile(r"[^\s,\]}]+")


class _Node:
    """A value in the text of a file: where it is, and what is in it."""

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.value: Any = None
        self.items: list[tuple[str, _Node]] | None = None
        """Of an object, with their keys; of a list, with empty ones."""
        self.starts: list[int] = []
        """Where each item begins, with its key."""


def patched(old: str, wanted: Notebook) -> str:
    """The text of a file that had the notebook in ``old`` and is to have another one. What is the same stays as it is,
    byte for byte: numbers, escapes, the order of keys, white space, and keys at the top that no notebook has.
    """
    if not old.strip():
        return json.dumps(_written(wanted or EMPTY), ensure_ascii=False, indent=1) + "\n"
    root = _Scanner(old).value(_SPACE.match(old, 0).end())  # type: ignore[union-attr]
    style = _Style(old, root)
    kept = {key: node.value for key, node in root.items or [] if key not in OWN_KEYS}
    made = _patch(old, root, {**_written(wanted or EMPTY), **kept}, style, 0, "")
    return old[: root.start] + made + old[root.end :]


def _written(notebook: Notebook) -> Notebook:
    order = ("cells", "metadata", "nbformat", "nbformat_minor")
    return {key: notebook[key] for key in order if key in notebook}


class _Style:
    """How a file is written."""

    def __init__(self, text: str, root: _Node) -> None:
        first = text[root.start + 1 : root.starts[0]] if root.starts else "\n "
        self.indent = first.rpartition("\n")[2] if "\n" in first else ""
        self.has_lines = "\n" in first
        self.is_ascii = text.isascii() and "\\u" in text
        found = re.search(r'"(\s*:\s*)', text[root.start :])
        self.colon = found[1] if found else ": "
        comma = re.search(r",( ?)\S", text[root.start :])
        self.comma = "," + (comma[1] if comma and not self.has_lines else "")

    def dump(self, value: Any, depth: int, in_lines: bool) -> str:
        """A new value, as the file would write it."""
        if isinstance(value, str) and in_lines:
            value = _lines(value)
        if isinstance(value, dict) and value:
            is_stream = value.get("output_type") == "stream"
            items = [
                json.dumps(key, ensure_ascii=self.is_ascii)
                + self.colon
                + self.dump(item, depth + 1, key == "source" or (is_stream and key == "text"))
                for key, item in value.items()
            ]
            return "{" + self.joined(items, depth) + "}"
        if isinstance(value, list) and value:
            return "[" + self.joined([self.dump(item, depth + 1, False) for item in value], depth) + "]"
        return json.dumps(value, ensure_ascii=self.is_ascii)

    def joined(self, items: list[str], depth: int) -> str:
        """The inside of an object or a list."""
        if not self.has_lines:
            return f"{self.comma}".join(items)
        line = "\n" + self.indent * (depth + 1)
        return line + ("," + line).join(items) + "\n" + self.indent * depth


def _patch(old: str, node: _Node, wanted: Any, style: _Style, depth: int, key: str) -> str:
    """The text of a value that was there before."""
    if _same(node.value, wanted, key):
        return old[node.start : node.end]
    if isinstance(wanted, str) and isinstance(node.value, list) and key in ("source", "text"):
        wanted = _lines(wanted)
    if isinstance(wanted, dict) and isinstance(node.value, dict) and node.items:
        return _patch_object(old, node, wanted, style, depth)
    if isinstance(wanted, list) and isinstance(node.value, list) and node.items:
        return _patch_list(old, node, wanted, style, depth, key)
    in_lines = key == "source" and not (isinstance(node.value, str) and node.value)
    return style.dump(wanted, depth, in_lines)


def _patch_object(old: str, node: _Node, wanted: dict[str, Any], style: _Style, depth: int) -> str:
    assert node.items is not None
    if "id" in node.value and "cell_type" in node.value and "id" not in wanted:
        wanted = {**wanted, "id": node.value["id"]}  # in a file that is older than ids
    known = {key: (start, child) for (key, child), start in zip(node.items, node.starts, strict=True)}
    pieces: list[str] = []
    for key in [*(key for key in known if key in wanted), *(key for key in wanted if key not in known)]:
        if key in known:
            start, child = known[key]
            pieces.append(old[start : child.start] + _patch(old, child, wanted[key], style, depth + 1, key))
        else:
            name = json.dumps(key, ensure_ascii=style.is_ascii) + style.colon
            pieces.append(name + style.dump(wanted[key], depth + 1, key == "source"))
    if known.keys() == {*wanted} and len(known) == len(node.items):
        return _in_place(old, node, pieces)
    return "{" + _rejoined(old, node, pieces, style, depth) + "}"


def _patch_list(old: str, node: _Node, wanted: list[Any], style: _Style, depth: int, key: str) -> str:
    assert node.items is not None
    children = [child for _, child in node.items]
    pieces: list[str] = []
    for before, item in _paired([child.value for child in children], wanted, key):
        if before is not None:
            if key == "cells" and isinstance(children[before].value, dict) and "id" not in children[before].value:
                item = {name: value for name, value in item.items() if name != "id"}  # the document alone has one
            pieces.append(_patch(old, children[before], item, style, depth + 1, ""))
        else:
            pieces.append(style.dump(item, depth + 1, False))
    if len(pieces) == len(children):
        return _in_place(old, node, pieces)
    return "[" + _rejoined(old, node, pieces, style, depth) + "]"


def _in_place(old: str, node: _Node, pieces: list[str]) -> str:
    """As many items as before: all that is between them stays."""
    assert node.items is not None
    out, at = "", node.start
    for (_, child), start, piece in zip(node.items, node.starts, pieces, strict=True):
        out += old[at:start] + piece
        at = child.end
    return out + old[at : node.end]


def _rejoined(old: str, node: _Node, pieces: list[str], style: _Style, depth: int) -> str:
    """Other items than before, with what was between the first two of them, and around."""
    assert node.items
    if not pieces:
        return ""
    head, tail = old[node.start + 1 : node.starts[0]], old[node.items[-1][1].end : node.end - 1]
    if len(node.items) > 1:
        between = old[node.items[0][1].end : node.starts[1]]
    else:
        between = "," + head if "\n" in head or not style.has_lines else "," + "\n" + style.indent * (depth + 1)
    return head + between.join(pieces) + tail


def _paired(old: list[Any], new: list[Any], key: str) -> Iterator[tuple[int | None, Any]]:
    """Each item of a new list with the index of the old one that it comes from."""
    if key == "cells":
        yield from zip(
            paired_cells(*([_comparable(cell, "") for cell in cells] for cells in (old, new))), new, strict=True
        )
        return
    names_old, names_new = [_name(item) for item in old], [_name(item) for item in new]
    for tag, i, j, k, m in _opcodes(names_old, names_new):
        for number in range(k, m):
            at = i + number - k
            yield (at if tag in ("equal", "replace") and at < j else None), new[number]


def paired_cells(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """For each new cell the index of the old one that it comes from, in ascending order; ``None`` if it is new.

    Cells are recognized by their ids, then by kind and source: programs leave out ids, or make others. Of what is left,
    those at the same place are the same, unless both have ids.
    """
    found: list[int | None] = [None] * len(new)
    ids_old, ids_new = [_id(cell) for cell in old], [_id(cell) for cell in new]
    common = {*ids_old} & {*ids_new}
    contents = [
        [name if name in common else _content(cell) for name, cell in zip(ids, cells, strict=True)]
        for ids, cells in ((ids_old, old), (ids_new, new))
    ]
    gaps = [(0, len(old), 0, len(new))]
    for before, after in ((ids_old, ids_new), contents):
        left: list[tuple[int, int, int, int]] = []
        for start, end, first, last in gaps:
            for tag, i, j, k, m in _opcodes(before[start:end], after[first:last]):
                if tag == "equal":
                    found[first + k : first + m] = range(start + i, start + j)
                else:
                    left.append((start + i, start + j, first + k, first + m))
        gaps = left
    for i, j, k, m in gaps:
        for at, number in zip(range(i, j), range(k, m), strict=False):
            if "id" not in old[at] or "id" not in new[number]:
                found[number] = at
    return found


def _id(cell: Mapping[str, Any]) -> str:
    return f"id {cell['id']}" if "id" in cell else _name(cell)


def _content(cell: Mapping[str, Any]) -> str:
    return f"{cell.get('cell_type')} {cell.get('source')}"


def _opcodes(old: list[str], new: list[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """As :meth:`difflib.SequenceMatcher.get_opcodes`, in a time that is bounded however many are equal."""
    start, end, most = 0, 0, min(len(old), len(new))
    while start < most and old[start] == new[start]:
        start += 1
    while end < most - start and old[-1 - end] == new[-1 - end]:
        end += 1
    before, after = old[start : len(old) - end], new[start : len(new) - end]
    if start:
        yield "equal", 0, start, 0, start
    if len(before) + len(after) > MOST_LINES:
        yield "replace", start, len(old) - end, start, len(new) - end
    else:
        for tag, i, j, k, m in matcher(before, after).get_opcodes():
            yield tag, start + i, start + j, start + k, start + m
    if end:
        yield "equal", len(old) - end, len(old), len(new) - end, len(new)


def _name(item: Any) -> str:
    """What an item of a list is recognized by."""
    return json.dumps(_comparable(item, ""), sort_keys=True)


def _same(old: Any, new: Any, key: str) -> bool:
    return bool(_comparable(old, key) == _comparable(new, key) and _kinds(old) == _kinds(new))


def _kinds(value: Any) -> Any:
    """Tells ``true`` from ``1``, which are equal in Python."""
    return isinstance(value, bool)


def _comparable(value: Any, key: str) -> Any:
    """A value of a file as a document has it."""
    if key in ("source", "text") and isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _comparable(item, name if _is_joined(value, name) else "") for name, item in value.items()}
    if isinstance(value, list):
        return [_comparable(item, "") for item in value]
    if isinstance(value, bool):
        return ("bool", value)
    return number(value) if isinstance(value, int | float) else value


def _is_joined(owner: Mapping[str, Any], key: str) -> bool:
    """Whether an item of an object may be written in lines, and is one text."""
    return (key == "source" and "cell_type" in owner) or (key == "text" and owner.get("output_type") == "stream")


class _Scanner:
    """Reads JSON that was parsed before, and where its values are."""

    def __init__(self, text: str) -> None:
        self.text = text

    def value(self, at: int) -> _Node:
        """The value that begins at a place."""
        node = _Node(at)
        first = self.text[at]
        if first in "{[":
            node.items = []
            at = self.space(at + 1)
            while self.text[at] not in "}]":
                node.starts.append(at)
                key = ""
                if first == "{":
                    end = _end(_STRING, self.text, at)
                    key = json.loads(self.text[at:end])
                    at = self.space(self.space(end) + 1)
                child = self.value(at)
                node.items.append((key, child))
                at = self.space(child.end)
                if self.text[at] == ",":
                    at = self.space(at + 1)
            node.end = at + 1
            pairs = node.items
            node.value = {k: c.value for k, c in pairs} if first == "{" else [c.value for _, c in pairs]
        else:
            node.end = _end(_STRING if first == '"' else _ATOM, self.text, at)
            node.value = json.loads(self.text[node.start : node.end])
        return node

    def space(self, at: int) -> int:
        """The next place without white space."""
        return _end(_SPACE, self.text, at)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None
    return found.end()


# ---- merging


def merge(base: Notebook | None, mine: Notebook, theirs: Notebook, merge_text: Any) -> Notebook:
    """Both notebooks in one. ``base`` is what both come from. Sources are merged by ``merge_text(base, mine, theirs)``,
    which shows what both changed differently; of all else, what ``theirs`` has, if both changed it.
    """
    if not mine or not theirs:
        return theirs or mine
    old = base or {"cells": []}
    keys = [key for key in OWN_KEYS if key != "cells" and (key in mine or key in theirs)]
    made: Notebook = {key: _pick(old.get(key), mine.get(key), theirs.get(key)) for key in keys}
    before = _with_ids_of(mine["cells"], old["cells"])
    others = _with_ids_of(before if base else mine["cells"], theirs["cells"])
    made["cells"] = list(_merged_cells(before, mine["cells"], others, merge_text))
    return {key: value for key, value in made.items() if value is not None}


def _with_ids_of(known: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of a file with the ids that they had, if a program left them out or made others."""
    return [
        cell if at is None or "id" not in known[at] else {**cell, "id": known[at]["id"]}
        for at, cell in zip(paired_cells(known, cells), cells, strict=True)
    ]


def _pick(base: Any, mine: Any, theirs: Any) -> Any:
    return mine if theirs == base else theirs


def _merged_cells(
    base: Sequence[dict[str, Any]], mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], merge_text: Any
) -> Iterator[dict[str, Any]]:
    old, a, b = _by_name(base), _by_name(mine), _by_name(theirs)
    order = [*a]
    for at, name in enumerate(b):
        if name not in a and name not in old:  # it is new in the file: after the cell that it follows there
            before = next((each for each in reversed([*b][:at]) if each in order), None)
            order.insert(order.index(before) + 1 if before is not None else 0, name)
    for name in order:
        if name in a and name in b:
            yield _merged_cell(old.get(name), a[name], b[name], merge_text)
        elif name in b:
            yield b[name]
        elif name not in old or a[name] != old[name]:  # people made or changed it; else the file has it no more
            yield a[name]
    for name in b:
        if name in old and name not in a and b[name] != old[name]:  # people deleted what the file changed
            yield b[name]


def _by_name(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for number, cell in enumerate(cells):
        name = str(cell.get("id", number))
        found[name if name not in found else f"{name} {number}"] = cell
    return found


def _merged_cell(base: dict[str, Any] | None, mine: dict[str, Any], theirs: dict[str, Any], merge_text: Any) -> Any:
    old = base or {}
    made = {
        key: _pick(old.get(key), mine.get(key), theirs.get(key))
        for key in [*mine, *(key for key in theirs if key not in mine)]
    }
    made["source"] = merge_text(old.get("source") if base else None, mine["source"], theirs["source"])
    return {key: value for key, value in made.items() if value is not None or key == "execution_count"}
