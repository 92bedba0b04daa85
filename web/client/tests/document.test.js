import { afterEach, expect, test, vi } from "vitest";
import * as Y from "yjs";
import { compare } from "../src/document-compare.js";
import { difference, encodeParts, encodeUpdate, fromBase64, toBase64 } from "../src/document-update.js";
import { SharedDocument } from "../src/shared-document.js";

afterEach(() => {
  vi.useRealTimers();
});

/** Numbers that look random, and are the same each time. @param {number} seed */
function random(seed) {
  let state = seed;
  return (/** @type {number} */ below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/**
 * A copy that collects what it changes, as a shared document does.
 * @param {string} name
 */
function copy(name) {
  const doc = new Y.Doc();
  let lack = { from: /** @type {Map<number, number>} */ (new Map()), deletes: /** @type {any[]} */ ([]) };
  doc.on("afterTransaction", (transaction) => {
    if (transaction.origin === "stored") return;
    for (const [client, clock] of transaction.afterState) {
      const before = transaction.beforeState.get(client) ?? 0;
      if (clock > before && !lack.from.has(client)) lack.from.set(client, before);
    }
    if (transaction.deleteSet.clients.size > 0) lack.deletes.push(transaction.deleteSet);
  });
  return {
    name,
    doc,
    text: doc.getText("text"),
    take() {
      const taken = lack;
      lack = { from: new Map(), deletes: [] };
      return encodeUpdate(doc, taken);
    },
  };
}

/** @param {Y.Text} text @param {(below: number) => number} pick */
function edit(text, pick) {
  const at = pick(text.length + 1);
  if (pick(3) === 0 && text.length > 0) text.delete(Math.min(at, text.length - 1), 1);
  else text.insert(at, ["a", "bc", "é", "日本", "x\ny"][pick(5)]);
}

test("what was collected brings all copies to the same text", () => {
  for (let seed = 1; seed <= 15; seed++) {
    const pick = random(seed);
    const copies = ["a", "b", "c"].map(copy);
    /** @type {Uint8Array[]} */
    const stored = [];
    const seen = [0, 0, 0];
    const read = (/** @type {number} */ one) => {
      while (seen[one] < stored.length) Y.applyUpdate(copies[one].doc, stored[seen[one]++], "stored");
    };
    for (let step = 0; step < 60; step++) {
      const one = pick(3);
      for (let edits = pick(4); edits > 0; edits--) edit(copies[one].text, pick);
      if (pick(2) === 0) stored.push(copies[one].take());
      if (pick(3) === 0) read(one);
    }
    for (const { take } of copies) stored.push(take());
    for (const one of copies.keys()) read(one);
    const replayed = new Y.Doc();
    for (const update of stored) Y.applyUpdate(replayed, update);
    expect(replayed.store.pendingStructs).toBeNull();
    for (const { text } of copies) expect(text.toString()).toBe(replayed.getText("text").toString());
  }
});

test("an update carries no deletion of earlier ones, and joins what was typed letter by letter", () => {
  const { doc, text, take } = copy("a");
  for (let n = 0; n < 2_000; n++) text.insert(0, "x");
  for (let n = 0; n < 1_000; n++) text.delete(n, 1);
  take();
  for (const letter of "twenty letters, typed") text.insert(text.length, letter);
  expect(take().length).toBeLessThan(60);
  expect(Y.encodeStateAsUpdate(doc).length).toBeGreaterThan(2_000);
});

test("what is pasted is sent in parts, and no character is cut", () => {
  const doc = new Y.Doc();
  const text = doc.getText("text");
  text.insert(0, "before ");
  const from = Y.getState(doc.store, doc.clientID);
  const pasted = "😀 日本 a".repeat(2_000);
  text.insert(3, pasted);
  text.insert(text.length, "short");
  text.delete(0, 1);
  const deletes = [Y.createDeleteSetFromStructStore(doc.store)];
  const items = structCount(doc);
  for (const most of [200, 201, 202, 1_000, 10_000]) {
    const parts = encodeParts(doc, { from: new Map([[doc.clientID, from]]), deletes }, most, undefined);
    expect(parts.length).toBeGreaterThan(2);
    expect(Math.max(...parts.map((part) => part.length))).toBeLessThanOrEqual(most + 60);
    expect(structCount(doc)).toBe(items);
    const other = new Y.Doc();
    Y.applyUpdate(other, encodeUpdate(doc, { from: new Map([[doc.clientID, 0]]), deletes: [] }, from));
    for (const part of parts) {
      Y.applyUpdate(other, part);
      expect(other.store.pendingStructs).toBeNull();
      expect(other.getText("text").toString()).not.toMatch(/\ufffd/);
    }
    expect(other.getText("text").toString()).toBe(text.toString());
  }
});

/** @param {Y.Doc} doc */
function structCount(doc) {
  return [...doc.store.clients.values()].reduce((sum, structs) => sum + structs.length, 0);
}

test("what a service lacks is found", () => {
  const { doc, text } = copy("a");
  text.insert(0, "stored");
  const service = new Y.Doc();
  Y.applyUpdate(service, Y.encodeStateAsUpdate(doc));
  const lack = () => difference(doc, Y.encodeStateVector(service), Y.createDeleteSetFromStructStore(service.store));
  expect(lack()).toEqual({ from: new Map(), deletes: [] });
  text.delete(0, 2);
  const deletions = lack();
  expect([deletions.from.size, deletions.deletes.length]).toEqual([0, 1]);
  text.insert(4, " more");
  Y.applyUpdate(service, encodeUpdate(doc, lack()));
  expect(service.getText("text").toString()).toBe("ored more");
});

test("bytes become base64 and back", () => {
  for (const length of [0, 1, 2, 3, 8191, 8192, 8193]) {
    const bytes = Uint8Array.from({ length }, (_, n) => (n * 31) % 256);
    const back = fromBase64(toBase64(bytes));
    expect([back.length, back.every((byte, n) => byte === bytes[n])]).toEqual([length, true]);
  }
});

test("a comparison shows who inserted and who deleted what", () => {
  for (let seed = 1; seed <= 15; seed++) {
    const pick = random(seed);
    const copies = ["ann", "bob"].map(copy);
    const [before, after] = [new Y.Doc(), new Y.Doc()];
    /** @type {any[]} */
    const updates = [];
    for (let step = 0; step < 40; step++) {
      const { name, text, take } = copies[pick(2)];
      for (let edits = 1 + pick(3); edits > 0; edits--) edit(text, pick);
      const update = take();
      for (const { doc } of copies) Y.applyUpdate(doc, update, "stored");
      if (step < 20) Y.applyUpdate(before, update);
      else updates.push({ author: name, update });
      Y.applyUpdate(after, update);
    }
    const pieces = compare(before, after, updates);
    const joined = (/** @type {string} */ without) =>
      pieces
        .filter(({ kind }) => kind !== without)
        .map(({ text }) => text)
        .join("");
    expect(joined("inserted")).toBe(before.getText("text").toString());
    expect(joined("deleted")).toBe(after.getText("text").toString());
    for (const { kind, author } of pieces) expect(author).toMatch(kind === "same" ? /^$/ : /^(ann|bob)$/);
  }
});

test("a comparison names the author of each piece", () => {
  const [ann, bob] = ["ann", "bob"].map(copy);
  ann.text.insert(0, "one two three");
  const first = ann.take();
  for (const doc of [bob.doc]) Y.applyUpdate(doc, first, "stored");
  const before = new Y.Doc();
  Y.applyUpdate(before, first);
  bob.text.delete(4, 4);
  const second = bob.take();
  Y.applyUpdate(ann.doc, second, "stored");
  ann.text.insert(4, "2 ");
  const third = ann.take();
  const updates = /** @type {any[]} */ ([
    { author: "bob", update: second },
    { author: "ann", update: third },
  ]);
  expect(compare(before, ann.doc, updates)).toEqual([
    { kind: "same", text: "one ", author: "" },
    { kind: "deleted", text: "two ", author: "bob" },
    { kind: "inserted", text: "2 ", author: "ann" },
    { kind: "same", text: "three", author: "" },
  ]);
});

/** An empty document of a service that stores at once, and the updates that it got. */
function service() {
  /** @type {Uint8Array[]} */
  const stored = [];
  const nothing = () => {};
  const client = {
    state: "connected",
    session: { account_id: "a" },
    nats: { subscribe: () => ({ unsubscribe: nothing }) },
    subscribe: () => nothing,
    onReturn: () => nothing,
    onRefused: () => nothing,
    onState: () => nothing,
    async callDocuments(/** @type {any[]} */ ...[, , method, params]) {
      if (method === "updates") return { updates: [], more: false };
      if (method === "update") stored.push(fromBase64(params.update));
      return { sequence: stored.length };
    },
  };
  const empty = { document_id: "d", path: "p", sequence: 0, state_vector: new Uint8Array([0]) };
  const fetchState = async () => ({ ...empty, update: new Uint8Array([0, 0]) });
  const documents = /** @type {any} */ ({ client, projectId: "p", fetchState, onChanged: () => nothing });
  return { stored, documents };
}

/** Let everything go on that waits for no time. */
async function turns() {
  for (let turn = 0; turn < 50; turn++) await Promise.resolve();
}

test("a key after a pause is sent at once, and what follows is collected", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setInterval", "clearInterval", "performance"] });
  const { stored, documents } = service();
  const copy = new SharedDocument(documents, { keep: false });
  await copy.open({ path: "p" });
  copy.text.insert(0, "a");
  copy.text.insert(1, "b"); // in the same task
  await turns();
  expect(stored.length).toBe(1);
  for (const letter of "cdef") {
    copy.text.insert(copy.text.length, letter);
    await turns();
  }
  expect(stored.length).toBe(1);
  await vi.advanceTimersByTimeAsync(25);
  expect(stored.length).toBe(2);
  const other = new Y.Doc();
  for (const update of stored) Y.applyUpdate(other, update);
  expect(other.getText("text").toString()).toBe("abcdef");
  expect(copy.state).toMatchObject({ kind: "saved", unsent: 0 });
  await copy.close();
});
