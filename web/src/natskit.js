/**
 * natskit in the browser: sign in, connect, call the hub, call a project, follow a command.
 *
 *     import { signIn, connect } from "./natskit.js";
 *     const client = await connect(await signIn("me@example.org", password));
 *     const projects = await client.callHub("list_projects");
 *     const run = client.exec(projects[0].project_id, { command: "make test" });
 *     for await (const { stream, data } of run) show(stream, data);
 *     const { exit_code } = await run.done;
 *
 * A client comes back by itself after the restart of a server or a hub, after a change of its rights (the hub cuts the
 * connection, and the next one has the new rights) and after the session was refreshed; subscriptions and running
 * commands go on. The credentials are in a cookie that scripts cannot read.
 */

import { createInbox, wsconnect } from "@nats-io/nats-core";
import { StreamReader } from "./stream.js";

/** How long a call may take, in milliseconds, unless the caller says otherwise. */
const CALL_TIMEOUT = 15_000;
/** The longest pause between two attempts to connect, in milliseconds; half of it is random, against stampedes. */
const LONGEST_PAUSE = 3_000;
/** Methods of the hub that always change what the caller may do. */
const CUTTING = new Set(["create_project", "delete_project"]);
const NETWORK_PAUSE = 300;
/** Milliseconds that reading over HTTP may take, body included; a browser alone waits for minutes, before a blank page. */
const READING = 5_000;
/** Methods of the hub and of projects that do the same thing when they are done twice. */
const REPEATABLE = new Set([
  "ping",
  "whoami",
  "list_projects",
  "create_project",
  "delete_project",
  "start_project",
  "stop_project",
  "rename_project",
  "share_project",
  "unshare_project",
  "read_text_file_from_project",
  "write_text_file_to_project",
  "read_text_file",
  "write_text_file",
  "list_directory",
]);
/** Methods of the hub that are about the session, which it knows over HTTP alone: the cookie says which one it is. */
const OVER_HTTP = new Set(["list_sessions", "end_session", "end_all_sessions", "change_password"]);
/** How long to wait for the connection that brings a right just granted, in milliseconds. */
export const GRANT_PATIENCE = 1_500;
/** How long who serves a subject may be away, such as an agent that comes back with a new key, in milliseconds. */
const ABSENT_PATIENCE = 500;
/** The session is refreshed this often, in milliseconds, so that it slides while the page is open. */
const REFRESH_EVERY = 10 * 60_000;

/** Bytes of one WebSocket message of {@link Client.publishMany}, and how many bytes may wait in the socket. */
const BLOCK_BYTES = 256 * 1024;
const BUFFER_BYTES = 4 * 1024 * 1024;

/**
 * @typedef {object} Session
 * @property {string} account_id
 * @property {string} email
 * @property {boolean} must_change_password
 * @property {string} expires_at
 * @property {{path: string, inbox_prefix: string}} nats
 */

/** @typedef {"connecting" | "connected" | "reconnecting" | "signed-out" | "closed"} State */

/** An answer that is an error: `kind` is one of not_found, forbidden, conflict, wrong_credentials,
 * must_change_password (with a one-time password nothing else can be asked for), … */
export class NatskitError extends Error {
  /** @param {string} kind @param {string} message @param {Record<string, unknown>} [data] */
  constructor(kind, message, data = {}) {
    super(message);
    this.name = "NatskitError";
    this.kind = kind;
    this.data = data;
  }
}

/**
 * Sign in; the session's cookie is set for this site. When a whole class signs in at once, the hubs say whose turn is
 * when, and this waits for it, up to five times.
 * @param {string} email @param {string} password
 * @returns {Promise<Session>} rejects with a {@link NatskitError}
 */
export async function signIn(email, password) {
  for (let turns = 5; ; turns -= 1) {
    try {
      return await http("POST", "/api/sign-in", { email, password });
    } catch (error) {
      const seconds = error instanceof NatskitError ? Number(error.data.retryAfter) : NaN;
      if (!seconds || turns === 0) throw error;
      await pause(seconds * 1000);
    }
  }
}

/** End the session on the server; every connection it has is cut. @returns {Promise<void>} */
export async function signOut() {
  await http("POST", "/api/sign-out");
}

/** The current session, its cookie refreshed; `null` if nobody is signed in. @returns {Promise<Session | null>} */
export async function session() {
  try {
    return await http("GET", "/api/session");
  } catch (error) {
    if (error instanceof NatskitError && error.data.status === 401) return null;
    throw error;
  }
}

/**
 * How one can sign in besides by e-mail and password: at an OpenID provider, by going to `path`.
 * @returns {Promise<{oidc: {label: string, path: string} | null}>}
 */
export async function doors() {
  return await http("GET", "/api/doors");
}

/**
 * Call a method of the hub over HTTP, as the session of the cookie; no connection is needed.
 * @param {string} method @param {Record<string, unknown>} [params]
 * @returns {Promise<any>} rejects with a {@link NatskitError}
 */
export async function askOverHttp(method, params = {}) {
  // Done twice, only a changed password would be wrong the second time.
  const again = method !== "change_password";
  return result(await http("POST", "/api/rpc", { jsonrpc: "2.0", id: 1, method, params }, again));
}

/**
 * Connect. Resolves when the first connection stands; afterwards the client looks after it by itself.
 * @param {Session} current @param {(state: State, reason: string) => void} [onStatus]
 * @returns {Promise<Client>}
 */
export async function connect(current, onStatus = () => {}) {
  const client = new Client(current, onStatus);
  await client.open();
  return client;
}

/** A connection to the platform as the signed-in account. */
export class Client {
  #nats = /** @type {import("@nats-io/nats-core").NatsConnection | null} */ (null);
  #socket = /** @type {WebSocket | undefined} */ (undefined);
  #attempt = 0;
  #refresh = /** @type {ReturnType<typeof setInterval> | undefined} */ (undefined);
  #closed = false;
  #onStatus;
  #returned = /** @type {Set<() => void>} */ (new Set());
  #refused = /** @type {Set<(subject: string) => void>} */ (new Set());

  /** @param {Session} current @param {(state: State, reason: string) => void} onStatus */
  constructor(current, onStatus) {
    this.session = current;
    this.#onStatus = onStatus;
    /** @type {State} */
    this.state = "connecting";
  }

  /** Open the connection; called by {@link connect}. */
  async open() {
    this.#report("connecting", "");
    const address = new URL(this.session.nats.path, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.#nats = await wsconnect({
      servers: [address.href],
      name: "console",
      inboxPrefix: this.session.nats.inbox_prefix,
      maxReconnectAttempts: -1,
      waitOnFirstConnect: true,
      // The library gives up after the same auth error twice; here the session is looked at before each attempt.
      ignoreAuthErrorAbort: true,
      ignoreClusterUpdates: true,
      reconnectDelayHandler: () => this.#pause(),
      // A server that lost its power or its network is noticed after two unanswered pings, and in no other way.
      pingInterval: 5_000,
      timeout: 8_000,
      wsFactory: async (/** @type {string} */ url) => {
        await this.#beforeConnect();
        this.#socket = new WebSocket(url);
        return { socket: this.#socket, encrypted: url.startsWith("wss:") };
      },
    });
    this.#attempt = 0;
    this.#report("connected", "");
    void this.#watch(this.#nats);
    this.#refresh = setInterval(() => void this.#refreshSession(), REFRESH_EVERY);
  }

  /** The NATS connection itself, for whoever wants more than this module gives. */
  get nats() {
    if (!this.#nats) throw new NatskitError("unavailable", "not connected yet");
    return this.#nats;
  }

  /**
   * Call a method of the hub.
   * @param {string} method @param {Record<string, unknown>} [params] @param {{timeout?: number}} [options]
   * @returns {Promise<any>} rejects with a {@link NatskitError}
   */
  async callHub(method, params = {}, options = {}) {
    if (OVER_HTTP.has(method)) return await askOverHttp(method, params);
    // With the same key it is the same project, however often the hub is asked.
    const wanted = method === "create_project" ? { key: crypto.randomUUID(), ...params } : params;
    const ask = () => this.#call(`hub.api.${this.session.account_id}`, method, wanted, options);
    if (!CUTTING.has(method)) return await ask();
    // The rights to a new project come with a new connection, which the hub brings about: what is called next must not
    // be on its way when the old one is cut.
    const { back, undo } = this.#nextReturn(GRANT_PATIENCE);
    try {
      const result = await ask();
      await back;
      return result;
    } finally {
      undo();
    }
  }

  /**
   * Call a method of a project's agent.
   * @param {string} projectId @param {string} method @param {Record<string, unknown>} [params]
   * @param {{timeout?: number}} [options] @returns {Promise<any>} rejects with a {@link NatskitError}
   */
  async callProject(projectId, method, params = {}, options = {}) {
    return await this.#call(`projects.${projectId}.api`, method, params, options);
  }

  /**
   * Run a command in a project: iterate over the result for `{stream, data}`, await `.done` for the exit code.
   * @param {string} projectId
   * @param {{command?: string, argv?: string[], cwd?: string, env?: Record<string, string>, stdin?: string,
   *   timeout?: number}} params
   */
  exec(projectId, params) {
    return new StreamReader(this, `projects.${projectId}.api`, request("exec", params));
  }

  /**
   * Subscribe; survives reconnects. @param {string} subject @param {(data: Uint8Array, subject: string) => void} listener
   * @returns {() => void} ends the subscription
   */
  subscribe(subject, listener) {
    const subscription = this.nats.subscribe(subject, {
      callback: (error, message) => {
        if (!error) listener(message.data, message.subject);
      },
    });
    return () => subscription.unsubscribe();
  }

  /** Call `listener` whenever the connection is back. @param {() => void} listener @returns {() => void} undo */
  onReturn(listener) {
    this.#returned.add(listener);
    return () => this.#returned.delete(listener);
  }

  /** Call `listener` when the server refuses a publish. @param {(subject: string) => void} listener @returns {() => void} undo */
  onRefused(listener) {
    this.#refused.add(listener);
    return () => this.#refused.delete(listener);
  }

  /** The round trip to nats-server in milliseconds. @returns {Promise<number>} */
  async roundTrip() {
    const started = performance.now();
    await this.nats.flush();
    return performance.now() - started;
  }

  /**
   * Publish the same message many times, and wait until the server has taken them all.
   *
   * The commands are encoded once and sent in blocks, so that a million messages cost the page next to nothing; it
   * yields to the page whenever the socket's buffer is full, so memory stays bounded.
   * @param {string} subject @param {Uint8Array} payload @param {number} count
   * @param {(sent: number) => void} [progress]
   * @returns {Promise<{count: number, seconds: number}>} rejects with a {@link NatskitError} if the connection breaks
   */
  async publishMany(subject, payload, count, progress = () => {}) {
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
    if (socket !== this.#socket) throw new NatskitError("unavailable", "the connection was lost on the way");
    return { count, seconds: (performance.now() - started) / 1000 };
  }

  /** Close the connection for good. @returns {Promise<void>} */
  async close() {
    this.#closed = true;
    clearInterval(this.#refresh);
    await this.#nats?.close();
    this.#report("closed", "");
  }

  /**
   * A new inbox in which whoever serves the subject may answer: a project may only where its id says so
   * (natskit/permissions.py). @param {string} subject @returns {string}
   */
  inboxFor(subject) {
    const project = /^projects\.([^.]+)\./.exec(subject)?.[1];
    const own = this.session.nats.inbox_prefix;
    return createInbox(project ? `${own}.${project}` : own);
  }

  /** @param {string} subject @param {string} method @param {Record<string, unknown>} params @param {{timeout?: number}} options */
  async #call(subject, method, params, options) {
    const timeout = options.timeout ?? CALL_TIMEOUT;
    const ask = () => {
      const answered = subject.startsWith("projects.") ? { noMux: true, reply: this.inboxFor(subject) } : {};
      const options = { timeout, ...answered };
      // Without the shared inbox the library wraps what the server said into an error of its own.
      return this.nats.request(subject, request(method, params), options).catch((error) => {
        throw error.name === "RequestError" && error.cause instanceof Error ? error.cause : error;
      });
    };
    const deadline = Date.now() + timeout;
    /** @returns {Promise<any>} */
    const asked = async () => {
      const answer = await ask().catch((error) => this.#askAgain(error, ask, deadline));
      try {
        return readResponse(answer.data);
      } catch (error) {
        const wait = secondsToWait(error) * 1000;
        if (!wait || Date.now() + wait > deadline) throw error;
        await pause(wait);
        return asked();
      }
    };
    const lost = { answer: false };
    try {
      return await (REPEATABLE.has(method) ? this.#untilAnswered(asked, lost) : asked());
    } catch (error) {
      if (lost.answer && method === "delete_project" && error instanceof NatskitError && error.kind === "not_found") {
        return { project_id: params.project_id }; // the answer to this was the one that was lost
      }
      throw error instanceof NatskitError ? error : explain(error, method, subject, timeout);
    }
  }

  /**
   * Ask again whenever the connection is back before the answer is here: what was on its way was lost with the old one.
   * @template T @param {() => Promise<T>} ask @param {{answer: boolean}} lost @returns {Promise<T>}
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
   * What nobody has taken was never done, so it may be asked again: a right that was just granted comes with the next
   * connection, which is moments away, and who serves the subject may be coming back with a new key.
   * @template T @param {unknown} error @param {() => Promise<T>} ask @param {number} deadline @returns {Promise<T>}
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

  /** Whether the connection comes back within so many milliseconds. @param {number} patience */
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
    if (this.#attempt++ === 0) return;
    let current;
    try {
      current = await session();
    } catch {
      return; // the hubs may be restarting as well: the server decides
    }
    if (current === null) {
      this.#closed = true;
      clearInterval(this.#refresh);
      // Not thrown, and closed only when the library has the socket, into which it looks without asking if it is there.
      setTimeout(() => void this.#nats?.close());
      this.#report("signed-out", "the session has ended");
      return;
    }
    this.session = current;
  }

  async #refreshSession() {
    const current = await session().catch(() => undefined);
    if (current) this.session = current;
  }

  /** Nearly at once after a grant, then slower and slower. */
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
        const { error } = status;
        if (error.name === "PermissionViolationError" && "subject" in error) {
          for (const listener of this.#refused) listener(String(error.subject));
        }
      }
      else if (status.type === "disconnect" || status.type === "staleConnection") {
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

  /** @param {State} state @param {string} reason */
  #report(state, reason) {
    if (this.state === "signed-out") return;
    this.state = state;
    this.#onStatus(state, reason);
  }
}

/** @param {string} method @param {string} path @param {unknown} [body] @param {boolean} [again] whether it may be
 * asked for once more, when it is not known what became of it @returns {Promise<any>} */
async function http(method, path, body, again = true) {
  const ask = () =>
    fetch(path, {
      method,
      credentials: "same-origin",
      cache: "no-store",
      ...(method === "GET" ? { signal: AbortSignal.timeout(READING) } : {}),
      ...(body === undefined
        ? {}
        : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
    });
  // Once more: browsers give up what is on its way when the machine gets another network, or loses one it did not use.
  const answer = await ask()
    .catch((error) => (again ? pause(NETWORK_PAUSE).then(ask) : Promise.reject(error)))
    .catch(() => {
      throw new NatskitError("unavailable", "the site cannot be reached: is the network up?");
    });
  if (answer.status === 204) return undefined;
  const content = await answer.json().catch(() => undefined);
  if (answer.ok && content !== undefined) return content;
  const { code = "unavailable", message } = content?.error ?? {};
  const fallback =
    answer.status === 429 ? "too many attempts: wait a moment, then try again" : `the site answered ${answer.status}`;
  const retryAfter = Number(answer.headers.get("retry-after")) || undefined;
  throw new NatskitError(code, message ?? fallback, { status: answer.status, retryAfter });
}

/**
 * The NATS protocol's PUB command, `count` times over. @param {string} subject @param {Uint8Array} payload
 * @param {number} count @returns {Uint8Array<ArrayBuffer>}
 */
function publishCommands(subject, payload, count) {
  if (/[\s*>]/.test(subject)) throw new NatskitError("invalid_params", `${subject} is no subject to publish to`);
  const head = new TextEncoder().encode(`PUB ${subject} ${payload.length}\r\n`);
  const command = new Uint8Array(head.length + payload.length + 2);
  command.set(head);
  command.set(payload, head.length);
  command.set([13, 10], head.length + payload.length);
  const block = new Uint8Array(command.length * count);
  for (let n = 0; n < count; n++) block.set(command, n * command.length);
  return block;
}

/** @param {number} milliseconds */
function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Let the page do what waits; unlike setTimeout, without the pause of 4 ms after a few turns. */
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

/** @param {string} method @param {Record<string, unknown>} params */
function request(method, params) {
  return JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
}

/** The result of a JSON-RPC response. @param {Uint8Array} data @returns {any} throws a {@link NatskitError} */
export function readResponse(data) {
  let response;
  try {
    response = JSON.parse(new TextDecoder().decode(data));
  } catch {
    throw new NatskitError("internal_error", "the answer is not JSON");
  }
  return result(response);
}

/**
 * When to come back, if a hub did not take a request because it is asked too much; 0 for any other error.
 * @param {unknown} error @returns {number}
 */
function secondsToWait(error) {
  return (error instanceof NatskitError && error.kind === "unavailable" && Number(error.data.retry_after)) || 0;
}

/** @param {any} response @returns {any} throws a {@link NatskitError} */
function result(response) {
  if (response?.error) {
    const { kind = "internal_error", ...data } = response.error.data ?? {};
    throw new NatskitError(kind, response.error.message, data);
  }
  return response?.result;
}

/** Whether nobody listens on the subject that was asked. @param {unknown} error @returns {boolean} */
function isAbsent(error) {
  return error instanceof Error && (error.name === "NoRespondersError" || error.message.includes("no responders"));
}

/** @param {unknown} error @param {string} method @param {string} subject @param {number} timeout */
function explain(error, method, subject, timeout) {
  const name = error instanceof Error ? error.name : "";
  const who = subject.startsWith("hub.") ? "the hub" : "the project";
  if (isAbsent(error)) {
    const why = who === "the hub" ? "no hub is running" : "is it started?";
    return new NatskitError("unavailable", `${who} does not answer ${method}: ${why}`);
  }
  if (name === "TimeoutError") {
    return new NatskitError("timeout", `${who} did not answer ${method} within ${timeout / 1000} s`);
  }
  if (name === "PermissionViolationError") return new NatskitError("forbidden", `you may not use ${subject}`);
  return new NatskitError("unavailable", `${method}: ${error instanceof Error ? error.message : error}`);
}
