/** What every part of the page uses. */

/**
 * The element with this id. Throws if there is none of this type.
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
 * Run an action, and show its error. The control is disabled meanwhile.
 * @param {string} place id of the element for the error @param {() => Promise<unknown>} action
 * @param {string} [control] id of the button, or of the form that has the button
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

/**
 * Open a dialog and wait until it is closed. @param {string} id
 * @returns {Promise<string>} the value of the button; empty after Escape, or if the dialog is open already
 */
export function ask(id) {
  const dialog = element(id, HTMLDialogElement);
  if (dialog.open) return Promise.resolve("");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/**
 * A name with its invisible characters made visible: fields drop line breaks, and others reverse the text after them.
 * @param {string} name @returns {string}
 */
export function visible(name) {
  return name.replace(/[\p{Cc}\p{Zl}\p{Zp}\p{Cs}\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]/gu, (character) => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code); // pictures of control characters
    return `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/**
 * What was typed over a visible name: what stands there for one of its invisible characters is that character again.
 * @param {string} typed @param {string} name @returns {string}
 */
export function typedOver(typed, name) {
  let text = typed;
  for (const character of new Set(name)) {
    const shown = visible(character);
    // A name that also has these characters themselves does not say which is meant: then they are what was typed.
    if (shown !== character && !name.includes(shown)) text = text.replaceAll(shown, () => character);
  }
  return text;
}
