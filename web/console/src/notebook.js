/**
 * A notebook that several people edit at once: an editor for the source of each cell, and its outputs as text. The
 * document is in the format of jupyter-ydoc: an array of cells, each with a text `source`. Nothing runs here.
 */

import * as Y from "yjs";
import { openEditor } from "./editor.js";
import { cellsOf, nameOf, outputsOf, removeCell } from "./notebook-text.js";

/** @typedef {import("@natskit/client/document").SharedDocument} SharedDocument */
/** @typedef {Awaited<ReturnType<typeof openEditor>>} Editor */
/** @typedef {{item: HTMLElement, outputs: HTMLElement, title: HTMLElement, editor: Editor}} Shown */

/**
 * Show a notebook, with the same methods as an editor of a text.
 * @param {HTMLElement} box an empty element
 * @param {SharedDocument} shared
 * @param {string} label for screen readers
 */
export function openNotebook(box, shared, label) {
  /** @type {Map<Y.Map<any>, Shown>} */
  const shown = new Map();
  const cells = shared.doc.getArray("cells");
  const list = document.createElement("ol");
  list.className = "cells";
  list.ariaLabel = label;
  let readOnly = false;

  /** @param {Y.Map<any>} cell @returns {Shown} */
  const make = (cell) => {
    const item = document.createElement("li");
    const title = document.createElement("h4");
    const place = document.createElement("div");
    place.className = "cell-source";
    const outputs = document.createElement("pre");
    outputs.className = "code cell-outputs";
    const remove = button("Remove", () => {
      if (!readOnly) removeCell(shared.doc, cell);
    });
    const head = document.createElement("div");
    head.className = "row";
    title.className = "grow";
    head.append(title, remove);
    item.append(head, place, outputs);
    const source = cell.get("source");
    const editor = openEditor(place, { text: source, awareness: shared.awareness }, `Source of ${cell.get("id")}`);
    void editor.setPath(pathOf(cell, shared.doc));
    editor.setReadOnly(readOnly);
    return { item, outputs, title, editor };
  };

  const draw = () => {
    const now = cellsOf(shared.doc);
    for (const [cell, { item, editor }] of shown) {
      if (now.includes(cell)) continue;
      editor.close();
      item.remove();
      shown.delete(cell);
    }
    for (const [at, cell] of now.entries()) {
      const made = shown.get(cell) ?? make(cell);
      shown.set(cell, made);
      made.title.textContent = nameOf(cell, at);
      const text = outputsOf(cell);
      if (made.outputs.textContent !== text) made.outputs.textContent = text;
      made.outputs.hidden = text === "";
      if (list.children[at] !== made.item) list.insertBefore(made.item, list.children[at] ?? null);
    }
  };

  /** @param {string} kind */
  const add = (kind) => {
    if (readOnly) return;
    shared.doc.transact(() => {
      const meta = shared.doc.getMap("meta");
      if (!meta.has("nbformat")) {
        meta.set("nbformat", 4);
        meta.set("nbformat_minor", 5);
        meta.set("metadata", new Y.Map());
      }
      cells.push([newCell(kind)]);
    });
    shown.get(/** @type {Y.Map<any>} */ (cells.get(cells.length - 1)))?.editor.focus();
  };
  const row = document.createElement("div");
  row.className = "row";
  row.append(
    button("Add a code cell", () => add("code")),
    button("Add a text cell", () => add("markdown")),
  );
  const root = document.createElement("div");
  root.className = "notebook";
  root.append(list, row);
  box.append(root);
  cells.observeDeep(draw);
  draw();
  return {
    focus: () => [...shown.values()][0]?.editor.focus(),
    /** The path of a notebook says nothing of the language of its cells. @param {string} _ */
    async setPath(_) {},
    /** @param {boolean} wanted */
    setReadOnly(wanted) {
      readOnly = wanted;
      for (const { editor } of shown.values()) editor.setReadOnly(wanted);
    },
    close() {
      cells.unobserveDeep(draw);
      for (const { editor } of shown.values()) editor.close();
      root.remove();
    },
  };
}

/** A name of a file in the language of a cell. @param {Y.Map<any>} cell @param {Y.Doc} doc */
function pathOf(cell, doc) {
  if (cell.get("cell_type") === "markdown") return "cell.md";
  if (cell.get("cell_type") !== "code") return "cell.txt";
  const metadata = doc.getMap("meta").toJSON().metadata ?? {};
  return `cell${metadata.language_info?.file_extension ?? ".py"}`;
}

/** @param {string} kind */
function newCell(kind) {
  const cell = new Y.Map();
  cell.set("id", crypto.randomUUID());
  cell.set("cell_type", kind);
  cell.set("source", new Y.Text());
  cell.set("metadata", new Y.Map());
  if (kind === "code") {
    cell.set("outputs", new Y.Array());
    cell.set("execution_count", null);
    cell.set("execution_state", "idle");
  }
  return cell;
}

/** @param {string} text @param {() => void} action */
function button(text, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", action);
  return made;
}
