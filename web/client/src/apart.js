/** The work of callbacks, apart from the connection that calls them. */

/**
 * Do what a message asks for. An error that is thrown from a callback would end nats-core's loop over all messages of the
 * connection (nats-core 3.4, protocol.ts), and anybody who may publish could send one that is malformed.
 * @param {() => void} work
 * @param {(error: unknown) => void} [failed] gets the error; without it, the error is reported as one that nobody caught
 */
export function apart(work, failed = report) {
  try {
    work();
  } catch (error) {
    failed(error);
  }
}

/** @param {unknown} error */
function report(error) {
  queueMicrotask(() => {
    throw error;
  });
}
