/**
 * The command box. It runs one command at a time in each project and shows the output as it comes, up to a limit.
 *
 * A command continues while another project is selected, and while the page is reloaded, for as long as projects wait
 * for a reader. Only Cancel ends it.
 */

import { element } from "./page.js";
import { Screen } from "./screen.js";

/** Milliseconds between two updates of the page while output arrives. */
const DRAW_EVERY = 80;
/** The pause after drawing is this many times as long as drawing took, so that the page stays responsive. */
const SHARE = 4;
/** How many projects keep their last output after the command ended: the most recent ones. */
const KEPT_PROJECTS = 20;
/** The key in sessionStorage under which the page keeps its running commands for the next load. */
const RUNNING = "natskit-running";

/** @typedef {import("@natskit/client").StreamReader} StreamReader */
/** @typedef {{project: string, position: import("@natskit/client").Position, elapsed: number,
 *   output: import("./screen.js").Run[]}} Left */

/** The last command of a project. */
class Session {
  run = /** @type {StreamReader | undefined} */ (undefined);
  screen = new Screen();
  status = "";
  error = "";
  started = performance.now();
}

export class Terminal {
  #client;
  #project;
  #onChange;
  #sessions = /** @type {Map<string, Session>} */ (new Map());
  #lines = /** @type {HTMLElement[]} */ ([]);
  #drawing = false;
  #cost = 0;

  /** @param {() => import("@natskit/client").Client} client @param {() => string} project the selected one
   * @param {() => void} onChange called when a command begins or ends */
  constructor(client, project, onChange) {
    this.#client = client;
    this.#project = project;
    this.#onChange = onChange;
    element("command-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    element("command").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.#start();
      }
    });
    element("cancel-button").addEventListener("click", () => this.#shown?.run?.cancel());
    addEventListener("pagehide", () => this.#leaveBehind());
    addEventListener("pageshow", (event) => event.persisted && sessionStorage.removeItem(RUNNING));
  }

  get #shown() {
    return this.#sessions.get(this.#project());
  }

  /** Show the last command of the selected project. */
  show() {
    element("output").replaceChildren();
    this.#lines = [];
    this.#shown?.screen.redraw();
    this.#describe();
    this.#draw();
  }

  /** @param {boolean} running whether the project can run commands */
  running(running) {
    element("run-button").title = running ? "" : "Start the project first";
  }

  /** @param {string} project @returns {boolean} whether a command of this page runs in it */
  isBusy(project) {
    return this.#sessions.get(project)?.run !== undefined;
  }

  /** Forget the commands of all other projects. @param {Set<string>} projects */
  keep(projects) {
    for (const project of this.#sessions.keys()) if (!projects.has(project)) this.#sessions.delete(project);
  }

  /** Continue with the commands that ran before the page was reloaded, if the same account is signed in. */
  resume() {
    const left = JSON.parse(sessionStorage.getItem(RUNNING) ?? "null");
    sessionStorage.removeItem(RUNNING);
    if (left?.account !== this.#client().session.account_id) return;
    for (const { project, position, elapsed, output } of /** @type {Left[]} */ (left.commands)) {
      const session = new Session();
      session.started = performance.now() - elapsed;
      for (const { stream, text } of output) session.screen.write(stream, text);
      void this.#follow(project, session, this.#client().resume(project, position));
    }
  }

  #start() {
    const command = element("command", HTMLTextAreaElement).value;
    const project = this.#project();
    if (!command.trim() || !project || this.isBusy(project)) return;
    const session = new Session();
    let run;
    try {
      run = this.#client().exec(project, { command });
    } catch (error) {
      session.error = error instanceof Error ? error.message : String(error);
    }
    this.#remember(project, session);
    if (run) void this.#follow(project, session, run);
    else this.show();
  }

  /** @param {string} project @param {Session} session @param {StreamReader} run */
  async #follow(project, session, run) {
    this.#remember(project, session);
    session.run = run;
    session.status = "running";
    this.#onChange();
    this.show();
    const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
    try {
      for await (const { stream, data } of run) {
        session.screen.write(stream, decoders[stream].decode(data, { stream: true }));
        this.#drawSoon();
      }
      for (const stream of /** @type {const} */ (["stdout", "stderr"])) {
        session.screen.write(stream, decoders[stream].decode());
      }
      const seconds = ((performance.now() - session.started) / 1000).toFixed(2);
      session.status = `${describe(await run.done)} · ${seconds} s`;
    } catch (error) {
      session.status = "";
      session.error = error instanceof Error ? error.message : String(error);
    } finally {
      session.run = undefined;
      this.#onChange();
      this.#describe();
      this.#drawSoon();
    }
  }

  /** @param {string} project @param {Session} session */
  #remember(project, session) {
    this.#sessions.delete(project); // put the newest last
    this.#sessions.set(project, session);
    for (const [other, { run }] of this.#sessions) {
      if (this.#sessions.size <= KEPT_PROJECTS) break;
      if (!run && other !== project) this.#sessions.delete(other);
    }
  }

  /** Before the page is left: store each running command's output, and the position to continue from. */
  #leaveBehind() {
    /** @type {Left[]} */
    const commands = [];
    for (const [project, { run, screen, started }] of this.#sessions) {
      const position = run?.position;
      if (position)
        commands.push({ project, position, elapsed: performance.now() - started, output: screen.content() });
    }
    if (commands.length === 0) return;
    const left = { account: this.#client().session.account_id, commands };
    try {
      sessionStorage.setItem(RUNNING, JSON.stringify(left));
    } catch {
      for (const one of commands) one.output = []; // more than sessionStorage holds
      sessionStorage.setItem(RUNNING, JSON.stringify(left));
    }
  }

  #describe() {
    const session = this.#shown;
    element("command-status").textContent = session?.status ?? "";
    element("command-error").textContent = session?.error ?? "";
    element("cancel-button", HTMLButtonElement).disabled = !session?.run;
    element("run-button", HTMLButtonElement).disabled = Boolean(session?.run);
  }

  #drawSoon() {
    if (this.#drawing) return;
    this.#drawing = true;
    setTimeout(
      () => {
        this.#drawing = false;
        this.#draw();
      },
      Math.max(DRAW_EVERY, SHARE * this.#cost),
    );
  }

  #draw() {
    const screen = this.#shown?.screen;
    if (!screen) return;
    const started = performance.now();
    screen.update();
    const output = element("output");
    const atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    for (const line of this.#lines.splice(0, screen.dropped)) line.remove();
    for (const line of this.#lines.splice(screen.changed)) line.remove();
    const fresh = screen.lines.slice(this.#lines.length).map(drawLine);
    if (!fresh.at(-1)?.hasChildNodes()) fresh.pop(); // the last line is still empty
    this.#lines.push(...fresh);
    output.append(...fresh);
    output.querySelector(".cut")?.remove();
    if (screen.cut > 0) {
      output.prepend(span("cut", `… ${screen.cut.toLocaleString("en")} characters of earlier output are not shown\n`));
    }
    if (atEnd) output.scrollTop = output.scrollHeight; // forces a layout, which the measured time then includes
    screen.drawn();
    this.#cost = performance.now() - started;
  }
}

/** @param {import("./screen.js").Line} line */
function drawLine({ runs, end }) {
  const line = span("line", "");
  line.append(...runs.map(({ stream, text }) => span(stream, text)));
  if (end) (line.lastElementChild ?? line).append(end);
  return line;
}

/** @param {string} name @param {string} text */
function span(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}

/** @param {import("@natskit/client").Result} result */
function describe(result) {
  if (result.cancelled) return "cancelled";
  if (result.timed_out) return "timed out";
  if (result.signal) {
    const { signal, signal_number: number } = result;
    return number ? `ended by ${signal}, exit code ${128 + number}` : `ended by ${signal}`;
  }
  return `exit code ${result.exit_code}`;
}
