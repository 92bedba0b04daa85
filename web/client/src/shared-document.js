/**
 * A copy of a document that stays in step with the service (docs/reference/documents.md). What is stored arrives in the
 * order in which it was stored; nothing after a gap is applied before the gap is filled, since half a transaction would
 * show. What is changed here is collected for a moment and sent, one update at a time.
 */

import { Awareness } from "y-protocols/awareness";
import * as Y from "yjs";
import { apart } from "./apart.js";
import { KeptInBrowser, readable } from "./document-keep.js";
import { difference, encodeParts, encodeUpdate, fromBase64, toBase64 } from "./document-update.js";
import { Presence } from "./presence.js";
import { NatskitError } from "./rpc.js";
import { pause } from "./site.js";

/** @typedef {import("./document.js").DocumentOptions} DocumentOptions */
/** @typedef {import("./document.js").ProjectDocuments} ProjectDocuments */
/** @typedef {import("./document.js").StoredUpdate} StoredUpdate */
/** @typedef {import("./document-update.js").Lack} Lack */

/**
 * How far a copy and the service are in step.
 * - "saved": all that was changed here is on the service's disks.
 * - "sending": changes are on their way.
 * - "offline": the service cannot be reached; changes are sent when it can.
 * - "failed": this copy no longer takes part, for the reason in `error`. `unsent` changes are in this copy alone.
 * - "closed": by {@link SharedDocument.close}.
 * @typedef {object} DocumentState
 * @property {"saved" | "sending" | "offline" | "failed" | "closed"} kind
 * @property {number} unsent how many changes are not stored yet
 * @property {NatskitError | null} error
 */

/**
 * How long after an update the next one is sent, in milliseconds: changes are collected meanwhile, and longer while an
 * update is on its way. A change after a pause is sent at once.
 */
const COLLECT = 25;
/** How long to wait before an update that was not answered is sent again, in milliseconds. */
const AGAIN = 500;
/** How long the service may take to answer, in milliseconds. */
const PATIENCE = 10_000;
/** How often a copy that rests is compared with the service's, in milliseconds. */
const COMPARE_EVERY = 60_000;
/**
 * How long after the last update a copy is compared, in milliseconds: NATS may lose an event, and only the next one
 * shows the gap. Each copy waits up to a second more, so that not all ask at once.
 */
const COMPARE_AFTER = 2_000;
const COMPARE_SPREAD = 1_000;
/** How long after an update is stored its event may take before it is asked for, in milliseconds. */
const EVENT_PATIENCE = 1_000;
/** The most bytes of an update that is sent, and of a message besides it. */
const PART_BYTES = 256 * 1024;
const ROOM = 4096;
/** How long a copy that is closed tries to send what it has, in milliseconds. */
const CLOSE_PATIENCE = 5_000;
/** How often in a row the service may refuse what this copy sends, although it knows what the service has. */
const MOST_CONFLICTS = 5;

/** Made by {@link ProjectDocuments.open}. */
export class SharedDocument {
  #documents;
  #client;
  #identify;
  /** @type {KeptInBrowser | undefined} */
  #kept;
  /** @type {Presence | undefined} */
  #presence;
  /** The last stored update that is in this copy. */
  #sequence = 0;
  /** The newest stored update that this copy knows of. */
  #newest = 0;
  /** Updates that came while a gap is filled. @type {StoredUpdate[]} */
  #waiting = [];
  /** @type {Promise<void> | undefined} */
  #filling;
  /** @type {Lack} */
  #lack = nothing();
  /** What the update on its way carries. @type {Lack} */
  #flying = nothing();
  #changes = 0;
  #flyingChanges = 0;
  #number = 1;
  #conflicts = 0;
  #sending = false;
  /** When the last update was sent, on the clock of the page. */
  #sentAt = -Infinity;
  #unreachable = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #comparing;
  /** @type {NatskitError | null} */
  #error = null;
  #leaving = false;
  #closed = false;
  /** @type {Set<(state: DocumentState) => void>} */
  #listeners = new Set();
  /** @type {(() => void)[]} */
  #undo = [];

  /**
   * @param {ProjectDocuments} documents
   * @param {DocumentOptions} options
   */
  constructor(documents, { identify, keep: keeps = typeof indexedDB !== "undefined" }) {
    this.#documents = documents;
    this.#client = documents.client;
    if (keeps) this.#kept = new KeptInBrowser(() => this.#unsent());
    /** The document itself: bind it to an editor. */
    this.doc = new Y.Doc();
    /** The text of a text document. */
    this.text = this.doc.getText("text");
    /** Who else has the document open, and where: what bindings for editors call awareness. */
    this.awareness = new Awareness(this.doc);
    this.documentId = "";
    /** The path at the moment. */
    this.path = "";
    /** Whether the document is not kept the same as a file, because the project has as many of those as it may. */
    this.leftOut = false;
    this.#identify = identify;
  }

  /** How far this copy is in step. @returns {DocumentState} */
  get state() {
    const unsent = this.#changes + this.#flyingChanges;
    return { kind: this.#kind(unsent), unsent, error: this.#error };
  }

  /** @param {number} unsent @returns {DocumentState["kind"]} */
  #kind(unsent) {
    if (this.#error) return "failed";
    if (this.#closed) return "closed";
    if (this.#unreachable || this.#client.state !== "connected") return "offline";
    return unsent > 0 ? "sending" : "saved";
  }

  /**
   * Call `listener` when the state or the path changes.
   * @param {(state: DocumentState) => void} listener
   * @returns {() => void} removes the listener
   */
  onState(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Wait until all that was changed until now is stored.
   * @returns {Promise<void>} rejects with a {@link NatskitError} if the copy has failed
   */
  async saved() {
    if (this.state.unsent > 0 && !this.#error) {
      await new Promise((resolve) => {
        const forgetListener = this.onState(({ kind, unsent }) => {
          if (unsent > 0 && kind !== "failed" && kind !== "closed") return;
          forgetListener();
          resolve(undefined);
        });
      });
    }
    if (this.#error) throw this.#error;
  }

  /**
   * @param {{path?: string, documentId?: string, create?: boolean, text?: string}} which
   * @returns {Promise<void>}
   */
  async open({ path = "", documentId = "", create = false, text = "" }) {
    const params = documentId ? {} : { path, create, text };
    const opened = await this.#documents.fetchState(documentId || "-", "open", params);
    this.documentId = opened.document_id;
    this.path = opened.path;
    this.leftOut = opened.left_out;
    Y.applyUpdate(this.doc, opened.update, this);
    this.#sequence = opened.sequence;
    await this.#inherit(opened.state_vector);
    this.doc.on("afterTransaction", this.#changed);
    this.#listen();
    await this.#fill();
    this.#fillLater();
    this.#presence?.announce();
    void this.#send();
  }

  #listen() {
    const others = new Presence(this.awareness, (method, params) => this.#ask(method, params), this.#identify);
    this.#presence = others;
    const events = `events.project.${this.#documents.projectId}`;
    const stored = this.#client.nats.subscribe(`${events}.doc.${this.documentId}`, {
      callback: (error, message) => {
        if (!error)
          apart(
            () => this.#take(readEvent(message)),
            (caught) => this.#mayFail(caught),
          );
      },
    });
    const presence = `${events}.presence.${this.documentId}`;
    const compare = setInterval(() => void this.#compare().catch(() => {}), COMPARE_EVERY);
    const onPageHide = () => this.#kept?.now();
    globalThis.addEventListener?.("pagehide", onPageHide);
    this.#undo.push(
      () => stored.unsubscribe(),
      this.#client.subscribe(presence, (data) => others.take(parse(data))),
      this.#documents.onChanged((change) => this.#renamed(change)),
      this.#client.onReturn(() => this.#returned()),
      this.#client.onRefused((subject) => this.#refused(subject)),
      this.#client.onState((state) => {
        this.#tell();
        if (state === "signed-out" || state === "closed") void this.close(); // it does not come back
      }),
      () => clearInterval(compare),
      () => clearTimeout(this.#comparing),
      () => globalThis.removeEventListener?.("pagehide", onPageHide),
    );
  }

  /**
   * Leave the document. What cannot be sent within five seconds stays in the browser, and is sent when the document is
   * opened again.
   */
  async close() {
    if (this.#leaving) return;
    this.#leaving = true;
    const keeping = this.documentId ? this.#kept?.now() : undefined;
    if (this.state.kind === "sending") await Promise.race([this.saved().catch(() => {}), pause(CLOSE_PATIENCE)]);
    await keeping;
    if (this.documentId) await this.#kept?.close();
    this.#closed = true;
    this.#presence?.close();
    for (const undo of this.#undo.splice(0)) undo();
    this.doc.off("afterTransaction", this.#changed);
    this.#tell();
    this.awareness.destroy();
  }

  // What is stored

  /** @param {StoredUpdate} update */
  #take(update) {
    this.#newest = Math.max(this.#newest, update.sequence);
    this.#waiting.push(update);
    if (!this.#filling) this.#drain();
    this.#compareSoon();
  }

  #drain() {
    while (this.#waiting.length > 0) {
      const [next] = this.#waiting;
      if (next.sequence > this.#sequence && next.previous !== this.#sequence) return this.#refill();
      this.#waiting.shift();
      if (next.sequence > this.#sequence) this.#apply([next]);
    }
  }

  /** @param {StoredUpdate[]} updates in order, the next first */
  #apply(updates) {
    const own = this.#client.session.account_id;
    this.doc.transact(() => {
      for (const { author, client, update, sequence } of updates) {
        // Others may name this copy's client id in an update of theirs.
        if (author !== own || client !== this.doc.clientID) Y.applyUpdate(this.doc, update, this);
        this.#sequence = sequence;
      }
    }, this);
  }

  /** Ask for what is missing until it is here, and apply what came meanwhile. @returns {Promise<void>} */
  #fill() {
    this.#filling ??= this.#fetchMissing()
      .finally(() => (this.#filling = undefined))
      .then(() => this.#drain());
    return this.#filling;
  }

  async #fetchMissing() {
    for (let more = true; more && !this.#closed; ) {
      try {
        const part = await this.#ask("updates", { after: this.#sequence });
        this.#apply(part.updates.map(readUpdate));
        more = part.more;
        this.#reached(true);
      } catch (error) {
        if (!isPassing(error)) throw error;
        this.#reached(false);
        await pause(AGAIN);
      }
    }
  }

  #returned() {
    this.#unreachable = false;
    this.#refill();
    this.#fillLater();
    this.#presence?.announce();
    this.#tell();
  }

  #compareSoon() {
    clearTimeout(this.#comparing);
    if (this.#closed) return;
    const wait = COMPARE_AFTER + Math.random() * COMPARE_SPREAD;
    this.#comparing = setTimeout(() => void this.#compare().catch(() => {}), wait);
  }

  /** Compare this copy with the service's: equal state vectors do not mean equal texts. */
  async #compare() {
    if (this.state.kind !== "saved" || globalThis.document?.hidden) return;
    const { sequence, sha256 } = await this.#ask("check", {});
    if (sequence > this.#sequence) return await this.#fill();
    // A change of its own that is stored, and whose event has not come, is in the text and not in the sequence.
    if (this.state.kind !== "saved" || this.#newest > this.#sequence) return;
    const own = await digest(this.text.toString());
    if (sequence === this.#sequence && this.state.kind === "saved" && own !== sha256) {
      this.#fail(new NatskitError("conflict", "this copy differs from the stored document: open it again"));
    }
  }

  // What is changed here

  /** @param {Y.Transaction} transaction */
  #changed = (transaction) => {
    if (transaction.origin === this) return;
    let news = transaction.deleteSet.clients.size > 0;
    for (const [client, clock] of transaction.afterState) {
      const before = transaction.beforeState.get(client) ?? 0;
      if (clock === before) continue;
      news = true;
      if (!this.#lack.from.has(client)) this.#lack.from.set(client, before);
    }
    if (!news) return;
    if (transaction.deleteSet.clients.size > 0) this.#lack.deletes.push(transaction.deleteSet);
    this.#changes += 1;
    this.#kept?.soon();
    void this.#send();
    this.#tell();
  };

  async #send() {
    if (this.#sending || this.#closed || this.#error) return;
    this.#sending = true;
    try {
      while (this.#changes > 0 && !this.#closed && !this.#error) {
        const rest = this.#sentAt + COLLECT - performance.now();
        // What one task of the page changes is one update, whenever it is sent.
        await (rest > 0 ? pause(rest) : undefined);
        if (this.#closed) return;
        this.#sentAt = performance.now();
        this.#flying = this.#lack;
        this.#flyingChanges = this.#changes;
        this.#lack = nothing();
        this.#changes = 0;
        for (const part of encodeParts(this.doc, this.#flying, this.#most(), this)) {
          if (!(await this.#deliver(part))) break;
        }
        this.#flying = nothing();
        this.#flyingChanges = 0;
        this.#kept?.soon();
        this.#tell();
      }
    } catch (error) {
      this.#mayFail(error);
    } finally {
      this.#sending = false;
    }
  }

  /** How many bytes of an update fit into a message, as base64. */
  #most() {
    return Math.min(PART_BYTES, (((this.#client.nats.info?.max_payload ?? 2 * PART_BYTES) - ROOM) * 3) / 4);
  }

  /**
   * Send an update until it is stored.
   * @param {Uint8Array} update
   * @returns {Promise<boolean>} whether it is; otherwise what is to be sent has changed
   */
  async #deliver(update) {
    const params = { update: toBase64(update), client: this.doc.clientID, number: this.#number };
    for (let refused = false; !this.#closed; ) {
      try {
        if (refused) {
          this.#number += 1; // an update whose answer was lost may have had this one
          await this.#resync();
          return false;
        }
        const { sequence } = await this.#ask("update", params);
        this.#number += 1;
        this.#conflicts = 0;
        this.#reached(true);
        this.#expect(sequence);
        return true;
      } catch (error) {
        if (error instanceof NatskitError && error.kind === "conflict" && ++this.#conflicts < MOST_CONFLICTS) {
          refused = true;
          continue;
        }
        const seconds = error instanceof NatskitError ? Number(error.data.retry_after) : 0;
        if (!seconds && !isPassing(error)) throw error;
        this.#reached(!isPassing(error));
        await pause(seconds ? seconds * 1000 : AGAIN);
      }
    }
    return false;
  }

  /**
   * The service has something else than this copy believes: find out what it lacks, and send that.
   * @returns {Promise<void>}
   */
  async #resync() {
    await this.#fill();
    const known = { state_vector: toBase64(Y.encodeStateVector(this.doc)) };
    const opened = await this.#documents.fetchState(this.documentId, "open", known);
    Y.applyUpdate(this.doc, opened.update, this);
    // What came meanwhile is in this copy, and not in the answer.
    if (this.#sequence > opened.sequence) return await this.#resync();
    this.#sequence = opened.sequence;
    this.#lack = difference(this.doc, opened.state_vector, Y.mergeDeleteSets([Y.decodeUpdate(opened.update).ds]));
    this.#changes = isSomething(this.#lack) ? Math.max(1, this.#changes + this.#flyingChanges) : 0;
  }

  /** Take over what earlier copies in this browser could not send. @param {Uint8Array} stateVector of the service */
  async #inherit(stateVector) {
    const updates = (await this.#kept?.inherit()) ?? [];
    if (updates.length === 0) return;
    const deleted = Y.createDeleteSetFromStructStore(this.doc.store);
    for (const update of updates) Y.applyUpdate(this.doc, update, this);
    this.#lack = difference(this.doc, stateVector, deleted);
    if (isSomething(this.#lack)) this.#changes += 1;
    else this.#kept?.soon();
  }

  /** An update was stored. If its event does not come, ask for it. @param {number} sequence */
  #expect(sequence) {
    this.#newest = Math.max(this.#newest, sequence);
    this.#compareSoon();
    setTimeout(() => {
      if (this.#sequence < this.#newest && !this.#closed) this.#refill();
    }, EVENT_PATIENCE);
  }

  /** In a cluster, the first events after a subscription may be lost: other servers hear of it a moment later. */
  #fillLater() {
    setTimeout(() => this.#closed || this.#refill(), EVENT_PATIENCE);
  }

  #refill() {
    this.#fill().catch((error) => this.#mayFail(error));
  }

  /** What the browser has to keep. @returns {import("./document-keep.js").Unsent} */
  #unsent() {
    const copy = {
      account: this.#client.session.account_id,
      project: this.#documents.projectId,
      document: this.documentId,
      client: this.doc.clientID,
    };
    if (this.state.unsent === 0) return { copy };
    const lack = {
      from: new Map([...this.#lack.from, ...this.#flying.from]),
      deletes: [...this.#flying.deletes, ...this.#lack.deletes],
    };
    const content = { path: this.path, update: encodeUpdate(this.doc, lack), text: readable(this.doc) };
    return { copy, content };
  }

  // What goes wrong

  /** @param {boolean} reached */
  #reached(reached) {
    if (this.#unreachable === !reached) return;
    this.#unreachable = !reached;
    this.#tell();
  }

  /** @param {{document_id: string, path: string, change: string}} change */
  #renamed({ document_id, path, change }) {
    if (document_id !== this.documentId) return;
    if (change === "deleted") return this.#fail(new NatskitError("not_found", "the document was deleted"));
    if (change === "left_out" || change === "taken_in") this.leftOut = change === "left_out";
    if (path) this.path = path; // a version that was named says none
    this.#tell();
  }

  /** @param {string} subject */
  #refused(subject) {
    if (subject === `events.project.${this.#documents.projectId}.doc.${this.documentId}`) {
      this.#fail(new NatskitError("forbidden", "you may no longer use this document"));
    }
  }

  /** @param {unknown} error */
  #mayFail(error) {
    const known = error instanceof NatskitError ? error : new NatskitError("internal_error", String(error));
    if (!isPassing(known)) this.#fail(known);
  }

  /** @param {NatskitError} error */
  #fail(error) {
    if (this.#error || this.#closed) return;
    this.#error = error;
    this.#presence?.close();
    this.#tell();
  }

  #tell() {
    for (const listener of this.#listeners) listener(this.state);
  }

  /** @param {string} method @param {Record<string, unknown>} params @returns {Promise<any>} */
  #ask(method, params) {
    return this.#client.callDocuments(this.#documents.projectId, this.documentId, method, params, {
      timeout: PATIENCE,
    });
  }
}

/** @returns {Lack} */
function nothing() {
  return { from: new Map(), deletes: [] };
}

/** @param {Lack} lack */
function isSomething({ from, deletes }) {
  return from.size > 0 || deletes.length > 0;
}

/** Whether it may be over in a moment. @param {unknown} error */
function isPassing(error) {
  return error instanceof NatskitError && (error.kind === "unavailable" || error.kind === "timeout");
}

/** @param {Uint8Array} data @returns {any} */
export function parse(data) {
  return JSON.parse(new TextDecoder().decode(data));
}

/** @param {import("@nats-io/nats-core").Msg} message @returns {StoredUpdate} */
function readEvent({ data, headers }) {
  const end = data.indexOf(10);
  return {
    ...parse(data.subarray(0, end)),
    sequence: Number(headers?.get("Nats-Sequence")),
    update: data.slice(end + 1),
  };
}

/** @param {any} update in JSON @returns {StoredUpdate} */
export function readUpdate(update) {
  return { ...update, update: fromBase64(update.update) };
}

/** @param {string} text @returns {Promise<string>} its SHA-256, in hex */
async function digest(text) {
  const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
