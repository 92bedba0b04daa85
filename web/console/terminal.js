/** The command box: one command at a time, its output as it comes, the page bounded however much that is. */

import { element, guard } from "./page.js";

/** Characters of output kept on the page. */
const KEPT = 500_000;
/** Colours and cursor movements of terminals. */
const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])/g;

export class Terminal {
  #client;
  #project;
  #run = /** @type {import("../src/stream.js").StreamReader | undefined} */ (undefined);
  #shown = 0;
  #cut = 0;
  #pending = /** @type {{stream: string, text: string}[]} */ ([]);

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
    this.#shown = this.#cut = 0;
    this.#pending = [];
  }

  /** @param {string} stream @param {string} text */
  #write(stream, text) {
    if (this.#pending.length === 0) requestAnimationFrame(() => this.#draw());
    this.#pending.push({ stream, text: text.replace(ESCAPES, "") });
    // A hidden page draws no frames: what would scroll away anyway is dropped before it is drawn.
    let waiting = this.#pending.reduce((sum, part) => sum + part.text.length, 0);
    while (waiting > KEPT && this.#pending.length > 1) {
      const dropped = /** @type {{text: string}} */ (this.#pending.shift()).text.length;
      this.#cut += dropped;
      waiting -= dropped;
    }
  }

  #draw() {
    const output = element("output");
    const atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    for (const { stream, text } of this.#pending.splice(0)) {
      const part = document.createElement("span");
      part.className = stream;
      part.textContent = text;
      output.append(part);
      this.#shown += text.length;
    }
    while (this.#shown > KEPT) {
      const first = output.querySelector("span:not(.cut)");
      if (!first || first === output.lastElementChild) break;
      const size = first.textContent?.length ?? 0;
      first.remove();
      this.#shown -= size;
      this.#cut += size;
    }
    if (this.#cut > 0) {
      let note = output.querySelector(".cut");
      if (!note) {
        note = document.createElement("span");
        note.className = "cut";
        output.prepend(note);
      }
      note.textContent = `… ${this.#cut.toLocaleString("en")} characters of earlier output are not shown\n`;
    }
    if (atEnd) output.scrollTop = output.scrollHeight;
  }
}

/** @param {import("../src/stream.js").Result} result */
function describe(result) {
  if (result.cancelled) return "cancelled";
  if (result.timed_out) return "timed out";
  if (result.signal) return `ended by ${result.signal}`;
  return `exit code ${result.exit_code}`;
}
