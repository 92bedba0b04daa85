/** Errors, and the bodies of JSON-RPC 2.0 requests and responses (natskit/rpc.py is the other side). */

/** How long a call waits for the connection that carries a right just granted, in milliseconds. */
export const GRANT_PATIENCE = 1_500;

/**
 * Every error of this module, and every error that the platform answers with.
 *
 * `kind` says what went wrong: `not_found`, `forbidden`, `conflict`, `invalid_params`, `method_not_found`, `limit`,
 * `unavailable`, `timeout`, `wrong_credentials`, `must_change_password` (the session has a one-time password; change it
 * first), `other_account` (another account signed in in this browser), `signed_out`, `internal_error`, or the code of an
 * HTTP answer. `message` is for people. `data` holds details, which depend on the kind.
 */
export class NatskitError extends Error {
  /**
   * @param {string} kind
   * @param {string} message
   * @param {Record<string, unknown>} [data]
   */
  constructor(kind, message, data = {}) {
    super(message);
    this.name = "NatskitError";
    /** What went wrong, for programs. */
    this.kind = kind;
    /** Details, such as `retry_after` in seconds or the `actual_version` of a file. */
    this.data = data;
  }
}

/**
 * The body of a request.
 * @param {string} method
 * @param {Record<string, unknown>} params
 * @returns {string}
 */
export function request(method, params) {
  return JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
}

/**
 * The result in the body of a response.
 * @param {Uint8Array} data
 * @returns {any} throws the {@link NatskitError} that the response carries, if it carries one
 */
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
 * The result of a parsed response.
 * @param {any} response
 * @returns {any} throws the {@link NatskitError} that the response carries, if it carries one
 */
export function result(response) {
  if (response?.error) {
    const { kind = "internal_error", ...data } = response.error.data ?? {};
    throw new NatskitError(kind, response.error.message, data);
  }
  return response?.result;
}
