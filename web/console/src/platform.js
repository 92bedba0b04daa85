/** The page Platform: how the platform is, for its administrators. Others get no button, and hubs refuse them. */

import { Measures } from "./measures.js";
import { element, guard } from "./page.js";
import { bytes } from "./tree.js";

/** @typedef {import("@natskit/client").PlatformOverview} PlatformOverview */
/** @typedef {import("@natskit/client").ProjectUse} ProjectUse */

/** Of a hub, as the proxy that serves this page reaches it.
 * @typedef {{name: string, version: string, answers: boolean, good: boolean, state: string}} Reached */

const EVERY = 3_000;
const PATIENCE = 4_000;

const WRITE = new Intl.NumberFormat("en", { maximumFractionDigits: 1, notation: "compact" });

/** The columns of the projects: how a column is called, its values, and how one is written.
 * @type {{key: string, title: string, value: (one: ProjectUse, measures: Measures) => number | null, write: (value: number) => string}[]} */
const USES = [
  { key: "cpu", title: "CPU", value: (one, measures) => measures.cpu(one.project_id), write: percent },
  { key: "memory", title: "Memory", value: (one) => one.memory_bytes, write: bytes },
  { key: "disk", title: "Disk", value: (one) => one.disk_bytes, write: bytes },
  { key: "tasks", title: "Tasks", value: (one) => one.tasks, write: String },
];

export class Platform {
  #client;
  #measures = new Measures();
  #sortedBy = "memory";
  /** The names of hubs by their numbers at the proxy: one that does not answer cannot say its own.
   * @type {Map<number, string>} */
  #named = new Map();
  /** How many hubs the proxy knows. */
  #hubs = 0;
  /** @type {Record<keyof Measures["series"], import("./plots.js").Plot> | undefined} */
  #plots;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #next;

  /** @param {() => import("@natskit/client").Client} client */
  constructor(client) {
    this.#client = client;
    element("platform-button").addEventListener("click", () => void this.#show(element("platform").hidden));
    document.addEventListener("visibilitychange", () => void this.#read());
    this.#makeHead();
  }

  /** Somebody has signed in: show the button to an administrator. */
  async signedIn() {
    const client = this.#client();
    const me = await client.callHub("whoami").catch(() => undefined);
    if (client === this.#client() && me?.administrator) element("platform-button").hidden = false;
  }

  /** The next person to sign in here sees nothing of what this one saw. */
  signedOut() {
    void this.#show(false);
    element("platform-button").hidden = true;
    this.#measures = new Measures();
    this.#named.clear();
    for (const id of ["alerts", "parts", "use", "counters", "backup", "platform-totals", "platform-seen"]) {
      element(id).replaceChildren();
    }
    element("plots").replaceChildren();
    this.#plots = undefined;
  }

  /** @param {boolean} shown */
  async #show(shown) {
    element("platform").hidden = !shown;
    element("work").hidden = shown;
    element("platform-button").setAttribute("aria-pressed", String(shown));
    if (!shown) return clearTimeout(this.#next);
    element("platform-heading").focus();
    await this.#read();
  }

  /** Ask again and again, while somebody looks. */
  async #read() {
    clearTimeout(this.#next);
    if (element("platform").hidden || document.hidden) return;
    const measures = this.#measures;
    await guard("platform-error", async () => {
      const [found, hubs] = await Promise.all([this.#client().callHub("describe_platform"), this.#reach()]);
      if (measures !== this.#measures) return; // somebody has signed out meanwhile
      measures.take(found);
      this.#draw(found, hubs);
      await this.#drawPlots();
    });
    clearTimeout(this.#next); // another one may have begun meanwhile
    this.#next = setTimeout(() => void this.#read(), EVERY);
  }

  /** Ask each hub by itself, as the proxy numbers them from 1 on. @returns {Promise<Reached[]>} */
  async #reach() {
    if (this.#hubs)
      return (await Promise.all(Array.from({ length: this.#hubs }, (_, n) => this.#ask(n + 1)))).filter(
        (one) => one !== undefined,
      );
    /** @type {Reached[]} */
    const found = [];
    for (let next = await this.#ask(1); next; next = await this.#ask(found.length + 1)) found.push(next);
    this.#hubs = found.length;
    return found;
  }

  /** @param {number} number @returns {Promise<Reached | undefined>} `undefined` if there is no such hub */
  async #ask(number) {
    const answer = await fetch(`/reach/hub/${number}`, {
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE),
    }).catch(() => undefined);
    if (answer?.status === 404) return undefined;
    const body = (await answer?.json().catch(() => undefined)) ?? {};
    if (typeof body.hub === "string") this.#named.set(number, body.hub);
    const good = body.status === "ok";
    return {
      name: this.#named.get(number) ?? `number ${number} of the proxy`,
      version: body.version ?? "–",
      answers: typeof body.hub === "string",
      good,
      state: good ? "well" : (body.problems ?? ["does not answer"]).join("; "),
    };
  }

  /** @param {PlatformOverview} found @param {Reached[]} hubs */
  #draw(found, hubs) {
    element("platform-seen").textContent =
      `seen by ${found.hub.name} at ${new Date(found.time).toLocaleTimeString(undefined, { timeStyle: "medium" })}`;
    element("platform-totals").textContent = `${count(found.accounts, "account")}, ${count(found.projects, "project")}`;
    this.#drawAlerts(found.alerts);
    element("parts").replaceChildren(...this.#parts(found, hubs));
    this.#drawUse(found.use);
    element("backup").textContent = backup(found.backup);
    const answers = [...this.#measures.hubs.values()].sort((a, b) => a.hub.name.localeCompare(b.hub.name));
    element("counters").replaceChildren(...answers.map(({ hub }) => counters(hub.name, hub.counters)));
  }

  /** Replaced only if they differ, since a screen reader reads what is new. @param {PlatformOverview["alerts"]} alerts */
  #drawAlerts(alerts) {
    const place = element("alerts");
    const content = JSON.stringify(alerts);
    if (place.dataset.content === content && place.children.length === alerts.length) return;
    place.dataset.content = content;
    place.replaceChildren(
      ...alerts.map(({ name, severity, about }) => {
        const item = document.createElement("li");
        item.append(state(severity, severity), text("strong", name), about);
        return item;
      }),
    );
    element("no-alerts").hidden = alerts.length > 0;
  }

  /** @param {PlatformOverview} found @param {Reached[]} hubs */
  #parts(found, hubs) {
    const reached = hubs.filter((hub) => hub.answers).length;
    return [
      row(
        "proxy",
        "of this page",
        "–",
        health(`reaches ${reached} of ${count(hubs.length, "hub")}`, reached === hubs.length),
        "",
      ),
      ...hubs.map((hub) =>
        row("hub", hub.name, hub.version, health(hub.state, hub.good), this.#at(found, "hub", hub.name)),
      ),
      ...this.#keepers(found),
      ...found.nats_servers.map((server) =>
        row("nats-server", server.name, server.version, health("answers", true), loadOf(server)),
      ),
      ...found.runners.map(runner),
    ];
  }

  /** @param {PlatformOverview} found */
  #keepers(found) {
    const known = [...this.#measures.seen.values()].filter(({ role }) => role === "keeper");
    return known.map(({ name }) => {
      const at = this.#at(found, "keeper", name);
      return row("keeper", name, "–", health(at ? "connected" : "not connected", at !== ""), at);
    });
  }

  /** @param {PlatformOverview} found @param {"hub" | "keeper"} role @param {string} name */
  #at(found, role, name) {
    const one = found.connected.find((each) => each.role === role && each.name === name);
    return one ? `at ${one.nats_server} since ${moment(one.since)}` : "";
  }

  /** @param {ProjectUse[]} use */
  #drawUse(use) {
    const sorting = USES.find(({ key }) => key === this.#sortedBy) ?? USES[0];
    /** @param {ProjectUse} one */
    const of = (one) => sorting?.value(one, this.#measures) ?? -1;
    const sorted = [...use].sort((a, b) => of(b) - of(a) || a.title.localeCompare(b.title));
    element("use").replaceChildren(
      ...sorted.map((one) => {
        const values = USES.map(({ value, write }) => {
          const amount = value(one, this.#measures);
          return amount === null ? "–" : write(amount);
        });
        const made = row(one.title, one.owner ?? "–", one.runner, ...values);
        made.dataset.projectId = one.project_id;
        return made;
      }),
    );
    element("no-use").hidden = use.length > 0;
  }

  #makeHead() {
    const cells = ["Project", "Owner", "Runner"].map((title) => heading(text("span", title)));
    const sorted = USES.map(({ key, title }) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = title;
      const cell = heading(button);
      cell.dataset.key = key;
      button.addEventListener("click", () => this.#sortBy(key));
      return cell;
    });
    element("use-head").replaceChildren(...cells, ...sorted);
    this.#sortBy(this.#sortedBy);
  }

  /** @param {string} key */
  #sortBy(key) {
    this.#sortedBy = key;
    for (const cell of element("use-head").children) {
      if (!(cell instanceof HTMLElement) || !cell.dataset.key) continue;
      if (cell.dataset.key === key) cell.setAttribute("aria-sort", "descending");
      else cell.removeAttribute("aria-sort");
    }
    const newest = [...this.#measures.hubs.values()].at(-1);
    if (newest) this.#drawUse(newest.use);
  }

  async #drawPlots() {
    if (!this.#plots) {
      const { Plot } = await import("./plots.js"); // only administrators need it
      const place = element("plots");
      place.replaceChildren();
      const accent = [{ name: "", colour: "accent" }];
      /** @param {number} value */
      const each = (value) => WRITE.format(value);
      const connects = [
        { name: "let in", colour: "good" },
        { name: "refused", colour: "bad" },
      ];
      this.#plots = {
        connections: new Plot({ title: "Connections", lines: accent, write: each }, place),
        messages: new Plot({ title: "Messages a second", lines: accent, write: each }, place),
        connects: new Plot({ title: "Connects a second", lines: connects, write: each }, place),
        load: new Plot({ title: "Busiest runner’s load", lines: accent, write: percent }, place),
      };
    }
    for (const [name, plot] of Object.entries(this.#plots)) {
      plot.draw(this.#measures.series[/** @type {keyof Measures["series"]} */ (name)]);
    }
  }
}

/** @param {import("@natskit/client").NatsServerSeen} server */
function loadOf(server) {
  const parts = [
    `CPU ${Math.round(server.cpu_percent)} %`,
    `memory ${bytes(server.memory_bytes)}`,
    count(server.connections, "connection"),
  ];
  if (server.storage_bytes !== null && server.storage_limit_bytes) {
    parts.push(`streams ${bytes(server.storage_bytes)} of ${bytes(server.storage_limit_bytes)}`);
  }
  if (server.slow_consumers) parts.push(count(server.slow_consumers, "slow consumer"));
  return parts.join(", ");
}

/** @param {import("@natskit/client").RunnerSeen} one */
function runner(one) {
  const { host } = one;
  const parts = [`${count(one.running, "project")} running`];
  if (host) {
    parts.push(
      `load ${host.load.toFixed(2)} on ${count(host.processors, "processor")}`,
      `memory ${bytes(host.memory_bytes - host.memory_available_bytes)} of ${bytes(host.memory_bytes)}`,
      `disk ${bytes(host.disk_bytes - host.disk_free_bytes)} of ${bytes(host.disk_bytes)}`,
    );
  }
  const silent = one.revoked ? "revoked" : "silent";
  return row("runner", one.name, one.version ?? "–", health(one.alive ? "alive" : silent, one.alive), parts.join(", "));
}

/** @param {string} name @param {Record<string, number>} counted */
function counters(name, counted) {
  /** @param {string} key */
  const of = (key) => (counted[key] ?? 0).toLocaleString("en", { maximumFractionDigits: 0 });
  const answered = counted.callouts_answered ?? 0;
  const mean = answered ? `${((1000 * (counted.callout_seconds ?? 0)) / answered).toFixed(1)} ms` : "–";
  const [connects, requests] = [
    ["callouts", "callouts_refused", "callouts_shed"],
    ["requests", "requests_refused"],
  ];
  return row(
    name,
    ...(connects ?? []).map(of),
    mean,
    ...(requests ?? []).map(of),
    of("sign_ins"),
    of("sign_ins_refused"),
  );
}

/** @param {PlatformOverview["backup"]} found */
function backup({ begun, verified }) {
  if (!begun) return "No backup is known.";
  const tried = verified ? `A backup was last verified at ${moment(verified)}.` : "No backup was ever verified.";
  return `The last backup was begun at ${moment(begun)}. ${tried}`;
}

/** A row of a table, of which the first cell names the others. @param {...(string | Node)} cells */
function row(...cells) {
  const made = document.createElement("tr");
  for (const [number, content] of cells.entries()) {
    const cell = document.createElement(number ? "td" : "th");
    if (cell instanceof HTMLTableCellElement && !number) cell.scope = "row";
    cell.append(content);
    made.append(cell);
  }
  return made;
}

/** @param {Node} content */
function heading(content) {
  const cell = document.createElement("th");
  cell.scope = "col";
  cell.append(content);
  return cell;
}

/** A state in words, and in a colour. @param {string} words @param {"good" | "warning" | "critical"} kind */
function state(words, kind) {
  const made = text("span", words);
  made.className = "pill";
  made.dataset.state = { good: "running", warning: "starting", critical: "failed" }[kind];
  return made;
}

/** @param {string} words @param {boolean} good */
function health(words, good) {
  return state(words, good ? "good" : "critical");
}

/** @param {string} tag @param {string} content */
function text(tag, content) {
  const made = document.createElement(tag);
  made.textContent = content;
  return made;
}

/** @param {number} value */
function percent(value) {
  return `${Math.round(100 * value)} %`;
}

/** @param {number} number @param {string} thing */
function count(number, thing) {
  return `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : "s"}`;
}

/** @param {string} time */
function moment(time) {
  return new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
