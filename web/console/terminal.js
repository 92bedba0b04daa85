/** The command box: one command at a time, its output as it comes, the page bounded however much that is. */

import { element, guard } from "./page.js";

/** How much output is kept on the page. Laying out lines is what costs: 5,000 take a few milliseconds. */
const KEPT_LINES = 5_000;
const KEPT_CHARACTERS = 500_000;
/** Milliseconds between two updates of the page while output pours in. */
const DRAW_EVERY = 80;
/** Colours and cursor movements of terminals. */
const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])/g;

/** @typedef {{stream: string, text: string, lines: number}} Part */

export class Terminal {
  #client;
  #project;
  #run = /** @type {import("../src/stream.js").StreamReader | undefined} */ (undefined);
  #cut = 0;
  #shown = /** @type {Part[]} */ ([]);
  #pending = /** @type {Part[]} */ ([]);

  /** @param {() => import("../src/natskit.js").Client} client @param {() => string} project */
  constructor(client, project) {
    this.#client = client;
    this.#project = project;
    element("command-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.run();
    });
    element("command").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        void this.run();
      }
    });
    element("cancel-button").addEventListener("click", () => this.#run?.cancel());
  }

  /** Forget the output; a command that still runs is ended. */
  clear() {
    this.#run?.cancel();
    this.#run = undefined;
    this.#empty();
    element("command-status").textContent = "";
    element("command-error").textContent = "";
    element("cancel-button", HTMLButtonElement).disabled = true;
    element("run-button", HTMLButtonElement).disabled = false;
  }

  /** @param {boolean} running whether the project can run commands */
  running(running) {
    element("run-button").title = running ? "" : "Start the project first";
  }

  async run() {
    const command = element("command", HTMLTextAreaElement).value;
    if (!command.trim() || this.#run) return;
    this.#empty();
    element("run-button", HTMLButtonElement).disabled = true;
    element("cancel-button", HTMLButtonElement).disabled = false;
    const status = element("command-status");
    status.textContent = "running";
    const started = performance.now();
    await guard("command-error", async () => {
      const run = this.#client().exec(this.#project(), { command });
      this.#run = run;
      const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
      try {
        for await (const { stream, data } of run) {
          if (this.#run !== run) return;
          this.#write(stream, decoders[stream].decode(data, { stream: true }));
        }
        const result = await run.done;
        if (this.#run !== run) return;
        const seconds = ((performance.now() - started) / 1000).toFixed(2);
        status.textContent = `${describe(result)} · ${seconds} s`;
      } catch (error) {
        if (this.#run === run) status.textContent = "";
        throw error;
      } finally {
        if (this.#run === run) {
          this.#run = undefined;
          element("run-button", HTMLButtonElement).disabled = false;
          element("cancel-button", HTMLButtonElement).disabled = true;
        }
      }
    });
  }

  #empty() {
    element("output").replaceChildren();
    this.#cut = 0;
    this.#shown = [];
    this.#pending = [];
  }

  /** @param {string} stream @param {string} text */
  #write(stream, text) {
    if (this.#pending.length === 0) setTimeout(() => this.#draw(), DRAW_EVERY);
    this.#pending.push(this.#tail({ stream, text: text.replace(ESCAPES, "") }));
    this.#trim(this.#pending);
  }

  #draw() {
    const output = element("output");
    const atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    this.#shown.push(...this.#pending.splice(0));
    const dropped = this.#trim(this.#shown);
    if (dropped > 0) output.replaceChildren();
    for (const part of dropped > 0 ? this.#shown : this.#shown.slice(output.querySelectorAll("span:not(.cut)").length)) {
      const piece = document.createElement("span");
      piece.className = part.stream;
      piece.textContent = part.text;
      output.append(piece);
    }
    if (this.#cut > 0) {
      output.querySelector(".cut")?.remove();
      const note = document.createElement("span");
      note.className = "cut";
      note.textContent = `… ${this.#cut.toLocaleString("en")} characters of earlier output are not shown\n`;
      output.prepend(note);
    }
    if (atEnd) output.scrollTop = output.scrollHeight;
  }

  /** Drop parts from the front until the rest is short enough. @param {Part[]} parts @returns {number} parts dropped */
  #trim(parts) {
    let lines = 0;
    let characters = 0;
    let keep = parts.length;
    while (keep > 0 && lines < KEPT_LINES && characters < KEPT_CHARACTERS) {
      keep--;
      lines += parts[keep].lines;
      characters += parts[keep].text.length;
    }
    for (const part of parts.splice(0, keep)) this.#cut += part.text.length;
    return keep;
  }

  /** The end of one piece of output, no more than is kept. @param {{stream: string, text: string}} piece @returns {Part} */
  #tail({ stream, text }) {
    let lines = 0;
    let start = text.length;
    for (; start > 0 && text.length - start < KEPT_CHARACTERS; start--) {
      if (text.charCodeAt(start - 1) === 10 && ++lines > KEPT_LINES) break;
    }
    this.#cut += start;
    return { stream, text: text.slice(start), lines };
  }
}

/** @param {import("../src/stream.js").Result} result */
function describe(result) {
  if (result.cancelled) return "cancelled";
  if (result.timed_out) return "timed out";
  if (result.signal) return `ended by ${result.signal}`;
  return `exit code ${result.exit_code}`;
}
