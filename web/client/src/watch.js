/** A watched folder of a project (natskit/project/watch.py is the other side). */

import { NatskitError } from "./rpc.js";

/** @typedef {import("./natskit.js").Client} Client */

/**
 * Is called with the names in the folder that were made, removed, renamed or written; with `null` if anything may have
 * changed, so that the folder has to be listed again.
 * @callback FolderListener
 * @param {string[] | null} names
 * @returns {void}
 */

/** How much of the time that a watch lasts may pass before it is renewed. */
const RENEW_AFTER = 1 / 3;
/** How soon a renewal that nobody answered is tried again, in milliseconds. */
const TRY_AGAIN = 2_000;

/** A watched folder. Made by `ProjectFiles.watch`; {@link FolderWatch.leave} ends it. */
export class FolderWatch {
  #client;
  #projectId;
  #path;
  #onChange;
  #onEnd;
  #watch = "";
  #seq = 0;
  #over = false;
  #renewals = 0;
  #timer = /** @type {ReturnType<typeof setTimeout> | undefined} */ (undefined);
  #forget;

  /**
   * @param {Client} client
   * @param {string} projectId
   * @param {string} path
   * @param {FolderListener} onChange
   * @param {(error: NatskitError) => void} onEnd
   */
  constructor(client, projectId, path, onChange, onEnd) {
    this.#client = client;
    this.#projectId = projectId;
    this.#path = path;
    this.#onChange = onChange;
    this.#onEnd = onEnd;
    const forget = [
      client.subscribe(`events.project.${projectId}.files`, (data) => this.#take(data)),
      client.subscribe(`events.project.${projectId}.agent`, () => void this.#renew()),
      client.onReturn(() => void this.#renew()),
    ];
    this.#forget = () => {
      for (const undo of forget) undo();
    };
    void this.#renew();
  }

  /** Hear no more. */
  leave() {
    this.#over = true;
    clearTimeout(this.#timer);
    if (!this.#client.nats.isClosed()) this.#forget();
  }

  /** Watch the folder for longer. Asked again after all that may have lost an event. */
  async #renew() {
    const turn = ++this.#renewals;
    clearTimeout(this.#timer);
    let wait = TRY_AGAIN;
    try {
      const state = await this.#client.callProject(this.#projectId, "watch_directory", { path: this.#path });
      if (this.#over || turn !== this.#renewals) return;
      // The project sends its answer after all events before it.
      const missed = state.watch !== this.#watch || state.seq !== this.#seq;
      this.#watch = state.watch;
      this.#seq = state.seq;
      wait = state.seconds * 1000 * RENEW_AFTER;
      if (missed) this.#onChange(null);
    } catch (error) {
      if (this.#over || turn !== this.#renewals) return;
      if (!(error instanceof NatskitError) || !["unavailable", "timeout"].includes(error.kind)) return this.#end(error);
    }
    this.#timer = setTimeout(() => void this.#renew(), wait);
  }

  /** @param {Uint8Array} data */
  #take(data) {
    const event = JSON.parse(new TextDecoder().decode(data));
    if (this.#over || event.watch !== this.#watch) return;
    if (event.type === "gone") return this.#end(new NatskitError("not_found", "the folder is not there any more"));
    const missed = event.seq !== this.#seq + 1;
    this.#seq = event.seq;
    this.#onChange(missed ? null : event.names);
  }

  /** @param {unknown} error */
  #end(error) {
    this.leave();
    this.#onEnd(error instanceof NatskitError ? error : new NatskitError("unavailable", String(error)));
  }
}
