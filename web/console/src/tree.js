/**
 * The tree of a project's folders. Folders are listed when they are opened, in parts. It is a tree for screen readers
 * and for the keyboard, too: https://www.w3.org/WAI/ARIA/apg/patterns/treeview/.
 */

import { NatskitError } from "@natskit/client";
import { typedOver, visible } from "./page.js";

/** @typedef {import("@natskit/client").DirectoryEntry} Entry */
/** @typedef {import("@natskit/client").DirectoryPage} Page */

/** How many names are listed at a time. */
const PART = 1_000;
/** Of more names than these that changed at once, the whole folder is listed again. */
const FEW = 20;
/** A name that is typed begins anew after this long, in milliseconds. */
const TYPING = 800;
/** Files in which uploads and new contents grow until they are complete. */
const INCOMPLETE = /^\.natskit-[0-9a-f]{16,64}\.(upload|tmp)$/;

/**
 * What the tree asks of its owner.
 * @typedef {object} Owner
 * @property {(path: string, after: string, limit: number) => Promise<Page>} page a part of a folder
 * @property {(path: string) => Promise<Entry>} stat
 * @property {(path: string) => void} open opens a file
 * @property {(key: "rename" | "trash") => void} act on the selected row
 * @property {(error: unknown) => void} failed
 * @property {() => void} selected another row is
 * @property {(path: string, isOpen: boolean) => void} watch a folder that is shown, or no more
 */

/** A row: a file, or a folder with the rows in it. */
export class Row {
  isOpen = false;
  children = /** @type {Row[]} */ ([]);
  /** After which name the folder goes on; `null` at its end. */
  next = /** @type {string | null} */ (null);
  /** Counts what the folder was asked for, so that only the last answer is shown. */
  turn = 0;

  /** @param {Row | null} parent `null` for the home @param {Entry} entry */
  constructor(parent, entry) {
    this.parent = parent;
    this.entry = entry;
    /** @type {number} */
    this.level = parent ? parent.level + 1 : 0;
    this.item = document.createElement("li");
    this.item.role = "none";
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.role = "treeitem";
    this.button.tabIndex = -1;
    this.button.ariaLevel = String(this.level);
    this.button.ariaSelected = "false";
    this.group = document.createElement("ul");
    this.group.role = "group";
    this.item.append(this.button);
    this.describe(entry);
  }

  /** @returns {string} from the home; "." for the home itself */
  get path() {
    if (!this.parent) return ".";
    return this.parent.parent ? `${this.parent.path}/${this.entry.name}` : this.entry.name;
  }

  /** Whether it may have rows: a link may lead to a folder. */
  get mayOpen() {
    return this.entry.type === "directory" || this.entry.type === "symlink";
  }

  /** The folder that it is, or is in. @returns {Row} */
  get folder() {
    return this.entry.type === "directory" || this.isOpen || !this.parent ? this : this.parent;
  }

  /** @param {Entry} entry */
  describe(entry) {
    this.entry = entry;
    const { name, type, size, mtime, target } = entry;
    this.button.className = type;
    this.button.textContent = type === "directory" ? `${visible(name)}/` : visible(name);
    const about = type === "file" ? `${bytes(size)}, ` : "";
    const leads = target === null ? "" : `leads to ${visible(target)}, `;
    this.button.title = `${visible(name)}: ${leads}${about}${new Date(mtime * 1000).toLocaleString()}`;
    if (type === "directory") this.button.ariaExpanded = String(this.isOpen);
  }
}

export class Tree {
  #list;
  #owner;
  #rows = /** @type {WeakMap<Element, Row>} */ (new WeakMap());
  #typed = "";
  #typedAt = 0;

  /** @param {HTMLElement} list @param {Owner} owner */
  constructor(list, owner) {
    this.#list = list;
    this.#owner = owner;
    list.role = "tree";
    this.home = this.#newHome();
    /** The row on which the keyboard is. @type {Row | undefined} */
    this.selected = undefined;
    list.addEventListener("click", (event) => this.#click(/** @type {Element} */ (event.target)));
    list.addEventListener("focusin", (event) => this.#select(this.rowOf(event.target)));
    list.addEventListener("keydown", (event) => this.#key(event));
  }

  /** The row of an element in the list. @param {EventTarget | null} target */
  rowOf(target) {
    const button = target instanceof Element ? target.closest("li")?.querySelector("button") : undefined;
    return button ? this.#rows.get(button) : undefined;
  }

  /** The folder that new files go into. */
  get folder() {
    return this.selected?.folder ?? this.home;
  }

  /** Show nothing of the project, or only a hint. @param {string} hint */
  clear(hint) {
    this.#close(this.home);
    this.home.turn++;
    this.home = this.#newHome();
    this.selected = undefined;
    const said = document.createElement("li");
    said.className = "quiet";
    said.textContent = hint;
    this.#list.replaceChildren(...(hint ? [said] : []));
    this.#owner.selected();
  }

  /** List a folder, or list it again; what is open in it stays open. @param {Row} row */
  async load(row) {
    const turn = ++row.turn;
    const wanted = Math.max(PART, row.children.length);
    /** @type {Entry[]} */
    const entries = [];
    /** @type {string | null} */
    let next = "";
    while (next !== null && entries.length < wanted) {
      const page = /** @type {Page} */ (await this.#owner.page(row.path, next, PART));
      if (turn !== row.turn) return;
      entries.push(...page.entries);
      next = page.next;
    }
    if (row === this.home && !row.isOpen) this.#list.replaceChildren();
    row.next = next;
    this.#put(row, entries.filter(isComplete));
    if (!row.isOpen) this.#open(row);
  }

  /** Show what has changed in a folder. @param {string} path @param {string[] | null} names `null` if that is not known */
  async changed(path, names) {
    const row = this.find(path);
    if (!row?.isOpen) return;
    if (names === null || names.length > FEW) return await this.load(row);
    await Promise.all(names.map((name) => this.#look(row, name)));
  }

  /** The row of a path, if it is shown. @param {string} path @returns {Row | undefined} */
  find(path) {
    let row = /** @type {Row | undefined} */ (this.home);
    for (const name of path === "." ? [] : path.split("/")) row = row?.children.find((one) => one.entry.name === name);
    return row;
  }

  /** Move the keyboard to a row. @param {Row} row */
  focus(row) {
    row.button.focus();
  }

  /**
   * Ask for a name where the row is, or where a new one will be.
   * @param {Row} row the row to be renamed, or the folder of the new one
   * @param {string} name @param {string} label
   * @returns {Promise<string>} what was typed; empty if it was not changed
   */
  askName(row, name, label) {
    const isNew = name === "";
    const field = document.createElement("input");
    field.className = "code";
    field.value = visible(name);
    field.ariaLabel = label;
    field.spellcheck = false;
    const item = isNew ? document.createElement("li") : row.item;
    if (isNew) (row === this.home ? this.#list : row.group).prepend(item);
    else row.button.hidden = true;
    item.prepend(field);
    field.focus();
    field.setSelectionRange(0, name.includes(".", 1) ? visible(name).lastIndexOf(".") : field.value.length);
    return new Promise((resolve) => {
      const done = (/** @type {string} */ answer) => {
        field.removeEventListener("blur", leave);
        if (isNew) item.remove();
        else field.remove();
        row.button.hidden = false;
        resolve(answer === visible(name) ? "" : typedOver(answer, name));
      };
      const leave = () => done("");
      field.addEventListener("blur", leave);
      field.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key === "Enter" || event.key === "Escape") {
          event.preventDefault();
          done(event.key === "Enter" ? field.value : "");
          if (row.parent) row.button.focus();
        }
      });
    });
  }

  #newHome() {
    const home = new Row(null, { name: "", type: "directory", size: 0, mtime: 0, mode: 0o755, target: null });
    home.group = /** @type {HTMLUListElement} */ (this.#list);
    return home;
  }

  /** @param {Row} row @param {string} name */
  async #look(row, name) {
    let entry;
    try {
      entry = await this.#owner.stat(row === this.home ? name : `${row.path}/${name}`);
    } catch (error) {
      if (!(error instanceof NatskitError && error.kind === "not_found")) return this.#owner.failed(error);
    }
    if (!row.isOpen || (row.next !== null && compare(name, row.next) > 0)) return;
    const entries = row.children.map((one) => one.entry).filter((one) => one.name !== name);
    if (entry && isComplete(entry)) entries.push({ ...entry, name });
    entries.sort((a, b) => compare(a.name, b.name));
    this.#put(row, entries);
  }

  /** Show these names in a folder: rows that are there already stay. @param {Row} row @param {Entry[]} entries */
  #put(row, entries) {
    const before = new Map(row.children.map((one) => [one.entry.name, one]));
    row.children = entries.map((entry) => {
      const known = before.get(entry.name);
      if (!known || known.entry.type !== entry.type) return this.#made(row, entry);
      before.delete(entry.name);
      known.describe(entry);
      return known;
    });
    for (const gone of before.values()) this.#remove(gone);
    let place = /** @type {Element | null} */ (row.group.querySelector(":scope > li[role=none]"));
    for (const { item } of row.children) {
      // Rows in their places are not touched: a row that is moved loses the focus.
      if (item === place) place = place.nextElementSibling;
      else row.group.insertBefore(item, place);
    }
    this.#more(row);
    if (!this.#list.querySelector("[tabindex='0']") && this.home.children[0]) this.home.children[0].button.tabIndex = 0;
  }

  /** @param {Row} row @param {Entry} entry */
  #made(row, entry) {
    const made = new Row(row, entry);
    this.#rows.set(made.button, made);
    return made;
  }

  /** @param {Row} gone */
  #remove(gone) {
    this.#close(gone);
    const hadFocus = gone.item.contains(document.activeElement);
    const other = gone.item.nextElementSibling ?? gone.item.previousElementSibling;
    gone.item.remove();
    if (this.selected !== gone) return;
    this.selected = undefined;
    const next = other?.querySelector("button") ?? gone.parent?.button;
    if (next && hadFocus) next.focus();
    else this.#owner.selected();
  }

  /** The row that lists more of a folder. @param {Row} row */
  #more(row) {
    for (const old of row.group.querySelectorAll(":scope > li.more")) old.remove();
    if (row.next === null) return;
    const item = document.createElement("li");
    item.className = "more";
    item.role = "none";
    const button = document.createElement("button");
    button.type = "button";
    button.role = "treeitem";
    button.tabIndex = -1;
    button.ariaLevel = String(row.level + 1);
    button.textContent = "Show more…";
    button.addEventListener("click", () => void this.#continue(row).catch(this.#owner.failed));
    item.append(button);
    row.group.append(item);
  }

  /** @param {Row} row */
  async #continue(row) {
    const turn = ++row.turn;
    const page = await this.#owner.page(row.path, row.next ?? "", PART);
    if (turn !== row.turn) return;
    const last = row.children.at(-1);
    row.next = page.next;
    const made = page.entries.filter(isComplete).map((entry) => this.#made(row, entry));
    row.children.push(...made);
    for (const old of row.group.querySelectorAll(":scope > li.more")) old.remove();
    row.group.append(...made.map(({ item }) => item));
    this.#more(row);
    const first = made[0] ?? last;
    if (document.activeElement === document.body && first) first.button.focus();
  }

  /** @param {Row} row */
  #open(row) {
    row.isOpen = true;
    if (row !== this.home) row.item.append(row.group);
    row.button.ariaExpanded = "true";
    this.#owner.watch(row.path, true);
  }

  /** @param {Row} row */
  #close(row) {
    row.turn++; // an answer on its way must not open it
    if (!row.isOpen) return;
    for (const child of row.children) this.#close(child);
    this.#owner.watch(row.path, false);
    row.isOpen = false;
    row.children = [];
    row.next = null;
    row.button.ariaExpanded = "false";
    if (row === this.home) return;
    if (row.group.contains(document.activeElement)) row.button.focus();
    if (this.selected && isBelow(this.selected, row)) this.#select(row);
    row.group.replaceChildren();
    row.group.remove();
  }

  /** @param {Row | undefined} row */
  #select(row) {
    if (!row || row === this.selected) return;
    for (const old of this.#list.querySelectorAll("[tabindex='0']")) /** @type {HTMLElement} */ (old).tabIndex = -1;
    if (this.selected) this.selected.button.ariaSelected = "false";
    this.selected = row;
    row.button.tabIndex = 0;
    row.button.ariaSelected = "true";
    this.#owner.selected();
  }

  /** @param {Element} target */
  #click(target) {
    const button = target.closest("button");
    const row = button ? this.#rows.get(button) : undefined;
    if (!row) return;
    this.#select(row);
    if (row.isOpen) {
      this.#close(row);
      this.#owner.selected();
    } else if (row.mayOpen) void this.#enter(row);
    else this.#owner.open(row.path);
  }

  /** Open a folder; or a link, which may lead to a folder or to a file. @param {Row} row */
  async #enter(row) {
    try {
      await this.load(row);
      if (this.selected === row) this.#owner.selected();
    } catch (error) {
      const isNoFolder = error instanceof NatskitError && error.kind === "invalid_params";
      if (row.entry.type === "symlink" && isNoFolder) this.#owner.open(row.path);
      else this.#owner.failed(error);
    }
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const buttons = /** @type {HTMLElement[]} */ ([...this.#list.querySelectorAll("button:not([hidden])")]);
    const at = buttons.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    if (at < 0) return;
    const row = this.#rows.get(buttons[at]);
    const to = this.#destination(event.key, buttons, at, row);
    if (to) to.focus();
    else if (event.key === "F2" && row) this.#owner.act("rename");
    else if (event.key === "Delete" && row) this.#owner.act("trash");
    else if (event.key === "ArrowRight" && row?.mayOpen && !row.isOpen) void this.#enter(row);
    else if (event.key === "ArrowLeft" && row?.isOpen) this.#click(row.button);
    else return;
    event.preventDefault();
  }

  /**
   * Where a key moves to.
   * @param {string} key @param {HTMLElement[]} buttons @param {number} at @param {Row | undefined} row
   * @returns {HTMLElement | undefined}
   */
  #destination(key, buttons, at, row) {
    switch (key) {
      case "ArrowDown":
        return buttons[at + 1];
      case "ArrowUp":
        return buttons[at - 1];
      case "Home":
        return buttons[0];
      case "End":
        return buttons.at(-1);
      case "ArrowRight":
        return row?.isOpen ? row.children[0]?.button : undefined;
      case "ArrowLeft":
        return row?.isOpen || !row?.parent?.parent ? undefined : row.parent.button;
      default:
        return key.length === 1 && key !== " " ? this.#named(key, buttons, at) : undefined;
    }
  }

  /** The next row whose name begins with what was typed. @param {string} key @param {HTMLElement[]} buttons @param {number} at */
  #named(key, buttons, at) {
    const now = performance.now();
    this.#typed = (now - this.#typedAt < TYPING ? this.#typed : "") + key.toLowerCase();
    this.#typedAt = now;
    const from = this.#typed.length === 1 ? at + 1 : at;
    const order = [...buttons.slice(from), ...buttons.slice(0, from)];
    return order.find((button) => button.textContent?.toLowerCase().startsWith(this.#typed));
  }
}

/** @param {Row} row @param {Row} above */
function isBelow(row, above) {
  for (let one = row.parent; one; one = one.parent) if (one === above) return true;
  return false;
}

/** @param {{name: string}} entry */
function isComplete({ name }) {
  return !INCOMPLETE.test(name);
}

/** The order of names, which is that of their bytes. @param {string} a @param {string} b */
function compare(a, b) {
  const [x, y] = [bytesOf(a), bytesOf(b)];
  for (let n = 0; n < Math.min(x.length, y.length); n++) if (x[n] !== y[n]) return x[n] - y[n];
  return x.length - y.length;
}

/** The bytes of a name; those that are not UTF-8 are lone surrogates in it. @param {string} name */
function bytesOf(name) {
  const encoder = new TextEncoder();
  return Array.from(name).flatMap((character) => {
    const code = character.codePointAt(0) ?? 0;
    return code >= 0xdc80 && code <= 0xdcff ? [code - 0xdc00] : [...encoder.encode(character)];
  });
}

/** A size for people. @param {number} size in bytes */
export function bytes(size) {
  if (size < 1000) return `${size} bytes`;
  const units = ["kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(size) / 3), units.length);
  return `${(size / 1000 ** power).toFixed(1)} ${units[power - 1]}`;
}
