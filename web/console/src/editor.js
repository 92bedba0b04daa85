/**
 * The text editor of documents: CodeMirror 6. It is in a shadow root, because there CodeMirror makes its styles as
 * constructed style sheets, which the site's Content-Security-Policy allows; in the page it would make <style> elements.
 */

import { closeBrackets } from "@codemirror/autocomplete";
import { defaultKeymap, indentWithTab } from "@codemirror/commands";
import {
  bracketMatching,
  defaultHighlightStyle,
  HighlightStyle,
  indentOnInput,
  LanguageDescription,
  syntaxHighlighting,
} from "@codemirror/language";
import { languages } from "@codemirror/language-data";
import { highlightSelectionMatches, search, searchKeymap } from "@codemirror/search";
import { Compartment, EditorState } from "@codemirror/state";
import {
  drawSelection,
  EditorView,
  highlightActiveLine,
  highlightActiveLineGutter,
  highlightSpecialChars,
  keymap,
  lineNumbers,
} from "@codemirror/view";
import { yCollab, yUndoManagerKeymap } from "y-codemirror.next";
import { UndoManager } from "yjs";
import "./strict-styles.js"; // y-codemirror.next sets the style attribute of cursors

/**
 * A shared text, and who else has it open.
 * @typedef {Pick<import("@natskit/client/document").SharedDocument, "text" | "awareness">} SharedText
 */

/** The colours of the page, which follow its light or dark scheme. */
const THEME = EditorView.theme({
  "&": { height: "100%", color: "var(--text)", backgroundColor: "var(--surface)", fontSize: "0.875rem" },
  "&.cm-focused": { outline: "2px solid var(--accent)" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.45", overflow: "auto" },
  // Room for the name at a cursor in the first line
  ".cm-content": { caretColor: "var(--text)", paddingTop: "1rem" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  ".cm-gutters": { backgroundColor: "var(--sunken)", color: "var(--quiet)", borderRight: "1px solid var(--line)" },
  ".cm-activeLine, .cm-activeLineGutter": { backgroundColor: "light-dark(#2456d60d, #7aa2ff14)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": {
    backgroundColor: "light-dark(#b4d5fe, #2f4a7d)",
  },
  ".cm-panels": { backgroundColor: "var(--sunken)", color: "var(--text)" },
  ".cm-textfield, .cm-button": {
    backgroundColor: "var(--surface)",
    backgroundImage: "none",
    color: "var(--text)",
    border: "1px solid var(--line)",
  },
  ".cm-searchMatch": { backgroundColor: "light-dark(#ffe79a, #6b5a12)" },
  ".cm-searchMatch-selected": { backgroundColor: "light-dark(#ffc043, #96700a)" },
  ".cm-ySelectionInfo": { fontFamily: "system-ui, sans-serif", opacity: "1", borderRadius: "3px" },
});

/** CodeMirror's own colours, lighter where the page is dark. */
const COLORS = HighlightStyle.define(
  defaultHighlightStyle.specs.map(({ color, ...spec }) =>
    typeof color === "string"
      ? { ...spec, color: `light-dark(${color}, color-mix(in oklab, ${color} 45%, white))` }
      : spec,
  ),
);

/**
 * An editor of a shared document.
 * @param {HTMLElement} box an empty element
 * @param {SharedText} shared
 * @param {string} label for screen readers
 */
export function openEditor(box, shared, label) {
  const root = box.shadowRoot ?? box.attachShadow({ mode: "open" });
  const [language, editable] = [new Compartment(), new Compartment()];
  // Others' changes have other origins, so they are not undone.
  const undoManager = new UndoManager(shared.text);
  const state = EditorState.create({
    doc: shared.text.toString(),
    extensions: [
      // With "\n" alone, CodeMirror and Yjs count alike, whatever is in the text.
      EditorState.lineSeparator.of("\n"),
      EditorView.clipboardInputFilter.of((text) => text.replace(/\r\n?/g, "\n")),
      lineNumbers(),
      highlightActiveLineGutter(),
      highlightSpecialChars(),
      drawSelection(),
      indentOnInput(),
      bracketMatching(),
      closeBrackets(),
      highlightActiveLine(),
      highlightSelectionMatches(),
      search({ top: true }),
      syntaxHighlighting(COLORS),
      EditorView.lineWrapping,
      EditorView.contentAttributes.of({ "aria-label": label, spellcheck: "false" }),
      THEME,
      language.of([]),
      editable.of([]),
      keymap.of([...yUndoManagerKeymap, ...searchKeymap, ...defaultKeymap, indentWithTab]),
      yCollab(shared.text, shared.awareness, { undoManager }),
    ],
  });
  const view = new EditorView({ state, parent: root, root });
  return {
    focus: () => view.focus(),
    /** The path says which language it is. @param {string} path */
    async setPath(path) {
      const found = LanguageDescription.matchFilename(languages, path.split("/").at(-1) ?? "");
      view.dispatch({ effects: language.reconfigure(found ? await found.load().catch(() => []) : []) });
    },
    /** @param {boolean} readOnly */
    setReadOnly(readOnly) {
      view.dispatch({ effects: editable.reconfigure(EditorState.readOnly.of(readOnly)) });
    },
    close() {
      view.destroy();
      undoManager.destroy();
    },
  };
}
