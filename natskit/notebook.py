"""Notebooks as documents: cells of shared types, in the format of jupyter-ydoc (``YNotebook``, version 2.0.0).

``meta`` is a map with ``nbformat``, ``nbformat_minor`` and the map ``metadata``. ``cells`` is an array of maps:
``source`` is a text, ``metadata`` a map, ``outputs`` an array of maps, in which the text of a stream is a text.

The library itself is not used. It puts a cell with a random id into an empty notebook, and kernel names into a notebook
that has none, which would change files that nobody edited.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from pycrdt import Array, Doc, Map, Text

from natskit.document import apply_changes
from natskit.notebook_text import MOST_CELLS, Notebook, checked, number, paired_cells
from natskit.rpc import RpcError
from natskit.text_changes import changes

META, CELLS = "meta", "cells"
_TRANSIENT = "execution_state"
"""Of a cell that a program runs: no file has it."""


def is_notebook(doc: Doc[Any]) -> bool:
    """Whether a document has cells."""
    return bool({META, CELLS} & {*doc.keys()})


def read(doc: Doc[Any]) -> Notebook:
    """The notebook in a document; ``{}`` if there is none yet. Raises :class:`RpcError` if its cells make none."""
    if not is_notebook(doc):
        return {}
    held = doc.get(CELLS, type=Array)
    if len(held) > MOST_CELLS:
        raise RpcError("limit", f"the document has {len(held):,} cells, more than the {MOST_CELLS:,} of a notebook")
    meta = _plain(doc.get(META, type=Map).to_py() or {})
    cells = [_plain(cell.to_py()) if isinstance(cell, Map) else {} for cell in held]
    if not meta and not cells:
        return {}
    return checked(lambda: _found(meta, cells), "the document")


def _found(meta: dict[str, Any], cells: list[dict[str, Any]]) -> Notebook:
    made: Notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}} | meta
    made["cells"] = [{key: value for key, value in cell.items() if key != _TRANSIENT} for cell in cells]
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def write(doc: Doc[Any], wanted: Notebook) -> None:
    """Make the notebook in a document another one, by small edits in one transaction.

    A cell keeps its id if it has none in what is wanted. Cells that make no notebook are replaced.
    """
    with doc.transaction():
        cells: Array[Any] = doc.get(CELLS, type=Array)
        try:
            old = read(doc)
        except RpcError:
            old = {}
            cells.clear()
        _write_meta(doc.get(META, type=Map), old, wanted)
        before, after = old.get("cells", []), wanted["cells"]
        end = len(before)
        for number, at in reversed([*enumerate(paired_cells(before, after))]):
            if at is None:
                cells.insert(end, _new_cell(after[number]))
                continue
            if at + 1 < end:
                del cells[at + 1 : end]
            if before[at] != after[number]:
                _write_cell(cells[at], before[at], after[number])
            end = at
        if end:
            del cells[:end]


def _write_meta(meta: Map[Any], old: Notebook, wanted: Notebook) -> None:
    for key in ("nbformat", "nbformat_minor"):
        if key in wanted and old.get(key) != wanted[key]:
            meta[key] = _shared(wanted[key])
    if "metadata" in wanted and (old.get("metadata") != wanted["metadata"] or "metadata" not in meta):
        _write_map(meta, "metadata", old.get("metadata"), wanted["metadata"])


def _write_map(owner: Map[Any], key: str, old: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
    held = owner.get(key)
    if not isinstance(held, Map):
        owner[key] = Map(_shared(wanted))
        return
    for name in [str(name) for name in list(held.keys()) if name not in wanted]:
        del held[name]
    for name, value in wanted.items():
        if name not in held or (old or {}).get(name) != value:
            held[name] = _shared(value)


def _new_cell(cell: dict[str, Any]) -> Map[Any]:
    made = {key: _shared(value) for key, value in cell.items()}
    made.setdefault("id", str(uuid.uuid4()))  # jupyter-ydoc: each cell has one, and files of nbformat 4.4 none
    made["source"] = Text(cell["source"])
    made["metadata"] = Map(_shared(cell.get("metadata", {})))
    if cell["cell_type"] == "code":
        made[_TRANSIENT] = "idle"
    if "outputs" in cell or cell["cell_type"] == "code":
        made["outputs"] = Array([_new_output(output) for output in cell.get("outputs", [])])
    return Map(made)


def _new_output(output: dict[str, Any]) -> Map[Any]:
    made = _shared(output)
    if output.get("output_type") == "stream":
        made["text"] = Text(output["text"])
    return Map(made)


def _write_cell(held: Map[Any], old: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in [key for key in old if key not in wanted and key != "id"]:
        del held[key]
    for key, value in wanted.items():
        if old.get(key) == value and key in old:
            continue
        if key == "source" and isinstance(held.get(key), Text):
            apply_changes(held[key], changes(old.get(key, ""), value))
        elif key == "source":
            held[key] = Text(value)
        elif key == "metadata":
            _write_map(held, key, old.get(key), value)
        elif key == "outputs":
            _write_outputs(held, old.get(key, []), value)
        else:
            held[key] = _shared(value)


def _write_outputs(held: Map[Any], old: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    outputs = held.get("outputs")
    if not isinstance(outputs, Array) or len(outputs) != len(old):
        held["outputs"] = Array([_new_output(output) for output in wanted])
        return
    same = 0
    while same < min(len(old), len(wanted)) and old[same] == wanted[same]:
        same += 1
    if len(old) > same:
        del outputs[same : len(old)]
    outputs.extend([_new_output(output) for output in wanted[same:]])


def _shared(value: Any) -> Any:
    """A value for a document. All numbers are floating: yjs makes a BigInt of an integer of more than 53 bits, for
    which ``JSON.stringify`` throws."""
    if isinstance(value, dict):
        return {key: _shared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shared(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
