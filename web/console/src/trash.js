/** The trash of the selected project: what is in it, and back to where it was. */

import { NatskitError } from "@natskit/client";
import { element, listItem, visible } from "./page.js";
import { bytes } from "./tree.js";

/** @typedef {import("@natskit/client").ProjectResults} Results */
/** @typedef {import("@natskit/client").TrashedEntry} Trashed */

export class Trash {
  #call;
  #restored;
  #after = "";

  /**
   * @param {<M extends keyof Results>(method: M, params: Record<string, unknown>) => Promise<Results[M]>} call
   * @param {(path: string) => void} restored is called with the path of a thing that is back
   */
  constructor(call, restored) {
    this.#call = call;
    this.#restored = restored;
    element("trash-close").addEventListener("click", () => element("trash-dialog", HTMLDialogElement).close());
    element("empty-trash").addEventListener("click", () => void this.#empty());
    element("more-trash").addEventListener("click", () => void this.#list(this.#after));
  }

  /** Show it. */
  async open() {
    element("trash").replaceChildren();
    element("trash-error").textContent = "";
    element("more-trash").hidden = true;
    this.#draw();
    element("trash-dialog", HTMLDialogElement).showModal();
    await this.#list("");
  }

  /** @param {string} after */
  async #list(after) {
    await this.#guard(async () => {
      const { entries, next } = await this.#call("list_trash", { after, limit: 200 });
      element("trash").append(...entries.map((one) => this.#row(one)));
      this.#after = next ?? "";
      element("more-trash").hidden = next === null;
    });
    this.#draw();
  }

  /** @param {Trashed} one */
  #row(one) {
    const name = visible(one.path || one.id);
    const size = one.type === "file" ? `, ${bytes(one.size)}` : "";
    const item = listItem("", `${one.deleted.replace("T", " ")}${size}`);
    const title = document.createElement("span");
    title.className = "code grow";
    title.textContent = one.type === "directory" ? `${name}/` : name;
    item.prepend(title);
    for (const [text, action] of /** @type {const} */ ([
      ["Restore", () => this.#restore(item, one)],
      ["Delete", () => this.#delete(item, one)],
    ])) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.ariaLabel = `${text} ${name}`;
      if (text === "Delete") button.className = "danger";
      button.addEventListener("click", () => void this.#guard(action));
      item.append(button);
    }
    return item;
  }

  /** @param {HTMLElement} item @param {Trashed} one @param {string} [to] */
  async #restore(item, one, to) {
    try {
      const { path } = await this.#call("restore_from_trash", { id: one.id, ...(to === undefined ? {} : { to }) });
      item.remove();
      this.#draw();
      this.#restored(path);
    } catch (error) {
      const isTaken = error instanceof NatskitError && ["conflict", "invalid_state"].includes(error.kind);
      if (!isTaken) throw error;
      this.#askWhere(item, one);
      throw error;
    }
  }

  /** Ask for another path: where it was, something else is by now. @param {HTMLElement} item @param {Trashed} one */
  #askWhere(item, one) {
    if (item.querySelector("form")) return;
    const form = document.createElement("form");
    form.className = "row grow";
    const field = document.createElement("input");
    field.className = "code";
    field.value = one.path || one.id;
    field.ariaLabel = `Where to restore ${visible(one.path || one.id)}`;
    const button = document.createElement("button");
    button.textContent = "Restore here";
    form.append(field, button);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#guard(() => this.#restore(item, one, field.value));
    });
    item.append(form);
    field.focus();
  }

  /** @param {HTMLElement} item @param {Trashed} one */
  async #delete(item, one) {
    await this.#call("empty_trash", { ids: [one.id] });
    item.remove();
    this.#draw();
  }

  async #empty() {
    await this.#guard(async () => {
      await this.#call("empty_trash", {});
      element("trash").replaceChildren();
      element("more-trash").hidden = true;
    });
    this.#draw();
  }

  /** @param {() => Promise<void>} action */
  async #guard(action) {
    element("trash-error").textContent = "";
    try {
      await action();
    } catch (error) {
      element("trash-error").textContent = error instanceof Error ? error.message : String(error);
    }
  }

  #draw() {
    const isEmpty = element("trash").childElementCount === 0;
    element("trash-empty").hidden = !isEmpty;
    element("empty-trash", HTMLButtonElement).disabled = isEmpty;
  }
}
