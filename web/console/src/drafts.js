/**
 * Unsaved texts. They are in sessionStorage, so they survive a reload and a sign-out in this tab, and are lost when the
 * tab is closed; the browser asks before it closes the tab. Each is restored for the account that wrote it only.
 */

const PREFIX = "natskit-draft ";

/**
 * @typedef {object} Draft
 * @property {string} account
 * @property {string} project
 * @property {string} title of the project, to be shown if the project is gone
 * @property {string} path of the file; empty if the text has none yet
 * @property {string} [copy] which copy of a document it is from; a file has none
 * @property {string} typed the path in the input field, if it differs from `path`
 * @property {string} version of the file that was edited
 * @property {string} text with the line endings of the file
 * @property {number} at when the draft was kept, in milliseconds since 1970
 */

/** @param {{account: string, project: string, path: string, copy?: string}} draft */
function keyOf({ account, project, path, copy = "" }) {
  return PREFIX + JSON.stringify(copy ? [account, project, path, copy] : [account, project, path]);
}

/**
 * Keep a draft. Replaces an older one of the same file.
 * @param {Draft} draft
 * @returns {boolean} whether there was room
 */
export function keep(draft) {
  try {
    sessionStorage.setItem(keyOf(draft), JSON.stringify(draft));
    return true;
  } catch {
    return false;
  }
}

/**
 * Forget a draft. @param {{account: string, project: string, path: string, copy?: string}} draft
 * @param {string} [text] drop it only if it still has this text
 */
export function drop(draft, text) {
  if (text === undefined || read(keyOf(draft))?.text === text) sessionStorage.removeItem(keyOf(draft));
}

/** The drafts of an account, the newest first. @param {string} account @returns {Draft[]} */
export function draftsOf(account) {
  return all()
    .filter((draft) => draft.account === account)
    .sort((a, b) => b.at - a.at);
}

/** Whether closing the tab would lose a draft of any account. @returns {boolean} */
export function any() {
  return all().length > 0;
}

/** @returns {Draft[]} */
function all() {
  return Object.keys(sessionStorage)
    .filter((key) => key.startsWith(PREFIX))
    .flatMap((key) => read(key) ?? []);
}

/** @param {string} key @returns {Draft | null} */
function read(key) {
  return JSON.parse(sessionStorage.getItem(key) ?? "null");
}
