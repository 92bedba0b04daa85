/**
 * What was typed and is not stored yet, kept in the browser (IndexedDB). A record belongs to one copy of a document: the
 * copy that a page had before it was loaded again, or one in another tab. A record goes when its content is stored, so
 * nothing of a document stays in the browser without a reason.
 */

import * as Y from "yjs";

const DATABASE = "natskit-documents";
const RECORDS = "unsent";

/**
 * @typedef {object} Kept
 * @property {string} account
 * @property {string} project
 * @property {string} document its id
 * @property {number} client the id of the copy
 * @property {string} path of the document, for people
 * @property {Uint8Array} update
 * @property {string} text of the whole document, for a person who may not open it any more
 * @property {number} at milliseconds since 1970
 */

/**
 * @typedef {Pick<Kept, "account" | "project" | "document" | "client">} Copy
 */

/**
 * @typedef {object} Unsent
 * @property {Copy} copy
 * @property {Pick<Kept, "path" | "update" | "text">} [content] what is not stored yet; none if all is
 */

/**
 * What a person reads of a document that is no more: its text, or the sources of a notebook's cells.
 * @param {import("yjs").Doc} doc
 */
export function readable(doc) {
  const text = doc.getText("text").toString();
  if (text) return text;
  const cells = doc.getArray("cells").toArray();
  return cells
    .map((cell) => (cell instanceof Y.Map ? String(cell.get("source") ?? "") : ""))
    .filter((source) => source)
    .join("\n\n");
}

/** How long an update may be on its way before the browser keeps it, in milliseconds. */
const KEEP_AFTER = 200;

/** Keeps what one copy has not sent yet. */
export class KeptInBrowser {
  #unsent;
  #isKept = false;
  #isClosed = false;
  /** What earlier copies left. @type {Kept[]} */
  #inherited = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** What is written, one after the other. */
  #writing = Promise.resolve();

  /** @param {() => Unsent} unsent says what the copy has not sent yet */
  constructor(unsent) {
    this.#unsent = unsent;
  }

  /** What earlier copies of the document could not send. @returns {Promise<Uint8Array[]>} */
  async inherit() {
    const { account, project, document } = this.#unsent().copy;
    this.#inherited = await keptOf(account, project, document).catch(() => []);
    return this.#inherited.map(({ update }) => update);
  }

  /** Something was changed or stored. */
  soon() {
    if (!this.#isClosed) this.#timer ??= setTimeout(() => void this.now(), KEEP_AFTER);
  }

  /** @returns {Promise<void>} when the browser has kept or forgotten what is not stored */
  now() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#writing = this.#writing.then(() => this.#write());
    return this.#writing;
  }

  async close() {
    this.#isClosed = true;
    await this.now();
  }

  async #write() {
    const { copy, content } = this.#unsent();
    try {
      if (content) {
        this.#isKept = true;
        await keep({ ...copy, ...content, at: Date.now() });
      } else {
        const old = this.#inherited.splice(0);
        for (const record of this.#isKept ? [copy, ...old] : old) await forget(record);
        this.#isKept = false;
      }
    } catch {
      // The browser keeps nothing, in a private window for example. The state of the copy is true all the same.
    }
  }
}

/** @returns {Promise<IDBDatabase>} */
function database() {
  const opening = indexedDB.open(DATABASE, 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore(RECORDS, { keyPath: ["account", "project", "document", "client"] });
  };
  return answer(opening);
}

/**
 * @template T
 * @param {IDBRequest<T>} asked
 * @returns {Promise<T>}
 */
function answer(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} action
 * @returns {Promise<T>} when it is written
 */
async function withRecords(mode, action) {
  const opened = await database();
  try {
    const transaction = opened.transaction(RECORDS, mode);
    const written = new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(undefined);
      transaction.onabort = () => reject(transaction.error);
    });
    const asked = action(transaction.objectStore(RECORDS));
    await written;
    return asked.result;
  } finally {
    opened.close();
  }
}

/** @param {Kept} record @returns {Promise<void>} rejects if the browser does not keep it */
export async function keep(record) {
  await withRecords("readwrite", (store) => store.put(record));
}

/**
 * Forget a record. With `at`, only if another tab has not kept something newer in it since.
 * @param {Copy & {at?: number}} record
 * @returns {Promise<void>}
 */
export async function forget({ account, project, document, client, at }) {
  const key = [account, project, document, client];
  await withRecords("readwrite", (store) => {
    const asked = store.get(key);
    asked.onsuccess = () => {
      if (at === undefined || asked.result?.at === at) store.delete(key);
    };
    return asked;
  });
}

/**
 * The records of an account: all, or those of one document.
 * @param {string} account
 * @param {string} [project]
 * @param {string} [document]
 * @returns {Promise<Kept[]>}
 */
export async function keptOf(account, project, document) {
  const part = [account, ...(project ? [project] : []), ...(document ? [document] : [])];
  return await withRecords("readonly", (store) => store.getAll(IDBKeyRange.bound(part, [...part, []])));
}
