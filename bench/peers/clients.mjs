// The clients of one service, driven by lines of JSON: `{"do": "open", …}` on standard input, and an answer for each on
// standard output. `node --expose-gc clients.mjs KIND CONFIG`, in the folder in which the peers are installed.
//
// Each client is the one that its service delivers. All of them are in one process, so that one clock measures.

import readline from "node:readline";
import { pathToFileURL } from "node:url";
import { setImmediate as turn, setTimeout as pause } from "node:timers/promises";
import { WebSocket } from "ws";

const [kind, given] = process.argv.slice(2);
const config = JSON.parse(given);
const PATIENCE = 120_000;

/** How a copy of a document is opened: its Y.Doc, and what closes it. */
const services = {
  async natskit() {
    // What a page has, and Node.js has not.
    globalThis.location = new URL(config.site);
    globalThis.document = { visibilityState: "hidden", addEventListener() {}, removeEventListener() {} };
    /** Whose cookie goes along, by account: one process is many browsers here. */
    const cookies = new Map();
    let cookie = "";
    const fetchFrom = globalThis.fetch;
    globalThis.fetch = (path, options = {}) => {
      const headers = { ...options.headers };
      cookie = cookies.get(headers["natskit-account"]) ?? cookie;
      return fetchFrom(new URL(path, config.site), { ...options, headers: { ...headers, cookie, origin: config.site } });
    };
    globalThis.WebSocket = class extends WebSocket {
      constructor(url) {
        super(url, { headers: { cookie }, origin: config.site, perMessageDeflate: false });
      }
    };
    const source = (name) => pathToFileURL(`${config.source}/${name}`).href;
    const { connect, session } = await import(source("natskit.js"));
    const { documentsOf } = await import(source("document.js"));
    const clients = [];
    for (const each of config.cookies) {
      cookie = each;
      const current = await session();
      cookies.set(current.account_id, each);
      clients.push(await connect(current));
    }
    return async (name, number) => {
      const documents = documentsOf(clients[number % clients.length], config.project);
      const copy = await documents.open({ path: name, create: true });
      return { doc: copy.doc, saved: () => copy.saved(), close: () => copy.close() };
    };
  },

  async hocuspocus() {
    const { HocuspocusProvider, HocuspocusProviderWebsocket } = await import("@hocuspocus/provider");
    const { Doc } = await import("yjs");
    return async (name) => {
      const doc = new Doc();
      const websocketProvider = new HocuspocusProviderWebsocket({ url: config.url, WebSocketPolyfill: WebSocket });
      const provider = await new Promise((resolve) => {
        const made = new HocuspocusProvider({ websocketProvider, name, document: doc, onSynced: () => resolve(made) });
        made.attach();
      });
      const close = async () => {
        provider.destroy();
        websocketProvider.destroy();
      };
      return { doc, saved: async () => {}, close };
    };
  },

  async pycrdt() {
    const { WebsocketProvider } = await import("y-websocket");
    const { Doc } = await import("yjs");
    return async (name) => {
      const doc = new Doc();
      const provider = new WebsocketProvider(config.url, name, doc, { WebSocketPolyfill: WebSocket, disableBc: true });
      await new Promise((resolve) => provider.once("sync", resolve));
      return { doc, saved: async () => {}, close: async () => provider.destroy() };
    };
  },
};

/** The copies that are open, by the name of the document. @type {Map<string, any[]>} */
const opened = new Map();
const open = await services[kind]();

const textOf = (copy) => copy.doc.getText("text");

async function until(check, what) {
  for (const end = performance.now() + PATIENCE; !check(); ) {
    if (performance.now() > end) throw new Error(`${what}: not within ${PATIENCE} ms`);
    await pause(5);
  }
}

const commands = {
  /** Open so many copies of a document, one after the other; answer how long each took, in milliseconds. */
  async open({ name, copies, text = "" }) {
    const list = opened.get(name) ?? [];
    opened.set(name, list);
    const times = [];
    while (list.length < copies) {
      const began = performance.now();
      list.push(await open(name, list.length));
      times.push(performance.now() - began);
    }
    if (text) {
      textOf(list[0]).insert(0, text);
      await list[0].saved();
      await until(() => list.every((copy) => textOf(copy).length === text.length), "the first text");
    }
    return { times };
  },

  /** One key after the other, from one copy to another: milliseconds until it is there. */
  async echo({ name, count, rest }) {
    const [from, to] = opened.get(name).map(textOf);
    const times = [];
    for (let key = 0; key < count; key++) {
      const length = to.length;
      const arrived = new Promise((resolve) => {
        const look = () => {
          if (to.length === length) return;
          to.unobserve(look);
          resolve(performance.now());
        };
        to.observe(look);
      });
      const began = performance.now();
      from.insert(from.length, "x");
      times.push((await arrived) - began);
      await pause(rest);
    }
    return { times };
  },

  /** So many updates of one copy, as fast as it takes them; milliseconds until another copy has them all. */
  async flood({ name, count }) {
    const [from, to] = opened.get(name).map(textOf);
    const wanted = to.length + count;
    const began = performance.now();
    for (let key = 0; key < count; key++) {
      from.insert(from.length, "x");
      await turn();
    }
    const typed = performance.now() - began;
    await until(() => to.length === wanted, `${count} updates`);
    return { milliseconds: performance.now() - began, typed };
  },

  /** Every copy types so often a second for some seconds: milliseconds until each of the others has a character. */
  async crowd({ name, seconds, rate }) {
    const copies = opened.get(name);
    const sent = new Map(copies.map(({ doc }) => [doc.clientID, new Map()]));
    const times = [];
    const undo = copies.map(({ doc }) => {
      const look = ({ beforeState, afterState }) => {
        for (const [client, clock] of afterState) {
          const began = sent.get(client);
          if (client === doc.clientID || !began) continue;
          for (let at = beforeState.get(client) ?? 0; at < clock; at++) {
            if (began.has(at)) times.push(performance.now() - began.get(at));
          }
        }
      };
      doc.on("afterTransaction", look);
      return () => doc.off("afterTransaction", look);
    });
    const ends = performance.now() + seconds * 1000;
    let keys = 0;
    const type = async (copy, number) => {
      const text = textOf(copy);
      let clock = 0; // of the next character of this copy
      let at = Math.floor((text.length * number) / copies.length);
      for (const [client, state] of [...copy.doc.store.clients].map(([id, structs]) => [id, structs.at(-1)])) {
        if (client === copy.doc.clientID) clock = state.id.clock + state.length;
      }
      await pause((1000 / rate) * (number / copies.length));
      for (let next = performance.now(); next < ends; next += 1000 / rate) {
        await pause(Math.max(0, next - performance.now()));
        sent.get(copy.doc.clientID).set(clock++, performance.now());
        text.insert(Math.min(at++, text.length), "x");
        keys++;
      }
    };
    const before = textOf(copies[0]).length;
    await Promise.all(copies.map(type));
    const typed = performance.now();
    await until(() => copies.every((copy) => textOf(copy).length === before + keys), "all have everything");
    const converged = performance.now() - typed;
    for (const each of undo) each();
    const texts = new Set(copies.map((copy) => textOf(copy).toString()));
    times.sort((a, b) => a - b);
    const part = (share) => times[Math.min(times.length - 1, Math.floor(times.length * share))];
    return { keys, arrivals: times.length, p50: part(0.5), p99: part(0.99), converged, texts: texts.size };
  },

  /** Close the copies of a document. */
  async close({ name }) {
    for (const copy of opened.get(name) ?? []) await copy.close();
    opened.delete(name);
    return {};
  },

  /** Bytes that this process holds after it has cleared up. */
  async heap() {
    globalThis.gc();
    return { bytes: process.memoryUsage().heapUsed };
  },
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { do: name, ...params } = JSON.parse(line);
  let answer;
  try {
    answer = await commands[name](params);
  } catch (error) {
    answer = { error: String(error?.stack ?? error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit();
