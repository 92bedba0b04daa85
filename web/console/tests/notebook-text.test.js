import { expect, test } from "vitest";
import * as Y from "yjs";
import { readable } from "../../client/src/document-keep.js";
import { removeCell } from "../src/notebook-text.js";

/** @param {string} source */
function cell(source) {
  const made = new Y.Map();
  made.set("source", new Y.Text(source));
  return made;
}

test("the cell that is removed is the one that is shown", () => {
  const doc = new Y.Doc();
  const cells = doc.getArray("cells");
  cells.push([new Y.Map(), cell("one"), cell("two")]); // the first has no source, and is not shown
  removeCell(doc, cells.get(2));
  expect(cells.toArray().map((each) => each.get("source")?.toString())).toEqual([undefined, "one"]);
});

test("what is kept of a notebook for a person is in its cells", () => {
  const doc = new Y.Doc();
  doc.getArray("cells").push([cell("typed"), cell(""), 5, cell("offline")]);
  expect(readable(doc)).toBe("typed\n\noffline");
  doc.getText("text").insert(0, "a text");
  expect(readable(doc)).toBe("a text");
});
