/** Small things every part of the page needs. */

/**
 * The element with an id, as the type it must have.
 * @template {HTMLElement} T
 * @param {string} id @param {new () => T} [type] @returns {T}
 */
export function element(id, type = /** @type {new () => T} */ (/** @type {unknown} */ (HTMLElement))) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`the page has no ${id}`);
  return found;
}

/** Show one of the three screens. @param {"sign-in" | "new-password" | "console"} screen */
export function show(screen) {
  for (const id of ["sign-in", "new-password", "console"]) element(id).hidden = id !== screen;
  if (screen === "sign-in") element("email").focus();
  if (screen === "new-password") element("chosen-password").focus();
}

/**
 * Do something, and say where it was asked for what went wrong; the control is disabled meanwhile.
 * @param {string} place id of the element for the error @param {() => Promise<unknown>} action
 * @param {string} [control] id of the button, or of the form whose button it is
 */
export async function guard(place, action, control) {
  const error = element(place);
  const owner = control ? element(control) : undefined;
  const button = owner instanceof HTMLButtonElement ? owner : owner?.querySelector("button:not([type=button])");
  error.textContent = "";
  if (button instanceof HTMLButtonElement) button.disabled = true;
  try {
    await action();
  } catch (caught) {
    error.textContent = caught instanceof Error ? caught.message : String(caught);
  } finally {
    if (button instanceof HTMLButtonElement) button.disabled = false;
  }
}

/** @param {string} text @param {string} detail */
export function listItem(text, detail) {
  const item = document.createElement("li");
  const quiet = document.createElement("span");
  quiet.className = "quiet";
  quiet.textContent = detail;
  item.append(text, quiet);
  return item;
}
