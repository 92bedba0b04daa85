/**
 * The output of a command, as a terminal shows it: a carriage return moves to the start of the line, and escape
 * sequences move the cursor and erase. Colours are left out. The amount that is kept is bounded.
 */

/** How much output is kept. The browser lays out 5,000 lines in a few milliseconds. */
const KEPT_LINES = 5_000;
const KEPT_CHARACTERS = 500_000;
/** How much more is kept before the oldest lines are dropped. To drop them one by one would be slow. */
const SLACK = 1.1;
/** A longer line is continued in the next one, so that no element of the page is large. */
const LONGEST_LINE = 2_000;
/** The furthest that an escape sequence moves the cursor to the right, or below the last line. */
const FURTHEST_COLUMN = 1_000;
const FURTHEST_ROW = 200;
/** Longer text is not taken for an escape sequence. */
const LONGEST_ESCAPE = 256;

/** CSI, the introducers of strings (OSC, DCS, SOS, PM, APC), and the short sequences (ECMA-48). */
const ESCAPE = /\x1b(?:\[([0-?]*)[ -/]*([@-~])|([\]PX^_])|[ -/]*([0-Z\\^-~]))/y;
/** The end of a string: BEL, ST, or a character that no string has. */
const STRING_END = /\x07|\x1b\\?|\n/g;
const CONTROL = /[\x00-\x08\x0a-\x1f\x7f-\x9f]/g;

/** @typedef {{stream: string, text: string}} Run */
/** @typedef {{runs: Run[], length: number, end: string}} Line */

export class Screen {
  /** The lines that are kept, the oldest first. */
  lines = /** @type {Line[]} */ ([emptyLine()]);
  /** How many characters of earlier output are not kept. */
  cut = 0;
  /** Since {@link drawn}: how many lines were dropped at the top, and the first line that changed. */
  dropped = 0;
  changed = 0;
  #row = 0;
  #column = 0;
  #saved = [0, 0];
  #characters = 0;
  #waiting = /** @type {{stream: string, text: string, lines: number}[]} */ ([]);
  #waitingCharacters = 0;
  #waitingLines = 0;
  /** For each stream, the beginning of an escape sequence that is still incomplete. */
  #rest = /** @type {Record<string, string>} */ ({});

  /** Add output. {@link update} puts it into the lines. @param {string} stream @param {string} text */
  write(stream, text) {
    if (!text) return;
    const piece = { stream, ...tail(text) };
    this.cut += text.length - piece.text.length;
    this.#waiting.push(piece);
    this.#waitingCharacters += piece.text.length;
    this.#waitingLines += piece.lines;
    // Skip what would be dropped at once.
    for (let [first] = this.#waiting; this.#isEnoughWithout(first); [first] = this.#waiting) {
      this.#waiting.shift();
      this.#waitingCharacters -= first.text.length;
      this.#waitingLines -= first.lines;
      this.cut += first.text.length;
    }
  }

  /** @param {{text: string, lines: number}} first */
  #isEnoughWithout({ text, lines }) {
    return this.#waitingCharacters - text.length > KEPT_CHARACTERS || this.#waitingLines - lines > KEPT_LINES;
  }

  /** Put the output added since the last update into the lines. */
  update() {
    for (const { stream, text } of this.#waiting.splice(0)) this.#take(stream, text);
    this.#waitingCharacters = this.#waitingLines = 0;
  }

  /** The page now shows these lines. */
  drawn() {
    this.dropped = 0;
    this.changed = this.lines.length;
  }

  /** All lines have to be drawn again. */
  redraw() {
    this.dropped = this.changed = 0;
  }

  /** The output that is kept, to be written to another screen. @returns {Run[]} */
  content() {
    this.update();
    return this.lines.flatMap(({ runs, end }) => [...runs, ...(end ? [{ stream: "stdout", text: end }] : [])]);
  }

  /** @param {string} stream @param {string} more */
  #take(stream, more) {
    const text = (this.#rest[stream] ?? "") + more;
    this.#rest[stream] = "";
    for (let at = 0; at < text.length; ) {
      CONTROL.lastIndex = at;
      const found = CONTROL.exec(text);
      const next = found ? found.index : text.length;
      if (next > at) this.#put(stream, text.slice(at, next));
      at = found ? this.#control(stream, text, next) : next;
    }
  }

  /**
   * @param {string} stream
   * @param {string} text
   * @param {number} at of a control character
   * @returns {number} the position after it
   */
  #control(stream, text, at) {
    const code = text.charCodeAt(at);
    if (code === 10) this.#newLine("\n");
    else if (code === 13) this.#column = 0;
    else if (code === 8) this.#column = Math.max(0, this.#column - 1);
    else if (code === 27) return this.#escape(stream, text, at);
    return at + 1;
  }

  /** @param {string} stream @param {string} text @param {number} at @returns {number} */
  #escape(stream, text, at) {
    ESCAPE.lastIndex = at;
    const found = ESCAPE.exec(text);
    if (!found) {
      const unfinished = /^\x1b(?:\[[0-?]*[ -/]*|[ -/]*)$/.test(text.slice(at, at + LONGEST_ESCAPE));
      if (!unfinished || text.length - at >= LONGEST_ESCAPE) return at + 1;
      this.#rest[stream] = text.slice(at);
      return text.length;
    }
    const [whole, parameters, final, string, short] = found;
    if (string) return this.#skipString(stream, text, at, whole);
    if (final) this.#csi(final, parameters);
    else if (short === "7") this.#saved = [this.#row, this.#column];
    else if (short === "8") this.#goTo(this.#saved[0], this.#saved[1]);
    else if (short === "M") this.#goTo(this.#row - 1, this.#column);
    return at + whole.length;
  }

  /** Skip a title, a link or an image. @param {string} stream @param {string} text @param {number} at
   * @param {string} introducer @returns {number} */
  #skipString(stream, text, at, introducer) {
    STRING_END.lastIndex = at + introducer.length;
    const end = STRING_END.exec(text);
    if (!end) {
      this.#rest[stream] = introducer; // the string may be long: only its beginning is kept
      return text.length;
    }
    if (end[0] === "\x1b" && end.index + 1 === text.length) {
      this.#rest[stream] = introducer + end[0];
      return text.length;
    }
    return end[0] === "\n" || end[0] === "\x1b" ? end.index : STRING_END.lastIndex;
  }

  /** @param {string} final @param {string} parameters */
  #csi(final, parameters) {
    const [first, second] = parameters.split(";").map((part) => (/^\d+$/.test(part) ? Number(part) : undefined));
    const count = Math.max(1, first ?? 1);
    switch (final) {
      case "A":
        return this.#goTo(this.#row - count, this.#column);
      case "B":
        return this.#goTo(Math.min(this.#row + count, this.lines.length - 1), this.#column);
      case "C":
        return this.#goTo(this.#row, this.#column + count);
      case "D":
        return this.#goTo(this.#row, this.#column - count);
      case "E":
        return this.#goTo(this.#row + count, 0);
      case "F":
        return this.#goTo(this.#row - count, 0);
      case "G":
        return this.#goTo(this.#row, count - 1);
      case "d":
        return this.#goTo(count - 1, this.#column);
      case "H":
      case "f":
        return this.#goTo(count - 1, Math.max(1, second ?? 1) - 1);
      case "J":
        return this.#eraseScreen(first ?? 0);
      case "K":
        return this.#eraseLine(first ?? 0);
      case "P":
        return this.#replace(this.#column, this.#column + count, "", "");
      case "s":
        this.#saved = [this.#row, this.#column];
        return undefined;
      case "u":
        return this.#goTo(this.#saved[0], this.#saved[1]);
      default:
        return undefined; // colours, modes, questions to the terminal
    }
  }

  /** @param {number} row @param {number} column */
  #goTo(row, column) {
    const end = this.lines[this.#row].length;
    this.#column = Math.max(0, Math.min(column, Math.max(FURTHEST_COLUMN, end)));
    const below = Math.min(row - this.lines.length + 1, FURTHEST_ROW);
    for (let n = 0; n < below; n++) this.#addLine("\n");
    this.#row = Math.max(0, Math.min(row, this.lines.length - 1));
    this.#trim();
  }

  /** @param {number} what 0: what follows the cursor, 1: what precedes it, 2 and 3: everything */
  #eraseScreen(what) {
    if (what === 0) {
      this.#eraseLine(0);
      this.#removeBelow(this.#row);
    } else if (what >= 2) {
      this.#row = 0;
      this.#eraseLine(2);
      this.#removeBelow(0);
    }
  }

  /** @param {number} what as above */
  #eraseLine(what) {
    const { length } = this.lines[this.#row];
    const start = what === 0 ? this.#column : 0;
    const end = what === 1 ? Math.min(this.#column + 1, length) : length;
    if (start < end) this.#replace(start, end, "", what === 1 ? " ".repeat(end) : "");
  }

  /** @param {number} row */
  #removeBelow(row) {
    for (const line of this.lines.splice(row + 1)) this.#characters -= line.length;
    this.lines[row].end = "";
    this.changed = Math.min(this.changed, row);
  }

  /** @param {string} stream @param {string} text without control characters */
  #put(stream, text) {
    for (let at = 0; at < text.length; ) {
      if (this.#column >= LONGEST_LINE) this.#newLine("");
      const piece = whole(text.slice(at, at + LONGEST_LINE - this.#column));
      this.#replace(this.#column, this.#column + piece.length, stream, piece);
      this.#column += piece.length;
      at += piece.length;
    }
  }

  /**
   * Put text in the place of some columns.
   * @param {number} start
   * @param {number} end
   * @param {string} stream
   * @param {string} text
   */
  #replace(start, end, stream, text) {
    const line = this.lines[this.#row];
    this.changed = Math.min(this.changed, this.#row);
    const before = line.length;
    if (start >= before) {
      append(line, stream, " ".repeat(start - before) + text);
    } else {
      const old = line.runs;
      line.runs = [];
      line.length = 0;
      for (const run of slice(old, 0, start)) append(line, run.stream, run.text);
      append(line, stream, text);
      for (const run of slice(old, end, before)) append(line, run.stream, run.text);
    }
    this.#characters += line.length - before;
    this.#trim();
  }

  /** @param {string} end the text between this line and the next one */
  #newLine(end) {
    if (this.#row === this.lines.length - 1) this.#addLine(end);
    this.#row++;
    this.#column = 0;
    this.#trim();
  }

  /** @param {string} end */
  #addLine(end) {
    this.changed = Math.min(this.changed, this.lines.length - 1);
    this.lines[this.lines.length - 1].end = end;
    this.lines.push(emptyLine());
  }

  #trim() {
    if (this.lines.length <= KEPT_LINES * SLACK && this.#characters <= KEPT_CHARACTERS * SLACK) return;
    let drop = 0;
    while (this.lines.length - drop > KEPT_LINES || this.#characters > KEPT_CHARACTERS) {
      const { length, end } = this.lines[drop++];
      this.#characters -= length;
      this.cut += length + end.length;
    }
    this.lines.splice(0, drop);
    this.#row = Math.max(0, this.#row - drop);
    this.#saved[0] = Math.max(0, this.#saved[0] - drop);
    this.dropped += drop;
    this.changed = Math.max(0, this.changed - drop);
  }
}

/** @returns {Line} */
function emptyLine() {
  return { runs: [], length: 0, end: "" };
}

/** @param {Line} line @param {string} stream @param {string} text */
function append(line, stream, text) {
  if (!text) return;
  const last = line.runs.at(-1);
  if (last?.stream === stream) last.text += text;
  else line.runs.push({ stream, text });
  line.length += text.length;
}

/**
 * The part of runs between two columns.
 * @param {Run[]} runs
 * @param {number} start
 * @param {number} end
 * @returns {Run[]}
 */
function slice(runs, start, end) {
  const parts = [];
  let at = 0;
  for (const { stream, text } of runs) {
    const part = text.slice(Math.max(0, start - at), Math.max(0, end - at));
    // Half a character: its other half was overwritten.
    parts.push({ stream, text: part.replace(/^[\udc00-\udfff]|[\ud800-\udbff]$/g, " ") });
    at += text.length;
  }
  return parts;
}

/** Text without half a character at its end, unless that is all there is. @param {string} text @returns {string} */
function whole(text) {
  return text.length > 1 && /[\ud800-\udbff]$/.test(text) ? text.slice(0, -1) : text;
}

/**
 * The end of a piece of output, no longer than what is kept.
 * @param {string} text
 * @returns {{text: string, lines: number}}
 */
function tail(text) {
  let lines = 0;
  let start = text.length;
  for (; start > 0 && text.length - start < KEPT_CHARACTERS; start--) {
    if (text.charCodeAt(start - 1) === 10 && ++lines > KEPT_LINES) break;
  }
  return { text: text.slice(start), lines };
}
