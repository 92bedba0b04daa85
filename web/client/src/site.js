/** What goes over HTTP: sign in and out, the current session, and the methods that are about the session. */

import { NatskitError, result } from "./rpc.js";

/** How long to wait before a request that got lost is sent again, in milliseconds. */
const NETWORK_PAUSE = 300;
/** How long a GET may take, body included, in milliseconds. Browsers wait for minutes, and show a blank page. */
const READ_TIMEOUT = 5_000;
/** How often {@link signIn} tries again when the hubs are busy with other sign-ins. */
const SIGN_IN_RETRIES = 5;

/**
 * A signed-in browser. Its credentials are in a cookie that scripts cannot read.
 * @typedef {object} Session
 * @property {string} account_id
 * @property {string} session_id
 * @property {string} email
 * @property {boolean} must_change_password whether the account has a one-time password: until `change_password`, the
 *   hub refuses everything else
 * @property {string} expires_at ISO 8601
 * @property {{path: string, inbox_prefix: string}} nats where to connect, and the prefix of the account's inboxes
 */

/**
 * The ways to sign in at a site.
 * @typedef {object} SignInOptions
 * @property {{label: string, path: string} | null} oidc an OpenID provider: link to `path` to sign in there
 * @property {string} url the address of the site; signing in works at this address only
 */

/**
 * Sign in with e-mail and password. The site sets the session's cookie. While the hubs are busy with other sign-ins,
 * this waits as long as they ask, up to five times.
 * @param {string} email
 * @param {string} password
 * @returns {Promise<Session>} rejects with a {@link NatskitError}, `wrong_credentials` for a wrong e-mail or password
 */
export async function signIn(email, password) {
  // The same in each request of this sign-in: if an answer gets lost, the hub finds the session that it has opened.
  const attempt = crypto.randomUUID();
  for (let retries = SIGN_IN_RETRIES; ; retries -= 1) {
    try {
      return await http("POST", "/api/sign-in", { body: { email, password, attempt } });
    } catch (error) {
      const seconds = error instanceof NatskitError ? Number(error.data.retryAfter) : Number.NaN;
      if (!seconds || retries === 0) throw error;
      await pause(seconds * 1000);
    }
  }
}

/**
 * End the session. The server closes all its connections.
 * @param {string} [accountId] end the session only if it is this account's
 * @returns {Promise<void>} rejects with a {@link NatskitError}, `other_account` if the session is another account's
 */
export async function signOut(accountId) {
  await http("POST", "/api/sign-out", { accountId });
}

/**
 * The current session. Refreshes its cookie.
 * @param {string} [accountId] return the session only if it is this account's
 * @returns {Promise<Session | null>} `null` if nobody is signed in; rejects with a {@link NatskitError},
 *   `other_account` if the session is another account's
 */
export async function session(accountId) {
  try {
    return await http("GET", "/api/session", { accountId });
  } catch (error) {
    if (error instanceof NatskitError && error.data.status === 401) return null;
    throw error;
  }
}

/**
 * The ways to sign in at this site, besides e-mail and password.
 * @returns {Promise<SignInOptions>} rejects with a {@link NatskitError}
 */
export async function signInOptions() {
  return await http("GET", "/api/doors");
}

/**
 * Call a method of the hub over HTTP as the signed-in account. No connection is needed.
 * @template {keyof import("./api.js").HubResults} M
 * @overload
 * @param {M} method
 * @param {Record<string, unknown>} [params]
 * @param {string} [accountId]
 * @returns {Promise<import("./api.js").HubResults[M]>}
 */
/**
 * Call a method that the platform added to the hub.
 * @template [T=unknown]
 * @overload
 * @param {string} method
 * @param {Record<string, unknown>} [params]
 * @param {string} [accountId]
 * @returns {Promise<T>}
 */
/**
 * @param {string} method
 * @param {Record<string, unknown>} [params]
 * @param {string} [accountId] call it only if the session is this account's
 * @returns {Promise<unknown>} rejects with a {@link NatskitError}, `other_account` if the session is another account's
 */
export async function askOverHttp(method, params = {}, accountId = undefined) {
  // All of these methods may be repeated, except this one: the second time, the current password is wrong.
  const repeat = method !== "change_password";
  return result(await http("POST", "/api/rpc", { body: { jsonrpc: "2.0", id: 1, method, params }, repeat, accountId }));
}

/**
 * Whether another account signed in in this browser.
 * @param {unknown} error
 * @returns {error is NatskitError}
 */
export function isOtherAccount(error) {
  return error instanceof NatskitError && error.kind === "other_account";
}

/**
 * @param {number} milliseconds
 * @returns {Promise<void>}
 */
export function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/**
 * @param {string} method
 * @param {string} path
 * @param {{body?: unknown, repeat?: boolean, accountId?: string | undefined}} [options] `repeat`: send the request again
 *   if it got lost; `accountId`: whose session the cookie must be
 * @returns {Promise<any>}
 */
async function http(method, path, { body, repeat = true, accountId } = {}) {
  const ask = () =>
    fetch(path, {
      method,
      credentials: "same-origin",
      cache: "no-store",
      headers: {
        ...(accountId === undefined ? {} : { "natskit-account": accountId }),
        ...(body === undefined ? {} : { "content-type": "application/json" }),
      },
      ...(method === "GET" ? { signal: AbortSignal.timeout(READ_TIMEOUT) } : {}),
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
  // Browsers abort all requests when the machine joins or leaves a network, even one that the requests do not use.
  const answer = await ask()
    .catch((error) => (repeat ? pause(NETWORK_PAUSE).then(ask) : Promise.reject(error)))
    .catch(() => {
      throw new NatskitError("unavailable", "the site cannot be reached: check the network");
    });
  if (answer.status === 204) return undefined;
  const content = await answer.json().catch(() => undefined);
  if (answer.ok && content !== undefined) return content;
  throw refusal(answer, content);
}

/**
 * @param {Response} answer
 * @param {any} content of its body, if it was JSON
 */
function refusal(answer, content) {
  const { code = "unavailable", message } = content?.error ?? {};
  const fallback =
    answer.status === 429 ? "too many attempts: wait a moment, then try again" : `the site answered ${answer.status}`;
  const retryAfter = Number(answer.headers.get("retry-after")) || undefined;
  return new NatskitError(code, message ?? fallback, { status: answer.status, retryAfter });
}
