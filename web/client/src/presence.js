/** Who else has a document open. Presence is not stored, and its author is who the service says. */

import * as Y from "yjs";

/** @typedef {import("y-protocols/awareness").Awareness} Awareness */

/** The most copies of a document whose presence is followed. */
const MOST = 1_000;
/** How often a copy tells where its cursor is, at most, in milliseconds. */
const TELL_EVERY = 60;

export class Presence {
  #awareness;
  #ask;
  #identify;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #telling;
  #closed = false;

  /**
   * @param {Awareness} awareness
   * @param {(method: string, params: Record<string, unknown>) => Promise<unknown>} ask
   * @param {((author: string) => object) | undefined} identify what editors show of an author: `name`, `color`
   */
  constructor(awareness, ask, identify = (author) => ({ name: author })) {
    this.#awareness = awareness;
    this.#ask = ask;
    this.#identify = identify;
    awareness.on("update", (/** @type {object} */ _changes, /** @type {unknown} */ origin) => {
      if (origin === "local") this.#tellSoon();
    });
  }

  /** Tell the others again, and so come back to those who were away. */
  announce() {
    this.#tellSoon();
  }

  close() {
    clearTimeout(this.#telling);
    if (!this.#closed) this.#ask("close", { client: this.#awareness.clientID }).catch(() => {});
    this.#closed = true;
  }

  /** @param {{author: string, client: number, state: Record<string, unknown> | null}} news */
  take({ author, client, state }) {
    const { states, meta, clientID } = this.#awareness;
    const known = states.has(client);
    if (client === clientID || (!known && states.size >= MOST)) return;
    if (state === null) states.delete(client);
    else states.set(client, { ...this.#checked(state), author, user: this.#identify(author) });
    meta.set(client, { clock: (meta.get(client)?.clock ?? 0) + 1, lastUpdated: Date.now() });
    const changes = {
      added: /** @type {number[]} */ ([]),
      updated: /** @type {number[]} */ ([]),
      removed: /** @type {number[]} */ ([]),
    };
    if (state === null) {
      if (!known) return;
      changes.removed.push(client);
    } else {
      changes[known ? "updated" : "added"].push(client);
      // The one who comes last learns about the others at once.
      if (!known) this.#tellSoon();
    }
    this.#awareness.emit("change", [changes, this]);
    this.#awareness.emit("update", [changes, this]);
  }

  /** A state without its cursor, if editors could not place that. @param {Record<string, any>} state */
  #checked({ cursor, ...state }) {
    try {
      for (const end of [cursor.anchor, cursor.head])
        Y.createAbsolutePositionFromRelativePosition(end, this.#awareness.doc);
      return { ...state, cursor };
    } catch {
      return state;
    }
  }

  #tellSoon() {
    if (this.#closed) return;
    this.#telling ??= setTimeout(() => {
      this.#telling = undefined;
      const state = this.#awareness.getLocalState();
      // It is told again soon, so a lost one matters little.
      this.#ask("presence", { client: this.#awareness.clientID, state }).catch(() => {});
    }, TELL_EVERY);
  }
}
