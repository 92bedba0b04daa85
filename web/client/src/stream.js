/**
 * The reader of a command's output: it puts frames in order, acknowledges them as they are read, and asks again for
 * those it missed. natskit/bus/output_stream.py describes the protocol.
 */

import { apart } from "./apart.js";
import { Input } from "./input.js";
import { GRANT_PATIENCE, NatskitError, readResponse } from "./rpc.js";

const KIND = "Natskit-Stream";
const SEQ = "Natskit-Seq";
const STDIN = "Natskit-Stdin";
const STDIN_MISSING = "Natskit-Stdin-Missing";
/** Frames are acknowledged after this many bytes, or this many frames. */
const ACK_BYTES = 256 * 1024;
const ACK_FRAMES = 256;
/** All times are in milliseconds. How often the reader looks whether something is overdue. */
const TICK = 1_000;
/** How long nothing may arrive before the reader asks for it; the sender's heartbeats come more often. */
const QUIET = 6_000;
const ASK_EVERY = 1_000;
/** How long the project may take to answer. */
const ANSWER_TIMEOUT = 15_000;
/** If the clock that ticks every second stood still for this long, the page was frozen. */
const SUSPENDED = 5_000;
/** How long, and how often, the reader asks a project that does not listen at the moment. */
const ABSENT_PATIENCE = 2_000;
const ABSENT_PAUSE = 250;

/**
 * A piece of a command's output.
 * @typedef {object} Output
 * @property {"stdout" | "stderr"} stream
 * @property {Uint8Array} data
 */

/**
 * How a command ended.
 * @typedef {object} Result
 * @property {number | null} exit_code `null` if a signal ended the command
 * @property {string | null} signal the name of that signal on the project's host
 * @property {number | null} [signal_number] its number: a shell's exit code is 128 more
 * @property {boolean} timed_out whether the command was ended because it took too long
 * @property {boolean} cancelled whether a caller ended the command
 */

/**
 * A place in the output of a running command.
 * @typedef {object} Position
 * @property {string} stream
 * @property {number} seq
 */

/**
 * A running command, made by {@link Client.exec}. Iterate over it to read the output. To end the command, leave the loop
 * or call {@link StreamReader.cancel}.
 */
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
  #ticked = this.#opened;
  #ask;
  #input;
  #unsubscribe;
  #forget;
  #settle = /** @type {{resolve: (result: Result) => void, reject: (error: Error) => void}} */ (
    /** @type {unknown} */ (null)
  );
  #waiting = /** @type {object[]} */ ([]);

  /**
   * @param {import("./natskit.js").Client} client
   * @param {string} subject of the project's API
   * @param {string | Position} wanted the request, or where another reader of the same command stopped
   * @param {object} [input] what an earlier reader has sent, perhaps in vain
   */
  constructor(client, subject, wanted, input = new Input()) {
    this.#client = client;
    this.#input = /** @type {Input} */ (input);
    this.#subject = subject;
    this.#base = client.inboxFor(subject);
    /**
     * How the command ended. Resolves when the loop over the output has read everything.
     * @type {Promise<Result>}
     */
    this.done = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.done.catch(() => {}); // the loop over the output throws the error, too
    const subscription = client.nats.subscribe(`${this.#base}.*`, {
      callback: (_, message) => apart(() => this.#take(message)),
    });
    this.#unsubscribe = () => subscription.unsubscribe();
    const forget = [client.onReturn(() => this.#again()), client.onRefused((refused) => this.#refuse(refused))];
    this.#forget = () => {
      for (const undo of forget) undo();
    };
    this.#ask = () => {
      try {
        client.checkSize(String(wanted));
      } catch (error) {
        this.#fail(/** @type {Error} */ (error));
        return;
      }
      client.nats.publish(subject, String(wanted), { reply: `${this.#base}.0` });
    };
    this.#timer = setInterval(() => this.#tick(), TICK);
    if (typeof wanted === "string") this.#ask();
    else this.#continueFrom(wanted);
  }

  /**
   * End the command. The output that is already there can still be read; the result says `cancelled`.
   * @returns {void}
   */
  cancel() {
    this.#send({ type: "cancel" });
  }

  /**
   * Stop reading, also while the loop over the output waits, which then ends with an error.
   * @internal
   */
  leave() {
    this.#close();
    this.#fail(new NatskitError("left", "this reader has left"));
  }

  /**
   * Where this reader is. Within ten minutes, {@link Client.resume} continues from there. `null` before the command
   * started and after it ended.
   * @returns {Position | null}
   */
  get position() {
    return this.#control && !this.#ended
      ? { stream: this.#control.split(".").at(-1) ?? "", seq: this.#consumed + 1 }
      : null;
  }

  /**
   * Send input, of at most 32 KiB. It is kept, and sent again, until the program has taken it.
   * @internal
   * @param {Uint8Array} data
   */
  write(data) {
    this.#sendInput(this.#input.add(data));
  }

  /** @param {number} offset the number of the first byte to send */
  #sendInput(offset) {
    if (this.#control) for (const message of this.#input.messages(offset)) this.#send(message);
  }

  /** @param {Position} position */
  #continueFrom({ stream, seq }) {
    this.#expected = seq;
    this.#consumed = this.#acked = seq - 1;
    this.#know(stream);
    this.#resume();
  }

  /**
   * Read the output. Throws a {@link NatskitError} if the command cannot be run or followed.
   * @returns {AsyncGenerator<Output, void, void>}
   */
  async *[Symbol.asyncIterator]() {
    for await (const { kind, data } of this.frames()) {
      if (kind === "stdout" || kind === "stderr") yield { stream: kind, data };
    }
  }

  /**
   * Read the output, and news in their place between it.
   * @internal
   * @returns {AsyncGenerator<{kind: string, data: Uint8Array}, void, void>}
   */
  async *frames() {
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
        if (frame.kind !== "start") yield frame;
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
    if (!this.#client.nats.isClosed()) {
      if (!this.#ended) this.#send({ type: "cancel", leaving: true });
      this.#unsubscribe();
    }
  }

  /** @param {import("@nats-io/nats-core").Msg} message */
  #take(message) {
    const kind = message.headers?.get(KIND);
    const seq = Number(message.headers?.get(SEQ));
    if (!kind || !Number.isInteger(seq)) {
      // After the start, nobody listens to a control message: the project may be reconnecting.
      const nobody = message.headers?.code === 503;
      const now = performance.now();
      if (this.#control && nobody) this.#askingSince ||= now;
      else if (nobody && now - this.#opened < ABSENT_PATIENCE) this.#askLater();
      else this.#fail(refusal(message));
      return;
    }
    this.#heard = performance.now();
    if (!this.#control) {
      // Every frame names its stream, since the first one may be lost.
      this.#know(message.reply?.split(".").at(-1) ?? "");
    }
    if (kind === "heartbeat") {
      this.#input.take(Number(message.headers?.get(STDIN)));
      const missing = message.headers?.get(STDIN_MISSING);
      if (missing) this.#sendInput(Number(missing));
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

  /** @param {string} stream the id that the project gave this stream */
  #know(stream) {
    this.#control = `${this.#subject.replace(/\.api$/, "")}.streams.${stream}`;
    for (const waiting of this.#waiting.splice(0)) this.#send(waiting);
    this.#sendInput(this.#input.start);
    this.#listenToProject();
  }

  /** The project's right to answer ends with its connection. The project says when it is back. */
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
    // The project accepts each reply subject once, so the request may be repeated.
    if (this.#control) this.#resume();
    else this.#ask();
  }

  /** Nobody listens: the project may be reconnecting with a new key. */
  #askLater() {
    clearTimeout(this.#later); // one at a time, so that #close can end it
    this.#later = setTimeout(() => this.#control || this.#ask(), ABSENT_PAUSE);
  }

  /** @param {string} subject that the server refused */
  #refuse(subject) {
    if (subject === this.#subject && !this.#control) this.#refusedAt = performance.now();
  }

  /**
   * @param {number} seq
   * @param {number} size in bytes
   * @param {boolean} final
   */
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
    this.#sendInput(this.#input.start);
  }

  /** @param {object} message */
  #send(message) {
    if (this.#ended && !("seq" in message)) return;
    if (!this.#control) {
      if (!("seq" in message)) this.#waiting.push(message);
      return;
    }
    this.#client.nats.publish(this.#control, JSON.stringify(message), { reply: `${this.#base}.0` });
  }

  #tick() {
    const now = performance.now();
    const stoodStill = now - this.#ticked > SUSPENDED;
    this.#ticked = now;
    if (this.#client.nats.isClosed()) {
      this.#fail(new NatskitError("unavailable", "the connection was closed while the command was running"));
    } else if (stoodStill) {
      // A frozen tab or a closed lid. Nothing is overdue yet. If the connection broke meanwhile, the client notices
      // later, and its reconnect asks again.
      this.#again();
    } else if (this.#client.state !== "connected") {
      this.#heard = now;
      this.#askingSince = 0;
    } else if (this.#refusedAt && now - this.#refusedAt > GRANT_PATIENCE) {
      this.#fail(new NatskitError("forbidden", "you may not use this project"));
    } else if (!this.#control) {
      if (now - this.#heard > ANSWER_TIMEOUT) this.#fail(new NatskitError("timeout", "the project did not answer"));
    } else if (this.#askingSince && now - this.#askingSince > ANSWER_TIMEOUT) {
      this.#fail(new NatskitError("unavailable", "the project disappeared while the command was running"));
    } else if ((now - this.#heard > QUIET || this.#askingSince) && now - this.#askedAt >= ASK_EVERY) {
      this.#resume();
    }
  }

  /** @param {Error} error */
  #fail(error) {
    this.#failure ??= error;
    this.#settle.reject(error);
    this.#wake();
    this.#input.wake();
  }
}

/**
 * Why the project does not run the command.
 * @param {import("@nats-io/nats-core").Msg} message
 * @returns {Error}
 */
function refusal(message) {
  if (message.headers?.code === 503) {
    return new NatskitError("unavailable", "the project does not answer: is it started?");
  }
  try {
    readResponse(message.data);
  } catch (error) {
    return /** @type {Error} */ (error);
  }
  return new NatskitError("internal_error", "the project answered, but not with a stream");
}
