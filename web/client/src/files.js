/**
 * Files of a project, of any kind and size (docs/reference/files.md). Several parts are on their way at a time, each a
 * request that may be repeated, so a transfer goes on where it was when a connection or the project comes back.
 */

import { NatskitError } from "./rpc.js";
import { pause } from "./site.js";
import { FolderWatch } from "./watch.js";

/** @typedef {import("./natskit.js").Client} Client */
/** @typedef {import("./api.js").FileState} FileState */
/** @typedef {import("./watch.js").FolderListener} FolderListener */

/**
 * Is called with the bytes that have arrived, and the bytes of the whole file.
 * @callback Progress
 * @param {number} done
 * @param {number} size
 * @returns {void}
 */

/**
 * @typedef {object} TransferOptions
 * @property {Progress} [onProgress]
 * @property {AbortSignal} [signal] ends the transfer
 */

/**
 * @typedef {object} UploadOptions
 * @property {Progress} [onProgress]
 * @property {AbortSignal} [signal] ends the transfer, and removes what has arrived
 * @property {string} [expectedVersion] of the file that is replaced; "absent" if there must be none
 * @property {() => Promise<void>} [ready] awaited before each part: while it is pending, the upload is paused
 * @property {number} [patience] how long to wait for a project that does not answer, in milliseconds; two minutes unless
 *   set
 */

/**
 * @typedef {object} NewFile
 * @property {Blob} content such as a `File` that was dropped into the page
 * @property {string} path
 */

/**
 * @typedef {object} UploadManyOptions
 * @property {(path: string, bytes: number) => void} [onProgress] is called with the bytes of a file that have arrived
 *   since the last call; for each file at least once
 * @property {(path: string, error: NatskitError) => void} [onError] is called for a file that the project refuses; the
 *   others go on. Without it, the first error ends all.
 * @property {AbortSignal} [signal] ends the transfers
 * @property {() => Promise<void>} [ready] awaited before each part
 * @property {number} [patience] as for one file
 */

/** The most bytes of a part. */
const PART_BYTES = 1024 * 1024;
/** Bytes of the first part: a slow network shows at once. */
const FIRST_PART_BYTES = 64 * 1024;
/** Bytes of a message besides its part. */
const ROOM = 4096;
/** How many parts are on their way at a time. */
const IN_FLIGHT = 6;
/** How long a part may take, in milliseconds, before it is sent again. */
const PART_TIMEOUT = 30_000;
/** How long a transfer waits for a project that does not answer, in milliseconds. */
const PATIENCE = 120_000;
/** Between two attempts, in milliseconds. */
const PAUSE = 500;
/** Files up to this size go together in one request, this many at most (natskit/project/batch.py). */
const SMALL_BYTES = 64 * 1024;
const MOST_IN_BATCH = 256;
/** Bytes that a file takes in a request, at most, besides its path and its content. */
const ROOM_OF_FILE = 128;
/** Requests with many files, or large files, that are on their way at the same time. */
const AT_ONCE = 4;

/** The files of one project. Made by {@link Client.files}. */
export class ProjectFiles {
  #client;
  #projectId;

  /**
   * @param {Client} client
   * @param {string} projectId
   */
  constructor(client, projectId) {
    this.#client = client;
    this.#projectId = projectId;
  }

  /**
   * Copy a file, or other bytes, into the project. Nothing is seen of it before all has arrived.
   * @param {Blob} content such as a `File` that was dropped into the page
   * @param {string} path
   * @param {UploadOptions} [options]
   * @returns {Promise<string>} the new version; rejects with a {@link NatskitError}
   */
  async upload(content, path, options = {}) {
    const { onProgress = () => {}, expectedVersion, ready = async () => {} } = options;
    const size = content.size;
    const target = { path, ...(expectedVersion === undefined ? {} : { expected_version: expectedVersion }) };
    await ready();
    if (size <= FIRST_PART_BYTES) {
      const { result } = await this.#ask("write_file", target, await bytesOf(content), options);
      onProgress(size, size);
      return result.version;
    }
    const where = { path, upload: crypto.randomUUID().replaceAll("-", "") };
    try {
      await this.#ask("start_upload", { ...target, ...where, size }, undefined, options);
      await this.#sendParts(content, where, onProgress, { ...options, ready });
      return (await this.#ask("finish_upload", { ...target, ...where, size }, undefined, options)).result.version;
    } catch (error) {
      await this.#client.callProject(this.#projectId, "cancel_upload", where).catch(() => {});
      throw error;
    }
  }

  /**
   * Copy many files into the project, and make the folders that are missing. Small files go together in few requests.
   * @param {Iterable<NewFile>} copies
   * @param {UploadManyOptions} [options]
   * @returns {Promise<void>} rejects with the first error, if there is no `onError`
   */
  async uploadAll(copies, options = {}) {
    const jobs = this.#batches(copies);
    const ended = new AbortController();
    const { signal, ready = async () => {} } = options;
    const own = { ...options, signal: signal ? AbortSignal.any([signal, ended.signal]) : ended.signal };
    const worker = async () => {
      for (const batch of jobs) {
        await ready();
        own.signal.throwIfAborted();
        await this.#uploadBatch(batch, own);
      }
    };
    const workers = Array.from({ length: AT_ONCE }, () =>
      worker().catch((error) => {
        ended.abort(error);
        throw error;
      }),
    );
    const failed = (await Promise.allSettled(workers)).find((one) => one.status === "rejected");
    if (failed) throw signal?.aborted ? signal.reason : ended.signal.reason;
  }

  /**
   * Hear of changes in a folder, but not of those in the folders below it. `onChange` is called with the names that
   * changed; with `null`, as at the beginning, list the folder. A watch survives reconnects and restarts.
   * @param {string} path
   * @param {FolderListener} onChange
   * @param {(error: NatskitError) => void} [onEnd] is called if the folder is not there any more, or cannot be watched
   * @returns {FolderWatch} call its `leave` to end it
   */
  watch(path, onChange, onEnd = () => {}) {
    return new FolderWatch(this.#client, this.#projectId, path, onChange, onEnd);
  }

  /**
   * The address of a file on the site, for a link, a picture or a download; of a folder, that of a zip of it.
   * @param {string} path
   * @returns {string} a path, such as `/api/projects/…/files/notes.txt`
   */
  address(path) {
    return `/api/projects/${this.#projectId}/files/${path === "." ? "" : encodePath(path)}`;
  }

  /**
   * Small files that fit into one request, and each large one by itself.
   * @param {Iterable<NewFile>} copies
   * @returns {Generator<NewFile[], void, void>}
   */
  *#batches(copies) {
    /** @type {NewFile[]} */
    let batch = [];
    const room = this.#partSize("");
    let left = room;
    for (const copy of copies) {
      if (copy.content.size > SMALL_BYTES) {
        yield [copy];
        continue;
      }
      const needed = copy.content.size + ROOM_OF_FILE + 6 * copy.path.length;
      if (batch.length && (needed > left || batch.length === MOST_IN_BATCH)) {
        yield batch;
        batch = [];
        left = room;
      }
      batch.push(copy);
      left -= needed;
    }
    if (batch.length) yield batch;
  }

  /**
   * @param {NewFile[]} batch
   * @param {UploadManyOptions} options
   */
  async #uploadBatch(batch, options) {
    const { onProgress = () => {}, onError } = options;
    try {
      if (batch[0].content.size > SMALL_BYTES) return await this.#uploadLarge(batch[0], options);
      const parts = await Promise.all(batch.map(({ content }) => bytesOf(content)));
      const files = batch.map(({ path }, n) => ({ path, size: parts[n].length }));
      await this.#ask("write_files", { files }, joined(parts), options);
      batch.forEach(({ path }, n) => {
        onProgress(path, parts[n].length);
      });
    } catch (error) {
      if (!onError || options.signal?.aborted) throw error;
      if (batch.length > 1) {
        for (const copy of batch) await this.#uploadBatch([copy], options); // the refused ones by themselves
      } else onError(batch[0].path, explain(error));
    }
  }

  /**
   * @param {NewFile} copy
   * @param {UploadManyOptions} options
   */
  async #uploadLarge({ content, path }, { onProgress = () => {}, ...options }) {
    const above = path.split("/").slice(0, -1).join("/");
    if (above) await this.#ask("make_directory", { path: above }, undefined, options);
    let before = 0;
    const { signal, ready, patience } = options;
    await this.upload(content, path, {
      signal,
      ready,
      patience,
      onProgress: (done) => {
        onProgress(path, done - before);
        before = done;
      },
    });
  }

  /**
   * Read a file, or a part of it, piece by piece. It is the same file in all its pieces: if it changes meanwhile, that is
   * a `conflict`.
   * @param {string} path
   * @param {{offset?: number, size?: number, signal?: AbortSignal}} [options]
   * @returns {AsyncGenerator<{state: FileState, data: Uint8Array}>} throws a {@link NatskitError}
   */
  async *read(path, { offset = 0, size = Infinity, signal } = {}) {
    const most = Math.min(FIRST_PART_BYTES, size);
    const first = await this.#ask("read_file", { path, offset, size: most }, undefined, { signal });
    const state = /** @type {FileState} */ (first.result);
    yield { state, data: first.data };
    const end = Math.min(state.size, offset + size);
    let next = offset + first.data.length;
    /** @type {Promise<{result: any, data: Uint8Array}>[]} */
    const flying = [];
    for (let done = next; done < end; ) {
      while (next < end && flying.length < IN_FLIGHT) {
        const length = Math.min(this.#partSize(path), end - next);
        const part = this.#ask("read_file", { path, offset: next, size: length, tag: state.tag }, undefined, {
          signal,
        });
        part.catch(() => {}); // it is awaited later, or nobody wants it any more
        flying.push(part);
        next += length;
      }
      const { data } = /** @type {{data: Uint8Array}} */ (await flying.shift());
      if (!data.length) throw new NatskitError("internal_error", `the project sends nothing of ${path}`);
      yield { state, data };
      done += data.length;
    }
  }

  /**
   * Read a whole file.
   * @param {string} path
   * @param {TransferOptions} [options]
   * @returns {Promise<Blob>} rejects with a {@link NatskitError}
   */
  async download(path, { onProgress = () => {}, signal } = {}) {
    /** @type {Blob[]} */
    const parts = [];
    let done = 0;
    for await (const { state, data } of this.read(path, { signal })) {
      parts.push(new Blob([/** @type {BlobPart} */ (data)]));
      done += data.length;
      onProgress(done, state.size);
    }
    return new Blob(parts);
  }

  /**
   * @param {Blob} content
   * @param {{path: string, upload: string}} where
   * @param {Progress} onProgress
   * @param {UploadOptions & {ready: () => Promise<void>}} options
   */
  async #sendParts(content, where, onProgress, options) {
    const size = content.size;
    let part = Math.min(FIRST_PART_BYTES, this.#partSize(where.path));
    /** @type {{end: number, answer: Promise<{result: {offset: number}}>}[]} */
    const flying = [];
    let next = 0;
    let done = 0;
    for (let gaps = 0; done < size; ) {
      while (next < size && flying.length < IN_FLIGHT) {
        await options.ready();
        const offset = next;
        next = Math.min(size, offset + part);
        const data = await bytesOf(content.slice(offset, next));
        const answer = this.#ask("upload_part", { ...where, offset }, data, options);
        answer.catch(() => {}); // it is awaited later
        flying.push({ end: next, answer });
      }
      const sent = /** @type {(typeof flying)[number]} */ (flying.shift());
      const arrived = (await sent.answer).result.offset;
      if (arrived < sent.end) {
        // An earlier part came too late, or never: begin again where the gap is, when no other part is on its way.
        await Promise.allSettled(flying.splice(0).map((one) => one.answer));
        if (++gaps > IN_FLIGHT) throw new NatskitError("invalid_state", "the parts of the upload do not arrive");
        next = Math.min(arrived, sent.end);
      } else {
        gaps = 0;
        done = Math.max(done, sent.end);
        part = Math.min(part * 4, this.#partSize(where.path));
        onProgress(done, size);
      }
    }
  }

  /** How many bytes of a file fit into a message. @param {string} path */
  #partSize(path) {
    const most = this.#client.nats.info?.max_payload ?? PART_BYTES;
    return Math.max(1, Math.min(PART_BYTES, most - ROOM - 6 * path.length));
  }

  /**
   * One request, repeated while nobody answers.
   * @param {string} method
   * @param {Record<string, unknown>} params
   * @param {Uint8Array | undefined} data
   * @param {{signal?: AbortSignal, patience?: number}} options
   * @returns {Promise<{result: any, data: Uint8Array}>}
   */
  async #ask(method, params, data, { signal, patience = PATIENCE }) {
    for (const deadline = Date.now() + patience; ; ) {
      signal?.throwIfAborted();
      try {
        const options = { timeout: PART_TIMEOUT };
        const { result, data: bytes } = await this.#client.exchange(this.#projectId, method, params, data, options);
        return { result, data: bytes };
      } catch (error) {
        const isLost = error instanceof NatskitError && (error.kind === "unavailable" || error.kind === "timeout");
        if (!isLost || Date.now() > deadline || this.#client.nats.isClosed()) throw error;
        await pause(PAUSE);
      }
    }
  }
}

/** @param {Blob} blob */
async function bytesOf(blob) {
  return new Uint8Array(await blob.arrayBuffer());
}

/** @param {Uint8Array[]} parts */
function joined(parts) {
  const all = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/**
 * A path in an address. Bytes that are not UTF-8 are lone surrogates in a path (docs/reference/files.md).
 * @param {string} path
 */
function encodePath(path) {
  return Array.from(path, (character) => {
    const code = character.codePointAt(0) ?? 0;
    if (code >= 0xdc80 && code <= 0xdcff) return `%${(code - 0xdc00).toString(16)}`;
    return character === "/" ? character : encodeURIComponent(character);
  }).join("");
}

/** @param {unknown} error */
function explain(error) {
  if (error instanceof NatskitError) return error;
  const why = error instanceof Error && error.name === "NotReadableError" ? "it changed, or cannot be read" : error;
  return new NatskitError("unreadable", String(why instanceof Error ? why.message : why));
}
