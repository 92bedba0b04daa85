/**
 * Documents that several people edit at once, and their history (docs/reference/documents.md). A document is a Yjs
 * document: install `yjs`, `y-protocols` and `lib0` beside this package, and bind {@link SharedDocument} to any editor
 * that has a binding for Yjs.
 *
 *     import { connect, session } from "@natskit/client";
 *     import { documentsOf } from "@natskit/client/document";
 *     const documents = documentsOf(await connect(await session()), project_id);
 *     const notes = await documents.open({ path: "notes.md", create: true });
 *     notes.text.insert(0, "Hello");
 * @module
 */

import * as Y from "yjs";
import { forget, keptOf } from "./document-keep.js";
import { fromBase64 } from "./document-update.js";
import { NatskitError } from "./rpc.js";
import { parse, readUpdate, SharedDocument } from "./shared-document.js";

export { compare } from "./document-compare.js";
export { SharedDocument };

/** @typedef {import("./natskit.js").Client} Client */
/** @typedef {import("./shared-document.js").DocumentState} DocumentState */
/** @typedef {import("./document-compare.js").Piece} Piece */
/** @typedef {import("./document-keep.js").Kept} Kept */

/**
 * @typedef {object} DocumentOptions
 * @property {(author: string) => object} [identify] what others see of an author's cursor: `name` and `color`. The author
 *   is an account's id, `admin` or `disk`, and is true; a name that a cursor brings along would not be
 * @property {boolean} [keep] whether what is not stored yet is kept in the browser; true unless set
 */

/**
 * A document in the list of a project.
 * @typedef {object} DocumentEntry
 * @property {string} document_id
 * @property {string} path
 * @property {number} created milliseconds since 1970
 * @property {string} by the account that made it
 * @property {boolean} left_out whether it is not kept the same as a file, because the project has as many as it may
 */

/**
 * A stored update.
 * @typedef {object} StoredUpdate
 * @property {number} sequence its place in the order of all updates
 * @property {number} previous the sequence of the update before it in this document; 0 for the first
 * @property {string} author an account's id, `admin` or `disk`
 * @property {number} client the id of the copy that it comes from
 * @property {number} number which update of that copy it is
 * @property {number} time milliseconds since 1970
 * @property {Uint8Array} update
 * @property {Record<string, string>} [owners] of an old update merged of those of several authors: who inserted, by Yjs
 *   client id; `author` is `several` then
 */

/**
 * A step of the history.
 * @typedef {object} Step
 * @property {number} sequence
 * @property {number} time milliseconds since 1970
 * @property {string} author
 * @property {number} client
 * @property {number} bytes
 */

/**
 * A version that somebody named.
 * @typedef {object} Version
 * @property {number} sequence
 * @property {string} name
 * @property {string} author
 * @property {number} time milliseconds since 1970
 */

/**
 * What a keeper answers to `open` and `state_at`.
 * @typedef {object} Opened
 * @property {string} document_id
 * @property {string} path
 * @property {number} sequence
 * @property {boolean} left_out as in a {@link DocumentEntry}
 * @property {Uint8Array} state_vector
 * @property {Uint8Array} update
 */

/** How often a state that changes while its parts are read is asked for again. */
const MOST_BEGINNINGS = 5;

/**
 * The documents of a project.
 * @param {Client} client
 * @param {string} projectId
 * @returns {ProjectDocuments}
 */
export function documentsOf(client, projectId) {
  return new ProjectDocuments(client, projectId);
}

/**
 * What was typed in this browser and could not be sent: open these documents to send it.
 * @param {string} accountId
 * @returns {Promise<Kept[]>}
 */
export async function unsentOf(accountId) {
  return await keptOf(accountId);
}

/**
 * Forget what could not be sent, for a document that the account can no longer use.
 * @param {Pick<Kept, "account" | "project" | "document" | "client">} record
 * @returns {Promise<void>}
 */
export async function forgetUnsent(record) {
  await forget(record);
}

/** The documents of one project. Made by {@link documentsOf}. */
export class ProjectDocuments {
  /**
   * @param {Client} client
   * @param {string} projectId
   */
  constructor(client, projectId) {
    this.client = client;
    this.projectId = projectId;
  }

  /** @returns {Promise<DocumentEntry[]>} sorted by path; rejects with a {@link NatskitError} */
  async list() {
    /** @type {DocumentEntry[]} */
    const entries = [];
    while (true) {
      const page = await this.#ask("-", "list", { after: entries.at(-1)?.document_id ?? "" });
      if (page.length === 0) return entries.sort((a, b) => (a.path < b.path ? -1 : 1));
      entries.push(...page);
    }
  }

  /**
   * Open a document, by its path or its id.
   * @param {{path?: string, documentId?: string, create?: boolean, text?: string}} which `create`: make it if there is
   *   none at the path, with this `text`
   * @param {DocumentOptions} [options]
   * @returns {Promise<SharedDocument>} rejects with a {@link NatskitError}
   */
  async open(which, options = {}) {
    const opened = new SharedDocument(this, options);
    try {
      await opened.open(which);
    } catch (error) {
      await opened.close();
      throw error;
    }
    return opened;
  }

  /**
   * @param {string} documentId
   * @param {string} path the new one
   * @returns {Promise<void>} rejects with a {@link NatskitError}, a `conflict` if the path is taken
   */
  async rename(documentId, path) {
    await this.#ask(documentId, "rename", { path });
  }

  /**
   * Remove a document and its history from the disks of the platform.
   * @param {string} documentId
   * @returns {Promise<void>} rejects with a {@link NatskitError}
   */
  async delete(documentId) {
    await this.#ask(documentId, "delete", {});
  }

  /**
   * Call `listener` when a document is created, renamed or deleted, when a version is named, or when a document is left
   * out of those that are kept the same as files, or taken in again.
   * @param {(change: {document_id: string, path: string, change: "created" | "renamed" | "deleted" | "named" | "left_out" | "taken_in"}) => void} listener
   * @returns {() => void} removes the listener
   */
  onChanged(listener) {
    return this.client.subscribe(`events.project.${this.projectId}.documents.changed`, (data) => listener(parse(data)));
  }

  /**
   * The whole history of a document.
   * @param {string} documentId
   * @param {number} [after] only what came after this sequence
   * @returns {Promise<{steps: Step[], versions: Version[]}>} rejects with a {@link NatskitError}
   */
  async history(documentId, after = 0) {
    /** @type {Step[]} */
    const steps = [];
    while (true) {
      const part = await this.#ask(documentId, "history", { after: steps.at(-1)?.sequence ?? after });
      for (const [sequence, time, author, client, bytes] of part.rows) {
        steps.push({ sequence, time, author, client, bytes });
      }
      if (!part.more) return { steps, versions: part.versions };
    }
  }

  /**
   * The document as it was.
   * @param {string} documentId
   * @param {number} sequence of the last update in it
   * @returns {Promise<Y.Doc>} a copy that changes no more; rejects with a {@link NatskitError}
   */
  async stateAt(documentId, sequence) {
    const doc = new Y.Doc();
    if (sequence > 0) Y.applyUpdate(doc, (await this.fetchState(documentId, "state_at", { sequence })).update);
    return doc;
  }

  /**
   * Read stored updates, oldest first.
   * @param {string} documentId
   * @param {number} after a sequence
   * @param {number} until the sequence of the last one
   * @returns {AsyncGenerator<StoredUpdate>} throws a {@link NatskitError}
   */
  async *updates(documentId, after, until) {
    while (after < until) {
      const part = await this.#ask(documentId, "updates", { after });
      for (const update of part.updates.map(readUpdate)) {
        if (update.sequence > until) return;
        yield update;
        after = update.sequence;
      }
      if (!part.more) return;
    }
  }

  /**
   * Bring back the text as it was, by a new edit.
   * @param {string} documentId
   * @param {number} sequence
   * @returns {Promise<void>} rejects with a {@link NatskitError}
   */
  async restore(documentId, sequence) {
    await this.#ask(documentId, "restore", { sequence });
  }

  /**
   * Give a moment a name.
   * @param {string} documentId
   * @param {number} sequence
   * @param {string} name empty to remove it
   * @returns {Promise<void>} rejects with a {@link NatskitError}
   */
  async nameVersion(documentId, sequence, name) {
    await this.#ask(documentId, "name_version", { sequence, name });
  }

  /**
   * Ask for a state, in as many parts as it takes. {@link ProjectDocuments.open} does this.
   * @param {string} documentId
   * @param {"open" | "state_at"} method
   * @param {Record<string, unknown>} params
   * @returns {Promise<Opened>}
   */
  async fetchState(documentId, method, params) {
    for (let beginnings = 0; beginnings < MOST_BEGINNINGS; beginnings++) {
      const first = await this.#ask(documentId, method, params);
      const parts = [fromBase64(first.update)];
      const { document_id, path, left_out, sequence, sha256, state_vector } = first;
      const same = { ...(method === "open" ? { state_vector: params.state_vector ?? "" } : {}), sequence };
      for (let part = 1; part < first.parts; part++) {
        const next = await this.#ask(document_id, method, { ...same, part });
        if (next.sha256 !== sha256) break;
        parts.push(fromBase64(next.update));
      }
      if (parts.length !== first.parts) continue; // it has changed meanwhile
      const update = new Uint8Array(await new Blob(/** @type {BlobPart[]} */ (parts)).arrayBuffer());
      return { document_id, path, left_out, sequence, state_vector: fromBase64(state_vector), update };
    }
    throw new NatskitError("unavailable", "the document changes faster than it can be read: try again");
  }

  /** @param {string} documentId @param {string} method @param {Record<string, unknown>} params @returns {Promise<any>} */
  async #ask(documentId, method, params) {
    return await this.client.callDocuments(this.projectId, documentId, method, params);
  }
}
