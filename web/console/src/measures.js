/** What the page Platform makes of what hubs have answered one after another: rates, and the last minutes. */

/** @typedef {import("@natskit/client").PlatformOverview} PlatformOverview */
/** @typedef {import("@natskit/client").ProjectUse} ProjectUse */

export const MINUTES = 10;

/** Times in Unix seconds, and the value of each line at these times. @typedef {(number | null)[][]} Series */

export class Measures {
  /** Connections; messages a second; connects let in and refused a second; the load of the busiest host. */
  /** @type {Record<"connections" | "messages" | "connects" | "load", Series>} */
  series = { connections: [[], []], messages: [[], []], connects: [[], [], []], load: [[], []] };
  /** The newest answer of each hub. @type {Map<string, PlatformOverview>} */
  hubs = new Map();
  /** When each hub or keeper was last seen to be connected. @type {Map<string, PlatformOverview["connected"][number]>} */
  seen = new Map();
  /** @type {PlatformOverview | undefined} */
  #last;
  /** Of each hub: connects a second, let in and refused. @type {Map<string, [number, number]>} */
  #connects = new Map();
  /** @type {Map<string, number>} */
  #cpu = new Map();

  /** Take an answer. One that was taken already changes nothing. @param {PlatformOverview} found */
  take(found) {
    if (this.#last && seconds(found) <= seconds(this.#last)) return;
    this.#rateOfConnects(found);
    this.#rateOfProcessors(found);
    const { nats_servers: servers, runners } = found;
    const loads = runners.flatMap(({ host }) => (host ? [host.load / host.processors] : []));
    this.#add("connections", found, [sum(servers.map((server) => server.connections))]);
    this.#add("messages", found, [this.#rateOfMessages(found)]);
    const connects = [...this.#connects.values()];
    const known = connects.length > 0;
    this.#add(
      "connects",
      found,
      known ? [sum(connects.map(([good]) => good)), sum(connects.map(([, bad]) => bad))] : [null, null],
    );
    this.#add("load", found, [loads.length ? Math.max(...loads) : null]);
    for (const one of found.connected) this.seen.set(`${one.role} ${one.name}`, one);
    this.hubs.set(found.hub.name, found);
    this.#last = found;
  }

  /** The share of one processor that a project uses; `null` while that is not known. @param {string} projectId */
  cpu(projectId) {
    return this.#cpu.get(projectId) ?? null;
  }

  /** @param {keyof Measures["series"]} name @param {PlatformOverview} found @param {(number | null)[]} values */
  #add(name, found, values) {
    const all = this.series[name];
    for (const [line, value] of [seconds(found), ...values].entries()) all[line]?.push(value);
    const oldest = seconds(found) - MINUTES * 60;
    while ((all[0]?.[0] ?? oldest) < oldest) for (const line of all) line.shift();
  }

  /** Hubs answer in turn, and each counts for itself. @param {PlatformOverview} found */
  #rateOfConnects(found) {
    const before = this.hubs.get(found.hub.name);
    if (!before) return;
    /** @param {string} name */
    const each = (name) => rate(found, before, (one) => one.hub.counters[name] ?? 0);
    const good = each("callouts");
    const bad = each("callouts_refused");
    if (good !== null && bad !== null) this.#connects.set(found.hub.name, [good, bad]);
  }

  /** @param {PlatformOverview} found */
  #rateOfMessages(found) {
    const before = this.#last;
    if (!before) return null;
    const rates = found.nats_servers.map(({ name, since }) => {
      /** @param {PlatformOverview} one */
      const of = (one) => one.nats_servers.find((server) => server.name === name && server.since === since)?.messages;
      return rate(found, before, of) ?? 0;
    });
    return sum(rates);
  }

  /** @param {PlatformOverview} found */
  #rateOfProcessors(found) {
    const before = this.#last;
    this.#cpu.clear();
    if (!before) return;
    for (const { project_id: id } of found.use) {
      /** @param {PlatformOverview} one */
      const of = (one) => one.use.find((project) => project.project_id === id)?.cpu_seconds;
      const share = rate(found, before, of);
      if (share !== null) this.#cpu.set(id, share);
    }
  }
}

/**
 * How much a counter has grown a second; `null` if it is missing, or was started anew.
 * @param {PlatformOverview} now @param {PlatformOverview} before
 * @param {(one: PlatformOverview) => number | null | undefined} counter
 */
function rate(now, before, counter) {
  const [newer, older] = [counter(now), counter(before)];
  const passed = seconds(now) - seconds(before);
  if (newer == null || older == null || newer < older || passed <= 0) return null;
  return (newer - older) / passed;
}

/** @param {PlatformOverview} found */
function seconds(found) {
  return Date.parse(found.time) / 1000;
}

/** @param {number[]} values */
function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}
