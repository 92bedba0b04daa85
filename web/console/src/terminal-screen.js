/** What xterm.js draws in one terminal of the page: loaded when the first terminal is opened. */

import { strictly } from "./strict-styles.js";

/** Rows above the screen that are kept here. */
const SCROLLBACK = 10_000;
/** The colours of what is searched for. */
const FOUND = {
  matchBackground: "#6b5900",
  activeMatchBackground: "#b07d00",
  matchOverviewRuler: "#b07d00",
  activeMatchColorOverviewRuler: "#ffcc00",
};

/** @typedef {{fontSize: number, screenReader: boolean}} Look */
/**
 * What the screen says.
 * @typedef {object} Listener
 * @property {(text: string | Uint8Array) => void} type something was typed
 * @property {() => boolean} mayCopy whether the program may set this page's clipboard
 * @property {(text: string) => void} found how many times what is searched for was found
 * @property {() => void} search the person wants to search
 */

export class TerminalScreen {
  #xterm;
  #fit;
  #search;
  #webgl;
  #drawnByWebgl = /** @type {import("@xterm/addon-webgl").WebglAddon | undefined} */ (undefined);

  /**
   * @param {HTMLElement} box
   * @param {Look} look
   * @param {Listener} listener
   */
  static async open(box, look, listener) {
    const [{ Terminal }, { FitAddon }, { SearchAddon }, { Unicode11Addon }, { WebLinksAddon }, { WebglAddon }] =
      await Promise.all([
        import("@xterm/xterm"),
        import("@xterm/addon-fit"),
        import("@xterm/addon-search"),
        import("@xterm/addon-unicode11"),
        import("@xterm/addon-web-links"),
        import("@xterm/addon-webgl"),
      ]);
    const xterm = new Terminal({
      allowProposedApi: true,
      fontFamily: "ui-monospace, monospace",
      scrollback: SCROLLBACK,
    });
    const [fit, search] = [new FitAddon(), new SearchAddon()];
    for (const addon of [fit, search, new Unicode11Addon(), new WebLinksAddon()]) xterm.loadAddon(addon);
    xterm.unicode.activeVersion = "11";
    strictly(() => xterm.open(box));
    const screen = new TerminalScreen(xterm, fit, search, () => new WebglAddon());
    screen.look(look);
    screen.#listen(listener);
    return screen;
  }

  /**
   * @param {import("@xterm/xterm").Terminal} xterm
   * @param {import("@xterm/addon-fit").FitAddon} fit
   * @param {import("@xterm/addon-search").SearchAddon} search
   * @param {() => import("@xterm/addon-webgl").WebglAddon} webgl
   */
  constructor(xterm, fit, search, webgl) {
    this.#xterm = xterm;
    this.#fit = fit;
    this.#search = search;
    this.#webgl = webgl;
  }

  /** @param {Listener} listener */
  #listen(listener) {
    this.#xterm.onData((text) => listener.type(text));
    this.#xterm.onBinary((text) => listener.type(Uint8Array.from(text, (character) => character.charCodeAt(0))));
    this.#search.onDidChangeResults(({ resultIndex, resultCount }) =>
      listener.found(resultCount ? `${resultIndex + 1} of ${resultCount}` : "not found"),
    );
    // It comes only to who types, and only if a setting allows it.
    this.#xterm.parser.registerOscHandler(52, (text) => {
      if (listener.mayCopy()) void copy(text.slice(text.indexOf(";") + 1));
      return true;
    });
    this.#xterm.attachCustomKeyEventHandler((event) => {
      if (event.type !== "keydown" || !event.ctrlKey || !event.shiftKey) return true;
      if (event.code === "KeyF") listener.search();
      else if (event.code === "KeyC") void navigator.clipboard.writeText(this.#xterm.getSelection());
      else return true;
      event.preventDefault();
      return false;
    });
  }

  /** Draw output. @param {Uint8Array} data @returns {Promise<void>} resolves when it is drawn */
  draw(data) {
    return new Promise((drawn) => this.#xterm.write(data, () => drawn(undefined)));
  }

  /** Begin anew. */
  reset() {
    this.#xterm.reset();
  }

  /** @param {number} columns @param {number} rows */
  resize(columns, rows) {
    this.#xterm.resize(columns, rows);
  }

  /** How large it is. */
  get size() {
    return { columns: this.#xterm.cols, rows: this.#xterm.rows };
  }

  /** How large it could be in its box. */
  proposed() {
    const { cols, rows } = this.#fit.proposeDimensions() ?? this.#xterm;
    return { columns: cols, rows };
  }

  /** Go to the next match, or up to the one before. @param {string} text @param {boolean} up */
  find(text, up) {
    if (up) this.#search.findPrevious(text, { decorations: FOUND });
    else this.#search.findNext(text, { decorations: FOUND });
  }

  focus() {
    this.#xterm.focus();
  }

  /** The program has ended. */
  end() {
    this.#xterm.options.disableStdin = true;
  }

  close() {
    strictly(() => this.#xterm.dispose());
  }

  /** Take the colours of the page, and the person's own choices. @param {Look} look */
  look({ fontSize, screenReader }) {
    this.#xterm.options.fontSize = fontSize;
    this.#xterm.options.theme = theme();
    this.#xterm.options.screenReaderMode = screenReader;
    if (screenReader) this.#drawByElements();
    else this.#drawByWebgl();
  }

  /** Let the graphics card draw, where the browser has one for pages. */
  #drawByWebgl() {
    if (this.#drawnByWebgl || !hasGraphicsCard()) return;
    const addon = this.#webgl();
    try {
      strictly(() => this.#xterm.loadAddon(addon));
    } catch {
      return; // elements go on drawing
    }
    this.#drawnByWebgl = addon;
    addon.onContextLoss(() => this.#drawByElements());
  }

  /** Elements of the page can be read and searched by other programs, and selected. */
  #drawByElements() {
    strictly(() => this.#drawnByWebgl?.dispose());
    this.#drawnByWebgl = undefined;
  }
}

/** Whether WebGL is faster than elements here: a browser without a graphics card computes what one would draw. */
function hasGraphicsCard() {
  const webgl = document.createElement("canvas").getContext("webgl2");
  if (!webgl) return false;
  const known = webgl.getExtension("WEBGL_debug_renderer_info");
  const name = String(webgl.getParameter(known ? known.UNMASKED_RENDERER_WEBGL : webgl.RENDERER));
  webgl.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|software/i.test(name);
}

/** Set the clipboard. The browser may refuse. @param {string} encoded as base64 of UTF-8 */
async function copy(encoded) {
  try {
    const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
    await navigator.clipboard.writeText(new TextDecoder().decode(bytes));
  } catch {
    // It stays as it was.
  }
}

function theme() {
  return matchMedia("(prefers-color-scheme: dark)").matches
    ? { background: "#161616", foreground: "#d0d0d0" }
    : { background: "#ffffff", foreground: "#1a1a1a", cursor: "#1a1a1a", selectionBackground: "#b4d5fe" };
}
