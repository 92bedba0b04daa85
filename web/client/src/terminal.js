/** A view of a terminal of a project. natskit/terminal.py is the same for Python. */

import { CHUNK_BYTES, Input } from "./input.js";
import { NatskitError, request } from "./rpc.js";
import { pause } from "./site.js";
import { StreamReader } from "./stream.js";

/** The most bytes that can be typed at once: more is a file. */
const PASTE_BYTES = 16 * 1024 * 1024;
/** How long, and how often, a viewer whose stream has failed tries to come back, in milliseconds. */
const COME_BACK_PATIENCE = 30_000;
const COME_BACK_PAUSE = 500;

/**
 * The window of a viewer. A terminal is as large as the smallest window that is visible.
 * @typedef {object} View
 * @property {number} columns
 * @property {number} rows
 * @property {boolean} [visible]
 * @property {boolean} [read_only] whether this viewer only watches
 * @property {number} [scrollback] how many rows above the screen come with it; all unless set
 */

/**
 * Somebody who views a terminal.
 * @typedef {object} Viewer
 * @property {string} viewer a name that tells this viewer from the others
 * @property {string | null} account_id `null` for the operator
 * @property {number} columns
 * @property {number} rows
 * @property {boolean} visible
 * @property {boolean} read_only whether what this viewer types goes nowhere
 * @property {boolean} away
 */

/**
 * Output that the terminal has to draw, or news. After "screen", which comes first, and again when this viewer was away
 * or too slow, the output draws the whole screen anew, in a terminal of that size.
 * @typedef {{type: "output", data: Uint8Array}
 *   | {type: "screen", viewer: string, columns: number, rows: number, title: string, viewers: Viewer[],
 *     recording: string | null, typist_account: string | null}
 *   | {type: "size", columns: number, rows: number}
 *   | {type: "title", title: string}
 *   | {type: "viewers", viewers: Viewer[], typist_account: string | null}
 *   | {type: "recording", path: string | null, why: string}
 *   | {type: "typing", viewer: string, account_id: string | null}} TerminalNews
 */

/**
 * How the program on a terminal ended.
 * @typedef {object} TerminalResult
 * @property {number | null} exit_code `null` if a signal ended it
 * @property {string | null} signal
 * @property {number | null} signal_number
 * @property {boolean} detached
 */

/**
 * A view of a terminal, made by {@link Client.terminal}. Iterate over it to read what it shows. To detach, leave the
 * loop; the program goes on. A viewer whose stream fails comes back by itself, and what it typed arrives once.
 */
export class TerminalView {
  #client;
  #project;
  #view;
  #input = new Input();
  #reader;
  #left = false;

  /**
   * @param {import("./natskit.js").Client} client
   * @param {string} project
   * @param {string} terminal
   * @param {View} view
   */
  constructor(client, project, terminal, view) {
    this.#client = client;
    this.#project = project;
    /** How news name this viewer; `undefined` until "screen" has come. */
    this.viewer = /** @type {string | undefined} */ (undefined);
    this.#view = { ...view, terminal, viewer: newKey() };
    this.#reader = this.#attach();
  }

  #attach() {
    const body = request("terminal.attach", this.#view);
    return new StreamReader(this.#client, `projects.${this.#project}.api`, body, this.#input);
  }

  /**
   * Read what the terminal shows, until its program ends; `undefined` after {@link TerminalView.leave}.
   * @returns {AsyncGenerator<TerminalNews, TerminalResult | undefined, void>} throws a {@link NatskitError}
   */
  async *[Symbol.asyncIterator]() {
    let failing = 0;
    while (true) {
      try {
        for await (const { kind, data } of this.#reader.frames()) {
          failing = 0;
          yield kind === "event" ? this.#read(data) : { type: "output", data };
        }
        return /** @type {any} */ (await this.#reader.done);
      } catch (error) {
        if (this.#left) return undefined;
        failing ||= performance.now();
        if (!this.#mayComeBack(error) || performance.now() - failing > COME_BACK_PATIENCE) throw error;
        await pause(COME_BACK_PAUSE);
        this.#reader = this.#attach();
      }
    }
  }

  /** @param {Uint8Array} data @returns {Exclude<TerminalNews, {type: "output"}>} */
  #read(data) {
    const news = JSON.parse(new TextDecoder().decode(data));
    if (news.type === "screen") this.viewer = news.viewer;
    return news;
  }

  /** Detach, also while the loop waits. The program goes on. */
  leave() {
    this.#left = true;
    this.#reader.leave();
  }

  /** @param {unknown} error */
  #mayComeBack(error) {
    if (!(error instanceof NatskitError) || this.#client.nats.isClosed()) return false;
    return error.kind === "not_found" ? error.data.what === undefined : ["unavailable", "timeout"].includes(error.kind);
  }

  /**
   * Type. Resolves when the text is on its way; waits while the program reads nothing.
   * @param {string | Uint8Array} text
   * @returns {Promise<void>} rejects with a {@link NatskitError} for more than 16 MiB
   */
  async write(text) {
    const data = typeof text === "string" ? new TextEncoder().encode(text) : text;
    if (data.length > PASTE_BYTES) {
      throw new NatskitError("limit", "that is too much to type (more than 16 MiB): write a file");
    }
    for (let at = 0; at < data.length; at += CHUNK_BYTES) {
      while (this.#input.isFull) await this.#input.taken();
      this.#reader.write(data.subarray(at, at + CHUNK_BYTES));
    }
  }

  /**
   * Tell the size of this viewer's window, and whether it is visible.
   * @param {number} columns
   * @param {number} rows
   * @param {boolean} [visible]
   * @returns {Promise<void>}
   */
  async resize(columns, rows, visible = true) {
    Object.assign(this.#view, { columns, rows, visible });
    const { terminal, viewer } = this.#view;
    try {
      await this.#client.callProject(this.#project, "terminal.resize", { terminal, viewer, columns, rows, visible });
    } catch (error) {
      // A viewer that is about to come, or to come back, names its size.
      if (!(error instanceof NatskitError && error.kind === "not_found")) throw error;
    }
  }
}

/** What tells the project that a viewer that comes back is the same one. Nobody else gets to know it. */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
