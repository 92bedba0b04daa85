/**
 * The terminals of the selected project, one in front. They go on without this page, and are drawn anew when it comes
 * back. terminal-screen.js draws them, and says when it has drawn what arrived: only then is more asked for.
 */

import { element, guard } from "./page.js";
import { TerminalScreen } from "./terminal-screen.js";

const SMALLEST_FONT = 8;
const LARGEST_FONT = 32;
/** Keys in localStorage. */
const FONT = "natskit-terminal-font";
const READER = "natskit-terminal-screen-reader";
const BESIDE = "natskit-terminal-beside-files";

/** @typedef {import("@natskit/client").TerminalView} TerminalView */
/** @typedef {import("@natskit/client").Viewer} Viewer */
/** @typedef {Exclude<import("@natskit/client").TerminalNews, {type: "output"}>} News */
/** @typedef {{terminal: string, title: string}} Described */
/** @typedef {{account_id: string, email: string}} Person */

/** A terminal that is open in this page. */
class Open {
  box = document.createElement("div");
  title = "";
  status = "";
  over = false;
  watching = false;
  viewers = /** @type {Viewer[]} */ ([]);
  typist = /** @type {string | undefined} */ (undefined);
  typistAccount = /** @type {string | null} */ (null);
  recording = /** @type {string | null} */ (null);
  screen = /** @type {TerminalScreen | undefined} */ (undefined);
  view = /** @type {TerminalView | undefined} */ (undefined);

  /** @param {string} project @param {string} name */
  constructor(project, name) {
    this.project = project;
    this.name = name;
    this.box.className = "terminal";
    this.box.dataset.terminal = name;
  }

  /** Whether this page was the last to type. */
  get types() {
    return this.view?.viewer !== undefined && this.view.viewer === this.typist;
  }
}

export class Terminals {
  #client;
  #project;
  #open = /** @type {Map<string, Open>} */ (new Map());
  #front = /** @type {Open | undefined} */ (undefined);
  #names = /** @type {string[]} */ ([]);
  #people = /** @type {Person[]} */ ([]);
  #running = false;
  #look = { fontSize: Number(localStorage.getItem(FONT)) || 14, screenReader: localStorage.getItem(READER) === "on" };

  /** @param {() => import("@natskit/client").Client} client @param {() => string} project the selected one */
  constructor(client, project) {
    this.#client = client;
    this.#project = project;
    const does = (/** @type {string} */ id, /** @type {() => Promise<void>} */ work) =>
      element(id).addEventListener("click", () => void guard("terminal-error", work));
    does("new-terminal", () => this.#create());
    does("end-terminal", () => this.#end());
    element("smaller-font").addEventListener("click", () => this.#setFont(this.#look.fontSize - 1));
    element("larger-font").addEventListener("click", () => this.#setFont(this.#look.fontSize + 1));
    this.#listenToSearch();
    this.#listenToSwitches();
    new ResizeObserver(() => this.#fit()).observe(element("terminal-boxes"));
    document.addEventListener("visibilitychange", () => this.#fit());
    addEventListener("pagehide", (event) => {
      if (!event.persisted) for (const { view } of this.#open.values()) view?.leave();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#changeLook());
  }

  #listenToSearch() {
    const search = element("terminal-search", HTMLInputElement);
    const find = (/** @type {boolean} */ up) => this.#front?.screen?.find(search.value, up);
    search.addEventListener("input", () => find(false));
    search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") find(event.shiftKey);
      if (event.key === "Escape") this.#front?.screen?.focus();
    });
    element("search-up").addEventListener("click", () => find(true));
    element("search-down").addEventListener("click", () => find(false));
  }

  #listenToSwitches() {
    /** @param {string} id @param {(on: boolean) => Promise<unknown> | void} turn */
    const turns = (id, turn) => {
      const box = element(id, HTMLInputElement);
      box.addEventListener(
        "change",
        () => void guard("terminal-error", async () => turn(box.checked)).then(() => this.#draw()),
      );
    };
    turns("watch-only", (on) => this.#watch(on));
    turns("type-alone", (on) => this.#call("terminal.share", { typing: on ? "me" : "everyone" }));
    turns("record-terminal", (on) => this.#call("terminal.record", on ? { path: this.#newPath() } : {}));
    turns("screen-reader", (on) => {
      localStorage.setItem(READER, on ? "on" : "off");
      this.#look.screenReader = on;
      this.#changeLook();
    });
    turns("beside-files", (on) => {
      localStorage.setItem(BESIDE, on ? "on" : "off");
      element("project").classList.toggle("beside", on);
    });
    element("screen-reader", HTMLInputElement).checked = this.#look.screenReader;
    const beside = localStorage.getItem(BESIDE) === "on";
    element("beside-files", HTMLInputElement).checked = beside;
    element("project").classList.toggle("beside", beside);
  }

  /** Another project is selected, or it was started or stopped. @param {boolean} running */
  running(running) {
    const came = running && !this.#running;
    this.#running = running;
    element("new-terminal", HTMLButtonElement).disabled = !running;
    if (came) void this.#list();
    if (!running) this.#put(undefined);
    this.#draw();
  }

  /** Who may view the terminals of the selected project. @param {Person[]} people */
  people(people) {
    this.#people = people;
  }

  /** Another project is selected. */
  show() {
    this.#running = false;
    this.#names = [];
    element("terminal-error").textContent = "";
    this.#put(undefined);
    this.#draw();
  }

  /** The state of the connection has changed. */
  connection() {
    this.#draw();
  }

  /** Leave all terminals of other projects. @param {Set<string>} projects that can still be used */
  keep(projects) {
    for (const [key, open] of this.#open) if (!projects.has(open.project)) this.#leave(key, open);
  }

  async #list() {
    const project = this.#project();
    await guard("terminal-error", async () => {
      const found = /** @type {Described[]} */ (await this.#client().callProject(project, "terminal.list"));
      if (project !== this.#project()) return;
      this.#names = found.map(({ terminal }) => terminal);
      if (this.#names.length && !this.#front) await this.#show(this.#names[0]);
      this.#draw();
    });
  }

  async #create() {
    const made = /** @type {Described} */ (await this.#client().callProject(this.#project(), "terminal.create"));
    this.#names.push(made.terminal);
    await this.#show(made.terminal);
  }

  async #end() {
    await this.#call("terminal.close");
  }

  /** Call a method of the terminal in front. @param {string} method @param {object} [params] */
  async #call(method, params = {}) {
    if (!this.#front) return;
    await this.#client().callProject(this.#front.project, method, { terminal: this.#front.name, ...params });
  }

  /** @param {string} name */
  async #show(name) {
    const key = `${this.#project()} ${name}`;
    let open = this.#open.get(key);
    if (!open || open.over) {
      open?.box.remove();
      open = new Open(this.#project(), name);
      this.#open.set(key, open);
      element("terminal-boxes").append(open.box);
      this.#put(open);
      await this.#begin(open);
    } else this.#put(open);
    open.screen?.focus();
  }

  /** @param {Open} open */
  async #begin(open) {
    open.screen = await TerminalScreen.open(open.box, this.#look, {
      type: (text) => void guard("terminal-error", async () => void (await open.view?.write(text))),
      mayCopy: () => open.types && document.hasFocus(),
      found: (text) => {
        if (open === this.#front) element("search-result").textContent = text;
      },
      search: () => element("terminal-search").focus(),
    });
    this.#attach(open, open.screen);
  }

  /** @param {Open} open @param {TerminalScreen} screen */
  #attach(open, screen) {
    open.view = this.#client().terminal(open.project, open.name, {
      ...screen.proposed(),
      visible: !document.hidden,
      read_only: open.watching,
    });
    void this.#follow(open, screen, open.view);
  }

  /** @param {Open} open @param {TerminalScreen} screen @param {TerminalView} view */
  async #follow(open, screen, view) {
    const news = view[Symbol.asyncIterator]();
    try {
      while (true) {
        const { value, done } = await news.next();
        if (open.view !== view) return; // this page has attached anew
        if (done) {
          open.status = value ? said(value) : "";
          break;
        }
        if (value.type === "output") await screen.draw(value.data);
        else this.#take(open, screen, value);
      }
    } catch (error) {
      if (open.view !== view) return;
      open.status = error instanceof Error ? error.message : String(error);
    }
    open.over = true;
    if (open.project === this.#project()) this.#names = this.#names.filter((name) => name !== open.name);
    screen.end();
    this.#draw();
  }

  /** @param {Open} open @param {TerminalScreen} screen @param {News} news */
  #take(open, screen, news) {
    if (news.type === "screen") screen.reset();
    if (news.type === "screen" || news.type === "size") screen.resize(news.columns, news.rows);
    if (news.type === "screen" || news.type === "title") open.title = news.title;
    if (news.type === "typing") open.typist = news.viewer;
    if (news.type === "screen") open.recording = news.recording;
    if (news.type === "recording") {
      open.recording = news.path;
      if (news.why) element("terminal-error").textContent = `The recording has ended: ${news.why}`;
    }
    if (news.type === "screen" || news.type === "viewers") {
      open.viewers = news.viewers;
      open.typistAccount = news.typist_account;
      open.status = watched(news.viewers.length);
    }
    this.#draw();
  }

  /** View the terminal in front without typing, or with. @param {boolean} on */
  #watch(on) {
    const open = this.#front;
    if (!open?.screen || open.over) return;
    open.watching = on;
    const before = open.view;
    this.#attach(open, open.screen);
    before?.leave();
  }

  /** A name for a recording that no file has yet. */
  #newPath() {
    const now = new Date().toISOString().replace(/[-:]/g, "").slice(0, 15);
    return `${this.#front?.name}-${now}.cast`;
  }

  /** @param {Open | undefined} open */
  #put(open) {
    this.#front = open;
    for (const each of this.#open.values()) each.box.hidden = each !== open;
    element("search-result").textContent = "";
    this.#fit();
    this.#draw();
  }

  /** Tell all terminals how large their windows are, and whether they can be seen. */
  #fit() {
    for (const open of this.#open.values()) {
      if (!open.view || open.over || !open.screen) continue;
      const visible = open === this.#front && !document.hidden;
      const { columns, rows } = open === this.#front ? open.screen.proposed() : open.screen.size;
      if (columns > 0 && rows > 0) void open.view.resize(columns, rows, visible).catch(() => {});
    }
  }

  /** @param {number} size */
  #setFont(size) {
    this.#look.fontSize = Math.min(Math.max(size, SMALLEST_FONT), LARGEST_FONT);
    localStorage.setItem(FONT, String(this.#look.fontSize));
    this.#changeLook();
    this.#fit();
  }

  #changeLook() {
    for (const { screen } of this.#open.values()) screen?.look(this.#look);
  }

  /** @param {string} key @param {Open} open */
  #leave(key, open) {
    this.#open.delete(key);
    open.view?.leave();
    open.screen?.close();
    open.box.remove();
    if (this.#front === open) this.#put(undefined);
  }

  #draw() {
    const front = this.#front;
    const names = front && !this.#names.includes(front.name) ? [...this.#names, front.name] : this.#names;
    element("terminal-tabs").replaceChildren(
      ...names.map((name) => {
        const button = document.createElement("button");
        button.type = "button";
        button.role = "tab";
        button.textContent = name;
        button.dataset.terminal = name;
        button.setAttribute("aria-selected", String(name === front?.name));
        button.addEventListener("click", () => void guard("terminal-error", () => this.#show(name)));
        return button;
      }),
    );
    element("end-terminal", HTMLButtonElement).disabled = !front || front.over;
    const away = front && !front.over && this.#client()?.state !== "connected";
    const status = element("terminal-status");
    status.textContent = away ? "reconnecting …" : (front?.status ?? "");
    status.title = front?.viewers.map((viewer) => this.#who(viewer)).join("\n") ?? "";
    element("terminal-title").textContent = front?.title ?? "";
    this.#drawTools(front);
  }

  /** @param {Open | undefined} front */
  #drawTools(front) {
    element("terminal-tools").hidden = !front;
    if (!front) return;
    const own = this.#client()?.session.account_id;
    element("watch-only", HTMLInputElement).checked = front.watching;
    element("type-alone", HTMLInputElement).checked = front.typistAccount !== null && front.typistAccount === own;
    element("record-terminal", HTMLInputElement).checked = front.recording !== null;
    element("record-label").title = front.recording ?? "";
    element("terminal-typist").textContent = this.#typing(front);
    for (const id of ["watch-only", "type-alone", "record-terminal"]) {
      element(id, HTMLInputElement).disabled = front.over;
    }
  }

  /** @param {Open} open */
  #typing(open) {
    const own = this.#client()?.session.account_id;
    if (open.typistAccount !== null && open.typistAccount !== own) {
      return `only ${this.#named(open.typistAccount)} types`;
    }
    const typist = open.viewers.find(({ viewer }) => viewer === open.typist);
    if (!typist || open.viewers.length < 2) return "";
    return open.types ? "you type" : `${this.#named(typist.account_id)} types`;
  }

  /** @param {Viewer} viewer */
  #who(viewer) {
    const notes = [viewer.read_only ? "watches" : "", viewer.away ? "away" : ""].filter(Boolean).join(", ");
    return this.#named(viewer.account_id) + (notes && ` (${notes})`);
  }

  /** @param {string | null} account of a viewer; `null` and others than a member are the operator */
  #named(account) {
    return this.#people.find(({ account_id }) => account_id === account)?.email ?? "the operator";
  }
}

/** @param {import("@natskit/client").TerminalResult} result */
function said({ exit_code, signal }) {
  return signal ? `ended by ${signal}` : `ended with exit code ${exit_code}`;
}

/** @param {number} viewers */
function watched(viewers) {
  return viewers > 1 ? `${viewers} viewers` : "";
}
