/**
 * Several copies of a document in one page: they edit at random, miss events, and are cut off. Bundled by
 * test_shared_documents.py.
 */

import { connect, session } from "@natskit/client";
import { documentsOf } from "@natskit/client/document";
import * as Y from "yjs";

/** @param {number} seed */
function random(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** A client that loses some of the events that it gets. */
function deaf(client, pick) {
  const nats = new Proxy(client.nats, {
    get(target, name) {
      if (name !== "subscribe") return typeof target[name] === "function" ? target[name].bind(target) : target[name];
      return (subject, { callback }) =>
        target.subscribe(subject, { callback: (...heard) => pick(4) === 0 || callback(...heard) });
    },
  });
  return new Proxy(client, {
    get(target, name) {
      if (name === "nats") return nats;
      return typeof target[name] === "function" ? target[name].bind(target) : target[name];
    },
  });
}

function edit(text, pick) {
  const at = pick(text.length + 1);
  if (pick(3) === 0 && text.length > 0) text.delete(Math.min(at, text.length - 1), 1);
  else text.insert(at, ["a", "bc", "é", "日本", "x\ny"][pick(5)]);
}

/**
 * @param {string} project
 * @param {number} seed
 * @param {number} steps
 */
export async function edits(project, seed, steps) {
  const pick = random(seed);
  const clients = [];
  for (let n = 0; n < 3; n++) clients.push(await connect(await session()));
  const path = `random ${seed}`;
  const copies = [];
  for (const client of clients) {
    copies.push(await documentsOf(deaf(client, pick), project).open({ path, create: true }));
  }
  let cuts = 0;
  for (let step = 0; step < steps; step++) {
    const one = pick(copies.length);
    copies[one].doc.transact(() => {
      for (let many = pick(4); many >= 0; many--) edit(copies[one].text, pick);
    });
    if (pick(25) === 0) {
      cuts++;
      await clients[one].nats.reconnect();
    }
    if (pick(3) === 0) await new Promise((resolve) => setTimeout(resolve, pick(60)));
  }
  await Promise.all(copies.map((copy) => copy.saved()));
  const documents = documentsOf(clients[0], project);
  const { steps: rows } = await documents.history(copies[0].documentId);
  const last = rows.at(-1).sequence;
  const replayed = new Y.Doc();
  let updates = 0;
  for await (const { update } of documents.updates(copies[0].documentId, 0, last)) {
    Y.applyUpdate(replayed, update);
    updates++;
  }
  const then = await documents.stateAt(copies[0].documentId, last);
  const wanted = replayed.getText("text").toString();
  const deadline = Date.now() + 30_000;
  const texts = () => copies.map((copy) => copy.text.toString());
  while (texts().some((text) => text !== wanted) && Date.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const result = {
    replayed: wanted,
    texts: texts(),
    then: then.getText("text").toString(),
    states: copies.map((copy) => copy.state),
    isWhole: replayed.store.pendingStructs === null,
    rows: rows.length,
    updates,
    cuts,
  };
  for (const copy of copies) await copy.close();
  for (const client of clients) await client.close();
  return result;
}
