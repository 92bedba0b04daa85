/**
 * The browser client of a natskit platform: sign in, connect, call the hub, call a project, follow a command.
 *
 *     import { connect, signIn } from "@natskit/client";
 *     const client = await connect(await signIn("me@example.org", password));
 *     const [project] = await client.listProjects();
 *     const run = client.exec(project.project_id, { command: "make test" });
 *     for await (const { stream, data } of run) show(stream, data);
 *     const { exit_code } = await run.done;
 *
 * A client reconnects by itself: after a server or a hub restarts, after the session is refreshed, and after the rights
 * of the account change (the hub closes the connection, and the next one has the new rights). Subscriptions and running
 * commands survive that. The credentials are in a cookie that scripts cannot read.
 *
 * All tabs of a browser share that cookie, and another account may sign in in another tab. So every request names the
 * account it is meant for. If the cookie is another account's, the client closes with the state "signed-out".
 * @module
 */

import { createInbox, headers, wsconnect } from "@nats-io/nats-core";
import { apart } from "./apart.js";
import { ProjectFiles } from "./files.js";
import { CHANGES_RIGHTS, IDEMPOTENT, OVER_HTTP } from "./methods.js";
import { GRANT_PATIENCE, NatskitError, readResponse, request } from "./rpc.js";
import { askOverHttp, isOtherAccount, pause, session, signOut } from "./site.js";
import { StreamReader } from "./stream.js";
import { TerminalView } from "./terminal.js";
import { FolderWatch } from "./watch.js";

export { NatskitError } from "./rpc.js";
export { askOverHttp, session, signIn, signInOptions, signOut } from "./site.js";
export { FolderWatch, ProjectFiles, StreamReader, TerminalView };

/** @typedef {import("./api.js").Project} Project */
/** @typedef {import("./api.js").Collaborator} Collaborator */
/** @typedef {import("./api.js").SignedIn} SignedIn */
/** @typedef {import("./api.js").TextFile} TextFile */
/** @typedef {import("./api.js").DirectoryEntry} DirectoryEntry */
/** @typedef {import("./api.js").DirectoryPage} DirectoryPage */
/** @typedef {import("./api.js").FileState} FileState */
/** @typedef {import("./api.js").TrashedEntry} TrashedEntry */
/** @typedef {import("./api.js").TrashPage} TrashPage */
/** @typedef {import("./api.js").PlatformOverview} PlatformOverview */
/** @typedef {import("./api.js").NatsServerSeen} NatsServerSeen */
/** @typedef {import("./api.js").RunnerSeen} RunnerSeen */
/** @typedef {import("./api.js").ProjectUse} ProjectUse */
/** @typedef {import("./api.js").HubResults} HubResults */
/** @typedef {import("./api.js").ProjectResults} ProjectResults */
/** @typedef {import("./files.js").Progress} Progress */
/** @typedef {import("./files.js").TransferOptions} TransferOptions */
/** @typedef {import("./files.js").UploadOptions} UploadOptions */
/** @typedef {import("./files.js").NewFile} NewFile */
/** @typedef {import("./files.js").UploadManyOptions} UploadManyOptions */
/** @typedef {import("./watch.js").FolderListener} FolderListener */
/** @typedef {import("./api.js").WatchState} WatchState */
/** @typedef {import("./site.js").Session} Session */
/** @typedef {import("./site.js").SignInOptions} SignInOptions */
/** @typedef {import("./stream.js").Output} Output */
/** @typedef {import("./stream.js").Result} Result */
/** @typedef {import("./stream.js").Position} Position */
/** @typedef {import("./terminal.js").View} View */
/** @typedef {import("./terminal.js").TerminalNews} TerminalNews */
/** @typedef {import("./terminal.js").Viewer} Viewer */
/** @typedef {import("./terminal.js").TerminalResult} TerminalResult */

/**
 * The state of a connection. "signed-out" (the session ended, or another account signed in) and "closed" are final.
 * @typedef {"connecting" | "connected" | "reconnecting" | "signed-out" | "closed"} State
 */

/**
 * Is called when the state of the connection changes, with the reason if one is known.
 * @callback StatusListener
 * @param {State} state
 * @param {string} reason
 * @returns {void}
 */

/**
 * @typedef {object} CallOptions
 * @property {number} [timeout] how long the call may take, in milliseconds; 15,000 unless set
 * @property {boolean} [repeat] whether it does the same twice as once, so that it is repeated after a reconnect; known of
 *   natskit's own methods
 */

/**
 * What to run: `command` in a shell, or `argv` without one.
 * @typedef {object} Command
 * @property {string} [command]
 * @property {string[]} [argv]
 * @property {string} [cwd] the working directory, relative to the project's home
 * @property {Record<string, string>} [env] more environment variables
 * @property {string} [stdin]
 * @property {number} [timeout] in seconds; the command is ended after that
 */

/** The most projects that an account may use (natskit/bus/permissions.py). */
const MOST_PROJECTS = 4_000;
/** How long a call may take, in milliseconds, unless the caller says otherwise. */
const CALL_TIMEOUT = 15_000;
/** The longest pause between two attempts to connect, in milliseconds; half of it is random, against stampedes. */
const LONGEST_PAUSE = 3_000;
/** How long nobody may listen on a subject before a call fails, in milliseconds: an agent may be reconnecting. */
const ABSENT_PATIENCE = 500;
/** How often the session is refreshed, in milliseconds. While the page is open, it does not expire. */
const REFRESH_EVERY = 10 * 60_000;

/** Who answers on a subject, by its first part, and what it means if nobody does. */
const ASKED = /** @type {Record<string, [string, string]>} */ ({
  hub: ["the hub", "no hub is running"],
  docs: ["the documents service", "no keeper is running"],
  projects: ["the project", "is it started?"],
});

/** Errors of a keeper that something is wrong with: another one may do better. */
const SICK = new Set(["unavailable", "internal_error"]);

/** Of how many documents a client remembers the keeper. */
const MOST_KEEPERS = 1000;

/** All other methods of the documents service do the same twice as once. */
const DOCUMENTS_ONCE = new Set(["restore", "delete"]);

/** Says how many bytes of a message are JSON; bytes of a file follow. */
const JSON_HEADER = "Natskit-Json";

/** How many bytes {@link Client.publishMany} puts into one WebSocket message. */
const BLOCK_BYTES = 256 * 1024;
/** How many bytes {@link Client.publishMany} lets wait in the socket. */
const BUFFER_BYTES = 4 * 1024 * 1024;

/**
 * Connect to the platform. Resolves when the client is connected; it reconnects by itself from then on.
 * @param {Session} current from {@link signIn} or {@link session}
 * @param {StatusListener} [onStatus]
 * @returns {Promise<Client>} rejects with a {@link NatskitError} if the session ends before
 */
export async function connect(current, onStatus = () => {}) {
  const client = new Client(current, onStatus);
  await client.open();
  return client;
}

/** A connection to the platform as the signed-in account. Made by {@link connect}. */
export class Client {
  #nats = /** @type {import("@nats-io/nats-core").NatsConnection | null} */ (null);
  #socket = /** @type {WebSocket | undefined} */ (undefined);
  /** The keepers to ask, by the subject of a document. */
  #keepers = /** @type {Map<string, string>} */ (new Map());
  #attempt = 0;
  #refresh = /** @type {ReturnType<typeof setInterval> | undefined} */ (undefined);
  #closed = false;
  /** Why the client closed by itself. */
  #over = /** @type {NatskitError | null} */ (null);
  #onStatus;
  #observers = /** @type {Set<StatusListener>} */ (new Set());
  #returned = /** @type {Set<() => void>} */ (new Set());
  #refused = /** @type {Set<(subject: string) => void>} */ (new Set());

  /**
   * @param {Session} current
   * @param {StatusListener} onStatus
   */
  constructor(current, onStatus) {
    /** The session, as it was when it was last refreshed. */
    this.session = current;
    this.#onStatus = onStatus;
    /**
     * The state of the connection.
     * @type {State}
     */
    this.state = "connecting";
  }

  /**
   * Open the connection. {@link connect} does this.
   * @returns {Promise<void>}
   */
  async open() {
    this.#report("connecting", "");
    const address = new URL(this.session.nats.path, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    const nats = await wsconnect({
      servers: [address.href],
      name: "console",
      // The hub refuses the connection if the cookie is another account's.
      user: this.session.account_id,
      inboxPrefix: this.session.nats.inbox_prefix,
      maxReconnectAttempts: -1,
      waitOnFirstConnect: true,
      // The library gives up after two equal auth errors. This client checks the session before each attempt instead.
      ignoreAuthErrorAbort: true,
      ignoreClusterUpdates: true,
      reconnectDelayHandler: () => {
        if (this.#over) throw this.#over; // nothing else ends the first connect
        return this.#pause();
      },
      // Nothing but unanswered pings shows that a server lost its power or its network.
      pingInterval: 5_000,
      timeout: 8_000,
      wsFactory: async (/** @type {string} */ url) => {
        await this.#beforeConnect();
        this.#socket = new WebSocket(url);
        return { socket: this.#socket, encrypted: url.startsWith("wss:") };
      },
    });
    this.#nats = nats;
    if (this.#over) {
      await nats.close();
      throw this.#over;
    }
    this.#attempt = 0;
    this.#report("connected", "");
    void this.#watch(nats);
    this.#refresh = setInterval(() => void this.#checkSession(), REFRESH_EVERY);
    document.addEventListener("visibilitychange", this.#onVisible);
  }

  /**
   * The NATS connection, for what this module does not do. Throws a {@link NatskitError} before the first connect.
   * @returns {import("@nats-io/nats-core").NatsConnection}
   */
  get nats() {
    if (!this.#nats) throw new NatskitError("unavailable", "not connected yet");
    return this.#nats;
  }

  /**
   * Call a method of the hub.
   * @template {keyof HubResults} M
   * @overload
   * @param {M} method
   * @param {Record<string, unknown>} [params]
   * @param {CallOptions} [options]
   * @returns {Promise<HubResults[M]>} rejects with a {@link NatskitError}
   */
  /**
   * Call a method that the platform added to the hub.
   * @template [T=unknown]
   * @overload
   * @param {string} method
   * @param {Record<string, unknown>} [params]
   * @param {CallOptions} [options]
   * @returns {Promise<T>} rejects with a {@link NatskitError}
   */
  /**
   * @param {string} method
   * @param {Record<string, unknown>} [params]
   * @param {CallOptions} [options]
   * @returns {Promise<unknown>}
   */
  async callHub(method, params = {}, options = {}) {
    if (OVER_HTTP.has(method)) {
      return await askOverHttp(method, params, this.session.account_id).catch((error) => {
        if (isOtherAccount(error)) this.#end(error);
        throw error;
      });
    }
    // Calls with the same key make one project, so that a lost call may be repeated.
    const wanted = method === "create_project" ? { key: crypto.randomUUID(), ...params } : params;
    const ask = () => this.#call(`hub.api.${this.session.account_id}`, method, wanted, options);
    if (!CHANGES_RIGHTS.has(method)) return await ask();
    // The hub closes the connection, and the next one has the new rights. Wait for it: otherwise the caller's next call
    // could be lost with the old connection.
    const { back, undo } = this.#nextReturn(GRANT_PATIENCE);
    try {
      const answer = await ask();
      await back;
      return answer;
    } finally {
      undo();
    }
  }

  /**
   * Call a method of a project.
   * @template {keyof ProjectResults} M
   * @overload
   * @param {string} projectId
   * @param {M} method
   * @param {Record<string, unknown>} [params]
   * @param {CallOptions} [options]
   * @returns {Promise<ProjectResults[M]>} rejects with a {@link NatskitError}
   */
  /**
   * Call a method that the platform or the project added.
   * @template [T=unknown]
   * @overload
   * @param {string} projectId
   * @param {string} method
   * @param {Record<string, unknown>} [params]
   * @param {CallOptions} [options]
   * @returns {Promise<T>} rejects with a {@link NatskitError}
   */
  /**
   * @param {string} projectId
   * @param {string} method
   * @param {Record<string, unknown>} [params]
   * @param {CallOptions} [options]
   * @returns {Promise<unknown>}
   */
  async callProject(projectId, method, params = {}, options = {}) {
    return await this.#call(`projects.${projectId}.api`, method, params, options);
  }

  /**
   * Call a method of a project that takes or answers bytes of a file, such as `read_file`. {@link Client.files} does it
   * for whole files.
   * @param {string} projectId
   * @param {string} method
   * @param {Record<string, unknown>} [params]
   * @param {Uint8Array} [data]
   * @param {CallOptions} [options]
   * @returns {Promise<{result: unknown, data: Uint8Array}>} rejects with a {@link NatskitError}
   */
  async exchange(projectId, method, params = {}, data = undefined, options = {}) {
    return await this.#exchange(`projects.${projectId}.api`, method, params, options, data);
  }

  /**
   * Call a method of the documents service (docs/reference/documents.md). `@natskit/client/document` does it for you.
   * @template [T=unknown]
   * @param {string} projectId
   * @param {string} documentId `-` for what is about the project, or names a path
   * @param {string} method
   * @param {Record<string, unknown>} [params]
   * @param {CallOptions} [options]
   * @returns {Promise<T>} rejects with a {@link NatskitError}
   */
  async callDocuments(projectId, documentId, method, params = {}, options = {}) {
    const subject = `docs.${this.session.account_id}.${projectId}.${documentId}`;
    return (await this.#exchange(subject, method, params, { repeat: !DOCUMENTS_ONCE.has(method), ...options })).result;
  }

  /**
   * The files of a project: upload, read and download them, of any kind and size.
   * @param {string} projectId
   * @returns {ProjectFiles}
   */
  files(projectId) {
    return new ProjectFiles(this, projectId);
  }

  /**
   * Run a command in a project. Iterate over the result to read the output; then await its `done` for the exit code.
   * @param {string} projectId
   * @param {Command} command
   * @returns {StreamReader}
   */
  exec(projectId, command) {
    return new StreamReader(this, `projects.${projectId}.api`, request("exec", { ...command }));
  }

  /**
   * Continue to read a command's output where another reader stopped, such as this page before a reload.
   * @param {string} projectId
   * @param {Position} position the other reader's `position`
   * @returns {StreamReader}
   */
  resume(projectId, position) {
    return new StreamReader(this, `projects.${projectId}.api`, position);
  }

  /**
   * Read what a job prints: a command that goes on without a reader. `callProject(projectId, "job.start", …)` starts one
   * and returns its id. Leaving the loop does not end it.
   * @param {string} projectId
   * @param {string} job
   * @returns {StreamReader}
   */
  job(projectId, job) {
    return new StreamReader(this, `projects.${projectId}.api`, request("job.attach", { job }));
  }

  /**
   * View a terminal of a project. `callProject(projectId, "terminal.create", …)` starts one and returns its name.
   * @param {string} projectId
   * @param {string} terminal its name
   * @param {View} view
   * @returns {TerminalView}
   */
  terminal(projectId, terminal, view) {
    return new TerminalView(this, projectId, terminal, view);
  }

  /**
   * Subscribe to a subject. The subscription survives reconnects.
   * @param {string} subject
   * @param {(data: Uint8Array, subject: string) => void} listener
   * @returns {() => void} ends the subscription
   */
  subscribe(subject, listener) {
    const subscription = this.nats.subscribe(subject, {
      callback: (error, message) => {
        if (!error) apart(() => listener(message.data, message.subject));
      },
    });
    return () => subscription.unsubscribe();
  }

  /**
   * Call `listener` after each reconnect.
   * @param {() => void} listener
   * @returns {() => void} removes the listener
   */
  onReturn(listener) {
    this.#returned.add(listener);
    return () => this.#returned.delete(listener);
  }

  /**
   * Call `listener` when the state of the connection changes.
   * @param {StatusListener} listener
   * @returns {() => void} removes the listener
   */
  onState(listener) {
    this.#observers.add(listener);
    return () => this.#observers.delete(listener);
  }

  /**
   * Call `listener` when the server refuses a publish or a subscription.
   * @param {(subject: string) => void} listener
   * @returns {() => void} removes the listener
   */
  onRefused(listener) {
    this.#refused.add(listener);
    return () => this.#refused.delete(listener);
  }

  /**
   * Measure the round trip to nats-server.
   * @returns {Promise<number>} in milliseconds
   */
  async roundTrip() {
    const started = performance.now();
    await this.nats.flush();
    return performance.now() - started;
  }

  /**
   * Publish the same message many times, and wait until the server has received all of them.
   *
   * The commands are encoded once and sent in blocks. While the socket's buffer is full, the page gets its turn, so
   * memory stays bounded and the page stays responsive.
   * @param {string} subject
   * @param {Uint8Array} payload
   * @param {number} count
   * @param {(sent: number) => void} [progress]
   * @returns {Promise<{count: number, seconds: number}>} rejects with a {@link NatskitError} if the connection breaks
   */
  async publishMany(subject, payload, count, progress = () => {}) {
    this.checkSize(payload);
    await this.nats.flush();
    const socket = /** @type {WebSocket} */ (this.#socket);
    const size = Math.max(1, Math.min(count, Math.floor(BLOCK_BYTES / (subject.length + payload.length + 16))));
    const block = publishCommands(subject, payload, size);
    const started = performance.now();
    for (let sent = 0; sent < count; ) {
      const now = Math.min(size, count - sent);
      if (socket.readyState !== WebSocket.OPEN) {
        throw new NatskitError("unavailable", `the connection was lost after ${sent} of ${count} messages`);
      }
      socket.send(now === size ? block : publishCommands(subject, payload, now));
      sent += now;
      progress(sent);
      while (socket.bufferedAmount > BUFFER_BYTES && socket.readyState === WebSocket.OPEN) await nextTurn();
    }
    await this.nats.flush();
    if (socket !== this.#socket)
      throw new NatskitError("unavailable", "the connection was lost before the server had received all messages");
    return { count, seconds: (performance.now() - started) / 1000 };
  }

  /**
   * End the session, and close the connection.
   * @returns {Promise<void>} rejects with a {@link NatskitError}
   */
  async signOut() {
    const { account_id, session_id } = this.session;
    // If another account has signed in in this browser, the cookie is that account's, and the connection still ours.
    const replaced = await session(account_id).then(() => false, isOtherAccount);
    if (replaced) await this.#call(`hub.api.${account_id}`, "end_session", { session_id }, {});
    await this.close();
    if (!replaced) await signOut(account_id);
  }

  /**
   * Close the connection. The session goes on.
   * @returns {Promise<void>}
   */
  async close() {
    this.#stop();
    await this.#nats?.close();
    this.#report("closed", "");
  }

  /**
   * A new inbox for answers from the subject. A project may only write to the part of an account's inbox that carries
   * the project's id (natskit/bus/permissions.py).
   * @param {string} subject
   * @returns {string}
   */
  inboxFor(subject) {
    const project = /^projects\.([^.]+)\./.exec(subject)?.[1];
    const own = this.session.nats.inbox_prefix;
    return createInbox(project ? `${own}.${project}` : own);
  }

  /**
   * All projects that the account may use. Asks several times if they do not fit into one message.
   * @returns {Promise<Project[]>} rejects with a {@link NatskitError}
   */
  async listProjects() {
    /** @type {Project[]} */
    const found = [];
    for (let limit = MOST_PROJECTS; ; ) {
      try {
        const part = await this.callHub("list_projects", { offset: found.length, limit });
        found.push(...part);
        if (part.length < limit) return found;
      } catch (error) {
        if (!(error instanceof NatskitError && error.kind === "limit") || limit === 1) throw error;
        limit = Math.ceil(limit / 4); // they do not fit into one message
      }
    }
  }

  /**
   * Throws a {@link NatskitError} if nats-server does not accept a message of this size: it would close the connection.
   * @param {string | Uint8Array} body
   * @returns {void}
   */
  checkSize(body) {
    const most = this.nats.info?.max_payload ?? Infinity;
    const size = typeof body === "string" ? new TextEncoder().encode(body).length : body.length;
    if (size <= most) return;
    throw new NatskitError(
      "limit",
      `the message has ${size} bytes, and nats-server takes at most ${most} (nats_max_payload): send it in parts`,
      { limit: most },
    );
  }

  /**
   * @param {string} subject
   * @param {string} method
   * @param {Record<string, unknown>} params
   * @param {CallOptions} options
   * @returns {Promise<any>}
   */
  async #call(subject, method, params, options) {
    return (await this.#exchange(subject, method, params, options)).result;
  }

  /**
   * @param {string} subject
   * @param {string} method
   * @param {Record<string, unknown>} params
   * @param {CallOptions} options
   * @param {Uint8Array} [data] follows the request's JSON
   * @returns {Promise<{result: any, data: Uint8Array}>}
   */
  async #exchange(subject, method, params, options, data) {
    const body = withData(request(method, params), data);
    const timeout = options.timeout ?? CALL_TIMEOUT;
    /** @returns {Promise<any>} */
    const ask = async () => {
      this.checkSize(body.payload);
      const answered = subject.startsWith("projects.") ? { noMux: true, reply: this.inboxFor(subject) } : {};
      const options = { timeout, ...answered, ...(body.headers ? { headers: body.headers } : {}) };
      const keeper = this.#keepers.get(subject);
      const to = keeper ? `${subject}.${keeper}` : subject;
      return this.nats.request(to, body.payload, options).catch((error) => {
        // With an inbox of its own (noMux), the library wraps the server's error into another one.
        const cause = error.name === "RequestError" && error.cause instanceof Error ? error.cause : error;
        if (keeper) {
          this.#keepers.delete(subject);
          if (isAbsent(cause)) return ask();
        }
        throw cause;
      });
    };
    const deadline = Date.now() + timeout;
    /** @returns {Promise<any>} */
    const asked = async () => {
      const answer = await ask().catch((error) => this.#askAgain(error, ask, deadline));
      try {
        const json = jsonLength(answer);
        const result = readResponse(answer.data.subarray(0, json));
        if (subject.startsWith("docs.")) this.#noteKeeper(subject, result);
        return { result, data: answer.data.subarray(json) };
      } catch (error) {
        if (error instanceof NatskitError && SICK.has(error.kind)) this.#keepers.delete(subject);
        const wait = secondsToWait(error) * 1000;
        if (!wait || Date.now() + wait > deadline) throw error;
        await pause(wait);
        return asked();
      }
    };
    const lost = { answer: false };
    try {
      return await ((options.repeat ?? IDEMPOTENT.has(method)) ? this.#untilAnswered(asked, lost) : asked());
    } catch (error) {
      if (lost.answer && method === "delete_project" && error instanceof NatskitError && error.kind === "not_found") {
        // The lost answer said that it is deleted.
        return { result: { project_id: params.project_id }, data: new Uint8Array() };
      }
      throw error instanceof NatskitError ? error : explain(error, method, subject, timeout);
    }
  }

  /**
   * A keeper names the one to ask about this document from now on (natskit/bus/affinity.py).
   * @param {string} subject
   * @param {any} answer
   */
  #noteKeeper(subject, answer) {
    if (typeof answer?.keeper !== "string") return;
    this.#keepers.delete(subject);
    this.#keepers.set(subject, answer.keeper);
    if (this.#keepers.size > MOST_KEEPERS) this.#keepers.delete(this.#keepers.keys().next().value ?? "");
  }

  /**
   * Ask again after each reconnect until there is an answer: a request or an answer may be lost with the old connection.
   * @template T
   * @param {() => Promise<T>} ask
   * @param {{answer: boolean}} lost says whether an answer may have been lost
   * @returns {Promise<T>}
   */
  #untilAnswered(ask, lost) {
    return new Promise((resolve, reject) => {
      let asked = 0;
      const again = () => {
        const turn = ++asked;
        lost.answer = turn > 1;
        ask().then(finish(resolve), (error) => turn === asked && finish(reject)(error));
      };
      const forget = this.onReturn(again);
      /** @template V @param {(value: V) => void} settle @returns {(value: V) => void} */
      const finish = (settle) => (value) => {
        forget();
        settle(value);
      };
      again();
    });
  }

  /**
   * Ask again if nobody got the request. A right just granted comes with the next connection, in a moment; and a project
   * that does not listen may be reconnecting with a new key.
   * @template T
   * @param {unknown} error
   * @param {() => Promise<T>} ask
   * @param {number} deadline
   * @returns {Promise<T>}
   */
  async #askAgain(error, ask, deadline) {
    if (isAbsent(error) && Date.now() + ABSENT_PATIENCE < deadline) {
      await pause(ABSENT_PATIENCE);
      return await ask();
    }
    if (!(error instanceof Error) || error.name !== "PermissionViolationError") throw error;
    if (!(await this.#nextReturn(GRANT_PATIENCE).back)) throw error;
    return await ask();
  }

  /**
   * Whether the client reconnects within this time.
   * @param {number} patience in milliseconds
   */
  #nextReturn(patience) {
    let undo = () => {};
    /** @type {Promise<boolean>} */
    const back = new Promise((resolve) => {
      const forget = this.onReturn(() => finish(true));
      const timer = setTimeout(() => finish(false), patience);
      const finish = (/** @type {boolean} */ answer) => {
        clearTimeout(timer);
        forget();
        resolve(answer);
      };
      undo = () => finish(false);
    });
    return { back, undo };
  }

  async #beforeConnect() {
    if (this.#attempt++ > 0) await this.#checkSession();
  }

  #onVisible = () => {
    if (document.visibilityState === "visible") void this.#checkSession();
  };

  /** Refresh the session's cookie. If the session ended or is another account's, close. */
  async #checkSession() {
    try {
      const current = await session(this.session.account_id);
      if (current) this.session = current;
      else this.#end(new NatskitError("signed_out", "the session has ended"));
    } catch (error) {
      // After any other error, such as a hub that restarts, nats-server decides about the connection.
      if (isOtherAccount(error)) this.#end(error);
    }
  }

  /** @param {NatskitError} why */
  #end(why) {
    if (this.#closed) return;
    this.#over = why;
    this.#stop();
    // Not at once: while the socket is being made, close() of the library fails, since it has no socket yet.
    setTimeout(() => void this.#nats?.close());
    this.#report("signed-out", why.message);
  }

  #stop() {
    this.#closed = true;
    clearInterval(this.#refresh);
    document.removeEventListener("visibilitychange", this.#onVisible);
  }

  /** How long to wait before the next attempt, in milliseconds: almost nothing at first, then more and more. */
  #pause() {
    const longest = Math.min(LONGEST_PAUSE, 10 * 2 ** Math.min(this.#attempt, 12));
    return longest * (0.5 + Math.random() / 2);
  }

  /** @param {import("@nats-io/nats-core").NatsConnection} nats */
  async #watch(nats) {
    let reason = "";
    for await (const status of nats.status()) {
      if (status.type === "error") {
        reason = status.error.message;
        this.#reportRefusal(status.error);
      } else if (status.type === "disconnect" || status.type === "staleConnection") {
        if (this.state === "connected") this.#attempt = Math.max(this.#attempt, 1);
        this.#report("reconnecting", reason);
      } else if (status.type === "reconnect") {
        this.#attempt = 1;
        reason = "";
        this.#report("connected", "");
        for (const listener of this.#returned) listener();
      }
    }
    if (!this.#closed) this.#report("closed", reason);
  }

  /** @param {Error} error */
  #reportRefusal(error) {
    if (error.name !== "PermissionViolationError" || !("subject" in error)) return;
    for (const listener of this.#refused) listener(String(error.subject));
  }

  /**
   * @param {State} state
   * @param {string} reason
   */
  #report(state, reason) {
    if (this.state === "signed-out") return;
    this.state = state;
    this.#onStatus(state, reason);
    for (const listener of this.#observers) listener(state, reason);
  }
}

/**
 * The PUB command of the NATS protocol, repeated.
 * @param {string} subject
 * @param {Uint8Array} payload
 * @param {number} count
 * @returns {Uint8Array<ArrayBuffer>}
 */
function publishCommands(subject, payload, count) {
  if (/[\s*>]/.test(subject))
    throw new NatskitError("invalid_params", `cannot publish to ${subject}: a subject has no spaces and no wildcards`);
  const head = new TextEncoder().encode(`PUB ${subject} ${payload.length}\r\n`);
  const command = new Uint8Array(head.length + payload.length + 2);
  command.set(head);
  command.set(payload, head.length);
  command.set([13, 10], head.length + payload.length);
  const block = new Uint8Array(command.length * count);
  for (let n = 0; n < count; n++) block.set(command, n * command.length);
  return block;
}

/** Let the page handle its events. Unlike setTimeout, this does not wait 4 ms when it is nested. */
function nextTurn() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve(undefined);
    };
    port2.postMessage(undefined);
  });
}

/**
 * A message with data after its JSON. The header says how long the JSON is (natskit/bus/payload.py).
 * @param {string} json
 * @param {Uint8Array} [data]
 */
function withData(json, data) {
  const body = new TextEncoder().encode(json);
  if (!data) return { payload: body };
  const payload = new Uint8Array(body.length + data.length);
  payload.set(body);
  payload.set(data, body.length);
  const said = headers();
  said.set(JSON_HEADER, String(body.length));
  return { payload, headers: said };
}

/**
 * How many bytes of a message are its JSON.
 * @param {import("@nats-io/nats-core").Msg} message
 * @returns {number}
 */
function jsonLength(message) {
  const said = message.headers?.get(JSON_HEADER) ?? "";
  return /^\d{1,9}$/.test(said) ? Number(said) : message.data.length;
}

/**
 * How long a busy hub asks the caller to wait, in seconds; 0 for any other error.
 * @param {unknown} error
 * @returns {number}
 */
function secondsToWait(error) {
  return (error instanceof NatskitError && error.kind === "unavailable" && Number(error.data.retry_after)) || 0;
}

/**
 * Whether nobody listens on the subject.
 * @param {unknown} error
 * @returns {boolean}
 */
function isAbsent(error) {
  return error instanceof Error && (error.name === "NoRespondersError" || error.message.includes("no responders"));
}

/**
 * @param {unknown} error
 * @param {string} method
 * @param {string} subject
 * @param {number} timeout in milliseconds
 */
function explain(error, method, subject, timeout) {
  const name = error instanceof Error ? error.name : "";
  const [who, why] = ASKED[subject.split(".", 1)[0]] ?? ASKED.projects;
  if (isAbsent(error)) {
    return new NatskitError("unavailable", `${who} does not answer ${method}: ${why}`);
  }
  if (name === "TimeoutError") {
    return new NatskitError("timeout", `${who} did not answer ${method} within ${timeout / 1000} s`);
  }
  if (name === "PermissionViolationError") return new NatskitError("forbidden", `you may not use ${subject}`);
  return new NatskitError("unavailable", `${method}: ${error instanceof Error ? error.message : error}`);
}
