/** What a notebook reads as: a document in the format of jupyter-ydoc, an array of cells, each with a text `source`. */

import * as Y from "yjs";

/** The most characters of an output that are shown. */
const MOST_SHOWN = 20_000;

/** Whether a document is a notebook. @param {Y.Doc} doc @param {string} path */
export function isNotebook(doc, path) {
  return path.endsWith(".ipynb") && doc.getText("text").length === 0;
}

/**
 * The sources and outputs of a notebook as one text, for the history.
 * @param {Y.Doc} doc
 */
export function textOf(doc) {
  return cellsOf(doc)
    .map((cell, at) => {
      const outputs = outputsOf(cell);
      return `# ${nameOf(cell, at)}\n${cell.get("source") ?? ""}\n${outputs ? `# Output\n${outputs}\n` : ""}`;
    })
    .join("\n");
}

/** The cells that can be shown: others may put anything into a document. @param {Y.Doc} doc @returns {Y.Map<any>[]} */
export function cellsOf(doc) {
  const found = doc.getArray("cells").toArray();
  return /** @type {Y.Map<any>[]} */ (
    found.filter((cell) => cell instanceof Y.Map && cell.get("source") instanceof Y.Text)
  );
}

/** Remove a cell. @param {Y.Doc} doc @param {Y.Map<any>} cell */
export function removeCell(doc, cell) {
  const cells = doc.getArray("cells");
  const at = cells.toArray().indexOf(cell); // among all, of which some may not be shown
  if (at >= 0) cells.delete(at);
}

/** @param {Y.Map<any>} cell @param {number} at */
export function nameOf(cell, at) {
  const kind = String(cell.get("cell_type"));
  const count = cell.get("execution_count");
  return `Cell ${at + 1} (${kind === "markdown" ? "text" : kind})${typeof count === "number" ? ` [${count}]` : ""}`;
}

/** What is written to the screen, results as text, and errors. @param {Y.Map<any>} cell */
export function outputsOf(cell) {
  const outputs = cell.get("outputs");
  if (!(outputs instanceof Y.Array)) return "";
  const all = outputs.toJSON().map((output) => {
    const { output_type: kind, text, data, traceback } = output ?? {};
    if (kind === "stream") return joined(text);
    if (kind === "error") return joined(traceback).replace(ESCAPES, "");
    if (data?.["text/plain"] !== undefined) return joined(data["text/plain"]);
    return `(${Object.keys(data ?? {}).join(", ") || kind})`;
  });
  const text = all.join("\n");
  return text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN)}\n…` : text;
}

/** Colours in the traceback of an error. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they begin with one
const ESCAPES = /\u001b\[[0-9;]*m/g;

/** @param {unknown} text lines, or one text */
function joined(text) {
  return Array.isArray(text)
    ? text.join(text.some((line) => String(line).endsWith("\n")) ? "" : "\n")
    : String(text ?? "");
}
