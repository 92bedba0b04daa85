/** What happened to a text between two moments, and who did it. */

import * as Y from "yjs";

/** @typedef {import("./document.js").StoredUpdate} StoredUpdate */

/**
 * A piece of a text, for one after the other.
 * @typedef {object} Piece
 * @property {"same" | "inserted" | "deleted"} kind
 * @property {string} text
 * @property {string} author who inserted or deleted it; empty if it is the same, or not known
 */

/**
 * A part of what a copy has typed: its characters from `clock` to `end`.
 * @template T
 * @typedef {{clock: number, end: number, value: T}} Run
 */

/**
 * Compare the text of a document at two moments. It compares characters by their identity, not by what they are, so it
 * shows what people did.
 * @param {Y.Doc} before
 * @param {Y.Doc} after
 * @param {StoredUpdate[]} updates all that were stored between the two
 * @returns {Piece[]}
 */
export function compare(before, after, updates) {
  const [inserters, deleters] = authorsOf(updates);
  const old = visibleRuns(before);
  /** @type {Piece[]} */
  const pieces = [];
  const add = (/** @type {Piece["kind"]} */ kind, /** @type {string} */ text, /** @type {string} */ author) => {
    const last = pieces.at(-1);
    if (last?.kind === kind && last.author === author) last.text += text;
    else if (text) pieces.push({ kind, text, author });
  };
  for (const item of itemsOf(after)) {
    const { client, clock } = item.id;
    const end = clock + item.length;
    const now = textOf(item);
    let at = clock;
    for (const run of overlaps(old.get(client) ?? [], clock, end)) {
      const [from, to] = [Math.max(run.clock, clock), Math.min(run.end, end)];
      if (now) cut(inserters, client, at, from, (a, b, who) => add("inserted", now.slice(a - clock, b - clock), who));
      const was = run.value.slice(from - run.clock, to - run.clock);
      if (now) add("same", was, "");
      else cut(deleters, client, from, to, (a, b, who) => add("deleted", was.slice(a - from, b - from), who));
      at = to;
    }
    if (now) cut(inserters, client, at, end, (a, b, who) => add("inserted", now.slice(a - clock, b - clock), who));
  }
  return pieces;
}

/** @param {Y.Doc} doc @returns {Generator<Y.Item>} */
function* itemsOf(doc) {
  for (let item = doc.getText("text")._start; item; item = item.right) yield item;
}

/** What a character run shows; empty if it is deleted, or no text. @param {Y.Item} item */
function textOf({ deleted, content }) {
  return !deleted && content instanceof Y.ContentString ? content.str : "";
}

/** @param {Y.Doc} doc @returns {Map<number, Run<string>[]>} by client, sorted */
function visibleRuns(doc) {
  /** @type {Map<number, Run<string>[]>} */
  const runs = new Map();
  for (const item of itemsOf(doc)) {
    const value = textOf(item);
    if (value) put(runs, item.id.client, { clock: item.id.clock, end: item.id.clock + item.length, value });
  }
  return sorted(runs);
}

/**
 * Who inserted and who deleted what.
 * @param {StoredUpdate[]} updates
 * @returns {[Map<number, Run<string>[]>, Map<number, Run<string>[]>]} by client, sorted
 */
function authorsOf(updates) {
  /** @type {Map<number, Run<string>[]>} */
  const inserters = new Map();
  /** @type {Map<number, Run<string>[]>} */
  const deleters = new Map();
  for (const { author, update, owners } of updates) {
    const { structs, ds } = Y.decodeUpdate(update);
    for (const { id, length } of structs) {
      put(inserters, id.client, { clock: id.clock, end: id.clock + length, value: owners?.[id.client] ?? author });
    }
    for (const [client, ranges] of ds.clients) {
      for (const { clock, len } of ranges) put(deleters, client, { clock, end: clock + len, value: author });
    }
  }
  return [sorted(inserters), sorted(deleters)];
}

/** @template T @param {Map<number, Run<T>[]>} runs @param {number} client @param {Run<T>} run */
function put(runs, client, run) {
  const known = runs.get(client);
  if (known) known.push(run);
  else runs.set(client, [run]);
}

/** @template T @param {Map<number, Run<T>[]>} runs */
function sorted(runs) {
  for (const each of runs.values()) each.sort((a, b) => a.clock - b.clock);
  return runs;
}

/**
 * The runs that have a part between the two clocks.
 * @template T
 * @param {Run<T>[]} runs sorted; runs that overlap each other were made by several authors
 * @param {number} clock
 * @param {number} end
 * @returns {Generator<Run<T>>}
 */
function* overlaps(runs, clock, end) {
  let [low, high] = [0, runs.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (runs[middle].end <= clock) low = middle + 1;
    else high = middle;
  }
  for (let at = low; at < runs.length && runs[at].clock < end; at++) if (runs[at].end > clock) yield runs[at];
}

/**
 * Cut a range where its author changes.
 * @param {Map<number, Run<string>[]>} authors
 * @param {number} client
 * @param {number} from
 * @param {number} to
 * @param {(from: number, to: number, author: string) => void} each
 */
function cut(authors, client, from, to, each) {
  let at = from;
  for (const run of overlaps(authors.get(client) ?? [], from, to)) {
    if (run.end <= at) continue; // somebody else was first
    if (run.clock > at) each(at, run.clock, "");
    const end = Math.min(run.end, to);
    each(Math.max(run.clock, at), end, run.value);
    at = end;
  }
  if (at < to) each(at, to, "");
}
