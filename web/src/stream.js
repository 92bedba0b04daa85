/**
 * The reader's end of a stream: frames in order, acknowledged as they are consumed, asked for again when missed.
 * The sender's end, and the protocol, are in natskit/stream.py.
 */

import { GRANT_PATIENCE, NatskitError, readResponse } from "./natskit.js";

const KIND = "Natskit-Stream";
const SEQ = "Natskit-Seq";
const ACK_BYTES = 256 * 1024;
const ACK_FRAMES = 256;
const TICK = 1_000;
const QUIET = 6_000;
const ASK_EVERY = 1_000;
const ANSWER = 15_000;
/** How long, and how often, a project is asked that nobody serves at this moment, in milliseconds. */
const ABSENT = 2_000;
const ABSENT_PAUSE = 250;

/** @typedef {{stream: "stdout" | "stderr", data: Uint8Array}} Output */
/** @typedef {{exit_code: number | null, signal: string | null, timed_out: boolean, cancelled: boolean}} Result */

/** One running command. Iterate over it for its output; `done` settles when it has ended and all was read. */
export class StreamReader {
  #client;
  #subject;
  #base;
  #control = "";
  #expected = 0;
  #consumed = -1;
  #acked = -1;
  #unacked = 0;
  #frames = /** @type {{seq: number, kind: string, data: Uint8Array}[]} */ ([]);
  #wake = () => {};
  #opened = performance.now();
  #heard = this.#opened;
  #askedAt = 0;
  #askingSince = 0;
  #failure = /** @type {Error | null} */ (null);
  #ended = false;
  #timer;
  #later = /** @type {ReturnType<typeof setTimeout> | undefined} */ (undefined);
  #refusedAt = 0;
  #ask;
  #unsubscribe;
  #forget;
  #settle = /** @type {{resolve: (result: Result) => void, reject: (error: Error) => void}} */ (
    /** @type {unknown} */ (null)
  );
  #waiting = /** @type {object[]} */ ([]);

  /** @param {import("./natskit.js").Client} client @param {string} subject @param {string} body */
  constructor(client, subject, body) {
    this.#client = client;
    this.#subject = subject;
    this.#base = client.inboxFor(subject);
    /** @type {Promise<Result>} */
    this.done = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.done.catch(() => {}); // whoever iterates sees the error there
    const subscription = client.nats.subscribe(`${this.#base}.*`, {
      callback: (_, message) => this.#take(message),
    });
    this.#unsubscribe = () => subscription.unsubscribe();
    const forget = [client.onReturn(() => this.#again()), client.onRefused((refused) => this.#refuse(refused))];
    this.#forget = () => forget.forEach((undo) => undo());
    this.#ask = () => client.nats.publish(subject, body, { reply: `${this.#base}.0` });
    this.#ask();
    this.#timer = setInterval(() => this.#tick(), TICK);
  }

  /** End the command; its stream ends with `cancelled`. */
  cancel() {
    this.#send({ type: "cancel" });
  }

  /** @returns {AsyncGenerator<Output, void, void>} */
  async *[Symbol.asyncIterator]() {
    try {
      while (true) {
        const frame = this.#frames.shift();
        if (!frame) {
          if (this.#failure) throw this.#failure;
          await new Promise((resolve) => (this.#wake = () => resolve(undefined)));
          continue;
        }
        this.#consume(frame.seq, frame.data.length, frame.kind === "end");
        if (frame.kind === "end") {
          this.#ended = true;
          this.#settle.resolve(readResponse(frame.data));
          return;
        }
        if (frame.kind === "stdout" || frame.kind === "stderr") yield { stream: frame.kind, data: frame.data };
      }
    } catch (error) {
      this.#settle.reject(/** @type {Error} */ (error));
      throw error;
    } finally {
      this.#close();
    }
  }

  #close() {
    clearInterval(this.#timer);
    clearTimeout(this.#later);
    this.#forget();
    if (!this.#ended) this.cancel();
    this.#unsubscribe();
  }

  /** @param {import("@nats-io/nats-core").Msg} message */
  #take(message) {
    const kind = message.headers?.get(KIND);
    const seq = Number(message.headers?.get(SEQ));
    if (!kind || !Number.isInteger(seq)) {
      // Once the stream runs, "nobody listens" is about a control message: the project may be reconnecting.
      const nobody = message.headers?.code === 503;
      const now = performance.now();
      if (this.#control && nobody) this.#askingSince ||= now;
      else if (nobody && now - this.#opened < ABSENT) this.#later = setTimeout(() => this.#askLater(), ABSENT_PAUSE);
      else this.#fail(refusal(message));
      return;
    }
    this.#heard = performance.now();
    if (!this.#control) {
      // Every frame names its stream, so that the loss of the first one can be made good.
      const stream = message.reply?.split(".").at(-1);
      this.#control = `${this.#subject.replace(/\.api$/, "")}.streams.${stream}`;
      for (const waiting of this.#waiting.splice(0)) this.#send(waiting);
      this.#listenToProject();
    }
    if (kind === "heartbeat") {
      if (seq > this.#expected) this.#resume();
      else {
        this.#askingSince = 0;
        this.#acknowledge();
      }
    } else if (seq === this.#expected) {
      this.#askingSince = this.#askedAt = 0;
      this.#expected++;
      this.#frames.push({ seq, kind, data: message.data });
      this.#wake();
    } else if (seq > this.#expected && !this.#askedAt) this.#resume();
  }

  /** The project's right to answer ends with its connection: it says when it is back. */
  #listenToProject() {
    const news = this.#client.nats.subscribe(`events.project.${this.#subject.split(".")[1]}.agent`, {
      callback: (error) => {
        if (!error) this.#again();
      },
    });
    const unsubscribe = this.#unsubscribe;
    this.#unsubscribe = () => {
      news.unsubscribe();
      unsubscribe();
    };
  }

  #again() {
    this.#heard = performance.now();
    this.#askingSince = 0;
    this.#refusedAt = 0;
    // The project takes a reply subject once, so what was refused or lost may be asked for again.
    if (this.#control) this.#resume();
    else this.#ask();
  }

  /** Nobody took the request: the project may be coming back with a new key. */
  #askLater() {
    if (!this.#control) this.#ask();
  }

  /** @param {string} subject what the server did not let this client publish to */
  #refuse(subject) {
    if (subject === this.#subject && !this.#control) this.#refusedAt = performance.now();
  }

  /** @param {number} seq @param {number} size @param {boolean} final */
  #consume(seq, size, final) {
    this.#consumed = seq;
    this.#unacked += size;
    if (final || this.#unacked >= ACK_BYTES || seq - this.#acked >= ACK_FRAMES) this.#acknowledge();
  }

  #acknowledge() {
    this.#unacked = 0;
    this.#acked = this.#consumed;
    this.#send({ type: "ack", seq: this.#consumed });
  }

  #resume() {
    this.#askedAt = performance.now();
    this.#askingSince ||= this.#askedAt;
    this.#send({ type: "resume", seq: this.#expected });
  }

  /** @param {object} message */
  #send(message) {
    if (this.#ended && !("seq" in message)) return;
    if (!this.#control) {
      if (!("seq" in message)) this.#waiting.push(message);
      return;
    }
    const now = performance.now();
    this.#client.nats.publish(this.#control, JSON.stringify(message), { reply: `${this.#base}.0` });
  }

  #tick() {
    const now = performance.now();
    if (this.#client.nats.isClosed()) {
      this.#fail(new NatskitError("unavailable", "the connection was closed while the command was running"));
    } else if (this.#client.state !== "connected") {
      this.#heard = now;
      this.#askingSince = 0;
    } else if (this.#refusedAt && now - this.#refusedAt > GRANT_PATIENCE) {
      this.#fail(new NatskitError("forbidden", "you may not use this project"));
    } else if (!this.#control) {
      if (now - this.#heard > ANSWER) this.#fail(new NatskitError("timeout", "the project did not answer"));
    } else if (this.#askingSince && now - this.#askingSince > ANSWER) {
      this.#fail(new NatskitError("unavailable", "the project went away in the middle of the command's output"));
    } else if ((now - this.#heard > QUIET || this.#askingSince) && now - this.#askedAt >= ASK_EVERY) {
      this.#resume();
    }
  }

  /** @param {Error} error */
  #fail(error) {
    this.#failure ??= error;
    this.#settle.reject(error);
    this.#wake();
  }
}

/** @param {import("@nats-io/nats-core").Msg} message @returns {Error} why the project does not stream */
function refusal(message) {
  if (message.headers?.code === 503) {
    return new NatskitError("unavailable", "the project does not answer: is it started?");
  }
  try {
    readResponse(message.data);
  } catch (error) {
    return /** @type {Error} */ (error);
  }
  return new NatskitError("internal_error", "the project answered without a stream");
}
