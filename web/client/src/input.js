/** Input for a program: what was sent and not taken yet, kept for sending it again. */

/** The most bytes in one message of input. */
export const CHUNK_BYTES = 32 * 1024;
/** The most bytes that may be on the way. */
const WINDOW_BYTES = 1024 * 1024;

export class Input {
  /** The number of the first byte that is kept. */
  start = 0;
  #kept = new Uint8Array();
  #wake = /** @type {(() => void)[]} */ ([]);

  /** The number of the byte behind the last one that is kept. */
  get end() {
    return this.start + this.#kept.length;
  }

  get isFull() {
    return this.#kept.length >= WINDOW_BYTES;
  }

  /**
   * @param {Uint8Array} data
   * @returns {number} the number of its first byte
   */
  add(data) {
    const offset = this.end;
    const longer = new Uint8Array(this.#kept.length + data.length);
    longer.set(this.#kept);
    longer.set(data, this.#kept.length);
    this.#kept = longer;
    return offset;
  }

  /** @param {number} upto the number of the first byte that the program has not taken */
  take(upto) {
    if (!(upto > this.start && upto <= this.end)) return; // also what is no number
    this.#kept = this.#kept.slice(upto - this.start);
    this.start = upto;
    this.wake();
  }

  /** Resolves when the program has taken something, or the stream is over. */
  taken() {
    return new Promise((resolve) => this.#wake.push(() => resolve(undefined)));
  }

  /** Let those who wait for {@link Input.taken} look. */
  wake() {
    for (const wake of this.#wake.splice(0)) wake();
  }

  /**
   * The messages that send what is kept from a byte on.
   * @param {number} offset
   */
  messages(offset) {
    const messages = [];
    for (let at = Math.max(offset, this.start); at < this.end; at += CHUNK_BYTES) {
      const part = this.#kept.subarray(at - this.start, at - this.start + CHUNK_BYTES);
      messages.push({ type: "stdin", offset: at, data: btoa(String.fromCharCode(...part)) });
    }
    return messages;
  }
}
